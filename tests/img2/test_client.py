"""The client against real servers: the stand-in gateway, and raw ones where it is too well-behaved."""

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
    client,
    download,
    estimate,
    images,
    receive,
    transport,
)
from airflow_provider_jojokey.img2.estimate import expected_seconds
from airflow_provider_jojokey.img2.images import ImageFile
from airflow_provider_jojokey.sandbox import CASES, Gateway
from tests.support.loopback import Authority, Exchange, Server, proxy
from tests.support.patience import PATIENCE

TOKEN = "sk-only-for-tests-0123456789"
FOX = ImageRequest("a fox")


def asking(directive: str, **fields: Any) -> ImageRequest:
    return ImageRequest(f"a fox [sandbox: {directive}]", **fields)


def bytes_of(image: images.Image) -> bytes:
    image.file.file.seek(0)
    return image.file.file.read()


def refused(call: Callable[[], Any]) -> Img2Error:
    with pytest.raises(Img2Error) as caught:
        call()
    return caught.value


@pytest.fixture
def calls(gateway: Gateway) -> Iterator[Client]:
    with Client(gateway.token, gateway.url, read_timeout=10) as one:
        yield one


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "WAIT", 0.0)


@contextmanager
def raw(behave: Callable[[Exchange], object], **options: Any) -> Iterator[tuple[Server, Client]]:
    with Server(behave) as server, Client(TOKEN, server.url, **{"read_timeout": 10, **options}) as one:
        yield server, one


def document_of(*pictures: bytes, **fields: Any) -> bytes:
    data = [{"b64_json": base64.b64encode(picture).decode()} for picture in pictures]
    return json.dumps({"created": 1, "data": data, **fields}).encode()


# --- what is sent ------------------------------------------------------------------------------------------------


