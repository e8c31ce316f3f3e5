"""Build undocumented responses, as observed from real gateways and proxies.

A client should accept every image that was paid for, and never guess whether it was charged.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from airflow_provider_jojokey.sandbox.bodies import JSON, Call, gateway_headers
from airflow_provider_jojokey.sandbox.wire import Reply

Document = Callable[[Call, list[str]], Any]
"""Returns the JSON document of a reply, from the call and the images' base64."""

RELAY = {"x-litellm-call-id": "sandbox", "x-litellm-version": "1.106.2", "Content-Type": "application/json"}
AVIF = b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + bytes(512)


def encoded(call: Call) -> list[str]:
    """Return the base64 of all images."""
    return [base64.b64encode(call.image(index)).decode() for index in range(call.request.n)]


def items(images: list[str]) -> list[dict[str, str]]:
    """Return the entries of ``data``."""
    return [{"b64_json": image} for image in images]


def document(
    make: Document, status: int = 200, before: bytes = b"", after: bytes = b""
) -> Callable[[Call], Reply]:
    """Return a response with one JSON document.

    :param make: returns the document
    :param status: the HTTP status
    :param before: bytes in front of it
    :param after: bytes behind it
    """

    def respond(call: Call) -> Reply:
        body = json.dumps(make(call, encoded(call)), ensure_ascii=False).encode()
        return Reply(status, gateway_headers(call.request_id, JSON), [before + body + after])

    return respond


def plain(call: Call, images: list[str]) -> dict[str, Any]:
    """Return a document as documented."""
    return {"created": call.created, "data": items(images), "usage": call.usage.to_json()}


def with_reply(respond: Callable[[Call], Reply], **changes: Any) -> Callable[[Call], Reply]:
    """Return the same response with other transport options."""
    return lambda call: replace(respond(call), **changes)


def with_usage(make: Callable[[dict[str, Any]], Any]) -> Callable[[Call], Reply]:
    """Return the documented response with another usage object."""
    return document(lambda call, images: {**plain(call, images), "usage": make(call.usage.to_json())})


def linked(link: Callable[[Call, int], str]) -> Callable[[Call], Reply]:
    """Return a document with links instead of images."""
    return document(
        lambda call, images: {"data": [{"url": link(call, index)} for index in range(call.request.n)]}
    )


def published(call: Call, index: int) -> str:
    """Put an image on the gateway's host, and return its path."""
    kind = f"image/{call.request.output_format}"
    return call.publish(call.image(index), kind).removeprefix(call.base_url)


def published_late(call: Call, index: int) -> str:
    """Put an image on the gateway's host. The first two requests for it get a 404."""
    return call.publish_late(call.image(index), f"image/{call.request.output_format}")


def stream(
    *events: Callable[[Call, list[str]], Any], end: str = "\n", **changes: Any
) -> Callable[[Call], Reply]:
    """Return a response with server-sent events, then ``[DONE]``."""

    def respond(call: Call) -> Reply:
        images = encoded(call)
        lines = []
        for make in events:
            for event in _many(make(call, images)):
                name = event.get("type") if isinstance(event, dict) else None
                lines += [f"event: {name}{end}"] if name else []
                lines.append(f"data: {json.dumps(event)}{end}{end}")
        body = "".join([*lines, f"data: [DONE]{end}{end}"]).encode()
        reply = Reply(200, gateway_headers(call.request_id, "text/event-stream"), [body], framing="chunked")
        return replace(reply, **changes)

    return respond


def _many(events: Any) -> list[Any]:
    return events if isinstance(events, list) else [events]


def completed(call: Call, images: list[str]) -> list[dict[str, Any]]:
    """Return an event for each image; the last reports the usage."""
    events: list[dict[str, Any]] = [
        {"type": "image_generation.completed", "b64_json": image} for image in images
    ]
    events[-1]["usage"] = call.usage.to_json()
    return events


def edit_preview(call: Call, images: list[str]) -> dict[str, Any]:
    """Return a preview as the edits endpoint sends it."""
    preview = base64.b64encode(call.preview(0, 0)).decode()
    return {"type": "image_edit.partial_image", "b64_json": preview, "partial_image_index": 0}


def json_lines(call: Call) -> Reply:
    """Return a preview and the images as JSON Lines."""
    images = encoded(call)
    lines = [edit_preview(call, images), *completed(call, images)]
    body = "\n".join(map(json.dumps, lines)).encode() + b"\n"
    return Reply(200, gateway_headers(call.request_id, "application/x-ndjson"), [body])


def resized(call: Call) -> Reply:
    """Return images of a different size than requested."""
    from PIL import Image

    def shrink(data: bytes) -> str:
        out = io.BytesIO()
        with Image.open(io.BytesIO(data)) as image:
            image.resize((80, 80)).save(out, image.format)
        return base64.b64encode(out.getvalue()).decode()

    images = [shrink(call.image(index)) for index in range(call.request.n)]
    body = json.dumps(plain(call, images)).encode()
    return Reply(200, gateway_headers(call.request_id, JSON), [body])


def error(
    status: int, code: str, message: str = "Something is wrong", kind: str = "upstream_error", **headers: str
) -> Callable[[Call], Reply]:
    """Return an error of the gateway, with its header."""
    body = json.dumps({"error": {"message": message, "type": kind, "param": "", "code": code}}).encode()
    more = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda call: Reply(status, {**gateway_headers(call.request_id), **more}, [body])


def relayed(
    status: int, code: str, message: str, kind: str = "None", headers: dict[str, str] | None = None
) -> Callable[[Call], Reply]:
    """Return an error that a proxy in front of the gateway reports; it quotes the gateway's request ID."""

    def respond(call: Call) -> Reply:
        text = f"{message} (request id: {call.request_id})"
        body = json.dumps({"error": {"message": text, "type": kind, "param": None, "code": code}}).encode()
        return Reply(status, RELAY if headers is None else headers, [body])

    return respond


def body(status: int, value: Any) -> Callable[[Call], Reply]:
    """Return a JSON document without the gateway's header."""
    return lambda call: Reply(status, {"Content-Type": "application/json"}, [json.dumps(value).encode()])
