"""Split one JSON document into its large base64 strings and the rest, as it arrives.

A response is a small JSON document that contains a few very large strings, the images in base64. The splitter
decodes each of them chunk by chunk into its own sink. It keeps everything else, a few hundred bytes, with a
placeholder for each image, and passes it to :func:`json.loads` at the end. That checks the grammar, so the
scanner here only distinguishes strings, brackets, commas and colons.

Memory holds one chunk of the document, never all of it. Placeholders contain a nonce, so a prompt that the
gateway echoes cannot be mistaken for a placeholder.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable
from typing import Any

from airflow_provider_jojokey.img2.base64_value import Base64Value, Sink
from airflow_provider_jojokey.img2.json_text import without_blanks

MAX_TEXT_BYTES = 4 * 1024 * 1024
MAX_VALUES = 128
"""More images than the gateway generates for one request. Each has an open file."""

Path = list["str | int | None"]

MAX_BLANKS = 1000
"""White space before an image in base64. Some gateways send white space while they generate."""

MAX_DIGITS = 1000
MAX_NESTING = 200
"""Maximum number of brackets around a value in a broken document. Deeper values are left out."""


def _number(digits: str) -> int | float:
    """Python refuses to read integers of thousands of digits."""
    return int(digits) if len(digits) <= MAX_DIGITS else float(digits)


# Accept line breaks within strings: rejecting them would lose a paid image.
_loads = json.JSONDecoder(strict=False, parse_int=_number).decode
_STRUCTURE = re.compile(rb'["{}\[\],:]')
_STRING_STOP = re.compile(rb'["\\]')
# A string in the place of a link is an image if it begins like one: a data: URI, or the base64 of
# PNG, JPEG ("/9j/", whose slashes may be escaped) or WebP. A string in the place of an image may be a link.
_IMAGE_HEADS = (b"data:", b"ivborw0kggo", b"/9j/", b"\\/9j\\/", b"\\/9j/", b"uklgr")
_LINK_HEADS = (b"http:", b"https:")
# Anywhere else, "data:" may begin any text.
_OTHER_HEADS = (b"data:image", *_IMAGE_HEADS[1:])
_MAX_HEAD = max(map(len, (*_IMAGE_HEADS, *_LINK_HEADS, *_OTHER_HEADS)))


def opening_of(text: bytes) -> bytes | None:
    """Return what makes a JSON list of a text that begins like an image in base64; ``b""`` for any other text.

    ``None`` means that more characters decide.

    :param text: the text's beginning, which may be a JSON string
    """
    head = without_blanks(text)
    opening = b"[" if head.startswith(b'"') else b'["'
    head = head.removeprefix(b'"')[:_MAX_HEAD].lower()
    if head.startswith(_OTHER_HEADS):
        return opening
    undecided = len(text) <= MAX_BLANKS and any(known.startswith(head) for known in _OTHER_HEADS)
    return None if undecided else b""


class ReplyError(ValueError):
    """A response that violates the API's format. The generation was very likely billed."""


