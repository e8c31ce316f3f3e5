"""A PostgreSQL server on loopback, of its own and empty, where the machine has one installed."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

STARTUP = 30.0


def find(name: str) -> str | None:
    """Return the path of one of PostgreSQL's programs; Debian keeps them off the PATH."""
    beside = sorted(glob.glob(f"/usr/lib/postgresql/*/bin/{name}"))
    return beside[-1] if beside else shutil.which(name)


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """Run a server and yield the SQLAlchemy URL of an empty database in it.

    :raises FileNotFoundError: if PostgreSQL is not installed
    """
    initdb, server = find("initdb"), find("postgres")
    if initdb is None or server is None:
        raise FileNotFoundError("PostgreSQL is not installed: there is no initdb.")
    # It refuses to run as root, and its user must reach the folder.
    as_user = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.getuid() == 0 else {}
    folder = Path(tempfile.mkdtemp(prefix="jojokey-postgres-"))
    if as_user:
        shutil.chown(folder, "postgres", "postgres")
    process = None
    try:
        arguments = ["-U", "airflow", "--auth=trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"]
        subprocess.run(
            [initdb, "-D", str(folder / "data"), *arguments],
            check=True, stdout=subprocess.DEVNULL, cwd=folder, **as_user,
        )  # fmt: skip
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        settings = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off"}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [server, "-D", str(folder / "data"), "-p", str(port), *options],
                stdout=log, stderr=log, cwd=folder, start_new_session=True, **as_user,
            )  # fmt: skip
        url = f"postgresql+psycopg2://airflow@127.0.0.1:{port}/postgres"
        end = time.monotonic() + STARTUP
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError((folder / "log").read_text()[-2000:])
            time.sleep(0.1)
        yield url
    finally:
        if process is not None:
            process.send_signal(signal.SIGINT)  # "fast": it does not wait for those who are connected
            process.wait(20)
        shutil.rmtree(folder, ignore_errors=True)


def _answers(port: int) -> bool:
    import psycopg2

    try:
        psycopg2.connect(host="127.0.0.1", port=port, user="airflow", dbname="postgres").close()
        return True
    except psycopg2.OperationalError:
        return False
