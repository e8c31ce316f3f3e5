"""Type and size from the first bytes of real, truncated and hostile images."""

from __future__ import annotations

import hashlib
import io
import random
import struct
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from airflow_provider_jojokey.img2 import images
from airflow_provider_jojokey.img2.images import (
    EXTENSIONS,
    Image,
    ImageFile,
    ImageHeader,
    NotAnImage,
    read_header,
)

SIZES = [(1, 1), (2, 1), (17, 33), (255, 256), (1024, 1536), (3840, 16), (1, 4000)]


def header_of(data: bytes) -> ImageHeader:
    return read_header(io.BytesIO(data))


def drawn(size: tuple[int, int], kind: str, mode: str = "RGB", **options: Any) -> bytes:
    out = io.BytesIO()
    image = Pillow.effect_noise(size, 60).convert(mode) if min(size) > 1 else Pillow.new(mode, size)
    image.save(out, kind, **options)
    return out.getvalue()


def exif() -> bytes:
    """Return an EXIF block with a thumbnail, which has its own frame header."""
    tags = Pillow.Exif()
    tags[0x010E] = "a fox"
    return tags.tobytes() + drawn((7, 5), "JPEG")


def animated() -> bytes:
    out = io.BytesIO()
    frames = [Pillow.effect_noise((40, 30), spread) for spread in (10, 50, 90)]
    frames[0].convert("RGB").save(
        out, "WEBP", save_all=True, append_images=[frame.convert("RGB") for frame in frames[1:]]
    )
    return out.getvalue()


KINDS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "png": ("image/png", "PNG", "RGB", {}),
    "png grey": ("image/png", "PNG", "L", {}),
    "png with alpha": ("image/png", "PNG", "RGBA", {}),
    "png palette": ("image/png", "PNG", "P", {}),
    "png one bit": ("image/png", "PNG", "1", {}),
    "jpeg": ("image/jpeg", "JPEG", "RGB", {}),
    "jpeg grey": ("image/jpeg", "JPEG", "L", {}),
    "jpeg cmyk": ("image/jpeg", "JPEG", "CMYK", {}),
    "jpeg progressive": ("image/jpeg", "JPEG", "RGB", {"progressive": True}),
    "jpeg optimised": ("image/jpeg", "JPEG", "RGB", {"optimize": True, "quality": 5}),
    "jpeg with exif": ("image/jpeg", "JPEG", "RGB", {"exif": exif()}),
    "jpeg with a profile": ("image/jpeg", "JPEG", "RGB", {"icc_profile": bytes(200_000)}),
    "jpeg with a comment": (
        "image/jpeg",
        "JPEG",
        "RGB",
        {"comment": b"\xff\xc0\x00\x11\x08\x00\x01\x00\x01"},
    ),
    "webp": ("image/webp", "WEBP", "RGB", {}),
    "webp lossless": ("image/webp", "WEBP", "RGB", {"lossless": True}),
    "webp lossless with alpha": ("image/webp", "WEBP", "RGBA", {"lossless": True, "exact": True}),
    "webp with alpha": ("image/webp", "WEBP", "RGBA", {}),
    "webp with exif": ("image/webp", "WEBP", "RGB", {"exif": exif()}),
}


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_type_and_size_of_real_images(kind: str, size: tuple[int, int]) -> None:
    content_type, name, mode, options = KINDS[kind]
    assert header_of(drawn(size, name, mode, **options)) == (content_type, *size)


def test_animated_webp_has_size_of_its_canvas() -> None:
    assert header_of(animated()) == ("image/webp", 40, 30)


def test_largest_sizes_are_supported() -> None:
    assert header_of(drawn((16383, 1), "WEBP", lossless=True)) == ("image/webp", 16383, 1)
    assert header_of(drawn((65500, 1), "JPEG")) == ("image/jpeg", 65500, 1)
    assert header_of(drawn((100_000, 1), "PNG")) == ("image/png", 100_000, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_truncated_image_has_correct_size_or_none(kind: str) -> None:
    content_type, name, mode, options = KINDS[kind]
    data = drawn(
        (40, 30),
        name,
        mode,
        **{**options, **({"icc_profile": bytes(900)} if "icc_profile" in options else {})},
    )
    recognized = 0
    for length in range(min(len(data), 3000)):
        try:
            assert header_of(data[:length]) == (content_type, 40, 30)
            recognized += 1
        except NotAnImage:
            assert not recognized, "a longer prefix must have a size too"
    assert recognized


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x89PNG",
        b"GIF89a\x01\x00\x01\x00",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"The upstream could not draw this.",
        b"BM" + bytes(100),
        b"\x00\x00\x00\x20ftypavif" + bytes(100),
        b"RIFF\x00\x00\x00\x00WAVEfmt " + bytes(100),
        b"RIFF\x00\x00\x00\x00WEBPABCD" + bytes(100),
        b"\x89PNG\r\n\x1a\n" + bytes(100),
        b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR" + bytes(8),
        b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR\x00\x00\x00\x01\x00\x00\x00\x00",
        b"\xff\xd8\xff\xd9",
        b"\xff\xd8\xff\xda\x00\x02",
        b"\xff\xd8\xff\xe0\x00\x02\x00\x00",
        b"\xff\xd8\xff\xc0\x00\x0b\x08\x00\x00\x00\x01",
        b"\xff\xd8\xff\xc4\x00\x0b\x08\x00\x01\x00\x01",
        b"RIFF\x00\x00\x00\x00WEBPVP8 \x00\x00\x00\x00\x00\x00\x00XXX\x01\x00\x01\x00",
    ],
)
def test_other_data_is_not_an_image(data: bytes) -> None:
    with pytest.raises(NotAnImage):
        header_of(data)


