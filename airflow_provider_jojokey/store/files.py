"""Files that survive a killed process and, if synced, a power failure."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_new(path: Path, text: str) -> os.stat_result:
    """Write and sync a new file, and return its status."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        _write_all(descriptor, text.encode())
        os.fsync(descriptor)
        return os.fstat(descriptor)
    finally:
        os.close(descriptor)


def append_line(path: Path, line: Mapping[str, Any], *, sync: bool) -> None:
    """Append a JSON line.

    :param sync: whether to wait until it is on the disk
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        # The leading line feed ends a line that a full disk truncated.
        _write_all(descriptor, f"\n{json.dumps(line)}\n".encode())
        if sync:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the JSON objects in a file, one per line. Damaged lines are skipped."""
    try:
        data = path.read_bytes()
    except OSError:
        return []
    lines = []
    for line in data.splitlines():
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            lines.append(value)
    return lines


def sync_folder(folder: Path) -> None:
    """Sync a folder, so that new and renamed files in it survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
