"""Image files: digest, type, size in pixels and completeness.

Type and size come from the file's first bytes, never from a name or the request: a gateway may return JPEG or a
text page when PNG was requested.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from msgspec import Struct

MAX_IMAGE_BYTES = 256 * 1024 * 1024
"""No image of 8,294,400 pixels is larger. The limit protects the disk."""

_RIFF = b"RIFF"
_BINARY = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c\x1d\x1f\x80-\xc1\xf5-\xff]|" + _RIFF)
"""A first byte that neither UTF-8 nor JSON can have, as in PNG, JPEG and AVIF, or the beginning of WebP."""

SIGNATURE_BYTES = 12
"""The first bytes of a file that :func:`content_type_of` needs."""
_SIGNATURES = ((b"\x89PNG\r\n\x1a\n", "image/png"), (b"\xff\xd8\xff", "image/jpeg"))

EXTENSIONS = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp"}


class ImageHeader(NamedTuple):
    """Type and size of an image."""

    content_type: str
    width: int
    height: int


class NotAnImage(ValueError):
    """Data that is not a PNG, JPEG or WebP image. The message completes "it is …"."""


class Incomplete(NotAnImage):
    """A truncated image."""


class ImageFile:
    """A file for one image, with its size in bytes and its SHA-256 as it grows.

    :param path: the file's path; by default, an unnamed temporary file
    :param temporary: whether the caller moves or deletes the file later, so that no message may name it
    :raises OSError: if the file cannot be created
    """

    def __init__(self, path: Path | None = None, *, temporary: bool = False) -> None:
        # Unbuffered: chunks are large, and copying them again costs more than the system call.
        self.file: BinaryIO = (
            tempfile.TemporaryFile(buffering=0) if path is None else open(path, "w+b", buffering=0)  # noqa: SIM115
        )
        self.path = path
        self.temporary = temporary
        self.size = 0
        self._head = b""
        self._sha256 = hashlib.sha256()

    def write(self, data: bytes) -> None:
        """Append ``data``.

        :raises NotAnImage: if the file exceeds 256 MiB
        :raises OSError: if the disk is full
        """
        self.size += len(data)
        if self.size > MAX_IMAGE_BYTES:
            raise NotAnImage(f"larger than {MAX_IMAGE_BYTES:,} bytes")
        if len(self._head) < SIGNATURE_BYTES:
            self._head += data[:SIGNATURE_BYTES]
        self._sha256.update(data)
        written = self.file.write(data)
        while written < len(data):
            written += self.file.write(data[written:])

    def clear(self) -> None:
        """Empty the file.

        :raises OSError: if the file cannot be truncated
        """
        self.file.seek(0)
        self.file.truncate()
        self.size = 0
        self._head = b""
        self._sha256 = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """The digest of the written data, as 64 hex digits."""
        return self._sha256.hexdigest()

    @property
    def is_image(self) -> bool:
        """Whether the first bytes are those of an image. The file may still grow."""
        return content_type_of(self._head) is not None

    def header(self) -> ImageHeader:
        """Return type and size from the file's first bytes.

        :raises NotAnImage: if it is not a PNG, JPEG or WebP image
        """
        return read_header(self.file)

    def check(self) -> ImageHeader:
        """Return type and size of a complete image.

        Reads only headers and the file's end, not the image's data.

        :raises NotAnImage: if it is not a PNG, JPEG or WebP image, or is truncated
        """
        header = read_header(self.file)
        require_complete(self.file, header.content_type, self.size)
        return header

    def seal(self, suffix: str = ".image") -> None:
        """Rename ``….part`` to ``….image``, or to another suffix, after the last byte.

        If this process is killed, the next one finds the file's state in its name.
        """
        if self.path is not None and self.path.suffix in (".part", ".image") and self.path.suffix != suffix:
            try:
                self.path = self.path.rename(self.path.with_suffix(suffix))
            except OSError:
                # Another process deleted it, or the disk fails. The open file stays readable.
                self.path = self.path if os.path.exists(self.path) else None

    def seal_preview(self) -> None:
        """Rename a complete preview to ``….preview``, so that it is never taken for the image."""
        self.seal(".preview")

    def seal_unusable(self) -> None:
        """Rename unusable data to ``….bin``. It was billed, so it is kept."""
        self.seal(".bin")

    @classmethod
    def reopen(cls, path: Path) -> ImageFile:
        """Open a file that another process left behind.

        :raises OSError: if the file cannot be read
        """
        image = cls.__new__(cls)
        image.file, image.path, image.size = open(path, "rb", buffering=0), path, 0  # noqa: SIM115
        image.temporary, image._head, image._sha256 = True, b"", hashlib.sha256()
        while chunk := image.file.read(1024 * 1024):
            image._head = image._head or chunk[:SIGNATURE_BYTES]
            image.size += len(chunk)
            image._sha256.update(chunk)
        return image

    def close(self) -> None:
        """Close the file, which deletes an unnamed one."""
        self.file.close()


class Image(Struct, frozen=True):
    """One complete image.

    :param index: its position in the response, from 0
    :param file: its data
    :param content_type: ``image/png``, ``image/jpeg`` or ``image/webp``, from its first bytes
    :param width: width in pixels
    :param height: height in pixels
    :param revised_prompt: the prompt as the model rewrote it, if the gateway reports it
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

        :raises OSError: if ``path`` cannot be written
        """
        self.file.file.seek(0)
        with open(path, "wb") as target:
            shutil.copyfileobj(self.file.file, target, 1024 * 1024)


def content_type_of(head: bytes) -> str | None:
    """Return the type of a PNG, JPEG or WebP image by its first bytes, or ``None`` for other data."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for signature, kind in _SIGNATURES if head.startswith(signature)), None)


