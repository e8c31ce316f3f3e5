"""Small pictures of large ones: made once, kept on the API server's disk within bounds."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from airflow_provider_jojokey.img2.images import read_header
from airflow_provider_jojokey.plugins.objects import NotServed
from airflow_provider_jojokey.results import StoredImage
from airflow_provider_jojokey.store.spool import create_private_dir

WIDTHS = (320, 640)
"""In pixels: a card of the grid, and the same on a screen with twice as many."""
MAX_PIXELS = 16 * 1024 * 1024
"""The API's largest image has half as many."""
MAX_CACHE = 512 * 1024 * 1024
AT_ONCE = 2
"""Images that are decoded at a time: each takes four bytes a pixel, and a copy."""

_NAME = re.compile(r"[0-9a-f]{64}-\d+\.webp")
_DECODERS = threading.BoundedSemaphore(AT_ONCE)


class CannotShrink(Exception):
    """This server cannot make thumbnails; the message says what it lacks."""


def snapped(width: int) -> int:
    """Return the width that is made for a wish: the next larger one of :data:`WIDTHS`, or the largest."""
    return next((one for one in WIDTHS if one >= width), WIDTHS[-1])


@dataclass(slots=True)
class ThumbnailCache:
    """Thumbnails in a folder, the oldest in use deleted first.

    :param folder: for this user's eyes only; it is made when it is needed
    :param max_bytes: what all of them may take together
    """

    folder: Path
    max_bytes: int = MAX_CACHE
    _written: int | None = field(default=None, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def get(
        self, image: StoredImage, aws_conn_id: str | None, width: int, fetch: Callable[[], BinaryIO]
    ) -> bytes:
        """Return a thumbnail as WebP, made if it is not there.

        :param image: what the result tells of it
        :param aws_conn_id: the connection that reaches it
        :param width: one of :data:`WIDTHS`
        :param fetch: opens the image
        :raises NotServed: if it is no image, or one of too many pixels
        :raises CannotShrink: if this server cannot make thumbnails
        """
        # Under all that the image is told to be, not its checksum alone: a result that is forged finds
        # nothing here that S3 would not have given for it.
        place = repr((aws_conn_id, image.bucket, image.key, image.bytes, image.sha256))
        path = self.folder / f"{hashlib.sha256(place.encode('utf-8', 'replace')).hexdigest()}-{width}.webp"
        try:
            data = path.read_bytes()
            os.utime(path)  # in use: not the next to go
            return data
        except OSError:
            pass
        with fetch() as file:
            data = shrunk(file, width)
        try:
            self._keep(path, data)
        except OSError:
            pass  # a full disk makes it slower, not worse
        return data

    def _keep(self, path: Path, data: bytes) -> None:
        create_private_dir(self.folder)
        handle, draft = tempfile.mkstemp(dir=self.folder, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.replace(draft, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(draft)
            raise
        with self._lock:
            self._written = None if self._written is None else self._written + len(data)
            # Other processes write there as well, so now and then it is counted anew.
            if self._written is None or self._written > self.max_bytes // 16:
                self._written = 0
                self._trim()

    def _trim(self) -> None:
        """Delete what was not used for longest, until there is room for what will be written before the next time."""
        found = []
        for entry in os.scandir(self.folder):
            with contextlib.suppress(OSError):
                if _NAME.fullmatch(entry.name) or entry.name.endswith(".part"):
                    known = entry.stat(follow_symlinks=False)
                    found.append((known.st_mtime_ns, known.st_size, entry.path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self.max_bytes * 7 // 8:
                break
            with contextlib.suppress(OSError):
                os.unlink(path)
            total -= size


def shrunk(file: BinaryIO, width: int) -> bytes:
    """Return an image as WebP, at most ``width`` pixels wide.

    :raises NotServed: if it is no image, or one of too many pixels
    :raises CannotShrink: if Pillow lacks WebP
    """
    import io

    from PIL import Image, features

    if not features.check("webp"):
        raise CannotShrink("Thumbnails need a Pillow with WebP; this API server's knows none.")
    try:
        # Before Pillow sees it, which for WebP makes room for all pixels when it opens the file.
        header = read_header(file)
        if header.width * header.height > MAX_PIXELS:
            raise NotServed(f"The image has more than {MAX_PIXELS:,} pixels: it is not decoded here.")
        file.seek(0)
        with _DECODERS, Image.open(file, formats=("PNG", "JPEG", "WEBP")) as image:
            if image.size != (header.width, header.height):
                raise NotServed("The image cannot be decoded.")
            image.draft("RGB", (width, image.height * width // image.width))
            height = max(1, round(image.height * min(width, image.width) / image.width))
            small = image.convert("RGBA" if _has_alpha(image) else "RGB")
            small = small.resize(
                (min(width, image.width), height), Image.Resampling.LANCZOS, reducing_gap=2.0
            )
            out = io.BytesIO()
            small.save(out, "WEBP", quality=82, method=4)
            return out.getvalue()
    except (NotServed, MemoryError):
        raise
    except Exception:  # Pillow's decoders raise all sorts on broken files
        raise NotServed("The image cannot be decoded.") from None


def _has_alpha(image: object) -> bool:
    return "A" in getattr(image, "mode", "") or "transparency" in getattr(image, "info", {})
