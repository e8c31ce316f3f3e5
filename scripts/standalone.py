"""Run `airflow standalone` as a child process: start it, wait until it is healthy, and stop all its processes."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

STARTUP = 600.0
"""Seconds that Airflow may take to start. A small, busy machine needs two minutes."""
COMPONENTS = {"metadatabase": "database", "dag_processor": "Dag processor", "scheduler": "scheduler"}
REMINDER = 15.0
"""Seconds without progress after which the wait is reported."""

# A proxy can't reach loopback.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class DidNotStart(RuntimeError):
    """Airflow stopped, or did not become healthy in time."""


def environment_of(port: int, prefix: str = "") -> dict[str, str]:
    """Return the environment of an Airflow that listens on a port of loopback.

    :param prefix: the path of its UI and API, such as ``/airflow``
    """
    base_url = f"http://localhost:{port}{prefix}"
    return {
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__API__BASE_URL": base_url,
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{base_url}/execution/",
        "AIRFLOW__CORE__PARALLELISM": "4",
        # On a busy machine, the default of five seconds fails tasks before they start.
        "AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT": "60",
        # Two Airflows on one machine would otherwise use the same ports for their logs.
        "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(free_port()),
        "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(free_port()),
    }


@contextlib.contextmanager
def standalone(
    environment: Mapping[str, str],
    log: Path,
    stop: threading.Event | None = None,
    report: Callable[[str], None] = lambda message: None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run Airflow while the context lasts. It is healthy when the context begins.

    :param environment: the complete environment, including :func:`environment_of`
    :param log: the file for its output
    :param stop: ends the wait for its start
    :param report: called with each step of the start
    :raises DidNotStart: if it doesn't become healthy within five minutes
    """
    with log.open("wb") as out:
        airflow = subprocess.Popen(
            [sys.executable, "-m", "airflow", "standalone"],
            env=dict(environment),
            stdout=out,
            stderr=out,
            start_new_session=True,
            # standalone ends cleanly on SIGINT only, and a process group in the background ignores it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        try:
            health = f"{environment['AIRFLOW__API__BASE_URL']}/api/v2/monitor/health"
            _wait_until_healthy(airflow, health, log, stop or threading.Event(), report)
            yield airflow
        finally:
            _end(airflow)


def free_port() -> int:
    """Return a port that no program listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_healthy(
    airflow: subprocess.Popen[bytes],
    health: str,
    log: Path,
    stop: threading.Event,
    report: Callable[[str], None],
) -> None:
    started = reported = time.monotonic()
    missing = ["API server", *COMPONENTS.values()]
    while airflow.poll() is None and not stop.wait(0.5):
        now = time.monotonic()
        if now - started > STARTUP:
            raise DidNotStart(
                f"Airflow did not start within {STARTUP:.0f} s: no {', '.join(missing)}. Its log is {log}"
            )
        found = _healthy(health)
        for component in [name for name in missing if name in found]:
            missing.remove(component)
            report(f"{component} is up ({now - started:.0f} s)")
            reported = now
        if not missing:
            return
        if now - reported > REMINDER:
            report(f"waiting for {missing[0]} ({now - started:.0f} s)")
            reported = now
    if stop.is_set():
        raise DidNotStart("The start of Airflow was interrupted.")
    end = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
    raise DidNotStart(f"{end}\n\nAirflow stopped while starting. Its log is {log}")


def _healthy(health: str) -> set[str]:
    """Return the components that Airflow says are healthy; an empty set while its API server doesn't answer."""
    try:
        with OPENER.open(health, timeout=5) as response:
            states = json.load(response)
        found = {"API server"}
        for name, label in COMPONENTS.items():
            if states[name]["status"] == "healthy":
                found.add(label)
        return found
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        return set()


def _end(airflow: subprocess.Popen[bytes]) -> None:
    for number, patience in ((signal.SIGINT, 15), (signal.SIGKILL, 5)):
        if airflow.poll() is None:
            airflow.send_signal(number) if number is signal.SIGINT else os.killpg(airflow.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                airflow.wait(patience)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(airflow.pid, signal.SIGKILL)  # remaining processes of its group
