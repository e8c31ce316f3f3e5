"""Run the stand-in for JojoKey in a container, for the other containers of its network."""

from __future__ import annotations

import os
import signal
import threading

from airflow_provider_jojokey.sandbox import Gateway

PORT = 4870


def main() -> None:
    """Serve until the container is stopped."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    token, charges = os.environ["JOJOKEY_TOKEN"], os.environ["CHARGES"]
    host = os.environ.get("LISTEN", "0.0.0.0")
    with Gateway(
        int(os.environ.get("PORT", PORT)), token, charges=charges, log_limit=None, host=host
    ) as gateway:
        print(f"The stand-in for JojoKey listens on port {gateway.port}.", flush=True)
        while not stop.wait(1.0):
            pass


if __name__ == "__main__":
    main()
