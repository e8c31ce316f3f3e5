"""Decode one base64 string of JSON into a sink as it arrives.

Accepted beyond the standard, because the image is paid for: white space, the URL-safe alphabet, missing
padding, JSON escapes, and a ``data:…;base64,`` prefix. A value that is broken anyway is noted and skipped, so
that the images after it are not lost.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Protocol

import pybase64

WHITE_SPACE = b" \t\r\n"
DATA_URI = b"data:"
MAX_DATA_URI_HEAD = 256

_URL_SAFE = bytes.maketrans(b"-_", b"+/")


class Sink(Protocol):
    """Where an image's bytes go."""

    def write(self, data: bytes, /) -> object:
        """Add the next bytes."""

    def close(self) -> None:
        """Release it; called for every sink that is handed to nobody."""


class Base64Value:
    """One base64 string.

    Base64 comes in fours, so up to three characters wait in ``_carry`` for the next piece. An
    escape (``\\/``) may be cut as well, and waits in ``_escape``.

    :param open_sink: called for the first decoded bytes
    """

    def __init__(self, open_sink: Callable[[], Sink]) -> None:
        self._open_sink = open_sink
        self.sink: Sink | None = None
        self.problem: str | None = None
        """Why the value cannot be used, half a sentence."""
        self.whole = False
        """Whether the value has ended and can be used."""
        self._head: bytes | None = b""  # the first characters, until they cannot be "data:…,"
        self._escape = b""
        self._escaped = False  # a backslash was seen: nearly no value has one, so they are not looked for
        self._carry = b""
        self._padded = False
        self._usual = True  # no escape, white space or URL-safe alphabet was seen yet
        self._unusual = False  # white space or the URL-safe alphabet was seen
        self._taken = False

    def feed(self, data: bytes, start: int, end: int) -> None:
        """Decode the characters ``data[start:end]``."""
        if self._usual and self.sink is not None:
            # Nearly all pieces of nearly all images take this short way.
            try:
                first, rest = self._decode_fours(data, start, end)
            except ValueError:
                self._usual = False
            else:
                if first:
                    self.sink.write(first)
                if rest:
                    self.sink.write(rest)
                if b"\\" in self._carry:
                    self._take_escape_out_of_carry()
                return
        if self.problem is not None:
            return
        if self._escaped or (self._head is not None and data.find(b"\\", start, end) >= 0):
            data = self._unescape(self._escape + data[start:end])
            start, end = 0, len(data)
        if self._head is not None:
            data = self._without_data_uri(self._head + data[start:end])
            start, end = 0, len(data)
        if start < end:
            self._decode(data, start, end)

    def finish(self) -> None:
        """End the value."""
        if self._head:
            head, self._head = self._head, None
            self._decode(head, 0, len(head))
        if self._escape:
            self.fail("its base64 has a quotation mark in it")
        carry = self._carry.translate(_URL_SAFE, WHITE_SPACE)
        if carry and self.problem is None:
            if self._padded or len(carry) == 1 or b"=" in carry:
                self.fail("its base64 is cut short")
            else:
                self._carry = b""
                self._decode(carry + b"=" * (4 - len(carry)), 0, 4)
        self.whole = self.problem is None

    def fail(self, problem: str) -> None:
        """Note that the value cannot be used; the rest of it is skipped."""
        if self.problem is None:
            self.problem = problem

    def take_sink(self) -> Sink | None:
        """Hand the sink over: it is no longer closed here."""
        self._taken = True
        return self.sink

    def close(self) -> None:
        """Close the sink unless it was taken."""
        if self.sink is not None and not self._taken:
            self.sink.close()

    def _unescape(self, data: bytes) -> bytes:
        # Real gateways send only "\/"; any other escape goes through json for its rules.
        cut = data.rfind(b"\\", max(0, len(data) - 5))
        whole = cut < 0 or (cut + 1 < len(data) and (data[cut + 1] != 0x75 or cut + 6 <= len(data)))
        if not whole:
            # The second half of a pair escapes nothing.
            run = cut + 1 - len(data[: cut + 1].rstrip(b"\\"))
            whole = run % 2 == 0
        self._escaped, self._usual = True, False
        data, self._escape = (data, b"") if whole else (data[:cut], data[cut:])
        slashes_only = data.replace(b"\\/", b"/")
        if b"\\" not in slashes_only:
            return slashes_only
        try:
            # Latin-1 keeps every byte, wherever the pieces were cut; what it lacks is not base64.
            text: str = json.loads('"' + data.decode("latin-1") + '"', strict=False)
            return text.encode("latin-1", errors="replace")
        except ValueError:
            self.fail("its base64 has an invalid escape")
            return b""

    def _without_data_uri(self, data: bytes) -> bytes:
        """Return what follows ``data:image/png;base64,``; nothing while that is unknown."""
        if not DATA_URI.startswith(data[: len(DATA_URI)].lower()):
            self._head = None
            return data
        comma = data.find(b",", 0, MAX_DATA_URI_HEAD)
        if comma < 0:
            if len(data) >= MAX_DATA_URI_HEAD:
                self.fail("its data URI has no end")
            self._head = data
            return b""
        self._head = None
        if not data[:comma].lower().endswith(b";base64"):
            self.fail("its data URI is not base64")
            return b""
        return data[comma + 1 :]

    def _decode(self, data: bytes, start: int, end: int) -> None:
        try:
            if self._unusual:
                raise ValueError  # decoding such a piece as it is would fail, and cost a pass
            parts = self._decode_fours(data, start, end)
        except ValueError:
            if not self._escaped and data.find(b"\\", start, end) >= 0:
                unescaped = self._unescape(data[start:end])
                if self.problem is None:
                    self._decode(unescaped, 0, len(unescaped))
                return
            # White space and the URL-safe alphabet are rare, and not worth a pass over every image.
            piece = self._carry + data[start:end]
            dense = piece.translate(_URL_SAFE, WHITE_SPACE)
            if dense == piece and not self._unusual:
                self.fail("its base64 is broken")
                return
            self._unusual = True
            self._carry = b""
            try:
                parts = self._decode_fours(dense, 0, len(dense))
            except ValueError:
                self.fail("its base64 is broken")
                return
        for part in parts:
            if part:
                if self.sink is None:
                    self.sink = self._open_sink()
                self.sink.write(part)
        if not self._escaped and b"\\" in self._carry:
            self._take_escape_out_of_carry()

    def _take_escape_out_of_carry(self) -> None:
        at = self._carry.index(b"\\")
        self._carry = self._carry[:at] + self._unescape(self._carry[at:])

    def _decode_fours(self, data: bytes, start: int, end: int) -> tuple[bytes, bytes]:
        """Decode or raise ``ValueError`` with nothing changed."""
        joined = b""
        if carry := self._carry:
            missing = 4 - len(carry)
            joined = carry + data[start : min(end, start + missing)]
            if len(joined) < 4:
                self._carry = joined
                return b"", b""
            start += missing
        stop = end - (end - start) % 4
        fours = memoryview(data)[start:stop]
        first = pybase64.b64decode(joined, validate=True)
        rest = pybase64.b64decode(fours, validate=True)
        # Padding may only be the very end: not of a piece, of the value.
        padded = self._padded or joined.endswith(b"=")
        if (joined and self._padded) or (fours and padded):
            raise ValueError
        self._padded = padded or (bool(fours) and fours[-1] == 0x3D)
        self._carry = data[stop:end]
        return first, rest
