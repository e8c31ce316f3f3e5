"""The client skips interim (1xx) responses in all its calls."""

from __future__ import annotations

import base64
import json
import socket
import threading
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from airflow_provider_jojokey.img2 import Client, ImageRequest, Img2Error, Kind, final_response
from tests.support.loopback import Authority, Exchange, Server, proxy

TOKEN = "sk-only-for-tests-0123456789"
FOX = ImageRequest("a fox", size="auto")
HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n"
PROCESSING = b"HTTP/1.1 102 Processing\r\n\r\n"


def good(exchange: Exchange, png: bytes, before: bytes = HINTS + PROCESSING * 3) -> None:
    """Respond to any request after interim responses."""
    exchange.send(before)
    if exchange.request.method == "POST":
        exchange.answer(200, json.dumps({"data": [{"b64_json": base64.b64encode(png).decode()}]}).encode())
    elif exchange.request.target == "/v1/models":
        exchange.answer(200, b'{"data": [{"id": "gpt-image-2"}]}')
    else:
        exchange.answer(200, png)


def pay(server: Server, **options: Any) -> bytes:
    with Client(TOKEN, server.url, read_timeout=5, **options) as client:
        generation = client.generate(FOX)
        generation.images[0].file.file.seek(0)
        data = generation.images[0].file.file.read()
        generation.close()
        assert client.list_models() == ["gpt-image-2"]
    return data


def test_interim_responses_to_paid_and_free_calls_are_skipped(png: bytes) -> None:
    with Server(lambda exchange: good(exchange, png)) as server:
        assert pay(server) == png
        assert len(server.requests) == 2


def test_interim_responses_over_tls_are_skipped(png: bytes, authority: Authority) -> None:
    with Server(lambda exchange: good(exchange, png), tls=authority.server) as server:
        assert pay(server, verify=str(authority.bundle)) == png


def test_interim_responses_through_proxies_are_skipped(
    png: bytes, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    with proxy() as between:
        with Server(lambda exchange: good(exchange, png)) as server:
            assert pay(server, proxy=between.url) == png
        with Server(lambda exchange: good(exchange, png), tls=authority.server) as server:
            assert pay(server, proxy=between.url, verify=str(authority.bundle)) == png
        assert between.requests


def test_interim_responses_to_downloads_are_skipped(png: bytes) -> None:
    def behave(exchange: Exchange) -> None:
        if exchange.request.method == "POST":
            exchange.send(HINTS)
            exchange.answer(200, b'{"data": [{"url": "/fox.png"}]}')
        else:
            good(exchange, png)

    with Server(behave) as server, Client(TOKEN, server.url, read_timeout=5) as client:
        generation = client.generate(FOX)
        assert generation.images[0].file.size == len(png)
        generation.close()


@pytest.mark.parametrize("split", [1, 3, 20])
def test_interim_responses_in_small_chunks_are_skipped(png: bytes, split: int) -> None:
    def behave(exchange: Exchange) -> None:
        exchange.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(HINTS), split):
            exchange.send(HINTS[start : start + split])
        good(exchange, png, before=b"")

    with Server(behave) as server:
        assert pay(server) == png


def error_of(behave: Callable[[Exchange], object], **options: Any) -> Img2Error:
    with Server(behave) as server, Client(TOKEN, server.url, **{"read_timeout": 5, **options}) as client:
        with pytest.raises(Img2Error) as caught:
            client.generate(FOX)
        assert len(server.requests) == 1
    return caught.value


@pytest.mark.parametrize(
    "sent",
    [
        HINTS,
        HINTS[:-2],
        HINTS[:30],
        b"HTTP/1.1 102 Processing\r\n" + b"X-Pad: " + b"x" * (2 * final_response.MAX_HEAD_BYTES),
    ],
    ids=["then the end", "without its end", "cut in a header", "too large"],
)
def test_interim_responses_alone_leave_outcome_unknown(sent: bytes) -> None:
    error = error_of(lambda exchange: exchange.send(sent))
    assert (error.kind, error.billed) == (Kind.UNKNOWN_OUTCOME, "unknown"), str(error)


def test_number_of_interim_responses_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(final_response, "MAX_INTERIM_RESPONSES", 50)
    error = error_of(lambda exchange: exchange.send(PROCESSING * 60))
    assert (error.kind, error.billed) == (Kind.UNKNOWN_OUTCOME, "unknown")


def test_endless_interim_responses_time_out() -> None:
    stop = threading.Event()

    def behave(exchange: Exchange) -> None:
        for _ in range(2000):
            exchange.send(PROCESSING)
            if stop.wait(0.01):
                return

    error = error_of(behave, read_timeout=0.2)
    stop.set()
    assert (error.kind, error.billed) == (Kind.UNKNOWN_OUTCOME, "unknown")


def test_protocol_switch_is_final_and_proves_nothing() -> None:
    error = error_of(
        lambda exchange: exchange.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n")
    )
    assert (error.kind, error.billed, error.status_code) == (Kind.UNKNOWN_OUTCOME, "unknown", 101)


def test_memory_is_bounded_after_interim_response(png: bytes) -> None:
    body = json.dumps({"data": [{"b64_json": base64.b64encode(png + bytes(24_000_000)).decode()}]}).encode()

    def behave(exchange: Exchange) -> None:
        exchange.send(HINTS + b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
        exchange.send(body)  # on its own: the server's copy would count

    with Server(behave) as server, Client(TOKEN, server.url, read_timeout=30) as client:
        tracemalloc.start()
        try:
            generation = client.generate(FOX)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert generation.images[0].file.size == len(png) + 24_000_000
    assert peak < 8 * 1024 * 1024
    generation.close()
