"""The spool: what was received stays on this machine's disk until S3 has confirmed it.

Each attempt has a folder. It holds marks, which say how far the attempt got, and what was received.

==================  ===================================================================================
``intent.json``     The attempt exists and has not sent anything: it is renamed before the first request.
``stamp``           Inode and change time of ``intent.json``: a copy or a restored backup has others.
``sending.json``    The attempt has sent a request, or was about to. This is ``intent.json`` renamed.
``sends``           One JSON line per request: when it was about to be sent.
``facts``           One JSON line per fact about a response: request ID, link, task ID.
``0.part``          An image that is still arriving.
``0.image``         An image that arrived whole.
``0.preview``       A preview of an image that did not arrive.
``0.bin``           Bytes that were received as an image and are not of a known image type.
``reply.json``      The whole response has arrived: which images belong to it, and its usage.
==================  ===================================================================================

The marks are evidence: an attempt whose ``intent.json`` is in place, undamaged and from the current boot has
sent nothing, so another payment is safe. The first request *renames* the mark instead of adding another one.
So whatever a temp cleaner, a full disk or a restored backup takes away, nothing is left that looks unsent.

A process may be killed at any moment and lose nothing. A machine that loses power may lose the last seconds
of what was received; marks reach the disk before the attempt goes on.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_provider_jojokey.img2.images import Image, ImageFile, NotAnImage
from airflow_provider_jojokey.store import host

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow_provider_jojokey.img2.client import Generation
    from airflow_provider_jojokey.img2.request import ImageRequest

log = logging.getLogger(__name__)

MAX_AGE = 7 * 24 * 3600.0
"""Seconds after which an attempt folder without changes is deleted."""

CLEAN_EVERY = 3600.0
"""Seconds between two cleanups in one process."""

BYTES_PER_PIXEL = 4
"""Of an incompressible PNG with transparency. Real images need half of it or less."""
SPARE_BYTES = 4 * 1024 * 1024

_INTENT = "intent.json"
_STAMP = "stamp"
_SENDING = "sending.json"
_SENDS = "sends"
_FACTS = "facts"

_cleaned: dict[Path, float] = {}
_FOLDER_NAME = re.compile("[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Spool:
    """The folder of one attempt.

    :param folder: its path
    """

    folder: Path

    @classmethod
    def of(cls, root: Path, place: str, attempt_id: str) -> Spool:
        """Return the spool of an attempt, which need not exist.

        :param root: the spool directory
        :param place: the images' place, ``s3://bucket/key``
        :param attempt_id: the attempt
        """
        return cls(_place_folder(root, place) / attempt_id)

    # --- marks ---------------------------------------------------------------------------------------------------

    def create(self, attempt: Mapping[str, Any]) -> None:
        """Make the folder, readable only by this user, and record that the attempt is about to pay.

        :param attempt: the attempt as JSON
        :raises FileExistsError: if this attempt has a spool already
        :raises OSError: if the disk rejects it
        """
        self._make_folder()
        if (self.folder / _SENDING).exists() or (self.folder / _SENDS).exists():
            raise FileExistsError(errno.EEXIST, "The attempt has already sent a request", str(self.folder))
        intent = {
            "attempt": dict(attempt),
            "boot": host.boot_id(),
            "machine": host.machine_id(),
            "inode": self.folder.stat().st_ino,
        }
        stamp = _write_new(self.folder / _INTENT, json.dumps(intent))
        _write_new(self.folder / _STAMP, _stamp(stamp))
        _sync_folder(self.folder)

    def mark_sending(self, at: str, clock: str) -> None:
        """Record that a request is about to be sent. Call it right before each request.

        :param at: the time, ISO 8601
        :param clock: whose time that is: ``"s3"`` or ``"host"``
        :raises OSError: if the disk rejects it; the request must not be sent then
        """
        with suppress(FileNotFoundError):  # renamed before an earlier request
            (self.folder / _INTENT).rename(self.folder / _SENDING)
        _append(self.folder / _SENDS, {"at": at, "clock": clock}, sync=True)
        _sync_folder(self.folder)

    def sends(self) -> list[dict[str, Any]]:
        """Return when requests were about to be sent, oldest first. Damaged lines are left out."""
        return _lines(self.folder / _SENDS)

    def proves_unsent(self) -> bool:
        """Return whether this folder proves that the attempt has sent nothing.

        Missing or damaged files prove nothing, nor does a folder that is a copy or that a boot or another
        machine separates from the process that wrote it.
        """
        try:
            if not host.boot_id() or any((self.folder / name).exists() for name in (_SENDING, _SENDS)):
                return False
            with open(self.folder / _INTENT, "rb") as file:
                intent = json.loads(file.read())
                stamp = _stamp(os.fstat(file.fileno()))
            return bool(
                isinstance(intent["attempt"], dict)
                and intent["boot"] == host.boot_id()
                and intent["machine"] == host.machine_id()
                and intent["inode"] == self.folder.stat().st_ino
                and (self.folder / _STAMP).read_text(encoding="ascii") == stamp
            )
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return False

    def note(self, name: str, value: str) -> None:
        """Remember a fact about the latest request's response: ``"request_id"``, ``"link"`` or ``"task_id"``.

        :raises OSError: if the disk rejects it
        """
        fact = {"name": name, "value": value, "request": len(self.sends())}
        _append(self.folder / _FACTS, fact, sync=False)

    def facts(self) -> dict[str, list[str]]:
        """Return the facts about the latest request, by name, oldest first.

        Those about an earlier request are left out. Its ID would identify the wrong row in the gateway log: an
        error row of a rejected request would prove that the resent one, whose response was lost, was not billed.
        """
        facts: dict[str, list[str]] = {}
        latest = len(self.sends())
        for line in _lines(self.folder / _FACTS):
            name, value = line.get("name"), line.get("value")
            if isinstance(name, str) and isinstance(value, str) and line.get("request") == latest:
                facts.setdefault(name, []).append(value)
        return facts

    def attempt(self) -> dict[str, Any]:
        """Return the attempt as :meth:`create` recorded it; ``{}`` if that is missing or damaged."""
        for name in (_SENDING, _INTENT):
            try:
                attempt = json.loads((self.folder / name).read_bytes())["attempt"]
            except (OSError, ValueError, KeyError, TypeError, RecursionError):
                continue
            if isinstance(attempt, dict):
                return attempt
        return {}

    def check_free_space(self, request: ImageRequest) -> str | None:
        """Return how much space the largest possible images lack, for people; ``None`` if there is enough.

        :raises OSError: if the free space is unknown
        """
        width, height = request.pixels or (1024, 1024)
        needed = request.n * width * height * BYTES_PER_PIXEL + SPARE_BYTES
        free = shutil.disk_usage(self.folder).free
        return f"{free:,} bytes are free, and {needed:,} may be needed" if free < needed else None

    @property
    def exists(self) -> bool:
        """Whether the folder exists."""
        return self.folder.is_dir()

    # --- what was received ---------------------------------------------------------------------------------------

    def open(self, index: int) -> ImageFile:
        """Open the file for an image.

        A cleaner of temporary files may have deleted the folder of an attempt in flight: then it is made again.

        :raises OSError: if the disk rejects it
        """
        try:
            return ImageFile(self.folder / f"{index}.part")
        except FileNotFoundError:
            self._make_folder()
            return ImageFile(self.folder / f"{index}.part")

    def keep(self, generation: Generation) -> None:
        """Record that the whole response has arrived.

        :raises OSError: if the disk rejects it
        """
        reply = {
            "usage": generation.usage,
            "created": generation.created,
            "model": generation.model,
            "size": generation.size,
            "quality": generation.quality,
            "request_id": generation.request_id,
            "seconds": generation.seconds,
            "warnings": generation.warnings,
            "images": [
                {"file": image.file.path.name, "index": image.index, "revised_prompt": image.revised_prompt}
                for image in generation.images
                if image.file.path
            ],
        }
        draft = self.folder / "reply.json.part"
        draft.write_text(json.dumps(reply), encoding="utf-8")
        draft.replace(self.folder / "reply.json")

    def whole_reply(self) -> Generation | None:
        """Return the response if it arrived whole, else ``None``."""
        from airflow_provider_jojokey.img2.client import Generation

        images: list[Image] = []
        try:
            reply = json.loads((self.folder / "reply.json").read_bytes())
            for entry in reply.pop("images"):
                path = self.folder / Path(entry["file"]).name
                images.append(self._image(path, entry["index"], entry["revised_prompt"]))
            return Generation(images=images, **{**reply, "warnings": tuple(reply.get("warnings", ()))})
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            _close(images)
            return None

    def whole_images(self) -> list[Image]:
        """Return the images that arrived whole, of a response that may not have."""
        return self._images(".image")

    def preview(self) -> Image | None:
        """Return the latest preview of an image that did not arrive, if the response was a stream."""
        previews = self._images(".preview")
        _close(previews[:-1])
        return previews[-1] if previews else None

    def leftovers(self) -> list[Path]:
        """Return the files that were received as images and are not of a known image type."""
        return _numbered(self.folder, ".bin")

    def discard(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
        try:
            self.folder.parent.rmdir()
        except OSError:
            return  # it holds the folder of another attempt

    def _make_folder(self) -> None:
        for _ in range(50):  # another process may delete the parent, which is empty until this succeeds
            try:
                self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                return
            except (FileNotFoundError, FileExistsError):
                continue
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def _images(self, suffix: str) -> list[Image]:
        images: list[Image] = []
        for path in _numbered(self.folder, suffix):
            try:
                images.append(self._image(path, len(images)))
            except (OSError, NotAnImage):
                continue
        return images

    def _image(self, path: Path, index: int, revised_prompt: str | None = None) -> Image:
        file = ImageFile.reopen(path)
        try:
            header = file.header()
        except NotAnImage:
            file.close()
            raise
        return Image(index, file, header.content_type, header.width, header.height, revised_prompt)


def _close(images: list[Image]) -> None:
    for image in images:
        image.file.close()


def _numbered(folder: Path, suffix: str) -> list[Path]:
    paths = [path for path in folder.glob(f"*{suffix}") if path.stem.isdecimal()]
    return sorted(paths, key=lambda path: int(path.stem))


# --- files -----------------------------------------------------------------------------------------------------------


def _write_new(path: Path, text: str) -> os.stat_result:
    """Write a file that must not exist, wait for the disk, and return the state of the file."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        _write_all(descriptor, text.encode())
        os.fsync(descriptor)
        return os.fstat(descriptor)
    finally:
        os.close(descriptor)


