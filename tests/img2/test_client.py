"""The client against real servers: the sandbox gateway, and raw servers that misbehave."""

from __future__ import annotations

import base64
import gc
import gzip
import hashlib
import json
import logging
import os
import shutil
import signal
import socket
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

import airflow_provider_jojokey
from airflow_provider_jojokey.img2 import (
    Client,
    ImageRequest,
    Img2Error,
    Kind,
    addresses,
    download,
    estimate,
    final_response,
    images,
    receive,
    transport,
)
from airflow_provider_jojokey.img2 import (
    client as client_module,
)
from airflow_provider_jojokey.img2.estimate import expected_seconds
from airflow_provider_jojokey.img2.images import ImageFile
from airflow_provider_jojokey.img2.transport import open_session
from airflow_provider_jojokey.sandbox import CASES, Gateway
from tests.support.loopback import Authority, Exchange, Server, proxy, socks_proxy
from tests.support.patience import PATIENCE

TOKEN = "sk-only-for-tests-0123456789"
FOX = ImageRequest("a fox")


def request_for(directive: str, **fields: Any) -> ImageRequest:
    return ImageRequest(f"a fox [sandbox: {directive}]", **fields)


def bytes_of(image: images.Image) -> bytes:
    image.file.file.seek(0)
    return image.file.file.read()


def error_of(call: Callable[[], Any]) -> Img2Error:
    with pytest.raises(Img2Error) as caught:
        call()
    return caught.value


@pytest.fixture
def sandbox_client(gateway: Gateway) -> Iterator[Client]:
    with Client(gateway.token, gateway.url, read_timeout=10) as client:
        yield client


@pytest.fixture
def no_retry_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "WAIT", 0.0)


@contextmanager
def raw_server(behave: Callable[[Exchange], object], **options: Any) -> Iterator[tuple[Server, Client]]:
    with Server(behave) as server, Client(TOKEN, server.url, **{"read_timeout": 10, **options}) as client:
        yield server, client


def response_body(*encoded_images: bytes, **fields: Any) -> bytes:
    data = [{"b64_json": base64.b64encode(image).decode()} for image in encoded_images]
    return json.dumps({"created": 1, "data": data, **fields}).encode()


# --- requests --------------------------------------------------------------------------------------------------


def test_request_follows_api_documentation(gateway: Gateway, sandbox_client: Client) -> None:
    sandbox_client.generate(
        ImageRequest("一张海报", size="1536x1024", quality="low", extra_body={"user": "me"})
    ).close()

    (sent,) = gateway.requests
    assert (sent.method, sent.path) == ("POST", "/v1/images/generations")
    assert sent.body == {
        "model": "gpt-image-2",
        "prompt": "一张海报",
        "size": "1536x1024",
        "quality": "low",
        "n": 1,
        "response_format": "b64_json",
        "user": "me",
    }
    assert sent.headers["content-type"] == "application/json"
    assert sent.headers["accept"] == "application/json"
    assert sent.headers["accept-encoding"] == "identity"
    assert sent.headers["user-agent"].startswith(
        f"airflow-provider-jojokey/{airflow_provider_jojokey.__version__} "
    )


def test_token_is_sent_as_bearer() -> None:
    with raw_server(lambda exchange: exchange.answer(200)) as (server, client):
        error_of(lambda: client.generate(FOX))
    assert server.requests[0].headers["authorization"] == f"Bearer {TOKEN}"


def test_stream_request_accepts_event_stream(gateway: Gateway, sandbox_client: Client) -> None:
    sandbox_client.generate(ImageRequest("a fox", stream=True)).close()
    assert "text/event-stream" in gateway.requests[0].headers["accept"]
    assert gateway.requests[0].body["stream"] is True


def test_generation_has_image_and_metadata(gateway: Gateway, sandbox_client: Client, png: bytes) -> None:
    generation = sandbox_client.generate(FOX)

    (image,) = generation.images
    assert bytes_of(image) == png
    assert (image.index, image.content_type, image.extension, image.width, image.height) == (
        0,
        "image/png",
        "png",
        96,
        64,
    )
    assert image.file.size == len(png)
    assert image.file.sha256 == hashlib.sha256(png).hexdigest()
    (billed,) = gateway.charges
    assert generation.usage is not None
    assert generation.usage["total_tokens"] == billed.total_tokens
    assert generation.request_id == billed.request_id
    assert generation.created == int(billed.started)
    assert (generation.model, generation.size, generation.quality) == ("gpt-image-2", "1024x1024", "low")
    assert 0 < generation.seconds < 10
    generation.close()
    assert image.file.file.closed


def test_image_can_be_saved(sandbox_client: Client, png: bytes, tmp_path: Path) -> None:
    generation = sandbox_client.generate(FOX)
    generation.images[0].save(tmp_path / "fox.png")
    generation.images[0].save(str(tmp_path / "again.png"))
    generation.close()
    assert (tmp_path / "fox.png").read_bytes() == (tmp_path / "again.png").read_bytes() == png


def test_caller_can_choose_file_names(sandbox_client: Client, png: bytes, tmp_path: Path) -> None:
    generation = sandbox_client.generate(
        ImageRequest("a fox", n=3), lambda index: ImageFile(tmp_path / f"{index}.part")
    )
    generation.close()
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["0.image", "1.image", "2.image"]
    assert all(path.read_bytes() == png for path in tmp_path.iterdir())


def test_several_images_are_indexed() -> None:
    encoded_images = [small_png(width) for width in (16, 32, 48)]
    with raw_server(lambda exchange: exchange.answer(200, response_body(*encoded_images))) as (_, client):
        generation = client.generate(ImageRequest("a fox", n=3))
    assert [(image.index, image.width) for image in generation.images] == [(0, 16), (1, 32), (2, 48)]
    generation.close()


def test_metadata_comes_from_response_if_present() -> None:
    body = response_body(
        small_png(), model="gpt-image-2-2026", size="auto", quality="high\n", created="soon", usage=[]
    )
    with raw_server(lambda exchange: exchange.answer(200, body)) as (_, client):
        generation = client.generate(FOX)
    assert (generation.model, generation.size, generation.quality) == ("gpt-image-2-2026", "auto", "high")
    assert generation.created is None
    assert generation.usage is None
    assert generation.request_id is None
    generation.close()


def test_unknown_names_are_sent_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with raw_server(lambda exchange: exchange.answer(200, response_body(small_png()))) as (server, client):
        client.generate(ImageRequest("a fox", model="gpt-image-3", quality="ultra")).close()
    assert "gpt-image-3" in caplog.text
    assert "ultra" in caplog.text
    assert json.loads(server.requests[0].body)["quality"] == "ultra"


@pytest.mark.parametrize(
    ("status", "kind", "billed"),
    [
        *((status, Kind.BASE_URL, "no") for status in (301, 302, 307, 308)),
        *((status, Kind.UNKNOWN_OUTCOME, "unknown") for status in (300, 303, 304, 305, 399)),
    ],
)
@pytest.mark.parametrize("marks", [{}, {"X_Oneapi_Request_Id": "20261128"}], ids=["unmarked", "gateway"])
def test_paid_request_is_never_redirected(
    status: int, kind: Kind, billed: str, marks: dict[str, str]
) -> None:
    with Server(lambda exchange: exchange.answer(200, response_body(small_png()))) as elsewhere:
        redirect = {"Location": f"{elsewhere.url}/v1", **marks}
        with raw_server(lambda exchange: exchange.answer(status, **redirect)) as (server, client):
            error = error_of(lambda: client.generate(FOX))
        assert elsewhere.connections == 0
    assert len(server.requests) == 1
    assert (error.kind, error.billed) == (kind, billed)
    assert "redirect" in str(error)


def test_idle_connection_uses_tcp_keepalive() -> None:
    options: list[int] = []

    def record_options(exchange: Exchange) -> None:
        adapter = client.session.get_adapter(server.url)
        (sock,) = adapter._live.values()  # type: ignore[attr-defined]
        options.append(sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
        options.append(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE))
        exchange.answer(200)

    with raw_server(record_options) as (server, client):
        error_of(lambda: client.generate(FOX))
    assert options[0] == 1
    assert 0 < options[1] <= 60


def test_each_request_opens_its_own_connection(sandbox_client: Client) -> None:
    def behave(exchange: Exchange) -> None:
        # This server keeps its connections open, and does not announce that it closes them.
        body = b'{"data":[]}' if exchange.request.method == "GET" else response_body(small_png())
        exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        exchange.wait_until_gone()

    with raw_server(behave) as (server, client):
        client.list_models()
        client.generate(FOX).close()
        client.list_models()
        client.generate(FOX).close()
        assert server.connections == 4
        assert len(server.requests) == 4


# --- response_format ----------------------------------------------------------------------------------------------


def test_rejected_response_format_is_dropped_and_resent(png: bytes) -> None:
    with (
        Gateway(image=png, response_format="rejected") as gateway,
        Client(gateway.token, gateway.url) as client,
    ):
        client.generate(FOX).close()
        assert ["response_format" in request.body for request in gateway.requests] == [True, False]
        with_it, without_it = (request.body for request in gateway.requests)
        assert with_it == {**without_it, "response_format": "b64_json"}

        client.generate(FOX).close()
        assert ["response_format" in request.body for request in gateway.requests] == [True, False, False]
        assert len(gateway.charges) == 2


def test_second_rejection_is_final() -> None:
    body = json.dumps(
        {"error": {"message": "Unknown parameter: 'response_format'.", "code": "unknown_parameter"}}
    )
    with raw_server(lambda exchange: exchange.answer(400, body.encode())) as (server, client):
        error = error_of(lambda: client.generate(FOX))
        assert len(server.requests) == 2
    assert error.kind is Kind.REQUEST


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (400, "Unknown parameter: 'quality'."),
        (500, "response_format"),
        (503, "response_format"),
        (401, "response_format"),
    ],
)
def test_other_rejections_are_not_resent(status: int, message: str) -> None:
    body = json.dumps({"error": {"message": message, "code": ""}}).encode()
    with raw_server(lambda exchange: exchange.answer(status, body)) as (server, client):
        error_of(lambda: client.generate(FOX))
        assert len(server.requests) == 1


# --- callbacks ------------------------------------------------------------------------------------------------------


def test_before_send_is_called_before_each_post(png: bytes) -> None:
    posts: list[int] = []
    with (
        Gateway(image=png, response_format="rejected") as gateway,
        Client(gateway.token, gateway.url) as client,
    ):
        client.generate(FOX, before_send=lambda: posts.append(len(gateway.requests))).close()
    assert posts == [0, 1]


