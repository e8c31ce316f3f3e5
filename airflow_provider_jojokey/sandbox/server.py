"""The HTTP server of the stand-in. It reads requests and doesn't interpret them."""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import socketserver
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import Any, Protocol, Self

from airflow_provider_jojokey.sandbox.wire import Wire


class Service(ABC):
    """A server that runs inside a ``with`` block, or from :meth:`start` to :meth:`stop`."""

    @abstractmethod
    def start(self) -> Self:
        """Start it, and return self."""

    @abstractmethod
    def stop(self) -> None:
        """Stop it."""

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


@dataclass(frozen=True)
class RequestRecord:
    """A received request, without the token."""

    time: float
    """Unix seconds."""
    request_id: str
    method: str
    path: str
    prompt: str
    body: Any
    """The parsed JSON; ``None`` if the body is not JSON."""
    headers: Mapping[str, str]
    """Names in lower case, without ``authorization`` and cookies."""
    authorised: bool
    """Whether the request had an Authorization header."""


class Application(Protocol):
    """Responds to requests."""

    def record(self, request: RequestRecord) -> None:
        """Record a POST that has been read."""

    def respond(self, request: RequestRecord, authorization: str, client: str, wire: Wire) -> bool:
        """Respond to the request, and return whether the connection can serve another one."""


class Server(socketserver.TCPServer):
    """A server with a thread per connection. All threads end with the server."""

    allow_reuse_address = True
    request_queue_size = 1024

    def __init__(self, port: int, application: Application, host: str = "127.0.0.1") -> None:
        super().__init__((host, port), _Handler)
        self.application = application
        self.stopping = threading.Event()
        self._lock = threading.Lock()
        self._open: dict[threading.Thread, socket.socket] = {}
        self._acceptor = threading.Thread(
            target=self.serve_forever, args=(0.02,), name=f"jojokey-sandbox-{self.port}", daemon=True
        )
        self._acceptor.start()

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self.server_address[1])

    def stop(self) -> None:
        """Close all connections, and wait until all threads have ended."""
        self.stopping.set()
        self.shutdown()
        self._acceptor.join()
        self.server_close()
        with self._lock:
            threads = list(self._open.items())
        for _, connection in threads:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)  # wakes the thread that uses it
        for thread, _ in threads:
            thread.join()

    def interrupt(self) -> None:
        """End the requests in flight. Later requests are served."""
        self.stopping, previous = threading.Event(), self.stopping
        previous.set()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a new connection in its own thread."""
        thread = threading.Thread(
            target=self._serve,
            args=(request, client_address),
            name=f"jojokey-sandbox-{self.port}",
            daemon=True,
        )
        with self._lock:
            self._open[thread] = request
        thread.start()

    def _serve(self, request: socket.socket, client_address: Any) -> None:
        try:
            self.finish_request(request, client_address)
        except OSError:
            pass  # the client disconnected
        finally:
            self.shutdown_request(request)
            with self._lock:
                self._open.pop(threading.current_thread(), None)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server
    # Without this, small responses wait until the client has acknowledged the header.
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        self._answer(self._read_body())

    def do_GET(self) -> None:
        self._answer(b"")

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _read_body(self) -> bytes:
        if "chunked" in (self.headers.get("Transfer-Encoding") or "").lower():
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, body: bytes) -> None:
        application = self.server.application
        parsed = None
        with contextlib.suppress(ValueError):
            parsed = json.loads(body) if body else None
        prompt = parsed.get("prompt") if isinstance(parsed, dict) else None
        authorization = self.headers.get("Authorization") or ""
        request = RequestRecord(
            time=time.time(),
            request_id=_new_request_id(),
            method=self.command,
            path=self.path,
            prompt=prompt if isinstance(prompt, str) else "",
            body=parsed,
            headers={
                name.lower(): value
                for name, value in self.headers.items()
                if name.lower() not in {"authorization", "cookie", "proxy-authorization"}
            },
            authorised=bool(authorization),
        )
        if self.command == "POST" and not self.path.startswith(("/sandbox/reset", "/sandbox/behave")):
            application.record(request)
        wire = Wire(self.connection, self.server.stopping)
        if not application.respond(request, authorization, self.client_address[0], wire):
            self.close_connection = True


def _new_request_id() -> str:
    now = time.time()
    return (
        time.strftime("%Y%m%d%H%M%S", time.gmtime(now)) + f"{int(now % 1 * 1e9):09d}" + secrets.token_hex(4)
    )
