"""Randomised accidents: tasks that die by ``kill -9`` at any step, stores that vanish, two that want the same.

Whether an image was paid for twice is counted by the stand-in gateway's own ledger, and whether one was lost by
looking into the store; what the package believes plays no part. ``python -m tests.kill --trials 240 --seed N`` runs
the full count.
"""
