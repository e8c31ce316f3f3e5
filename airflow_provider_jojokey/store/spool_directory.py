"""The spool directory: where it is, who owns it, and its ID."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from airflow_provider_jojokey.store import host
from airflow_provider_jojokey.store.files import append_line, read_lines

NAME = re.compile("[0-9a-f]{32}")
"""Names of the folders in the directory, and its ID."""


def default_root() -> Path:
    """Return the spool directory to use if ``[jojokey] spool_directory`` is not set."""
    user = os.getuid() if hasattr(os, "getuid") else "user"
    try:
        parent = tempfile.gettempdir()
    except FileNotFoundError:  # no temp directory is writable, which matters only if this default is used
        parent = os.environ.get("TMPDIR") or "/tmp"
    return Path(parent) / f"airflow-jojokey-{user}"


def create_private_dir(folder: Path) -> None:
    """Create a folder that only this user can read.

    :raises OSError: if it cannot be created, or another user owns it
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Check a link as well as its target: in a folder that everyone may write to, a link can lead anywhere.
    if hasattr(os, "getuid") and {folder.lstat().st_uid, folder.stat().st_uid} != {os.getuid()}:
        raise PermissionError(errno.EPERM, "It belongs to another user", str(folder))


def private_root(root: Path) -> Path:
    """Return this user's folder in the spool directory.

    This is the directory itself if the user owns it or if it does not exist yet. Volumes with ``fsGroup`` and
    directories with mode 1777 belong to another user, so each user has a subfolder there.

    :raises PermissionError: if the directory is a link that another user can redirect
    """
    if not hasattr(os, "getuid"):
        return root
    try:
        link, target = root.lstat(), root.stat()
    except FileNotFoundError:
        return root
    if link.st_uid not in (os.getuid(), 0) and link.st_ino != target.st_ino:
        raise PermissionError(errno.EPERM, "It is a link of another user", str(root))
    return root if target.st_uid == os.getuid() else root / f"uid-{os.getuid()}"


def prepare(root: Path) -> str:
    """Create the spool directory and return its ID, which each attempt records.

    The ID identifies one directory on one machine. A copied directory, or one that moved to another machine, gets
    a new ID, so that it cannot be mistaken for the spool that an attempt used.

    :param root: the spool directory
    :raises OSError: if it cannot be created, or this user may not write to it
    """
    folder = private_root(root)
    create_private_dir(folder.resolve() if folder.is_symlink() else folder)  # links of root are trusted
    path = folder / "id"
    here = {"machine": host.machine_id(), "inode": folder.stat().st_ino}
    known = _known_id(path, here)
    if known is None:
        # If several processes start at once, the first one to append wins.
        append_line(path, {"id": _version_1_id(path) or uuid.uuid4().hex, **here}, sync=True)
        known = _known_id(path, here)
    if known is None:
        raise OSError(errno.EIO, "The new ID cannot be read", str(path))
    return known


def _known_id(path: Path, here: Mapping[str, Any]) -> str | None:
    for line in read_lines(path):
        if here.items() <= line.items() and isinstance(line.get("id"), str):
            return str(line["id"])
    return None


def _version_1_id(path: Path) -> str | None:
    """Return the ID that version 1 wrote, so that images it left behind are still found."""
    try:
        text = path.read_text(encoding="ascii")
    except (OSError, ValueError):
        return None
    return text if NAME.fullmatch(text) else None


def folder_of(root: Path, uri: str) -> Path:
    """Return the folder for the attempts to generate the images at a URI.

    :param root: the spool directory
    :param uri: the images' URI, ``s3://bucket/key``
    :raises PermissionError: as :func:`private_root`
    """
    return private_root(root) / hashlib.sha256(uri.encode()).hexdigest()[:32]
