"""An S3 server that does not respond, or stops in the middle: what the API server reads from it."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
from cachetools import TTLCache

from airflow_provider_jojokey.exceptions import JojoKeyStoreError
from airflow_provider_jojokey.plugins import objects
from airflow_provider_jojokey.results import StoredImage
from tests.support.api_server import png_image, stored_image
from tests.support.loopback import Exchange, Server

DATA = png_image()
Connect = Callable[[Server], str]
Read = Callable[..., None]


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Connect:
    """A function that makes an AWS connection to a server, and returns its ID."""
    for name in ("CONNECT_TIMEOUT", "READ_TIMEOUT"):
        monkeypatch.setattr(objects, name, 0.2)

    def connect(server: Server) -> str:
        conn_id = f"store_{uuid.uuid4().hex[:8]}"
        extra = {"endpoint_url": server.url, "config_kwargs": {"s3": {"addressing_style": "path"}}}
        value = {"conn_type": "aws", "login": "AKIA", "password": "x", "extra": extra}
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(value))
        return conn_id

    return connect


@pytest.fixture
def silent() -> Iterator[Server]:
    """A server that accepts requests and never responds."""
    ended = threading.Event()
    with Server(lambda exchange: ended.wait()) as server:
        yield server
        ended.set()


def read_image(conn_id: str, key: str = "x.png", bucket: str = "posters") -> None:
    objects.fetch(StoredImage.from_json(stored_image(DATA, key, bucket)), conn_id)[0].close()


def read_receipt(conn_id: str, name: str = "x", bucket: str = "posters") -> None:
    objects.document(f"s3://{bucket}/_jojokey/{name}.json", conn_id, suffix=".json")


def read_manifest(conn_id: str, name: str = "x", bucket: str = "posters") -> None:
    objects.lines(f"s3://{bucket}/_jojokey/{name}.jsonl", conn_id, suffix=".jsonl", start=0, count=9)


def error_of(read: Read, *args: str, **more: str) -> str:
    with pytest.raises(JojoKeyStoreError) as caught:
        read(*args, **more)
    assert caught.value.transient
    return str(caught.value.what)


READS = (read_image, read_receipt, read_manifest)


@pytest.mark.parametrize("first", READS)
@pytest.mark.parametrize("second", READS)
def test_bucket_that_kept_one_waiting_is_not_asked_for_a_while(
    airflow: object,
    connect: Connect,
    silent: Server,
    monkeypatch: pytest.MonkeyPatch,
    first: Read,
    second: Read,
) -> None:
    now = [0.0]
    monkeypatch.setattr(objects, "SLOW", 0.1)
    monkeypatch.setattr(objects, "_SILENT", TTLCache(9, objects.SKIPPED_FOR, timer=lambda: now[0]))
    conn_id, other = connect(silent), connect(silent)

    assert error_of(first, conn_id).startswith("S3 did not respond to the request to read s3://posters/")
    asked = len(silent.requests)
    assert error_of(second, conn_id, "next").startswith(
        "S3 did not respond to earlier requests, so s3://posters/"
    )
    assert len(silent.requests) == asked

    # Another bucket or connection may be that of another server.
    assert "the request to read s3://other/" in error_of(second, conn_id, bucket="other")
    assert "the request to read s3://posters/" in error_of(second, other)
    now[0] = objects.SKIPPED_FOR + 1
    assert "the request to read s3://posters/" in error_of(second, conn_id)


@pytest.mark.parametrize("read", READS)
def test_bucket_that_fails_at_once_is_asked_again(airflow: object, connect: Connect, read: Read) -> None:
    with Server(lambda exchange: exchange.reset()) as server:
        conn_id = connect(server)
        asked: list[int] = []
        for _ in range(3):
            assert "the request to read s3://posters/" in error_of(read, conn_id)
            asked.append(len(server.requests))
    assert asked == sorted(set(asked))


@pytest.mark.parametrize("read", READS)
def test_response_that_breaks_off_is_an_error_of_s3(airflow: object, connect: Connect, read: Read) -> None:
    def cut(exchange: Exchange) -> None:
        exchange.send(f"HTTP/1.1 200 OK\r\nContent-Length: {len(DATA)}\r\n\r\n".encode() + DATA[:60])

    with Server(cut) as server:
        assert "read s3://posters/" in error_of(read, connect(server))


@pytest.mark.parametrize("read", READS)
def test_slow_download_that_breaks_off_hides_no_others(
    airflow: object, connect: Connect, monkeypatch: pytest.MonkeyPatch, read: Read
) -> None:
    now = [0.0]
    monkeypatch.setattr(objects, "time", SimpleNamespace(monotonic=lambda: now[0]))
    data = DATA if read is read_image else b'{"prompt": "a red fox"}\n' * 9

    def cut(exchange: Exchange) -> None:
        now[0] += objects.SLOW + 1
        exchange.send(f"HTTP/1.1 200 OK\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data[:60])

    with Server(cut) as server:
        conn_id = connect(server)
        for name in ("x", "next"):
            assert "to earlier requests" not in error_of(read, conn_id, name)
