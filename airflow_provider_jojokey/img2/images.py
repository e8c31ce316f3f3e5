"""An image on its way: a file that knows its digest, its type and its size in pixels.

Type and size come from the file's first bytes, never from a name or from what was asked for:
a gateway may answer a request for PNG with JPEG, or an image with a page of text.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

MAX_IMAGE_BYTES = 256 * 1024 * 1024
"""No image of 8,294,400 pixels is larger; what is, fills the disk."""

EXTENSIONS = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp"}


class ImageHeader(NamedTuple):
    """What an image's first bytes say of it."""

    content_type: str
    width: int
    height: int


class NotAnImage(ValueError):
    """Bytes that are not a PNG, JPEG or WebP image."""


class ImageFile:
    """A sink for one image's bytes: a file, its size in bytes and its SHA-256 as it grows.

    :param path: where to keep it; without one it is a temporary file without a name
    :raises OSError: if the file cannot be made
    """

    def __init__(self, path: Path | None = None) -> None:
        # Unbuffered: pieces are large, and a second copy in Python costs more than the system call.
        self.file: BinaryIO = (
            tempfile.TemporaryFile(buffering=0) if path is None else open(path, "w+b", buffering=0)  # noqa: SIM115
        )
        self.path = path
        self.size = 0
        self._sha256 = hashlib.sha256()

    def write(self, data: bytes) -> None:
        """Add ``data``.

        :raises NotAnImage: past 256 MiB
        :raises OSError: if the disk is full
        """
        self.size += len(data)
        if self.size > MAX_IMAGE_BYTES:
            raise NotAnImage(f"more than {MAX_IMAGE_BYTES:,} bytes")
        self._sha256.update(data)
        written = self.file.write(data)
        while written < len(data):
            written += self.file.write(data[written:])

    def clear(self) -> None:
        """Forget what was written: what comes next is the first byte.

        :raises OSError: if the file cannot be cut
        """
        self.file.seek(0)
        self.file.truncate()
        self.size = 0
        self._sha256 = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """The digest of all that was written, as 64 hex digits."""
        return self._sha256.hexdigest()

    def header(self) -> ImageHeader:
        """Return type and size from the file's first bytes.

        :raises NotAnImage: if it is not a PNG, JPEG or WebP image
        """
        return read_header(self.file)

    def seal(self, suffix: str = ".image") -> None:
        """Mark the image as whole: a file named ``….part`` is renamed to ``….image``.

        Who finds the file after this process was killed can tell by its name what it is worth.
        """
        if self.path is not None and self.path.suffix == ".part":
            self.path = self.path.rename(self.path.with_suffix(suffix))

    def seal_preview(self) -> None:
        """Mark a whole preview: it is renamed to ``….preview``, and never taken for the image."""
        self.seal(".preview")

    @classmethod
    def reopen(cls, path: Path) -> ImageFile:
        """Open a file that another process has left.

        :raises OSError: if it cannot be read
        """
        image = cls.__new__(cls)
        image.file, image.path, image.size = open(path, "rb", buffering=0), path, 0  # noqa: SIM115
        image._sha256 = hashlib.sha256()
        while piece := image.file.read(1024 * 1024):
            image.size += len(piece)
            image._sha256.update(piece)
        return image

    def close(self) -> None:
        """Close the file; one without a name is gone then."""
        self.file.close()


@dataclass(frozen=True, slots=True)
class Image:
    """One image that was received whole.

    :param index: its place in the reply, from 0
    :param file: its bytes, in a file
    :param content_type: ``image/png``, ``image/jpeg`` or ``image/webp``, after its first bytes
    :param width: pixels
    :param height: pixels
    :param revised_prompt: the prompt as the model rewrote it, where the gateway tells
    """

    index: int
    file: ImageFile
    content_type: str
    width: int
    height: int
    revised_prompt: str | None = None

    @property
    def extension(self) -> str:
        """``png``, ``jpg`` or ``webp``."""
        return EXTENSIONS[self.content_type]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Copy the image to ``path``.

        :raises OSError: if it cannot be written
        """
        self.file.file.seek(0)
        with open(path, "wb") as target:
            shutil.copyfileobj(self.file.file, target, 1024 * 1024)


def read_header(file: BinaryIO) -> ImageHeader:
    """Return the type and the size in pixels of the image in ``file``, which must be seekable.

    :raises NotAnImage: if it is not a PNG, JPEG or WebP image, or ends within its header
    """
    file.seek(0)
    head = file.read(30)
    try:
        if head.startswith(b"\x89PNG\r\n\x1a\n") and head[12:16] == b"IHDR":
            return _sized("image/png", *struct.unpack(">II", head[16:24]))
        if head.startswith(b"\xff\xd8\xff"):
            return _sized("image/jpeg", *_jpeg_size(file))
        if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
            return _sized("image/webp", *_webp_size(head))
    except struct.error:
        raise NotAnImage(f"an image that ends within its header, after {len(head)} bytes") from None
    raise NotAnImage("no image" if head else "nothing")


def _sized(content_type: str, width: int, height: int) -> ImageHeader:
    if not width or not height:
        raise NotAnImage(f"{content_type} without a size")
    return ImageHeader(content_type, width, height)


def _jpeg_size(file: BinaryIO) -> tuple[int, int]:
    """Walk the segments up to the frame header, which holds the size (ITU-T T.81, B.2.2)."""
    for marker, start in _jpeg_segments(file):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            file.seek(start + 3)
            height, width = struct.unpack(">HH", file.read(4))
            return width, height
    raise NotAnImage("image/jpeg without a frame")


def _jpeg_segments(file: BinaryIO) -> Iterator[tuple[int, int]]:
    position = 2
    for _ in range(10_000):  # real files have some twenty; a hostile one could have millions
        file.seek(position)
        lead, marker = struct.unpack(">BB", file.read(2))
        if lead != 0xFF:
            raise NotAnImage("image/jpeg with a broken segment")
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if marker in (0xD9, 0xDA):  # the picture itself, or its end: no frame header can follow
            return
        yield marker, position + 2
        file.seek(position + 2)
        (length,) = struct.unpack(">H", file.read(2))
        position += 2 + max(length, 2)


def _webp_size(head: bytes) -> tuple[int, int]:
    """Read the size from the first chunk (RFC 9649): lossy, lossless or extended."""
    chunk = head[12:16]
    if chunk == b"VP8 " and head[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack("<HH", head[26:30])
        return width & 0x3FFF, height & 0x3FFF
    if chunk == b"VP8L" and head[20:21] == b"\x2f":
        (bits,) = struct.unpack("<I", head[21:25])
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if chunk == b"VP8X":
        if len(head) < 30:
            raise struct.error
        return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
    raise NotAnImage("image/webp of an unknown kind")
