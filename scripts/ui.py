"""The demo's world in Airflow's UI: `airflow standalone` and the sandbox, until Ctrl-C.

Everything listens on loopback only, and there is no login.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

from standalone import DidNotStart, environment_of, standalone
from world import HOME, airflow_environment, open_sandbox

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
        print(f"Starting Airflow (its log is {log}) …", flush=True)
        try:
            with standalone(environment, log, stop) as airflow:
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


if __name__ == "__main__":
    sys.exit(main())