def _append(path: Path, line: Mapping[str, Any], *, sync: bool) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        # The leading line feed ends a line that a full disk cut short.
        _write_all(descriptor, f"\n{json.dumps(line)}\n".encode())
        if sync:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _lines(path: Path) -> list[dict[str, Any]]:
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


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _stamp(status: os.stat_result) -> str:
    # Nothing but the kernel sets the change time: a copy has its own, even if it keeps the modification time.
    return f"{status.st_ino} {status.st_ctime_ns}"


# --- the spool directory ---------------------------------------------------------------------------------------------


def default_root() -> Path:
    """Return the spool directory that is used unless ``[jojokey] spool_directory`` names another."""
    user = os.getuid() if hasattr(os, "getuid") else "user"
    try:
        parent = tempfile.gettempdir()
    except FileNotFoundError:  # none is writable, which matters only if no other directory is named
        parent = os.environ.get("TMPDIR") or "/tmp"
    return Path(parent) / f"airflow-jojokey-{user}"


def make_own(folder: Path) -> None:
    """Make a folder that only this user can read.

    :raises OSError: if it cannot be made, or another user owns it
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Check a link as well as its target: in a folder that everyone may write to, a link can lead anywhere.
    if hasattr(os, "getuid") and {folder.lstat().st_uid, folder.stat().st_uid} != {os.getuid()}:
        raise PermissionError(errno.EPERM, "It belongs to another user", str(folder))


def private_root(root: Path) -> Path:
    """Return the folder within the spool directory that belongs to this user.

    That is the directory itself if this user owns it or if it does not exist yet. Volumes with ``fsGroup``,
    directories with mode 1777 and the like belong to another user; each user has a subfolder there.

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
    """Make the spool directory and return its ID, which is written into each attempt.

    The ID belongs to one directory on one machine. A copy of the directory gets an ID of its own, and so does
    a directory that moved to another machine: neither may be mistaken for the spool that an attempt used.

    :param root: the spool directory
    :raises OSError: if it cannot be made, or this user may not write to it
    """
    folder = private_root(root)
    make_own(folder.resolve() if folder.is_symlink() else folder)  # a link of root is as good as one's own
    path = folder / "id"
    here = {"machine": host.machine_id(), "inode": folder.stat().st_ino}
    known = _known_id(path, here)
    if known is None:
        # Of several processes that start at once, the first to append wins.
        _append(path, {"id": _first_edition_id(path) or uuid.uuid4().hex, **here}, sync=True)
        known = _known_id(path, here)
    if known is None:
        raise OSError(errno.EIO, "The ID that was written cannot be read", str(path))
    return known