def test_nothing_is_sent_if_before_send_raises(gateway: Gateway, sandbox_client: Client) -> None:
    def refuse() -> None:
        raise KeyError("the disk is full")

    with pytest.raises(KeyError, match="the disk is full"):
        sandbox_client.generate(FOX, before_send=refuse)
    assert not gateway.requests


def test_before_send_can_prevent_second_post(png: bytes) -> None:
    outcomes = iter([None, KeyError("stop")])

    def once() -> None:
        if (error := next(outcomes)) is not None:
            raise error

    with (
        Gateway(image=png, response_format="rejected") as gateway,
        Client(gateway.token, gateway.url) as client,
    ):
        with pytest.raises(KeyError):
            client.generate(FOX, before_send=once)
        assert len(gateway.requests) == 1


def test_request_id_is_reported_before_body_arrives(gateway: Gateway) -> None:
    with Client(gateway.token, gateway.url, read_timeout=0.5) as client:
        facts: list[tuple[str, str]] = []
        error_of(lambda: client.generate(request_for("stalls"), on_fact=lambda *fact: facts.append(fact)))
    assert facts == [("request_id", gateway.settlements[0].request_id)]


def test_link_is_reported_before_download(gateway: Gateway, sandbox_client: Client) -> None:
    facts: dict[str, str] = {}

    def on_fact(name: str, value: str) -> None:
        facts[name] = value
        if name == "link":
            assert not gateway.fetches

    sandbox_client.generate(request_for("url_reply"), on_fact=on_fact).close()
    assert facts["link"].startswith(f"{gateway.url}/sandbox/images/")
    assert len(gateway.fetches) == 1


def test_lost_links_are_attributes_of_error_not_text() -> None:
    body = json.dumps({"data": [{"url": "https://127.0.0.1:9/fox.png?Signature=secret"}]}).encode()
    with raw_server(lambda exchange: exchange.answer(200, body)) as (_, client):
        error = error_of(lambda: client.generate(FOX))
    assert error.links == ["https://127.0.0.1:9/fox.png?Signature=secret"]
    assert "secret" not in str(error)


def test_decoding_holds_a_slot(png: bytes) -> None:
    class Slots:
        held = 0

        def __enter__(self) -> None:
            self.held += 1

        def __exit__(self, *_: object) -> None:
            pass

    slots = Slots()
    with Gateway(image=png) as gateway, Client(gateway.token, gateway.url, decode_slots=slots) as client:
        client.generate(FOX).close()
    assert slots.held >= 1


# --- response framing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [case.name for case in CASES.values() if case.good])
def test_every_successful_response_yields_images(
    gateway: Gateway, sandbox_client: Client, png: bytes, case: str
) -> None:
    generation = sandbox_client.generate(request_for(case, n=2))
    assert [bytes_of(image) for image in generation.images] == [png, png]
    assert len(gateway.requests) == 1
    generation.close()


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
def test_every_http_framing_is_supported(sandbox_client: Client, png: bytes, framing: str) -> None:
    generation = sandbox_client.generate(request_for(f"ok framing={framing} drip=0.05"))
    assert bytes_of(generation.images[0]) == png
    generation.close()


