"""Decode the body of a response as it arrives: bytes go in, images come out. No sockets here.

:mod:`~airflow_provider_jojokey.img2.lines` splits the body into JSON documents, and
:mod:`~airflow_provider_jojokey.img2.splitter` splits each document into images and the rest. This module decides
what a document means: finished images, a preview, an error, or facts such as the usage. A body that isn't text is an
image itself, and one that is the base64 of an image is read like a list with this image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import Struct, field

from airflow_provider_jojokey.img2 import envelope
from airflow_provider_jojokey.img2.base64_value import Base64Value, Sink
from airflow_provider_jojokey.img2.codes import reports_failure
from airflow_provider_jojokey.img2.images import (
    SIGNATURE_BYTES,
    ImageFile,
    begins_binary,
    content_type_of,
    may_begin_binary,
)
from airflow_provider_jojokey.img2.json_text import without_blanks
from airflow_provider_jojokey.img2.lines import LineReader
from airflow_provider_jojokey.img2.messages import find_failure, message_of
from airflow_provider_jojokey.img2.splitter import (
    MAX_TEXT_BYTES,
    MAX_VALUES,
    Path,
    ReplyError,
    Splitter,
    opening_of,
)
from airflow_provider_jojokey.img2.usage import Usage, add_unless_repeated, find_usage

__all__ = ["MAX_TEXT_BYTES", "MAX_VALUES", "Reply", "ReplyDecoder", "ReplyError", "ReplyImage", "Sink"]

_PREVIEW_MARKS = (*(word.encode() for word in envelope.PREVIEW_WORDS), b"false")
_FACTS = ("created", "created_at", "model", "size", "quality", "background", "output_format")


class ReplyImage(Struct, frozen=True):
    """One element of ``data`` in the response.

    :param index: its position, from 0
    :param sink: its decoded bytes, or ``None`` if the response contains none
    :param url: the link to download it from if ``sink`` is not usable, or ``None``
    :param revised_prompt: the prompt as the model rewrote it
    :param problem: why ``sink`` cannot be used, or that the image is missing, without a full stop; empty otherwise
    """

    index: int
    sink: Any | None
    url: str | None
    revised_prompt: str | None
    problem: str = ""


class Reply(Struct, frozen=True):
    """The decoded content of a response.

    :param document: the JSON document, without base64; for several documents, their merged facts
    :param images: the elements of ``data``
    :param usage: the tokens, normalized, or ``None`` if the response does not report them
    :param error: the first document that reports an error, or ``None``
    :param problem: what is truncated or broken, without a full stop; empty if nothing is
    :param text: the beginning of the text in events whose data is not JSON
    """

    document: Any
    images: list[ReplyImage] = field(default_factory=list)
    usage: Usage | None = None
    error: Any = None
    problem: str = ""
    text: str = ""


class ReplyDecoder:
    """Decode the response of ``POST /v1/images/generations`` as it arrives: JSON or server-sent events.

    :param open_sink: called with 0, 1, 2 … for each image's first bytes, previews included; returns an object
        with ``write(bytes)`` and ``close()``. The default is a temporary file,
        :class:`~airflow_provider_jojokey.img2.images.ImageFile`.
    :param on_whole: called with the sink of each complete image, as soon as it is known to be one
    :param on_preview: called with the sink of each complete preview
    :param expected: the number of requested images; once they are complete, the decoder is done
    :param anywhere: whether an image may be at any path of a document. If ``False``, as for errors, and always for web
        pages, only lists of results count: other pictures there are logos, and challenges for people
    """

    def __init__(
        self,
        open_sink: Callable[[int], Sink] | None = None,
        on_whole: Callable[[Any], object] | None = None,
        on_preview: Callable[[Any], object] | None = None,
        *,
        expected: int | None = None,
        anywhere: bool = True,
    ) -> None:
        self._open_sink = open_sink or (lambda _: ImageFile())
        self._opened = 0
        self._on_whole = on_whole or (lambda _: None)
        self._on_preview = on_preview or (lambda _: None)
        self._expected = expected
        self._anywhere = anywhere
        self._lines = LineReader(self._new_splitter, self._take)
        self._splitter: Splitter | None = None
        self._start: bytes | None = b""  # the body's first bytes, while they may begin text or an image
        self._closing = b""  # ends the list that a body of base64 is read as
        self._body: Sink | None = None  # of a body that is an image itself
        self._body_start = b""
        self._closed = False
        self._documents = 0
        self._document: Any = None
        self._only: Any = None  # the document, if there is only one
        self._images: list[ReplyImage] = []
        self._complete: list[Any] = []
        self._preview: Any | None = None
        self._usage: Usage | None = None
        self._image_usage: Usage | None = None
        self._separate_usage: Usage | None = None
        self._images_with_usage = 0
        self._error: Any = None
        self._slot_error: Any = None
        self._broken = ""

    def feed(self, data: bytes) -> None:
        """Decode the next bytes of the body, in chunks of any length.

        :raises ReplyError: if there are more than 4 MiB of text besides the images, or more than 128 images
        """
        if self._start is not None:
            data, self._start = self._start + data, None
            if begins_binary(data):
                self._body = self._next_sink()
            elif may_begin_binary(data) or (opening := opening_of(data)) is None:
                self._start = data
                return
            elif opening and self._anywhere:
                data, self._closing = opening + without_blanks(data), b'"]'[2 - len(opening) :]
            self._anywhere = self._anywhere and not without_blanks(data).startswith(b"<")
        if self._body is None:
            self._lines.feed(data)
        else:
            self._body_start = (self._body_start + data[:SIGNATURE_BYTES])[:SIGNATURE_BYTES]
            self._body.write(data)

    def finish(self) -> Reply:
        """Return the reply after the last byte.

        :raises ReplyError: if it is truncated, is not JSON, is a stream without a finished image, or all its
            base64 is broken
        """
        reply = self.partial_reply()
        if self._broken and not self._complete and not any(image.url for image in self._images):
            raise ReplyError(f"an image cannot be decoded: {self._broken}")
        if reply.problem and not self._lines.document_complete:
            raise ReplyError(reply.problem)
        return reply

    def partial_reply(self) -> Reply:
        """Return the reply as decoded so far, as if the body had ended here."""
        if not self._closed:
            self._closed = True
            if self._body is not None:
                self._report(self._body)
                self._images.append(ReplyImage(0, self._body, None, None))
            self._lines.feed((self._start or b"") + self._closing)
            self._lines.end()
            self._take_texts()
        usage = (None if self._lacks_usage else self._usage) or self._separate_usage
        error = self._error if self._error is not None or self._complete else self._slot_error
        text = "; ".join(text for _, text in self._lines.event_texts)
        return Reply(self._document or self._only, [*self._images], usage, error, self._problem, text)

    @property
    def has_all(self) -> bool:
        """Whether all requested images have arrived."""
        usable = sum(1 for image in self._images if image.url or not image.problem)
        return self._expected is not None and usable >= self._expected

    @property
    def _lacks_usage(self) -> bool:
        """Whether the images' usage may be a part of the request's: each event may report only its own image's."""
        expected = self._expected or 0
        return self._lines.streamed and not self.has_all and self._images_with_usage < expected

    @property
    def done(self) -> bool:
        """Whether the decoder needs no more data."""
        if self._lines.ended:
            return True
        knows_usage = self._usage is not None or self._separate_usage is not None
        return self.has_all and (knows_usage or not self._lines.streamed)

    @property
    def streamed(self) -> bool:
        """Whether the response consists of server-sent events."""
        return self._lines.streamed

    @property
    def document_complete(self) -> bool:
        """Whether a document outside of events is complete."""
        return self._lines.document_complete

    @property
    def whole_sinks(self) -> list[Any]:
        """The sinks of the images that are complete so far."""
        return [*self._complete]

    @property
    def preview(self) -> Any | None:
        """The sink of the latest preview, if there is one."""
        return self._preview

    @property
    def stray_text(self) -> bytes:
        """The beginning of the text that is neither a document nor a field of an event."""
        return bytes(self._lines.stray_text)

    def close(self) -> None:
        """Close every sink, including those of :meth:`partial_reply`."""
        self._lines.close()
        for sink in (*(image.sink for image in self._images), self._body, self._preview):
            if sink is not None:
                sink.close()

    @property
    def _problem(self) -> str:
        if self._body is not None:
            return "" if content_type_of(self._body_start) else "the response is neither JSON nor an image"
        if self._lines.problem:
            return self._lines.problem
        if not self._documents and self._error is None:
            return "the response is not a complete JSON document"
        streamed = self._lines.streamed or self._preview is not None
        if streamed and not self._images and self._error is None:
            kind = "event stream" if self._lines.streamed else "response"
            return f"the {kind} ended before an image was complete"
        return ""

    def _new_splitter(self, in_event: bool) -> Splitter:
        on_value = None if in_event else self._take_value
        places = envelope.PLACES if self._anywhere else envelope.CERTAIN_PLACES
        self._splitter = Splitter(*places, self._next_sink, on_value)
        return self._splitter

    def _next_sink(self) -> Sink:
        if self._opened == MAX_VALUES:
            raise ReplyError(f"the response has more than {MAX_VALUES} images")
        self._opened += 1
        return self._open_sink(self._opened - 1)

    def _take_value(self, value: Base64Value, path: Path) -> None:
        """Report an image outside of events at once, so that a killed process does not lose it."""
        assert self._splitter is not None
        listed = any(isinstance(key, int) for key in path) and (
            envelope.is_base64(path) or envelope.is_link(path)
        )
        if (
            listed
            and value.complete
            and value.sink is not None
            and not self._splitter.contains(*_PREVIEW_MARKS)
        ):
            self._report(value.sink)

    def _take(self, splitter: Splitter, document: Any, event: str) -> None:
        """Process a document: finished images, a preview, an error, or facts."""
        found = envelope.find_slots(document, splitter.value_of)
        if splitter.broken:
            found += self._slots_behind_mistake(splitter, found)
        whole = envelope.is_preview(document, event)
        failure = find_failure(document, event)
        previews: list[envelope.Slot] = []
        slots: list[envelope.Slot] = []
        for slot in found:
            # A picture somewhere in an error may be the image or a logo, so it is kept, but not delivered.
            doubtful = failure is not None and not slot.at_known_path
            (previews if whole or doubtful or envelope.is_preview(slot.element) else slots).append(slot)
        preview = whole or bool(previews and not slots)
        plain = not self._lines.streamed and not self._documents and not preview
        self._documents += 1
        self._only = document if self._documents == 1 else None
        for slot in previews:
            self._keep_preview(slot)
        if failure is not None:
            # A link in an error leads to documentation, and an empty element is not an image.
            slots = [
                slot
                for slot in slots
                if (slot.value is not None and slot.value.sink is not None)
                or (slot.url and envelope.is_listed(slot, document))
            ]
        if failure is not None and self._error is None:
            # The name of an event may be all that reports an error.
            named = find_failure(document) is None
            self._error = {"success": False, "error": document} if named else document
        slots = self._without_repeated(slots, document)
        for slot in slots:
            self._keep_slot(slot)
        usage = find_usage(document)
        if slots:
            self._usage = add_unless_repeated(self._usage, self._image_usage, usage)
            self._images_with_usage += len(slots) if usage is not None else 0
            self._image_usage = usage or self._image_usage
        elif not preview:
            self._separate_usage = usage or self._separate_usage
        self._merge(document, bool(slots), plain)
        splitter.close()
        self._lines.done = self.done

    def _without_repeated(self, slots: list[envelope.Slot], document: Any) -> list[envelope.Slot]:
        """Return the slots without images that the response has already brought.

        The last event of some streams repeats all images, and the message of a chat may list its images twice.
        """
        streamed = self._lines.streamed
        known = [_digest(image.sink) for image in self._images if image.sink is not None]
        kept: list[envelope.Slot] = []
        for slot in slots:
            comparable = streamed or not slot.at_known_path
            if (streamed and self.has_all) or (comparable and _is_repeated(slot, document, known)):
                continue
            if not slot.at_known_path and slot.value is not None:
                known.append(_digest(slot.value.sink))
            kept.append(slot)
        return kept

    def _slots_behind_mistake(self, splitter: Splitter, found: list[envelope.Slot]) -> list[envelope.Slot]:
        """Return the complete images of a broken document that its readable part does not contain."""
        known = [slot.value for slot in found]
        return [
            envelope.Slot(value, None, None, None)
            for value in splitter.values
            if value not in known and any(value.sink is sink for sink in self._complete)
        ]

    def _keep_slot(self, slot: envelope.Slot) -> None:
        value = slot.value
        sink = value.take_sink() if value is not None else None
        problem = ""
        if value is not None and not value.complete:
            problem = value.problem or "its base64 is truncated"
            self._broken = self._broken or problem
        elif sink is None:
            if self._slot_error is None and reports_failure(slot.element):
                self._slot_error = slot.element
            if slot.url is None:
                message = message_of(slot.element)
                problem = f"it is missing ({message})" if message else "it is missing"
        if sink is not None and not problem:
            self._report(sink)
        self._images.append(ReplyImage(len(self._images), sink, slot.url, slot.revised_prompt, problem))

    def _keep_preview(self, slot: envelope.Slot) -> None:
        if slot.value is None or not slot.value.complete or (sink := slot.value.take_sink()) is None:
            return
        if self._preview is not None:
            self._preview.close()
        self._preview = sink
        self._complete = [known for known in self._complete if known is not sink]
        self._on_preview(sink)

    def _report(self, sink: Any) -> None:
        if not any(known is sink for known in self._complete):
            self._complete.append(sink)
            self._on_whole(sink)

    def _merge(self, document: Any, has_images: bool, plain: bool) -> None:
        if plain:
            self._document = document
            return
        if not isinstance(self._document, dict):
            self._document = {}
        if has_images and isinstance(document, dict):
            self._document.update({name: document[name] for name in _FACTS if document.get(name) is not None})
            self._document.setdefault("created", document.get("created_at"))

    def _take_texts(self) -> None:
        """Process events whose data is plain text. An event named "error" reports an error."""
        for event, text in self._lines.event_texts:
            if self._error is None and event and find_failure({}, event) is not None:
                self._error = {"success": False, "error": {"message": text}}


def _is_repeated(slot: envelope.Slot, document: Any, known: list[Any]) -> bool:
    """Return whether a document lists an image that has already arrived.

    :param known: the digests of earlier images
    """
    value = slot.value
    if value is None or not value.complete or value.sink is None:
        return False
    return _digest(value.sink) in known and (not slot.at_known_path or envelope.is_listed(slot, document))


def _digest(sink: Any) -> Any:
    """Return what identifies the content of a sink: files have a digest, other sinks only themselves."""
    return getattr(sink, "sha256", sink)
