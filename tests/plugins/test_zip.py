"""Several images as one zip file."""

from __future__ import annotations

import hashlib
import io
import socket
import zipfile
from typing import Any
from urllib.parse import quote

import requests

from airflow_provider_jojokey.plugins import archive, files
from tests.support.airflow import BUCKET
from tests.support.api_server import Book, Server, png_image, result, stored_image
from tests.support.patience import PATIENCE


def put(store: Any, book: Book, dag_id: str, *keys: str, run_id: str = "manual__1") -> list[bytes]:
    """Store an image at each key, and the result of a task that generated them."""
    images = [png_image(colour) for colour, _ in zip(("red", "green", "blue"), keys, strict=False)]
    for key, data in zip(keys, images, strict=True):
        store.client.put_object(Bucket=BUCKET, Key=key, Body=data)
    book.write(
        dag_id,
        result(*[stored_image(entry, key) for key, entry in zip(keys, images, strict=True)]),
        run_id=run_id,
    )
    return images


def selection(dag_id: str, number: int = 0, run_id: str = "manual__1") -> str:
    return f"{dag_id}/{quote(run_id, safe='/')}/image/-1/{number}"


def download(server: Server, *selected: str, user: str = "admin") -> Any:
    return server.get("/jojokey/zip", user, params={"image": selected})


def zipped(answer: Any) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(answer.content)) as made:
        return {name: made.read(name) for name in made.namelist()}


def test_zip_holds_the_selected_images_byte_for_byte(server: Server, book: Book, store: Any) -> None:
    red, green, _ = put(store, book, "a", "x/poster.png", "y/Poster.PNG", "z/other.png")
    (other,) = put(store, book, "b", "..\\up/..", run_id="with a/slash?")
    answer = download(
        server, selection("a"), selection("a", 1), selection("b", run_id="with a/slash?"), selection("a")
    )
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "application/zip")
    assert answer.headers["Content-Disposition"].startswith('attachment; filename="images.zip"')
    with zipfile.ZipFile(io.BytesIO(answer.content)) as made:
        assert made.testzip() is None
        assert {name: made.read(name) for name in made.namelist()} == {
            "poster.png": red,
            "Poster (2).PNG": green,
            "image": other,
        }


def test_zip_lists_images_that_are_gone(server: Server, book: Book, store: Any) -> None:
    red, _ = put(store, book, "a", "here.png", "gone.png")
    store.client.delete_object(Bucket=BUCKET, Key="gone.png")
    answer = download(server, selection("a"), selection("a", 1))
    with zipfile.ZipFile(io.BytesIO(answer.content)) as made:
        assert made.read("here.png") == red
        assert made.namelist()[1:] == [archive.LEFT_OUT]
        assert (
            made.read(archive.LEFT_OUT)
            .decode()
            .startswith(f"s3://{BUCKET}/gone.png: The object is no longer")
        )


def test_zip_names_images_that_were_replaced(server: Server, book: Book, store: Any) -> None:
    def version(data: bytes) -> str:
        return f"?v={hashlib.sha256(data).hexdigest()[:16]}"

    red, _ = put(store, book, "a", "fox.png", "owl.png")
    blue = png_image("blue")
    old = [selection("a") + version(red), selection("a", 1) + "?v="]
    assert zipped(download(server, *old)).keys() == {"fox.png", "owl.png"}
    store.client.put_object(Bucket=BUCKET, Key="fox.png", Body=blue)
    owl = stored_image(png_image("green"), "owl.png")
    book.write("a", result(stored_image(blue, "fox.png"), owl))

    files = zipped(download(server, *old))
    assert files.keys() == {"owl.png", archive.LEFT_OUT}
    assert files[archive.LEFT_OUT].decode().startswith(f"s3://{BUCKET}/fox.png: The image was replaced")
    assert zipped(download(server, selection("a") + version(blue))) == {"fox.png": blue}


def test_zip_names_images_that_the_task_no_longer_has(server: Server, book: Book, store: Any) -> None:
    red, _ = put(store, book, "a", "fox.png", "owl.png")
    book.write("a", result(stored_image(red, "fox.png")))  # another try made one image less

    files = zipped(download(server, selection("a", 1), selection("a"), selection("a", run_id="gone")))

    assert files["fox.png"] == red
    assert files[archive.LEFT_OUT].decode().splitlines() == [
        "a / manual__1 / image, image 2: The task has no such image.",
        "a / gone / image, image 1: The task has no such image.",
    ]
    assert download(server, selection("a", 1), selection("a", run_id="gone")).status_code == 404


def test_zip_stops_asking_a_bucket_that_is_down(server: Server, book: Book, store: Any) -> None:
    keys = [f"{number}.png" for number in range(4)]
    put(store, book, "up", "here.png")
    down = [stored_image(png_image(), key) for key in keys]
    book.write("down", result(*down, aws_conn_id="no_store"))

    files = zipped(download(server, *[selection("down", number) for number in range(4)], selection("up")))

    assert files.keys() == {"here.png", archive.LEFT_OUT}
    lines = files[archive.LEFT_OUT].decode().splitlines()
    assert [line.partition(": ")[0] for line in lines] == [f"s3://{BUCKET}/{key}" for key in keys]
    asked, skipped = lines[: archive.MAX_FAILURES], lines[archive.MAX_FAILURES :]
    assert all("S3 did not respond" in line for line in asked)
    assert all(line.endswith(archive.NOT_REQUESTED) for line in skipped)


