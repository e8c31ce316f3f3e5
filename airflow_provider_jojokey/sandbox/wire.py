"""Send a response on a socket, complete or with simulated network faults."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Literal

Framing = Literal["length", "chunked", "close"]
Ending = Literal["keep", "fin", "rst"]

_SEGMENT = 64 * 1024
_PHRASES = {
    520: "Web Server Returned an Unknown Error",
    521: "Web Server Is Down",
    522: "Connection Timed Out",
    523: "Origin Is Unreachable",
    524: "A Timeout Occurred",
    525: "SSL Handshake Failed",
    526: "Invalid SSL Certificate",
}


@dataclass(frozen=True)
class Reply:
    """An HTTP response and how it is sent.

    A ``status`` of ``None`` sends nothing. ``body`` is a sequence of pieces with a known length, or an iterator, which
    needs ``framing="chunked"`` or ``"close"``.
    """

    status: int | None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Sequence[bytes] | Iterator[bytes] = ()
    framing: Framing = "length"
    cut: int | None = None
    """Number of bytes after which the body breaks off."""
    whole: bool = True
    """Whether the framing ends regularly after the body. With ``cut`` it never does."""
    end: Ending = "keep"
    """What happens to the connection afterwards: kept alive, closed (FIN), or reset (RST)."""
    hang: bool = False
    """Whether to wait after sending until the client disconnects."""
    interim: Sequence[int] = ()
    """Statuses of interim responses that are sent first."""
    extra_length: int = 0
    """Number of bytes by which the Content-Length is too large."""
    drip: float = 0.0
    """Seconds over which the body is spread evenly; 0 means full speed."""


class Wire:
    """The socket of a connection.

    :param connection: the socket.
    :param stopping: set when the server ends this request. No method waits after that.
    """

    def __init__(self, connection: socket.socket, stopping: threading.Event) -> None:
        self._socket = connection
        self.stopping = stopping

    def send(self, reply: Reply, before_last: Callable[[bool], None] = lambda connected: None) -> bool:
        """Send ``reply``.

        :param before_last: called right before the last byte of a complete body is sent. A client that has read the
            response then finds what the callback recorded. Its argument is whether the client is still connected.
        :returns: whether the connection can serve another request.
        :raises OSError: if the client has disconnected.
        """
        if reply.status is not None:
            if (
                isinstance(reply.body, Sequence)
                and not any(reply.body)
                and reply.framing == "length"
                and reply.whole
            ):
                before_last(not self.is_gone())  # the response has no body
            self._socket.sendall(_head(reply))
            if isinstance(reply.body, Sequence):
                self._send_sequence(reply, before_last)
            else:
                self._send_iterator(reply)
        if reply.hang:
            self.wait_until_gone()
            return False
        if reply.end == "rst":
            self._reset()
        return reply.end == "keep" and reply.framing != "close"

    def is_gone(self) -> bool:
        """Return whether the client has closed or reset the connection."""
        try:
            return self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            return True

    def wait_until_gone(self) -> None:
        """Block until the client disconnects or the server stops."""
        with contextlib.suppress(OSError):
            # Ignore further bytes of the client.
            while not self.stopping.is_set() and self._socket.recv(_SEGMENT):
                pass

    def shut_down(self) -> None:
        """Close both directions, which wakes the thread that uses the socket."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _send_sequence(self, reply: Reply, before_last: Callable[[bool], None]) -> None:
        assert isinstance(reply.body, Sequence)
        total = sum(len(piece) for piece in reply.body)
        limit = total if reply.cut is None else min(reply.cut, total)
        steps = max(2, min(200, int(reply.drip / 0.02))) if reply.drip > 0 else 1
        segment = min(_SEGMENT, max(1, limit // steps))
        started = time.monotonic()
        sent = 0
        incomplete = reply.cut is not None or not reply.whole
        if not limit and not incomplete and reply.framing != "length":
            before_last(not self.is_gone())
        for part in _segments(reply.body, segment, limit):
            sent += len(part)
            if sent == limit and not incomplete:
                before_last(not self.is_gone())
            self._sendall(part, reply.framing)
            early = started + reply.drip * sent / limit - time.monotonic()
            if reply.drip > 0 and early > 0 and not self.stopping.wait(early) and self.is_gone():
                raise ConnectionResetError("the client disconnected")
        if reply.framing == "chunked" and not incomplete:
            self._socket.sendall(b"0\r\n\r\n")

    def _send_iterator(self, reply: Reply) -> None:
        for piece in reply.body:
            self._sendall(memoryview(piece), reply.framing)
        if reply.framing == "chunked" and reply.whole:
            self._socket.sendall(b"0\r\n\r\n")

    def _sendall(self, part: memoryview, framing: Framing) -> None:
        if framing == "chunked":
            self._socket.sendall(b"%x\r\n" % len(part))
            self._socket.sendall(part)
            self._socket.sendall(b"\r\n")
        else:
            self._socket.sendall(part)

    def _reset(self) -> None:
        self._drain()
        # A linger time of zero turns close() into a reset. Without it being the next call, shutdown() would end the
        # connection regularly.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        socket.close(self._socket.detach())

    def _drain(self) -> None:
        """Wait until the client has received everything: a reset discards bytes in flight."""
        try:
            from fcntl import ioctl
            from termios import TIOCOUTQ
        except ImportError:  # pragma: no cover - not available on this platform
            time.sleep(0.1)
            return
        deadline = time.monotonic() + 5
        with contextlib.suppress(OSError):
            while time.monotonic() < deadline and not self.stopping.is_set():
                unsent = struct.unpack("i", ioctl(self._socket.fileno(), TIOCOUTQ, b"\0\0\0\0"))[0]
                if unsent == 0:
                    return
                self.stopping.wait(0.002)


def _head(reply: Reply) -> bytes:
    assert reply.status is not None
    try:
        phrase = HTTPStatus(reply.status).phrase
    except ValueError:
        phrase = _PHRASES.get(reply.status, "Unknown")
    interim = [f"HTTP/1.1 {status} Interim\r\nX-Interim: yes\r\n\r\n" for status in reply.interim]
    lines = [f"{''.join(interim)}HTTP/1.1 {reply.status} {phrase}"]
    lines += [f"{name}: {value}" for name, value in reply.headers.items()]
    if reply.framing == "length":
        assert isinstance(reply.body, Sequence)
        length = sum(len(piece) for piece in reply.body) + reply.extra_length
        lines.append(f"Content-Length: {length}")
    elif reply.framing == "chunked":
        lines.append("Transfer-Encoding: chunked")
    else:
        lines.append("Connection: close")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _segments(pieces: Iterable[bytes], size: int, limit: int) -> Iterator[memoryview]:
    """Cut ``pieces`` into parts of at most ``size`` bytes, ``limit`` bytes in all, without copying."""
    left = limit
    for piece in pieces:
        view = memoryview(piece)[:left]
        left -= len(view)
        for start in range(0, len(view), size):
            yield view[start : start + size]
        if left <= 0:
            return
