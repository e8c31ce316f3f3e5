"""An empty PostgreSQL server on loopback, if PostgreSQL is installed."""

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
from typing import Any

from tests.support.patience import PATIENCE


def find(name: str) -> str | None:
    """Return the path of one of PostgreSQL's programs; Debian keeps them off the PATH."""
    beside = sorted(glob.glob(f"/usr/lib/postgresql/*/bin/{name}"))
    return beside[-1] if beside else shutil.which(name)


@contextlib.contextmanager
def postgres(
    port: int | None = None, *, password: str | None = None, database: str = "postgres"
) -> Iterator[str]:
    """Run a server and yield the SQLAlchemy URL of an empty database in it.

    :param port: where it listens; by default a free one
    :param password: of its user, ``airflow``; by default, all connections are trusted
    :param database: the database's name
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
        arguments = ["-U", "airflow", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"]
        arguments += ["--auth=trust"] if password is None else _password(folder, password, as_user)
        subprocess.run(
            [initdb, "-D", str(folder / "data"), *arguments],
            check=True, stdout=subprocess.DEVNULL, cwd=folder, **as_user,
        )  # fmt: skip
        port = port or _free_port()
        settings = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off"}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [server, "-D", str(folder / "data"), "-p", str(port), *options],
                stdout=log, stderr=log, cwd=folder, start_new_session=True, **as_user,
            )  # fmt: skip
        end = time.monotonic() + PATIENCE
        while not _answers(port, password):
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError((folder / "log").read_text()[-2000:])
            time.sleep(0.1)
        if database != "postgres":
            _create_database(database, port, password)
        user = f"airflow:{password}" if password else "airflow"
        yield f"postgresql+psycopg2://{user}@127.0.0.1:{port}/{database}"
    finally:
        if process is not None:
            process.send_signal(signal.SIGINT)  # "fast": it does not wait for connected clients
            process.wait(PATIENCE)
        shutil.rmtree(folder, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _password(folder: Path, password: str, as_user: dict[str, Any]) -> list[str]:
    """Return initdb's arguments for a user with a password."""
    file = folder / "password"
    file.touch(mode=0o600)
    file.write_text(password)
    if as_user:
        shutil.chown(file, "postgres", "postgres")
    return ["--auth=scram-sha-256", f"--pwfile={file}"]


def _connect(port: int, password: str | None) -> Any:
    import psycopg2

    return psycopg2.connect(host="127.0.0.1", port=port, user="airflow", password=password, dbname="postgres")


def _answers(port: int, password: str | None) -> bool:
    import psycopg2

    try:
        _connect(port, password).close()
        return True
    except psycopg2.OperationalError:
        return False


def _create_database(name: str, port: int, password: str | None) -> None:
    connection = _connect(port, password)
    connection.autocommit = True  # CREATE DATABASE can't run in a transaction
    with connection.cursor() as cursor:
        cursor.execute(f'CREATE DATABASE "{name}"')
    connection.close()
