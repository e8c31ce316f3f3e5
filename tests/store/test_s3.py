"""S3 as images need it, on servers of two kinds: one honours conditional writes, the other takes everything."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import boto3
import pytest
from botocore.config import Config
from botocore.handlers import add_expect_header
from hypothesis import given
from hypothesis import strategies as st
from loopback import Exchange, Server

from airflow_provider_jojokey.exceptions import JojoKeyStoreError
from airflow_provider_jojokey.img2.images import Image, ImageFile
from airflow_provider_jojokey.sandbox import S3Server
from airflow_provider_jojokey.store.s3 import MAX_METADATA_VALUE, ImageStore, metadata

from .buckets import BUCKET, IMPATIENT, Bucket

_numbers = itertools.count()


@pytest.fixture(params=["moto", "rclone"])
def bucket(request: pytest.FixtureRequest) -> Bucket:
    return request.getfixturevalue(request.param)  # type: ignore[no-any-return]


@pytest.fixture
def key() -> str:
    return f"{next(_numbers)}/receipt.json"


def store_of(client: Any) -> ImageStore:
    store = ImageStore("aws_default")
    vars(store)["client"] = client
    return store


def store_in(bucket: Bucket) -> ImageStore:
    return store_of(bucket.client())


def client_to(endpoint_url: str, **config: Any) -> Any:
    path_style = {"s3": {"addressing_style": "path"}}
    client = boto3.client(
        "s3",
        endpoint_url=endpoint_url,
        aws_access_key_id="someone",
        aws_secret_access_key="secret",
        region_name="us-east-1",
        config=Config(**{**path_style, **IMPATIENT, **config}),
    )
    # A server that does not say "go on" is waited for, for a second each time.
    client.meta.events.unregister("before-call.s3", add_expect_header)
    return client


class Sent:
    """The PUT requests that a client sends, told by boto3 itself."""

    def __init__(self, client: Any) -> None:
        self.headers: list[dict[str, str]] = []
        self._events = client.meta.events
        self._events.register("before-send.s3.PutObject", self._note)

    def _note(self, request: Any, **_: Any) -> None:
        self.headers.append(
            {
                name.lower(): value.decode() if isinstance(value, bytes) else str(value)
                for name, value in request.headers.items()
            }
        )

    def __enter__(self) -> Sent:
        return self

    def __exit__(self, *_: object) -> None:
        self._events.unregister("before-send.s3.PutObject", self._note)


def image_of(data: bytes, content_type: str = "image/png", path: Path | None = None) -> Image:
    file = ImageFile(path)
    file.write(data)
    return Image(0, file, content_type, 96, 64)


def error_of(call: Any) -> JojoKeyStoreError:
    with pytest.raises(JojoKeyStoreError) as caught:
        call()
    return caught.value


# --- conditional writes ------------------------------------------------------------------------------------------


def test_what_is_written_is_read_with_its_mark(bucket: Bucket, key: str) -> None:
    store = store_in(bucket)
    assert store.read(BUCKET, key) is None
    etag = store.write(BUCKET, key, b'{"a": 1}', replacing=None)
    assert store.read(BUCKET, key) == (b'{"a": 1}', etag)
    newer = store.write(BUCKET, key, b'{"a": 2}', replacing=etag)
    assert newer not in (None, etag)
    assert store.read(BUCKET, key) == (b'{"a": 2}', newer)


def test_who_writes_second_is_told(moto: Bucket, key: str) -> None:
    store = store_in(moto)
    etag = store.write(BUCKET, key, b"1", replacing=None)
    assert store.write(BUCKET, key, b"2", replacing=None) is None
    assert store.write(BUCKET, key, b"3", replacing=etag)
    assert store.write(BUCKET, key, b"4", replacing=etag) is None
    assert store.read(BUCKET, key)[0] == b"3"  # type: ignore[index]


def test_what_was_deleted_meanwhile_is_not_replaced(moto: Bucket, key: str) -> None:
    store = store_in(moto)
    etag = store.write(BUCKET, key, b"1", replacing=None)
    moto.client().delete_object(Bucket=BUCKET, Key=key)
    assert store.write(BUCKET, key, b"2", replacing=etag) is None
    assert store.read(BUCKET, key) is None


def test_a_receipt_is_stored_as_json(bucket: Bucket, key: str) -> None:
    store_in(bucket).write(BUCKET, key, b"{}", replacing=None)
    assert bucket.client().head_object(Bucket=BUCKET, Key=key)["ContentType"].startswith("application/json")


def test_whether_a_store_honours_conditions_is_found_out_once(bucket: Bucket, key: str) -> None:
    store = store_in(bucket)
    assert not store.proven
    store.write(BUCKET, key, b"{}", replacing=None)
    with Sent(store.client) as sent:
        answers = [store.honours_conditions(BUCKET, key, b"{}") for _ in range(3)]
    assert answers == [bucket.honours] * 3
    assert store.proven is bucket.honours
    assert [one.get("if-none-match") for one in sent.headers] == ["*"]
    assert store.read(BUCKET, key)[0] == b"{}"  # type: ignore[index]


def test_aws_itself_is_not_asked_whether_it_honours_conditions() -> None:
    for endpoint in ("https://s3.eu-central-1.amazonaws.com", "https://s3.cn-north-1.amazonaws.com.cn"):
        store = store_of(client_to(endpoint))
        with Sent(store.client) as sent:
            assert store.honours_conditions("posters", "fox", b"{}")
        assert sent.headers == []
        assert store.proven


def test_a_name_that_only_looks_like_aws_is_asked(moto: Bucket) -> None:
    store = store_of(client_to("http://amazonaws.com.localhost:9"))
    assert error_of(lambda: store.honours_conditions("posters", "fox", b"{}")).transient


def test_a_store_that_cannot_do_conditions_gets_none_from_then_on() -> None:
    def behave(exchange: Exchange) -> None:
        if exchange.request.headers.keys() & {"if-none-match", "if-match"}:
            exchange.answer(501, _xml("NotImplemented"))
        else:
            exchange.answer(200, ETag='"1"')

    with Server(behave) as server:
        store = store_of(client_to(server.url))
        assert store.write("posters", "fox", b"{}", replacing=None) == '"1"'
        assert store.write("posters", "fox", b"{}", replacing='"1"') == '"1"'
        assert not store.honours_conditions("posters", "fox", b"{}")
        assert len(server.requests) == 3
        assert not store.proven


def test_two_writers_that_meet_are_both_told_to_look_again() -> None:
    with Server(lambda exchange: exchange.answer(409, _xml("ConditionalRequestConflict"))) as server:
        store = store_of(client_to(server.url))
        assert store.write("posters", "fox", b"{}", replacing=None) is None


# --- what is there, what is not, and what S3 does not tell -------------------------------------------------------


def _xml(code: str) -> bytes:
    return f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()


def test_an_object_that_is_not_there_is_none(bucket: Bucket, key: str) -> None:
    store = store_in(bucket)
    assert store.read(BUCKET, key) is None
    assert store.size_of(BUCKET, key) is None


def test_an_objects_size_is_told(bucket: Bucket, key: str) -> None:
    store = store_in(bucket)
    store.write(BUCKET, key, b"12345", replacing=None)
    assert store.size_of(BUCKET, key) == 5


@pytest.mark.parametrize(
    ("status", "body", "passing", "advice"),
    [
        (403, _xml("AccessDenied"), False, "s3:ListBucket"),
        (403, _xml("InvalidAccessKeyId"), False, "access key"),
        (403, _xml("SignatureDoesNotMatch"), False, "secret key is wrong"),
        (403, _xml("RequestTimeTooSkewed"), True, "Check the AWS connection"),
        (404, _xml("NoSuchBucket"), False, "Create the bucket"),
        (404, b"<html>no such page</html>", False, "Check the AWS connection"),
        (404, b"", False, "Check the AWS connection"),
        (400, _xml("RequestTimeout"), True, "Check the AWS connection"),
        (429, _xml("TooManyRequests"), True, "Check the AWS connection"),
        (500, _xml("InternalError"), True, "Check the AWS connection"),
        (503, _xml("SlowDown"), True, "Check the AWS connection"),
        (502, b"<html>bad gateway</html>", True, "Check the AWS connection"),
        (503, b"", True, "Check the AWS connection"),
    ],
)
def test_could_not_read_is_never_there_is_none(status: int, body: bytes, passing: bool, advice: str) -> None:
    with Server(lambda exchange: exchange.answer(status, body)) as server:
        store = store_of(client_to(server.url))
        for call in (
            lambda: store.read("posters", "fox.json"),
            lambda: store.write("posters", "fox.json", b"{}", replacing=None),
        ):
            error = error_of(call)
            assert (error.transient, error.status_code) == (passing, status)
            assert advice in error.message
            assert "s3://posters/fox.json" in error.message


@pytest.mark.parametrize("status", [403, 500, 503])
def test_could_not_look_is_never_there_is_none(status: int) -> None:
    with Server(lambda exchange: exchange.answer(status)) as server:
        error = error_of(lambda: store_of(client_to(server.url)).size_of("posters", "fox.png"))
    assert error.transient is (status >= 500)


def test_an_answer_that_breaks_off_may_come_whole_later() -> None:
    def behave(exchange: Exchange) -> None:
        exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\nETag: 1\r\n\r\n{")

    with Server(behave) as server:
        assert error_of(lambda: store_of(client_to(server.url)).read("posters", "fox.json")).transient


def test_a_bucket_that_does_not_exist_says_so(moto: Bucket) -> None:
    store = store_in(moto)
    for call in (
        lambda: store.read("nowhere", "a"),
        lambda: store.write("nowhere", "a", b"", replacing=None),
    ):
        error = error_of(call)
        assert not error.transient
        assert "Create the bucket, or correct s3_bucket" in error.message


def test_wrong_keys_say_so(rclone: Bucket) -> None:
    for wrong, advice in (
        (replace(rclone, access_key="nobody"), "access key"),
        (replace(rclone, secret_key="wrong"), "secret key"),
    ):
        error = error_of(lambda wrong=wrong: store_in(wrong).read(BUCKET, "fox.json"))
        assert not error.transient
        assert advice in error.message
        assert rclone.secret_key not in error.message


def test_an_endpoint_where_nobody_answers_may_answer_later() -> None:
    with Server(lambda exchange: None) as server:
        gone = server.url
    error = error_of(lambda: store_of(client_to(gone)).read("posters", "fox.json"))
    assert error.transient
    assert "endpoint" in error.message


def test_a_bucket_name_that_is_none_is_not_tried_again(moto: Bucket) -> None:
    error = error_of(lambda: store_in(moto).read("no bucket!", "fox.json"))
    assert not error.transient


@pytest.fixture
def _no_aws_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))


@pytest.mark.usefixtures("_no_aws_at_all")
def test_without_credentials_it_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    extra = {"region_name": "us-east-1"}
    monkeypatch.setenv("AIRFLOW_CONN_AWS_EMPTY", json.dumps({"conn_type": "aws", "extra": extra}))
    error = error_of(lambda: ImageStore("aws_empty").read("posters", "fox.json"))
    assert not error.transient
    assert "NoCredentials" in error.message
    assert "Check the AWS connection" in error.message


# --- images ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content_type", ["image/png", "image/jpeg", "image/webp"])
def test_an_image_is_stored_whole_with_its_type_and_labels(
    bucket: Bucket, key: str, png: bytes, content_type: str, tmp_path: Path
) -> None:
    labels = {
        "dag-id": "posters",
        "run-id": "manual__2026-07-30T12:00:00+00:00",
        "task-id": "海报",
        "model": "",
    }
    image = image_of(png, content_type, tmp_path / "0.part")
    store_in(bucket).put_image(BUCKET, key, image, labels)
    image.file.close()
    stored = bucket.client().get_object(Bucket=BUCKET, Key=key)
    assert stored["Body"].read() == png
    assert stored["ContentType"] == content_type
    kept = {name.lower(): value for name, value in stored["Metadata"].items() if name.lower() in labels}
    assert {name: unquote(value) for name, value in kept.items()} == {
        name: value for name, value in labels.items() if value
    }


def test_an_images_checksum_is_sent_for_s3_to_compare(moto: Bucket, key: str, png: bytes) -> None:
    store = store_in(moto)
    with Sent(store.client) as sent:
        store.put_image(BUCKET, key, image_of(png), {})
    digest = base64.b64encode(hashlib.sha256(png).digest()).decode()
    assert [one.get("x-amz-checksum-sha256") for one in sent.headers] == [digest]


def test_a_store_that_does_not_know_checksums_is_sent_none(rclone: Bucket, key: str, png: bytes) -> None:
    assert rclone.config["request_checksum_calculation"] == "when_required"
    store = store_in(rclone)
    with Sent(store.client) as sent:
        store.put_image(BUCKET, key, image_of(png), {})
        store.write(BUCKET, f"{key}.json", b"{}", replacing=None)
    assert len(sent.headers) == 2
    assert not [name for one in sent.headers for name in one if "checksum" in name or "trailer" in name]


def test_an_image_can_be_stored_again(moto: Bucket, key: str, png: bytes) -> None:
    store, image = store_in(moto), image_of(png)
    for _ in range(2):
        store.put_image(BUCKET, key, image, {})
        assert store.size_of(BUCKET, key) == len(png)


@pytest.mark.parametrize("value", ["two  blanks", " around ", "tab\tand\nline", "50 % off", "a,b;c=d", "é"])
def test_unusual_labels_are_stored_where_signatures_are_checked(rclone: Bucket, key: str, value: str) -> None:
    store_in(rclone).put_image(BUCKET, key, image_of(b"x"), {"task-id": value})
    stored = rclone.client().head_object(Bucket=BUCKET, Key=key)["Metadata"]
    found = {name.lower(): unquote(kept) for name, kept in stored.items()}["task-id"]
    assert found.split() == value.split()


EIGHT = ("dag-id", "run-id", "task-id", "map-index", "model", "size", "request-id", "another")


@given(st.fixed_dictionaries({name: st.text(st.characters(), max_size=400) for name in EIGHT}))
def test_labels_are_ascii_and_never_too_long_for_s3(labels: dict[str, str]) -> None:
    kept = metadata(labels)
    assert sum(len(name) + len(value) for name, value in kept.items()) < 2048
    for name, value in kept.items():
        assert value.isascii()
        assert value.isprintable()
        assert value == value.strip() != ""
        assert len(value) <= MAX_METADATA_VALUE
        whole = labels[name].encode(errors="replace").decode()
        if value.endswith("...") and not whole.endswith("..."):
            assert whole.strip(" ").encode().startswith(_bytes_of(value[:-3]))
        elif len(value) < MAX_METADATA_VALUE:
            assert unquote(value) == whole.strip(" ")


def _bytes_of(quoted: str) -> bytes:
    from urllib.parse import unquote_to_bytes

    return unquote_to_bytes(quoted)


def test_the_longest_labels_are_taken(moto: Bucket, key: str) -> None:
    labels = dict.fromkeys(EIGHT, "狐" * 400)
    store_in(moto).put_image(BUCKET, key, image_of(b"x"), labels)
    stored = moto.client().head_object(Bucket=BUCKET, Key=key)["Metadata"]
    assert stored.keys() == set(EIGHT)
    assert all(
        unquote(value.removesuffix("...").rpartition("%E7")[0]).strip("狐") == "" for value in stored.values()
    )


# --- an outage ---------------------------------------------------------------------------------------------------


@pytest.fixture
def stopped(tmp_path: Path) -> Iterator[S3Server]:
    with S3Server(tmp_path / "objects") as server:
        server.create_bucket(BUCKET)
        server.kill()
        yield server


def test_an_image_goes_through_once_the_store_is_back(stopped: S3Server, png: bytes) -> None:
    from .buckets import bucket_of

    store, image = store_in(bucket_of(stopped)), image_of(png)
    assert error_of(lambda: store.put_image(BUCKET, "fox.png", image, {})).transient
    stopped.start()
    store.put_image(BUCKET, "fox.png", image, {})
    assert (stopped.directory / BUCKET / "fox.png").read_bytes() == png
