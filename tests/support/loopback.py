"""Servers on loopback that the sandbox does not provide: raw responses, TLS, a proxy."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import re
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.support.patience import PATIENCE


@dataclass
class Request:
    method: str
    target: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Exchange:
    """One request and the way to answer it, byte by byte."""

    request: Request
    socket: socket.socket
    gone: threading.Event = field(default_factory=threading.Event)

    def answer(self, status: int = 200, body: bytes = b"", **headers: str) -> None:
        lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(body)}", "Connection: close"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.send("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def reset(self) -> None:
        """Close the connection with a reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")

    def wait_until_gone(self) -> None:
        with contextlib.suppress(OSError):
            while self.socket.recv(65536):
                pass
        self.gone.set()


class Server:
    """An HTTP server that answers each request by calling ``behave``; a context manager.

    :param behave: called with each request, in a thread of its connection; then the connection ends
    :param tls: speak TLS
    """

    def __init__(self, behave: Callable[[Exchange], object], tls: ssl.SSLContext | None = None) -> None:
        self.behave = behave
        self.requests: list[Request] = []
        self.connections = 0
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._arrived = threading.Condition()
        self._acceptor = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Server:
        self._acceptor.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._acceptor.join()
        for item in self._open:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(item, socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    def wait_for_request(self, n: int = 1, *, timeout: float = PATIENCE) -> None:
        with self._arrived:
            assert self._arrived.wait_for(lambda: len(self.requests) >= n, timeout), "no request came"

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                connection.settimeout(PATIENCE)  # __exit__ waits for its thread
                self.connections += 1
                self._open.append(connection)
                thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            stack.callback(connection.close)
            if self._tls:
                connection = self._tls.wrap_socket(connection, server_side=True)
                self._open.append(connection)
                stack.callback(connection.close)
            if request := _read(connection):
                with self._arrived:
                    self.requests.append(request)
                    self._arrived.notify_all()
                self.behave(Exchange(request, connection))


def _read(connection: socket.socket) -> Request | None:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65536)
        if not piece:
            return None
        data += piece
        if data[:1] == b"\x16":  # a TLS handshake with a plain server
            return Request("", "", {}, data)
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    while len(body) < int(headers.get("content-length", 0)):
        piece = connection.recv(65536)
        if not piece:  # the client was killed while it sent its request
            return None
        body += piece
    method, target, _ = first.split(" ", 2)
    return Request(method, target, headers, body)


@contextlib.contextmanager
def proxy(credentials: str | None = None) -> Iterator[Server]:
    """Run an HTTP proxy that forwards plain requests and tunnels CONNECT."""

    def behave(exchange: Exchange) -> None:
        request = exchange.request
        if credentials and request.headers.get("proxy-authorization") != credentials:
            exchange.answer(407, b"who are you?", Proxy_Authenticate="Basic")
            return
        if request.method == "CONNECT":
            host, _, port = request.target.partition(":")
            with socket.create_connection((host, int(port)), PATIENCE) as onward:
                exchange.send(b"HTTP/1.1 200 Established\r\n\r\n")
                _join(exchange.socket, onward)
            return
        found = re.fullmatch(r"http://([^:/]+):(\d+)(/.*)", request.target)
        assert found, request.target
        with socket.create_connection((found[1], int(found[2])), PATIENCE) as onward:
            lines = [f"{name}: {value}" for name, value in request.headers.items()]
            head = "\r\n".join([f"{request.method} {found[3]} HTTP/1.1", *lines])
            onward.sendall(head.encode("latin-1") + b"\r\n\r\n" + request.body)
            _join(exchange.socket, onward)

    with Server(behave) as running:
        yield running


@contextlib.contextmanager
def socks_proxy() -> Iterator[tuple[str, list[tuple[str, int]]]]:
    """Run a SOCKS 5 proxy (RFC 1928) without logins. Return its URL and a list of the addresses it has reached."""
    reached: list[tuple[str, int]] = []

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.rfile.read(self.rfile.read(2)[1])  # the methods of the client
            self.wfile.write(b"\x05\x00")
            kind = self.rfile.read(4)[3]
            address = self.rfile.read(4 if kind == 1 else self.rfile.read(1)[0])
            host = socket.inet_ntoa(address) if kind == 1 else address.decode()
            port = int.from_bytes(self.rfile.read(2))
            with socket.create_connection((host, port), PATIENCE) as onward:
                reached.append((host, port))
                self.wfile.write(b"\x05\x00\x00\x01" + bytes(6))
                _join(self.connection, onward)

    class Running(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with Running(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield f"socks5h://127.0.0.1:{server.server_address[1]}", reached
        server.shutdown()
        thread.join()


def _join(client: socket.socket, server: socket.socket) -> None:
    back = threading.Thread(target=_copy, args=(server, client), daemon=True)
    back.start()
    _copy(client, server)
    back.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while piece := source.recv(65536):
            target.sendall(piece)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


@dataclass(frozen=True)
class Authority:
    """A certificate authority, and a server certificate that it has signed.

    :param bundle: the CA's certificate, a file
    :param server: what a TLS server on 127.0.0.1, or localhost, needs
    """

    bundle: Path
    server: ssl.SSLContext

    @classmethod
    def make(cls, folder: Path, address: str = "127.0.0.1") -> Authority:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a test")])
        now = datetime.datetime.now(datetime.UTC)
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address(address))]
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
        )
        bundle, secret = folder / "ca.pem", folder / "key.pem"
        bundle.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        secret.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(bundle, secret)
        return cls(bundle, server)
