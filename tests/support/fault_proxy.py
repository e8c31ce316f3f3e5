"""A proxy on loopback, in front of an S3 server, that misbehaves the way real stores and networks do.

A fault is a function that gets a request and a way to forward it, and returns a response::

    with FaultProxy(moto.endpoint_url, ceph) as proxy:
        ...                                    # Ceph's way with If-Match
        proxy.faults = [on("PUT", ".json", lose_response)]
        proxy.faults = [times(1, lose_request)]

Faults are applied from the left: the first one sees the request first and the response last. Signatures of S3
cover the conditional headers, so faults that change those need a server that does not check signatures (moto).
"""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from tests.support.patience import PATIENCE


@dataclass
class Request:
    """A request as the client sent it; header names are in lower case."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def conditions(self) -> dict[str, str]:
        names = ("if-match", "if-none-match")
        return {name: self.headers[name] for name in names if name in self.headers}


@dataclass
class Response:
    """A response.

    :param cut: send only so many bytes of the body, then reset the connection
    """

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut: int | None = None


class Reset(Exception):
    """Raised by a fault: the client gets a reset instead of a response."""


Forward = Callable[[Request], Response]
Fault = Callable[[Request, Forward], Response]


class FaultProxy:
    """The proxy; a context manager.

    :param upstream: the server's URL
    :param faults: applied from the left
    """

    def __init__(self, upstream: str, *faults: Fault) -> None:
        self.faults = list(faults)
        self.requests: list[Request] = []
        self._upstream = urlsplit(upstream).netloc
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def seen(self, method: str = "") -> list[Request]:
        return [request for request in self.requests if request.method == method or not method]

    @contextmanager
    def counting(self) -> Iterator[list[Request]]:
        """Collect the requests of a block."""
        collected: list[Request] = []
        before = len(self.requests)
        yield collected
        collected.extend(self.requests[before:])

    def respond(self, request: Request) -> Response:
        forward: Forward = self._send
        for fault in reversed(self.faults):
            forward = _applied(fault, forward)
        return forward(request)

    def _send(self, request: Request) -> Response:
        connection = http.client.HTTPConnection(self._upstream, timeout=PATIENCE)
        try:
            headers = {name: value for name, value in request.headers.items() if name != "expect"}
            connection.putrequest(request.method, request.target, skip_host=True, skip_accept_encoding=True)
            for name, value in headers.items():
                connection.putheader(name, value)
            connection.endheaders(request.body or None)
            answer = connection.getresponse()
            body = answer.read()
            kept = {name.lower(): value for name, value in answer.getheaders()}
            kept.pop("transfer-encoding", None)
            kept.pop("connection", None)
            if request.method != "HEAD":
                kept["content-length"] = str(len(body))
            return Response(answer.status, kept, body)
        finally:
            connection.close()


def _applied(fault: Fault, forward: Forward) -> Forward:
    return lambda request: fault(request, forward)


def _handler_of(proxy: FaultProxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            request = Request(self.command, self.path, headers, body)
            proxy.requests.append(request)
            try:
                response = proxy.respond(replace(request, headers=dict(headers)))
            except Reset:
                self._reset()
                return
            head = [f"HTTP/1.1 {response.status} Whatever"]
            response.headers.setdefault("content-length", str(len(response.body)))
            head += [f"{name}: {value}" for name, value in response.headers.items()]
            data = "\r\n".join(head).encode("latin-1") + b"\r\n\r\n"
            if self.command != "HEAD":
                data += response.body if response.cut is None else response.body[: response.cut]
            with contextlib.suppress(OSError):
                self.wfile.write(data)
                self.wfile.flush()
            if response.cut is not None:
                time.sleep(0.05)  # without it, the reset may overtake what was sent
                self._reset()

        def _reset(self) -> None:
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            self.wfile.close = lambda: None  # type: ignore[method-assign]
            with contextlib.suppress(OSError):
                self.connection.close()
                self.rfile.close()

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _serve

    return Handler


# --- when a fault applies --------------------------------------------------------------------------------------------


def on(method: str, part_of_target: str, fault: Fault) -> Fault:
    """Apply a fault only to some requests; ``""`` stands for all methods or targets."""

    def apply(request: Request, forward: Forward) -> Response:
        applies = request.method in (method or request.method) and part_of_target in request.target
        return fault(request, forward) if applies else forward(request)

    return apply


def times(count: int, fault: Fault, *, after: int = 0) -> Fault:
    """Apply a fault to ``count`` requests, once ``after`` others have passed."""
    lock, seen = threading.Lock(), [0]

    def apply(request: Request, forward: Forward) -> Response:
        with lock:
            seen[0] += 1
            applies = after < seen[0] <= after + count
        return fault(request, forward) if applies else forward(request)

    return apply


# --- faults ----------------------------------------------------------------------------------------------------------


def error(status: int, code: str = "", message: str = "no", **fields: str) -> Response:
    """Return an error of S3; without a code, a response without a body."""
    if not code:
        return Response(status)
    more = "".join(f"<{name}>{value}</{name}>" for name, value in fields.items())
    body = f"<Error><Code>{code}</Code><Message>{message}</Message>{more}</Error>".encode()
    return Response(status, {"content-type": "application/xml"}, body)


def answer(response: Response) -> Fault:
    """Answer every request with the same response; nothing is forwarded."""
    return lambda request, forward: replace(response, headers=dict(response.headers))


def ignore(header: str) -> Fault:
    """A store that ignores a header, such as ``if-match``."""

    def fault(request: Request, forward: Forward) -> Response:
        request.headers.pop(header, None)
        return forward(request)

    return fault


def ceph(request: Request, forward: Forward) -> Response:
    """Ceph 16: its own ETag in quotes gets a 412; without the quotes it is compared."""
    etag = request.headers.get("if-match", "")
    if etag.startswith('"'):
        return error(412, "PreconditionFailed")
    if etag:
        request.headers["if-match"] = f'"{etag}"'
    return forward(request)


def refuse_if_match(request: Request, forward: Forward) -> Response:
    """A store that rejects every ``If-Match``, right or wrong."""
    return error(412, "PreconditionFailed") if "if-match" in request.headers else forward(request)


def no_conditions(status: int = 501, code: str = "NotImplemented") -> Fault:
    """A store that rejects conditional writes, because it does not implement them."""

    def fault(request: Request, forward: Forward) -> Response:
        if request.method == "PUT" and request.conditions:
            return error(status, code)
        return forward(request)

    return fault


def lose_request(request: Request, forward: Forward) -> Response:
    """Reset the connection before the server sees the request."""
    raise Reset


def lose_response(request: Request, forward: Forward) -> Response:
    """Reset the connection after the server has done what the request asks for."""
    forward(request)
    raise Reset


def cut_body(after: int = 5) -> Fault:
    """Reset the connection inside the body of the response, which can be an object or an error."""
    return lambda request, forward: replace(forward(request), cut=after)


def bare_404(request: Request, forward: Forward) -> Response:
    """A 404 without S3's error body, as a proxy sends it."""
    return Response(404)


def web_page(status: int = 200, **headers: str) -> Fault:
    """A web page, from a proxy or a web console."""
    body = b"<!DOCTYPE html><html><head><title>Sign in</title></head><body>Welcome</body>"
    return answer(Response(status, {"content-type": "text/html; charset=utf-8", **headers}, body))


def date(value: str | None) -> Fault:
    """Another ``Date``, or none."""

    def fault(request: Request, forward: Forward) -> Response:
        response = forward(request)
        response.headers.pop("date", None)
        if value is not None:
            response.headers["date"] = value
        return response

    return fault


def clock_ahead(seconds: float) -> Fault:
    """A ``Date`` that is ahead of this host's clock, or behind it."""
    return lambda request, forward: date(email.utils.formatdate(time.time() + seconds, usegmt=True))(
        request, forward
    )


def delay(seconds: float) -> Fault:
    """Delay the response."""

    def fault(request: Request, forward: Forward) -> Response:
        response = forward(request)
        time.sleep(seconds)
        return response

    return fault
