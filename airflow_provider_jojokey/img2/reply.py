"""The reply's way from bytes to images: bytes go in as they arrive, images come out.

No socket in sight. A reply is a small JSON document with a few very large strings in it, the
images in base64. It is split in two while it arrives:

* each string at ``data[i].b64_json``, and each ``data:`` URI at ``data[i].url``, is decoded piece
  by piece into a sink of its own;
* everything else, some hundred bytes, is kept, with a placeholder where an image was, and given
  to :func:`json.loads` at the end. That is what checks the grammar, so the scanner here only has
  to know strings, brackets, commas and colons, and what it misreads in a broken document is
  refused there.

So memory holds a piece of the reply, never the reply. The placeholder has a nonce in it, lest a
prompt that the gateway repeats be taken for one. Two values under the same key each have a sink;
the later one counts, as it does for :mod:`json`.

Nothing is an image because of its key alone: only the path counts.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import pybase64

from airflow_provider_jojokey.img2.images import ImageFile

MAX_TEXT_BYTES = 4 * 1024 * 1024
MAX_VALUES = 128
"""More images than the gateway ever makes in one request; each holds an open file."""

Path = list["str | int | None"]

_STRUCTURE = re.compile(rb'["{}\[\],:]')
_STRING_STOP = re.compile(rb'["\\]')
_WHITE_SPACE = b" \t\r\n"
_DATA_URI = b"data:"
_MAX_DATA_URI_HEAD = 256


class ReplyError(ValueError):
    """A reply that is not what the API promises. The generation was very likely billed."""


class Sink(Protocol):
    """Where an image's bytes go."""

    def write(self, data: bytes, /) -> object:
        """Take the next bytes."""

    def close(self) -> None:
        """Be done with; called for every sink whose bytes nobody gets."""


@dataclass(frozen=True, slots=True)
class ReplyImage:
    """One element of the reply's ``data``.

    :param index: its place in ``data``, from 0
    :param sink: its decoded bytes, or ``None`` where there are none in the reply
    :param url: where to fetch it instead, or ``None`` where absent, empty or decoded
    :param revised_prompt: the prompt as the model rewrote it
    """

    index: int
    sink: Any | None
    url: str | None
    revised_prompt: str | None


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole reply.

    :param document: the JSON document; where an image was decoded, there is ``None``
    :param images: the elements of ``data``
    """

    document: Any
    images: list[ReplyImage] = field(default_factory=list)


class ReplyDecoder:
    """Decode the reply of ``POST /v1/images/generations`` as it arrives.

    :param open_sink: called with 0, 1, 2 … for each image's first bytes; returns what has
        ``write(bytes)`` and ``close()``. The default is a temporary file,
        :class:`~airflow_provider_jojokey.img2.images.ImageFile`.
    :param on_whole: called with each sink whose image has arrived whole, at that moment
    """

    def __init__(
        self,
        open_sink: Callable[[int], Sink] | None = None,
        on_whole: Callable[[Any], object] | None = None,
    ) -> None:
        self._splitter = Splitter(_is_data_image, open_sink, on_whole, is_link=_is_data_link)

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the body, in pieces of any length.

        :raises ReplyError: bad base64, or more than 4 MiB of text outside the images
        """
        self._splitter.feed(data)

    def finish(self) -> Reply:
        """Return the reply, when all bytes were fed.

        :raises ReplyError: if the document is cut short, is not JSON or has something behind it
        """
        document = self._splitter.finish()
        elements = document.get("data") if isinstance(document, dict) else None
        if not isinstance(elements, list):
            elements = []
        images = []
        for index, element in enumerate(elements):
            if not isinstance(element, dict):
                continue
            sink = None
            for name in ("b64_json", "url"):
                if self._splitter.is_placeholder(value := element.get(name)):
                    element[name] = None
                    if sink is None:
                        sink = self._splitter.claim(value)
            images.append(
                ReplyImage(index, sink, _text(element.get("url")), _text(element.get("revised_prompt")))
            )
        self._splitter.close()
        return Reply(document, images)

    @property
    def whole_sinks(self) -> list[Any]:
        """The sinks whose value has ended: what is whole of a reply that breaks off."""
        return self._splitter.whole_sinks

    def close(self) -> None:
        """Close every sink that no reply has been given."""
        self._splitter.close()


def _is_data_image(path: Path) -> bool:
    return len(path) == 3 and path[2] == "b64_json" and path[0] == "data" and isinstance(path[1], int)


def _is_data_link(path: Path) -> bool:
    return len(path) == 3 and path[2] == "url" and path[0] == "data" and isinstance(path[1], int)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


