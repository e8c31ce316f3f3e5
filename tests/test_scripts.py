"""The parts of `make demo`, `make ui` and `make test-matrix`, without an Airflow."""

from __future__ import annotations

import os
import socket
import sqlite3
from pathlib import Path
from typing import Any

import demo
import matrix
import pytest
import ui
import world

LOG = """\
2026-11-28T17:36:26.68Z [info     ] [DAG TEST] starting task_id=boom map_index=-1 [airflow.sdk.definitions.dag] loc=dag.py:1501
2026-11-28T17:36:27.00Z [info     ] Stored s3://posters/a.png: 12 bytes. [airflow.task.operators.airflow_provider_jojokey.operators.jojokey.GenerateImageOperator] loc=jojokey.py:1
2026-11-28T17:36:38.57Z [error    ] Task failed with exception     [task] loc=task_runner.py:1676
Traceback (most recent call last):
  File "/dags/boom.py", line 6, in boom
KeyError: 'x'

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "/dags/boom.py", line 8, in boom
    raise RuntimeError("something\\nodd") from e
RuntimeError: something
odd
2026-11-28T17:36:38.58Z [info     ] ::group::Post Execute          [task] loc=task_runner.py:1677
"""


def test_demo_prints_own_messages_and_any_exception() -> None:
    assert list(demo.messages(LOG.splitlines(keepends=True))) == [
        "Stored s3://posters/a.png: 12 bytes.",
        "RuntimeError: something odd",
    ]


def test_demo_prints_an_exception_at_the_end_of_the_log() -> None:
    lines = [
        "Traceback (most recent call last):\n",
        "  File x\n",
        "airflow_provider_jojokey.exceptions.JojoKeyError: no\n",
    ]
    assert list(demo.messages(lines)) == ["JojoKeyError: no"]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], ""),
        (["plain text"], ""),
        ([{"level": "error", "event": "Task has no heartbeat"}], "Task has no heartbeat"),
        (
            [
                {
                    "level": "error",
                    "event": "failed",
                    "error_detail": [{"exc_type": "KeyError", "exc_value": "'x'"}],
                },
                {"level": "error", "event": "afterwards"},
            ],
            "KeyError: 'x'",
        ),
    ],
)
def test_ui_finds_the_exception_in_a_task_log(lines: list[Any], expected: str) -> None:
    assert ui.exception_in(lines) == expected


def test_ui_pauses_dags_that_an_earlier_run_unpaused(tmp_path: Path) -> None:
    database = tmp_path / "airflow.db"
    ui.pause_dags(database)  # no database yet
    assert not database.exists()
    with sqlite3.connect(database) as connection:
        ui.pause_dags(database)  # no tables yet
        connection.execute("CREATE TABLE dag (dag_id TEXT, is_paused INTEGER)")
        connection.execute("INSERT INTO dag VALUES ('poster_daily', 0)")
    ui.pause_dags(database)
    assert connection.execute("SELECT is_paused FROM dag").fetchall() == [(1,)]
    connection.close()


@pytest.mark.parametrize(
    ("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::1")]
)
def test_port_in_use_is_avoided(family: socket.AddressFamily, host: str) -> None:
    try:
        taken = socket.socket(family)
        taken.bind((host, 0))
    except OSError as error:
        pytest.skip(f"no {host}: {error}")
    with taken:
        taken.listen()
        port = taken.getsockname()[1]
        assert not world.is_free(port)
        assert ui.choose_port(port) > port


def test_claim_names_its_holder_and_ends_with_it(tmp_path: Path) -> None:
    with (
        world.locked(tmp_path, "make ui (http://localhost:8080)") as first,
        world.locked(tmp_path, "make demo") as second,
    ):
        assert (first, second) == ("", "make ui (http://localhost:8080)")
    with world.locked(tmp_path, "make demo") as third:
        assert third == ""


def test_sandbox_takes_free_ports_if_its_own_are_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("JOJOKEY_API_KEY", "JOJOKEY_S3_BUCKET"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as gateway, socket.create_server(("127.0.0.1", 0)) as s3:
        ports = gateway.getsockname()[1], s3.getsockname()[1]
        monkeypatch.setattr(world, "GATEWAY_PORT", ports[0])
        monkeypatch.setattr(world, "S3_PORT", ports[1])
        with world.start_sandbox(tmp_path) as sandbox:
            assert {sandbox.gateway.port, sandbox.s3.port}.isdisjoint(ports)
    printed = capsys.readouterr().out
    assert all(f"Port {port} is in use by another program" in printed for port in ports)


def test_demo_says_why_the_sandbox_cannot_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(home: Path) -> None:
        raise RuntimeError("Another program uses port 4871 of 127.0.0.1.")

    monkeypatch.setattr(demo, "HOME", tmp_path)
    monkeypatch.setattr(demo, "start_sandbox", refuse)
    assert demo.main() == 1
    assert "can't start. Another program uses port 4871" in capsys.readouterr().err


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_matrix_finds_an_interpreter_behind_a_pyenv_shim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matrix, "UV", "/bin/false")
    program(tmp_path / "bin" / "python3.98", "#!/bin/sh\necho 'command not found' >&2\nexit 127\n")
    real = program(tmp_path / ".pyenv" / "versions" / "3.98.1" / "bin" / "python", "#!/bin/sh\necho 3.98\n")
    environ = {"PATH": f"{tmp_path / 'bin'}:/bin", "HOME": str(tmp_path)}

    assert matrix.find_python("3.98", environ) == str(real)
    assert matrix.find_python("3.99", environ) is None


def test_matrix_reports_a_python_that_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(matrix, "find_python", lambda version: None)
    assert matrix.main(["--airflow", "3.1", "--python", "3.98", "--", "tests"]) == 0
    assert "Airflow 3.1, Python 3.98         skipped: Python 3.98 is not installed" in capsys.readouterr().out


def test_matrix_fails_if_one_combination_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix, "find_python", lambda version: "python")
    monkeypatch.setattr(matrix, "run", lambda airflow, *_: "tests failed" if airflow == "3.2" else "passed")
    assert matrix.main(["--airflow", "3.1", "3.2", "3.3", "--python", "3.11"]) == 1
    assert matrix.main(["--airflow", "3.1", "3.3", "--python", "3.11"]) == 0


def test_airflow_of_the_demo_starts_with_paused_dags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JOJOKEY_API_KEY", raising=False)
    with world.Sandbox(tmp_path / "world", environ={}) as sandbox:
        environment = world.airflow_environment(sandbox, tmp_path)
    assert environment["AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION"] == "True"
    assert os.path.dirname(environment["AIRFLOW_HOME"]) == str(tmp_path)
