"""A newcomer's first hour: `make demo`, `make ui`, a poster with their own words, and the reverse order."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.support.airflow import dags_of
from tests.support.patience import PATIENCE

ROOT = Path(__file__).parents[1]
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Command:
    """A running script and its output so far."""

    def __init__(self, script: str, home: Path, **variables: str) -> None:
        # The demo must not see the settings of the Airflow that this test process uses.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
        self.process = subprocess.Popen(
            [sys.executable, "-u", f"scripts/{script}.py"],
            cwd=ROOT,
            env={**environment, "DEMO_HOME": str(home), **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.lines.append(line)
                self._changed.notify_all()
        with self._changed:
            self.lines.append("")  # it has ended
            self._changed.notify_all()

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def wait_for(self, text: str) -> None:
        """Wait until the script has printed a text."""
        with self._changed:
            self._changed.wait_for(lambda: text in self.output or "" in self.lines, PATIENCE)
        assert text in self.output, self.output

    def wait(self) -> int:
        code = self.process.wait(PATIENCE)
        self._reader.join()
        return code

    def interrupt(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.wait()


@contextlib.contextmanager
def running(script: str, home: Path, **variables: str) -> Iterator[Command]:
    command = Command(script, home, **variables)
    try:
        yield command
    finally:
        if command.process.poll() is None:
            command.interrupt()


def call(url: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with OPENER.open(request, timeout=PATIENCE) as response:
        return json.load(response)


def trigger(url: str, theme: str) -> str:
    body = {"logical_date": None, "conf": {"theme": theme}}
    return str(call(f"{url}/api/v2/dags/poster_daily/dagRuns", body)["dag_run_id"])


def wait_for_state(url: str, run_id: str, *states: str) -> dict[str, Any]:
    deadline = time.monotonic() + PATIENCE
    while True:
        task = call(f"{url}/api/v2/dags/poster_daily/dagRuns/{quote(run_id)}/taskInstances/poster")
        if task["state"] in states:
            return dict(task)
        assert time.monotonic() < deadline, task
        time.sleep(0.5)


def failed_runs(home: Path) -> list[tuple[Any, ...]]:
    with contextlib.closing(sqlite3.connect(home / "airflow" / "airflow.db")) as connection:
        query = "SELECT dag_id, run_id FROM dag_run WHERE state = 'failed'"
        return connection.execute(query).fetchall()


def posters(home: Path) -> set[str]:
    return {path.name for path in (home / "world" / "s3" / "posters" / "daily").glob("*.png")}


DAGS = len(list((ROOT / "dags").glob("*.py")))


@pytest.mark.parametrize("first", ["demo", "ui"])
def test_demo_and_ui_follow_each_other_smoothly(tmp_path: Path, first: str) -> None:
    if first == "demo":
        with running("demo", tmp_path) as demo:
            assert demo.wait() == 0, demo.output
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with running("ui", tmp_path, PORT=port) as ui:
            ui.wait_for("Ctrl-C ends everything")
            assert f"Port {port} is in use by another program" in ui.output
            assert "API server is up" in ui.output
            assert f"{DAGS} of {DAGS} Dags are ready" in ui.output
            (line,) = (line for line in ui.lines if line.startswith("  Gallery"))
            url = line.split()[1].removesuffix("/plugin/jojokey-gallery")
            assert failed_runs(tmp_path) == []

            before = posters(tmp_path)
            run_id = trigger(url, "A lighthouse in my own words")
            wait_for_state(url, run_id, "running", "success")
            wait_for_state(url, run_id, "success")
            results = call(f"{url}/jojokey/api/results?limit=10&q=lighthouse")["results"]
            assert len(results) == 1
            assert len(posters(tmp_path) - before) == 1  # next to the other posters of this day
            assert failed_runs(tmp_path) == []

            with running("ui", tmp_path, PORT=port) as second:
                assert second.wait() == 1
                assert f"make ui ({url}) is running" in second.output

            refused = trigger(url, "A bird [sandbox: moderation_blocked]")
            ui.wait_for("poster_daily.poster failed on try 1")
            ui.wait_for("JojoKeyContentError: ")
            wait_for_state(url, refused, "failed")
            assert ui.interrupt() == 0
    if first == "ui":
        with running("demo", tmp_path) as demo:
            assert demo.wait() == 0, demo.output
            assert "On disk" in demo.output


def test_publish_waits_for_the_first_poster() -> None:
    from airflow.sdk import Asset

    sensor = dags_of(ROOT / "dags" / "poster_publish.py")["poster_publish"].get_task("wait_for_poster")

    assert sensor.downstream_task_ids == {"publish"}
    assert sensor.mode == "reschedule"
    assert sensor.python_callable(inlet_events={Asset("daily_poster"): []}) is False
    assert sensor.python_callable(inlet_events={Asset("daily_poster"): [object()]}) is True
