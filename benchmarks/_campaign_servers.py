"""A gateway with delays and an S3 server that stores receipts, for campaigns.

Both use bare sockets and a thread per connection. The gateway reads the delay from the prompt, ``… [takes 12.5 s]``,
and then sends a prepared response. The S3 server stores objects below ``_jojokey/``, supports conditional writes, and
discards images.

The process reads commands from standard input. ``stats`` prints the counts and resets them.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import math
import re
import socket
import ssl
import sys
import threading
import time
from collections import deque
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from benchmarks._servers import Connection, _discard, _from_aws_chunks, _serve, make_image

MINUTE = 60.0
_BODY = '{"error":{"message":"Too many requests","type":"new_api_error","code":""}}'
_REJECTION = (
    "HTTP/1.1 429 Too Many Requests\r\nContent-Type: application/json\r\nX-Oneapi-Request-Id: refused\r\n"
    f"Retry-After: {{}}\r\nContent-Length: {len(_BODY)}\r\nConnection: close\r\n\r\n"
) + _BODY.replace("{", "{{").replace("}", "}}")
TAKES = re.compile(rb"\[takes ([0-9.]+) s\]")


class Gateway:
    """Answers each request with the same image after a delay.

    :param limit: requests accepted per minute. Others get a 429 with ``Retry-After``. 0 means no limit
    """

    def __init__(self, image_bytes: int, limit: int = 0) -> None:
        image = make_image(image_bytes)
        body = (
            b'{"created":1,"data":[{"b64_json":"' + base64.b64encode(image) + b'"}],"usage":'
            b'{"input_tokens":10,"output_tokens":196,"total_tokens":206}}'
        )
        head = (
            f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Oneapi-Request-Id: {{}}\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        self._head, self._body = head, body
        self._lock = threading.Lock()
        self._limit = limit
        self._accepted: deque[float] = deque()
        self.counts = {"posts": 0, "in_flight": 0, "peak": 0, "seconds": 0.0, "refused": 0}

    def serve(self, connection: Connection) -> None:
        while head := connection.head():
            method, _, headers = head
            if method == b"GET":
                body = b'{"data":[{"id":"gpt-image-2"}]}'
                connection.sock.sendall(
                    b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
                )
                continue
            request = bytearray()
            connection.body(headers, request.extend)
            found = TAKES.search(request)
            seconds = float(found[1]) if found else 0.0
            if wait := self._rejected_for():
                connection.sock.sendall(_REJECTION.format(math.ceil(wait)).encode())
                continue
            with self._lock:
                counts = self.counts
                counts["posts"] += 1
                counts["in_flight"] += 1
                counts["peak"] = max(counts["peak"], counts["in_flight"])
                counts["seconds"] += seconds
                number = counts["posts"]
            time.sleep(seconds)
            with self._lock:
                self.counts["in_flight"] -= 1
            connection.sock.sendall(self._head.format(f"2026-{number}").encode())
            connection.sock.sendall(self._body)

    def _rejected_for(self) -> float:
        """Return the seconds until a request would be accepted; 0 if it is accepted."""
        if not self._limit:
            return 0.0
        now = time.monotonic()
        with self._lock:
            while self._accepted and self._accepted[0] <= now - MINUTE:
                self._accepted.popleft()
            if len(self._accepted) < self._limit:
                self._accepted.append(now)
                return 0.0
            self.counts["refused"] += 1
            return self._accepted[0] + MINUTE - now


class Store:
    """The part of S3 that receipts and images need."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[bytes, bytes] = {}
        self._objects: dict[bytes, tuple[int, str, float]] = {}
        """Size, ETag and time of each object by path."""
        self.counts = {"images": 0, "image_bytes": 0, "writes": 0, "reads": 0}

    def serve(self, connection: Connection) -> None:
        while head := connection.head():
            method, path, headers = head
            path, _, query = path.partition(b"?")
            if b"list-type=2" in query:
                connection.sock.sendall(self._list(path, parse_qs(query.decode())))
            elif method == b"PUT":
                connection.sock.sendall(self._put(connection, path, headers))
            else:
                connection.sock.sendall(self._get(method, path))

    def _put(self, connection: Connection, path: bytes, headers: dict[bytes, bytes]) -> bytes:
        if headers.get(b"expect", b"").lower() == b"100-continue":
            connection.sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if b"/_jojokey/" not in path:
            length = connection.body(headers, _discard)
            with self._lock:
                self.counts["images"] += 1
                self.counts["image_bytes"] += length
                self._objects[path] = (
                    int(headers.get(b"x-amz-decoded-content-length", length)),
                    "image",
                    time.time(),
                )
            return _response(200, etag="image")
        kept = bytearray()
        connection.body(headers, kept.extend)
        data = bytes(kept)
        if headers.get(b"content-encoding", b"").startswith(b"aws-chunked"):
            data = _from_aws_chunks(data)
        with self._lock:
            self.counts["writes"] += 1
            existing = self._kept.get(path)
            if b"if-none-match" in headers and existing is not None:
                return _response(412, "PreconditionFailed")
            if (expected := headers.get(b"if-match")) and (
                existing is None or expected.decode().strip('"') != _etag(existing)
            ):
                return _response(412, "PreconditionFailed")
            self._kept[path] = data
            self._objects[path] = len(data), _etag(data), time.time()
        return _response(200, etag=_etag(data))

    def _list(self, bucket: bytes, query: dict[str, list[str]]) -> bytes:
        root = f"{bucket.decode().rstrip('/')}/"
        prefix = f"{root}{query.get('prefix', [''])[0]}".encode()
        after = query.get("continuation-token", [""])[0].encode()
        with self._lock:
            self.counts["reads"] += 1
            names = sorted(name for name in self._objects if name.startswith(prefix) and name > after)[:1001]
            found = [(name, *self._objects[name]) for name in names[:1000]]
        contents = "".join(
            f"<Contents><Key>{name.decode().removeprefix(root)}</Key><Size>{size}</Size>"
            f'<ETag>"{etag}"</ETag><LastModified>{_iso(at)}</LastModified></Contents>'
            for name, size, etag, at in found
        )
        more = len(names) > 1000
        token = f"<NextContinuationToken>{found[-1][0].decode()}</NextContinuationToken>" if more else ""
        body = (
            f"<?xml version='1.0'?><ListBucketResult xmlns='http://s3.amazonaws.com/doc/2006-03-01/'>"
            f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{contents}</ListBucketResult>"
        )
        return _response(200, body=body.encode())

    def _get(self, method: bytes, path: bytes) -> bytes:
        with self._lock:
            self.counts["reads"] += 1
            data, known = self._kept.get(path), self._objects.get(path)
        if data is None and known is not None and method == b"HEAD":
            return _response(200, etag=known[1], length=known[0])
        if data is None:
            return _response(404, "NoSuchKey")
        return _response(200, etag=_etag(data), body=data if method == b"GET" else b"")


