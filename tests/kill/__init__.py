"""Randomized accidents: tasks killed at any step, stores that vanish, two processes with one job.

The sandbox gateway's charges count payments, and the bucket shows whether an image was lost. What the package
believes plays no part. ``python -m tests.kill --trials 240 --seed N`` runs the full count.
"""
