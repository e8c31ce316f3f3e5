"""Decode one base64 string of a JSON document into a sink as it arrives.

Because the image is already paid, the decoder accepts white space, the URL-safe alphabet, missing padding, JSON
escapes, and a ``data:…;base64,`` prefix. It skips a value that is broken anyway, so that the images after it
are not lost.
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
    """Receives the bytes of an image."""

    def write(self, data: bytes, /) -> object:
        """Append the next bytes."""

    def close(self) -> None:
        """Release the sink. The decoder calls this for every sink that it does not pass on."""


class Base64Value:
    """One base64 string.

    Base64 decodes four characters at a time, so ``_carry`` keeps up to three characters for the next chunk. A
    chunk may also end within an escape (``\\/``), which ``_escape`` keeps.

    :param open_sink: called for the first decoded bytes
    """

    def __init__(self, open_sink: Callable[[], Sink]) -> None:
        self._open_sink = open_sink
        self.sink: Sink | None = None
        self.problem: str | None = None
        """Why the value cannot be used, without a full stop."""
        self.complete = False
        """Whether the value has ended and can be used."""
        self._head: bytes | None = b""  # the first characters, while they may be a data URI
        self._escape = b""
        self._escaped = False  # whether a backslash was seen; most values have none, so skip the search
        self._carry = b""
        self._padded = False
        self._fast = True  # no escape, white space or URL-safe alphabet was seen yet
        self._translates = False  # white space or the URL-safe alphabet was seen
        self._taken = False

    def feed(self, data: bytes, start: int, end: int) -> None:
        """Decode the characters ``data[start:end]``."""
        if self._fast and self.sink is not None:
            # Fast path for nearly all chunks.
            try:
                first, rest = self._decode_fours(data, start, end)
            except ValueError:
                self._fast = False
            else:
                if first:
                    self.sink.write(first)
                if rest:
                    self.sink.write(rest)
                if b"\\" in self._carry:
                    self._unescape_carry()
                return
        if self.problem is not None:
            return
        if self._escaped or (self._head is not None and data.find(b"\\", start, end) >= 0):
            data = self._unescape(self._escape + data[start:end])
            start, end = 0, len(data)
        if self._head is not None:
            data = self._strip_data_uri(self._head + data[start:end])
            start, end = 0, len(data)
        if start < end:
            self._decode(data, start, end)

    def finish(self) -> None:
        """End the value."""
        if self._head:
            head, self._head = self._head, None
            self._decode(head, 0, len(head))
        if self._escape:
            self.fail("its base64 contains a quotation mark")
        carry = self._carry.translate(_URL_SAFE, WHITE_SPACE)
        if carry and self.problem is None:
            if self._padded or len(carry) == 1 or b"=" in carry:
                self.fail("its base64 is truncated")
            else:
                self._carry = b""
                self._decode(carry + b"=" * (4 - len(carry)), 0, 4)
        self.complete = self.problem is None

    def fail(self, problem: str) -> None:
        """Mark the value as unusable and skip the rest of it."""
        if self.problem is None:
            self.problem = problem

    def take_sink(self) -> Sink | None:
        """Return the sink. The caller must close it."""
        self._taken = True
        return self.sink

    def close(self) -> None:
        """Close the sink unless it was taken."""
        if self.sink is not None and not self._taken:
            self.sink.close()

    def _unescape(self, data: bytes) -> bytes:
        # Real gateways send only "\/". Let json decode any other escape.
        cut = data.rfind(b"\\", max(0, len(data) - 5))
        whole = cut < 0 or (cut + 1 < len(data) and (data[cut + 1] != 0x75 or cut + 6 <= len(data)))
        if not whole:
            # The second backslash of a pair escapes nothing.
            run = cut + 1 - len(data[: cut + 1].rstrip(b"\\"))
            whole = run % 2 == 0
        self._escaped, self._fast = True, False
        data, self._escape = (data, b"") if whole else (data[:cut], data[cut:])
        slashes_only = data.replace(b"\\/", b"/")
        if b"\\" not in slashes_only:
            return slashes_only
        try:
            # Latin-1 keeps every byte, wherever a chunk ends. Characters it lacks are not base64.
            text: str = json.loads('"' + data.decode("latin-1") + '"', strict=False)
            return text.encode("latin-1", errors="replace")
        except ValueError:
            self.fail("its base64 has an invalid escape")
            return b""

    def _strip_data_uri(self, data: bytes) -> bytes:
        """Return the data after ``data:image/png;base64,``, or nothing until the prefix ends."""
        data = data.lstrip(WHITE_SPACE)
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
            if self._translates:
                raise ValueError  # decoding without translation would fail
            parts = self._decode_fours(data, start, end)
        except ValueError:
            if not self._escaped and data.find(b"\\", start, end) >= 0:
                unescaped = self._unescape(data[start:end])
                if self.problem is None:
                    self._decode(unescaped, 0, len(unescaped))
                return
            # White space and the URL-safe alphabet are rare, so translate only after a failure.
            chunk = self._carry + data[start:end]
            dense = chunk.translate(_URL_SAFE, WHITE_SPACE)
            if dense == chunk and not self._translates:
                self.fail("its base64 is broken")
                return
            self._translates = True
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
            self._unescape_carry()

    def _unescape_carry(self) -> None:
        at = self._carry.index(b"\\")
        self._carry = self._carry[:at] + self._unescape(self._carry[at:])

    def _decode_fours(self, data: bytes, start: int, end: int) -> tuple[bytes, bytes]:
        """Decode, or raise ``ValueError`` and leave the state unchanged."""
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
        # Padding is valid only at the end of the value, not of a chunk.
        padded = self._padded or joined.endswith(b"=")
        if (joined and self._padded) or (fours and padded):
            raise ValueError
        self._padded = padded or (bool(fours) and fours[-1] == 0x3D)
        self._carry = data[stop:end]
        return first, rest
