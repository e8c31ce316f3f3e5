"""The tests that use Airflow's database pass on PostgreSQL, if it is installed."""

from __future__ import annotations

import os
import random
import shlex
import string
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy

from airflow_provider_jojokey.integrations.assets import MAX_URI
from tests.support.patience import PATIENCE
from tests.support.postgres import find, postgres

ROOT = Path(__file__).parents[2]
PARTS = (
    "tests/operators/test_database_limits.py -k 'label and text'",
    "tests/operators/test_database_limits.py -k 'label and native'",
    "tests/operators/test_database_limits.py -k odd_error",
    "tests/operators/test_database_limits.py -k 'not label and not odd_error'",
    "tests/operators/test_assets.py",
    "tests/plugins/test_kept_sums.py",
    "tests/plugins/test_sums.py",
    "tests/plugins/test_money.py",
    "tests/plugins/test_results.py",
)
"""Tests that write to the database and read from it: JSONB differs from SQLite's text.

Each part stays below the time limit of one test on a busy machine, also with Airflow 3.1, which takes longer.
"""
pytestmark = pytest.mark.skipif(
    find("initdb") is None, reason="PostgreSQL is not installed: there is no initdb"
)


def test_longest_uri_of_an_asset_fits_into_the_index() -> None:
    from airflow.models.asset import AssetActive, AssetModel

    tables: list[Any] = [AssetModel.__table__, AssetActive.__table__]
    uri = "".join(random.Random(1).choices(string.ascii_letters + string.digits, k=MAX_URI + 1))
    with postgres() as url:
        engine = sqlalchemy.create_engine(url)
        AssetModel.metadata.create_all(engine, tables=tables)
        for table in tables:
            group = {"group": "asset", "extra": {}} if table is AssetModel.__table__ else {}
            with engine.begin() as connection:
                connection.execute(table.insert().values(name=uri[:MAX_URI], uri=uri[:MAX_URI], **group))
            with pytest.raises(sqlalchemy.exc.OperationalError), engine.begin() as connection:
                connection.execute(table.insert().values(name=uri, uri=uri, **group))
        engine.dispose()


@pytest.mark.parametrize("part", PARTS)
def test_database_tests_pass_on_postgresql(part: str) -> None:
    with postgres() as url:
        run = subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
                *(
                    "--tb=short",
                    "--show-capture=no",
                    *shlex.split(part),
                ),  # the logs would hide the assertions
            ],
            env={**os.environ, "TESTS_DATABASE": url},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=1.5 * PATIENCE,
        )
    assert run.returncode == 0, run.stdout[-8000:]
