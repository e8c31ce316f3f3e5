"""The demo's world in Airflow's UI: `airflow standalone` and the sandbox, until Ctrl-C.

Everything listens on loopback only, and there is no login.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import urllib.request

from standalone import DidNotStart, environment_of, standalone
from world import HOME, ROOT, airflow_environment, open_sandbox

PORT = int(os.environ.get("PORT", "8080"))


def main() -> int:
    HOME.mkdir(exist_ok=True)
    log = HOME / "ui.log"
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with open_sandbox() as sandbox:
        environment = airflow_environment(sandbox) | environment_of(PORT)
        environment["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS"] = "True"
        # A task that is started before the API server listens fails, and is retried in five minutes.
        environment["AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION"] = "True"
        print(f"Starting Airflow (its log is {log}) …", flush=True)
        try:
            with standalone(environment, log, stop) as airflow:
                unpause(environment["AIRFLOW__API__BASE_URL"], stop)
                print(f"\n  Airflow   http://localhost:{PORT}/dags/poster_daily   (trigger it there)")
                print(f"  Gallery   http://localhost:{PORT}/plugin/jojokey-gallery")
                if not sandbox.uses_real_s3:
                    print(f"  Images    {HOME / 'world' / 's3' / sandbox.buckets[0]}")
                print("  Ctrl-C ends everything.\n", flush=True)
                while not stop.wait(1.0):
                    if airflow.poll() is not None:
                        print(f"Airflow has ended by itself; see {log}", file=sys.stderr)
                        return 1
        except DidNotStart as error:
            if not stop.is_set():
                print(error, file=sys.stderr)
            return 1
    return 0


def unpause(url: str, stop: threading.Event) -> None:
    """Let the Dags run, as soon as the Dag processor has read them all."""
    dags = len(list((ROOT / "dags").glob("*.py")))
    found: list[str] = []
    deadline = time.monotonic() + 60
    while len(found) < dags and time.monotonic() < deadline and not stop.wait(0.5):
        with urllib.request.urlopen(f"{url}/api/v2/dags?limit=100", timeout=10) as answer:
            found = [one["dag_id"] for one in json.load(answer)["dags"]]
    for dag_id in found:
        request = urllib.request.Request(
            f"{url}/api/v2/dags/{dag_id}",
            data=b'{"is_paused": false}',
            headers={"Content-Type": "application/json"},
            method="PATCH",
        )
        urllib.request.urlopen(request, timeout=10).close()


if __name__ == "__main__":
    sys.exit(main())
