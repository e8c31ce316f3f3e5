"""The same lists on PostgreSQL, where one is installed: JSONB is not SQLite's text."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.postgres import find, postgres

HERE = Path(__file__).resolve().parent


@pytest.mark.skipif(find("initdb") is None, reason="PostgreSQL is not installed: there is no initdb")
def test_the_lists_are_the_same_on_postgresql() -> None:
    with postgres() as url:
        run = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "test_results.py")],
            env={**os.environ, "TESTS_DATABASE": url},
            cwd=HERE.parent.parent,
            capture_output=True,
            text=True,
            timeout=500,
        )
    assert run.returncode == 0, run.stdout[-8000:]
