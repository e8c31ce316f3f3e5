"""The response to a request for an image: interim responses, imperfect headers and false chunks."""

from __future__ import annotations

import http.client
import io
import re
import time
from typing import Any

MAX_INTERIM_RESPONSES = 10_000
MAX_HEAD_BYTES = 1024 * 1024
"""Limit for the headers of the final response and of all interim responses before it."""

_FIELD = re.compile("([!-9;-~]+)[ \t]*:(.*)")
_FOLD = re.compile("\r?\n[ \t]+")
_CONTROL = re.compile("[\x00-\x08\x0a-\x1f\x7f]")
_LENGTH = re.compile("[0-9]{1,18}")
_CHUNK_SIZE = re.compile(rb"[0-9a-fA-F]+[ \t]*(?:[;\r\n]|\Z)")
_FRAMING_FIELDS = ("Transfer-Encoding", "Content-Length", "Connection", "Keep-Alive", "Proxy-Connection")
"""The fields that define where the body ends."""


class FinalResponse(http.client.HTTPResponse):
    """A response that skips interim (1xx) responses other than 101, and reads imperfect heads.

    ``http.client`` skips only ``100 Continue`` and takes any other for the final response. Gateways send
    ``102 Processing`` and ``103 Early Hints`` while they generate an image, so a paid image would be lost.

    It also rejects heads with more than 100 fields or a field above 64 KiB, ignores all fields after a line that is
    not a field, and misses a transfer coding that stands next to another one. urllib3 rejects contradictory lengths.
    Each of that would lose a paid image too. Each request has its own connection, so a wrong end of the body can't
    shift the next response.

    The number, size and duration of heads are limited, because a server may send nothing else.
    """

    def __init__(self, sock: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self._head_timeout: float | None = sock.gettimeout()
        self._head_bytes = 0
        self._body_began = False

    def begin(self, **options: Any) -> None:
        """Read the heads up to that of the final response."""
        if self.headers is not None:
            return
        version, status, reason = self._read_status()
        headers = _parse_head(self._read_head(time.monotonic()))
        old = version if version in ("HTTP/0.9", "HTTP/1.0") else "HTTP/1.1"
        framing = "".join(f"{name}: {headers[name]}\r\n" for name in _FRAMING_FIELDS if name in headers)
        # Of the head, http.client reads only what defines the body's end.
        body, self.fp = self.fp, io.BytesIO(f"{old} {status}\r\n{framing}\r\n".encode("latin-1"))
        try:
            super().begin(**options)
        finally:
            self.fp = body
        self.headers = self.msg = headers
        self.reason = reason.strip()

    def peek(self, n: int = -1) -> bytes:
        """Return the body's next bytes. Before the first one, correct a header that promises chunks."""
        if self.chunked and self.chunk_left is None and not self._body_began:
            # A proxy may join the chunks and copy the header.
            beginning = self.fp.peek(1)
            self.chunked = not beginning or _CHUNK_SIZE.match(beginning) is not None
        self._body_began = True
        return super().peek(n)

    def _read_status(self) -> tuple[str, int, str]:
        started = time.monotonic()
        for _ in range(MAX_INTERIM_RESPONSES):
            version, status, reason = super()._read_status()  # type: ignore[misc]
            if status == http.client.SWITCHING_PROTOCOLS or not 100 <= status < 200:
                return version, status, reason
            self._read_head(started)
        raise http.client.HTTPException(f"more than {MAX_INTERIM_RESPONSES:,} interim responses")

    def _read_head(self, started: float) -> bytes:
        """Return the lines up to the empty one.

        :param started: the time from which the duration is limited
        """
        lines: list[bytes] = []
        while True:
            waited = time.monotonic() - started
            if self._head_timeout is not None and waited > 2 * self._head_timeout:
                raise TimeoutError(f"only headers arrived for {waited:.0f} s")
            line = self.fp.readline(MAX_HEAD_BYTES + 1)
            self._head_bytes += len(line)
            if self._head_bytes > MAX_HEAD_BYTES:
                raise http.client.HTTPException("the headers of the response are too large")
            if line in (b"\r\n", b"\n"):
                return b"".join(lines)
            if not line.endswith(b"\n"):
                # The missing fields may be those of a proxy, whose errors don't prove that nothing was billed.
                raise http.client.RemoteDisconnected("Remote end closed connection without response")
            lines.append(line)


def _parse_head(head: bytes) -> http.client.HTTPMessage:
    """Return the fields of a head, with at most one length and one transfer coding. Skip other lines."""
    headers = http.client.HTTPMessage()
    for line in _FOLD.sub(" ", head.decode("latin-1")).split("\n"):
        if found := _FIELD.fullmatch(_CONTROL.sub(" ", line)):
            headers[found[1]] = found[2].strip(" \t")
    codings, lengths = (
        {part.strip().lower() for value in headers.get_all(name, []) for part in value.split(",")}
        for name in ("Transfer-Encoding", "Content-Length")
    )
    del headers["Transfer-Encoding"], headers["Content-Length"]
    if "chunked" in codings:
        headers["Transfer-Encoding"] = "chunked"
    elif len(lengths) == 1 and _LENGTH.fullmatch(length := lengths.pop()):
        headers["Content-Length"] = length
    return headers
