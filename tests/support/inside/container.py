"""Gives each Airflow process of the cluster the host name of its container."""

from __future__ import annotations

import os


def hostname() -> str:
    return os.environ["HOSTNAME"]
