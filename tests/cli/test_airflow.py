"""The commands in separate processes, as ``airflow jojokey …``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_jojokey.sandbox import Sandbox
from tests.support.modules import HEAVY, modules_after, within
from tests.support.patience import PATIENCE

AIRFLOW = tuple(int(part) for part in version("apache-airflow").split(".")[:2])
COMMAND = ["airflow", "jojokey"] if AIRFLOW >= (3, 2) else ["airflow_provider_jojokey"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    with Sandbox(tmp_path_factory.mktemp("world")) as sandbox:
        yield sandbox


def run(world: Sandbox, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *COMMAND, *arguments],
        env={**os.environ, **world.environment(), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def test_generate_and_ledger_agree_with_the_bill(world: Sandbox) -> None:
    made = run(world, "generate", "A red fox", "--out", "s3://posters/fox.png", "--output", "json")
    added = run(world, "ledger", "--bucket", "posters", "--by", "model", "--output", "json")

    assert (made.returncode, added.returncode) == (0, 0), made.stderr + added.stderr
    (row,) = json.loads(made.stdout)
    image = (world.directory / "s3" / "posters" / "fox.png").read_bytes()
    assert image.startswith(b"\x89PNG")
    assert row["bytes"] == len(image)
    assert json.loads(added.stdout)[0]["total_tokens"] == world.gateway.charges[0].total_tokens
    secrets = (world.gateway.token, world.s3.secret_key)
    assert not [
        secret for secret in secrets if secret in made.stdout + made.stderr + added.stdout + added.stderr
    ]


def test_exit_code_reaches_the_shell(world: Sandbox) -> None:
    output = run(world, "check", "--bucket", "nonsense", "--output", "json")

    assert output.returncode == 1, output.stderr
    assert [row["check"] for row in json.loads(output.stdout) if row["state"] == "failed"] == ["bucket"]


def test_connection_in_the_database_is_found(
    world: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = world.environment()
    connection: dict[str, Any] = json.loads(environment.pop("AIRFLOW_CONN_JOJOKEY_DEFAULT"))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path))
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", f"sqlite:///{tmp_path}/airflow.db")
    monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY", "")
    code = (
        "import sys; from airflow.utils.db import initdb; initdb()\n"
        "from airflow.models.connection import Connection; from airflow.utils.session import create_session\n"
        "with create_session() as session:\n"
        f"    session.add(Connection('mine', 'jojokey', host={connection['host']!r}, password={connection['password']!r}))\n"
        "from airflow_provider_jojokey.__main__ import main\n"
        "main(['check', '--jojokey-conn-id', 'mine', '--output', 'json'])"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=False
    )

    assert done.returncode == 0, done.stderr
    assert '"valid, with access to 1 model"' in done.stdout


def test_definition_imports_nothing_heavy() -> None:
    loaded = modules_after("import airflow_provider_jojokey.cli.definition")

    assert within(loaded, ("airflow", *HEAVY)) == []
    assert within(loaded, ("airflow_provider_jojokey",)) == [
        "airflow_provider_jojokey",
        "airflow_provider_jojokey.cli",
        "airflow_provider_jojokey.cli.definition",
    ]