class Splitter:
    """Part one JSON document, as it arrives, into its large base64 strings and the rest.

    :param is_image: tells from a path (keys and indexes from the root) whether the string there
        is an image
    :param open_sink: as for :class:`ReplyDecoder`
    :param on_whole: likewise
    :param is_link: tells from a path whether the string there is an image if it is a ``data:`` URI
    """

    def __init__(
        self,
        is_image: Callable[[Path], bool],
        open_sink: Callable[[int], Sink] | None = None,
        on_whole: Callable[[Any], object] | None = None,
        *,
        is_link: Callable[[Path], bool] = lambda _: False,
    ) -> None:
        self._is_image = is_image
        self._is_link = is_link
        self._open_sink = open_sink or (lambda _: ImageFile())
        self._on_whole = on_whole
        self._nonce = secrets.token_hex(16)
        self._values: list[_Base64Value] = []
        self._opened = 0
        self._whole: list[_Base64Value] = []
        self._text = bytearray()
        # One entry a container that is open: an array's index, an object's key, None before it.
        self._path: Path = []
        self._key: str | None = None
        self._string_start = 0
        self._escaped = False
        self._link = b""  # the first characters of a link that may be "data:"
        self._step = self._outside

    def feed(self, data: bytes) -> None:
        """Take the next bytes.

        :raises ReplyError: bad base64, too much text
        """
        position = 0
        while position < len(data):
            position = self._step(data, position)

    def finish(self) -> Any:
        """Return the document, with a placeholder for each image.

        :raises ReplyError: if it is not one whole JSON document
        """
        if self._step == self._in_image:
            raise ReplyError("the reply ends in the middle of an image")
        try:
            # A stray byte in some text is no reason to lose an image that was paid for.
            return json.loads(self._text.decode("utf-8-sig", errors="replace"))
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else type(error).__name__
            raise ReplyError(f"the reply is not one whole JSON document ({reason})") from None

    @property
    def text(self) -> bytes:
        """What has come beside the images, with a placeholder for each."""
        return bytes(self._text)

    def claim(self, value: Any) -> Any | None:
        """Return the sink that ``value`` is the placeholder of, if it is one; it is the caller's now."""
        if self.is_placeholder(value):
            return self._values[int(value[len(self._nonce) :])].take_sink()
        return None

    def is_placeholder(self, value: Any) -> bool:
        """Tell whether ``value`` stands for a string that was decoded, be it an empty one."""
        return isinstance(value, str) and value.startswith(self._nonce)

    @property
    def whole_sinks(self) -> list[Any]:
        """The sinks of the values that have ended so far."""
        return [value.sink for value in self._whole if value.sink is not None]

    def close(self) -> None:
        """Close all sinks that were not claimed."""
        for value in self._values:
            value.close()

    # Each step takes data from position on and returns the position of what it did not take.

    def _outside(self, data: bytes, position: int) -> int:
        found = _STRUCTURE.search(data, position)
        end = found.end() if found else len(data)
        self._keep(data, position, end)
        if found:
            self._structure(data[end - 1])
        return end

    def _structure(self, byte: int) -> None:
        path = self._path
        match byte:
            case 0x22:  # "
                if self._is_image(path):
                    self._begin_image()
                else:
                    self._string_start = len(self._text) - 1
                    self._step = self._in_link if self._is_link(path) else self._in_string
            case 0x7B:  # {
                path.append(None)
            case 0x5B:  # [
                path.append(0)
            case 0x7D | 0x5D:  # } ]
                if path:
                    path.pop()
            case 0x2C:  # ,
                if path:
                    path[-1] = path[-1] + 1 if isinstance(path[-1], int) else None
            case 0x3A if path and path[-1] is None:  # :
                path[-1] = self._key

    def _in_link(self, data: bytes, position: int) -> int:
        end = position + len(_DATA_URI) - len(self._link)
        link, self._link = self._link + data[position:end], b""
        if link.lower() == _DATA_URI:
            self._begin_image()
            self._values[-1].feed(link, 0, len(link))
        elif _DATA_URI.startswith(link.lower()):
            self._link = link
        else:
            self._step = self._in_string
            self.feed(link)
        return min(end, len(data))

    def _in_string(self, data: bytes, position: int) -> int:
        if self._escaped:
            self._escaped = False
            self._keep(data, position, position + 1)
            return position + 1
        found = _STRING_STOP.search(data, position)
        end = found.end() if found else len(data)
        self._keep(data, position, end)
        if found and data[end - 1] == 0x5C:
            self._escaped = True
        elif found:
            self._end_string()
        return end

    def _end_string(self) -> None:
        self._step = self._outside
        if self._path and self._path[-1] is None:
            try:
                self._key = json.loads(self._text[self._string_start :])
            except ValueError:
                self._key = None  # json.loads will refuse the whole document too

    def _begin_image(self) -> None:
        if len(self._values) == MAX_VALUES:
            raise ReplyError(f"the reply has more than {MAX_VALUES} images")
        self._text += f"{self._nonce}{len(self._values)}".encode()
        self._values.append(_Base64Value(self._next_sink))
        self._step = self._in_image

    def _next_sink(self) -> Sink:
        self._opened += 1
        return self._open_sink(self._opened - 1)

    def _in_image(self, data: bytes, position: int) -> int:
        value = self._values[-1]
        quote = data.find(b'"', position)
        if quote < 0:
            value.feed(data, position, len(data))
            return len(data)
        value.feed(data, position, quote)
        value.finish()
        self._whole.append(value)
        if self._on_whole and value.sink is not None:
            self._on_whole(value.sink)
        self._text += b'"'
        self._step = self._outside
        return quote + 1

    def _keep(self, data: bytes, start: int, end: int) -> None:
        if len(self._text) + end - start > MAX_TEXT_BYTES:
            raise ReplyError(f"the reply has more than {MAX_TEXT_BYTES:,} bytes of text beside its images")
        self._text += data[start:end]


