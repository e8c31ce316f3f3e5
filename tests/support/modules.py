"""Modules that a fresh Python loads."""

from __future__ import annotations

import subprocess
import sys

from tests.support.patience import PATIENCE

HEAVY = ("requests", "requests_toolbelt", "urllib3", "boto3", "botocore", "pybase64", "PIL", "tenacity",
         "airflow.providers.amazon", "cryptography.hazmat.backends", "numpy")  # fmt: skip

AIRFLOW_ITSELF = (
    "import airflow.sdk, airflow.providers.common.compat.sdk; from airflow.sdk import BaseOperator, DAG"
)


def modules_after(code: str) -> set[str]:
    """Return the modules that a fresh Python has loaded after ``code``."""
    run = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print('MODULES', *sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    )
    return set(run.stdout.rpartition("MODULES")[2].split())


def within(modules: set[str], packages: tuple[str, ...]) -> list[str]:
    return sorted(
        name
        for name in modules
        if name.startswith(tuple(f"{package}." for package in packages)) or name in packages
    )
