"""Thumbnails: each is created once, the cache has a limit, and images that are too large have none."""

from __future__ import annotations

import io
import os
import struct
import time
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from airflow_provider_jojokey.plugins.thumbnails import MAX_PIXELS, ThumbnailCache
from airflow_provider_jojokey.results import StoredImage
from tests.support.airflow import BUCKET
from tests.support.api_server import Book, Server, png_image, result, stored_image

PATH = "/jojokey/thumbnails/a/manual__1/image/-1/0"


def put(store: Any, book: Book, data: bytes) -> None:
    store.client.put_object(Bucket=BUCKET, Key="x.png", Body=data)
    book.write("a", result(stored_image(data, "x.png")))


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    assert image.format == "WEBP"
    image.load()
    return image


@pytest.mark.parametrize(
    ("width", "size"), [(1, (320, 480)), (320, (320, 480)), (321, (640, 960)), (9_999, (640, 960))]
)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_thumbnails_are_webp_of_fixed_widths(
    server: Server, book: Book, store: Any, kind: str, width: int, size: tuple[int, int]
) -> None:
    put(store, book, png_image("olive", (1024, 1536), kind))
    answer = server.get(f"{PATH}?width={width}")
    assert answer.headers["Content-Type"] == "image/webp"
    assert opened(answer.content).size == size


def test_small_images_are_not_enlarged(server: Server, book: Book, store: Any) -> None:
    put(store, book, png_image(size=(96, 64)))
    assert opened(server.get(PATH).content).size == (96, 64)


def test_transparency_is_kept(server: Server, book: Book, store: Any) -> None:
    out = io.BytesIO()
    Image.new("RGBA", (800, 800), (255, 0, 0, 0)).save(out, "PNG")
    put(store, book, out.getvalue())
    assert opened(server.get(PATH).content).convert("RGBA").getpixel((5, 5))[3] == 0


def test_thumbnail_is_created_once(server: Server, book: Book, store: Any) -> None:
    put(store, book, png_image("navy", (700, 500)))
    first = server.get(PATH).content
    store.client.delete_object(Bucket=BUCKET, Key="x.png")  # a second read would fail
    assert server.get(PATH).content == first
    assert server.get(f"{PATH}?width=320").status_code == 404


def header_only(width: int, height: int, kind: str) -> bytes:
    """Return a small file whose header claims too many pixels."""
    if kind == "PNG":
        ihdr = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
        chunks = ((b"IHDR", ihdr), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b""))
        return b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
            for name, data in chunks
        )
    if kind == "WEBP":
        size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
        body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\x10\0\0\0" + size
        return b"RIFF" + struct.pack("<I", len(body)) + body
    frame = struct.pack(">HBHHB", 11, 8, height, width, 1) + b"\x01\x11\x00"
    return b"\xff\xd8\xff\xc0" + frame + b"\xff\xd9"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("size", [(16_000, 16_000), (MAX_PIXELS // 1000 + 1, 1_000)])
def test_image_with_too_many_pixels_is_not_decoded(
    server: Server, book: Book, store: Any, kind: str, size: tuple[int, int]
) -> None:
    put(store, book, header_only(*size, kind))
    answer = server.get(PATH)
    assert (answer.status_code, "pixels" in answer.json()["detail"]) == (404, True)


@pytest.mark.parametrize(
    "data",
    [
        png_image(size=(400, 400))[:300],
        png_image(size=(400, 400))[:40] + b"\xff" * 200,
        header_only(100, 100, "PNG"),
        header_only(100, 100, "WEBP"),
        header_only(100, 100, "JPEG"),
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff" + b"\xff" * 100,
    ],
)
def test_broken_image_is_reported(server: Server, book: Book, store: Any, data: bytes) -> None:
    put(store, book, data)
    answer = server.get(PATH)
    assert (answer.status_code, answer.json()["detail"]) == (404, "The image cannot be decoded.")


class Pictures:
    """Serves one image, and counts the requests."""

    def __init__(self) -> None:
        self.asked = 0
        self.data = png_image(size=(64, 64))

    def __call__(self) -> io.BytesIO:
        self.asked += 1
        return io.BytesIO(self.data)


def image(number: int) -> StoredImage:
    return StoredImage("posters", f"{number}.png", "image/png", 64, 64, 100, f"{number:064x}")


def kept(folder: Path) -> int:
    return sum(entry.stat().st_size for entry in folder.iterdir())


def test_cache_is_bounded_and_keeps_recent_files(tmp_path: Path) -> None:
    pictures = Pictures()
    folder = tmp_path / "thumbnails"
    size = len(ThumbnailCache(tmp_path / "other").get(image(0), None, 320, pictures))
    cache = ThumbnailCache(folder, max_bytes=size * 40)
    past = time.time() - 1_000
    for number in range(200):
        before = set(folder.iterdir()) if folder.exists() else set()
        cache.get(image(number), None, 320, pictures)
        for path in set(folder.iterdir()) - before:
            os.utime(path, (past + number, past + number))
        cache.get(image(0), None, 320, pictures)  # so it is always the last one used
        assert kept(folder) <= size * 40
    asked = pictures.asked
    cache.get(image(0), None, 320, pictures)
    cache.get(image(199), None, 320, pictures)
    assert pictures.asked == asked
    cache.get(image(1), None, 320, pictures)
    assert pictures.asked == asked + 1


def test_cache_keeps_files_of_other_programs(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x" * 10_000)
    cache = ThumbnailCache(tmp_path, max_bytes=1)
    for number in range(5):
        cache.get(image(number), None, 320, Pictures())
    assert (tmp_path / "notes.txt").exists()
    assert not list(tmp_path.glob("*.webp"))


def test_cache_is_private(tmp_path: Path) -> None:
    cache = ThumbnailCache(tmp_path / "a" / "b")
    cache.get(image(1), None, 320, Pictures())
    assert cache.folder.stat().st_mode & 0o777 == 0o700
    (path,) = cache.folder.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600


def test_thumbnails_work_without_a_writable_cache(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    pictures = Pictures()
    cache = ThumbnailCache(tmp_path / "file")
    assert opened(cache.get(image(1), None, 320, pictures))
    assert opened(cache.get(image(1), None, 320, pictures))
    assert pictures.asked == 2


def test_cache_key_includes_connection_and_location(tmp_path: Path) -> None:
    pictures = Pictures()
    cache = ThumbnailCache(tmp_path)
    entry = image(1)
    for place, connection in ((entry, "a"), (entry, "b"), (StoredImage("c", *_rest(entry)), "a")):
        cache.get(place, connection, 320, pictures)
    assert pictures.asked == 3


def _rest(entry: StoredImage) -> tuple[Any, ...]:
    return entry.key, entry.content_type, entry.width, entry.height, entry.bytes, entry.sha256
