"""The sandbox and the Airflow environment that `make demo` and `make ui` share."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from airflow_provider_jojokey.sandbox import Sandbox

ROOT = Path(__file__).resolve().parent.parent
HOME = Path(os.environ.get("DEMO_HOME") or ROOT / ".demo")
GATEWAY_PORT, S3_PORT = 4870, 4871


def start_sandbox(home: Path = HOME) -> Sandbox:
    """Start the sandbox of this checkout, with its files in ``.demo``, and return it.

    It uses the same ports each time, unless another program uses them, because receipts apply to one gateway address
    only.

    :raises OSError: if a port is in use or rclone is missing
    :raises RuntimeError: if the S3 server doesn't start
    """
    gateway_port, s3_port = _port(GATEWAY_PORT, "The gateway"), _port(S3_PORT, "S3")
    try:
        return Sandbox(home / "world", gateway_port=gateway_port, s3_port=s3_port, environ=os.environ).start()
    except (OSError, RuntimeError):
        if not gateway_port and not s3_port:
            raise
        # Another program took the port after the check.
        return Sandbox(home / "world", environ=os.environ).start()


def airflow_environment(sandbox: Sandbox, home: Path = HOME) -> dict[str, str]:
    """Return the environment of an Airflow with this checkout's Dags and the sandbox only."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW__", "AIRFLOW_"))
    }
    environment |= sandbox.environment()
    environment |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "AIRFLOW_HOME": str(home / "airflow"),
        "AIRFLOW_VAR_POSTERS_BUCKET": sandbox.buckets[0],
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        # The demo registers all Dags. If they were unpaused, `make ui` would start their runs before its API
        # server listens, and such tasks fail.
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "True",
        "AIRFLOW__CORE__TEST_CONNECTION": "Enabled",
        # On a busy machine, Airflow's components fail if they can't write to SQLite within five seconds, the default.
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow/airflow.db?timeout=60",
        "AIRFLOW__JOJOKEY__SPOOL_DIRECTORY": str(home / "spool"),
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        "PYTHONWARNINGS": "ignore",
    }
    if not sandbox.uses_real_api:
        # The stand-in answers within seconds, so a request can be considered lost after seconds.
        connection = json.loads(environment["AIRFLOW_CONN_JOJOKEY_DEFAULT"])
        connection["extra"] = {"connect_timeout": 2, "max_resend_wait": 2}
        environment["AIRFLOW_CONN_JOJOKEY_DEFAULT"] = json.dumps(connection)
        environment["AIRFLOW__JOJOKEY__LONGEST_GENERATION"] = "10"
    return environment


@contextlib.contextmanager
def locked(home: Path, holder: str) -> Iterator[str]:
    """Lock the database in ``home`` while the context lasts.

    Yield the name of the command that holds the lock; empty if this one got it. Without the lock, the scheduler of
    `make ui` would run the tasks of a demo a second time.
    """
    home.mkdir(parents=True, exist_ok=True)
    with (home / "in-use").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            yield file.read().strip() or "Another command"
            return
        file.truncate(0)
        file.write(holder)
        file.flush()
        yield ""


def is_free(port: int) -> bool:
    """Return whether no program listens on the port, on IPv4 or IPv6 loopback."""
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        try:
            probe = socket.socket(family)
        except OSError:  # no IPv6
            continue
        with probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
                probe.listen()
            except OSError as error:
                if family is socket.AF_INET or error.errno == errno.EADDRINUSE:
                    return False
    return True


def _port(port: int, server: str) -> int:
    if is_free(port):
        return port
    print(f"Port {port} is in use by another program. {server} uses a free port.", flush=True)
    return 0