def _known_id(path: Path, here: Mapping[str, Any]) -> str | None:
    for line in _lines(path):
        if here.items() <= line.items() and isinstance(line.get("id"), str):
            return str(line["id"])
    return None


def _first_edition_id(path: Path) -> str | None:
    """Return the ID that the first edition wrote, so that images it left behind are still found."""
    try:
        text = path.read_text(encoding="ascii")
    except (OSError, ValueError):
        return None
    return text if _FOLDER_NAME.fullmatch(text) else None


def attempts_in(root: Path, place: str) -> list[tuple[Spool, dict[str, Any]]]:
    """Return the attempt folders of a place, oldest first, each with its attempt as JSON.

    The attempt is ``{}`` if its mark is missing or damaged, or written by an earlier version. The name of the
    folder is the attempt's ID.

    :param root: the spool directory
    :param place: the images' place, ``s3://bucket/key``
    :raises OSError: if the directory cannot be read; that does not mean that there are no attempts
    """
    place_folder = _place_folder(root, place)
    try:
        names = os.listdir(place_folder)
    except FileNotFoundError:
        return []
    folders = [place_folder / name for name in names if _FOLDER_NAME.fullmatch(name)]
    ages = {folder: _latest_change(folder) for folder in folders}
    return [
        (Spool(folder), Spool(folder).attempt()) for folder in sorted(folders, key=lambda f: (ages[f], f))
    ]