def test_the_request_is_sent_as_the_vendor_documents_it(gateway: Gateway, calls: Client) -> None:
    calls.generate(
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


def test_the_token_is_sent_as_a_bearer() -> None:
    with raw(lambda exchange: exchange.answer(200)) as (server, one):
        refused(lambda: one.generate(FOX))
    assert server.requests[0].headers["authorization"] == f"Bearer {TOKEN}"


def test_an_event_stream_is_asked_for_in_accept_too(gateway: Gateway, calls: Client) -> None:
    calls.generate(ImageRequest("a fox", stream=True)).close()
    assert "text/event-stream" in gateway.requests[0].headers["accept"]
    assert gateway.requests[0].body["stream"] is True


def test_what_comes_back_is_the_image_with_its_facts(gateway: Gateway, calls: Client, png: bytes) -> None:
    generation = calls.generate(FOX)

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


def test_an_image_can_be_saved(calls: Client, png: bytes, tmp_path: Path) -> None:
    generation = calls.generate(FOX)
    generation.images[0].save(tmp_path / "fox.png")
    generation.images[0].save(str(tmp_path / "again.png"))
    generation.close()
    assert (tmp_path / "fox.png").read_bytes() == (tmp_path / "again.png").read_bytes() == png


def test_files_can_be_named_by_the_caller(calls: Client, png: bytes, tmp_path: Path) -> None:
    generation = calls.generate(
        ImageRequest("a fox", n=3), lambda index: ImageFile(tmp_path / f"{index}.part")
    )
    generation.close()
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["0.image", "1.image", "2.image"]
    assert all(path.read_bytes() == png for path in tmp_path.iterdir())


def test_several_images_are_told_apart() -> None:
    pictures = [small_png(width) for width in (16, 32, 48)]
    with raw(lambda exchange: exchange.answer(200, document_of(*pictures))) as (_, one):
        generation = one.generate(ImageRequest("a fox", n=3))
    assert [(image.index, image.width) for image in generation.images] == [(0, 16), (1, 32), (2, 48)]
    generation.close()


def test_the_facts_are_the_gateways_where_it_tells_them() -> None:
    body = document_of(
        small_png(), model="gpt-image-2-2026", size="auto", quality="high\n", created="soon", usage=[]
    )
    with raw(lambda exchange: exchange.answer(200, body)) as (_, one):
        generation = one.generate(FOX)
    assert (generation.model, generation.size, generation.quality) == ("gpt-image-2-2026", "auto", "high")
    assert generation.created is None
    assert generation.usage is None
    assert generation.request_id is None
    generation.close()


def test_unusual_names_are_warned_of_and_sent(caplog: pytest.LogCaptureFixture) -> None:
    with raw(lambda exchange: exchange.answer(200, document_of(small_png()))) as (server, one):
        one.generate(ImageRequest("a fox", model="gpt-image-3", quality="ultra")).close()
    assert "gpt-image-3" in caplog.text
    assert "ultra" in caplog.text
    assert json.loads(server.requests[0].body)["quality"] == "ultra"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_paid_request_is_never_redirected(status: int) -> None:
    with Server(lambda exchange: exchange.answer(200, document_of(small_png()))) as elsewhere:
        with raw(lambda exchange: exchange.answer(status, Location=f"{elsewhere.url}/v1")) as (server, one):
            error = refused(lambda: one.generate(FOX))
        assert elsewhere.connections == 0
    assert len(server.requests) == 1
    assert (error.kind, error.billed) == (Kind.BASE_URL, "no")
    assert "redirect" in str(error)


def test_a_quiet_connection_is_kept_alive() -> None:
    options: list[int] = []

    def look(exchange: Exchange) -> None:
        adapter = one.session.get_adapter(server.url)
        (sock,) = adapter._live.values()  # type: ignore[attr-defined]
        options.append(sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
        options.append(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE))
        exchange.answer(200)

    with raw(look) as (server, one):
        refused(lambda: one.generate(FOX))
    assert options[0] == 1
    assert 0 < options[1] <= 60


def test_each_request_has_a_connection_of_its_own(calls: Client) -> None:
    def behave(exchange: Exchange) -> None:
        # This server would keep its connections, and forget to say when it closes them.
        body = b'{"data":[]}' if exchange.request.method == "GET" else document_of(small_png())
        exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        exchange.wait_until_gone()

    with raw(behave) as (server, one):
        one.list_models()
        one.generate(FOX).close()
        one.list_models()
        one.generate(FOX).close()
        assert server.connections == 4
        assert len(server.requests) == 4


# --- response_format ----------------------------------------------------------------------------------------------


def test_a_gateway_that_refuses_response_format_gets_the_request_once_more_without_it(png: bytes) -> None:
    with Gateway(image=png, response_format="rejected") as gateway, Client(gateway.token, gateway.url) as one:
        one.generate(FOX).close()
        assert ["response_format" in request.body for request in gateway.requests] == [True, False]
        with_it, without_it = (request.body for request in gateway.requests)
        assert with_it == {**without_it, "response_format": "b64_json"}

        one.generate(FOX).close()
        assert ["response_format" in request.body for request in gateway.requests] == [True, False, False]
        assert len(gateway.charges) == 2


def test_the_second_refusal_is_final() -> None:
    body = json.dumps(
        {"error": {"message": "Unknown parameter: 'response_format'.", "code": "unknown_parameter"}}
    )
    with raw(lambda exchange: exchange.answer(400, body.encode())) as (server, one):
        error = refused(lambda: one.generate(FOX))
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
def test_any_other_refusal_is_not_answered_with_another_request(status: int, message: str) -> None:
    body = json.dumps({"error": {"message": message, "code": ""}}).encode()
    with raw(lambda exchange: exchange.answer(status, body)) as (server, one):
        refused(lambda: one.generate(FOX))
        assert len(server.requests) == 1


# --- what the caller hears of ---------------------------------------------------------------------------------------


def test_before_send_is_called_right_before_each_post(png: bytes) -> None:
    posts: list[int] = []
    with Gateway(image=png, response_format="rejected") as gateway, Client(gateway.token, gateway.url) as one:
        one.generate(FOX, before_send=lambda: posts.append(len(gateway.requests))).close()
    assert posts == [0, 1]


def test_nothing_is_sent_if_before_send_raises(gateway: Gateway, calls: Client) -> None:
    def refuse() -> None:
        raise KeyError("the disk is full")

    with pytest.raises(KeyError, match="the disk is full"):
        calls.generate(FOX, before_send=refuse)
    assert not gateway.requests


def test_before_send_may_forbid_the_second_post(png: bytes) -> None:
    answers = iter([None, KeyError("stop")])

    def once() -> None:
        if (error := next(answers)) is not None:
            raise error

    with Gateway(image=png, response_format="rejected") as gateway, Client(gateway.token, gateway.url) as one:
        with pytest.raises(KeyError):
            one.generate(FOX, before_send=once)
        assert len(gateway.requests) == 1


def test_the_request_id_is_reported_before_the_body_arrives(gateway: Gateway) -> None:
    with Client(gateway.token, gateway.url, read_timeout=0.5) as one:
        facts: list[tuple[str, str]] = []
        refused(lambda: one.generate(asking("stalls"), on_fact=lambda *fact: facts.append(fact)))
    assert facts == [("request_id", gateway.settlements[0].request_id)]


def test_a_link_is_reported_whole_before_it_is_downloaded(gateway: Gateway, calls: Client) -> None:
    facts: dict[str, str] = {}

    def on_fact(name: str, value: str) -> None:
        facts[name] = value
        if name == "link":
            assert not gateway.fetches

    calls.generate(asking("url_reply"), on_fact=on_fact).close()
    assert facts["link"].startswith(f"{gateway.url}/sandbox/images/")
    assert len(gateway.fetches) == 1


def test_lost_links_are_on_the_error_and_not_in_its_text() -> None:
    body = json.dumps({"data": [{"url": "https://127.0.0.1:9/fox.png?Signature=secret"}]}).encode()
    with raw(lambda exchange: exchange.answer(200, body)) as (_, one):
        error = refused(lambda: one.generate(FOX))
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
    with Gateway(image=png) as gateway, Client(gateway.token, gateway.url, decode_slots=slots) as one:
        one.generate(FOX).close()
    assert slots.held >= 1


# --- how replies travel -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [case.name for case in CASES.values() if case.good])
def test_every_good_reply_gives_its_images(gateway: Gateway, calls: Client, png: bytes, case: str) -> None:
    generation = calls.generate(asking(case, n=2))
    assert [bytes_of(image) for image in generation.images] == [png, png]
    assert len(gateway.requests) == 1
    generation.close()


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
def test_the_body_may_end_in_any_way(calls: Client, png: bytes, framing: str) -> None:
    generation = calls.generate(asking(f"ok framing={framing} drip=0.05"))
    assert bytes_of(generation.images[0]) == png
    generation.close()


def test_a_compressed_reply_in_small_pieces_is_understood() -> None:
    body = gzip.compress(document_of(*[small_png(64)] * 3))

    def behave(exchange: Exchange) -> None:
        exchange.send(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n")
        for start in range(0, len(body), 7):
            piece = body[start : start + 7]
            exchange.send(b"%x\r\n%s\r\n" % (len(piece), piece))
        exchange.send(b"0\r\n\r\n")

    with raw(behave) as (_, one):
        generation = one.generate(FOX)
    assert [bytes_of(image) for image in generation.images] == [small_png(64)] * 3
    generation.close()


def test_a_reply_that_ends_in_the_middle_is_told_of_in_plain_words() -> None:
    piece = document_of(small_png(64))[:-100]

    def behave(exchange: Exchange) -> None:
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        exchange.send(head + b"%x\r\n%s\r\n" % (len(piece), piece))

    with raw(behave) as (_, one), pytest.raises(Img2Error) as caught:
        one.generate(FOX)
    assert "it was interrupted: the connection closed in the middle" in str(caught.value)
    assert caught.value.billed == "yes"


def test_a_compressed_reply_that_breaks_off_is_refused() -> None:
    body = gzip.compress(document_of(small_png(64)))

    def behave(exchange: Exchange) -> None:
        exchange.send(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nConnection: close\r\n\r\n" + body[:-100])

    with raw(behave) as (_, one):
        error = refused(lambda: one.generate(FOX))
    assert (error.kind, error.billed) == (Kind.REPLY, "yes")


def test_an_image_larger_than_any_piece_arrives_whole(png: bytes) -> None:
    large = png + os.urandom(3_000_000)
    with raw(lambda exchange: exchange.answer(200, document_of(large, large))) as (_, one):
        generation = one.generate(FOX)
    assert [image.file.sha256 for image in generation.images] == [hashlib.sha256(large).hexdigest()] * 2
    generation.close()


def test_type_and_size_come_from_the_image_not_from_the_request() -> None:
    with raw(lambda exchange: exchange.answer(200, document_of(small_png(32, "WEBP"), size="9x9"))) as (
        _,
        one,
    ):
        generation = one.generate(ImageRequest("a fox", output_format="png"))
    assert (generation.images[0].content_type, generation.images[0].width) == ("image/webp", 32)
    generation.close()


# --- replies that cannot be used ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("impatient")
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
def test_a_200_without_images_is_an_error(
    gateway: Gateway, calls: Client, case: str, kind: Kind, billed: str
) -> None:
    error = refused(lambda: calls.generate(asking(case)))
    assert (error.kind, error.billed) == (kind, billed)
    assert len(gateway.requests) == 1
    if case not in ("reset", "close"):
        assert error.status_code == 200
        assert error.request_id == gateway.requests[0].request_id
    assert TOKEN not in str(error)


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("end", ["fin", "rst"])
@pytest.mark.parametrize("case", ["truncated", "truncated_mid_image"])
def test_images_that_arrived_whole_are_kept_when_a_reply_breaks_off(
    calls: Client, png: bytes, case: str, end: str, framing: str
) -> None:
    error = refused(
        lambda: calls.generate(asking(f"{case} truncate_after=2 end={end} framing={framing}", n=4))
    )
    assert (error.kind, error.billed) == (Kind.REPLY, "yes")
    assert [(image.index, bytes_of(image)) for image in error.salvaged] == [(0, png), (1, png)]
    for image in error.salvaged:
        image.file.close()


def test_images_beside_a_broken_one_are_kept(png: bytes) -> None:
    with raw(lambda exchange: exchange.answer(200, document_of(png, b"no picture", png))) as (_, one):
        generation = one.generate(ImageRequest("a fox", n=3))
    assert [(image.index, bytes_of(image)) for image in generation.images] == [(0, png), (2, png)]
    assert "2 of 3 requested images arrived: image 2 is not a PNG" in generation.warnings[0]
    generation.close()


def test_images_before_a_cut_one_are_kept(png: bytes) -> None:
    with raw(lambda exchange: exchange.answer(200, document_of(png, png)[:-30])) as (_, one):
        error = refused(lambda: one.generate(ImageRequest("a fox", n=2)))
    assert [bytes_of(image) for image in error.salvaged] == [png]
    error.salvaged[0].file.close()


@pytest.mark.usefixtures("impatient")
def test_linked_images_beside_a_broken_one_are_kept(gateway: Gateway, png: bytes) -> None:
    def behave(exchange: Exchange) -> None:
        if exchange.request.target == "/fox.png":
            exchange.answer(200, png)
        elif exchange.request.method == "GET":
            exchange.answer(404)
        else:
            data = [{"url": f"{server.url}/fox.png"}, {"url": f"{server.url}/gone.png"}]
            exchange.answer(200, json.dumps({"data": data}).encode())

    with raw(behave) as (server, one):
        error = refused(lambda: one.generate(FOX))
    (image,) = error.salvaged
    assert (image.index, bytes_of(image)) == (0, png)
    image.file.close()


def test_a_key_that_stands_twice_in_a_broken_reply_is_no_trap(png: bytes) -> None:
    encoded = base64.b64encode(png)
    body = b'{"data":[{"b64_json":"%s","b64_json":"%s"},{}]}' % (encoded, encoded)
    with raw(lambda exchange: exchange.answer(200, body)) as (_, one):
        generation = one.generate(FOX)
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
def test_files_of_a_reply_that_cannot_be_used_are_closed(body: bytes, tmp_path: Path) -> None:
    files: list[ImageFile] = []

    def open_file(index: int) -> ImageFile:
        files.append(ImageFile(tmp_path / f"{index}.part"))
        return files[-1]

    with raw(lambda exchange: exchange.answer(200, body)) as (_, one):
        error = refused(lambda: one.generate(FOX, open_file))
    assert error.salvaged == []
    assert all(file.file.closed for file in files)


@pytest.mark.usefixtures("impatient")
def test_nothing_is_left_open_whatever_happens(calls: Client, gateway: Gateway) -> None:
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
                calls.generate(asking(case)).close()
            except Img2Error:
                pass
        gc.collect()
    assert [str(one.message) for one in seen if issubclass(one.category, ResourceWarning)] == []


def test_a_full_disk_is_told_apart_from_a_broken_reply() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs /dev/full")

    class OnFullDisk(ImageFile):
        def write(self, data: bytes) -> None:
            with full.open("wb", buffering=0) as disk:
                disk.write(data)

    with raw(lambda exchange: exchange.answer(200, document_of(small_png()))) as (_, one):
        error = refused(lambda: one.generate(FOX, lambda _: OnFullDisk()))
    assert (error.kind, error.billed) == (Kind.REPLY, "yes")
    assert "disk: No space left on device" in str(error)


@pytest.mark.parametrize("how", ["base64", "link"])
def test_an_image_past_the_size_limit_is_refused(
    monkeypatch: pytest.MonkeyPatch, how: str, png: bytes
) -> None:
    monkeypatch.setattr(images, "MAX_IMAGE_BYTES", 1000)

    def behave(exchange: Exchange) -> None:
        if exchange.request.method == "GET":
            exchange.answer(200, png)
        elif how == "link":
            exchange.answer(200, json.dumps({"data": [{"url": f"{server.url}/fox.png"}]}).encode())
        else:
            exchange.answer(200, document_of(png))

    with raw(behave) as (server, one):
        error = refused(lambda: one.generate(FOX))
    assert (error.kind, error.billed) == (Kind.REPLY, "yes")
    assert "larger than 1,000 bytes" in str(error)


@pytest.mark.usefixtures("impatient")
def test_neither_image_data_nor_the_token_gets_into_an_error() -> None:
    secret = base64.b64encode(os.urandom(60)).decode()
    answers = [
        (500, json.dumps({"error": {"message": f"{TOKEN} {secret}", "code": TOKEN}})),
        (200, json.dumps({"error": {"message": f"{TOKEN} {secret}"}})),
        (400, f"<html><title>{TOKEN} {secret}</title>"),
        (502, f"{TOKEN} {secret}"),
        (200, f'{{"data":[{{"b64_json":"{secret}!"}}]}}'),
        (200, f'{{"data":[{{"url":"https://{TOKEN}.invalid/?{secret}"}}]}}'),
    ]
    for status, body in answers:
        headers = {"X_Oneapi_Request_Id": TOKEN, "CF_RAY": TOKEN}
        with raw(lambda exchange, s=status, b=body, h=headers: exchange.answer(s, b.encode(), **h)) as (
            _,
            one,
        ):
            error = refused(lambda: one.generate(FOX))
        for text in (str(error), repr(error), error.request_id, error.cf_ray, error.code, error.detail):
            assert TOKEN[3:] not in (text or "")
            assert secret[:40] not in (text or "")


def test_the_token_is_not_shown_by_what_holds_it(calls: Client, gateway: Gateway) -> None:
    for thing in (calls, calls.session, calls.session.auth):
        assert gateway.token not in repr(thing)


# --- links --------------------------------------------------------------------------------------------------------


def linking_to(url: str) -> Callable[[Exchange], None]:
    return lambda exchange: exchange.answer(200, json.dumps({"data": [{"url": url}]}).encode())


def test_an_image_on_the_gateways_own_host_is_fetched_without_the_token(
    gateway: Gateway, calls: Client, png: bytes
) -> None:
    generation = calls.generate(asking("url_reply"))
    assert bytes_of(generation.images[0]) == png
    (fetch,) = gateway.fetches
    assert not fetch.authorised
    generation.close()


def test_netrc_logins_are_not_sent_to_an_image_host(
    calls: Client, gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("default login joe password s3cret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    calls.generate(asking("url_reply")).close()
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


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    "number", range(len(forbidden_links(0))), ids=lambda number: forbidden_links(0)[number]
)
def test_a_link_to_where_no_image_may_come_from_is_not_followed(number: int, authority: Authority) -> None:
    with Server(lambda exchange: exchange.answer(200, small_png()), tls=authority.server) as forbidden:
        link = forbidden_links(forbidden.port)[number]
        with raw(linking_to(link), verify=str(authority.bundle)) as (_, one):
            error = refused(lambda: one.generate(FOX))
        assert forbidden.requests == []
    assert (error.kind, error.billed) == (Kind.REPLY, "yes")
    assert "secret" not in str(error)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    "number", range(len(forbidden_links(0))), ids=lambda number: forbidden_links(0)[number]
)
def test_a_redirect_to_where_no_image_may_come_from_is_not_followed(
    number: int, authority: Authority
) -> None:
    def behave(exchange: Exchange) -> None:
        if exchange.request.method == "POST":
            linking_to(f"{server.url}/fox.png")(exchange)
        else:
            exchange.answer(302, Location=link)

    with Server(lambda exchange: exchange.answer(200, small_png()), tls=authority.server) as forbidden:
        link = forbidden_links(forbidden.port)[number]
        with raw(behave, verify=str(authority.bundle)) as (server, one):
            error = refused(lambda: one.generate(FOX))
        assert forbidden.requests == []
    assert (error.kind, error.billed) == (Kind.REPLY, "yes")


def test_a_login_in_a_link_to_the_own_host_is_refused_too(png: bytes) -> None:
    def behave(exchange: Exchange) -> None:
        linking_to(f"http://joe:secret@127.0.0.1:{server.port}/fox.png")(exchange)

    with raw(behave) as (server, one):
        error = refused(lambda: one.generate(FOX))
        assert len(server.requests) == 1
    assert "login" in str(error)


def test_a_redirect_on_the_own_host_is_followed_a_few_times(png: bytes) -> None:
    def behave(exchange: Exchange) -> None:
        step = exchange.request.target.removeprefix("/step/")
        if exchange.request.method == "POST":
            linking_to(f"{server.url}/step/{start}")(exchange)
        elif step == "0":
            exchange.answer(200, png)
        else:
            exchange.answer(302, Location=f"/step/{int(step) - 1}")

    with raw(behave) as (server, one):
        start = download.MAX_REDIRECTS
        generation = one.generate(FOX)
        assert bytes_of(generation.images[0]) == png
        generation.close()
        start += 1
        error = refused(lambda: one.generate(FOX))
    assert "redirects more than" in str(error)
    assert len(server.requests) == 2 * (2 + download.MAX_REDIRECTS)


def test_a_link_that_is_no_image_is_refused() -> None:
    def behave(exchange: Exchange) -> None:
        if exchange.request.method == "POST":
            linking_to(f"{server.url}/fox.png")(exchange)
        else:
            exchange.answer(200, b"<html>gone</html>")

    with raw(behave) as (server, one):
        error = refused(lambda: one.generate(FOX))
    assert (error.kind, error.billed) == (Kind.REPLY, "yes")
    assert "not PNG, JPEG or WebP" in str(error)


@pytest.mark.usefixtures("impatient")
def test_a_download_that_breaks_off_is_refused(png: bytes) -> None:
    def behave(exchange: Exchange) -> None:
        if exchange.request.method == "POST":
            linking_to(f"{server.url}/fox.png")(exchange)
        else:
            exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(png) + png[:-1])

    with raw(behave) as (server, one):
        error = refused(lambda: one.generate(FOX))
    assert (error.kind, error.billed) == (Kind.REPLY, "yes")


def waiting(exchange: Exchange) -> None:
    exchange.wait_until_gone()


STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
PING = b": PING\n\n"


def event(kind: str, picture: bytes) -> bytes:
    document = {"type": f"image_generation.{kind}", "b64_json": base64.b64encode(picture).decode()}
    return b"data: " + json.dumps(document).encode() + b"\n\n"


@pytest.mark.parametrize("came", [b"", event("partial_image", b"half a fox")], ids=["nothing", "a preview"])
def test_a_stream_that_only_pings_is_given_up_and_may_have_been_billed(
    came: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(estimate.SECONDS, "low", 0.0)
    given_up = threading.Event()

    def pinging(exchange: Exchange) -> None:
        exchange.send(STREAM + came)
        for _ in range(2000):  # an end, lest a client that never gives up keeps the test forever
            exchange.send(PING)
            if given_up.wait(0.01):
                return

    with raw(pinging, read_timeout=1) as (server, one):
        error = refused(
            lambda: one.generate(
                ImageRequest("a fox", stream=True), lambda index: ImageFile(tmp_path / f"{index}.part")
            )
        )
        given_up.set()
        assert len(server.requests) == 1
    assert (error.kind, error.billed, error.is_safe_to_resend) == (Kind.UNKNOWN_OUTCOME, "unknown", False)
    assert error.salvaged == []
    kept = [(path.name, path.read_bytes()) for path in tmp_path.iterdir()]
    assert kept == ([("0.preview", b"half a fox")] if came else [])


@pytest.mark.parametrize("after", [b"", PING], ids=["silence", "pings"])
def test_a_whole_stream_without_usage_is_not_waited_for_long(
    after: bytes, png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receive, "USAGE_WAIT", 0.2)
    received = threading.Event()

    def behave(exchange: Exchange) -> None:
        exchange.send(STREAM + event("completed", png))
        while not received.wait(0.02):
            exchange.send(after)

    with raw(behave, read_timeout=60) as (_, one):
        generation = one.generate(ImageRequest("a fox", stream=True))
        received.set()
    assert bytes_of(generation.images[0]) == png
    assert generation.usage is None
    assert generation.seconds < 30
    generation.close()


def test_a_reply_of_pings_alone_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(estimate.SECONDS, "low", 0.0)
    given_up = threading.Event()

    def behave(exchange: Exchange) -> None:
        exchange.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
        while not given_up.wait(0.02):
            exchange.send(b"\n")

    with raw(behave, read_timeout=0.5) as (_, one):
        error = refused(lambda: one.generate(FOX))
        given_up.set()
    assert (error.kind, error.billed) == (Kind.UNKNOWN_OUTCOME, "unknown")


class Clock:
    """A clock that stands still until it is told otherwise."""

    def __init__(self) -> None:
        self.now = 0.0
        self.time = time.time

    def monotonic(self) -> float:
        return self.now


def test_an_image_that_had_come_before_a_stream_only_pinged_is_kept(
    png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(receive, "time", clock)
    given_up = threading.Event()

    def behave(exchange: Exchange) -> None:
        exchange.send(STREAM + event("completed", png))
        for _ in range(2000):
            clock.now += client.READ_TIMEOUT
            exchange.send(PING)
            if given_up.wait(0.01):
                return

    with raw(behave) as (_, one):
        error = refused(lambda: one.generate(ImageRequest("a fox", stream=True, n=2)))
        given_up.set()
    assert error.kind is Kind.UNKNOWN_OUTCOME
    (image,) = error.salvaged
    assert bytes_of(image) == png
    image.file.close()


def test_a_stream_may_take_long_while_it_brings_something_of_an_image(
    png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(receive, "time", clock)
    monkeypatch.setattr(client, "time", clock)
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

    with raw(behave) as (_, one):
        generation = one.generate(request, open_file)
    assert bytes_of(generation.images[0]) == png
    assert generation.seconds > 4 * patience
    generation.close()


def resetting(exchange: Exchange) -> None:
    exchange.reset()


def breaking_off(exchange: Exchange) -> None:
    """Send the beginning of another picture, longer than the one that is meant."""
    exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n" + os.urandom(50_000))


def answering(status: int) -> Callable[[Exchange], None]:
    return lambda exchange: exchange.answer(status, b"not now")


TRANSIENT = {
    "reset": resetting,
    "break": breaking_off,
    "silence": waiting,
    **{str(status): answering(status) for status in (404, 408, 429, 500, 502, 503, 504)},
}


@contextmanager
def image_host(*answers: Callable[[Exchange], object], links: int = 1) -> Iterator[tuple[Server, Client]]:
    """A gateway that links to ``/0.png``, ``/1.png`` …; the first is answered by ``answers`` in turn."""

    def behave(exchange: Exchange) -> None:
        if exchange.request.method == "POST":
            data = [{"url": f"{server.url}/{number}.png"} for number in range(links)]
            exchange.answer(200, json.dumps({"data": data}).encode())
        elif exchange.request.target == "/0.png":
            next(turns)(exchange)
        else:
            exchange.answer(200, small_png(16 + int(exchange.request.target[1])))

    turns = iter(answers)
    with raw(behave, read_timeout=0.5) as (server, one):
        yield server, one


def fetches_of(server: Server) -> list[str]:
    return [request.target for request in server.requests if request.method == "GET"]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("failure", TRANSIENT.values(), ids=TRANSIENT)
def test_a_linked_image_survives_two_failures_of_its_host(
    failure: Callable[[Exchange], None], png: bytes
) -> None:
    with image_host(failure, failure, lambda exchange: exchange.answer(200, png)) as (server, one):
        generation = one.generate(FOX)
        assert len(server.requests) == 1 + 3
        assert all("authorization" not in request.headers for request in server.requests[1:])
    (image,) = generation.images
    assert bytes_of(image) == png
    assert (image.file.size, image.file.sha256) == (len(png), hashlib.sha256(png).hexdigest())
    generation.close()


@pytest.mark.usefixtures("impatient")
def test_a_linked_image_that_never_comes_is_given_up_and_those_behind_it_are_kept() -> None:
    with image_host(*[answering(503)] * download.TRIES, links=3) as (server, one):
        error = refused(lambda: one.generate(FOX))
        assert fetches_of(server) == ["/0.png"] * download.TRIES + ["/1.png", "/2.png"]
    assert (error.kind, error.billed) == (Kind.REPLY, "yes")
    assert "HTTP 503" in str(error)
    assert [(image.index, bytes_of(image)) for image in error.salvaged] == [
        (number, small_png(16 + number)) for number in (1, 2)
    ]
    for image in error.salvaged:
        image.file.close()


@pytest.mark.parametrize("status", [401, 403, 410])
def test_a_link_that_is_refused_for_good_is_tried_once(status: int) -> None:
    with image_host(answering(status), links=2) as (server, one):
        error = refused(lambda: one.generate(FOX))
        assert fetches_of(server) == ["/0.png", "/1.png"]
    assert f"HTTP {status}" in str(error)
    error.salvaged[0].file.close()


def test_a_link_to_what_is_no_image_is_tried_once() -> None:
    with image_host(lambda exchange: exchange.answer(200, b"<html>gone</html>")) as (server, one):
        refused(lambda: one.generate(FOX))
        assert fetches_of(server) == ["/0.png"]


def test_a_full_disk_ends_a_download() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs /dev/full")

    class OnFullDisk(ImageFile):
        def write(self, data: bytes) -> None:
            with full.open("wb", buffering=0) as disk:
                disk.write(data)

    with image_host(lambda exchange: exchange.answer(200, small_png())) as (server, one):
        error = refused(lambda: one.generate(FOX, lambda _: OnFullDisk()))
        assert fetches_of(server) == ["/0.png"]
    assert "disk: No space left on device" in str(error)


def test_cut_ends_the_wait_before_another_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "WAIT", 600.0)
    waits = threading.Event()

    class Waits(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            waits.set()

    handler = Waits(logging.WARNING)
    download.log.addHandler(handler)
    try:
        with image_host(answering(503), links=2) as (server, one), ThreadPoolExecutor() as pool:
            answer = pool.submit(refused, lambda: one.generate(FOX))
            assert waits.wait(PATIENCE)
            one.abort()
            error = answer.result(10)
            assert fetches_of(server) == ["/0.png"]
    finally:
        download.log.removeHandler(handler)
    assert (error.kind, error.billed) == (Kind.REPLY, "yes")


def test_cut_breaks_off_a_download(png: bytes) -> None:
    arrived = threading.Event()

    def never_ending(exchange: Exchange) -> None:
        exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n" + png)
        arrived.set()
        exchange.wait_until_gone()

    with image_host(never_ending, links=2) as (server, one), ThreadPoolExecutor() as pool:
        one.timeout = (10.0, 60.0)
        answer = pool.submit(refused, lambda: one.generate(FOX))
        assert arrived.wait(PATIENCE)
        one.abort()
        error = answer.result(10)
        assert fetches_of(server) == ["/0.png"]
    assert (error.kind, error.billed) == (Kind.REPLY, "yes")


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_in_ipv6_clothes_is_judged_as_what_it_is(address: Any) -> None:
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
def test_addresses_that_are_not_public_do_not_pass(address: str) -> None:
    with pytest.raises(addresses.ForbiddenAddress):
        addresses.require_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_public_addresses_pass(address: str) -> None:
    addresses.require_public(address)


# --- when the network fails ---------------------------------------------------------------------------------------


def test_a_server_that_is_not_there_was_not_paid() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    error = refused(lambda: Client(TOKEN, f"http://127.0.0.1:{port}").generate(FOX))
    assert (error.kind, error.billed, error.is_safe_to_resend) == (Kind.UNREACHABLE, "no", True)
    assert "Connection refused" in str(error)


def test_a_name_that_does_not_exist_was_not_paid() -> None:
    error = refused(lambda: Client(TOKEN, "https://jojokey.invalid").generate(FOX))
    assert (error.kind, error.billed) == (Kind.UNREACHABLE, "no")


def test_an_answer_that_does_not_come_may_have_been_billed(gateway: Gateway) -> None:
    with Client(gateway.token, gateway.url, read_timeout=0.2) as one:
        error = refused(lambda: one.generate(asking("hang")))
    assert (error.kind, error.billed, error.is_safe_to_resend) == (Kind.UNKNOWN_OUTCOME, "unknown", False)
    assert "timed out" in str(error).lower()
    assert len(gateway.requests) == 1


def test_a_reply_that_stalls_is_given_up_and_was_billed(gateway: Gateway) -> None:
    with Client(gateway.token, gateway.url, read_timeout=0.2) as one:
        error = refused(lambda: one.generate(asking("stalls")))
    assert (error.kind, error.billed) == (Kind.REPLY, "yes")
    gateway.wait_until_idle(PATIENCE)


@pytest.mark.parametrize("before", [b"", b"HTTP/1.1", b"garbage\r\n\r\n"])
def test_an_answer_without_a_whole_head_may_have_been_billed(before: bytes) -> None:
    with raw(lambda exchange: exchange.send(before) if before else None) as (server, one):
        error = refused(lambda: one.generate(FOX))
        assert len(server.requests) == 1
    assert (error.kind, error.billed) == (Kind.UNKNOWN_OUTCOME, "unknown")


def test_a_reset_after_sending_may_have_been_billed() -> None:
    with raw(lambda exchange: exchange.reset()) as (server, one):
        error = refused(lambda: one.generate(FOX))
        assert len(server.requests) == 1
    assert (error.kind, error.billed) == (Kind.UNKNOWN_OUTCOME, "unknown")
    assert "reset" in str(error)


@pytest.mark.parametrize("status", [500, 503])
def test_an_error_whose_body_breaks_off_is_still_that_error(status: int) -> None:
    body = b'{"error":{"message":"No channel","code":"model_not_found'

    def behave(exchange: Exchange) -> None:
        head = f"HTTP/1.1 {status} No\r\nX-Oneapi-Request-Id: abc\r\nContent-Length: 500\r\n\r\n"
        exchange.send(head.encode() + body)

    with raw(behave) as (_, one):
        error = refused(lambda: one.generate(FOX))
    assert (error.kind, error.billed, error.request_id) == (Kind.OVERLOADED, "no", "abc")


def test_an_endless_error_page_is_read_only_so_far() -> None:
    def behave(exchange: Exchange) -> None:
        exchange.send(b"HTTP/1.1 500 No\r\nConnection: close\r\n\r\n")
        while True:
            exchange.send(b"x" * 65536)  # until the client goes away

    with raw(behave) as (_, one):
        error = refused(lambda: one.generate(FOX))
    assert len(error.detail) <= 500


# --- TLS ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def secure(authority: Authority) -> Iterator[Server]:
    with Server(
        lambda exchange: exchange.answer(200, document_of(small_png())), tls=authority.server
    ) as server:
        yield server


def test_a_certificate_nobody_vouches_for_is_refused_before_anything_is_sent(secure: Server) -> None:
    error = refused(lambda: Client(TOKEN, secure.url).generate(FOX))
    assert (error.kind, error.billed) == (Kind.TLS, "no")
    assert secure.requests == []


def test_a_ca_bundle_of_ones_own_is_trusted(secure: Server, authority: Authority) -> None:
    Client(TOKEN, secure.url, verify=str(authority.bundle)).generate(FOX).close()


def test_the_environments_ca_bundle_is_used_where_the_connection_says_nothing(
    secure: Server, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority.bundle))
    Client(TOKEN, secure.url).generate(FOX).close()


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
@pytest.mark.parametrize("name", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_the_environments_ca_bundle_does_not_undo_verify_false(
    secure: Server, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, requests.certs.where())
    Client(TOKEN, secure.url, verify=False).generate(FOX).close()


def test_the_environments_ca_bundle_does_not_replace_ones_own(
    secure: Server, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", requests.certs.where())
    Client(TOKEN, secure.url, verify=str(authority.bundle)).generate(FOX).close()


def test_https_to_a_server_without_tls_was_not_paid() -> None:
    with Server(lambda exchange: exchange.answer(400)) as server:
        error = refused(lambda: Client(TOKEN, server.url.replace("http:", "https:")).generate(FOX))
    assert (error.kind, error.billed) == (Kind.TLS, "no")


def test_a_handshake_that_never_ends_was_not_paid() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        error = refused(lambda: Client(TOKEN, f"https://127.0.0.1:{port}", connect_timeout=0.2).generate(FOX))
    assert (error.kind, error.billed) == (Kind.UNREACHABLE, "no")


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_ca_bundle_that_cannot_be_read_was_not_paid(
    secure: Server, tmp_path: Path, content: str | None
) -> None:
    bundle = tmp_path / "ca.pem"
    if content:
        bundle.write_text(content)
    error = refused(lambda: Client(TOKEN, secure.url, verify=str(bundle)).generate(FOX))
    assert (error.kind, error.billed) == (Kind.TLS, "no")
    assert secure.requests == []


def test_what_is_trusted_is_read_once_for_all_connections(
    secure: Server, authority: Authority, tmp_path: Path
) -> None:
    bundle = tmp_path / "ca.pem"
    shutil.copy(authority.bundle, bundle)
    with Client(TOKEN, secure.url, verify=str(bundle)) as one:
        one.generate(FOX).close()
        bundle.write_text("no certificate any more")
        one.generate(FOX).close()
    assert len(secure.requests) == 2


def test_another_hosts_certificate_is_refused_each_time(tmp_path: Path) -> None:
    authority = Authority.make(tmp_path, address="127.0.0.9")
    with (
        Server(lambda exchange: exchange.answer(200), tls=authority.server) as server,
        Client(TOKEN, server.url, verify=str(authority.bundle)) as one,
    ):
        errors = [refused(lambda: one.generate(FOX)) for _ in range(2)]
        assert server.requests == []
    assert [(error.kind, error.billed) for error in errors] == [(Kind.TLS, "no")] * 2


def test_tls_that_breaks_after_sending_may_have_been_billed(authority: Authority) -> None:
    def break_tls(exchange: Exchange) -> None:
        with socket.socket(fileno=os.dup(exchange.socket.fileno())) as plain:
            plain.sendall(b"this is no TLS record at all" * 20)

    with Server(break_tls, tls=authority.server) as server:
        error = refused(lambda: Client(TOKEN, server.url, verify=str(authority.bundle)).generate(FOX))
    assert (error.kind, error.billed) == (Kind.UNKNOWN_OUTCOME, "unknown")


def test_images_come_whole_over_tls(authority: Authority, png: bytes) -> None:
    large = png + os.urandom(1_500_000)
    with Server(lambda exchange: exchange.answer(200, document_of(large)), tls=authority.server) as server:
        generation = Client(TOKEN, server.url, verify=str(authority.bundle)).generate(FOX)
    assert generation.images[0].file.sha256 == hashlib.sha256(large).hexdigest()
    generation.close()


# --- the environment ------------------------------------------------------------------------------------------------


def test_netrc_does_not_replace_the_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login joe password s3cret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with raw(lambda exchange: exchange.answer(200)) as (server, one):
        refused(lambda: one.generate(FOX))
    assert server.requests[0].headers["authorization"] == f"Bearer {TOKEN}"


def test_the_proxy_of_the_connection_is_used(gateway: Gateway) -> None:
    with proxy() as way, Client(gateway.token, gateway.url, proxy=way.url) as one:
        one.generate(FOX).close()
        assert "gpt-image-2" in one.list_models()
    assert [request.method for request in way.requests] == ["POST", "GET"]


def test_https_goes_through_the_proxy_in_a_tunnel(secure: Server, authority: Authority) -> None:
    with proxy() as way:
        Client(TOKEN, secure.url, proxy=way.url, verify=str(authority.bundle)).generate(FOX).close()
    (tunnel,) = way.requests
    assert tunnel.method == "CONNECT"
    assert "authorization" not in tunnel.headers


def test_the_environments_proxy_is_used_where_the_connection_says_nothing(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    with proxy() as way:
        monkeypatch.setenv("HTTP_PROXY", way.url)
        Client(gateway.token, gateway.url).generate(FOX).close()
    assert len(way.requests) == 1


def test_the_environments_proxy_does_not_replace_ones_own(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with proxy() as way:
        Client(gateway.token, gateway.url, proxy=way.url).generate(FOX).close()
    assert len(way.requests) == 1


def test_a_proxys_login_is_sent_to_the_proxy_and_shown_nowhere(gateway: Gateway) -> None:
    login = "Basic " + base64.b64encode(b"joe:s3cret").decode()
    with proxy(login) as way:
        Client(gateway.token, gateway.url, proxy=way.url.replace("//", "//joe:s3cret@")).generate(FOX).close()
        error = refused(
            lambda: Client(
                TOKEN, "https://127.0.0.1:9", proxy=way.url.replace("//", "//joe:wr0ng@")
            ).generate(FOX)
        )
    assert (error.kind, error.billed) == (Kind.UNREACHABLE, "no")
    assert "wr0ng" not in str(error)
    assert "407" in str(error)


def test_a_proxy_that_is_not_there_was_not_paid(gateway: Gateway) -> None:
    error = refused(lambda: Client(gateway.token, gateway.url, proxy="http://127.0.0.1:9").generate(FOX))
    assert (error.kind, error.billed) == (Kind.UNREACHABLE, "no")
    assert "proxy" in str(error)
    assert gateway.requests == ()


@pytest.mark.parametrize("secured", [False, True], ids=["plain", "tunnel"])
def test_an_answer_lost_on_the_way_through_a_proxy_may_have_been_billed(
    secured: bool, authority: Authority
) -> None:
    with Server(lambda exchange: None, tls=authority.server if secured else None) as server, proxy() as way:
        one = Client(TOKEN, server.url, proxy=way.url, verify=str(authority.bundle))
        error = refused(lambda: one.generate(FOX))
        assert len(server.requests) == 1
    assert (error.kind, error.billed, error.is_safe_to_resend) == (Kind.UNKNOWN_OUTCOME, "unknown", False)


@pytest.mark.parametrize(
    ("url", "warned"),
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
def test_a_token_that_would_cross_a_network_unencrypted_is_warned_of(
    url: str, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    Client(TOKEN, url)
    assert ("unencrypted" in caplog.text) is warned
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
    ],
)
def test_a_base_url_is_read_as_people_write_it(written: str | None, base: str) -> None:
    assert Client(TOKEN, written).base_url == base


@pytest.mark.parametrize(
    "written",
    ["ftp://api.jojokey.com", "https://", "https://host:port", "https://host:99999", "https://[::1", "s3://bucket",
     "https://joe@host", "https://joe:secret@host", "https://host/?key=1", "https://host/#v1"],
)  # fmt: skip
def test_a_base_url_that_is_none_is_refused(written: str) -> None:
    with pytest.raises(ValueError, match=r"host|URL") as caught:
        Client(TOKEN, written)
    assert "secret" not in str(caught.value)


def test_a_token_that_no_header_can_hold_was_not_sent(gateway: Gateway) -> None:
    for token in ("sk-令牌", "sk-a\nb"):
        error = refused(lambda token=token: Client(token, gateway.url).generate(FOX))
        assert (error.kind, error.billed) == (Kind.TOKEN, "no")
    assert gateway.requests == ()


# --- what is free ---------------------------------------------------------------------------------------------------


def test_listing_models_pays_nothing(gateway: Gateway, calls: Client) -> None:
    assert calls.list_models() == ["gpt-image-2"]
    assert gateway.requests == ()
    assert gateway.charges == ()


def test_a_tokens_usage_is_told(gateway: Gateway, calls: Client) -> None:
    calls.generate(FOX).close()
    assert calls.token_usage()["total_used"] == gateway.charges[0].quota


@pytest.mark.parametrize(
    ("token", "words"),
    [
        ("sk-unknown", "does not know this token"),
        ("sk-expired", "expired on 20"),
        ("sk-exhausted", "quota is used up"),
    ],
)
def test_a_refused_token_is_explained(gateway: Gateway, token: str, words: str) -> None:
    assert words in (Client(token, gateway.url).explain_rejected_token() or "")


def test_a_token_is_not_explained_where_the_gateway_does_not_tell() -> None:
    with raw(lambda exchange: exchange.answer(200, b"<html>", Content_Type="text/html")) as (_, one):
        assert one.explain_rejected_token() is None


@pytest.mark.parametrize(
    "body", [b"[]", b"7", b"null", b"{}", b'{"data":"x"}', b'{"data":null}', b"", b"<html>", b"OK"]
)
@pytest.mark.parametrize("call", ["list_models", "token_usage", "billing_log"])
def test_a_free_call_never_talks_of_money(call: str, body: bytes) -> None:
    with raw(lambda exchange: exchange.answer(200, body)) as (_, one):
        error = refused(getattr(one, call))
    assert error.kind is Kind.BASE_URL
    assert error.billed == "no"
    assert "You were not charged." in str(error)


@pytest.mark.parametrize("status", [500, 502, 524])
def test_a_free_call_that_fails_was_not_billed(status: int) -> None:
    with raw(lambda exchange: exchange.answer(status)) as (_, one):
        error = refused(one.list_models)
    assert error.billed == "no"


def test_a_free_call_gives_up_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    assert client.FREE_CALL_TIMEOUT <= 10
    monkeypatch.setattr(client, "FREE_CALL_TIMEOUT", 0.2)
    with raw(lambda exchange: exchange.wait_until_gone(), read_timeout=300) as (_, one):
        error = refused(one.list_models)
    assert (error.kind, error.billed) == (Kind.UNREACHABLE, "no")


# --- cutting --------------------------------------------------------------------------------------------------------


def stalling(exchange: Exchange) -> None:
    """Send a head, after which the connection closes, and half an image."""
    exchange.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + document_of(small_png())[:-30])
    exchange.wait_until_gone()


@pytest.mark.parametrize(
    ("behave", "kind"), [(waiting, Kind.UNKNOWN_OUTCOME), (stalling, Kind.REPLY)], ids=["waiting", "stalling"]
)
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_cut_wakes_who_waits_at_once(
    behave: Callable[[Exchange], None], kind: Kind, tls: bool, authority: Authority
) -> None:
    with Server(behave, tls=authority.server if tls else None) as server, ThreadPoolExecutor() as pool:
        one = Client(TOKEN, server.url, read_timeout=60, verify=str(authority.bundle))
        begun = threading.Event()

        def open_file(_: int) -> ImageFile:
            begun.set()
            return ImageFile()

        answer = pool.submit(refused, lambda: one.generate(FOX, open_file))
        server.wait_for_request(timeout=PATIENCE)
        if behave is stalling:
            assert begun.wait(PATIENCE)
        one.abort()
        error = answer.result(5)
    assert error.kind is kind
    assert error.billed in ("unknown", "yes")


def test_cut_works_from_a_signal_handler(gateway: Gateway, calls: Client) -> None:
    def handler(*_: object) -> None:
        calls.abort()

    def kill() -> None:
        gateway.wait_for_request(timeout=PATIENCE)
        os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, handler)
    killer = threading.Thread(target=kill)
    try:
        killer.start()
        started = time.monotonic()
        error = refused(lambda: calls.generate(asking("hang")))
        assert time.monotonic() - started < 5
    finally:
        killer.join()
        signal.signal(signal.SIGUSR1, before)
    assert (error.kind, error.billed) == (Kind.UNKNOWN_OUTCOME, "unknown")


def test_cut_through_a_proxy(gateway: Gateway) -> None:
    with proxy() as way, ThreadPoolExecutor() as pool:
        one = Client(gateway.token, gateway.url, proxy=way.url, read_timeout=60)
        answer = pool.submit(refused, lambda: one.generate(asking("hang")))
        gateway.wait_for_request(timeout=PATIENCE)
        one.abort()
        assert answer.result(5).billed == "unknown"


def test_cut_wakes_all_of_many_at_once(gateway: Gateway, calls: Client) -> None:
    with ThreadPoolExecutor(30) as pool:
        answers = [pool.submit(refused, lambda: calls.generate(asking("hang"))) for _ in range(30)]
        gateway.wait_for_request(30, timeout=PATIENCE)
        calls.abort()
        assert {answer.result(5).billed for answer in answers} == {"unknown"}


def test_cut_with_nothing_in_flight_does_nothing(gateway: Gateway, calls: Client) -> None:
    calls.abort()
    calls.generate(FOX).close()
    calls.abort()
    calls.generate(FOX).close()
    assert len(gateway.charges) == 2


def test_cut_while_others_come_and_go(gateway: Gateway, calls: Client) -> None:
    stop = threading.Event()

    def come_and_go() -> set[Kind]:
        seen = set()
        while not stop.is_set():
            try:
                calls.generate(FOX).close()
            except Img2Error as error:
                seen.add(error.kind)
        return seen

    with ThreadPoolExecutor(8) as pool:
        runs = [pool.submit(come_and_go) for _ in range(8)]
        gateway.wait_for_request(8, timeout=PATIENCE)
        for _ in range(300):
            calls.abort()
        stop.set()
        seen = set().union(*(run.result(10) for run in runs))
    assert seen <= {Kind.UNKNOWN_OUTCOME, Kind.REPLY, Kind.UNREACHABLE}


# --- many at once ---------------------------------------------------------------------------------------------------


def test_many_threads_share_one_client(png: bytes, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    together = threading.Barrier(40)

    def behave(exchange: Exchange) -> None:
        together.wait(PATIENCE)  # all of them are in flight, or none is answered
        number = json.loads(exchange.request.body)["prompt"]
        exchange.answer(200, document_of(png), X_Oneapi_Request_Id=number)

    with raw(behave, read_timeout=30) as (server, one), ThreadPoolExecutor(40) as pool:
        generations = list(pool.map(lambda number: one.generate(ImageRequest(str(number))), range(80)))
    assert [generation.request_id for generation in generations] == [str(number) for number in range(80)]
    assert {generation.images[0].file.sha256 for generation in generations} == {
        hashlib.sha256(png).hexdigest()
    }
    assert len(server.requests) == 80
    assert "pool" not in caplog.text, "a full connection pool is nothing to warn of"
    for generation in generations:
        generation.close()


def test_connections_are_forgotten_when_they_end(gateway: Gateway, calls: Client) -> None:
    for _ in range(5):
        calls.generate(FOX).close()
    gc.collect()
    adapter = calls.session.get_adapter(gateway.url)
    assert isinstance(adapter, transport.GatewayAdapter)
    assert len(adapter._live) == 0


def test_a_client_that_is_dropped_is_freed(gateway: Gateway) -> None:
    one = Client(gateway.token, gateway.url)
    one.generate(FOX).close()
    one.close()
    seen = weakref.ref(one)
    del one
    gc.collect()
    assert seen() is None


def test_a_session_of_ones_own_is_used_as_it_is(gateway: Gateway) -> None:
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
    gateway: Gateway, calls: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = transport.HTTPConnection.connect

    def connect_and_abort(connection: Any) -> None:
        connect(connection)
        calls.abort()

    monkeypatch.setattr(transport.HTTPConnection, "connect", connect_and_abort)
    error = refused(lambda: calls.generate(asking("")))

    assert error.billed == "no"
    assert not gateway.requests
