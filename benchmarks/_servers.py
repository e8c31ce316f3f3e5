"""An image API and an S3 server on loopback that use as little CPU as possible.

Both run in one process, with bare sockets and a thread per connection. The API sends prepared bytes, the S3 server
discards what it receives, and both count. The S3 server also hashes objects whose key starts with ``check/``, in runs
that are not timed.

The process reads commands from standard input. ``stats`` prints the counts and resets them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import socket
import ssl
import struct
import sys
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

_HEADER = re.compile(rb"^([^:\r\n]+):[ \t]*([^\r\n]*)", re.MULTILINE)
_BUFFER_BYTES = 1024 * 1024


def make_image(length: int) -> bytes:
    """Return a PNG file of ``length`` bytes: well-formed chunks around random data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 1024, 1024, 8, 6, 0, 0, 0))
    end = chunk(b"IEND", b"")
    return start + chunk(b"IDAT", os.urandom(length - len(start) - len(end) - 12)) + end


class Counts:
    """What has arrived since the last report."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, Any] = {}
        self.take()

    def add(self, generations: int = 0, puts: int = 0, received: int = 0, digest: str | None = None) -> None:
        with self._lock:
            self._counts["generations"] += generations
            self._counts["puts"] += puts
            self._counts["received"] += received
            if digest:
                self._counts["digests"].append(digest)

    def take(self) -> dict[str, Any]:
        with self._lock:
            counts = self._counts
            self._counts = {"generations": 0, "puts": 0, "received": 0, "digests": []}
        return counts


class Connection:
    """The requests of a connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._ahead = b""

    def head(self) -> tuple[bytes, bytes, dict[bytes, bytes]] | None:
        data = self._ahead
        while (end := data.find(b"\r\n\r\n")) < 0:
            more = self.sock.recv(65536)
            if not more:
                return None
            data += more
        self._ahead = data[end + 4 :]
        method, path, _ = data.split(b" ", 2)
        headers = {name.lower(): value for name, value in _HEADER.findall(data[: end + 2])}
        return method, path, headers

    def body(self, headers: dict[bytes, bytes], take: Callable[[Any], object]) -> int:
        """Read a body, pass it to ``take`` in pieces, and return its length."""
        if headers.get(b"transfer-encoding", b"").lower() == b"chunked":
            return self._chunked_body(take)
        length = int(headers.get(b"content-length", b"0"))
        self._exactly(length, take)
        return length

    def _exactly(self, length: int, take: Callable[[Any], object]) -> None:
        first, self._ahead = self._ahead[:length], self._ahead[length:]
        if first:
            take(first)
        left = length - len(first)
        while left:
            got = self.sock.recv_into(self._buffer, min(left, _BUFFER_BYTES))
            if not got:
                raise ConnectionError("the body is incomplete")
            take(self._buffer[:got])
            left -= got

    def _chunked_body(self, take: Callable[[Any], object]) -> int:
        total = 0
        while True:
            size = int(self._line().split(b";")[0], 16)
            if not size:
                while self._line():
                    pass
                return total
            self._exactly(size, take)
            self._line()
            total += size

    def _line(self) -> bytes:
        while (end := self._ahead.find(b"\r\n")) < 0:
            more = self.sock.recv(65536)
            if not more:
                raise ConnectionError("the body is incomplete")
            self._ahead += more
        line, self._ahead = self._ahead[:end], self._ahead[end + 2 :]
        return line


class Servers:
    """Both servers.

    :param replies: the API's prepared responses, head and body, by the name of the case
    :param counts: the counts to increase
    """

    def __init__(self, replies: dict[str, bytes], counts: Counts) -> None:
        self.replies = replies
        self.counts = counts

    def api(self, connection: Connection) -> None:
        while head := connection.head():
            method, path, headers = head
            body = bytearray()
            connection.body(headers, body.extend)
            # /<case>/v1/images/generations: the case is part of the base URL.
            case = path.split(b"/")[1].decode()
            request = json.loads(body)
            if method != b"POST" or not path.endswith(b"/v1/images/generations") or not request["prompt"]:
                raise ValueError("no generation")
            self.counts.add(generations=1)
            connection.sock.sendall(self.replies[case])

    def s3(self, connection: Connection) -> None:
        while head := connection.head():
            method, path, headers = head
            if method != b"PUT":
                raise ValueError("no PUT")
            if headers.get(b"expect", b"").lower() == b"100-continue":
                connection.sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            if b"/check/" in path:
                kept = bytearray()
                length = connection.body(headers, kept.extend)
                data = bytes(kept)
                if headers.get(b"content-encoding", b"").startswith(b"aws-chunked"):
                    data = _from_aws_chunks(data)
                self.counts.add(digest=hashlib.sha256(data).hexdigest())
            else:
                length = connection.body(headers, _discard)
            self.counts.add(puts=1, received=length)
            connection.sock.sendall(
                b'HTTP/1.1 200 OK\r\nETag: "d41d8cd98f00b204e9800998ecf8427e"\r\nContent-Length: 0\r\n\r\n'
            )


def _discard(_: Any) -> None:
    return None


def _from_aws_chunks(data: bytes) -> bytes:
    position = 0
    parts: list[bytes] = []
    while True:
        end = data.index(b"\r\n", position)
        size = int(data[position:end].split(b";")[0], 16)
        if not size:
            return b"".join(parts)
        parts.append(data[end + 2 : end + 2 + size])
        position = end + 2 + size + 2


def _serve(listener: socket.socket, serve: Callable[[Connection], None], tls: ssl.SSLContext | None) -> None:
    def handle(sock: socket.socket) -> None:
        try:
            if tls:
                sock = tls.wrap_socket(sock, server_side=True)
            with sock:
                serve(Connection(sock))
        except ConnectionError:
            pass

    while True:
        sock, _ = listener.accept()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=handle, args=(sock,), daemon=True).start()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("replies", type=Path, help="a folder: one file per case, <case>.reply")
    parser.add_argument("--certificate", type=Path)
    parser.add_argument("--key", type=Path)
    arguments = parser.parse_args()
    tls = None
    if arguments.certificate:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(arguments.certificate, arguments.key)
    counts = Counts()
    replies = {path.stem: path.read_bytes() for path in arguments.replies.glob("*.reply")}
    servers = Servers(replies, counts)
    ports = {}
    for name, serve in (("api", servers.api), ("s3", servers.s3)):
        listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        ports[name] = listener.getsockname()[1]
        threading.Thread(target=_serve, args=(listener, serve, tls), daemon=True).start()
    print(json.dumps(ports), flush=True)
    for line in sys.stdin:
        if line.strip() == "stats":
            print(json.dumps(counts.take()), flush=True)


if __name__ == "__main__":
    main()
