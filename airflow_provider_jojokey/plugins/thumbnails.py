"""Thumbnails of images, cached on the API server's disk up to a maximum size."""

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
from airflow_provider_jojokey.store.spool_directory import create_private_dir
from airflow_provider_jojokey.translatable import Translatable

WIDTHS = (320, 640)
"""Widths in pixels: a card in the gallery, and the same on a high-density screen."""
MAX_PIXELS = 16 * 1024 * 1024
"""Maximum size of an image that is decoded: twice the size of the API's largest image."""
MAX_CACHE = 512 * 1024 * 1024
"""Default maximum size of the cache in bytes."""
MAX_DECODERS = 2
"""Maximum images decoded at the same time. Each needs four bytes per pixel, plus a copy."""

_NAME = re.compile(r"[0-9a-f]{64}-\d+\.webp")
_DECODERS = threading.BoundedSemaphore(MAX_DECODERS)


class ThumbnailUnavailable(Exception):
    """The server cannot create thumbnails. The message names the missing feature."""

    def __init__(self, message: Translatable) -> None:
        super().__init__(message)
        self.message = message


def nearest_width(width: int) -> int:
    """Return the smallest of :data:`WIDTHS` that covers ``width``, or the largest."""
    return next((allowed for allowed in WIDTHS if allowed >= width), WIDTHS[-1])


@dataclass(slots=True)
class ThumbnailCache:
    """Thumbnails in a folder. The least recently used ones are deleted first.

    :param folder: the folder, which is created on first use, readable only by this user
    :param max_bytes: maximum total size of the thumbnails
    """

    folder: Path
    max_bytes: int = MAX_CACHE
    _written: int | None = field(default=None, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def get(
        self, image: StoredImage, aws_conn_id: str | None, width: int, fetch: Callable[[], BinaryIO]
    ) -> bytes:
        """Return a thumbnail as WebP. Create it if it is not cached.

        :param image: the image as described by the result
        :param aws_conn_id: the AWS connection of the task
        :param width: one of :data:`WIDTHS`
        :param fetch: function that opens the image
        :raises NotServed: if the object is not an image or has too many pixels
        :raises ThumbnailUnavailable: if this server cannot create thumbnails
        """
        # The cache key contains all values that identify the image, not only its hash. With the hash alone, a
        # forged result could read thumbnails of objects that its connection cannot read.
        identity = repr((aws_conn_id, image.bucket, image.key, image.bytes, image.sha256))
        path = self.folder / f"{hashlib.sha256(identity.encode('utf-8', 'replace')).hexdigest()}-{width}.webp"
        try:
            data = path.read_bytes()
            os.utime(path)  # mark as recently used
            return data
        except OSError:
            pass
        with fetch() as file:
            data = make_thumbnail(file, width)
        try:
            self._store(path, data)
        except OSError:
            pass  # without the cache, the next request only takes longer
        return data

    def _store(self, path: Path, data: bytes) -> None:
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
            # Other processes write to the folder as well, so its size is measured again from time to time.
            if self._written is None or self._written > self.max_bytes // 16:
                self._written = 0
                self._trim()

    def _trim(self) -> None:
        """Delete the least recently used files.

        Leave room for the files that are written before the next call.
        """
        files = []
        for entry in os.scandir(self.folder):
            with contextlib.suppress(OSError):
                if _NAME.fullmatch(entry.name) or entry.name.endswith(".part"):
                    status = entry.stat(follow_symlinks=False)
                    files.append((status.st_mtime_ns, status.st_size, entry.path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self.max_bytes * 7 // 8:
                break
            with contextlib.suppress(OSError):
                os.unlink(path)
            total -= size


def make_thumbnail(file: BinaryIO, width: int) -> bytes:
    """Return an image as WebP, at most ``width`` pixels wide.

    :raises NotServed: if the file is not an image or has too many pixels
    :raises ThumbnailUnavailable: if Pillow lacks WebP
    """
    import io

    from PIL import Image, features

    if not features.check("webp"):
        raise ThumbnailUnavailable(
            Translatable("Thumbnails need a Pillow with WebP, which the API server's Pillow lacks.")
        )
    try:
        # Check the size first: Pillow allocates memory for all pixels of a WebP image when it opens the file.
        header = read_header(file)
        if header.width * header.height > MAX_PIXELS:
            raise NotServed(
                Translatable(
                    "The image has more than {limit} pixels, so it is not decoded here.", limit=MAX_PIXELS
                )
            )
        file.seek(0)
        with _DECODERS, Image.open(file, formats=("PNG", "JPEG", "WEBP")) as image:
            if image.size != (header.width, header.height):
                raise NotServed(Translatable("The image cannot be decoded."))
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
    except Exception:  # Pillow's decoders raise many types of errors on broken files
        raise NotServed(Translatable("The image cannot be decoded.")) from None


def _has_alpha(image: object) -> bool:
    return "A" in getattr(image, "mode", "") or "transparency" in getattr(image, "info", {})