class Splitter:
    """Split one JSON document whose root is an object or a list.

    :param is_image: whether the string at a path (keys and indexes from the root) is base64 unless it starts as a link
    :param is_link: whether the string at a path is an image if it begins like one
    :param is_other: whether the string at any other path is an image if it definitely begins like one
    :param open_sink: called for the first bytes of each image
    :param on_value: called with each value and its path as soon as the value ends
    """

    def __init__(
        self,
        is_image: Callable[[Path], bool],
        is_link: Callable[[Path], bool],
        is_other: Callable[[Path], bool],
        open_sink: Callable[[], Sink],
        on_value: Callable[[Base64Value, Path], object] | None = None,
    ) -> None:
        self._is_image = is_image
        self._is_link = is_link
        self._is_other = is_other
        self._open_sink = open_sink
        self._on_value = on_value
        self._nonce = secrets.token_hex(16)
        self.values: list[Base64Value] = []
        self.complete = False
        """Whether the document has ended."""
        self.broken = False
        """Whether :meth:`finish` found that it is not a complete JSON document."""
        self._text = bytearray()
        # One entry for each open container: the index in a list; the key in an object, or None before it.
        self._path: Path = []
        self._key: str | None = None
        self._string_start = 0
        self._escaped = False
        self._head = b""  # the first characters of a string that may be an image or a link
        self._heads: tuple[bytes, ...] = _IMAGE_HEADS
        self._step = self._outside

    def feed(self, data: bytes, start: int, end: int) -> int:
        """Read ``data[start:end]`` up to the document's end, and return the position after it.

        :raises ReplyError: if there is too much text or there are too many images
        """
        while start < end and not self.complete:
            start = self._step(data, start, end)
        return start

    def finish(self) -> Any:
        """Return the document, with a placeholder for each image.

        :raises ReplyError: if it is not a complete JSON document
        """
        if self.in_image:
            self.broken = True
            raise ReplyError("the response ends in the middle of an image")
        try:
            return _loads(self._text.decode("utf-8", errors="replace"))
        except (ValueError, RecursionError) as error:
            self.broken = True
            reason = error.msg if isinstance(error, json.JSONDecodeError) else type(error).__name__
            raise ReplyError(f"the response is not a complete JSON document ({reason})") from None

    def parse_partial(self) -> Any:
        """Return the document up to the last complete value before its end or its first mistake, or ``None``."""
        text = bytes(self._text)
        for _ in range(2):
            closed = _close_brackets(text).decode("utf-8", errors="replace")
            try:
                return _loads(closed)
            except json.JSONDecodeError as error:
                text = closed[: error.pos].encode()
            except (ValueError, RecursionError):
                break
        return None

    @property
    def text(self) -> bytes:
        """The text besides the images so far, with a placeholder for each image."""
        return bytes(self._text)

    @property
    def in_image(self) -> bool:
        """Whether the next byte belongs to an image."""
        return self._step == self._in_image

    def contains(self, *words: bytes) -> bool:
        """Return whether the text so far contains any of ``words``."""
        return any(word in self._text for word in words)

    def value_of(self, placeholder: Any) -> Base64Value | None:
        """Return the value that ``placeholder`` stands for, or ``None`` if it is something else."""
        if isinstance(placeholder, str) and placeholder.startswith(self._nonce):
            return self.values[int(placeholder[len(self._nonce) :])]
        return None

    def close(self) -> None:
        """Close all sinks that were not taken."""
        for value in self.values:
            value.close()

    # Each step reads data from position on and returns the position of the first unread byte.

    def _outside(self, data: bytes, position: int, end: int) -> int:
        found = _STRUCTURE.search(data, position, end)
        stop = found.end() if found else end
        self._keep(data, position, stop)
        if found:
            self._structure(data[stop - 1])
        return stop

    def _structure(self, byte: int) -> None:
        path = self._path
        match byte:
            case 0x22:  # "
                self._string_start = len(self._text) - 1
                if self._is_image(path):
                    self._heads, self._step = _LINK_HEADS, self._in_head
                elif self._is_link(path):
                    self._heads, self._step = _IMAGE_HEADS, self._in_head
                elif self._is_other(path):
                    self._heads, self._step = _OTHER_HEADS, self._in_head
                else:
                    self._step = self._in_string
            case 0x7B:  # {
                path.append(None)
            case 0x5B:  # [
                path.append(0)
            case 0x7D | 0x5D:  # } ]
                if path:
                    path.pop()
                self.complete = not path
            case 0x2C:  # ,
                if path:
                    path[-1] = path[-1] + 1 if isinstance(path[-1], int) else None
            case 0x3A if path and path[-1] is None:  # :
                path[-1] = self._key

    def _in_head(self, data: bytes, position: int, end: int) -> int:
        """Decide by its first characters whether a string is an image or text."""
        stop = min(position + _MAX_HEAD - len(self._head), end)
        head, self._head = self._head + data[position:stop], b""
        lower = head.lower()
        found = lower.startswith(self._heads)
        if not found and any(known.startswith(lower) for known in self._heads):
            self._head = head
            return stop
        if found != (self._heads is _LINK_HEADS):
            self._begin_image()
        else:
            self._step = self._in_string
        return stop - len(head) + self.feed(head, 0, len(head))

    def _in_string(self, data: bytes, position: int, end: int) -> int:
        if self._escaped:
            self._escaped = False
            self._keep(data, position, position + 1)
            return position + 1
        found = _STRING_STOP.search(data, position, end)
        stop = found.end() if found else end
        self._keep(data, position, stop)
        if found and data[stop - 1] == 0x5C:
            self._escaped = True
        elif found:
            self._end_string()
        return stop

    def _end_string(self) -> None:
        self._step = self._outside
        if self._path and self._path[-1] is None:
            try:
                self._key = _loads(self._text[self._string_start :].decode("utf-8", errors="replace"))
            except ValueError:
                self._key = None  # json.loads will reject the document too

    def _begin_image(self) -> None:
        if len(self.values) == MAX_VALUES:
            raise ReplyError(f"the response has more than {MAX_VALUES} images")
        self._text += f"{self._nonce}{len(self.values)}".encode()
        self.values.append(Base64Value(self._open_sink))
        self._escaped = False
        self._step = self._in_image

    def _in_image(self, data: bytes, position: int, end: int) -> int:
        value = self.values[-1]
        quote = data.find(b'"', position, end)
        stop = end if quote < 0 else quote
        if stop > position:  # check for a backslash first: chunks rarely end in one
            self._escaped = data[stop - 1] == 0x5C and _ends_escaped(data, position, stop, self._escaped)
        value.feed(data, position, stop)
        if quote < 0:
            return end
        if self._escaped:
            self._escaped = False
            value.fail("its base64 contains a quotation mark")
            return quote + 1
        value.finish()
        self._text += b'"'
        self._step = self._outside
        if self._on_value:
            self._on_value(value, self._path)
        return quote + 1

    def _keep(self, data: bytes, start: int, end: int) -> None:
        if len(self._text) + end - start > MAX_TEXT_BYTES:
            raise ReplyError(
                f"the response has more than {MAX_TEXT_BYTES:,} bytes of text besides its images"
            )
        self._text += data[start:end]