def begins_binary(head: bytes) -> bool:
    """Return whether data is not text, by its first bytes. It may be an image, or compressed."""
    return _BINARY.match(head) is not None


def may_begin_binary(head: bytes) -> bool:
    """Return whether more bytes decide whether data is text."""
    return len(head) < len(_RIFF) and _RIFF.startswith(head)


def read_header(file: BinaryIO) -> ImageHeader:
    """Return the type and the size in pixels of the image in ``file``, which must be seekable.

    :raises NotAnImage: if it is not a PNG, JPEG or WebP image, or its header is truncated
    """
    file.seek(0)
    head = file.read(30)
    kind = content_type_of(head)
    try:
        if kind == "image/png" and head[12:16] == b"IHDR":
            return _sized(kind, *struct.unpack(">II", head[16:24]))
        if kind == "image/jpeg":
            return _sized(kind, *_jpeg_size(file))
        if kind == "image/webp":
            return _sized(kind, *_webp_size(head))
    except struct.error:
        raise NotAnImage(f"truncated within its header, after {len(head)} bytes") from None
    raise NotAnImage(_describe_foreign(head))


_BRANDS = {b"avif": "an AVIF image", b"avis": "an AVIF image", b"heic": "a HEIC image", b"heix": "a HEIC image",
           b"mif1": "a HEIF image"}  # fmt: skip
_MAGIC = ((b"GIF8", "a GIF image"), (b"BM", "a BMP image"), (b"II*\0", "a TIFF image"), (b"MM\0*", "a TIFF image"),
          (b"\xff\x0a", "a JPEG XL image"), (b"\0\0\0\x0cJXL ", "a JPEG XL image"), (b"%PDF", "a PDF document"),
          (b"<svg", "an SVG image"), (b"<", "HTML or XML"), (b"{", "JSON"))  # fmt: skip


