"""For Airflow's processes of the cluster: each has the host name of the container that it would be in."""

from __future__ import annotations

import os


def hostname() -> str:
    return os.environ["HOSTNAME"]
