"""A model-based adversary: the real payment path in simulated processes under a virtual clock.

:mod:`~tests.adversary.plan` draws a sequence of steps from a seed, :mod:`~tests.adversary.world` runs it against an
S3 store and a gateway in memory, and :mod:`~tests.adversary.invariants` compares the outcome with the payments that
the package never sees.
"""
