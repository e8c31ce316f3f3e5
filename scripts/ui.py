"""The demo's world in Airflow's UI: `airflow standalone` and the sandbox, until Ctrl-C.

Everything listens on loopback only, and there is no login.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

from world import HOME, airflow_environment, open_sandbox

PORT = os.environ.get("PORT", "8080")
STARTUP = 120.0


def main() -> int:
    HOME.mkdir(exist_ok=True)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with open_sandbox() as sandbox, (HOME / "ui.log").open("w", encoding="utf-8") as log:
        environment = airflow_environment(sandbox) | {
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API__PORT": PORT,
            "AIRFLOW__API__WORKERS": "1",
            "AIRFLOW__API__BASE_URL": f"http://localhost:{PORT}",
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://localhost:{PORT}/execution/",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
            "AIRFLOW__CORE__PARALLELISM": "4",
        }
        print(f"Starting Airflow (its log is {HOME / 'ui.log'}) …", flush=True)
        airflow = subprocess.Popen(
            [sys.executable, "-m", "airflow", "standalone"],
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
            # standalone ends cleanly on SIGINT only, and a process group in the background ignores it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        try:
            if not wait_until_healthy(airflow, stop):
                return 1
            print(f"\n  Airflow   http://localhost:{PORT}/dags/poster_daily   (trigger it there)")
            if not sandbox.uses_real_s3:
                print(f"  Images    {HOME / 'world' / 's3' / sandbox.buckets[0]}")
            print("  Ctrl-C ends everything.\n", flush=True)
            while not stop.wait(1.0):
                if airflow.poll() is not None:
                    print(f"Airflow has ended by itself; see {HOME / 'ui.log'}", file=sys.stderr)
                    return 1
            return 0
        finally:
            end(airflow)


def wait_until_healthy(airflow: subprocess.Popen[bytes], stop: threading.Event) -> bool:
    deadline = time.monotonic() + STARTUP
    while time.monotonic() < deadline and airflow.poll() is None and not stop.wait(0.5):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/api/v2/monitor/health", timeout=2):
                return True
        except (urllib.error.URLError, OSError):
            continue
    if not stop.is_set():
        print(f"Airflow did not come up; see {HOME / 'ui.log'}", file=sys.stderr)
    return False


def end(airflow: subprocess.Popen[bytes]) -> None:
    """End Airflow and all its processes."""
    for number, patience in ((signal.SIGINT, 15), (signal.SIGKILL, 5)):
        if airflow.poll() is None:
            airflow.send_signal(number) if number is signal.SIGINT else os.killpg(airflow.pid, number)
            try:
                airflow.wait(patience)
            except subprocess.TimeoutExpired:
                continue
    try:
        os.killpg(airflow.pid, signal.SIGKILL)  # whatever of its group is left
    except ProcessLookupError:
        pass


if __name__ == "__main__":
    sys.exit(main())