def _describe_foreign(head: bytes) -> str:
    """Describe data that is not a PNG, JPEG or WebP image by its first bytes."""
    if not head:
        return "empty"
    brand = _BRANDS.get(head[8:12]) if head[4:8] == b"ftyp" else None
    name = brand or next((name for magic, name in _MAGIC if head.startswith(magic)), "")
    return f"{name}, not PNG, JPEG or WebP" if name else "not a PNG, JPEG or WebP image"


def require_complete(file: BinaryIO, content_type: str, size: int) -> None:
    """Raise if the image in ``file`` is truncated. Bytes after its end are allowed.

    :param file: the image, seekable
    :param content_type: its type
    :param size: its size in bytes
    :raises Incomplete: if the image is truncated
    """
    try:
        complete = _IS_COMPLETE[content_type](file, size)
    except struct.error:
        complete = False
    if not complete:
        raise Incomplete(f"a truncated {content_type} of {size:,} bytes")


def _png_is_complete(file: BinaryIO, size: int) -> bool:
    """Walk the chunks to IEND and read eight bytes of each (PNG specification, 5.3)."""
    position = 8
    for _ in range(MAX_CHUNKS):
        file.seek(position)
        head = file.read(8)
        if len(head) < 8:
            return False
        length, kind = struct.unpack(">I4s", head)
        position += 12 + length
        if position > size:
            return False
        if kind == b"IEND":
            return True
    return _ends_with(file, size, b"IEND\xaeB\x60\x82", 0)


def _jpeg_is_complete(file: BinaryIO, size: int) -> bool:
    """Find the end-of-image marker after the first scan. An embedded thumbnail has its own before it."""
    scan = 0
    for marker, start in _jpeg_segments(file, to_scan=True):
        scan = start
        if marker == 0xDA:
            break
    return _ends_with(file, size, b"\xff\xd9", scan)


def _webp_is_complete(file: BinaryIO, size: int) -> bool:
    file.seek(4)
    (length,) = struct.unpack("<I", file.read(4))
    return bool(size >= 8 + length)


_IS_COMPLETE: dict[str, Callable[[BinaryIO, int], bool]] = {
    "image/png": _png_is_complete,
    "image/jpeg": _jpeg_is_complete,
    "image/webp": _webp_is_complete,
}

MAX_CHUNKS = 200_000
"""A PNG of the largest size has some 30,000 chunks; a hostile one could have millions."""
_TAIL = 64 * 1024


def _ends_with(file: BinaryIO, size: int, end: bytes, start: int) -> bool:
    """Return whether ``end`` occurs after ``start``. Search backwards, so the last bytes usually suffice."""
    stop = size
    while stop > start:
        begin = max(start, stop - _TAIL)
        file.seek(begin)
        if end in file.read(stop - begin):
            return True
        if begin == start:
            return False
        stop = begin + len(end) - 1
    return False


def _sized(content_type: str, width: int, height: int) -> ImageHeader:
    if not width or not height:
        raise NotAnImage(f"an {content_type} with a width or height of zero")
    return ImageHeader(content_type, width, height)


def _jpeg_size(file: BinaryIO) -> tuple[int, int]:
    """Walk the segments to the frame header, which contains the size (ITU-T T.81, B.2.2)."""
    for marker, start in _jpeg_segments(file):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            file.seek(start + 3)
            height, width = struct.unpack(">HH", file.read(4))
            return width, height
    raise NotAnImage("an image/jpeg without a frame header")


def _jpeg_segments(file: BinaryIO, to_scan: bool = False) -> Iterator[tuple[int, int]]:
    """Yield marker and position of each segment before the first scan, and of the scan if ``to_scan``."""
    position = 2
    for _ in range(10_000):  # real files have about twenty; a hostile one could have millions
        file.seek(position)
        lead, marker = struct.unpack(">BB", file.read(2))
        if lead != 0xFF:
            raise NotAnImage("an image/jpeg with a corrupt segment")
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if marker in (0xD9, 0xDA):  # the image data or its end: no frame header can follow
            if to_scan:
                yield marker, position
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
    raise NotAnImage("an image/webp of an unknown kind")