def maybe_clean(root: Path, max_age: float = MAX_AGE) -> None:
    """Call :func:`clean`, unless this process has done so within the hour.

    Without the limit, a batch would search the folders of all its images once per image.
    """
    now = time.monotonic()
    if now - _cleaned.get(root, float("-inf")) >= CLEAN_EVERY:
        _cleaned[root] = now
        clean(root, max_age)


def clean(root: Path, max_age: float = MAX_AGE) -> None:
    """Delete attempt folders in which nothing has changed for a long time.

    :param root: the spool directory
    :param max_age: seconds
    """
    try:
        folder = private_root(root)
    except OSError:
        return
    for attempt in _attempt_folders(folder):
        if time.time() - _latest_change(attempt) > max_age:
            log.warning("Deleting an attempt that nobody came back for, with what it received: %s", attempt)
            Spool(attempt).discard()


def _place_folder(root: Path, place: str) -> Path:
    return private_root(root) / hashlib.sha256(place.encode()).hexdigest()[:32]


def _latest_change(folder: Path) -> float:
    """Return when the folder or a file in it was written last; infinity if that is unknown."""
    try:
        return max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
    except OSError:
        return float("inf")


def _attempt_folders(root: Path) -> Iterator[Path]:
    """Yield the folders that are named like attempts: users may keep other things in the directory."""
    try:
        for place in root.iterdir():
            if _FOLDER_NAME.fullmatch(place.name) and place.is_dir():
                yield from (folder for folder in place.iterdir() if _FOLDER_NAME.fullmatch(folder.name))
    except OSError:
        return
