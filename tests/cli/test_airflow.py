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

from airflow_provider_jojokey.__main__ import main
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


def generate_in_shell(world: Sandbox, redirection: str, *arguments: str, **environment: str) -> Any:
    """Run ``generate`` with a redirection of the shell."""
    command = (sys.executable, "-m", "airflow_provider_jojokey", "generate", *arguments)
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", f'"$@" {redirection}', "bash", *command],
        env={**os.environ, **world.environment(), "COLUMNS": "200", **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_result_on_a_full_disk_does_not_look_unbilled(world: Sandbox) -> None:
    command = ("A full disk", "--out", "s3://posters/full.png", "--output", "json")
    paid = generate_in_shell(world, ">/dev/full", *command)
    reused = generate_in_shell(world, ">/dev/full", *command)

    assert (paid.returncode, reused.returncode) == (4, 1), paid.stderr
    assert "No space left on device. The image was paid for and stored: s3://posters/full.png" in paid.stderr
    assert "Traceback" not in paid.stderr + reused.stderr


@pytest.mark.parametrize("output", ["json", "plain"])
@pytest.mark.parametrize("redirection", ["| true", ">&-", ">&- 2>&-"])
def test_result_that_nobody_reads_is_a_success(world: Sandbox, output: str, redirection: str) -> None:
    done = generate_in_shell(
        world, redirection, "A red fox", "--out", "s3://posters/unread.png", "--output", output
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("output", ["table", "plain"])
def test_terminal_without_the_characters_of_a_key_shows_codes(world: Sandbox, output: str) -> None:
    place = "s3://posters/\N{FOX FACE}.png"
    done = generate_in_shell(world, "", "A red fox", "--out", place, "-o", output, PYTHONIOENCODING="ascii")

    assert done.returncode == 0, done.stderr
    assert "s3://posters/\\U0001f98a.png" in done.stdout


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


@pytest.mark.parametrize("command", ["", "attempts", "check", "generate", "ledger", "resolve"])
def test_help_fits_80_columns_and_names_the_setting(world: Sandbox, command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *COMMAND, *filter(None, [command]), "--help"],
        env={**os.environ, **world.environment(), "COLUMNS": "80"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    long = [line for line in done.stdout.splitlines() if len(line) > 80]
    assert [line for line in long if "Output format. Allowed values:" not in line] == []  # Airflow's own text
    words = " ".join(done.stdout.split())
    assert not command or ("(default: the setting s3_extra_args)" in words and "exit codes: 0 " in words)


@pytest.mark.parametrize("command", ["attempts", "check", "generate", "ledger", "resolve"])
def test_help_has_a_line_per_exit_code(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])

    codes = capsys.readouterr().out.partition("exit codes:\n")[2].splitlines()
    assert len(codes) > 1
    assert [line.split()[0] for line in codes] == [str(number) for number in range(len(codes))]


def test_definition_imports_nothing_heavy() -> None:
    loaded = modules_after("import airflow_provider_jojokey.cli.definition")

    assert within(loaded, ("airflow", *HEAVY)) == []
    assert within(loaded, ("airflow_provider_jojokey",)) == [
        "airflow_provider_jojokey",
        "airflow_provider_jojokey.cli",
        "airflow_provider_jojokey.cli.definition",
    ]
