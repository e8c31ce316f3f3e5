"""The event stream's way from bytes to images, for generations that take longer than an edge waits.

With ``stream=True`` the API sends server-sent events: previews while it paints, which keep the
connection from falling silent, then an ``image_generation.completed`` for each image. An event's
``data:`` line is a JSON document with one very large base64 string in it, so it takes the same
way as a plain reply (:class:`~airflow_provider_jojokey.img2.reply.Splitter`), an event at a time.

What gateways do beyond the standard is borne: comments (``: PING``), a bare JSON error between
the events, ``[DONE]`` at the end or not.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from types import NoneType
from typing import Any

from airflow_provider_jojokey.img2.images import ImageFile
from airflow_provider_jojokey.img2.reply import (
    MAX_TEXT_BYTES,
    MAX_VALUES,
    Path,
    Reply,
    ReplyError,
    ReplyImage,
    Sink,
    Splitter,
)

PARTIAL = "image_generation.partial_image"
COMPLETED = "image_generation.completed"


class EventStreamDecoder:
    """Decode the event stream of ``POST /v1/images/generations`` with ``stream: true`` as it arrives.

    :param open_sink: called with 0, 1, 2 … for each picture's first bytes, previews included
    :param on_whole: called with the sink of each image that is complete, at that moment
    :param on_preview: called with the sink of each preview that is whole
    """

    def __init__(
        self,
        open_sink: Callable[[int], Sink] | None = None,
        on_whole: Callable[[Any], object] | None = None,
        on_preview: Callable[[Any], object] | None = None,
    ) -> None:
        self._open = open_sink or (lambda _: ImageFile())
        self._opened = self._opened_before = 0
        self._on_whole = on_whole
        self._on_preview = on_preview
        self._images: list[ReplyImage] = []
        self._document: dict[str, Any] = {}
        self._preview: Any | None = None
        self._event: Splitter | None = None
        self._event_name = ""
        self._line = bytearray()  # a line's beginning, until it is known to be a data line
        self._in_data = False
        self._given = False

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the body, in pieces of any length.

        :raises ReplyError: bad base64, or more than 4 MiB of text beside the images
        """
        start = 0
        while start < len(data):
            end = data.find(b"\n", start)
            stop = len(data) if end < 0 else end
            self._part_of_line(data[start:stop])
            if end < 0:
                return
            self._end_line()
            start = end + 1

    def finish(self) -> Reply:
        """Return the reply, when all bytes were fed: the completed images, and the last event's facts.

        :raises ReplyError: if the stream ended without a completed image and without an error
        """
        self._end_line()
        self._dispatch(cut=True)
        if not self._images and not self._document.get("error"):
            raise ReplyError("the event stream ended before an image was complete")
        if self._preview is not None:
            self._preview.close()  # nobody is given it; what was kept of it on disk stays
        self._given = True
        return Reply(self._document, self._images)

    @property
    def whole_sinks(self) -> list[Any]:
        """The sinks of the images that are complete so far."""
        return [image.sink for image in self._images]

    @property
    def preview(self) -> Any | None:
        """The sink of the latest preview, if any came."""
        return self._preview

    def close(self) -> None:
        """Close every sink that nobody has been given."""
        if self._event is not None:
            self._event.close()
        for sink in (*([] if self._given else self.whole_sinks), self._preview):
            if sink is not None:
                sink.close()

    def _part_of_line(self, part: bytes) -> None:
        if self._in_data:
            self._feed_event(part)
            return
        self._line += part
        name, colon, value = bytes(self._line).partition(b":")
        if colon and name == b"data":
            self._line.clear()
            self._in_data = True
            self._feed_event(value.removeprefix(b" "))
        elif len(self._line) > MAX_TEXT_BYTES:
            raise ReplyError("the event stream has a line that is no event's")

    def _end_line(self) -> None:
        if self._in_data:
            self._in_data = False
            self._feed_event(b"\n")  # several data lines are one document
            return
        line = bytes(self._line).rstrip(b"\r")
        self._line.clear()
        if not line:
            self._dispatch()
        elif line.startswith(b"{"):
            self._bare_json(line)
        elif line.startswith(b"event:"):
            self._event_name = line[6:].strip().decode("utf-8", "replace")

    def _feed_event(self, part: bytes) -> None:
        if self._event is None:
            self._event = Splitter(_is_image, self._next_sink)
            self._opened_before = self._opened
        self._event.feed(part)

    def _next_sink(self, _: int) -> Sink:
        if self._opened == MAX_VALUES:
            raise ReplyError(f"the event stream has more than {MAX_VALUES} pictures")
        self._opened += 1
        return self._open(self._opened - 1)

    def _dispatch(self, cut: bool = False) -> None:
        """Take the event that has just ended, or was cut off. One in other words than JSON is no concern of ours."""
        event, self._event = self._event, None
        name, self._event_name = self._event_name, ""
        if event is None or b"[DONE]".startswith(event.text.strip()):  # it may have been cut off, too
            return
        try:
            document = event.finish()
        except ReplyError:
            event.close()
            if cut or self._opened > self._opened_before:
                raise
            return
        if not isinstance(document, dict):
            return
        if document.get("error"):
            event.close()
            self._document.setdefault("error", document["error"])
            return
        kind = document.get("type") or name
        sinks = [
            sink
            for element in [document, *_elements(document)]
            if (sink := event.claim(element.get("b64_json"))) is not None
        ]
        event.close()
        if kind == PARTIAL:
            self._keep_preview(sinks)
        else:
            self._keep_images(sinks, document)

    def _keep_preview(self, sinks: list[Any]) -> None:
        for sink in sinks:
            if self._preview is not None:
                self._preview.close()
            self._preview = sink
            if self._on_preview:
                self._on_preview(sink)

    def _keep_images(self, sinks: list[Any], document: dict[str, Any]) -> None:
        for sink in sinks:
            if self._on_whole:
                self._on_whole(sink)
            revised = document.get("revised_prompt")
            self._images.append(
                ReplyImage(len(self._images), sink, None, revised if isinstance(revised, str) else None)
            )
        if sinks:
            facts = ("created", "model", "size", "quality", "background", "output_format")
            self._document.update({name: document[name] for name in facts if name in document})
            self._document.setdefault("created", document.get("created_at"))
            if isinstance(usage := document.get("usage"), dict):
                self._document["usage"] = _added(self._document.get("usage"), usage)

    def _bare_json(self, line: bytes) -> None:
        try:
            document = json.loads(line)
        except (ValueError, RecursionError):
            return
        if isinstance(document, dict) and document.get("error"):
            self._document.setdefault("error", document["error"])


def _is_image(path: Path) -> bool:
    plain = len(path) == 3 and path[0] == "data" and isinstance(path[1], int) and path[2] == "b64_json"
    return plain or path == ["b64_json"]


def _elements(document: dict[str, Any]) -> list[dict[str, Any]]:
    data = document.get("data")
    return [element for element in data if isinstance(element, dict)] if isinstance(data, list) else []


def _added(one: dict[str, Any] | None, other: dict[str, Any]) -> dict[str, Any]:
    """Return the sum of two ``usage`` objects: each completed event tells its own."""
    total = dict(one or {})
    for name, value in other.items():
        before = total.get(name)
        if isinstance(value, dict) and isinstance(before, (dict, NoneType)):
            total[name] = _added(before, value)
        elif isinstance(value, (int, float)) and isinstance(before, (int, float)):
            total[name] = before + value
        elif before is None:
            total[name] = value
    return total
