"""Responses that gateways were seen to send although no documentation mentions them.

A comment names the public report that a row was taken from. Each row goes through the client, against a raw
server, as it would on the wire.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from airflow_provider_jojokey.img2 import Client, Generation, ImageRequest, Img2Error, Kind, download
from airflow_provider_jojokey.img2.images import ImageFile
from tests.support.loopback import Exchange, Server

TOKEN = "sk-only-for-tests-0123456789"
ID = {"X-Oneapi-Request-Id": "2026112823085401726269"}
LITELLM = {"x-litellm-call-id": "3f1c", "x-litellm-version": "1.106.2"}
SIZE = (1024, 1024)


def image_data(kind: str = "PNG", size: tuple[int, int] = SIZE, color: str = "navy") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, color).save(out, kind)
    return out.getvalue()


PNG = image_data()
JPEG = image_data("JPEG")
WEBP = image_data("WEBP")
BLURRED = image_data(color="gray")
B64 = base64.b64encode(PNG).decode()
USAGE = {"input_tokens": 10, "output_tokens": 196, "total_tokens": 206}
ITEM = {"b64_json": B64}


@dataclass
class Row:
    """A response and its expected outcome."""

    name: str
    body: bytes
    status: int = 200
    headers: dict[str, str] | None = None
    request: ImageRequest | None = None
    raw: bool = False
    """Whether the body includes the head of the response, or bytes before it."""
    kind: Kind | None = None
    """``None``: the image arrives."""
    billed: str = "yes"
    tokens: int | None = None
    images: int | None = None
    words: str = ""
    """Parts of the error or warning, separated by ``|``."""
    never: str = ""
    posts: int = 1


def doc(document: Any) -> bytes:
    return json.dumps(document).encode()


def data(*items: Any, **fields: Any) -> bytes:
    return doc({"created": 1, "data": list(items), **fields})


def sse(*events: Any, done: bool = True, end: str = "\n") -> bytes:
    lines = []
    for event in events:
        if isinstance(event, dict) and (name := event.get("type")):
            lines.append(f"event: {name}{end}")
        lines.append(f"data: {event if isinstance(event, str) else json.dumps(event)}{end}{end}")
    return "".join([*lines, f"data: [DONE]{end}{end}" if done else ""]).encode()


def completed(**fields: Any) -> dict[str, Any]:
    return {"type": "image_generation.completed", "b64_json": B64, **fields}


def partial(index: int = 0, kind: str = "image_generation.partial_image", **fields: Any) -> dict[str, Any]:
    return {
        "type": kind,
        "b64_json": base64.b64encode(BLURRED).decode(),
        "partial_image_index": index,
        **fields,
    }


def error(code: str | None = "", message: str = "Something is wrong", **fields: Any) -> bytes:
    return doc(
        {"error": {"message": message, "type": fields.pop("type", "upstream_error"), "code": code, **fields}}
    )


def ok_head(body: bytes, *headers: str) -> bytes:
    lines = ["HTTP/1.1 200 OK", *headers, f"Content-Length: {len(body)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def interim(*statuses: int, header: str = "") -> bytes:
    return b"".join(f"HTTP/1.1 {status} Interim\r\n{header}\r\n".encode() for status in statuses)


def chunked(*pieces: bytes, last: bool = True) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    return (
        head
        + b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
        + (b"0\r\n\r\n" if last else b"")
    )


GOOD = data(ITEM, usage=USAGE)
STREAM = ImageRequest("a fox", stream=True)
TWO = ImageRequest("a fox", n=2)
THREE = ImageRequest("a fox", n=3)

INTERIM = [
    Row("102, repeated", interim(*[102] * 40) + ok_head(GOOD), raw=True, tokens=206),  # QuantumNous/new-api#4506
    Row("103 with headers", interim(103, header="Link: </a.css>; rel=preload\r\n") + ok_head(GOOD), raw=True,
        tokens=206),  # notatallshaw/nab#1130
    Row("100, 102 and 103", interim(100, 102, 103) + ok_head(GOOD), raw=True, tokens=206),
    Row("199 before an error", interim(199) + b"HTTP/1.1 400 Bad\r\nX-Oneapi-Request-Id: 1\r\nContent-Length: 2\r\n\r\n{}",
        raw=True, kind=Kind.REQUEST, billed="no"),
    Row("103 and then nothing", interim(103), raw=True, kind=Kind.UNKNOWN_OUTCOME, billed="unknown"),
]  # fmt: skip

ENVELOPES = [
    Row("data as an object", doc({"data": ITEM, "usage": USAGE}), tokens=206),
    Row("a list at the root", doc([ITEM])),
    Row("images of objects", doc({"images": [ITEM], "usage": USAGE}), tokens=206),
    Row("images of bare base64", doc({"images": [B64]})),
    Row("images of data URIs", doc({"images": [f"data:image/png;base64,{B64}"]})),
    Row("image_base64 of bare base64", doc({"data": {"image_base64": [B64]}, "usage": USAGE}), tokens=206),
    Row("code and nested data", doc({"code": 0, "data": {"data": [ITEM], "usage": USAGE}}), tokens=206),
    Row("result", doc({"result": {"images": [ITEM]}})),
    Row("predictions", doc({"predictions": [{"bytesBase64Encoded": B64, "mimeType": "image/png"}]})),  # googleapis/js-genai#813
    Row("a chat completion", doc({"object": "chat.completion", "choices": [{"message": {"content": "", "images": [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{B64}"}}]}}], "usage": USAGE}), tokens=206),
    Row("Gemini's parts", doc({"candidates": [{"content": {"parts": [{"text": "a fox"}, {"inlineData": {"mimeType":
        "image/png", "data": B64}}]}}], "usageMetadata": {"promptTokenCount": 10, "candidatesTokenCount": 196,
        "totalTokenCount": 206}}), tokens=206),
    Row("base64 as the text", B64.encode(), headers={"Content-Type": "text/plain"}),
    Row("a data URI as the text", f"data:image/png;base64,{B64}\n".encode(), headers={"Content-Type": "text/plain"}),
    Row("base64 as the JSON", doc(B64)),
    Row("half of base64 as the text", B64[: len(B64) // 2].encode(), kind=Kind.REPLY, words="truncated"),
    Row("201", GOOD, status=201, tokens=206),
    Row("202", GOOD, status=202, tokens=206),
    Row("a data URI in b64_json", data({"b64_json": f"data:image/png;base64,{B64}"})),
    Row("base64 in url", data({"url": B64})),
    Row("a good reply with status and message", doc({"status": "completed", "message": "ok", "data": [ITEM]})),
]  # fmt: skip

BASE64 = [
    Row("URL-safe", data({"b64_json": B64.replace("+", "-").replace("/", "_")})),
    Row("without padding", data({"b64_json": B64.rstrip("=")})),
    Row("URL-safe without padding", data({"b64_json": B64.translate(str.maketrans("+/", "-_")).rstrip("=")})),
    Row("a blank before a data URI", data({"b64_json": f" \ndata:image/png;base64,{B64}"})),
    Row("in lines of 76", data({"b64_json": "\n".join(B64[i : i + 76] for i in range(0, len(B64), 76))})),
    Row("broken in one of two", data({"b64_json": B64[:40] + "*" + B64[41:]}, ITEM), request=TWO,
        words="1 of 2 requested images arrived|base64 is broken"),
    Row("broken", data({"b64_json": B64[:40] + "*" + B64[41:]}), kind=Kind.REPLY, words="base64 is broken"),
]  # fmt: skip

BEGINNINGS = [
    Row("newline pings, then JSON", chunked(b"\n", b"\n", b"\n", GOOD), raw=True, tokens=206),
    Row("newline pings, then a stream", chunked(b"\n", b"\r\n", sse(completed(usage=USAGE))), raw=True, request=STREAM,
        tokens=206),
    Row("spaces in pieces of their own", chunked(b" ", b" \t", GOOD), raw=True, tokens=206),
    Row("a byte order mark", b"\xef\xbb\xbf" + GOOD, tokens=206),
    Row("a byte order mark before a stream", b"\xef\xbb\xbf" + sse(completed(usage=USAGE)), request=STREAM, tokens=206),
    Row("a stream called JSON", sse(completed(usage=USAGE)), headers={"Content-Type": "application/json"}, tokens=206),
    Row("JSON called a stream", GOOD, headers={"Content-Type": "text/event-stream"}, request=STREAM, tokens=206),
    Row("JSON lines", doc(partial()) + b"\n" + doc(completed(usage=USAGE)) + b"\n", request=STREAM, tokens=206),
]  # fmt: skip

STREAMS = [
    Row("a link in the completed event", sse({"type": "image_generation.completed", "url": "/own/fox.png", "usage": USAGE}),
        request=STREAM, tokens=206),  # Railgun19457/astrbot_plugin_image_generation#55
    Row("an edit's preview before the image", sse(partial(kind="image_edit.partial_image"), completed(usage=USAGE)),
        request=STREAM, tokens=206),
    Row("only an edit's preview", sse(partial(kind="image_edit.partial_image")), request=STREAM, kind=Kind.REPLY,
        words="before an image was complete"),  # openai/openai-node#2617
    Row("a preview by its type alone", sse({**partial(), "partial_image_index": None}), request=STREAM, kind=Kind.REPLY),
    Row("a preview in the data of an event", sse(
        {"data": {"type": "image_generation.partial_image", "b64_json": base64.b64encode(BLURRED).decode()}},
        {"data": {"type": "image_generation.completed", "b64_json": B64, "usage": USAGE}}), request=STREAM, tokens=206),
    Row("a preview in a list", sse({"data": [partial(kind="image")]}, {"data": [ITEM], "usage": USAGE}), request=STREAM,
        tokens=206),
    Row("a preview in a list, alone", sse({"data": [partial(kind="image")]}), request=STREAM, kind=Kind.REPLY,
        words="before an image was complete"),
    Row("chunks", sse({"type": "image.chunk", "b64_json": base64.b64encode(BLURRED).decode()}), request=STREAM,
        kind=Kind.REPLY),  # maximhq/bifrost#980
    Row("previews of the Responses API", sse(
        {"type": "response.image_generation_call.partial_image", "partial_image_b64": base64.b64encode(BLURRED).decode()},
        {"type": "response.output_item.done", "item": {"type": "image_generation_call", "result": B64}},
        {"type": "response.completed", "response": {"output": [{"result": B64}], "usage": USAGE}}),
        request=STREAM, tokens=206),  # NousResearch/hermes-agent#76981
    Row("the last event repeats one of two", sse(completed(), {"type": "done", "data": [ITEM], "usage": USAGE}),
        request=ImageRequest("a fox", n=2, stream=True), tokens=206, words="1 of 2 requested images arrived"),
    Row("two images that are alike", sse(completed(usage=USAGE), completed()),
        request=ImageRequest("a fox", n=2, stream=True), tokens=206, never="1 of 2"),
    Row("comments, and then JSON with images that are alike", b": ping\n\n" + data(ITEM, ITEM, usage=USAGE),
        request=ImageRequest("a fox", n=2, stream=True), tokens=206, images=2),
    Row("the last event repeats one and brings one", sse(completed(), {"type": "done", "data": [ITEM, {"b64_json":
        base64.b64encode(JPEG).decode()}], "usage": USAGE}), request=ImageRequest("a fox", n=2, stream=True), tokens=206,
        images=2),
    Row("carriage returns alone", sse(partial(), completed(usage=USAGE), end="\r"), request=STREAM, tokens=206),
    Row("no blank lines between events", b"".join(b"data: " + doc(event) + b"\n" for event in (partial(), completed(usage=USAGE))),
        request=STREAM, tokens=206),
    Row("usage in an event of its own", sse(completed(), {"type": "image_generation.usage", "usage": USAGE}),
        request=STREAM, tokens=206),
    Row("a large event in one chunk without a last chunk", chunked(sse(completed(usage=USAGE), done=False), last=False),
        raw=True, request=STREAM, tokens=206),  # Railgun19457/astrbot_plugin_image_generation#65
]  # fmt: skip

EVENTS = b"\x1e" + doc(partial()) + b"\n\x1e" + doc(completed(usage=USAGE)) + b"\n"
PREFIXES = [
    row
    for name, body in (
        ("a callback", b"callback(" + GOOD + b");"),
        ("a callback behind a comment", b"/**/cb(" + GOOD + b")"),
        ("an endless loop", b"while(1);" + GOOD),
        ("a word", b"OK " + GOOD),
        ("a warning", b"<br /><b>Warning</b>: {x} in y on line 3<br />" + GOOD),
        ("other documents", b'log {"a": 1} and {"b": "}"} ' + GOOD),
        ("a long text", b"x" * 3000 + GOOD),
        ("record separators", EVENTS),
        ("a field in capitals", b"DATA: " + doc(completed(usage=USAGE)) + b"\n\n"),
    )
    for row in (
        Row(f"{name} in the same line", body, tokens=206, images=1),
        Row(f"{name} in the same line, in bytes", chunked(*(bytes([byte]) for byte in body)), raw=True, tokens=206, images=1),
    )
]  # fmt: skip
PREFIXES += [
    Row("a list", b"images = [" + doc(ITEM) + b"]"),
    Row("a callback around a truncated image", b"callback(" + GOOD[:600], kind=Kind.REPLY, never=B64[:40]),
    Row("an error in a text", b'failed: {"error": {"message": "too dark"}}', kind=Kind.REPLY, words="too dark"),
    Row("a link in a text", b'see {"url": "/own/fox.png"}', kind=Kind.REPLY, words="see"),
    Row("links in a text", b'see {"a": 1} and {"url": "/own/fox.png"} or {"url": "/own/fox.png"}', kind=Kind.REPLY, words="see"),
    Row("the script of a web page", b"<!doctype html><title>JojoKey</title><script>logo = " + GOOD + b"</script>",
        headers={**ID, "Content-Type": "text/html"}, kind=Kind.BASE_URL, billed="no"),
    Row("many documents in a text", b"x" + b'{"a":1}' * 700_000, kind=Kind.REPLY, words="bytes of text besides its images"),
]  # fmt: skip

BLURRED_ITEM = {"b64_json": base64.b64encode(BLURRED).decode()}
MARKS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"partial": True}, {"partial": False}),
    ({"is_partial": True}, {"is_partial": False}),
    ({"isPreview": True}, {}),
    ({"final": False}, {"final": True}),
    ({"isFinal": False}, {"isFinal": True}),
    ({"completed": False}, {"completed": True}),
    ({"done": False}, {"done": True}),
    ({"status": "partial"}, {"status": "completed"}),
    ({"status": "in_progress"}, {"status": "succeeded"}),
    ({"type": "image_generation.in_progress"}, {"type": "image_generation.completed"}),
    ({"event_type": "intermediate"}, {"event_type": "final"}),
]
PREVIEWS = [
    row
    for preview, final in MARKS
    for mark in [json.dumps(preview)]
    for row in (
        Row(f"{mark} in an event", sse({**preview, **BLURRED_ITEM}, {**final, **ITEM, "usage": USAGE}), request=STREAM,
            tokens=206),
        Row(f"{mark} behind the image", sse({**BLURRED_ITEM, **preview}, {**ITEM, **final, "usage": USAGE}),
            request=STREAM, tokens=206),
        Row(f"{mark} in a line", doc({**preview, "data": [BLURRED_ITEM]}) + b"\n"
            + doc({**final, "data": [ITEM], "usage": USAGE}), tokens=206),
        Row(f"{mark} behind the image in a line", doc({"data": [BLURRED_ITEM], **preview}) + b"\n"
            + doc({"data": [ITEM], "usage": USAGE}), tokens=206),
        Row(f"{mark} at the root, alone", doc({"data": [BLURRED_ITEM], **preview}), kind=Kind.REPLY,
            words="the response ended before an image was complete"),
        Row(f"{final} of the image", doc({"data": [ITEM], **final, "usage": USAGE}), tokens=206),
    )
]  # fmt: skip
PREVIEWS += [
    *(Row(f"{preview} in the element", doc({"data": [{**BLURRED_ITEM, **preview}, ITEM], "usage": USAGE}), tokens=206)
      for preview, _ in MARKS),
    Row("a finished event of an item in progress", sse({"type": "response.output_item.done", "item": {"type":
        "image_generation_call", "result": B64, "partial": False}, "status": "in_progress"}), request=STREAM),
    Row("false that is about something else", doc({"error": False, "nsfw": False, "data": [ITEM], "usage": USAGE}), tokens=206),
]  # fmt: skip

STREAMS += [
    Row("chunks of a chat", sse({"object": "chat.completion.chunk", "choices": [{"delta": {"images": [{"image_url": {
        "url": f"data:image/png;base64,{B64}"}}]}}]}, {"object": "chat.completion.chunk", "choices": [], "usage": USAGE}),
        request=STREAM, tokens=206),
    Row("Gemini's parts", sse({"candidates": [{"content": {"parts": [{"inlineData": {"data": B64}}]}}], "usageMetadata": {
        "promptTokenCount": 10, "candidatesTokenCount": 196, "totalTokenCount": 206}}, done=False), request=STREAM, tokens=206),
]  # fmt: skip


def chat(*images: bytes, whole: bool = False, **fields: Any) -> dict[str, Any]:
    """Return a chat completion with images, or a chunk of one."""
    urls = [f"data:image/png;base64,{base64.b64encode(image).decode()}" for image in images]
    listed = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    choice = {"message" if whole else "delta": {"images": listed, **fields}}
    return {"object": f"chat.completion{'' if whole else '.chunk'}", "choices": [choice]}


OTHER = image_data(color="teal")
SMALL = base64.b64encode(BLURRED).decode()
CHATS = [
    Row("an image that the message lists twice", doc(chat(PNG, whole=True, content=[{"image": B64}])), images=1),
    Row("two images that the message lists twice", doc(chat(PNG, OTHER, whole=True, content=[B64, {"url": B64}])),
        request=TWO, images=2),
    Row("a message that repeats one image of two", sse(chat(PNG), chat(PNG, whole=True)), request=TWO, images=1,
        words="1 of 2 requested images arrived"),
    Row("a message that repeats all chunks", sse(chat(PNG), chat(OTHER), chat(PNG, OTHER, whole=True)), request=TWO,
        images=2),
    Row("a message that repeats a chunk before the rest", sse(chat(PNG), chat(PNG, OTHER, whole=True)), request=TWO,
        images=2),
    *(Row(f"{name} before the image", doc({name: {"data": SMALL}, **chat(PNG, whole=True)}), images=1)
      for name in ("inputImage", "input-image", "requestBody", "logo", "avatar", "Thumbnail", "preview")),
    Row("a thumbnail of a missing image", data({"b64_json": ""}, thumbnail=SMALL), kind=Kind.REPLY),
    *(Row(f"a logo beside an error: {list(failure)[0]}", doc({**failure, "site": {"picture": B64}}),
          kind=Kind.CONTENT, billed="unknown", words="Not allowed")
      for failure in ({"error": {"message": "Not allowed", "code": "moderation_blocked"}},
                      {"success": False, "message": "Not allowed", "code": "moderation_blocked"})),
    Row("an error in a chunk behind the image", sse(chat(PNG), {**chat(), "error": {"message": "late", "code": "1"}}),
        request=STREAM, images=1),
]  # fmt: skip

STREAM_ERRORS = [
    Row("flat", sse({"type": "error", "code": "server_error", "message": "The model failed"}), request=STREAM,
        kind=Kind.UNKNOWN_OUTCOME, billed="unknown", words="The model failed|server_error"),
    Row("nested", sse({"type": "error", "error": {"code": "moderation_blocked", "message": "Not allowed"}}),
        request=STREAM, kind=Kind.CONTENT, billed="unknown", words="Not allowed"),
    Row("a text", sse({"error": "upstream is busy"}), request=STREAM, kind=Kind.UNKNOWN_OUTCOME, billed="unknown",
        words="upstream is busy"),
    Row("plain text in an event named error", b"event: error\ndata: upstream is busy\n\n", request=STREAM,
        kind=Kind.UNKNOWN_OUTCOME, billed="unknown", words="upstream is busy"),
    Row("a failed event", sse({"type": "image_generation.failed", "message": "out of memory"}), request=STREAM,
        kind=Kind.UNKNOWN_OUTCOME, billed="unknown", words="out of memory"),
    Row("a failed response", sse({"type": "response.failed", "response": {"error": {"code": "content_filter",
        "message": "filtered"}}}), request=STREAM, kind=Kind.CONTENT, billed="unknown", words="filtered"),
    Row("the event's name is all that says so", b'event: error\ndata: {"message": "out of memory", "code": "x"}\n\n',
        request=STREAM, kind=Kind.UNKNOWN_OUTCOME, billed="unknown", words="out of memory"),
    Row("a list in an event named error", b'event: error\ndata: [{"message": "out of memory"}]\n\n', request=STREAM,
        kind=Kind.UNKNOWN_OUTCOME, billed="unknown", words="out of memory"),
    Row("nothing in an event named error", b"event: error\ndata: {}\n\n", request=STREAM, kind=Kind.UNKNOWN_OUTCOME,
        billed="unknown"),
    Row("JSON in a string", b"event: error\ndata: " + doc(error("content_filter", "filtered").decode()) + b"\n\n",
        request=STREAM, kind=Kind.CONTENT, billed="unknown", words="filtered"),
    Row("plain text in an event without a name", b"data: Error: upstream is busy\n\n", request=STREAM, kind=Kind.REPLY,
        words="upstream is busy"),
    Row("bare JSON", b": PING\n\n" + error("content_filter", "filtered") + b"\n\n", request=STREAM, kind=Kind.CONTENT,
        billed="unknown", words="filtered"),
    # Usage in the event of one image may be that image's alone, so the usage of the request is unknown.
    Row("after one of two images", sse(completed(usage=USAGE), {"type": "error", "message": "no more"}),
        request=ImageRequest("a fox", n=2, stream=True), words="1 of 2 requested images arrived"),
    Row("after one of two images, with the usage", sse(completed(), {"type": "error", "message": "no more", "usage": USAGE}),
        request=ImageRequest("a fox", n=2, stream=True), tokens=206, words="1 of 2 requested images arrived"),
]  # fmt: skip

FRAMING = [
    Row("no last chunk", chunked(GOOD, last=False), raw=True, tokens=206),  # Wei-Shaw/sub2api#6410
    Row("Content-Length too long", ok_head(GOOD).replace(b"Content-Length: ", b"Content-Length: 9"), raw=True, tokens=206),
    Row("a second document", GOOD + doc({"error": {"message": "late"}}), tokens=206),
    Row("something behind the document", GOOD + b"\n\n<!-- cached -->", tokens=206),
    Row("the end of the document is missing", GOOD[:-1], tokens=206),
    Row("brackets nested too deeply", GOOD[:-1] + b', "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", tokens=206),
    Row("a number of thousands of digits", GOOD.replace(b'"created": 1', b'"created": ' + b"9" * 5000), tokens=206),
    Row("commas behind the last elements", GOOD.replace(b"}]", b"},],")),
    Row("a mistake before the image", b'{"x": undefined, ' + GOOD[1:]),
    Row("a comma is missing between images", doc({"usage": USAGE, "data": [ITEM, ITEM]}).replace(b"}, {", b"} {"),
        request=TWO, tokens=206),
    Row("the usage is missing", GOOD[: GOOD.index(b', "usage"')]),
    Row("the second image is missing", doc({"usage": USAGE, "data": [ITEM, ITEM]})[:-200], request=TWO, kind=Kind.REPLY,
        tokens=206),
]  # fmt: skip

NORMAL_USAGE = [
    Row("a text", data(ITEM, usage={"total_tokens": "253"}), tokens=253),
    Row("floats", data(ITEM, usage={"input_tokens": 10.0, "output_tokens": 243.0, "total_tokens": 253.0}), tokens=253),
    Row("the chat API's names", data(ITEM, usage={"prompt_tokens": 53, "completion_tokens": 200,
        "input_tokens_details": {"text_tokens": 53}}), tokens=253),  # Helicone/helicone#5003
    Row("Gemini's names", doc({"data": [ITEM], "usageMetadata": {"promptTokenCount": 53, "candidatesTokenCount": 200}}),
        tokens=253),  # laravel/ai#482
    Row("all zeros mean unknown", data(ITEM, usage={"input_tokens": 0, "output_tokens": 0, "total_tokens": 0})),
    Row("no numbers", data(ITEM, usage={"total_tokens": float("nan"), "input_tokens": True, "output_tokens": None})),
    Row("a list", data(ITEM, usage=[1, 2])),
    Row("JSON in a string", data(ITEM, usage=json.dumps(USAGE)), tokens=206),
    Row("usage in usage", data(ITEM, usage={"usage": USAGE}), tokens=206),
    Row("in the only element", data({**ITEM, "usage": USAGE}), tokens=206),
    Row("in each element", data({**ITEM, "usage": USAGE}, {**ITEM, "usage": {"total_tokens": 4}}), request=TWO, tokens=210),
    Row("of the request, in each element", data({**ITEM, "usage": USAGE}, {**ITEM, "usage": USAGE}), request=TWO, tokens=206),
    Row("in a list at the root", doc([{"data": [ITEM], "usage": USAGE}]), tokens=206),
    Row("in the metadata", doc({"data": [ITEM], "metadata": {"usage": USAGE}}), tokens=206),
    Row("a total below its parts", data(ITEM, usage={**USAGE, "total_tokens": 5}), tokens=206),
]  # fmt: skip

LINKS = [
    Row("relative to the gateway", data({"url": "/own/fox.png"})),
    Row("without a slash", data({"url": "own/fox.png"})),
    Row("a bare link in a list", doc({"images": ["/own/fox.png"]})),
    Row("image_url", doc({"output": [{"image_url": {"url": "/own/fox.png"}}]})),
    Row("a list of links", data({"url": ["/own/fox.png"]})),  # dickpy/dsh-imagegen#10
    Row("image_urls", doc({"output": {"image_urls": ["/own/fox.png"]}})),  # liliMozi/openhanako#1684
    Row("in the place of base64", data({"b64_json": "GATEWAY/own/fox.png"})),
    Row("beside a truncated image", data({"b64_json": base64.b64encode(PNG[:-20]).decode(), "url": "/own/fox.png"})),
    Row("beside base64 of a page", data({"b64_json": base64.b64encode(b"<html>").decode(), "url": "/own/fox.png"})),
    Row("beside broken base64", data({"b64_json": B64[:-40] + "*", "url": "/own/fox.png"})),
    Row("beside a whole image", data({**ITEM, "url": "/own/gone.png"})),
    Row("beside a truncated image, and gone", data({"b64_json": base64.b64encode(PNG[:-20]).decode(), "url": "/own/gone.png"}),
        kind=Kind.REPLY, words="/own/gone.png"),
    Row("404 for the first moments", data({"url": "/own/later.png"})),
    Row("base64 of an image in the place of a link", data({"url": "?" + base64.b64encode(JPEG).decode()[:4000]}),
        kind=Kind.REPLY, never=base64.b64encode(JPEG).decode()[600:680]),
    Row("base64 with slashes, behind a broken character", data({"url": "\ufffd" + "wAARCAAQABADASIAAhEBAxEB/" * 8}),
        kind=Kind.REPLY, never="wAARCAAQABADASIAAhEBAxEB/" * 3),
    Row("a long scheme", data({"url": "a" * 200 + "://x"}), kind=Kind.REPLY, never="a" * 70),
    Row("206 with the whole image", data({"url": "/own/part.png"})),
    Row("403 is final", data({"url": "/own/forbidden.png?Signature=s3cret"}), kind=Kind.REPLY,
        words="HTTP 403|/own/forbidden.png|It is already paid", never="s3cret"),
    Row("404 for good", data({"url": "/own/gone.png?Signature=s3cret"}), kind=Kind.REPLY,
        words="HTTP 404|/own/gone.png", never="s3cret"),
]  # fmt: skip

TASKS = [
    Row("in a list", doc({"code": 200, "data": [{"status": "submitted", "task_id": "t1"}]}), kind=Kind.REPLY,
        words="task (ID t1), which this package does not support"),  # QuantumNous/new-api#4711
    Row("in an object", doc({"success": True, "data": {"task_id": "t1", "status": "submitted"}}), status=202,
        kind=Kind.REPLY, words="task (ID t1)"),  # dickpy/dsh-imagegen#10
    Row("at the root", doc({"id": "t1", "object": "image.generation.task", "status": "queued"}), kind=Kind.REPLY,
        words="task (ID t1)"),
    Row("a bare ID", doc({"code": "success", "message": "", "data": "task_1"}), kind=Kind.REPLY, words="task (ID task_1)"),
    Row("a bare ID with a code", doc({"code": 1, "description": "提交成功", "result": "1320098173412546"}), kind=Kind.REPLY,
        words="task (ID 1320098173412546)"),
    Row("a queue", doc({"status": "IN_QUEUE", "request_id": "q1", "status_url": "https://example.com/q1"}), kind=Kind.REPLY,
        words="task (ID q1)"),
    Row("an address to poll", doc({"id": "p1", "polling_url": "https://example.com/p1"}), kind=Kind.REPLY, words="task (ID p1)"),
    Row("an operation", doc({"name": "operations/o1", "done": False}), kind=Kind.REPLY, words="task (ID operations/o1)"),
    Row("the only event of a stream", sse({"type": "task", "task_id": "t1", "status": "submitted"}), request=STREAM,
        kind=Kind.REPLY, words="task (ID t1)"),
    Row("a response in progress", sse(*[{"type": f"response.{step}", "response": {"id": "r1", "status":
        "in_progress"}} for step in ("created", "in_progress")]), request=STREAM, kind=Kind.REPLY, never="r1"),
    *(Row(f"an address in {name}", body, status=202, headers={**ID, name: f"{link}?sig=s3cret"}, kind=Kind.REPLY,
          words="task (ID t1), which this package does not support", never="s3cret")
      for name, link in (("Location", "/v1/tasks/t1"), ("operation-location", "https://example.com/operations/t1/"))
      for body in (b"", b"{}", b"accepted", doc({"message": "accepted"}))),
    Row("an address beside an ID", doc({"task_id": "t1"}), headers={"Location": "/v1/tasks/other"}, kind=Kind.REPLY,
        words="task (ID t1)", never="other"),
    Row("an address beside an image", GOOD, status=201, headers={"Location": "/v1/images/t1"}, tokens=206),
    Row("an address beside a truncated image", GOOD[:600], status=201, headers={"Location": "/v1/images/t1"}, kind=Kind.REPLY,
        words="in the middle of an image", never="t1"),
    Row("an address beside an empty image", data({"b64_json": ""}), headers={"Location": "/v1/images/t1"}, kind=Kind.REPLY,
        words="it is missing", never="t1"),
    Row("a root as the address", b"", status=202, headers={"Location": "/"}, kind=Kind.REPLY, never="task"),
    Row("not running", doc({"id": "t1", "status": "notRunning"}), status=202, kind=Kind.REPLY, words="task (ID t1)"),
    Row("a job", doc({"job": {"id": "t1", "status": "queued"}}), kind=Kind.REPLY, words="task (ID t1)"),
    Row("a failed task", doc({"data": {"task_id": "t1", "status": "failed", "error": {"message": "out of memory"}}}),
        kind=Kind.UNKNOWN_OUTCOME, billed="unknown", words="out of memory", never="started an asynchronous task"),
    Row("a word instead of an ID", doc({"code": 200, "data": "success"}), kind=Kind.REPLY, never="task"),
    Row("in output", doc({"output": {"task_id": "t1", "task_status": "PENDING"}, "request_id": "r"}), kind=Kind.REPLY,
        words="task (ID t1)"),
]  # fmt: skip

AVIF = base64.b64encode(b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + bytes(200)).decode()
TYPES = [
    Row("AVIF", data({"b64_json": AVIF}), kind=Kind.REPLY, words="image 1 is an AVIF image, not PNG, JPEG or WebP"),
    Row("GIF", data({"b64_json": base64.b64encode(image_data("GIF", (8, 8))).decode()}), kind=Kind.REPLY, words="a GIF image"),
    Row("a sentence", data({"b64_json": base64.b64encode(b"The image could not be drawn").decode()}), kind=Kind.REPLY,
        words="not a PNG, JPEG or WebP image"),
    Row("a PNG that is truncated", data({"b64_json": base64.b64encode(PNG[:-20]).decode()}), kind=Kind.REPLY,
        words="truncated"),
    Row("a JPEG that is truncated", data({"b64_json": base64.b64encode(JPEG[:-20]).decode()}), kind=Kind.REPLY,
        words="truncated"),
    Row("a WebP that is truncated", data({"b64_json": base64.b64encode(WEBP[:-20]).decode()}), kind=Kind.REPLY,
        words="truncated"),
    Row("bytes behind the image", data({"b64_json": base64.b64encode(PNG + b"trailing").decode()}), never="truncated"),
]  # fmt: skip

WORDS = [
    Row("FastAPI", doc({"detail": [{"loc": ["body", "size"], "msg": "size is not supported"}]}), status=422,
        kind=Kind.REQUEST, billed="no", words="body.size: size is not supported"),
    Row("a message at the root", doc({"message": "Forbidden by policy X"}), status=403, kind=Kind.EDGE_BLOCKED,
        billed="no", words="Forbidden by policy X"),
    Row("msg", doc({"code": 1004, "msg": "余额不足"}), status=400, headers=ID, kind=Kind.REQUEST, billed="no", words="余额不足"),
    Row("a problem document", doc({"type": "about:blank", "title": "Bad size", "detail": "use 1024x1024"}), status=400,
        kind=Kind.REQUEST, billed="no", words="use 1024x1024"),
    Row("errors", doc({"errors": [{"message": "first"}, {"message": "second"}]}), status=400, kind=Kind.REQUEST,
        billed="no", words="first; second"),
    Row("the provider's own words", error("", "Provider returned error", metadata={"raw": '{"error":{"message":"too dark"}}'}),
        status=400, headers=ID, kind=Kind.REQUEST, billed="no", words="Provider returned error: too dark"),
    Row("JSON in the message", error("FORBIDDEN", json.dumps({"error": "Forbidden", "message": json.dumps(
        {"error": {"message": "temporarily blocked"}})})), status=403, kind=Kind.ACCESS, billed="no",
        words="temporarily blocked"),  # pollinations/pollinations#8848
    Row("by field", doc({"errors": {"size": ["must be 1024x1024"]}}), status=422, headers=ID, kind=Kind.REQUEST, billed="no",
        words="size: must be 1024x1024"),
    Row("by language", doc({"error": {"message": {"zh": "尺寸错误", "en": "bad size"}}}), status=400, headers=ID,
        kind=Kind.REQUEST, billed="no", words="尺寸错误|bad size"),
    Row("with capitals", doc({"ResponseMetadata": {"Error": {"Code": "InvalidParameter", "Message": "bad size"}}}), status=400,
        headers=ID, kind=Kind.REQUEST, billed="no", words="bad size"),
    Row("status_msg", doc({"base_resp": {"status_code": 1026, "status_msg": "sensitive"}, "data": None}), kind=Kind.UNKNOWN_OUTCOME, billed="unknown",
        words="sensitive"),
    Row("beside true", doc({"error": True, "message": "busy"}), kind=Kind.UNKNOWN_OUTCOME, billed="unknown", words="busy"),
    Row("beside a code, with success", doc({"code": 1004, "msg": "余额不足", "data": None}), headers=ID,
        kind=Kind.UNKNOWN_OUTCOME, billed="unknown", words="余额不足"),
    Row("a sentence", error("content_filter", "It was blocked."), status=400, headers=ID, kind=Kind.CONTENT, billed="no",
        words='"It was blocked." You were not charged.'),
    Row("a sentence beside an image", sse(completed(), {"type": "error", "message": "It was blocked."}),
        request=ImageRequest("a fox", n=2, stream=True), words="arrived: It was blocked.", never=".."),
    Row("no words at all", doc({"ok": False}), status=400, kind=Kind.REQUEST, billed="no", words="The gateway gave no reason"),
]  # fmt: skip

ADVICE = [
    Row("the channel's key", error("invalid_api_key", "Incorrect API key provided"), status=401, headers=ID,
        kind=Kind.NO_CHANNEL, billed="no", words="The key of the gateway's channel was rejected|support"),
    Row("the channel's key, by new-api's code", error("channel:invalid_key"), status=401, headers=ID, kind=Kind.NO_CHANNEL,
        billed="no", words="The key of the gateway's channel was rejected"),
    Row("the channel's login", error(None, type="authentication_error"), status=401, headers=ID, kind=Kind.NO_CHANNEL,
        billed="no", words="The key of the gateway's channel"),
    Row("the user's own token", error("", "无效的令牌", type="new_api_error"), status=401, headers=ID, kind=Kind.TOKEN, billed="no"),
    Row("no deployment", error("DeploymentNotFound"), status=404, headers=ID, kind=Kind.NO_CHANNEL, billed="no",
        words="channel"),
]  # fmt: skip

CLASSES = [
    Row("content_filter", error("content_filter"), status=400, headers=ID, kind=Kind.CONTENT, billed="no"),  # stanford-crfm/helm#3327
    Row("contentFilter", error("contentFilter"), status=400, headers=ID, kind=Kind.CONTENT, billed="no"),
    Row("content_policy_violation", error("content_policy_violation", type="invalid_request_error"), status=400, headers=ID,
        kind=Kind.CONTENT, billed="no"),  # BerriAI/litellm#19372
    Row("content_policy_violation at 422", doc({"success": False, "error": {"message": "Rejected", "code":
        "content_policy_violation"}}), status=422, kind=Kind.CONTENT, billed="no"),  # pollinations/pollinations#12067
    Row("DataInspectionFailed", error("DataInspectionFailed"), status=400, headers=ID, kind=Kind.CONTENT, billed="no"),
    Row("prompt_blocked", error("prompt_blocked"), status=500, headers=ID, kind=Kind.CONTENT, billed="no"),
    Row("an inner code", error("400", inner_error={"code": "ResponsibleAIPolicyViolation"}), status=400, headers=ID,
        kind=Kind.CONTENT, billed="no"),
    Row("a code in the detail", doc({"detail": {"error": {"code": "content_filter", "message": "x"}}}), status=400,
        kind=Kind.CONTENT, billed="no"),
    Row("a quota in the detail", doc({"detail": {"code": "insufficient_quota", "message": "x"}}), status=403,
        kind=Kind.QUOTA, billed="no"),
    Row("a code in JSON in a string", doc({"error": json.dumps({"code": "content_filter", "message": "x"})}), status=400,
        headers=ID, kind=Kind.CONTENT, billed="no"),
    Row("a code in a wrapped error", error("bad_response_status_code", error("moderation_blocked", "x").decode()), status=400,
        headers=ID, kind=Kind.CONTENT, billed="no"),
    Row("an error in the data, with success", doc({"data": {"error": {"code": "content_filter", "message": "x"}}}),
        kind=Kind.CONTENT, billed="unknown"),
    Row("a key's code in capitals", error("INVALID_API_KEY"), status=401, headers=ID, kind=Kind.NO_CHANNEL, billed="no"),
    Row("a fee in capitals", error("VIOLATION_FEE.CSAM"), status=400, headers=ID, kind=Kind.CONTENT, billed="yes"),
    Row("entitlement", error("entitlement_exhausted"), status=403, headers=ID, kind=Kind.QUOTA, billed="no"),
    Row("model_price_error", error("model_price_error"), status=500, headers=ID, kind=Kind.ACCESS, billed="no",
        words="administrator"),
    Row("channel:model_mapped_error", error("channel:model_mapped_error"), status=500, headers=ID, kind=Kind.ACCESS,
        billed="no", words="administrator"),
    Row("channel:no_available_key", error("channel:no_available_key"), status=500, headers=ID, kind=Kind.NO_CHANNEL, billed="no"),
    Row("get_channel_failed", error("get_channel_failed"), status=500, headers=ID, kind=Kind.NO_CHANNEL, billed="no"),
    Row("convert_request_failed", error("convert_request_failed"), status=500, headers=ID, kind=Kind.REQUEST, billed="no"),
    *[Row(f"unmarked {status}", error(""), status=status, kind=Kind.UNKNOWN_OUTCOME, billed="unknown")
      for status in (424, 425, 499)],
    Row("an image request's error of the user", error(None, "Streaming must have non-zero partial images.",
        type="image_generation_user_error"), status=400, headers=ID, kind=Kind.REQUEST, billed="no",
        words="non-zero partial images"),  # QuantumNous/new-api#1234
]  # fmt: skip

RELAYS = [
    Row("a rate limit", error("429", "litellm.RateLimitError: slow down"), status=429, headers=LITELLM,
        kind=Kind.UNKNOWN_OUTCOME, billed="unknown", words="A proxy in front of JojoKey|num_retries: 0"),
    Row("no channel, with the gateway's ID in the message", error("model_not_found", "No channel (request id: 20261)"),
        status=503, headers=LITELLM, kind=Kind.UNKNOWN_OUTCOME, billed="unknown"),
    Row("the gateway's header relayed", error("do_request_failed"), status=500, headers={**LITELLM, **ID},
        kind=Kind.UNKNOWN_OUTCOME, billed="unknown"),
    Row("a budget", error("429", "Budget has been exceeded!", type="budget_exceeded"), status=429, headers=LITELLM,
        kind=Kind.QUOTA, billed="unknown"),  # BerriAI/litellm#4606
    Row("a code that is a status", error("400", "litellm.ContentPolicyViolationError", type="content_policy_violation"),
        status=400, headers=LITELLM, kind=Kind.CONTENT, billed="unknown"),
    Row("a token", error("401", "Authentication Error", type="auth_error"), status=401, headers=LITELLM, kind=Kind.TOKEN,
        billed="unknown"),
    Row("the proxy's own key", error("401", "litellm.AuthenticationError", type="AuthenticationError"), status=401,
        headers=LITELLM, kind=Kind.TOKEN, billed="unknown"),
    Row("response_format", error("400", "litellm.UnsupportedParamsError: response_format"), status=400, headers=LITELLM,
        kind=Kind.REQUEST, billed="unknown", words="drop_params"),
    Row("by its message", error("500", "litellm.Timeout: no answer"), status=400, kind=Kind.REQUEST, billed="unknown"),
    Row("the gateway's channel is such a proxy", error("429", "litellm.RateLimitError: slow down"), status=429, headers=ID,
        kind=Kind.RATE_LIMIT, billed="no"),
    Row("a count of retries", error(""), status=429, headers={"x-retry-count": "2"}, kind=Kind.UNKNOWN_OUTCOME, billed="unknown"),
    Row("Portkey", error(""), status=429, headers={"x-portkey-retry-attempt-count": "1"}, kind=Kind.UNKNOWN_OUTCOME,
        billed="unknown"),
    Row("an image in spite of retries", GOOD, headers=LITELLM, tokens=206),
]  # fmt: skip

DIFFERENT = [
    Row("another size", data({"b64_json": base64.b64encode(image_data(size=(1254, 1254))).decode()}),
        words="The image is 1254x1254, not 1024x1024"),  # marcusquinn/aidevops#31094
    Row("another format", data(ITEM), request=ImageRequest("a fox", output_format="webp"),
        words="The image is image/png, not image/webp"),  # router-for-me/CLIProxyAPI#4114
    Row("what was requested", data({"b64_json": base64.b64encode(JPEG).decode()}),
        request=ImageRequest("a fox", output_format="jpeg"), never="The image is"),
    Row("any size", data({"b64_json": base64.b64encode(image_data(size=(64, 64))).decode()}),
        request=ImageRequest("a fox", size="auto"), never="The image is"),
]  # fmt: skip

SLOTS = [
    Row("one of three flagged", data(ITEM, {"error": {"code": "content_filter", "message": "flagged"}}, ITEM), request=THREE,
        words="2 of 3 requested images arrived: image 2: it is missing (flagged)"),
    Row("one of three empty", data(ITEM, {"b64_json": ""}, ITEM), request=THREE, words="2 of 3 requested images"),
    Row("n downgraded", data(ITEM), request=THREE, words="1 of 3 requested images arrived; the gateway gave no reason"),
    Row("all filtered, by the reason to finish", data({"finish_reason": "content_filter"}), kind=Kind.CONTENT, billed="unknown",
        words="content_filter"),
    Row("all filtered, in other words", data({"b64_json": None, "finishReason": "CONTENT_FILTERED"}), kind=Kind.CONTENT,
        billed="unknown"),
    Row("filtered, at the root", doc({"id": "x", "finishReason": "CONTENT_FILTERED"}), kind=Kind.CONTENT, billed="unknown"),
    Row("finished without an image", data({"finish_reason": "stop"}), kind=Kind.REPLY, words="it is missing"),
    Row("one of two filtered", data(ITEM, {"finish_reason": "content_filter"}), request=TWO, words="1 of 2 requested images"),
    Row("a refusal", data({"text": "I can't draw that."}), kind=Kind.REPLY, words="it is missing (I can't draw that.)"),
    Row("the reason of a whole image", data({**ITEM, "finish_reason": "SUCCESS"})),
    Row("all flagged", data({"error": {"code": "content_filter", "message": "flagged"}}), kind=Kind.CONTENT, billed="unknown",
        words="flagged"),
]  # fmt: skip

REPORTS = [
    Row("usage of nulls", data(ITEM, usage={"input_tokens": None, "input_tokens_details": None, "output_tokens": None,
        "total_tokens": 0})),  # mudler/LocalAI#7354
    Row("an ID, and no time of creation", doc({"id": "o1", "created": None, "model": "x", "object": "list", "data": [
        {"index": 0, "b64_json": base64.b64encode(JPEG).decode()}]})),  # BerriAI/litellm#9239
    Row("no images, and usage of zeros", data(usage={"completion_tokens": 0, "prompt_tokens": 0, "total_tokens": 0,
        "completion_tokens_details": None}), kind=Kind.REPLY),  # BerriAI/litellm#10501
    Row("b64_json is null beside a link", data({"b64_json": None, "url": "/own/fox.png"})),  # brainlid/langchain#368
    Row("the stream ends after a preview", sse(partial(), done=False), request=STREAM, kind=Kind.REPLY,
        words="before an image was complete"),  # neuron-core/neuron-ai#541
    Row("no space behind data:, several data lines", b"data:{\"type\": \"image_generation.completed\",\n"
        b"data:\"b64_json\": \"" + B64.encode() + b"\"}\n\n", request=STREAM),  # openclaw/openclaw#116999
    Row("a failed image call", sse({"type": "response.output_item.done", "item": {"type": "image_generation_call",
        "status": "failed", "result": None, "error": {"code": "server_error", "message": "The tool failed"}}}),
        request=STREAM, kind=Kind.UNKNOWN_OUTCOME, billed="unknown", words="The tool failed"),  # openclaw/openclaw#116999
    Row("an incomplete response", sse({"type": "response.incomplete", "response": {"status": "incomplete",
        "incomplete_details": {"reason": "content_filter"}, "output": []}}), request=STREAM, kind=Kind.CONTENT,
        billed="unknown", words="content_filter"),  # openclaw/openclaw#116999
    Row("events without names", b"".join(b"data: " + doc(event) + b"\r\n\r\n" for event in (partial(), completed(usage=USAGE))),
        request=STREAM, tokens=206),  # stdapi-ai/stdapi.ai#230
    Row("an error inside an unfinished event", b'event: image_generation.completed\ndata: {"type": "image_generation.comp'
        b'\n{"type":"error","error":{"type":"upstream_error","message":"stream_read_error"}}\n\n', request=STREAM,
        kind=Kind.UNKNOWN_OUTCOME, billed="unknown", words="stream_read_error"),  # Wei-Shaw/sub2api#1471
    *(Row(f"an error inside an image, {name}", b'event: image_generation.completed\ndata: {"type": "image_generation.completed", '
          b'"b64_json": "' + B64[:200].encode() + b"\ndata:" + space + b'{"type":"error","error":{"type":"upstream_error","message":'
          b'"stream_read_error"}}\n\n', request=STREAM, kind=Kind.UNKNOWN_OUTCOME, billed="unknown", words="stream_read_error")
      for name, space in (("no space", b""), ("a space", b" "), ("spaces", b" \t "))),  # Wei-Shaw/sub2api#1471
    Row("an image in several data lines", b'data: {"type": "image_generation.completed", "b64_json": "' + B64[:200].encode()
        + b"\ndata: " + B64[200:400].encode() + b"\ndata:" + B64[400:].encode() + b'"}\n\n', request=STREAM),
    Row("tokens of the image tool", sse({"type": "response.output_item.done", "item": {"type": "image_generation_call",
        "status": "generating", "result": B64}}, {"type": "response.completed", "response": {"output": [], "usage":
        {"input_tokens": 10, "output_tokens": 196, "total_tokens": 206}}}), request=STREAM, tokens=206),
    # CookSleep/gpt_image_playground#70: "generating" though it is whole
    Row("a billing limit of the channel's account", error("billing_hard_limit_reached", "Billing hard limit has been reached",
        type="invalid_request_error", param=None), status=400, headers=ID, kind=Kind.QUOTA, billed="no",
        words="support to check the channel"),  # dfinke/PowerShellAI#127
    Row("an organization that is not verified", error(None, "Your organization must be verified to use the model "
        "`gpt-image-2`.", type="invalid_request_error"), status=403, headers=ID, kind=Kind.ACCESS, billed="no",
        words="must be verified"),  # receptron/mulmocast-app#1090
    Row("an unknown parameter", error("unknown_parameter", "Unknown parameter: 'size'.", type="invalid_request_error",
        param="size"), status=400, headers=ID, kind=Kind.REQUEST, billed="no",
        words="Unknown parameter: 'size'"),  # GetfroggyHoe/universal-immersion-engine#5
    Row("a timeout of the edge, as a web page", b"<!DOCTYPE html><title>x | 524: A timeout occurred</title>"
        b"<span>Error 524</span>", status=524, headers={"CF-RAY": "9b1c74756-IAD", "Server": "cloudflare", "Content-Type":
        "text/html"}, kind=Kind.UNKNOWN_OUTCOME, billed="unknown", words="9b1c74756-IAD"),  # chatboxai/chatbox#2937
    Row("images of one item, by their old name", doc({"images": [B64], "parameters": {}, "info": ""})),  # zhaobenny/bz-cogs#49
    Row("plain text instead of JSON", b"Billing hard limit has been reached", status=500, kind=Kind.UNKNOWN_OUTCOME,
        billed="unknown"),  # adrianhajdin/project_ai_mern_image_generation#35
]  # fmt: skip

HTML = {**ID, "Content-Type": "text/html; charset=UTF-8"}
LABELS = [
    Row("an image, labelled HTML", data(ITEM, usage=USAGE), headers=HTML, tokens=206),
    Row("a task, labelled HTML", data({"status": "submitted", "task_id": "t1"}), headers=HTML, kind=Kind.REPLY, words="t1"),
    Row("no image, labelled HTML", data(usage=USAGE), headers=HTML, kind=Kind.REPLY, tokens=206),
    Row("nothing, labelled HTML", b"", headers=HTML, kind=Kind.BASE_URL, billed="unknown"),
    Row("a page, labelled HTML", b"<!doctype html><title>JojoKey</title>", headers=HTML, kind=Kind.BASE_URL, billed="no"),
]  # fmt: skip

ENCODINGS = [
    *(
        Row(f"plain {name}, labelled {label}", body, headers={**ID, "Content-Encoding": label}, tokens=206, request=request)
        for label in ("gzip", "x-gzip", "GZIP", "deflate", "br", "zstd")
        for name, body, request in (
            ("JSON", data(ITEM, usage=USAGE), None),
            ("indented JSON", b" \n" + json.dumps({"data": [ITEM], "usage": USAGE}, indent=2).encode(), None),
            ("stream", sse(partial(), completed(usage=USAGE)), STREAM),
        )
    ),
    Row("plain words of an error, labelled gzip", error("sensitive_words_detected", "用户敏感词检测不通过"), status=500,
        headers={**ID, "Content-Encoding": "gzip"}, kind=Kind.CONTENT, billed="no", words="用户敏感词检测不通过"),
    Row("plain fee, labelled gzip", error("violation_fee.grok.csam"), status=403, headers={**ID, "Content-Encoding": "gzip"},
        kind=Kind.CONTENT, billed="yes"),
    Row("plain text, labelled gzip", b"panic", status=500, headers={**ID, "Content-Encoding": "gzip"}, kind=Kind.OVERLOADED,
        billed="no", words="panic"),
    Row("gzip", gzip.compress(data(ITEM, usage=USAGE)), headers={**ID, "Content-Encoding": "gzip"}, tokens=206),
    Row("deflate", zlib.compress(data(ITEM, usage=USAGE)), headers={**ID, "Content-Encoding": "deflate"}, tokens=206),
    Row("gzip without a label", gzip.compress(data(ITEM, usage=USAGE)), tokens=206),
    *(Row(f"gzip, labelled {label}", gzip.compress(data(ITEM, usage=USAGE)), headers={"Content-Encoding": label}, tokens=206)
      for label in ("br", "zstd", "identity", "gzip, identity", "identity, gzip", "utf-8")),
    Row("gzip in single bytes, without a label", chunked(*(bytes([byte]) for byte in gzip.compress(data(ITEM, usage=USAGE)))),
        raw=True, tokens=206),
    Row("gzip of deflate", gzip.compress(zlib.compress(GOOD)), headers={"Content-Encoding": "deflate, gzip"}, tokens=206),
    Row("a gzipped error without a label", gzip.compress(error("content_filter", "filtered")), status=400, headers=ID,
        kind=Kind.CONTENT, billed="no", words="filtered"),
    Row("truncated gzip", gzip.compress(data(ITEM, usage=USAGE))[:40], headers={**ID, "Content-Encoding": "gzip"},
        kind=Kind.REPLY),
    Row("nothing, labelled gzip", b"", headers={**ID, "Content-Encoding": "gzip"}, kind=Kind.REPLY),
]  # fmt: skip

UTF_16 = json.dumps({"data": [ITEM]}).encode("utf-16")
BODIES = [
    *(Row(f"{kind}{name}", body if not pieces else chunked(*(bytes([byte]) for byte in body)), raw=pieces, images=1)
      for kind, body in (("PNG", PNG), ("JPEG", JPEG), ("WebP", WEBP)) for name, pieces in (("", False), (", in bytes", True))),
    Row("PNG for a stream", PNG, headers={"Content-Type": "image/png"}, request=STREAM, images=1),  # BerriAI/litellm#5013
    Row("PNG, and a Content-Length that is too long", ok_head(PNG).replace(b"Content-Length: ", b"Content-Length: 9"), raw=True,
        images=1),
    Row("one of two", PNG, request=TWO, words="1 of 2 requested images arrived"),
    Row("a truncated PNG", PNG[:-20], kind=Kind.REPLY, words="image 1 is a truncated image/png", never="IHDR"),
    Row("an interrupted PNG", ok_head(PNG)[:-20], raw=True, kind=Kind.REPLY, words="truncated", never="IHDR"),
    Row("AVIF", base64.b64decode(AVIF), kind=Kind.REPLY, words="image 1 is an AVIF image", never="ftyp"),
    Row("JSON in UTF-16", UTF_16, kind=Kind.REPLY, words="image 1 is not a PNG, JPEG or WebP image", never="V B O R"),
    Row("JSON in UTF-16 without its mark", UTF_16[2:], kind=Kind.REPLY, never="V B O R"),
    Row("an error in UTF-16", error("content_filter", "filtered").decode().encode("utf-16"), status=400, headers=ID,
        kind=Kind.CONTENT, billed="no", words="filtered"),
    Row("PNG with an error's status", PNG, status=500, headers=ID, kind=Kind.OVERLOADED, billed="no", never="IHDR"),
    Row("PNG without a head", PNG, raw=True, kind=Kind.UNKNOWN_OUTCOME, billed="unknown", words="is not HTTP", never="PNG"),
    Row("almost WebP", b"RIF", kind=Kind.REPLY, words="RIF"),
    Row("text that begins like WebP", b"RI: no image", kind=Kind.REPLY, words="RI: no image"),
]  # fmt: skip

BLANK = {"message": "", "type": "", "param": "", "code": None}
LINK = {"url": "/own/fox.png", "b64_json": ""}
PART = "image_generation.partial_succeeded"
SETS = [
    Row("a blank error beside a link", data(LINK, usage=USAGE, error=BLANK), tokens=206),
    Row("a blank error beside base64", data(ITEM, usage=USAGE, error=BLANK), tokens=206),
    Row("an error beside a link", data(LINK, usage=USAGE, error={"message": "1 of 2 was blocked", "code": "x"}),
        request=ImageRequest("a fox", n=2), tokens=206, words="1 of 2 was blocked"),
    Row("an error beside a list of links", doc({"data": ["/own/fox.png"], "error": {"message": "1 of 2 was blocked"}}),
        request=ImageRequest("a fox", n=2), words="1 of 2 was blocked"),
    Row("an error beside a link that is gone", data({"url": "/own/gone.png"}, error={"message": "1 of 2 was blocked"}),
        request=ImageRequest("a fox", n=2), kind=Kind.REPLY, words="/own/gone.png"),
    Row("an error with a link to its documentation", doc({"error": {"message": "no", "code": "x", "url": "/own/fox.png"},
        "url": "/own/fox.png"}), kind=Kind.UNKNOWN_OUTCOME, billed="unknown", words="no"),
    Row("a part of a set, as a link", sse({"type": PART, "image_index": 0, "url": "/own/fox.png"},
        {"type": "image_generation.completed", "usage": USAGE}), request=STREAM, tokens=206),
    Row("a part of a set, as base64", sse({"type": PART, "image_index": 0, "b64_json": B64},
        {"type": "image_generation.completed", "usage": USAGE}), request=STREAM, tokens=206),
    Row("a part of a set failed", sse({"type": PART, "image_index": 0, "b64_json": B64}, {"type":
        "image_generation.partial_failed", "image_index": 1, "error": {"code": "x", "message": "it was blocked"}},
        {"type": "image_generation.completed", "usage": USAGE}), request=ImageRequest("a fox", n=2, stream=True), tokens=206,
        words="it was blocked"),
]  # fmt: skip

TABLES = {
    "interim": INTERIM, "envelopes": ENVELOPES, "base64": BASE64, "beginnings": BEGINNINGS, "prefixes": PREFIXES, "streams": STREAMS, "chats": CHATS, "previews": PREVIEWS,
    "stream errors": STREAM_ERRORS, "framing": FRAMING, "usage": NORMAL_USAGE, "links": LINKS, "tasks": TASKS, "types": TYPES,
    "labels": LABELS, "encodings": ENCODINGS, "bodies": BODIES, "sets": SETS, "words": WORDS, "advice": ADVICE, "classes": CLASSES, "relays": RELAYS, "different": DIFFERENT, "slots": SLOTS, "reports": REPORTS,
}  # fmt: skip


@dataclass
class Outcome:
    generation: Generation | None
    error: Img2Error | None
    posts: int
    facts: list[tuple[str, str]]


@pytest.fixture(autouse=True)
def _no_retry_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "WAIT", 0.0)


def server_of(row: Row) -> Callable[[Exchange], None]:
    fetched: list[str] = []

    def behave(exchange: Exchange) -> None:
        target = exchange.request.target.partition("?")[0].removeprefix("/v1/images")
        fetched.append(target)
        if exchange.request.method == "POST":
            own = f"http://{exchange.request.headers['host']}".encode()
            body = row.body.replace(b"GATEWAY", own)
            exchange.send(body) if row.raw else exchange.answer(row.status, body, **(row.headers or {}))
        elif target == "/own/later.png" and fetched.count(target) < 3:
            exchange.answer(404)
        elif target == "/own/part.png":
            exchange.answer(206, PNG)
        elif target in ("/own/fox.png", "/own/later.png"):
            exchange.answer(200, PNG)
        else:
            exchange.answer(403 if "forbidden" in target else 404)

    return behave


def play(row: Row) -> Outcome:
    facts: list[tuple[str, str]] = []
    with Server(server_of(row)) as server, Client(TOKEN, server.url, read_timeout=5) as client:
        generation, failure = None, None
        try:
            generation = client.generate(
                row.request or ImageRequest("a fox"), on_fact=lambda *fact: facts.append(fact)
            )
        except Img2Error as error:
            failure = error
        posts = sum(1 for request in server.requests if request.method == "POST")
    return Outcome(generation, failure, posts, facts)


ROWS = [pytest.param(row, id=f"{table}: {row.name}") for table, members in TABLES.items() for row in members]


@pytest.mark.parametrize("row", ROWS)
def test_reported_response_has_expected_outcome(row: Row) -> None:
    outcome = play(row)
    generation, error = outcome.generation, outcome.error
    assert outcome.posts == row.posts
    if row.kind is None:
        assert generation is not None, str(error)
        assert row.images in (None, len(generation.images))
        for image in generation.images:
            image.file.file.seek(0)
            assert image.file.file.read() != BLURRED
        message = " ".join(generation.warnings)
        usage = generation.usage
        generation.close()
    else:
        assert error is not None, "the image arrived"
        assert (error.kind, error.billed) == (row.kind, row.billed), str(error)
        message, usage = str(error), error.usage
        for image in error.salvaged:
            image.file.close()
    assert (usage or {}).get("total_tokens") == row.tokens
    for word in filter(None, row.words.split("|")):
        assert word in message
    assert not row.never or row.never not in message
    assert TOKEN not in message
    assert B64[:60] not in message


def test_binary_body_of_unknown_type_is_kept(tmp_path: Path) -> None:
    with (
        Server(lambda exchange: exchange.answer(200, UTF_16)) as server,
        Client(TOKEN, server.url) as client,
        pytest.raises(Img2Error) as caught,
    ):
        client.generate(ImageRequest("a fox"), lambda index: ImageFile(tmp_path / f"{index}.part"))
    assert str(tmp_path / "0.bin") in str(caught.value)
    assert (tmp_path / "0.bin").read_bytes() == UTF_16


@pytest.mark.parametrize("marked", [{"partial": True, **BLURRED_ITEM}, {**BLURRED_ITEM, "partial": True}])
def test_preview_outside_of_events_is_kept_as_one(tmp_path: Path, marked: dict[str, Any]) -> None:
    with (
        Server(lambda exchange: exchange.answer(200, doc({"data": [marked]}))) as server,
        Client(TOKEN, server.url) as client,
        pytest.raises(Img2Error),
    ):
        client.generate(ImageRequest("a fox"), lambda index: ImageFile(tmp_path / f"{index}.part"))
    assert [path.name for path in tmp_path.iterdir()] == ["0.preview"]


def test_each_table_of_reports_has_three_rows() -> None:
    assert all(len(members) >= 3 for members in TABLES.values())


def test_task_id_is_reported_and_set_on_error() -> None:
    outcome = play(TASKS[0])
    assert outcome.error is not None
    assert outcome.error.task_id == "t1"
    assert ("task_id", "t1") in outcome.facts


def test_address_of_a_task_is_reported() -> None:
    headers = {"Location": "/v1/tasks/t1?sig=s3cret"}
    outcome = play(Row("", b"", status=202, headers=headers))
    assert outcome.error is not None
    assert outcome.error.task_id == "t1"
    facts = dict(outcome.facts)
    assert facts["task_id"] == "t1"
    assert facts["link"].startswith("http://127.0.0.1:")
    assert facts["link"].endswith("/v1/tasks/t1?sig=s3cret")


def test_lost_link_is_complete_on_error() -> None:
    outcome = play(next(row for row in LINKS if row.name == "404 for good"))
    assert outcome.error is not None
    (link,) = outcome.error.links
    assert link.endswith("/own/gone.png?Signature=s3cret")
    assert ("link", link) in outcome.facts
