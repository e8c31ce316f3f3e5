"""Tests of what is written to Airflow's database, on PostgreSQL, if it is installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from plugins.postgres import find, postgres

HERE = Path(__file__).resolve().parent


@pytest.mark.skipif(find("initdb") is None, reason="PostgreSQL is not installed: there is no initdb")
@pytest.mark.parametrize("name", ["test_database_limits.py", "test_assets.py"])
def test_tasks_write_the_same_to_postgresql(name: str) -> None:
    with postgres() as url:
        run = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / name)],
            env={**os.environ, "TESTS_DATABASE": url},
            cwd=HERE.parent.parent,
            capture_output=True,
            text=True,
            timeout=900,
        )
    assert run.returncode == 0, run.stdout[-8000:]
