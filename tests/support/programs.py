"""Third-party programs on loopback. A missing program fails the run."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
INSTALLED = ROOT / ".venvs" / "foreign"
STARTUP = 120.0
"""Seconds that a server may take to answer: LiteLLM imports for half a minute on a busy machine."""


def program(path: str) -> str:
    """Return an installed program.

    :param path: relative to ``.venvs/foreign``
    """
    found = INSTALLED / path
    if not found.exists():
        pytest.fail(f"{found} is not installed: run make test-foreign, which installs it.", pytrace=False)
    return str(found)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def environment(**more: str) -> dict[str, str]:
    """Return the environment of a program, without this machine's keys and proxies."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    return {**kept, "NO_PROXY": "127.0.0.1,localhost", **more}


@contextlib.contextmanager
def running(command: list[str], url: str, log: Path, **env: str) -> Iterator[str]:
    """Run a server until its URL answers, whatever the status, and stop it at the end."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, env=environment(**env), cwd=log.parent, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
            start_new_session=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + STARTUP
        while not _answers(url):
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"{command[0]} does not answer:\n{log.read_text()[-3000:]}", pytrace=False)
            time.sleep(0.2)
        yield url
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


def output_of(command: list[str], script: Path, **env: str) -> Any:
    """Run a program that prints one line of JSON, and return it."""
    done = subprocess.run(
        [*command, str(script)],
        env=environment(**env),
        cwd=script.parent,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])
