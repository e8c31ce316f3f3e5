"""The image route: the objects that it serves, and their headers."""

from __future__ import annotations

import hashlib
from typing import Any
from urllib.parse import quote

import pytest

from tests.support.airflow import BUCKET
from tests.support.api_server import Book, Server, png_image, result, stored_image

PATH = "/jojokey/images/a/manual__1/image/-1/0"
SMALL = "/jojokey/thumbnails/a/manual__1/image/-1/0"


def put(store: Any, book: Book, data: bytes, key: str = "x.png", **more: Any) -> dict[str, Any]:
    store.client.put_object(Bucket=BUCKET, Key=key, Body=data)
    image = stored_image(data, key, **more)
    book.write("a", result(image))
    return image


def test_image_has_the_bytes_of_the_object(server: Server, book: Book, store: Any) -> None:
    data = png_image(size=(900, 700))
    put(store, book, data)
    answer = server.get(PATH)
    assert answer.content == data
    assert answer.headers["Content-Length"] == str(len(data))


@pytest.mark.parametrize(
    ("kind", "content_type"), [("PNG", "image/png"), ("JPEG", "image/jpeg"), ("WEBP", "image/webp")]
)
def test_content_type_follows_the_bytes(
    server: Server, book: Book, store: Any, kind: str, content_type: str
) -> None:
    put(store, book, png_image(kind=kind), content_type="text/html")
    assert server.get(PATH).headers["Content-Type"] == content_type


def test_headers_prevent_scripts_in_images(server: Server, book: Book, store: Any) -> None:
    put(store, book, png_image())
    for path in (PATH, SMALL):
        headers = server.get(path).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'; sandbox"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"


@pytest.mark.parametrize("path", [PATH, SMALL])
def test_cached_image_returns_304(server: Server, book: Book, store: Any, path: str) -> None:
    put(store, book, png_image())
    etag = server.get(path).headers["ETag"]
    store.client.delete_object(Bucket=BUCKET, Key="x.png")
    for known in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        answer = server.get(path, headers={"If-None-Match": known})
        assert (answer.status_code, answer.content, answer.headers["ETag"]) == (304, b"", etag)
    if path == PATH:
        assert server.get(path, headers={"If-None-Match": '"other"'}).status_code == 404


@pytest.mark.parametrize("path", [PATH, SMALL])
def test_only_urls_with_a_digest_are_cached(server: Server, book: Book, store: Any, path: str) -> None:
    image = put(store, book, png_image())
    named = server.get(f"{path}?v={image['sha256'][:16]}").headers["Cache-Control"]
    assert named == "private, max-age=86400, immutable"
    for query in ("", "?v=", "?v=0123456789abcdef", f"?v={image['sha256'][:4]}"):
        assert server.get(path + query).headers["Cache-Control"] == "private, no-cache"


def test_replaced_image_has_a_new_url(server: Server, book: Book, store: Any) -> None:
    urls = set()
    for colour in ("red", "blue"):
        put(store, book, png_image(colour))
        ((card,),) = (server.results()["results"],)
        urls |= {card["images"][0][name] for name in ("src", "thumbnail", "download")}
        assert server.get(card["images"][0]["src"]).content == png_image(colour)
    assert len(urls) == 6


@pytest.mark.parametrize(
    ("key", "plain", "full"),
    [
        ("2026/hero.png", "hero.png", "hero.png"),
        ("狐狸 in snow.png", "__ in snow.png", "狐狸 in snow.png"),
        ('say "hi"; x=1.png', "say _hi__ x_1.png", "say _hi_; x=1.png"),
        ("a\\..\\b:c|d*.png", "a_.._b_c_d_.png", "a_.._b_c_d_.png"),
        ("....", "image", "image"),
    ],
)
def test_download_name_is_a_safe_form_of_the_key(
    server: Server, book: Book, store: Any, key: str, plain: str, full: str
) -> None:
    put(store, book, png_image(), key)
    told_name = server.get(f"{PATH}?download=1").headers["Content-Disposition"]
    assert told_name == f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(full, safe='')}"
    assert server.get(PATH).headers["Content-Disposition"].startswith("inline; ")


