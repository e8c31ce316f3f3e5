"""The event stream decoder yields the same images for any server dialect and any chunks."""

from __future__ import annotations

import base64
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_jojokey.img2 import Client, ImageRequest, Img2Error, Kind
from airflow_provider_jojokey.img2.images import ImageFile
from airflow_provider_jojokey.img2.reply import Reply, ReplyDecoder, ReplyError
from airflow_provider_jojokey.sandbox import Gateway

PARTIAL, COMPLETED = "image_generation.partial_image", "image_generation.completed"
USAGE = {
    "input_tokens": 10,
    "output_tokens": 200,
    "total_tokens": 210,
    "input_tokens_details": {"text_tokens": 10},
}


class Sink:
    def __init__(self) -> None:
        self.data = b""
        self.closed = False

    def write(self, data: bytes) -> None:
        self.data += data

    def close(self) -> None:
        self.closed = True


class RecordingDecoder:
    """A decoder that records its sinks, images and previews."""

    def __init__(self) -> None:
        self.sinks: list[Sink] = []
        self.whole: list[bytes] = []
        self.previews: list[bytes] = []
        self.decoder = ReplyDecoder(
            self._open,
            lambda sink: self.whole.append(sink.data),
            lambda sink: self.previews.append(sink.data),
        )

    def _open(self, index: int) -> Sink:
        assert index == len(self.sinks)
        self.sinks.append(Sink())
        return self.sinks[-1]

    def feed(self, stream: bytes, cuts: list[int] | None = None) -> RecordingDecoder:
        start = 0
        for cut in [*sorted(cuts or []), len(stream)]:
            self.decoder.feed(stream[start:cut])
            start = cut
        return self


def decode(stream: bytes, cuts: list[int] | None = None) -> tuple[Reply, RecordingDecoder]:
    recorder = RecordingDecoder().feed(stream, cuts)
    return recorder.decoder.finish(), recorder


def images_of(reply: Reply) -> list[bytes]:
    return [image.sink.data for image in reply.images if image.sink]


def event(kind: str, image: bytes, *, first: bool = False, name: bool = True, **fields: Any) -> bytes:
    document = {"b64_json": base64.b64encode(image).decode(), **fields}
    document = {"type": kind, **document} if first else {**document, "type": kind}
    head = f"event: {kind}\n" if name else ""
    return f"{head}data: {json.dumps(document)}\n\n".encode()


IMAGE = bytes(range(256)) * 5
PREVIEW = b"\x00\xff rough" * 40
STREAM = (
    b": PING\n\n"
    + event(PARTIAL, PREVIEW, partial_image_index=0)
    + b": PING\n\n"
    + event(COMPLETED, IMAGE, usage=USAGE, created_at=7, size="1024x1024", quality="low")
    + b"data: [DONE]\n\n"
)


def test_previews_are_separate_from_image() -> None:
    reply, recorder = decode(STREAM)

    assert images_of(reply) == recorder.whole == [IMAGE]
    assert recorder.previews == [PREVIEW]
    assert reply.usage == USAGE
    assert (reply.document["created"], reply.document["size"], reply.document["quality"]) == (
        7,
        "1024x1024",
        "low",
    )


@settings(max_examples=300)
@given(st.data())
def test_stream_is_decoded_in_any_chunks(data: st.DataObject) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(STREAM)), max_size=40))
    reply, recorder = decode(STREAM, cuts)
    assert (images_of(reply), recorder.previews, reply.usage) == ([IMAGE], [PREVIEW], USAGE)


def test_stream_is_decoded_byte_by_byte() -> None:
    reply, recorder = decode(STREAM, list(range(len(STREAM))))
    assert (images_of(reply), recorder.previews) == ([IMAGE], [PREVIEW])


@given(
    st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=5), st.booleans(), st.integers(1, 97)
)
def test_several_images_keep_order_and_usage_adds_up(images: list[bytes], first: bool, step: int) -> None:
    usages = [{"input_tokens": 0 if number else 10, "output_tokens": 200} for number in range(len(images))]
    stream = b"".join(
        event(COMPLETED, image, first=first, usage=usage) for image, usage in zip(images, usages, strict=True)
    )

    reply, recorder = decode(stream, list(range(0, len(stream), step)))

    assert images_of(reply) == recorder.whole == images
    assert [image.index for image in reply.images] == list(range(len(images)))
    assert reply.usage["total_tokens"] == 10 + 200 * len(images)