class _Base64Value:
    """One base64 string of JSON, decoded into a sink as it arrives.

    Base64 comes in fours, so up to three characters wait in ``_carry`` for the next piece. An
    escape (``\\/``) may be cut as well, and waits in ``_escape``. A quote never needs an escape
    here: escaped or not, it is no base64.
    """

    def __init__(self, open_sink: Callable[[], Sink]) -> None:
        self._open_sink = open_sink
        self.sink: Sink | None = None
        self._head: bytes | None = b""  # the first characters, until they cannot be "data:…,"
        self._escape = b""
        self._carry = b""
        self._padded = False
        self._taken = False

    def feed(self, data: bytes, start: int, end: int) -> None:
        """Take the characters ``data[start:end]``."""
        if self._escape or data.find(b"\\", start, end) >= 0:
            data = self._unescape(self._escape + data[start:end])
            start, end = 0, len(data)
        if self._head is not None:
            data = self._without_data_uri(self._head + data[start:end])
            start, end = 0, len(data)
        if start < end:
            self._decode(data, start, end)

    def finish(self) -> None:
        """Check that the value was whole."""
        if self._escape:
            raise ReplyError("an image's base64 has a quotation mark in it")
        if self._head:
            head, self._head = self._head, None
            self._decode(head, 0, len(head))
        if self._carry.translate(None, _WHITE_SPACE):
            raise ReplyError("an image's base64 is cut short")

    def take_sink(self) -> Sink | None:
        """Hand the sink over: it is no longer closed here."""
        self._taken = True
        return self.sink

    def close(self) -> None:
        """Close the sink unless it was taken."""
        if self.sink is not None and not self._taken:
            self.sink.close()

    def _unescape(self, data: bytes) -> bytes:
        # "\/" is all that real gateways send; anything else goes through json for its rules.
        cut = data.rfind(b"\\", max(0, len(data) - 5))
        whole = cut < 0 or (cut + 1 < len(data) and (data[cut + 1] != 0x75 or cut + 6 <= len(data)))
        if not whole:
            # The second half of a pair escapes nothing.
            run = cut + 1 - len(data[: cut + 1].rstrip(b"\\"))
            whole = run % 2 == 0
        data, self._escape = (data, b"") if whole else (data[:cut], data[cut:])
        slashes_only = data.replace(b"\\/", b"/")
        if b"\\" not in slashes_only:
            return slashes_only
        try:
            # Latin-1 keeps every byte as it is, wherever the pieces were cut; what it lacks is no base64.
            text: str = json.loads('"' + data.decode("latin-1") + '"', strict=False)
            return text.encode("latin-1", errors="replace")
        except ValueError:
            raise ReplyError("an image's base64 has a bad escape") from None

    def _without_data_uri(self, data: bytes) -> bytes:
        """Return what follows ``data:image/png;base64,``; nothing while that is not known."""
        if not _DATA_URI.startswith(data[: len(_DATA_URI)].lower()):
            self._head = None
            return data
        comma = data.find(b",", 0, _MAX_DATA_URI_HEAD)
        if comma < 0:
            if len(data) >= _MAX_DATA_URI_HEAD:
                raise ReplyError("an image's data URI has no end")
            self._head = data
            return b""
        if not data[:comma].lower().endswith(b";base64"):
            raise ReplyError("an image's data URI is not base64")
        self._head = None
        return data[comma + 1 :]

    def _decode(self, data: bytes, start: int, end: int) -> None:
        try:
            parts = self._decode_fours(data, start, end)
        except ValueError:
            # White space is legal in base64, rare, and not worth a pass over every image.
            piece = self._carry + data[start:end]
            dense = piece.translate(None, _WHITE_SPACE)
            if len(dense) == len(piece):
                raise ReplyError("an image's base64 is broken") from None
            self._carry = b""
            try:
                parts = self._decode_fours(dense, 0, len(dense))
            except ValueError:
                raise ReplyError("an image's base64 is broken") from None
        for part in parts:
            if part:
                if self.sink is None:
                    self.sink = self._open_sink()
                self.sink.write(part)

    def _decode_fours(self, data: bytes, start: int, end: int) -> tuple[bytes, ...]:
        """Decode or raise ``ValueError`` with nothing changed."""
        joined = b""
        if carry := self._carry:
            missing = 4 - len(carry)
            joined = carry + data[start : min(end, start + missing)]
            if len(joined) < 4:
                self._carry = joined
                return ()
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