def _etag(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def _response(
    status: int, code: str = "", etag: str = "", body: bytes = b"", length: int | None = None
) -> bytes:
    if code:
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>".encode()
    size = len(body) if length is None else length
    tag = f'ETag: "{etag}"\r\n' if etag else ""
    return f"HTTP/1.1 {status} Whatever\r\n{tag}Content-Length: {size}\r\n\r\n".encode() + body


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image-bytes", type=int, default=2_000_000)
    parser.add_argument("--limit", type=int, default=0, help="requests that the gateway accepts per minute")
    parser.add_argument("--certificate", type=Path, help="the gateway uses HTTPS")
    parser.add_argument("--key", type=Path)
    arguments = parser.parse_args()
    tls = None
    if arguments.certificate:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(arguments.certificate, arguments.key)
    threading.stack_size(256 * 1024)
    gateway, store = Gateway(arguments.image_bytes, arguments.limit), Store()
    ports: dict[str, Any] = {}
    for name, serve, secured in (("api", gateway.serve, tls), ("s3", store.serve, None)):
        listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
        ports[name] = listener.getsockname()[1]
        threading.Thread(target=_serve, args=(listener, serve, secured), daemon=True).start()
    print(json.dumps(ports), flush=True)
    for line in sys.stdin:
        if line.strip() == "stats":
            print(json.dumps({**gateway.counts, **store.counts}), flush=True)
            gateway.counts |= {"posts": 0, "peak": 0, "seconds": 0.0, "refused": 0}
            store.counts.update(dict.fromkeys(store.counts, 0))


if __name__ == "__main__":
    main()
