"""`make demo`: the first run, a second run, and a run after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from airflow_provider_jojokey.sandbox import read_charges
from tests.support.patience import PATIENCE

ROOT = Path(__file__).parents[1]


def start(home: Path, theme: str) -> subprocess.Popen[str]:
    # The demo must not use the settings of this test process.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    return subprocess.Popen(
        [sys.executable, "scripts/demo.py"],
        cwd=ROOT,
        env={**environment, "DEMO_HOME": str(home), "THEME": theme},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def demo(home: Path, theme: str) -> str:
    process = start(home, theme)
    out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, out
    return out


def receipt(home: Path) -> dict[str, Any] | None:
    found = list((home / "world" / "s3" / "posters" / "_jojokey").rglob("*.json"))
    try:
        return json.loads(found[0].read_bytes()) if found else None
    except ValueError:  # read while it is written
        return None


def billed(home: Path) -> int:
    path = home / "world" / "charges.jsonl"
    return len(read_charges(path)) if path.exists() else 0  # it is made with its first entry


def test_killed_demo_pays_once_when_repeated(tmp_path: Path) -> None:
    theme = "A red fox [sandbox: delay=5]"
    first = start(tmp_path, theme)
    deadline = time.monotonic() + PATIENCE
    while not (receipt(tmp_path) and list((tmp_path / "spool").glob("*/*"))):  # the request is being sent
        assert first.poll() is None, first.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert billed(tmp_path) == 0

    second = demo(tmp_path, theme)

    assert billed(tmp_path) == 1
    document = receipt(tmp_path)
    assert document is not None
    killed, complete = document["attempts"]
    assert killed["billed"] != "yes"
    assert complete["outcome"] == "complete"
    (place,) = [line.split(maxsplit=2)[2] for line in second.splitlines() if line.startswith("On disk")]
    assert Path(place).read_bytes().startswith(b"\x89PNG")
    assert document["images"][0]["uri"] in second
    assert "tokens in" in second

    third = demo(tmp_path, theme)

    assert billed(tmp_path) == 1
    assert "Nothing was sent" in third
