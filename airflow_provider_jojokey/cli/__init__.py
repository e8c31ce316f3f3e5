"""The command line: ``airflow jojokey``, and ``python -m airflow_provider_jojokey`` where Airflow is older."""
