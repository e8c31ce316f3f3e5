"""The spool: what was received stays on this machine's disk until S3 has confirmed it.

One folder an attempt. An image that is still arriving is ``0.part``; whole, it is ``0.image``;
and when the whole reply is there, ``reply.json`` says what belongs to it. So whatever moment a
process dies at, the next attempt on this host can tell what had arrived, and need not pay again.

A process may be killed at any moment and lose nothing; a machine that loses its power may lose
the last seconds, because nothing here waits for the disk.
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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from airflow_provider_jojokey.img2.images import Image, ImageFile, NotAnImage

if TYPE_CHECKING:
    from airflow_provider_jojokey.img2.client import Generation
    from airflow_provider_jojokey.img2.request import ImageRequest

log = logging.getLogger(__name__)

MAX_AGE = 7 * 24 * 3600.0
"""Seconds after which a spool that nobody came back for is deleted."""

CLEAN_EVERY = 3600.0
"""Seconds between two looks for such spools in one process."""

BYTES_PER_PIXEL = 4
"""Of a PNG with transparency that cannot be compressed at all; real ones take half of it or less."""
ROOM_TO_SPARE = 4 * 1024 * 1024

_cleaned: dict[Path, float] = {}
_OURS = re.compile("[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Spool:
    """The folder of one attempt.

    :param folder: its path
    """

    folder: Path

    @classmethod
    def of(cls, root: Path, place: str, attempt_id: str) -> Spool:
        """Return the spool of an attempt, which need not exist.

        :param root: where all spools are
        :param place: the images' place, ``s3://bucket/key``
        :param attempt_id: the attempt
        """
        return cls(root / hashlib.sha256(place.encode()).hexdigest()[:32] / attempt_id)

    def create(self) -> None:
        """Make the folder, for this user's eyes only.

        It is made just before the paid request is sent and deleted only once the receipt is up to
        date: where it should be and is not, nothing was sent.

        :raises OSError: if it cannot be made
        """
        for _ in range(50):  # another process may just be deleting the folder above, as nothing else is in it
            try:
                self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                return
            except (FileNotFoundError, FileExistsError):
                continue
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def lacks_room(self, request: ImageRequest) -> str | None:
        """Return in words how much room the images lack on the disk, at their largest; ``None`` if there is enough.

        :raises OSError: if the disk does not tell
        """
        width, height = request.pixels or (1024, 1024)
        needed = request.n * width * height * BYTES_PER_PIXEL + ROOM_TO_SPARE
        free = shutil.disk_usage(self.folder).free
        return f"{free:,} bytes are free, and {needed:,} may be needed" if free < needed else None

    @property
    def exists(self) -> bool:
        """Whether the folder was made."""
        return self.folder.is_dir()

    def open(self, index: int) -> ImageFile:
        """Open the file for an image."""
        return ImageFile(self.folder / f"{index}.part")

    def keep(self, generation: Generation) -> None:
        """Write down that the whole reply has arrived."""
        reply = {
            "usage": generation.usage,
            "created": generation.created,
            "model": generation.model,
            "size": generation.size,
            "quality": generation.quality,
            "request_id": generation.request_id,
            "seconds": generation.seconds,
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
        """Return the reply that had arrived whole, or ``None``."""
        from airflow_provider_jojokey.img2.client import Generation

        images: list[Image] = []
        try:
            reply = json.loads((self.folder / "reply.json").read_bytes())
            for one in reply.pop("images"):
                path = self.folder / Path(one["file"]).name
                images.append(self._image(path, one["index"], one["revised_prompt"]))
            return Generation(images=images, **reply)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            _close(images)
            return None

    def whole_images(self) -> list[Image]:
        """Return the images that had arrived whole, of a reply that had not."""
        return self._images(".image")

    def preview(self) -> Image | None:
        """Return the latest preview of an image that did not arrive, if the reply was a stream."""
        previews = self._images(".preview")
        _close(previews[:-1])
        return previews[-1] if previews else None

    def discard(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
        try:
            self.folder.parent.rmdir()
        except OSError:
            return  # another attempt's spool is still in it

    def _images(self, suffix: str) -> list[Image]:
        images: list[Image] = []
        paths = [path for path in self.folder.glob(f"*{suffix}") if path.stem.isdecimal()]
        for path in sorted(paths, key=lambda path: int(path.stem)):
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


def default_root() -> Path:
    """Return where spools are unless ``[jojokey] spool_directory`` says otherwise."""
    user = os.getuid() if hasattr(os, "getuid") else "user"
    return Path(tempfile.gettempdir()) / f"airflow-jojokey-{user}"


def make_own(folder: Path) -> None:
    """Make a folder for this user's eyes only.

    :raises OSError: if it cannot be made, or somebody else owns it
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Neither the folder nor a link to it: links in a folder that all may write to can lead anywhere.
    if hasattr(os, "getuid") and {folder.lstat().st_uid, folder.stat().st_uid} != {os.getuid()}:
        raise PermissionError(errno.EPERM, "it belongs to another user", str(folder))


def prepare(root: Path) -> str:
    """Make the folder of all spools, for this user's eyes only, and return its id.

    The id is written into each attempt. A machine's name may come back without its disk; the id does not.

    :raises OSError: if it cannot be made, or somebody else owns it
    """
    make_own(root)
    path = root / "id"
    try:
        if known := path.read_text(encoding="ascii"):
            return known
    except FileNotFoundError:
        pass
    draft = root / f"id.{uuid.uuid4().hex}"
    draft.write_text(uuid.uuid4().hex, encoding="ascii")
    try:
        os.link(draft, path)  # of several processes that start at once, one wins
    except FileExistsError:
        if not path.stat().st_size:  # a power cut left it empty, and so perhaps another machine's
            draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return path.read_text(encoding="ascii")


def clean_now_and_then(root: Path, max_age: float = MAX_AGE) -> None:
    """Do what :func:`clean` does, unless this process has done so within the hour.

    A batch would else look through the folders of all its images for each of them.
    """
    now = time.monotonic()
    if now - _cleaned.get(root, float("-inf")) >= CLEAN_EVERY:
        _cleaned[root] = now
        clean(root, max_age)


def clean(root: Path, max_age: float = MAX_AGE) -> None:
    """Delete spools that nobody came back for.

    :param root: where all spools are
    :param max_age: seconds
    """
    for folder in _attempt_folders(root):
        try:
            if time.time() - folder.stat().st_mtime > max_age:
                log.warning("Deleting images that were paid for and never stored: %s", folder)
                Spool(folder).discard()
        except OSError:
            continue


def _attempt_folders(root: Path) -> Iterator[Path]:
    """Yield what bears the names of spools: somebody may keep other things in that folder as well."""
    try:
        for place in root.iterdir():
            if _OURS.fullmatch(place.name) and place.is_dir():
                yield from (folder for folder in place.iterdir() if _OURS.fullmatch(folder.name))
    except OSError:
        return
