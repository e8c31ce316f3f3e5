"""The spool: received images stay on the local disk until S3 confirms them.

Each attempt has a folder. It contains marks, which record the attempt's progress, and the received data.

==================  ===================================================================================
``intent.json``     The attempt exists and has not sent anything. It is renamed before the first request.
``stamp``           Inode and change time of ``intent.json``. A copy or a restored backup has different ones.
``sending.json``    The attempt has sent a request, or was about to. This is the renamed ``intent.json``.
``sends``           One JSON line per request: the time right before sending.
``facts``           One JSON line per fact about a response: request ID, link, task ID.
``0.part``          An image that is still arriving.
``0.image``         A complete image.
``0.preview``       A preview of an image that did not arrive.
``0.bin``           Data that was received as an image but has no known image type.
``reply.json``      The response is complete. Lists its images and its usage.
``ended``           The process no longer works on the attempt, although it may still be running.
==================  ===================================================================================

The marks are evidence: if ``intent.json`` is in place, undamaged and from the current boot, the attempt has sent
nothing, so another payment is safe. The first request *renames* the mark instead of adding another one, so a temp
cleaner, a full disk or a restored backup can never make a sent attempt look unsent.

Killing the process loses nothing. A power failure may lose the last seconds of received data, but not the marks:
they are synced to disk before the attempt continues.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from airflow_provider_jojokey.img2.images import Image, ImageFile, NotAnImage
from airflow_provider_jojokey.store import host
from airflow_provider_jojokey.store.files import append_line, read_lines, sync_folder, write_new
from airflow_provider_jojokey.store.spool_directory import NAME, folder_of, private_root

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
"""The size of an incompressible PNG with transparency. Real images take half of it or less."""
SPARE_BYTES = 4 * 1024 * 1024

_INTENT = "intent.json"
_STAMP = "stamp"
_SENDING = "sending.json"
_SENDS = "sends"
_FACTS = "facts"
_ENDED = "ended"

_cleaned: dict[Path, float] = {}


class Spool(Struct, frozen=True):
    """The folder of one attempt.

    :param folder: its path
    """

    folder: Path

    @classmethod
    def of(cls, root: Path, uri: str, attempt_id: str) -> Spool:
        """Return the spool of an attempt. It may not exist.

        :param root: the spool directory
        :param uri: the images' URI, ``s3://bucket/key``
        :param attempt_id: the attempt
        """
        return cls(folder_of(root, uri) / attempt_id)

    # --- marks ---------------------------------------------------------------------------------------------------

    def create(self, attempt: Mapping[str, Any]) -> None:
        """Create the folder, readable only by this user, and record that the attempt is about to pay.

        :param attempt: the attempt as JSON
        :raises FileExistsError: if this attempt already has a spool
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
        stamp = write_new(self.folder / _INTENT, json.dumps(intent))
        write_new(self.folder / _STAMP, _stamp(stamp))
        sync_folder(self.folder)

    def mark_sending(self, at: str, clock: str) -> None:
        """Record that a request is about to be sent. Call this right before each request.

        :param at: the time, ISO 8601
        :param clock: the clock of ``at``: ``"s3"`` or ``"host"``
        :raises OSError: if the disk rejects the write; the caller must not send the request
        """
        with suppress(FileNotFoundError):  # renamed before an earlier request
            (self.folder / _INTENT).rename(self.folder / _SENDING)
        append_line(self.folder / _SENDS, {"at": at, "clock": clock}, sync=True)
        sync_folder(self.folder)

    def sends(self) -> list[dict[str, Any]]:
        """Return the times right before each request, oldest first. Damaged lines are skipped."""
        return read_lines(self.folder / _SENDS)

    def proves_unsent(self) -> bool:
        """Return whether this folder proves that the attempt has sent nothing.

        Missing or damaged files prove nothing. Neither does a copied folder, or one that was written before the
        last boot or on another machine.
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

    def add_fact(self, name: str, value: str) -> None:
        """Record a fact about the latest response: ``"request_id"``, ``"link"`` or ``"task_id"``.

        :raises OSError: if the disk rejects it
        """
        fact = {"name": name, "value": value, "request": len(self.sends())}
        append_line(self.folder / _FACTS, fact, sync=False)

    def facts(self) -> dict[str, list[str]]:
        """Return the facts about the latest request, by name, oldest first.

        Facts about earlier requests are omitted. Their IDs would match the wrong row in the gateway log: an
        error row of a rejected request would prove that the resent one, whose response was lost, was not billed.
        """
        facts: dict[str, list[str]] = {}
        latest = len(self.sends())
        for line in read_lines(self.folder / _FACTS):
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
        """Return a message if there is not enough space for the largest possible images, else ``None``.

        :raises OSError: if the free space is unknown
        """
        width, height = request.pixels or (1024, 1024)
        needed = request.n * width * height * BYTES_PER_PIXEL + SPARE_BYTES
        free = shutil.disk_usage(self.folder).free
        return f"{free:,} bytes are free, but {needed:,} may be needed" if free < needed else None

    @property
    def exists(self) -> bool:
        """Whether the folder exists."""
        return self.folder.is_dir()

    def mark_ended(self) -> None:
        """Record that the process has stopped working on the attempt. Without a folder, do nothing."""
        with suppress(OSError):  # without the mark, other processes wait until this process ends
            (self.folder / _ENDED).touch()

    @property
    def has_ended(self) -> bool:
        """Whether this folder proves that the process has stopped working on the attempt."""
        return (self.folder / _ENDED).exists()

    # --- received data -------------------------------------------------------------------------------------------

    def open(self, index: int) -> ImageFile:
        """Open the file for an image.

        If a temp cleaner has deleted the folder of an attempt in flight, this creates it again.

        :raises OSError: if the disk rejects it
        """
        try:
            return ImageFile(self.folder / f"{index}.part", temporary=True)
        except FileNotFoundError:
            self._make_folder()
            return ImageFile(self.folder / f"{index}.part", temporary=True)

    def mark_complete(self, generation: Generation) -> None:
        """Record that the response is complete.

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

    def complete_response(self) -> Generation | None:
        """Return the response if it is complete, else ``None``."""
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

    def complete_images(self) -> list[Image]:
        """Return the complete images, even if the response is not complete."""
        return self._images(".image")

    def preview(self) -> Image | None:
        """Return the latest preview of an image that did not arrive, or ``None``."""
        previews = self._images(".preview")
        _close(previews[:-1])
        return previews[-1] if previews else None

    def unusable_files(self) -> list[Path]:
        """Return the files that were received as images but have no known image type."""
        return _numbered(self.folder, ".bin")

    def discard(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
        try:
            self.folder.parent.rmdir()
        except OSError:
            return  # it contains the folder of another attempt

    def _make_folder(self) -> None:
        for _ in range(50):  # another process may delete the parent while it is empty
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


def _stamp(status: os.stat_result) -> str:
    # Only the kernel sets the change time, so a copy has its own, even if it keeps the modification time.
    return f"{status.st_ino} {status.st_ctime_ns}"


# --- all attempts ----------------------------------------------------------------------------------------------------


def attempts_in(root: Path, uri: str) -> list[tuple[Spool, dict[str, Any]]]:
    """Return the attempt folders of an image URI, oldest first, each with its attempt as JSON.

    The attempt is ``{}`` if its mark is missing, damaged, or written by an earlier version. The folder's name is
    the attempt's ID.

    :param root: the spool directory
    :param uri: the images' URI, ``s3://bucket/key``
    :raises OSError: if the directory cannot be read, so there may be attempts
    """
    parent = folder_of(root, uri)
    try:
        names = os.listdir(parent)
    except FileNotFoundError:
        return []
    folders = [parent / name for name in names if NAME.fullmatch(name)]
    ages = {folder: _latest_change(folder) for folder in folders}
    return [
        (Spool(folder), Spool(folder).attempt()) for folder in sorted(folders, key=lambda f: (ages[f], f))
    ]


def maybe_clean(root: Path, max_age: float = MAX_AGE) -> None:
    """Call :func:`clean` at most once an hour in this process.

    Without the limit, a batch would search the folders of all its images once per image.
    """
    now = time.monotonic()
    if now - _cleaned.get(root, float("-inf")) >= CLEAN_EVERY:
        _cleaned[root] = now
        clean(root, max_age)


def clean(root: Path, max_age: float = MAX_AGE) -> None:
    """Delete attempt folders without recent changes.

    :param root: the spool directory
    :param max_age: age of the last change, in seconds
    """
    try:
        folder = private_root(root)
    except OSError:
        return
    for attempt in _attempt_folders(folder):
        if time.time() - _latest_change(attempt) > max_age:
            log.warning("Deleting an unclaimed attempt and the data it received: %s", attempt)
            Spool(attempt).discard()


def _latest_change(folder: Path) -> float:
    """Return the time of the last change in the folder, or infinity if it is unknown."""
    try:
        return max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
    except OSError:
        return float("inf")


def _attempt_folders(root: Path) -> Iterator[Path]:
    """Yield the folders with an attempt's name. Users may keep other files in the directory."""
    try:
        for place in root.iterdir():
            if NAME.fullmatch(place.name) and place.is_dir():
                yield from (folder for folder in place.iterdir() if NAME.fullmatch(folder.name))
    except OSError:
        return