@pytest.mark.parametrize("summary", [None, USAGE])
def test_usage_is_unknown_if_events_of_images_are_missing(summary: dict[str, Any] | None) -> None:
    stream = event(COMPLETED, IMAGE, usage={"input_tokens": 10, "output_tokens": 1})
    if summary:
        stream += f"data: {json.dumps({'usage': summary})}\n\n".encode()
    sinks: list[Sink] = []

    def open_sink(index: int) -> Sink:
        sinks.append(Sink())
        return sinks[-1]

    decoder = ReplyDecoder(open_sink, expected=2)
    decoder.feed(stream)

    assert decoder.finish().usage == summary


@given(st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=5), st.booleans())
def test_usage_of_the_request_in_each_event_counts_once(images: list[bytes], first: bool) -> None:
    stream = b"".join(event(COMPLETED, image, first=first, usage=USAGE) for image in images)

    reply, _ = decode(stream, [])

    assert images_of(reply) == images
    assert reply.usage == USAGE


@pytest.mark.parametrize("name", [True, False], ids=["named event", "unnamed event"])
@pytest.mark.parametrize("ending", ["partial_succeeded", "partial_image.completed", "chunk.done"])
def test_finished_part_of_a_set_is_an_image(ending: str, name: bool) -> None:
    stream = event(PARTIAL, PREVIEW, name=name) + event(f"image_generation.{ending}", IMAGE, name=name)

    reply, recorder = decode(stream)

    assert (images_of(reply), recorder.previews) == ([IMAGE], [PREVIEW])


@pytest.mark.parametrize("first", [True, False], ids=["type before the image", "type after the image"])
@pytest.mark.parametrize("name", [True, False], ids=["named event", "unnamed event"])
def test_type_may_precede_or_follow_image(first: bool, name: bool) -> None:
    stream = event(PARTIAL, PREVIEW, first=first, name=name) + event(COMPLETED, IMAGE, first=first, name=name)
    reply, recorder = decode(stream)
    assert (images_of(reply), recorder.previews) == ([IMAGE], [PREVIEW])


def test_event_name_replaces_type() -> None:
    encoded = base64.b64encode(PREVIEW).decode()
    stream = f'event: {PARTIAL}\ndata: {{"b64_json": "{encoded}"}}\n\n'.encode()
    reply, recorder = decode(stream + event(COMPLETED, IMAGE))
    assert (images_of(reply), recorder.previews) == ([IMAGE], [PREVIEW])


@pytest.mark.parametrize(
    "changed",
    [
        STREAM.replace(b"\n", b"\r\n"),
        STREAM.replace(b"data: ", b"data:"),
        STREAM.removesuffix(b"data: [DONE]\n\n"),
        STREAM.removesuffix(b"\n"),
        STREAM.removesuffix(b"data: [DONE]\n\n").removesuffix(b"\n\n"),
        STREAM.replace(b"data: [DONE]", b"data: [DONE] "),
        STREAM.replace(b": PING\n\n", b": PING\n" * 5 + b"\n"),
        STREAM.replace(b": PING\n\n", b"id: 7\nretry: 100\n\n\n\n"),
        b"\n\n" + STREAM,
        STREAM + b": PING\n\n",
        STREAM + b"data: \n\n",
    ],
    ids=[
        "CRLF",
        "no blank after the colon",
        "no [DONE]",
        "ends with one line break",
        "ends within the last event's lines",
        "blank after [DONE]",
        "many comments",
        "ids and retries",
        "begins with empty lines",
        "comment at the end",
        "empty event at the end",
    ],
)
def test_server_dialects_are_equivalent(changed: bytes) -> None:
    for cuts in ([], list(range(len(changed))), list(range(0, len(changed), 7))):
        reply, recorder = decode(changed, cuts)
        assert (images_of(reply), recorder.previews) == ([IMAGE], [PREVIEW])


def test_several_data_lines_are_one_document() -> None:
    encoded = base64.b64encode(IMAGE).decode()
    lines = [f'{{"type": "{COMPLETED}",', f' "b64_json": "{encoded}",', f'"usage": {json.dumps(USAGE)}}}']
    stream = "".join(f"data: {line}\n" for line in lines) + "\n"
    for cuts in ([], list(range(len(stream)))):
        reply, _ = decode(stream.encode(), cuts)
        assert images_of(reply) == [IMAGE]
        assert reply.usage == USAGE


@pytest.mark.parametrize(
    "error",
    [
        b'{"error": {"message": "busy", "code": "server_error"}}\n\n',
        b'event: error\ndata: {"type": "error", "error": {"message": "busy", "code": "server_error"}}\n\n',
        b'data: {"error": {"message": "busy", "code": "server_error"}}\n\n',
    ],
    ids=["bare JSON", "event named error", "error in an event"],
)
def test_error_event_keeps_earlier_images(error: bytes) -> None:
    reply, recorder = decode(event(PARTIAL, PREVIEW) + event(COMPLETED, IMAGE) + error + b"data: [DONE]\n\n")

    assert reply.error["error"]["code"] == "server_error"
    assert (recorder.whole, recorder.previews) == ([IMAGE], [PREVIEW])