def test_compressed_response_in_small_chunks_is_decoded() -> None:
    body = gzip.compress(response_body(*[small_png(64)] * 3))

    def behave(exchange: Exchange) -> None:
        exchange.send(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n")
        for start in range(0, len(body), 7):
            piece = body[start : start + 7]
            exchange.send(b"%x\r\n%s\r\n" % (len(piece), piece))
        exchange.send(b"0\r\n\r\n")

    with raw_server(behave) as (_, client):
        generation = client.generate(FOX)
    assert [bytes_of(image) for image in generation.images] == [small_png(64)] * 3
    generation.close()


def test_truncated_response_is_described_in_plain_words() -> None:
    piece = response_body(small_png(64))[:-100]

    def behave(exchange: Exchange) -> None:
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        exchange.send(head + b"%x\r\n%s\r\n" % (len(piece), piece))

    with raw_server(behave) as (_, client), pytest.raises(Img2Error) as caught:
        client.generate(FOX)
    assert "it was interrupted: the connection closed in the middle" in str(caught.value)
    assert caught.value.billed == "yes"


def test_truncated_compressed_response_is_rejected() -> None:
    body = gzip.compress(response_body(small_png(64)))

    def behave(exchange: Exchange) -> None:
        exchange.send(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nConnection: close\r\n\r\n" + body[:-100])

    with raw_server(behave) as (_, client):
        error = error_of(lambda: client.generate(FOX))
    assert (error.kind, error.billed) == (Kind.REPLY, "yes")


def test_image_larger_than_a_chunk_is_complete(png: bytes) -> None:
    large = png + os.urandom(3_000_000)
    with raw_server(lambda exchange: exchange.answer(200, response_body(large, large))) as (_, client):
        generation = client.generate(FOX)
    assert [image.file.sha256 for image in generation.images] == [hashlib.sha256(large).hexdigest()] * 2
    generation.close()


def test_type_and_size_come_from_image_not_request() -> None:
    with raw_server(
        lambda exchange: exchange.answer(200, response_body(small_png(32, "WEBP"), size="9x9"))
    ) as (
        _,
        client,
    ):
        generation = client.generate(ImageRequest("a fox", output_format="png"))
    assert (generation.images[0].content_type, generation.images[0].width) == ("image/webp", 32)
    generation.close()


# --- unusable responses -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_retry_delay")
@pytest.mark.parametrize(
    ("case", "kind", "billed"),
    [
        ("error_in_200", Kind.UNKNOWN_OUTCOME, "unknown"),
        ("html_in_200", Kind.BASE_URL, "no"),
        ("empty_body", Kind.REPLY, "yes"),
        ("no_data", Kind.REPLY, "yes"),
        ("null_data", Kind.REPLY, "yes"),
        ("empty_data", Kind.REPLY, "yes"),
        ("empty_b64", Kind.REPLY, "yes"),
        ("bad_base64", Kind.REPLY, "yes"),
        ("not_an_image", Kind.REPLY, "yes"),
        ("url_missing", Kind.REPLY, "yes"),
        ("url_elsewhere", Kind.REPLY, "yes"),
        ("truncated_mid_image", Kind.REPLY, "yes"),
        ("truncated truncate_after=0", Kind.REPLY, "yes"),
        ("reset", Kind.UNKNOWN_OUTCOME, "unknown"),
        ("close", Kind.UNKNOWN_OUTCOME, "unknown"),
    ],
)
def test_200_without_images_is_an_error(
    gateway: Gateway, sandbox_client: Client, case: str, kind: Kind, billed: str
) -> None:
    error = error_of(lambda: sandbox_client.generate(request_for(case)))
    assert (error.kind, error.billed) == (kind, billed)
    assert len(gateway.requests) == 1
    if case not in ("reset", "close"):
        assert error.status_code == 200
        assert error.request_id == gateway.requests[0].request_id
    assert TOKEN not in str(error)


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("end", ["fin", "rst"])
@pytest.mark.parametrize("case", ["truncated", "truncated_mid_image"])
def test_complete_images_of_truncated_response_are_kept(
    sandbox_client: Client, png: bytes, case: str, end: str, framing: str
) -> None:
    error = error_of(
        lambda: sandbox_client.generate(
            request_for(f"{case} truncate_after=2 end={end} framing={framing}", n=4)
        )
    )
    assert (error.kind, error.billed) == (Kind.REPLY, "yes")
    assert [(image.index, bytes_of(image)) for image in error.salvaged] == [(0, png), (1, png)]
    for image in error.salvaged:
        image.file.close()


def test_broken_image_does_not_lose_other_images(png: bytes) -> None:
    with raw_server(lambda exchange: exchange.answer(200, response_body(png, b"not an image", png))) as (
        _,
        client,
    ):
        generation = client.generate(ImageRequest("a fox", n=3))
    assert [(image.index, bytes_of(image)) for image in generation.images] == [(0, png), (2, png)]
    assert "2 of 3 requested images arrived: image 2 is not a PNG" in generation.warnings[0]
    generation.close()


def test_truncated_image_does_not_lose_earlier_images(png: bytes) -> None:
    with raw_server(lambda exchange: exchange.answer(200, response_body(png, png)[:-30])) as (_, client):
        error = error_of(lambda: client.generate(ImageRequest("a fox", n=2)))
    assert [bytes_of(image) for image in error.salvaged] == [png]
    error.salvaged[0].file.close()


@pytest.mark.usefixtures("no_retry_delay")
def test_broken_link_does_not_lose_other_linked_images(gateway: Gateway, png: bytes) -> None:
    def behave(exchange: Exchange) -> None:
        if exchange.request.target == "/fox.png":
            exchange.answer(200, png)
        elif exchange.request.method == "GET":
            exchange.answer(404)
        else:
            data = [{"url": f"{server.url}/fox.png"}, {"url": f"{server.url}/gone.png"}]
            exchange.answer(200, json.dumps({"data": data}).encode())

    with raw_server(behave) as (server, client):
        error = error_of(lambda: client.generate(FOX))
    (image,) = error.salvaged
    assert (image.index, bytes_of(image)) == (0, png)
    image.file.close()


def test_duplicate_key_in_broken_response_is_handled(png: bytes) -> None:
    encoded = base64.b64encode(png)
    body = b'{"data":[{"b64_json":"%s","b64_json":"%s"},{}]}' % (encoded, encoded)
    with raw_server(lambda exchange: exchange.answer(200, body)) as (_, client):
        generation = client.generate(FOX)
    assert [bytes_of(image) for image in generation.images] == [png]
    generation.close()


@pytest.mark.parametrize(
    "body",
    [
        b'{"data":[{"b64_json":"QUJD"},{"b64_json":"QUJ',
        b'{"data":[{"b64_json":"QUJD"}]',
        b'{"data":[{"b64_json":"QUJD"}],"error":{"message":"no"}}',
        b'{"data":[{"b64_json":"QUJD"}]}',
        b'[{"b64_json":"QUJD"}]',
    ],
)
def test_files_of_unusable_response_are_closed(body: bytes, tmp_path: Path) -> None:
    files: list[ImageFile] = []

    def open_file(index: int) -> ImageFile:
        files.append(ImageFile(tmp_path / f"{index}.part"))
        return files[-1]

    with raw_server(lambda exchange: exchange.answer(200, body)) as (_, client):
        error = error_of(lambda: client.generate(FOX, open_file))
    assert error.salvaged == []
    assert all(file.file.closed for file in files)


@pytest.mark.usefixtures("no_retry_delay")
def test_every_failure_closes_files_and_connections(sandbox_client: Client, gateway: Gateway) -> None:
    gc.collect()  # files that other tests left open
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", ResourceWarning)
        for case in (
            "ok",
            "bad_base64",
            "truncated_mid_image",
            "not_an_image",
            "url_missing",
            "url_reply",
            "close",
            "no_channel",
        ):
            try:
                sandbox_client.generate(request_for(case)).close()
            except Img2Error:
                pass
        gc.collect()
    assert [str(warning.message) for warning in seen if issubclass(warning.category, ResourceWarning)] == []


FULL = Path("/dev/full")
needs_full_disk = pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")


class OnFullDisk(ImageFile):
    def write(self, data: bytes) -> None:
        with FULL.open("wb", buffering=0) as disk:
            disk.write(data)


@needs_full_disk
def test_full_disk_differs_from_broken_response() -> None:
    with raw_server(lambda exchange: exchange.answer(200, response_body(small_png()))) as (_, client):
        error = error_of(lambda: client.generate(FOX, lambda _: OnFullDisk()))
    assert (error.kind, error.billed) == (Kind.REPLY, "yes")
    assert "disk: No space left on device" in str(error)


@pytest.mark.parametrize("how", ["base64", "link"])
def test_image_over_size_limit_is_rejected(monkeypatch: pytest.MonkeyPatch, how: str, png: bytes) -> None:
    monkeypatch.setattr(images, "MAX_IMAGE_BYTES", 1000)

    def behave(exchange: Exchange) -> None:
        if exchange.request.method == "GET":
            exchange.answer(200, png)
        elif how == "link":
            exchange.answer(200, json.dumps({"data": [{"url": f"{server.url}/fox.png"}]}).encode())
        else:
            exchange.answer(200, response_body(png))

    with raw_server(behave) as (server, client):
        error = error_of(lambda: client.generate(FOX))
    assert (error.kind, error.billed) == (Kind.REPLY, "yes")
    assert "larger than 1,000 bytes" in str(error)


@pytest.mark.usefixtures("no_retry_delay")
@pytest.mark.parametrize("token", [TOKEN, "jojokey_0123456789abcdef"])
def test_facts_of_a_response_contain_no_token(token: str) -> None:
    facts = dict.fromkeys(("model", "size", "quality"), f"a {token}")
    body = response_body(small_png())[:-1] + b"," + json.dumps(facts).encode()[1:]
    with (
        Server(lambda exchange: exchange.answer(200, body, X_Oneapi_Request_Id=token)) as server,
        Client(token, server.url) as client,
    ):
        generation = client.generate(FOX)
    shown = (generation.model, generation.size, generation.quality, generation.request_id)
    assert token not in " ".join(map(str, shown))
    generation.close()


def test_error_contains_no_image_data_and_no_token() -> None:
    secret = base64.b64encode(os.urandom(60)).decode()
    responses = [
        (500, json.dumps({"error": {"message": f"{TOKEN} {secret}", "code": TOKEN}})),
        (200, json.dumps({"error": {"message": f"{TOKEN} {secret}"}})),
        (400, f"<html><title>{TOKEN} {secret}</title>"),
        (502, f"{TOKEN} {secret}"),
        (200, f'{{"data":[{{"b64_json":"{secret}!"}}]}}'),
        (200, f'{{"data":[{{"url":"https://{TOKEN}.invalid/?{secret}"}}]}}'),
    ]
    for status, body in responses:
        headers = {"X_Oneapi_Request_Id": TOKEN, "CF_RAY": TOKEN}
        with raw_server(
            lambda exchange, s=status, b=body, h=headers: exchange.answer(s, b.encode(), **h)
        ) as (
            _,
            client,
        ):
            error = error_of(lambda: client.generate(FOX))
        for text in (str(error), repr(error), error.request_id, error.cf_ray, error.code, error.detail):
            assert TOKEN[3:] not in (text or "")
            assert secret[:40] not in (text or "")


def test_repr_hides_token(sandbox_client: Client, gateway: Gateway) -> None:
    for holder in (sandbox_client, sandbox_client.session, sandbox_client.session.auth):
        assert gateway.token not in repr(holder)


# --- links --------------------------------------------------------------------------------------------------------


def link_to(url: str) -> Callable[[Exchange], None]:
    return lambda exchange: exchange.answer(200, json.dumps({"data": [{"url": url}]}).encode())


def test_linked_image_is_downloaded_without_token(
    gateway: Gateway, sandbox_client: Client, png: bytes
) -> None:
    generation = sandbox_client.generate(request_for("url_reply"))
    assert bytes_of(generation.images[0]) == png
    (fetch,) = gateway.fetches
    assert not fetch.authorised
    generation.close()


def test_netrc_credentials_are_not_sent_to_image_host(
    sandbox_client: Client, gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("default login joe password s3cret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    sandbox_client.generate(request_for("url_reply")).close()
    assert not gateway.fetches[0].authorised


def forbidden_links(port: int) -> list[str]:
    return [
        f"http://127.0.0.1:{port}/fox.png",
        f"https://127.0.0.1:{port}/fox.png",
        f"https://127.1:{port}/fox.png",
        f"https://2130706433:{port}/fox.png",
        f"https://localhost:{port}/fox.png",
        f"https://[::1]:{port}/fox.png",
        f"https://[::ffff:127.0.0.1]:{port}/fox.png",
        f"https://[::ffff:7f00:1]:{port}/fox.png",
        f"https://joe:secret@example.com:{port}/fox.png",
        f"https://joe@example.com:{port}/fox.png",
        f"//127.0.0.1:{port}/fox.png",
        f"ftp://127.0.0.1:{port}/fox.png",
        f"file:///etc/passwd?{port}",
        "https://10.0.0.1/fox.png",
        "https://192.168.1.1/fox.png",
        "https://172.16.0.1/fox.png",
        "https://169.254.169.254/latest/meta-data/",
        "http://169.254.169.254/latest/meta-data/",
        "https://100.64.0.1/fox.png",
        "https://0.0.0.0/fox.png",
        "https://224.0.0.1/fox.png",
        "https://[fe80::1]/fox.png",
        "https://[fd00::1]/fox.png",
        "https://[2002:7f00:1::]/fox.png",
        "https://[64:ff9b::7f00:1]/fox.png",
        "https://[::]/fox.png",
        "http://example.com/fox.png",
        "https://",
        "https:///fox.png",
        "fox.png",
        "/fox.png",
        "https://[::1",
        "https://example.com:99999/fox.png",
        "https://example.com:port/fox.png",
        "https://exa mple.invalid/fox.png",
        "javascript:alert(1)",
        "\\\\host\\share",
    ]


@pytest.mark.usefixtures("no_retry_delay")
@pytest.mark.parametrize(
    "number", range(len(forbidden_links(0))), ids=lambda number: forbidden_links(0)[number]
)
def test_link_to_forbidden_address_is_not_followed(number: int, authority: Authority) -> None:
    with Server(lambda exchange: exchange.answer(200, small_png()), tls=authority.server) as forbidden:
        link = forbidden_links(forbidden.port)[number]
        with raw_server(link_to(link), verify=str(authority.bundle)) as (_, client):
            error = error_of(lambda: client.generate(FOX))
        assert forbidden.requests == []
    assert (error.kind, error.billed) == (Kind.REPLY, "yes")
    assert "secret" not in str(error)


@pytest.mark.usefixtures("no_retry_delay")
@pytest.mark.parametrize(
    "number", range(len(forbidden_links(0))), ids=lambda number: forbidden_links(0)[number]
)
def test_redirect_to_forbidden_address_is_not_followed(number: int, authority: Authority) -> None:
    def behave(exchange: Exchange) -> None:
        if exchange.request.method == "POST":
            link_to(f"{server.url}/fox.png")(exchange)
        else:
            exchange.answer(302, Location=link)

    with Server(lambda exchange: exchange.answer(200, small_png()), tls=authority.server) as forbidden:
        link = forbidden_links(forbidden.port)[number]
        with raw_server(behave, verify=str(authority.bundle)) as (server, client):
            error = error_of(lambda: client.generate(FOX))
        assert forbidden.requests == []
    assert (error.kind, error.billed) == (Kind.REPLY, "yes")


def test_link_with_credentials_is_rejected_on_gateway_host(png: bytes) -> None:
    def behave(exchange: Exchange) -> None:
        link_to(f"http://joe:secret@127.0.0.1:{server.port}/fox.png")(exchange)

    with raw_server(behave) as (server, client):
        error = error_of(lambda: client.generate(FOX))
        assert len(server.requests) == 1
    assert "login" in str(error)


def test_redirects_on_gateway_host_are_limited(png: bytes) -> None:
    def behave(exchange: Exchange) -> None:
        step = exchange.request.target.removeprefix("/step/")
        if exchange.request.method == "POST":
            link_to(f"{server.url}/step/{start}")(exchange)
        elif step == "0":
            exchange.answer(200, png)
        else:
            exchange.answer(302, Location=f"/step/{int(step) - 1}")

    with raw_server(behave) as (server, client):
        start = download.MAX_REDIRECTS
        generation = client.generate(FOX)
        assert bytes_of(generation.images[0]) == png
        generation.close()
        start += 1
        error = error_of(lambda: client.generate(FOX))
    assert "redirects more than" in str(error)
    assert len(server.requests) == 2 * (2 + download.MAX_REDIRECTS)


def test_link_to_other_content_is_rejected() -> None:
    def behave(exchange: Exchange) -> None:
        if exchange.request.method == "POST":
            link_to(f"{server.url}/fox.png")(exchange)
        else:
            exchange.answer(200, b"<html>gone</html>")

    with raw_server(behave) as (server, client):
        error = error_of(lambda: client.generate(FOX))
    assert (error.kind, error.billed) == (Kind.REPLY, "yes")
    assert "not PNG, JPEG or WebP" in str(error)


@pytest.mark.usefixtures("no_retry_delay")
def test_truncated_download_is_rejected(png: bytes) -> None:
    def behave(exchange: Exchange) -> None:
        if exchange.request.method == "POST":
            link_to(f"{server.url}/fox.png")(exchange)
        else:
            exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(png) + png[:-1])

    with raw_server(behave) as (server, client):
        error = error_of(lambda: client.generate(FOX))
    assert (error.kind, error.billed) == (Kind.REPLY, "yes")


def never_answer(exchange: Exchange) -> None:
    exchange.wait_until_gone()


STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
PING = b": PING\n\n"


def event(kind: str, image: bytes) -> bytes:
    document = {"type": f"image_generation.{kind}", "b64_json": base64.b64encode(image).decode()}
    return b"data: " + json.dumps(document).encode() + b"\n\n"


@pytest.mark.parametrize("received", [b"", event("partial_image", b"half a fox")], ids=["nothing", "preview"])
def test_stream_of_pings_times_out_with_unknown_billing(
    received: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(estimate.SECONDS, "low", 0.0)
    given_up = threading.Event()

    def send_pings(exchange: Exchange) -> None:
        exchange.send(STREAM + received)
        for _ in range(2000):  # limited, so that a client without a timeout cannot block the test forever
            exchange.send(PING)
            if given_up.wait(0.01):
                return

    with raw_server(send_pings, read_timeout=1) as (server, client):
        error = error_of(
            lambda: client.generate(
                ImageRequest("a fox", stream=True), lambda index: ImageFile(tmp_path / f"{index}.part")
            )
        )
        given_up.set()
        assert len(server.requests) == 1
    assert (error.kind, error.billed, error.is_safe_to_resend) == (Kind.UNKNOWN_OUTCOME, "unknown", False)
    assert error.salvaged == []
    kept = [(path.name, path.read_bytes()) for path in tmp_path.iterdir()]
    assert kept == ([("0.preview", b"half a fox")] if received else [])


@pytest.mark.parametrize("after", [b"", PING], ids=["silence", "pings"])
def test_complete_stream_does_not_wait_long_for_usage(
    after: bytes, png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receive, "USAGE_WAIT", 0.2)
    received = threading.Event()

    def behave(exchange: Exchange) -> None:
        exchange.send(STREAM + event("completed", png))
        while not received.wait(0.02):
            exchange.send(after)

    with raw_server(behave, read_timeout=60) as (_, client):
        generation = client.generate(ImageRequest("a fox", stream=True))
        received.set()
    assert bytes_of(generation.images[0]) == png
    assert generation.usage is None
    assert generation.seconds < 30
    generation.close()


def test_response_of_pings_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(estimate.SECONDS, "low", 0.0)
    given_up = threading.Event()

    def behave(exchange: Exchange) -> None:
        exchange.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
        while not given_up.wait(0.02):
            exchange.send(b"\n")

    with raw_server(behave, read_timeout=0.5) as (_, client):
        error = error_of(lambda: client.generate(FOX))
        given_up.set()
    assert (error.kind, error.billed) == (Kind.UNKNOWN_OUTCOME, "unknown")


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 0.0
        self.time = time.time

    def monotonic(self) -> float:
        return self.now


def test_image_received_before_pings_is_kept(png: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(receive, "time", clock)
    given_up = threading.Event()

    def behave(exchange: Exchange) -> None:
        exchange.send(STREAM + event("completed", png))
        for _ in range(2000):
            clock.now += client_module.READ_TIMEOUT
            exchange.send(PING)
            if given_up.wait(0.01):
                return

    with raw_server(behave) as (_, client):
        error = error_of(lambda: client.generate(ImageRequest("a fox", stream=True, n=2)))
        given_up.set()
    assert error.kind is Kind.UNKNOWN_OUTCOME
    (image,) = error.salvaged
    assert bytes_of(image) == png
    image.file.close()


def test_stream_with_progress_does_not_time_out(png: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(receive, "time", clock)
    monkeypatch.setattr(client_module, "time", clock)
    request = ImageRequest("a fox", stream=True, quality="high")
    patience = 2 * expected_seconds(request)
    opened = threading.Semaphore(0)

    def open_file(_: int) -> ImageFile:
        opened.release()
        return ImageFile()

    def behave(exchange: Exchange) -> None:
        exchange.send(STREAM)
        for _ in range(5):
            exchange.send(event("partial_image", b"half a fox"))
            assert opened.acquire(timeout=PATIENCE)
            clock.now += 0.9 * patience
            exchange.send(PING)
        exchange.send(event("completed", png))

    with raw_server(behave) as (_, client):
        generation = client.generate(request, open_file)
    assert bytes_of(generation.images[0]) == png
    assert generation.seconds > 4 * patience
    generation.close()


def reset_connection(exchange: Exchange) -> None:
    exchange.reset()


def send_other_and_close(exchange: Exchange) -> None:
    """Send the start of another, longer image, and close."""
    exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n" + os.urandom(50_000))


def answer_with(status: int) -> Callable[[Exchange], None]:
    return lambda exchange: exchange.answer(status, b"not now")


TRANSIENT = {
    "reset": reset_connection,
    "break": send_other_and_close,
    "silence": never_answer,
    **{str(status): answer_with(status) for status in (202, 204, 404, 408, 429, 500, 502, 503, 504)},
}


@contextmanager
def image_host(*behaviors: Callable[[Exchange], object], links: int = 1) -> Iterator[tuple[Server, Client]]:
    """A gateway that links to ``/0.png``, ``/1.png`` …; ``behaviors`` apply to requests for the first link."""

    def behave(exchange: Exchange) -> None:
        if exchange.request.method == "POST":
            data = [{"url": f"{server.url}/{number}.png"} for number in range(links)]
            exchange.answer(200, json.dumps({"data": data}).encode())
        elif exchange.request.target == "/0.png":
            next(turns)(exchange)
        else:
            exchange.answer(200, small_png(16 + int(exchange.request.target[1])))

    turns = iter(behaviors)
    with raw_server(behave, read_timeout=0.5) as (server, client):
        yield server, client


def downloads_of(server: Server) -> list[str]:
    return [request.target for request in server.requests if request.method == "GET"]


@pytest.mark.usefixtures("no_retry_delay")
@pytest.mark.parametrize("failure", TRANSIENT.values(), ids=TRANSIENT)
def test_download_is_retried_after_two_failures(failure: Callable[[Exchange], None], png: bytes) -> None:
    with image_host(failure, failure, lambda exchange: exchange.answer(200, png)) as (server, client):
        generation = client.generate(FOX)
        assert len(server.requests) == 1 + 3
        assert all("authorization" not in request.headers for request in server.requests[1:])
    (image,) = generation.images
    assert bytes_of(image) == png
    assert (image.file.size, image.file.sha256) == (len(png), hashlib.sha256(png).hexdigest())
    generation.close()


@pytest.mark.usefixtures("no_retry_delay")
def test_failed_download_does_not_lose_later_images() -> None:
    with image_host(*[answer_with(503)] * download.TRIES, links=3) as (server, client):
        error = error_of(lambda: client.generate(FOX))
        assert downloads_of(server) == ["/0.png"] * download.TRIES + ["/1.png", "/2.png"]
    assert (error.kind, error.billed) == (Kind.REPLY, "yes")
    assert "HTTP 503" in str(error)
    assert [(image.index, bytes_of(image)) for image in error.salvaged] == [
        (number, small_png(16 + number)) for number in (1, 2)
    ]
    for image in error.salvaged:
        image.file.close()


@pytest.mark.parametrize("status", [401, 403, 410])
def test_permanently_rejected_link_is_tried_once(status: int) -> None:
    with image_host(answer_with(status), links=2) as (server, client):
        error = error_of(lambda: client.generate(FOX))
        assert downloads_of(server) == ["/0.png", "/1.png"]
    assert f"HTTP {status}" in str(error)
    error.salvaged[0].file.close()


def test_link_to_other_content_is_tried_once() -> None:
    with image_host(lambda exchange: exchange.answer(200, b"<html>gone</html>")) as (server, client):
        error_of(lambda: client.generate(FOX))
        assert downloads_of(server) == ["/0.png"]


@needs_full_disk
def test_full_disk_ends_download() -> None:
    with image_host(lambda exchange: exchange.answer(200, small_png())) as (server, client):
        error = error_of(lambda: client.generate(FOX, lambda _: OnFullDisk()))
        assert downloads_of(server) == ["/0.png"]
    assert "disk: No space left on device" in str(error)


def test_abort_ends_wait_before_download_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "WAIT", 600.0)
    waits = threading.Event()

    class Waits(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            waits.set()

    handler = Waits(logging.WARNING)
    download.log.addHandler(handler)
    try:
        with image_host(answer_with(503), links=2) as (server, client), ThreadPoolExecutor() as pool:
            future = pool.submit(error_of, lambda: client.generate(FOX))
            assert waits.wait(PATIENCE)
            client.abort()
            error = future.result(10)
            assert downloads_of(server) == ["/0.png"]
    finally:
        download.log.removeHandler(handler)
    assert (error.kind, error.billed) == (Kind.REPLY, "yes")


def test_abort_interrupts_download(png: bytes) -> None:
    arrived = threading.Event()

    def never_ending(exchange: Exchange) -> None:
        exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n" + png)
        arrived.set()
        exchange.wait_until_gone()

    with image_host(never_ending, links=2) as (server, client), ThreadPoolExecutor() as pool:
        client.timeout = (10.0, 60.0)
        future = pool.submit(error_of, lambda: client.generate(FOX))
        assert arrived.wait(PATIENCE)
        client.abort()
        error = future.result(10)
        assert downloads_of(server) == ["/0.png"]
    assert (error.kind, error.billed) == (Kind.REPLY, "yes")


@given(st.ip_addresses(v=4))
def test_ipv4_mapped_address_is_checked_as_ipv4(address: Any) -> None:
    def is_public(text: str) -> bool:
        try:
            addresses.require_public(text)
        except addresses.ForbiddenAddress:
            return False
        return True

    assert is_public(f"::ffff:{address}") == is_public(str(address))
    if not address.is_global:
        assert not is_public(str(address))


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "169.254.169.254", "100.64.0.1", "224.0.0.1", "::1", "fe80::1%eth0", "fd00::1",
     "2002:7f00:1::", "64:ff9b::a00:1", "64:ff9b::169.254.169.254", "::ffff:10.0.0.1"],
)  # fmt: skip
def test_non_public_addresses_are_rejected(address: str) -> None:
    with pytest.raises(addresses.ForbiddenAddress):
        addresses.require_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_public_addresses_are_accepted(address: str) -> None:
    addresses.require_public(address)


# --- network failures ---------------------------------------------------------------------------------------------


def test_refused_connection_is_not_billed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    error = error_of(lambda: Client(TOKEN, f"http://127.0.0.1:{port}").generate(FOX))
    assert (error.kind, error.billed, error.is_safe_to_resend) == (Kind.UNREACHABLE, "no", True)
    assert "Connection refused" in str(error)


def test_unknown_host_name_is_not_billed() -> None:
    error = error_of(lambda: Client(TOKEN, "https://jojokey.invalid").generate(FOX))
    assert (error.kind, error.billed) == (Kind.UNREACHABLE, "no")


def test_read_timeout_may_be_billed(gateway: Gateway) -> None:
    with Client(gateway.token, gateway.url, read_timeout=0.2) as client:
        error = error_of(lambda: client.generate(request_for("hang")))
    assert (error.kind, error.billed, error.is_safe_to_resend) == (Kind.UNKNOWN_OUTCOME, "unknown", False)
    assert "timed out" in str(error).lower()
    assert len(gateway.requests) == 1


def test_stalled_response_times_out_as_billed(gateway: Gateway) -> None:
    with Client(gateway.token, gateway.url, read_timeout=0.2) as client:
        error = error_of(lambda: client.generate(request_for("stalls")))
    assert (error.kind, error.billed) == (Kind.REPLY, "yes")
    gateway.wait_until_idle(PATIENCE)


@pytest.mark.parametrize("before", [b"", b"HTTP/1.1", b"garbage\r\n\r\n"])
def test_incomplete_response_head_may_be_billed(before: bytes) -> None:
    with raw_server(lambda exchange: exchange.send(before) if before else None) as (server, client):
        error = error_of(lambda: client.generate(FOX))
        assert len(server.requests) == 1
    assert (error.kind, error.billed) == (Kind.UNKNOWN_OUTCOME, "unknown")


HEAD = b"HTTP/1.1 200 OK\r\n"
BROKEN_HEADS = {
    "no status": b"HTTP/1.1 ok\r\n\r\n",
    "negative status": b"HTTP/1.1 -200 OK\r\n\r\n",
    "end in the status": b"HTTP/1.1 401 Unauth",
    # The rest may name a proxy that has sent the request before.
    "end in a field": b"HTTP/1.1 500 Error\r\nX-Oneapi-Request-Id: 2026\r\nX-Lite",
    "end between fields": b"HTTP/1.1 500 Error\r\nX-Oneapi-Request-Id: 2026\r\n",
    "too large": HEAD + b"X: " + b"a" * final_response.MAX_HEAD_BYTES + b"\r\n\r\n",
    "too many fields": HEAD + b"X: a\r\n" * (final_response.MAX_HEAD_BYTES // 6 + 1) + b"\r\n",
}


@pytest.mark.parametrize("head", BROKEN_HEADS.values(), ids=BROKEN_HEADS)
@pytest.mark.parametrize("through_proxy", [False, True])
def test_broken_response_head_may_be_billed(head: bytes, through_proxy: bool) -> None:
    with Server(lambda exchange: exchange.send(head)) as server:
        # A proxy receives plain HTTP requests as they are.
        url, proxy_url = ("http://jojokey.invalid", server.url) if through_proxy else (server.url, None)
        with Client(TOKEN, url, proxy=proxy_url, read_timeout=10) as client:
            error = error_of(lambda: client.generate(FOX))
        assert len(server.requests) == 1
    assert (error.kind, error.billed) == (Kind.UNKNOWN_OUTCOME, "unknown")


IMPERFECT_HEADS = {
    "many fields": b"".join(b"X-%d: a\r\n" % n for n in range(2000)) + b"Transfer-Encoding: chunked\r\n",
    "long field": b"X: " + b"a" * 200_000 + b"\r\nTransfer-Encoding: chunked\r\n",
    "line that is not a field": b"sk-secret\r\nTransfer-Encoding: chunked\r\n",
    "field without a name": b": a\r\nTransfer-Encoding: chunked\r\n",
    "space before a colon": b"X : a\r\nTransfer-Encoding : chunked\r\n",
    "space at the end": b"Transfer-Encoding: chunked \r\n",
    "line break in a field": b"X: a\rb\r\nTransfer-Encoding: chunked\r\n",
    "folded field": b"X: a\r\n b\r\n\tc\r\nTransfer-Encoding:\r\n chunked\r\n",
    "two codings": b"Transfer-Encoding: identity\r\nTransfer-Encoding: Chunked\r\n",
    "codings in one field": b"Transfer-Encoding: identity, chunked\r\n",
    "coding and length": b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
    "two lengths": b"Content-Length: 5\r\nContent-Length: 12\r\n",
    "lengths in one field": b"Content-Length: 5, 12\r\n",
    "length in words": b"Content-Length: five\r\n",
    "length beyond any": b"Content-Length: " + b"9" * 5000 + b"\r\n",
    "negative length": b"Content-Length: -1\r\n",
}


@pytest.mark.parametrize("version", [b"HTTP/1.0", b"HTTP/1.1", b"HTTP/2"])
@pytest.mark.parametrize("fields", IMPERFECT_HEADS.values(), ids=IMPERFECT_HEADS)
def test_imperfect_head_does_not_lose_a_paid_image(
    fields: bytes, version: bytes, png: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    body = response_body(png)
    if b"chunked" in fields.lower():
        parts = (body[:100], body[100:], b"")
        body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
    head = version + b" 200 OK\r\n" + fields + b"X-Oneapi-Request-Id: 2026\r\n\r\n"
    with raw_server(lambda exchange: exchange.send(head + body)) as (_, client):
        generation = client.generate(FOX)
    assert bytes_of(generation.images[0]) == png
    assert generation.request_id == "2026"
    assert "sk-secret" not in caplog.text


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("coding", ["", "gzip"])
def test_body_without_the_promised_chunks_is_read(stream: bool, coding: str, png: bytes) -> None:
    body = event("completed", png) if stream else response_body(png)
    head = HEAD + b"Transfer-Encoding: chunked\r\nContent-Encoding: %b\r\n\r\n" % coding.encode()
    sent = head + (gzip.compress(body) if coding else body)

    def behave(exchange: Exchange) -> None:
        exchange.send(sent[: len(head) + 20])
        exchange.send(sent[len(head) + 20 :])

    with raw_server(behave) as (_, client):
        generation = client.generate(ImageRequest("a fox", stream=stream))
    assert bytes_of(generation.images[0]) == png


@pytest.mark.parametrize("written", [b"%x;a=b", b"000%x", b"%x ", b"%X\t;a"])
def test_unusual_chunk_size_is_a_chunk_size(written: bytes, png: bytes) -> None:
    body = response_body(png)
    sent = (
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + written % len(body) + b"\r\n" + body + b"\r\n0\r\n\r\n"
    )
    with raw_server(lambda exchange: exchange.send(sent)) as (_, client):
        assert bytes_of(client.generate(FOX).images[0]) == png


def test_line_break_in_a_header_makes_no_proof() -> None:
    head = b"HTTP/1.1 500 Error\r\nX-Note: a\rX-Oneapi-Request-Id: 2026\r\nContent-Length: 0\r\n\r\n"
    with raw_server(lambda exchange: exchange.send(head)) as (_, client):
        error = error_of(lambda: client.generate(FOX))
    assert (error.billed, error.request_id) == ("unknown", None)


def test_headers_that_arrive_forever_time_out() -> None:
    stop = threading.Event()

    def behave(exchange: Exchange) -> None:
        exchange.send(HEAD)
        while not stop.wait(0.01):
            exchange.send(b"X: a\r\n")

    with raw_server(behave, read_timeout=0.2) as (_, client):
        error = error_of(lambda: client.generate(FOX))
        stop.set()
    assert (error.kind, error.billed) == (Kind.UNKNOWN_OUTCOME, "unknown")


@pytest.mark.parametrize(("status", "billed"), [(200, "yes"), (500, "no")])
@pytest.mark.parametrize("size", [b"a" * 70_000, b"f" * 16], ids=["endless size", "huge size"])
def test_broken_first_chunk_of_compressed_body_is_reported(size: bytes, status: int, billed: str) -> None:
    head = b"HTTP/1.1 %d OK\r\nX-Oneapi-Request-Id: 2026\r\nContent-Encoding: gzip\r\n" % status
    body = b"Transfer-Encoding: chunked\r\n\r\n" + size + b"\r\nx"
    with raw_server(lambda exchange: exchange.send(head + body)) as (_, client):
        assert error_of(lambda: client.generate(FOX)).billed == billed
        assert error_of(client.list_models).billed == "no"


def test_reset_before_compressed_body_is_reported() -> None:
    def answer(exchange: Exchange) -> None:
        exchange.send(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nConnection: close\r\n\r\n")
        time.sleep(0.3)
        exchange.reset()

    with raw_server(answer) as (_, client):
        assert "was interrupted" in str(error_of(lambda: client.generate(FOX)))


@pytest.mark.parametrize(
    "failure",
    [
        requests.exceptions.InvalidHeader("header"),
        requests.exceptions.InvalidURL("address"),
        requests.exceptions.InvalidSchema("address"),
        UnicodeEncodeError("ascii", "ü", 0, 1, "no"),
        ValueError("Invalid header value"),
        OSError("no CA bundle"),
        ConnectionRefusedError("refused"),
        requests.exceptions.ConnectTimeout("late"),
    ],
    ids=lambda failure: type(failure).__name__,
)
def test_type_of_error_does_not_prove_that_nothing_was_sent(failure: Exception) -> None:
    def hook(response: Any, **_: Any) -> None:
        raise failure

    with raw_server(lambda exchange: exchange.answer(200)) as (server, client):
        client.session.hooks["response"].append(hook)
        error = error_of(lambda: client.generate(FOX))
        assert len(server.requests) == 1
    assert error.billed == "unknown"


def test_lost_response_after_unsent_request_may_be_billed() -> None:
    """The error of the first request is the context of all errors that are raised while it is handled."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with raw_server(lambda exchange: exchange.reset()) as (server, client):
        error = unsent = None
        try:
            Client(TOKEN, f"http://127.0.0.1:{port}").generate(FOX)
        except Img2Error as caught:
            unsent = caught
            error = error_of(lambda: client.generate(FOX))
        assert len(server.requests) == 1
    assert unsent is not None
    assert error is not None
    assert unsent.billed == "no"
    assert (error.kind, error.billed) == (Kind.UNKNOWN_OUTCOME, "unknown")
    assert "refused" not in str(error)


@pytest.mark.parametrize("get", [requests.get, lambda url: Client(TOKEN, url).session.get(url)])
def test_error_in_response_hook_may_be_billed(get: Callable[[str], Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with raw_server(lambda exchange: exchange.answer(200)) as (server, client):
        client.session.hooks["response"].append(lambda response, **_: get(url))
        error = error_of(lambda: client.generate(FOX))
        assert len(server.requests) == 1
    assert error.billed == "unknown"


def test_request_written_in_part_may_be_billed(monkeypatch: pytest.MonkeyPatch) -> None:
    send = socket.socket.sendall

    def sendall(self: socket.socket, data: bytes, *args: Any) -> None:
        if b"/v1/images" not in data:
            return send(self, data, *args)
        send(self, data[:20])
        raise BrokenPipeError(32, "Broken pipe")

    with raw_server(lambda exchange: None) as (_, client):
        monkeypatch.setattr(socket.socket, "sendall", sendall)
        error = error_of(lambda: client.generate(FOX))
    assert (error.kind, error.billed) == (Kind.UNKNOWN_OUTCOME, "unknown")


def test_errors_of_custom_session_may_be_billed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    client = Client(base_url=f"http://127.0.0.1:{port}", session=requests.Session())
    assert error_of(lambda: client.generate(FOX)).billed == "unknown"
    assert error_of(client.list_models).billed == "no"


def test_lost_response_of_another_adapter_may_be_billed() -> None:
    """A user mounts an adapter with other TLS settings, for example. It does not report what it has written."""
    with raw_server(lambda exchange: exchange.reset()) as (server, client):
        client.session.mount("http://", requests.adapters.HTTPAdapter())
        error = error_of(lambda: client.generate(FOX))
        assert len(server.requests) == 1
    assert (error.kind, error.billed) == (Kind.UNKNOWN_OUTCOME, "unknown")


def test_reset_after_sending_may_be_billed() -> None:
    with raw_server(lambda exchange: exchange.reset()) as (server, client):
        error = error_of(lambda: client.generate(FOX))
        assert len(server.requests) == 1
    assert (error.kind, error.billed) == (Kind.UNKNOWN_OUTCOME, "unknown")
    assert "reset" in str(error)


@pytest.mark.parametrize("status", [500, 503])
def test_error_with_truncated_body_keeps_its_kind(status: int) -> None:
    body = b'{"error":{"message":"No channel","code":"model_not_found'

    def behave(exchange: Exchange) -> None:
        head = f"HTTP/1.1 {status} No\r\nX-Oneapi-Request-Id: abc\r\nContent-Length: 500\r\n\r\n"
        exchange.send(head.encode() + body)

    with raw_server(behave) as (_, client):
        error = error_of(lambda: client.generate(FOX))
    assert (error.kind, error.billed, error.request_id) == (Kind.OVERLOADED, "no", "abc")


ENDLESS = {
    "text": (b"", b"x" * 65536),
    "base64 of text": (b'{"data": [{"b64_json": "', b"eHh4" * 16384),
    "a picture": (b"\x89PNG\r\n\x1a\n", b"x" * 65536),
    "links": (b'{"data": [', b'{"url": "https://a.example/b.png"},' * 2000),
}


@pytest.mark.parametrize(("begin", "more"), ENDLESS.values(), ids=ENDLESS)
def test_endless_error_page_is_read_up_to_a_limit(begin: bytes, more: bytes) -> None:
    def behave(exchange: Exchange) -> None:
        exchange.send(b"HTTP/1.1 500 No\r\nX-Oneapi-Request-Id: 2026\r\nConnection: close\r\n\r\n" + begin)
        while True:
            exchange.send(more)  # until the client goes away

    with raw_server(behave) as (_, client):
        error = error_of(lambda: client.generate(FOX))
    assert len(error.detail) <= 500
    assert (error.kind, error.billed) == (Kind.OVERLOADED, "no")


MARKED = pytest.mark.parametrize("marks", [{}, {"X_Oneapi_Request_Id": "2026"}], ids=["unmarked", "gateway"])


@MARKED
@pytest.mark.parametrize("status", [300, 302, 400, 404, 408, 429, 500, 503, 524])
def test_image_in_an_error_response_is_delivered(status: int, marks: dict[str, str], png: bytes) -> None:
    usage = {"input_tokens": 10, "output_tokens": 196, "total_tokens": 206}
    body = response_body(png, usage=usage, error={"message": "too busy", "code": "x"})
    with raw_server(lambda exchange: exchange.answer(status, body, **marks)) as (server, client):
        generation = client.generate(FOX)
        assert len(server.requests) == 1
    assert bytes_of(generation.images[0]) == png
    assert generation.usage == usage
    assert f"although its status is HTTP {status}: too busy." in generation.warnings[0]


@MARKED
def test_image_in_a_stream_with_an_error_status_is_delivered(marks: dict[str, str], png: bytes) -> None:
    body = event("completed", png) + b'data: {"type": "error", "error": {"message": "too busy"}}\n\n'
    with raw_server(lambda exchange: exchange.answer(502, body, **marks)) as (_, client):
        generation = client.generate(ImageRequest("a fox", stream=True))
    assert bytes_of(generation.images[0]) == png


@MARKED
@pytest.mark.parametrize("status", [400, 429, 500, 503])
@pytest.mark.parametrize("kept", [0.5, 0.99])
def test_part_of_an_image_disproves_an_error(
    status: int, kept: float, marks: dict[str, str], png: bytes
) -> None:
    image = base64.b64encode(png).decode()
    bodies = [
        json.dumps(
            {"error": {"message": "too busy"}, "data": [{"b64_json": image[: int(len(image) * kept)]}]}
        ),
        json.dumps({"data": [{"b64_json": image}]})[: int(len(image) * kept)],
    ]
    for body in bodies:
        with raw_server(lambda exchange, body=body: exchange.answer(status, body.encode(), **marks)) as (
            _,
            client,
        ):
            error = error_of(lambda: client.generate(FOX))
        assert (error.kind, error.billed, error.status_code) == (Kind.REPLY, "yes", status)
        assert not error.is_safe_to_resend


@pytest.mark.parametrize(
    "body",
    [
        b'{"error": {"message": "too busy"}, "data": [{"url": "/fox.png"}]}',
        b'{"url": "/v1/images/generations", "message": "too busy"}',
        b'{"message": "too busy", "data": "dG9vIGJ1c3k="}',
        b'{"message": "too busy", "data": [{"b64_json": "dG9vIGJ1c3k="}]}',
        b'{"message": "too busy", "data": [{"b64_json": ""}]}',
        b'data: {"error": {"message": "too busy"}, "data": [{"url": "/fox.png"}]}\n\n',
    ],
)
def test_error_without_image_data_keeps_its_meaning(body: bytes) -> None:
    def behave(exchange: Exchange) -> None:
        exchange.answer(503, body, X_Oneapi_Request_Id="2026")

    with raw_server(behave) as (server, client):
        error = error_of(lambda: client.generate(FOX))
        assert len(server.requests) == 1, "a link was followed"
    assert (error.kind, error.billed, error.detail) == (Kind.OVERLOADED, "no", "too busy")
    assert not error.links


def test_picture_as_an_error_page_is_not_an_image(png: bytes, tmp_path: Path) -> None:
    with raw_server(lambda exchange: exchange.answer(404, png)) as (_, client):
        error = error_of(lambda: client.generate(FOX, lambda n: ImageFile(tmp_path / f"{n}.part")))
    assert (error.kind, error.billed) == (Kind.BASE_URL, "no")
    assert not [*tmp_path.iterdir()]


PAGES = {
    "a script": '<!DOCTYPE html><html>\n<script>window.page = {"logo": "data:image/png;base64,%s"}</script></html>',
    "a line of JSON": '\n <html><script type="application/json">\n{"props": {"logo": "%s"}}\n</script></html>',
    "a named image": '<html><script>\n{"image": "data:image/png;base64,%s"}\n</script></html>',
    "an image": '<html><img src="data:image/png;base64,%s"></html>',
    "base64": "<html>\n%s\n</html>",
}


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
@pytest.mark.parametrize(
    ("status", "kind", "billed"),
    [
        (200, Kind.BASE_URL, "unknown"),
        (403, Kind.EDGE_BLOCKED, "no"),
        (404, Kind.BASE_URL, "no"),
        (502, Kind.UNKNOWN_OUTCOME, "unknown"),
    ],
)
def test_picture_in_a_web_page_is_not_an_image(
    page: str, status: int, kind: Kind, billed: str, png: bytes
) -> None:
    body = (page % base64.b64encode(png).decode()).encode()
    with raw_server(lambda exchange: exchange.answer(status, body)) as (_, client):
        error = error_of(lambda: client.generate(FOX))
    assert (error.kind, error.billed) == (kind, billed)


@pytest.mark.parametrize("status", [403, 429, 503])
@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,"])
def test_challenge_in_an_error_is_not_an_image(status: int, prefix: str, png: bytes) -> None:
    image = prefix + base64.b64encode(png).decode()
    documents = [
        {"message": "Are you human?", "captcha": {"picture": image}},
        {"message": "Are you human?", "image": image},
        {"message": "Are you human?", "image": {"base64": image}},
        {"data": {"image_base64": image, "id": "1"}},
        image,
    ]
    for body in map(json.dumps, documents):
        with raw_server(lambda exchange, body=body: exchange.answer(status, body.encode())) as (_, client):
            error = error_of(lambda: client.generate(FOX))
        assert error.status_code == status
        assert error.kind is not Kind.REPLY


# --- TLS ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def tls_server(authority: Authority) -> Iterator[Server]:
    with Server(
        lambda exchange: exchange.answer(200, response_body(small_png())), tls=authority.server
    ) as server:
        yield server


def test_untrusted_certificate_fails_before_sending(tls_server: Server) -> None:
    error = error_of(lambda: Client(TOKEN, tls_server.url).generate(FOX))
    assert (error.kind, error.billed) == (Kind.TLS, "no")
    assert tls_server.requests == []


def test_ca_bundle_of_connection_is_trusted(tls_server: Server, authority: Authority) -> None:
    Client(TOKEN, tls_server.url, verify=str(authority.bundle)).generate(FOX).close()


def test_ca_bundle_of_environment_is_the_default(
    tls_server: Server, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority.bundle))
    Client(TOKEN, tls_server.url).generate(FOX).close()


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
@pytest.mark.parametrize("name", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_ca_bundle_of_environment_keeps_verify_false(
    tls_server: Server, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, requests.certs.where())
    Client(TOKEN, tls_server.url, verify=False).generate(FOX).close()


def test_ca_bundle_of_connection_takes_precedence(
    tls_server: Server, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", requests.certs.where())
    Client(TOKEN, tls_server.url, verify=str(authority.bundle)).generate(FOX).close()


def test_https_to_plain_http_server_is_not_billed() -> None:
    with Server(lambda exchange: exchange.answer(400)) as server:
        error = error_of(lambda: Client(TOKEN, server.url.replace("http:", "https:")).generate(FOX))
    assert (error.kind, error.billed) == (Kind.TLS, "no")


def test_stalled_tls_handshake_is_not_billed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        error = error_of(
            lambda: Client(TOKEN, f"https://127.0.0.1:{port}", connect_timeout=0.2).generate(FOX)
        )
    assert (error.kind, error.billed) == (Kind.UNREACHABLE, "no")


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_unreadable_ca_bundle_is_not_billed(tls_server: Server, tmp_path: Path, content: str | None) -> None:
    bundle = tmp_path / "ca.pem"
    if content:
        bundle.write_text(content)
    error = error_of(lambda: Client(TOKEN, tls_server.url, verify=str(bundle)).generate(FOX))
    assert (error.kind, error.billed) == (Kind.TLS, "no")
    assert tls_server.requests == []


def test_ca_bundle_is_loaded_once_for_all_connections(
    tls_server: Server, authority: Authority, tmp_path: Path
) -> None:
    bundle = tmp_path / "ca.pem"
    shutil.copy(authority.bundle, bundle)
    with Client(TOKEN, tls_server.url, verify=str(bundle)) as client:
        client.generate(FOX).close()
        bundle.write_text("no certificate any more")
        client.generate(FOX).close()
    assert len(tls_server.requests) == 2


def test_certificate_of_another_host_is_always_rejected(tmp_path: Path) -> None:
    authority = Authority.make(tmp_path, address="127.0.0.9")
    with (
        Server(lambda exchange: exchange.answer(200), tls=authority.server) as server,
        Client(TOKEN, server.url, verify=str(authority.bundle)) as client,
    ):
        errors = [error_of(lambda: client.generate(FOX)) for _ in range(2)]
        assert server.requests == []
    assert [(error.kind, error.billed) for error in errors] == [(Kind.TLS, "no")] * 2


def test_tls_failure_after_sending_may_be_billed(authority: Authority) -> None:
    def break_tls(exchange: Exchange) -> None:
        with socket.socket(fileno=os.dup(exchange.socket.fileno())) as plain:
            plain.sendall(b"this is not a TLS record ...." * 20)

    with Server(break_tls, tls=authority.server) as server:
        error = error_of(lambda: Client(TOKEN, server.url, verify=str(authority.bundle)).generate(FOX))
    assert (error.kind, error.billed) == (Kind.UNKNOWN_OUTCOME, "unknown")


def test_images_arrive_complete_over_tls(authority: Authority, png: bytes) -> None:
    large = png + os.urandom(1_500_000)
    with Server(lambda exchange: exchange.answer(200, response_body(large)), tls=authority.server) as server:
        generation = Client(TOKEN, server.url, verify=str(authority.bundle)).generate(FOX)
    assert generation.images[0].file.sha256 == hashlib.sha256(large).hexdigest()
    generation.close()


# --- the environment ------------------------------------------------------------------------------------------------


def test_netrc_does_not_replace_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login joe password s3cret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with raw_server(lambda exchange: exchange.answer(200)) as (server, client):
        error_of(lambda: client.generate(FOX))
    assert server.requests[0].headers["authorization"] == f"Bearer {TOKEN}"


def test_proxy_of_connection_is_used(gateway: Gateway) -> None:
    with proxy() as proxy_server, Client(gateway.token, gateway.url, proxy=proxy_server.url) as client:
        client.generate(FOX).close()
        assert "gpt-image-2" in client.list_models()
    assert [request.method for request in proxy_server.requests] == ["POST", "GET"]


@pytest.mark.parametrize("secured", [False, True], ids=["plain", "tls"])
def test_socks_proxy_is_used(secured: bool, authority: Authority, png: bytes) -> None:
    item = {"b64_json": base64.b64encode(png).decode()}
    body = json.dumps({"data": [item]}).encode()
    with (
        Server(
            lambda exchange: exchange.answer(200, body), tls=authority.server if secured else None
        ) as server,
        socks_proxy() as (url, reached),
        Client(TOKEN, server.url, proxy=url, verify=str(authority.bundle)) as client,
    ):
        for _ in range(2):
            client.generate(FOX).close()
        assert reached == [("127.0.0.1", server.port)] * 2


def test_socks_proxy_of_environment_is_used(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    with socks_proxy() as (url, reached):
        monkeypatch.setenv("ALL_PROXY", url)
        Client(gateway.token, gateway.url).generate(FOX).close()
    assert len(reached) == 1


def test_socks_proxy_decides_which_hosts_it_reaches(gateway: Gateway) -> None:
    with socks_proxy() as (url, reached), open_session(None, proxy=url, public_only=True) as session:
        session.get(gateway.url, timeout=PATIENCE)
    assert len(reached) == 1


def test_unreachable_socks_proxy_is_not_billed(gateway: Gateway) -> None:
    error = error_of(lambda: Client(gateway.token, gateway.url, proxy="socks5h://127.0.0.1:9").generate(FOX))
    assert (error.kind, error.billed) == (Kind.UNREACHABLE, "no")
    assert gateway.requests == ()


def test_response_lost_in_socks_proxy_may_be_billed() -> None:
    with Server(lambda exchange: None) as server, socks_proxy() as (url, _):
        error = error_of(lambda: Client(TOKEN, server.url, proxy=url).generate(FOX))
        assert len(server.requests) == 1
    assert (error.kind, error.billed, error.is_safe_to_resend) == (Kind.UNKNOWN_OUTCOME, "unknown", False)


def test_abort_works_through_socks_proxy(gateway: Gateway) -> None:
    with socks_proxy() as (url, _), ThreadPoolExecutor() as pool:
        client = Client(gateway.token, gateway.url, proxy=url, read_timeout=60)
        future = pool.submit(error_of, lambda: client.generate(request_for("hang")))
        gateway.wait_for_request(timeout=PATIENCE)
        client.abort()
        assert future.result(PATIENCE).billed == "unknown"


def test_https_uses_a_proxy_tunnel(tls_server: Server, authority: Authority) -> None:
    with proxy() as proxy_server:
        Client(TOKEN, tls_server.url, proxy=proxy_server.url, verify=str(authority.bundle)).generate(
            FOX
        ).close()
    (tunnel,) = proxy_server.requests
    assert tunnel.method == "CONNECT"
    assert "authorization" not in tunnel.headers


def test_proxy_of_environment_is_the_default(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    with proxy() as proxy_server:
        monkeypatch.setenv("HTTP_PROXY", proxy_server.url)
        Client(gateway.token, gateway.url).generate(FOX).close()
    assert len(proxy_server.requests) == 1


def test_proxy_of_connection_takes_precedence(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with proxy() as proxy_server:
        Client(gateway.token, gateway.url, proxy=proxy_server.url).generate(FOX).close()
    assert len(proxy_server.requests) == 1


def test_proxy_credentials_go_to_proxy_and_are_never_shown(gateway: Gateway) -> None:
    login = "Basic " + base64.b64encode(b"joe:s3cret").decode()
    with proxy(login) as proxy_server:
        Client(gateway.token, gateway.url, proxy=proxy_server.url.replace("//", "//joe:s3cret@")).generate(
            FOX
        ).close()
        error = error_of(
            lambda: Client(
                TOKEN, "https://127.0.0.1:9", proxy=proxy_server.url.replace("//", "//joe:wr0ng@")
            ).generate(FOX)
        )
    assert (error.kind, error.billed) == (Kind.UNREACHABLE, "no")
    assert "wr0ng" not in str(error)
    assert "407" in str(error)


def test_unreachable_proxy_is_not_billed(gateway: Gateway) -> None:
    error = error_of(lambda: Client(gateway.token, gateway.url, proxy="http://127.0.0.1:9").generate(FOX))
    assert (error.kind, error.billed) == (Kind.UNREACHABLE, "no")
    assert "proxy" in str(error)
    assert gateway.requests == ()


@pytest.mark.parametrize("secured", [False, True], ids=["plain", "tunnel"])
def test_response_lost_in_proxy_may_be_billed(secured: bool, authority: Authority) -> None:
    with (
        Server(lambda exchange: None, tls=authority.server if secured else None) as server,
        proxy() as proxy_server,
    ):
        client = Client(TOKEN, server.url, proxy=proxy_server.url, verify=str(authority.bundle))
        error = error_of(lambda: client.generate(FOX))
        assert len(server.requests) == 1
    assert (error.kind, error.billed, error.is_safe_to_resend) == (Kind.UNKNOWN_OUTCOME, "unknown", False)


@pytest.mark.parametrize(
    ("url", "warns"),
    [
        ("http://127.0.0.1:8000", False),
        ("http://localhost", False),
        ("http://api.localhost", False),
        ("http://[::1]:80", False),
        ("https://api.jojokey.com", False),
        ("http://api.jojokey.com", True),
        ("http://10.0.0.1", True),
        ("http://localhost.example.com", True),
    ],
)
def test_token_over_unencrypted_network_logs_warning(
    url: str, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    Client(TOKEN, url)
    assert ("unencrypted" in caplog.text) is warns
    assert TOKEN not in caplog.text


# --- the base URL --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "base"),
    [
        (None, "https://api.jojokey.com"),
        ("", "https://api.jojokey.com"),
        ("  ", "https://api.jojokey.com"),
        ("api.jojokey.com", "https://api.jojokey.com"),
        ("api.jojokey.com/v1", "https://api.jojokey.com"),
        ("api.jojokey.com/v1/", "https://api.jojokey.com"),
        ("https://api.jojokey.com//", "https://api.jojokey.com"),
        ("HTTPS://api.jojokey.com/v1", "https://api.jojokey.com"),
        ("http://127.0.0.1:8080/v1", "http://127.0.0.1:8080"),
        ("localhost:8080", "https://localhost:8080"),
        ("https://gateway.example.com/jojokey/v1", "https://gateway.example.com/jojokey"),
        ("http://[::1]:8080/", "http://[::1]:8080"),
        ("https://api.jojokey.com/v1/images/generations", "https://api.jojokey.com"),
        ("api.jojokey.com/v1/images/generations/", "https://api.jojokey.com"),
        ("https://api.jojokey.com/v1/chat/completions", "https://api.jojokey.com"),
        ("https://api.jojokey.com/v1/models", "https://api.jojokey.com"),
        ("https://gateway.example.com/jojokey/v1/images/generations", "https://gateway.example.com/jojokey"),
        ("https://gateway.example.com/v1/account/openai", "https://gateway.example.com/v1/account/openai"),
        ("https://gateway.example.com/images/generations", "https://gateway.example.com/images/generations"),
        ("https://gateway.example.com/api/v10", "https://gateway.example.com/api/v10"),
    ],
)
def test_base_url_is_normalized(written: str | None, base: str) -> None:
    assert Client(TOKEN, written).base_url == base


def test_address_of_the_endpoint_is_not_repeated(gateway: Gateway) -> None:
    with Client(gateway.token, f"{gateway.url}/v1/images/generations") as client:
        client.generate(FOX).close()
        assert client.list_models()


@pytest.mark.parametrize(
    "written",
    ["ftp://api.jojokey.com", "https://", "https://host:port", "https://host:99999", "https://[::1", "s3://bucket",
     "https://joe@host", "https://joe:secret@host", "https://host/?key=1", "https://host/#v1"],
)  # fmt: skip
def test_invalid_base_url_is_rejected(written: str) -> None:
    with pytest.raises(ValueError, match=r"host|URL") as caught:
        Client(TOKEN, written)
    assert "secret" not in str(caught.value)


def test_token_with_invalid_characters_is_not_sent(gateway: Gateway) -> None:
    for token in ("sk-令牌", "sk-a\nb"):
        error = error_of(lambda token=token: Client(token, gateway.url).generate(FOX))
        assert (error.kind, error.billed) == (Kind.TOKEN, "no")
    assert gateway.requests == ()


# --- free calls ---------------------------------------------------------------------------------------------------


def test_listing_models_is_not_billed(gateway: Gateway, sandbox_client: Client) -> None:
    assert sandbox_client.list_models() == ["gpt-image-2"]
    assert gateway.requests == ()
    assert gateway.charges == ()


def test_token_usage_is_returned(gateway: Gateway, sandbox_client: Client) -> None:
    sandbox_client.generate(FOX).close()
    assert sandbox_client.token_usage()["total_used"] == gateway.charges[0].quota


@pytest.mark.parametrize(
    ("token", "words"),
    [
        ("sk-unknown", "does not know this token"),
        ("sk-expired", "expired on 20"),
        ("sk-exhausted", "quota is used up"),
    ],
)
def test_rejected_token_is_explained(gateway: Gateway, token: str, words: str) -> None:
    assert words in (Client(token, gateway.url).explain_rejected_token() or "")


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (401, b'{"error":{"message":"Invalid token","type":"new_api_error"}}', "it is disabled"),
        (429, b"", None),
        (502, b"", None),
        (200, b"<html>", None),
    ],
)
def test_only_a_rejection_shows_that_a_token_is_disabled(status: int, body: bytes, words: str | None) -> None:
    def behave(exchange: Exchange) -> None:
        if "/usage/token" in exchange.request.target:
            return exchange.answer(200, b'{"data":{"total_available":5}}')
        return exchange.answer(status, body)

    with raw_server(behave) as (_, client):
        reason = client.explain_rejected_token()

    assert reason is None if words is None else words in (reason or "")


def test_rejected_token_is_not_explained_without_usage() -> None:
    with raw_server(lambda exchange: exchange.answer(200, b"<html>", Content_Type="text/html")) as (
        _,
        client,
    ):
        assert client.explain_rejected_token() is None


DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.mark.parametrize(
    "body",
    [
        *(b"[]", b"7", b"null", b"{}", b'{"data":"x"}', b'{"data":null}', b"", b"<html>", b"OK"),
        *(DEEP, b'{"data":' + DEEP + b"}", b'{"data":' + b"9" * 5_000 + b"}", b"\0", b"\0\0\0\xd8"),
    ],
    ids=lambda body: body[:20].decode("latin-1"),
)
@pytest.mark.parametrize("call", ["list_models", "token_usage", "billing_log", "status"])
def test_free_call_error_does_not_mention_charges(call: str, body: bytes) -> None:
    with raw_server(lambda exchange: exchange.answer(200, body)) as (_, client):
        error = error_of(getattr(client, call))
    assert error.kind is Kind.BASE_URL
    assert error.billed == "no"
    assert "You were not charged." in str(error)


def test_cut_character_does_not_hide_the_billing_log() -> None:
    body = '{"data": [{"type": 2, "request_id": "r1", "content": "一张'.encode()[:-1] + b'"}]}'
    with raw_server(lambda exchange: exchange.answer(200, body)) as (_, client):
        (row,) = client.billing_log()
    assert row["request_id"] == "r1"


@pytest.mark.parametrize("status", [500, 502, 524])
def test_failed_free_call_is_not_billed(status: int) -> None:
    with raw_server(lambda exchange: exchange.answer(status)) as (_, client):
        error = error_of(client.list_models)
    assert error.billed == "no"


def test_free_call_times_out_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    assert client_module.FREE_CALL_TIMEOUT <= 10
    monkeypatch.setattr(client_module, "FREE_CALL_TIMEOUT", 0.2)
    with raw_server(lambda exchange: exchange.wait_until_gone(), read_timeout=300) as (_, client):
        error = error_of(client.list_models)
    assert (error.kind, error.billed) == (Kind.UNREACHABLE, "no")


# --- abort ----------------------------------------------------------------------------------------------------------


def send_half_and_stall(exchange: Exchange) -> None:
    """Send a head and half an image, and leave the connection open."""
    exchange.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + response_body(small_png())[:-30])
    exchange.wait_until_gone()


@pytest.mark.parametrize(
    ("behave", "kind"),
    [(never_answer, Kind.UNKNOWN_OUTCOME), (send_half_and_stall, Kind.REPLY)],
    ids=["waiting", "stalling"],
)
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_abort_wakes_waiting_thread_immediately(
    behave: Callable[[Exchange], None], kind: Kind, tls: bool, authority: Authority
) -> None:
    with Server(behave, tls=authority.server if tls else None) as server, ThreadPoolExecutor() as pool:
        client = Client(TOKEN, server.url, read_timeout=60, verify=str(authority.bundle))
        image_started = threading.Event()

        def open_file(_: int) -> ImageFile:
            image_started.set()
            return ImageFile()

        future = pool.submit(error_of, lambda: client.generate(FOX, open_file))
        server.wait_for_request(timeout=PATIENCE)
        if behave is send_half_and_stall:
            assert image_started.wait(PATIENCE)
        client.abort()
        error = future.result(5)
    assert error.kind is kind
    assert error.billed in ("unknown", "yes")


def test_abort_works_in_signal_handler(gateway: Gateway, sandbox_client: Client) -> None:
    def handler(*_: object) -> None:
        sandbox_client.abort()

    def kill() -> None:
        gateway.wait_for_request(timeout=PATIENCE)
        os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, handler)
    killer = threading.Thread(target=kill)
    try:
        killer.start()
        started = time.monotonic()
        error = error_of(lambda: sandbox_client.generate(request_for("hang")))
        assert time.monotonic() - started < 5
    finally:
        killer.join()
        signal.signal(signal.SIGUSR1, before)
    assert (error.kind, error.billed) == (Kind.UNKNOWN_OUTCOME, "unknown")


def test_abort_works_through_proxy(gateway: Gateway) -> None:
    with proxy() as proxy_server, ThreadPoolExecutor() as pool:
        client = Client(gateway.token, gateway.url, proxy=proxy_server.url, read_timeout=60)
        future = pool.submit(error_of, lambda: client.generate(request_for("hang")))
        gateway.wait_for_request(timeout=PATIENCE)
        client.abort()
        assert future.result(5).billed == "unknown"


def test_abort_wakes_all_threads_immediately(gateway: Gateway, sandbox_client: Client) -> None:
    with ThreadPoolExecutor(30) as pool:
        futures = [
            pool.submit(error_of, lambda: sandbox_client.generate(request_for("hang"))) for _ in range(30)
        ]
        gateway.wait_for_request(30, timeout=PATIENCE)
        sandbox_client.abort()
        assert {future.result(5).billed for future in futures} == {"unknown"}


def test_abort_without_requests_does_nothing(gateway: Gateway, sandbox_client: Client) -> None:
    sandbox_client.abort()
    sandbox_client.generate(FOX).close()
    sandbox_client.abort()
    sandbox_client.generate(FOX).close()
    assert len(gateway.charges) == 2


def test_abort_is_safe_while_requests_start_and_end(gateway: Gateway, sandbox_client: Client) -> None:
    stop = threading.Event()

    def come_and_go() -> set[Kind]:
        seen = set()
        while not stop.is_set():
            try:
                sandbox_client.generate(FOX).close()
            except Img2Error as error:
                seen.add(error.kind)
        return seen

    with ThreadPoolExecutor(8) as pool:
        runs = [pool.submit(come_and_go) for _ in range(8)]
        gateway.wait_for_request(8, timeout=PATIENCE)
        for _ in range(300):
            sandbox_client.abort()
        stop.set()
        seen = set().union(*(run.result(10) for run in runs))
    assert seen <= {Kind.UNKNOWN_OUTCOME, Kind.REPLY, Kind.UNREACHABLE}


# --- threads and resources ---------------------------------------------------------------------------------------------------


def test_threads_share_one_client(png: bytes, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    together = threading.Barrier(40)

    def behave(exchange: Exchange) -> None:
        together.wait(PATIENCE)  # respond only once all requests are in flight
        number = json.loads(exchange.request.body)["prompt"]
        exchange.answer(200, response_body(png), X_Oneapi_Request_Id=number)

    with raw_server(behave, read_timeout=30) as (server, client), ThreadPoolExecutor(40) as pool:
        generations = list(pool.map(lambda number: client.generate(ImageRequest(str(number))), range(80)))
    assert [generation.request_id for generation in generations] == [str(number) for number in range(80)]
    assert {generation.images[0].file.sha256 for generation in generations} == {
        hashlib.sha256(png).hexdigest()
    }
    assert len(server.requests) == 80
    assert "pool" not in caplog.text, "a full connection pool needs no warning"
    for generation in generations:
        generation.close()


def test_closed_connections_are_not_tracked(gateway: Gateway, sandbox_client: Client) -> None:
    for _ in range(5):
        sandbox_client.generate(FOX).close()
    gc.collect()
    adapter = sandbox_client.session.get_adapter(gateway.url)
    assert isinstance(adapter, transport.GatewayAdapter)
    assert len(adapter._live) == 0


def test_unreferenced_client_is_freed(gateway: Gateway) -> None:
    client = Client(gateway.token, gateway.url)
    client.generate(FOX).close()
    client.close()
    seen = weakref.ref(client)
    del client
    gc.collect()
    assert seen() is None


def test_custom_session_is_used_unchanged(gateway: Gateway) -> None:
    session = requests.Session()
    session.headers["Authorization"] = f"Bearer {gateway.token}"
    session.headers["X-Team"] = "posters"
    Client(base_url=gateway.url, session=session).generate(FOX).close()
    assert gateway.requests[0].headers["x-team"] == "posters"


def small_png(width: int = 16, kind: str = "PNG") -> bytes:
    import io

    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (width, 16), (200, 80, 20)).save(out, kind)
    return out.getvalue()


def test_nothing_is_sent_if_aborted_while_connecting(
    gateway: Gateway, sandbox_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = transport.HTTPConnection.connect

    def connect_and_abort(connection: Any) -> None:
        connect(connection)
        sandbox_client.abort()

    monkeypatch.setattr(transport.HTTPConnection, "connect", connect_and_abort)
    error = error_of(lambda: sandbox_client.generate(request_for("")))

    assert error.billed == "no"
    assert not gateway.requests