def test_zip_asks_on_when_s3_answers_for_missing_images(server: Server, book: Book, store: Any) -> None:
    *gone, last = keys = [f"{number}.png" for number in range(archive.MAX_FAILURES + 2)]
    book.write("a", result(*[stored_image(png_image(), key) for key in keys]))
    store.client.put_object(Bucket=BUCKET, Key=last, Body=png_image())

    files = zipped(download(server, *[selection("a", number) for number in range(len(keys))]))

    assert files.keys() == {last, archive.LEFT_OUT}
    assert len(files[archive.LEFT_OUT].decode().splitlines()) == len(gone)


def test_zip_needs_permission_for_every_dag(server: Server, book: Book, store: Any) -> None:
    put(store, book, "mine", "x.png")
    put(store, book, "secret", "y.png")
    refused = download(server, selection("mine"), selection("secret"), user="halfblind")
    assert refused.status_code == 403
    assert server.get("/jojokey/zip", None, params={"image": selection("mine")}).status_code == 401


def test_zip_of_long_names_is_requested_with_a_form(server: Server, book: Book, store: Any) -> None:
    """Proxies reject the URL, which is longer than 8 KB."""
    keys = [f"{number:02}.png" for number in range(archive.MAX_IMAGES)]
    run_id = f"manual__{'x' * 230}"
    images = [png_image()] * len(keys)
    for key, data in zip(keys, images, strict=True):
        store.client.put_object(Bucket=BUCKET, Key=key, Body=data)
    stored = [stored_image(data, key) for key, data in zip(keys, images, strict=True)]
    book.write("mine", result(*stored), run_id=run_id)
    selected = [selection("mine", number, run_id) for number in range(len(keys))]

    def post(selected: list[str], user: str | None = "admin") -> Any:
        headers = {"Authorization": f"Bearer {server._token(user)}"} if user else {}
        return requests.post(
            f"{server.url}/jojokey/zip", {"image": selected}, headers=headers, timeout=PATIENCE
        )

    assert zipped(post(selected)) == dict(zip(keys, images, strict=True))
    assert post(selected, "nobody").status_code == 403
    assert post(selected, None).status_code == 401
    assert post([*selected, selected[0]]).status_code == 422
    assert post([]).status_code == 422
    assert post(["mine/x"]).status_code == 400


def test_form_of_a_zip_may_not_fill_the_memory(server: Server) -> None:
    """The server answers before the form ends."""
    form = b"image=" + b"x" * (2 * files.MAX_FORM)
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), PATIENCE) as connection:
        head = (
            "POST /jojokey/zip HTTP/1.1",
            "Host: 127.0.0.1",
            f"Authorization: Bearer {server._token('admin')}",
            "Content-Type: application/x-www-form-urlencoded",
            "Content-Length: 1000000000000",
        )
        connection.sendall("\r\n".join(head).encode() + b"\r\n\r\n" + form)
        assert connection.recv(12) == b"HTTP/1.1 413"


def test_zip_refuses_what_names_no_image_and_what_is_too_much(server: Server, book: Book, store: Any) -> None:
    image = stored_image(png_image(), "x.png", bytes=archive.MAX_BYTES // 2 + 1)
    book.write("a", result(image, image))
    place = "a/run/image/-1/0"
    queries = ("?item=-2", "?item=1&item=x", "?v=x", "?v=AB", f"?v={'0' * 65}", "?download=1", "?v=a?item=1")
    for wrong in (
        "",
        "x",
        "a/b/c",
        "a/run/image/x/0",
        "a/run/image/-1/zero",
        *("a/run%00/image/-1/0", "a/run/image%00/-1/0"),  # PostgreSQL has no NUL; the URL encodes it again
        *(place + query for query in queries),
    ):
        assert download(server, wrong).status_code == 400, wrong
    assert download(server, selection("a", 2)).status_code == 404
    too_large = download(server, selection("a"), selection("a", 1))
    assert too_large.status_code == 400
    assert "at most 537 MB" in too_large.json()["detail"]
    assert download(server, *[selection("a", number) for number in range(51)]).status_code == 422
    assert server.get("/jojokey/zip").status_code == 422


def test_file_names_are_safe_on_every_system() -> None:
    names = archive.Names()
    given = [
        names.of(name)
        for name in ("a.png", "A.png", "a.png", "CON.png", "..", "x:y?.png", ".hidden", "x" * 300)
    ]
    assert given == ["a.png", "A (2).png", "a (3).png", "_CON.png", "image", "x_y_.png", "hidden", "x" * 150]


def test_long_names_in_any_script_can_be_unpacked() -> None:
    names = archive.Names()
    for letter in ("海", "é", "\N{ARTIST PALETTE}", "\ud800"):
        for _ in range(2):
            name = names.of(letter * 300 + ".png")
            assert name.endswith(("png", "(2).png"))
            assert len(name.encode()) <= 255


def test_names_hide_nothing_and_never_replace_another() -> None:
    names = archive.Names()
    assert names.of("photo\u202egnp.exe") == "photo_gnp.exe"
    assert names.of("a\x85b\u2028c\u200f.png") == "a_b_c_.png"
    # macOS stores both spellings under one name.
    assert names.of("\u00e9.png") == "\u00e9.png"
    assert names.of("e\u0301.png") == "e\u0301 (2).png"
    assert archive.safe_name("x" * 10 + "." + " " * 5 + "y" * 149) == "y" * 149