STARTS = st.sampled_from([b"", b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR", b"\xff\xd8\xff",
                          b"\xff\xd8\xff\xe0\x00\x04ab\xff",
                          b"RIFF\x00\x00\x00\x00WEBP", b"RIFF\x00\x00\x00\x00WEBPVP8 ", b"RIFF\x00\x00\x00\x00WEBPVP8L",
                          b"RIFF\x00\x00\x00\x00WEBPVP8X"])  # fmt: skip


@given(STARTS, st.binary(max_size=200))
@settings(max_examples=500)
@example(b"\xff\xd8\xff", b"\xc0")
def test_random_bytes_are_read_or_rejected(start: bytes, rest: bytes) -> None:
    try:
        found = header_of(start + rest)
    except NotAnImage:
        return
    assert found.content_type in EXTENSIONS
    assert found.width > 0
    assert found.height > 0


@given(st.integers(0, 2**32), st.sampled_from(list(KINDS)), st.integers(1, 5))
@settings(max_examples=100)
def test_flipped_bits_are_read_or_rejected(seed: int, kind: str, flips: int) -> None:
    _, name, mode, options = KINDS[kind]
    data = bytearray(drawn((16, 16), name, mode, **options))
    rnd = random.Random(seed)
    for _ in range(flips):
        data[rnd.randrange(min(len(data), 700))] ^= 1 << rnd.randrange(8)
    try:
        header_of(bytes(data))
    except NotAnImage:
        pass


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xd8" + b"\xff" * 5_000_000,
        b"\xff\xd8" + b"\xff\xe0\x00\x02" * 1_000_000,
        b"\xff\xd8" + b"\xff\xe0\x00\x00" * 1_000_000,
        b"\xff\xd8" + struct.pack(">BBH", 0xFF, 0xE0, 65535) * 1_000_000,
    ],
    ids=["fill bytes", "empty segments", "segments without a length", "segments into nowhere"],
)
def test_hostile_file_is_rejected_soon(data: bytes) -> None:
    started = time.process_time()
    with pytest.raises(NotAnImage):
        header_of(data)
    assert time.process_time() - started < 1


def test_image_after_fill_bytes_is_read() -> None:
    data = drawn((40, 30), "JPEG")
    assert header_of(data[:2] + b"\xff" * 50 + data[2:]) == ("image/jpeg", 40, 30)


# --- the file ------------------------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=50), max_size=10))
@settings(max_examples=50)
def test_file_has_size_and_digest(pieces: list[bytes]) -> None:
    file = ImageFile()
    for piece in pieces:
        file.write(piece)
    whole = b"".join(pieces)
    assert (file.size, file.sha256) == (len(whole), hashlib.sha256(whole).hexdigest())
    file.file.seek(0)
    assert file.file.read() == whole
    file.close()
    assert file.file.closed


def test_file_enforces_size_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert images.MAX_IMAGE_BYTES >= 8_294_400 * 4
    monkeypatch.setattr(images, "MAX_IMAGE_BYTES", 5)
    file = ImageFile()
    file.write(b"12345")
    with pytest.raises(NotAnImage, match="larger than 5 bytes"):
        file.write(b"6")
    file.close()


def test_named_file_is_renamed_when_complete(tmp_path: Path) -> None:
    file = ImageFile(tmp_path / "0.part")
    file.write(b"12345")
    file.seal()
    assert [path.name for path in tmp_path.iterdir()] == ["0.image"]
    file.write(b"6")
    file.close()
    again = ImageFile.reopen(tmp_path / "0.image")
    assert (again.size, again.sha256) == (6, hashlib.sha256(b"123456").hexdigest())
    again.close()


def test_reading_header_keeps_write_position(png: bytes) -> None:
    file = ImageFile()
    file.write(png)
    assert file.header() == ("image/png", 96, 64)
    assert file.header() == ("image/png", 96, 64)
    assert file.sha256 == hashlib.sha256(png).hexdigest()
    file.close()


@pytest.mark.parametrize(
    ("content_type", "extension"), [("image/png", "png"), ("image/jpeg", "jpg"), ("image/webp", "webp")]
)
def test_image_has_extension(content_type: str, extension: str) -> None:
    file = ImageFile()
    assert Image(0, file, content_type, 1, 1).extension == extension
    file.close()
