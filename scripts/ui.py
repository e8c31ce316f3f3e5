"""Run `make ui`: `airflow standalone` and the sandbox, until Ctrl-C.

All servers listen on loopback only, and Airflow needs no login.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import sqlite3
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import quote

from standalone import OPENER, DidNotStart, environment_of, standalone
from world import HOME, ROOT, airflow_environment, is_free, locked, start_sandbox

PORT = int(os.environ.get("PORT") or "8080")
PATIENCE = 120.0
"""Seconds to wait for the Dags, and then for the first poster."""


def main() -> int:
    port = choose_port(PORT)
    with locked(HOME, f"make ui (http://localhost:{port})") as holder:
        if holder:
            print(f"{holder} is running and uses {HOME}. End it first.", file=sys.stderr)
            return 1
        if port != PORT:
            print(f"Port {PORT} is in use by another program. Airflow takes port {port}.", flush=True)
        stop = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        try:
            with start_sandbox() as sandbox:
                return serve(sandbox, port, stop)
        except (OSError, RuntimeError) as error:
            if stop.is_set():
                return 0
            print(error, file=sys.stderr)
            return 1


def choose_port(wanted: int) -> int:
    """Return the port, or the next one that no program listens on."""
    return next(port for port in range(wanted, 65536) if is_free(port))


def serve(sandbox: Any, port: int, stop: threading.Event) -> int:
    """Run Airflow until a signal arrives; return the exit code."""
    log = HOME / "ui.log"
    environment = airflow_environment(sandbox) | environment_of(port)
    environment["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS"] = "True"
    pause_dags(HOME / "airflow" / "airflow.db")
    print(f"Starting Airflow, which takes about a minute (its log is {log}) …", flush=True)
    try:
        with standalone(environment, log, stop, say) as airflow:
            api = Api(environment["AIRFLOW__API__BASE_URL"])
            failures = Failures(api)
            unpause_dags(api, stop)
            wait_for_first_poster(api, stop, failures)
            if not stop.is_set():
                print(f"\n  Airflow   {api.url}/dags/poster_daily   (trigger it there)")
                print(f"  Gallery   {api.url}/plugin/jojokey-gallery")
                if not sandbox.uses_real_s3:
                    print(f"  Images    {HOME / 'world' / 's3' / sandbox.buckets[0]}")
                print("  Ctrl-C ends everything.\n", flush=True)
            while not stop.wait(2.0):
                if airflow.poll() is not None:
                    print(f"Airflow has stopped. Its log is {log}", file=sys.stderr)
                    return 1
                failures.print_new()
    except DidNotStart:
        if not stop.is_set():
            raise
    return 0


def say(message: str) -> None:
    """Print one step of the start."""
    print(f"  {message}", flush=True)


def pause_dags(database: Path) -> None:
    """Pause the Dags that an earlier run unpaused.

    The scheduler starts before the API server listens, and a task that starts in between fails.
    """
    if not database.exists():
        return
    with (
        contextlib.suppress(sqlite3.OperationalError),  # no such table yet
        contextlib.closing(sqlite3.connect(database, timeout=30)) as connection,
        connection,
    ):
        connection.execute("UPDATE dag SET is_paused = 1")


class Api:
    """Airflow's REST API."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str) -> Any:
        """Return the JSON of a GET; ``None`` if Airflow is too busy to answer."""
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
            return self._call(path)

    def patch(self, path: str, body: Any) -> bool:
        """Change an object; return whether Airflow accepted the change."""
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
            self._call(path, body)
            return True
        return False

    def _call(self, path: str, body: Any = None) -> Any:
        request = urllib.request.Request(
            f"{self.url}/api/v2/{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "Accept": "application/json"},
            method="GET" if body is None else "PATCH",
        )
        with OPENER.open(request, timeout=30) as response:
            return json.load(response)


def unpause_dags(api: Api, stop: threading.Event) -> None:
    """Unpause each Dag as soon as the Dag processor has read it."""
    expected = len(list((ROOT / "dags").glob("*.py")))
    unpaused: set[str] = set()
    deadline = time.monotonic() + PATIENCE
    while len(unpaused) < expected and time.monotonic() < deadline and not stop.wait(0.5):
        found = {dag["dag_id"] for dag in (api.get("dags?limit=100") or {}).get("dags", ())}
        unpaused |= {
            dag_id for dag_id in found - unpaused if api.patch(f"dags/{dag_id}", {"is_paused": False})
        }
    say(f"{len(unpaused)} of {expected} Dags are ready")
    for error in (api.get("importErrors") or {}).get("import_errors", ()):
        say(f"{error['filename']}: {error['stack_trace'].strip().splitlines()[-1]}")


def wait_for_first_poster(api: Api, stop: threading.Event, failures: Failures) -> None:
    """Wait for the scheduled run of `poster_daily`, so that the next run starts at once."""
    say("poster_daily is generating the poster of the day …")
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and not stop.wait(1.0):
        found = api.get("dags/poster_daily/dagRuns?limit=20&order_by=-run_after") or {}
        runs = found.get("dag_runs", ())
        failures.print_new()
        active = [run for run in runs if run["state"] in ("queued", "running")]
        if not active and any(run["run_type"] == "scheduled" for run in runs):
            return


class Failures:
    """Prints the exception of each task try that fails."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._seen: set[tuple[Any, ...]] = set()
        self._seen = {try_of(failed) for failed in self._failed()}

    def print_new(self) -> None:
        """Print the failures since the last call."""
        for failed in self._failed():
            if try_of(failed) in self._seen:
                continue
            self._seen.add(try_of(failed))
            mapped = f"[{failed['map_index']}]" if failed["map_index"] >= 0 else ""
            after = ", retries later" if failed["state"] == "up_for_retry" else ""
            print(
                f"  {failed['dag_id']}.{failed['task_id']}{mapped} failed on try {failed['try_number']}{after}:"
            )
            print(f"    {self._exception(failed)[:1000]}", flush=True)

    def _failed(self) -> list[dict[str, Any]]:
        query = "state=failed&state=up_for_retry&limit=50&order_by=-start_date"
        found = self._api.get(f"dags/~/dagRuns/~/taskInstances?{query}") or {}
        return list(found.get("task_instances", ()))

    def _exception(self, failed: dict[str, Any]) -> str:
        run = f"dags/{failed['dag_id']}/dagRuns/{quote(failed['dag_run_id'])}"
        task = f"{run}/taskInstances/{failed['task_id']}"
        found = self._api.get(f"{task}/logs/{failed['try_number']}?map_index={failed['map_index']}") or {}
        log = exception_in(found.get("content") or [])
        return log or f"The task ended before it wrote a log. See {HOME / 'ui.log'}"


def try_of(instance: dict[str, Any]) -> tuple[Any, ...]:
    """Return the fields that identify a try of a task instance."""
    return tuple(instance[name] for name in ("dag_id", "dag_run_id", "task_id", "map_index", "try_number"))


def exception_in(lines: list[Any]) -> str:
    """Return the last exception in a task's log, or its last error message; empty if it has neither."""
    errors = [line for line in lines if isinstance(line, dict) and line.get("level") in ("error", "critical")]
    for line in reversed(errors):
        if detail := line.get("error_detail"):
            return f"{detail[0]['exc_type']}: {detail[0]['exc_value']}"
    return str(errors[-1].get("event", "")) if errors else ""


if __name__ == "__main__":
    sys.exit(main())
