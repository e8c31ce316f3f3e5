"""The payment path: one image request, paid once.

:mod:`~airflow_provider_jojokey.payments.generate` contains the loop. Each other module is one step of it and
knows nothing about later steps.
"""
