"""Read the body of a response line by line and find its JSON documents. No sockets here.

The body is one JSON document, JSON lines, server-sent events, or a mix. The first significant byte of a line
decides how to read the line. So a gateway may send blank lines before its response, return plain JSON when a
stream was requested, or put a bare JSON error between two events.

::

    AT_LINE ──{ or [──▶ IN_DOCUMENT ──document ends──▶ AT_LINE or AT_DATA
       │                      ▲
       │ data:                │ { or [
       ├──▶ AT_DATA ──────────┤
       │       └─other──▶ IN_TEXT ──line ends──▶ AT_LINE
       └─other──▶ IN_FIELD ──line ends──▶ AT_LINE
                      └─ {" or [{" ──▶ IN_DOCUMENT, which counts only if it has images

A blank line ends an event. Of other text, only the part that an error message needs is kept.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from airflow_provider_jojokey.img2.envelope import CONTAINERS
from airflow_provider_jojokey.img2.splitter import MAX_TEXT_BYTES, ReplyError, Splitter

MAX_STRAY_BYTES = 4096
"""Bytes to keep of text that is neither a document nor an event: enough for an error message."""

_OTHER_FIELDS = (b":", b"event:", b"id:", b"retry:")
_DOCUMENT_START = re.compile(rb'\{\s*"|\[\s*\{\s*"')
_PAGE = re.compile(rb"<(?:!doctype|html|head|script)\b", re.IGNORECASE)

MAX_EMBEDDED = 100
"""Documents to look for behind other text: a hostile response could have a million."""

_BOM = b"\xef\xbb\xbf"
_LF, _CR = 0x0A, 0x0D

OnDocument = Callable[[Splitter, Any, str], None]
"""Called with the splitter, the document with its placeholders, and the name of its event."""


class LineReader:
    """The state machine above.

    :param new_splitter: returns a splitter for a new document; called with ``True`` if it is part of an event
    :param on_document: called with each complete document, and with truncated ones that are self-describing
    """

    def __init__(
        self,
        new_splitter: Callable[[bool], Splitter],
        on_document: OnDocument,
    ) -> None:
        self._new_splitter = new_splitter
        self._on_document = on_document
        self.done = False
        """Set when no more data is needed."""
        self.streamed = False
        """Whether there are server-sent events, including comments."""
        self.ended = False
        """Whether ``[DONE]`` was seen."""
        self.document_complete = False
        """Whether a document outside of events has ended."""
        self.problem = ""
        """What is broken, without a full stop."""
        self.stray_text = bytearray()
        """The beginning of the text that is neither a document nor a field of an event."""
        self.event_texts: list[tuple[str, str]] = []
        """Names and texts of the first few events whose data is not JSON."""
        self._state = self._at_line
        self._ends = _LineEnds()
        self._start: bytes | None = b""  # the body's first bytes, while they may be a byte order mark
        self._after_cr = False
        self._ends_in_cr = False  # whether any line so far ended in CR
        self._field = bytearray()
        self._skipped = 0
        self._event = ""
        self._in_data = False
        self._embedded_documents = 0
        self._embedded = False  # whether the document stands behind other text in its line
        self._inside = False  # whether the next byte continues a document, so that the fast path applies
        self._splitter: Splitter | None = None
        # A document whose meaning depends on its event's name, which may follow it.
        self._pending: tuple[Splitter, Any] | None = None

    def feed(self, data: bytes) -> None:
        """Read the next bytes, in chunks of any length.

        :raises ReplyError: if there is too much text or there are too many images
        """
        if self._start is not None:
            data = self._without_bom(self._start + data)
        position, end = 0, len(data)
        if self._inside and not (self._in_data and (b"\n" in data or (self._ends_in_cr and b"\r" in data))):
            # Fast path: most chunks are from the middle of a document.
            assert self._splitter is not None
            position = self._splitter.feed(data, 0, end)
            if self._splitter.complete:
                self._leave_document()
        if position < end:
            self._ends.begin(data)
            while position < end and not self.done:
                position = self._state(data, position, end)
            self._ends.begin(b"")

    def end(self) -> None:
        """End the body. A document that has not ended is truncated."""
        if self._state == self._in_field:
            self._end_field()
        elif self._state == self._in_text:
            self._end_text()
        if self._splitter is not None:
            if b"[DONE]".startswith(self._splitter.text.strip()):  # "[DONE]" may be truncated too
                self._splitter = None
            else:
                self._end_truncated_document()
        self._flush_pending()

    def close(self) -> None:
        """Close the sinks of documents that were not passed on."""
        for splitter in (self._splitter, self._pending[0] if self._pending else None):
            if splitter is not None:
                splitter.close()

    # --- states: each reads data from position on and returns the position of the first unread byte ---------------

    def _at_line(self, data: bytes, position: int, end: int) -> int:
        byte = data[position]
        if byte == _LF and self._after_cr:
            self._after_cr = False
            return position + 1
        self._after_cr = byte == _CR
        if byte in (_LF, _CR):
            self._end_event()
        elif byte in b"{[":
            self._begin_document(in_data=False)
            return position
        elif byte not in b" \t,":
            self._field.clear()
            self._state = self._in_field
            return position
        self._count(1)
        return position + 1

    def _in_field(self, data: bytes, position: int, end: int) -> int:
        stop = self._ends.next(position, end)
        known = len(self._field)
        self._field += data[position : min(stop, position + MAX_STRAY_BYTES - known)]
        if self._field.startswith(b"data:"):
            self.streamed = True
            self._state = self._at_data
            return position + len(b"data:") - known
        if (found := self._find_embedded()) is not None:
            start = bytes(self._field[found.start() : found.end()])
            self._add_stray_text(bytes(self._field[: found.start()]))
            self._field.clear()
            self._begin_document(in_data=False, embedded=True)
            assert self._splitter is not None
            self._splitter.feed(start, 0, len(start))
            return position + found.end() - known
        return self._skip(data, position, stop, end, self._end_field)

    def _find_embedded(self) -> re.Match[bytes] | None:
        """Return the beginning of a document behind other text in a line, such as a callback or a warning."""
        if self._field.startswith(_OTHER_FIELDS) or self._embedded_documents == MAX_EMBEDDED:
            return None
        found = _DOCUMENT_START.search(self._field)
        # The scripts of a web page contain such text too.
        is_page = found is not None and _PAGE.search(self.stray_text + self._field[: found.start()])
        return None if is_page else found

    def _at_data(self, data: bytes, position: int, end: int) -> int:
        byte = data[position]
        if self._splitter is not None:  # a document of several data lines
            if self._splitter.in_image:
                if byte in b" \t":
                    return position + 1
                if byte in b"{[":  # a gateway that fails within an event appends its error
                    self._begin_document(in_data=True)
                    return position
            self._state = self._in_document
            return position + (byte == 0x20)
        if byte in (_LF, _CR):
            return self._end_line(data, position)
        if byte in b" \t":
            return position + 1
        if byte in b"{[":
            self._begin_document(in_data=True)
            return position
        self._field.clear()
        self._state = self._in_text
        return position

    def _in_text(self, data: bytes, position: int, end: int) -> int:
        stop = self._ends.next(position, end)
        self._field += data[position : min(stop, position + MAX_STRAY_BYTES - len(self._field))]
        return self._skip(data, position, stop, end, self._end_text)

    def _in_document(self, data: bytes, position: int, end: int) -> int:
        self._inside = True
        stop = self._ends.next(position, end) if self._in_data else end
        assert self._splitter is not None
        position = self._splitter.feed(data, position, stop)
        if self._splitter.complete:
            self._leave_document()
        if self._inside and self._in_data and stop < end:
            return self._end_line(data, stop)
        return position

    def _leave_document(self) -> None:
        self._inside = False
        self._state = self._at_data if self._in_data else self._at_line
        self._end_document()

    # --- ends ---------------------------------------------------------------------------------------------------

    def _skip(self, data: bytes, position: int, stop: int, end: int, finish: Callable[[], None]) -> int:
        """Skip the rest of a line."""
        if not self._field.startswith(b":"):
            self._count(stop - position)
        if stop == end:
            return end
        finish()
        return self._end_line(data, stop)

    def _count(self, skipped: int) -> None:
        self._skipped += skipped
        if self._skipped > MAX_TEXT_BYTES:
            raise ReplyError(
                f"the response has more than {MAX_TEXT_BYTES:,} bytes of text besides its images"
            )

    def _end_line(self, data: bytes, position: int) -> int:
        self._inside = False
        self._after_cr = data[position] == _CR
        self._ends_in_cr = self._ends_in_cr or self._after_cr
        self._state = self._at_line
        return position + 1

    def _end_field(self) -> None:
        line = bytes(self._field)
        self._field.clear()
        if line.startswith(b"event:"):
            self.streamed = True
            self._event = line[6:].strip().decode("utf-8", "replace")[:100]
        elif line.startswith(b":"):
            self.streamed = True
        elif not line.startswith((b"id:", b"retry:")) and line != b"data":
            self._add_stray_text(line)

    def _end_text(self) -> None:
        text = bytes(self._field).strip()
        self._field.clear()
        if text.strip(b'"[] ').upper() == b"DONE":
            self.ended = self.done = True
        elif text:
            if len(self.event_texts) < 5:
                self.event_texts.append((self._event, text.decode("utf-8", "replace")))
            self._add_stray_text(text)

    def _end_event(self) -> None:
        if self._splitter is not None:
            self._end_truncated_document()
        self._flush_pending()
        self._event = ""

    def _begin_document(self, in_data: bool, embedded: bool = False) -> None:
        if self._splitter is not None:
            self._end_truncated_document()
        self._flush_pending()
        self._in_data = in_data
        self._embedded = embedded
        self._embedded_documents += embedded
        self._splitter = self._new_splitter(in_data)
        self._state = self._in_document

    def _end_document(self) -> None:
        splitter, self._splitter = self._splitter, None
        assert splitter is not None
        if self._drop_embedded(splitter):
            return
        try:
            document = splitter.finish()
        except ReplyError as error:
            if splitter.text.strip().upper() == b"[DONE]":
                self.ended = self.done = True
            elif splitter.values or not self._in_data:  # events without images may contain other text
                self.problem = self.problem or str(error)
                self._on_document(splitter, splitter.parse_partial(), self._event)
            return
        self.document_complete = self.document_complete or not self._in_data
        if self._in_data and not self._event and not _is_self_describing(document):
            self._pending = splitter, document
        else:
            self._on_document(splitter, document, self._event)

    def _end_truncated_document(self) -> None:
        """Pass on a truncated document if it is self-describing."""
        splitter, self._splitter = self._splitter, None
        assert splitter is not None
        if self._drop_embedded(splitter):
            return
        try:
            splitter.finish()
        except ReplyError as error:
            self.problem = self.problem or str(error)
        document = splitter.parse_partial()
        if self._event or _is_self_describing(document):
            self._on_document(splitter, document, self._event)
        else:
            splitter.close()

    def _drop_embedded(self, splitter: Splitter) -> bool:
        """Treat a document behind other text as a part of the text, unless it has images."""
        dropped = self._embedded and not splitter.values
        if dropped:
            self._add_stray_text(splitter.text)
            self._state = self._in_field
        return dropped

    def _flush_pending(self) -> None:
        if self._pending is not None:
            (splitter, document), self._pending = self._pending, None
            self._on_document(splitter, document, self._event)

    def _without_bom(self, data: bytes) -> bytes:
        if len(data) < len(_BOM) and _BOM.startswith(data):
            self._start = data
            return b""
        self._start = None
        return data.removeprefix(_BOM)

    def _add_stray_text(self, line: bytes) -> None:
        room = MAX_STRAY_BYTES - len(self.stray_text)
        if room > 0:
            self.stray_text += line[:room] + b"\n"


def _is_self_describing(document: Any) -> bool:
    """Return whether an event's document can be understood without the event's name."""
    names = ("type", "object", "partial_image_index", "error", *CONTAINERS)
    return isinstance(document, list) or (
        isinstance(document, dict) and any(document.get(name) is not None for name in names)
    )


class _LineEnds:
    """Find line ends (LF or CR) in a chunk. Scans the chunk at most once for each of the two."""

    def __init__(self) -> None:
        self.begin(b"")

    def begin(self, data: bytes) -> None:
        """Begin a new chunk."""
        self._data = data
        self._lf = self._cr = -1

    def next(self, position: int, end: int) -> int:
        """Return the position of the next line end, or ``end``."""
        if self._lf < position:
            self._lf = self._found(b"\n", position)
        if self._cr < position:
            self._cr = self._found(b"\r", position)
        return min(self._lf, self._cr, end)

    def _found(self, byte: bytes, position: int) -> int:
        found = self._data.find(byte, position)
        return found if found >= 0 else len(self._data)
