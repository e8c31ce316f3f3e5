"""A gateway whose responses, charges and log a test scripts."""

from __future__ import annotations

import base64
import itertools
import json
import threading
import time
from collections.abc import Callable
from typing import Any

from tests.support.loopback import Exchange, Server

Behavior = Callable[["ScriptedGateway", Exchange, str], None]
TOKENS = {"input_tokens": 10, "output_tokens": 196, "total_tokens": 206}


class ScriptedGateway:
    """The gateway; a context manager.

    :param png: the image that every good response has
    :param behaviors: one for each POST; further POSTs get a good response
    :param log: the rows of the log, to which charges add theirs; ``None``: there is no log
    """

    def __init__(self, png: bytes, *behaviors: Behavior, log: list[dict[str, Any]] | None = None) -> None:
        self.png = png
        self.behaviors = list(behaviors)
        self.rows: list[dict[str, Any]] = [] if log is None else log
        self.billed: list[str] = []
        self.logs_charges = True
        self.repeats_rows = False
        """Whether the log lists each row twice."""
        self.log_status = 200
        self.log_reads = 0
        self.status: dict[str, Any] | bytes | None = None
        """The gateway's public settings, or the whole response; ``None``: it has no such route."""
        self.status_reads = 0
        self._ids = itertools.count(1)
        self._lock = threading.Lock()
        self._server = Server(self._respond)

    def __enter__(self) -> ScriptedGateway:
        self._server.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.__exit__(*error)

    @property
    def url(self) -> str:
        return self._server.url

    @property
    def posts(self) -> int:
        return sum(request.method == "POST" for request in self._server.requests)

    @property
    def tokens(self) -> int:
        return TOKENS["total_tokens"] * len(self.billed)

    def charge(self, request_id: str) -> None:
        """Bill a request, and log it."""
        self.billed.append(request_id)
        if self.logs_charges:
            self.rows.append(row(request_id))

    def _respond(self, exchange: Exchange) -> None:
        if exchange.request.method == "POST":
            with self._lock:
                request_id = f"request-{next(self._ids)}"
                behave = self.behaviors.pop(0) if self.behaviors else good
            behave(self, exchange, request_id)
        elif "/api/log/token" in exchange.request.target:
            self.log_reads += 1
            rows = [{"id": number, **values} for number, values in enumerate(self.rows, 1)][::-1]
            listed = rows * (2 if self.repeats_rows else 1)
            body = json.dumps({"success": True, "message": "", "data": listed}).encode()
            exchange.answer(self.log_status, body, Content_Type="application/json", X_Oneapi_Request_Id="log")
        elif exchange.request.target == "/api/status" and self.status is not None:
            self.status_reads += 1
            status = self.status
            body = status if isinstance(status, bytes) else json.dumps({"data": status}).encode()
            exchange.answer(200, body, Content_Type="application/json")
        else:
            exchange.answer(404, b"{}", Content_Type="application/json", X_Oneapi_Request_Id="other")


def row(request_id: str, kind: int = 2, *, model: str = "gpt-image-2", age: float = 0.0) -> dict[str, Any]:
    """Return a row of the log: a charge (2) or a failure (5)."""
    charged = kind == 2
    return {
        "type": kind,
        "request_id": request_id,
        "model_name": model,
        "created_at": int(time.time() - age),
        "use_time": 1,
        "quota": 700 if charged else 0,
        "prompt_tokens": TOKENS["input_tokens"] if charged else 0,
        "completion_tokens": TOKENS["output_tokens"] if charged else 0,
    }


def _body(gateway: ScriptedGateway, **more: Any) -> bytes:
    image = {"b64_json": base64.b64encode(gateway.png).decode()}
    return json.dumps({"created": 1, "data": [image], **more}).encode()


def good(gateway: ScriptedGateway, exchange: Exchange, request_id: str) -> None:
    """Bill the request and send its image."""
    gateway.charge(request_id)
    body = _body(gateway, usage=TOKENS)
    exchange.answer(200, body, Content_Type="application/json", X_Oneapi_Request_Id=request_id)


def without_usage(gateway: ScriptedGateway, exchange: Exchange, request_id: str) -> None:
    """Bill the request and send its image, without usage."""
    gateway.charge(request_id)
    exchange.answer(200, _body(gateway), Content_Type="application/json", X_Oneapi_Request_Id=request_id)


def billed_and_lost(gateway: ScriptedGateway, exchange: Exchange, request_id: str) -> None:
    """Bill the request, and reset the connection before any response."""
    gateway.charge(request_id)
    exchange.reset()


def billed_and_broken(gateway: ScriptedGateway, exchange: Exchange, request_id: str) -> None:
    """Bill the request, and reset the connection within the image."""
    gateway.charge(request_id)
    body = _body(gateway, usage=TOKENS)
    head = f"HTTP/1.1 200 OK\r\nX-Oneapi-Request-Id: {request_id}\r\nContent-Type: application/json\r\n"
    exchange.send(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:100])
    threading.Event().wait(0.1)  # without it, the reset may overtake the data
    exchange.reset()


def lost(gateway: ScriptedGateway, exchange: Exchange, request_id: str) -> None:
    """Reset the connection without billing."""
    exchange.reset()


def failing(
    status: int = 500,
    code: str = "do_request_failed",
    *,
    then: Callable[[], object] = lambda: None,
    billed: bool = False,
    message: str = "no",
    **headers: str,
) -> Behavior:
    """Respond with an error of the gateway, and log it.

    :param then: called before the response, for example to skip time
    :param billed: whether an upstream request before the reported one was billed
    :param headers: further headers; without ``X_Oneapi_Request_Id``, a proxy has removed the gateway's
    """

    def behave(gateway: ScriptedGateway, exchange: Exchange, request_id: str) -> None:
        then()
        if billed:
            gateway.charge(f"{request_id}-first-try")
        gateway.rows.append(row(request_id, 5))
        body = json.dumps({"error": {"message": message, "type": "new_api_error", "code": code}}).encode()
        marks = {"Retry_After": "0", **(headers or {"X_Oneapi_Request_Id": request_id})}
        exchange.answer(status, body, Content_Type="application/json", **marks)

    return behave