def test_end_without_complete_image_keeps_preview_only() -> None:
    recorder = RecordingDecoder().feed(
        event(PARTIAL, PREVIEW) + event(PARTIAL, PREVIEW * 2) + b"data: [DONE]\n\n"
    )

    with pytest.raises(ReplyError, match="before an image was complete"):
        recorder.decoder.finish()

    assert recorder.decoder.preview.data == recorder.previews[-1] == PREVIEW * 2
    assert recorder.whole == []
    recorder.decoder.close()
    assert all(sink.closed for sink in recorder.sinks)


def test_truncated_stream_never_yields_half_an_image() -> None:
    for end in range(len(STREAM)):
        _break_off(end)


def _break_off(end: int) -> None:
    recorder = RecordingDecoder().feed(STREAM[:end])
    try:
        reply = recorder.decoder.finish()
    except ReplyError:
        assert recorder.whole in ([], [IMAGE])  # the image may be whole where its event is not
    else:
        assert images_of(reply) == [IMAGE]
    assert all(preview == PREVIEW for preview in recorder.previews)


def test_event_with_list_of_images_is_decoded() -> None:
    document = {
        "type": COMPLETED,
        "data": [{"b64_json": base64.b64encode(image).decode()} for image in (IMAGE, PREVIEW)],
    }
    reply, _ = decode(f"data: {json.dumps(document)}\n\n".encode())
    assert images_of(reply) == [IMAGE, PREVIEW]


def test_invalid_base64_in_stream_is_rejected() -> None:
    with pytest.raises(ReplyError):
        decode(STREAM.replace(base64.b64encode(IMAGE)[8:16], b"!!!!!!!!"))


def test_memory_does_not_grow_with_image(tmp_path: Path) -> None:
    piece = base64.b64encode(bytes(range(256)) * 3 * 64)
    decoder = ReplyDecoder(lambda index: ImageFile(tmp_path / f"{index}.part"), ImageFile.seal)
    tracemalloc.start()
    try:
        decoder.feed(b'event: x\ndata: {"type": "image_generation.completed", "b64_json": "')
        for _ in range(400):  # 26 MB of base64
            decoder.feed(piece)
        decoder.feed(b'"}\n\n')
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    (image,) = decoder.finish().images
    assert image.sink.size == 400 * len(piece) * 3 // 4
    assert peak < 2 * 1024 * 1024
    image.sink.close()


# --- against the gateway -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("done", [True, False], ids=["with [DONE]", "without [DONE]"])
@pytest.mark.parametrize("streams", ["supported", "ignored"])
@pytest.mark.parametrize("n", [1, 3])
def test_plain_response_to_stream_request_gives_same_images(
    png: bytes, streams: Any, n: int, done: bool
) -> None:
    with Gateway(image=png, stream=streams, stream_done=done, ping=0.02, delay=0.1) as gateway:
        request = ImageRequest("a fox", stream=True, partial_images=2, n=n)
        with Client(gateway.token, gateway.url, read_timeout=10) as client:
            generation = client.generate(request)

        for image in generation.images:
            image.file.file.seek(0)
            assert image.file.file.read() == png
        assert [image.index for image in generation.images] == list(range(n))
        (record,) = gateway.charges
        assert generation.usage
        assert generation.usage["total_tokens"] == record.total_tokens
        generation.close()


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        ("sse_broken", Kind.REPLY),
        ("sse_broken end=rst", Kind.REPLY),
        ("sse_hang", Kind.REPLY),
        ("sse_no_completed", Kind.REPLY),
        ("sse_raw_error", Kind.UNKNOWN_OUTCOME),
        ("sse_error_event", Kind.UNKNOWN_OUTCOME),
    ],
)
def test_images_and_preview_before_truncation_are_kept(
    gateway: Gateway, tmp_path: Path, png: bytes, case: str, kind: Kind
) -> None:
    request = ImageRequest(f"a fox [sandbox: {case}]", stream=True, partial_images=1, n=1)
    with Client(gateway.token, gateway.url, read_timeout=0.4) as client, pytest.raises(Img2Error) as caught:
        client.generate(request, lambda index: ImageFile(tmp_path / f"{index}.part"))

    assert (caught.value.kind, caught.value.billed) == (kind, "yes" if kind is Kind.REPLY else "unknown")
    assert (tmp_path / "0.preview").read_bytes() == png
    assert not list(tmp_path.glob("*.image"))