def _ends_escaped(data: bytes, start: int, end: int, before: bool) -> bool:
    """Return whether ``data[start:end]`` ends in a backslash that escapes the next byte."""
    run = 0
    while end - run > start and data[end - run - 1] == 0x5C:
        run += 1
    return (run % 2 == 1) ^ (before and run == end - start)


_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\],:]|[^\s{}\[\],:"]+', re.DOTALL)
_CLOSERS = {b"{": b"}", b"[": b"]"}


def _close_brackets(text: bytes) -> bytes:
    """Return a truncated document up to its last complete value, with its brackets closed."""
    open_brackets: list[bytes] = []
    safe, before = 0, b""
    for found in _TOKEN.finditer(text):
        token = found[0]
        if token in _CLOSERS:
            if len(open_brackets) == MAX_NESTING:
                break
            open_brackets.append(_CLOSERS[token])
        elif token in (b"}", b"]"):
            if not open_brackets or open_brackets[-1] != token:
                break
            open_brackets.pop()
            safe = found.end()
            if not open_brackets:
                break
        elif token == b",":
            safe = found.start()
        elif token[:1] == b'"' and open_brackets and (before == b":" or open_brackets[-1] == b"]"):
            safe = found.end()
        before = token
    return text[:safe] + b"".join(reversed(_missing_brackets(text, safe)))


def _missing_brackets(text: bytes, end: int) -> list[bytes]:
    """Return the closing brackets that are missing at a position."""
    open_brackets: list[bytes] = []
    for found in _TOKEN.finditer(text, 0, end):
        if found[0] in _CLOSERS:
            open_brackets.append(_CLOSERS[found[0]])
        elif found[0] in (b"}", b"]") and open_brackets:
            open_brackets.pop()
    return open_brackets