@pytest.mark.parametrize(
    "run_id",
    ["manual__2026-03-14T12:00:00+00:00", "a/b", "x/tasks/y/0", "50% off?&#", "狐狸", "a b", "a%2Fb"],
)
def test_any_run_id_works(server: Server, book: Book, store: Any, run_id: str) -> None:
    data = png_image()
    store.client.put_object(Bucket=BUCKET, Key="x.png", Body=data)
    book.write("a", result(stored_image(data, "x.png"), prompt="here"), run_id=run_id, map_index=2)
    (card,) = server.results(run_id=run_id)["results"]
    assert server.get(card["images"][0]["src"]).content == data
    assert server.get(card["images"][0]["thumbnail"]).status_code == 200
    path = f"/jojokey/api/dags/a/runs/{quote(run_id, safe='')}/tasks/image/2"
    assert server.get(path).json()["result"]["prompt"] == "here"


HTML = b"<!doctype html><script>alert(1)</script>"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'


@pytest.mark.parametrize("data", [HTML, SVG, b'{"password": "x"}', b"GIF89a" + b"\0" * 50, b"%PDF-1.7", b""])
def test_other_objects_are_not_served(server: Server, book: Book, store: Any, data: bytes) -> None:
    put(store, book, data, "secrets.json")
    for path in (PATH, SMALL):
        answer = server.get(path)
        assert answer.status_code == 404
        assert answer.headers["Content-Type"] == "application/json"
        assert data[:20].decode("latin-1") not in answer.text or not data


def test_forged_result_reveals_no_other_image(server: Server, book: Book, store: Any) -> None:
    data = png_image("black")
    store.client.put_object(Bucket=BUCKET, Key="of-others.png", Body=data)
    book.write("a", result(stored_image(data, "of-others.png", sha256=hashlib.sha256(b"guess").hexdigest())))
    for path in (PATH, SMALL):
        answer = server.get(path)
        assert answer.status_code == 404
        assert data not in answer.content


@pytest.mark.parametrize("more", [{"bytes": 10}, {"bytes": 10**6}, {"bytes": 2**40}, {"bytes": 0}])
def test_object_of_unexpected_size_is_not_served(
    server: Server, book: Book, store: Any, more: dict[str, int]
) -> None:
    put(store, book, png_image(), **more)
    for path in (PATH, SMALL):
        assert server.get(path).status_code == 404


def test_overwritten_image_is_reported(server: Server, book: Book, store: Any) -> None:
    put(store, book, png_image("red"))
    store.client.put_object(Bucket=BUCKET, Key="x.png", Body=png_image("blue"))
    answer = server.get(PATH)
    assert (answer.status_code, answer.json()["reason"]) == (404, "replaced")
    assert "overwritten" in answer.json()["detail"]


def test_missing_image_is_reported(server: Server, book: Book, store: Any) -> None:
    put(store, book, png_image())
    store.client.delete_object(Bucket=BUCKET, Key="x.png")
    answer = server.get(PATH)
    assert (answer.status_code, answer.json()["reason"]) == (404, "missing")
    assert answer.json()["detail"] == "The object is no longer in S3: it was moved or deleted."
    book.write("a", result(stored_image(png_image(), "x.png", bucket="no-such-bucket")))
    assert server.get(PATH).status_code == 404


@pytest.mark.parametrize("aws_conn_id", ["no_store", "a_database"])
def test_unreachable_store_is_reported_without_secrets(server: Server, book: Book, aws_conn_id: str) -> None:
    book.write("a", result(stored_image(png_image("pink"), "never.png"), aws_conn_id=aws_conn_id))
    for path in (PATH, SMALL):
        answer = server.get(path)
        assert answer.status_code == 502
        assert answer.json()["detail"]
        for secret in ("nobody", "mine", "127.0.0.1"):
            assert secret not in answer.text
