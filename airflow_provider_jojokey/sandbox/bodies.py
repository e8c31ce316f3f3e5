"""Build response bodies: errors of the gateway, pages of Cloudflare, images as JSON or as an event stream."""

from __future__ import annotations

import base64
import gzip
import html
import json
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from airflow_provider_jojokey.sandbox.directives import Directive
from airflow_provider_jojokey.sandbox.validation import Usage, ValidRequest
from airflow_provider_jojokey.sandbox.wire import Ending, Framing, Reply

JSON = "application/json; charset=utf-8"
HTML = "text/html; charset=utf-8"

WEB_APP = b"""<!doctype html>
<html lang="zh-CN">
<head><meta charset="utf-8"><title>JojoKey (sandbox)</title></head>
<body><div id="root"></div><noscript>This is the gateway's web application, not its API.</noscript></body>
</html>
"""


@dataclass(frozen=True)
class Call:
    """A valid request with everything that a case needs to respond."""

    request: ValidRequest
    usage: Usage
    request_id: str
    created: int
    """Unix seconds."""
    accept: str
    """The request's Accept header."""
    base_url: str
    directive: Directive
    image: Callable[[int], bytes]
    """Draws the image of this index."""
    preview: Callable[[int, int], bytes]
    """Draws an unfinished image: the index of the image, and the number of the preview."""
    publish: Callable[[bytes, str], str]
    """Stores an image with its content type on the gateway's host, and returns its URL."""
    publish_late: Callable[[bytes, str], str]
    """The same, but the first two requests for the URL get a 404."""

    @property
    def chinese(self) -> bool:
        """Whether the gateway's messages are in Chinese."""
        return self.directive.text("lang") == "zh"


# --- errors -----------------------------------------------------------------------------------------------------


def gateway_headers(request_id: str, content_type: str = JSON) -> dict[str, str]:
    """Return the headers of the gateway's own responses."""
    return {"Content-Type": content_type, "X-Oneapi-Request-Id": request_id}


def error_reply(
    request_id: str,
    status: int,
    message: str,
    *,
    code: str = "",
    kind: str = "new_api_error",
    param: str | None = None,
    headers: dict[str, str] | None = None,
) -> Reply:
    """Return an error in the gateway's format. Errors relayed from the upstream also have ``param``."""
    error: dict[str, Any] = {"message": f"{message} (request id: {request_id})", "type": kind}
    if param is not None:
        error["param"] = param
    error["code"] = code
    body = json.dumps({"error": error}, ensure_ascii=False).encode()
    return Reply(status, {**gateway_headers(request_id), **(headers or {})}, [body])


_CLOUDFLARE: dict[int, tuple[str, bool, int | None]] = {
    502: ("Bad gateway", True, 60),
    504: ("Gateway time-out", True, 60),
    520: ("Web server is returning an unknown error", True, 60),
    521: ("Web server is down", True, 120),
    522: ("Connection timed out", True, 120),
    523: ("Origin is unreachable", True, 120),
    524: ("A timeout occurred", True, 120),
    525: ("SSL handshake failed", False, None),
    526: ("Invalid SSL certificate", False, None),
    1010: ("Access denied: the browser's signature is banned", False, None),
    1020: ("Access denied: a firewall rule blocks this request", False, None),
}


def cloudflare_reply(call: Call, error_code: int) -> Reply:
    """Return an error page of Cloudflare. It has a ray ID, but no request ID of the gateway."""
    title, retryable, retry_after = _CLOUDFLARE[error_code]
    status = error_code if error_code < 1000 else 403
    ray = secrets.token_hex(8)
    headers = {"Server": "cloudflare", "CF-RAY": f"{ray}-HKG", "Cache-Control": "private, no-store"}
    if retry_after is not None and call.directive.text("retry_after"):
        headers["Retry-After"] = call.directive.text("retry_after")
    kind = call.directive.text("body") or ("json" if "application/json" in call.accept else "html")
    if kind == "text":
        headers["Content-Type"] = "text/plain; charset=UTF-8"
        return Reply(status, headers, [f"error code: {error_code}".encode()])
    if kind == "json":
        headers["Content-Type"] = "application/problem+json"
        problem: dict[str, Any] = {
            "type": f"https://developers.cloudflare.com/support/error-{error_code}/",
            "title": f"Error {error_code}: {title}",
            "status": status,
            "detail": f"{title}. The sandbox generated this page.",
            "error_code": error_code,
            "ray_id": ray,
            "cloudflare_error": True,
            "retryable": retryable,
        }
        if retry_after is not None:
            problem["retry_after"] = retry_after
        return Reply(status, headers, [json.dumps(problem).encode()])
    headers["Content-Type"] = "text/html; charset=UTF-8"
    page = (
        f"<!DOCTYPE html>\n<html><head><title>jojokey.sandbox | {error_code}: {html.escape(title)}</title></head>"
        f"<body><h1>Error {error_code}</h1><p>{html.escape(title)}</p><p>Cloudflare Ray ID: {ray}</p></body></html>\n"
    )
    return Reply(status, headers, [page.encode()])


# --- images as JSON ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """How a response represents its images, or what is wrong with it."""

    item: Literal[
        "b64",
        "url",
        "url_missing",
        "url_elsewhere",
        "url_data",
        "data_uri",
        "escaped",
        "converted",
        "empty",
        "bad",
        "text",
    ] = "b64"
    data: Literal["images", "missing", "empty", "null"] = "images"
    keys: tuple[str, ...] = ("created", "data", "background", "output_format", "quality", "size", "usage")
    fewer: int = 0
    """Number of images that were requested and paid for, but are missing."""
    spaces: bool = False
    unknown_fields: bool = False
    gzip: bool = False
    content_type: str = JSON
    framing: Framing = "length"
    truncated: Literal["no", "after", "inside"] = "no"
    hang: bool = False


def images_reply(call: Call, shape: Shape) -> Reply:
    """Return the images of ``call`` as JSON."""
    pieces, ends, starts = _write(call, shape)
    headers = gateway_headers(call.request_id, shape.content_type)
    if shape.gzip:
        pieces = [gzip.compress(b"".join(pieces), 1)]
        headers["Content-Encoding"] = "gzip"
    reply = Reply(
        200, headers, pieces, framing=_framing(call, shape.framing), drip=call.directive.number("drip")
    )
    cut = _cut(call, shape, sum(map(len, pieces)), ends, starts)
    if cut is None:
        return reply
    if shape.hang:
        return replace(reply, cut=cut, hang=True)
    return replace(reply, cut=cut, end=_ending(call))


def _framing(call: Call, default: Framing) -> Framing:
    requested = call.directive.text("framing")
    return {"length": "length", "chunked": "chunked", "close": "close"}.get(requested, default)  # type: ignore[return-value]


def _ending(call: Call) -> Ending:
    return "rst" if call.directive.text("end") == "rst" else "fin"


def _cut(call: Call, shape: Shape, total: int, ends: list[int], starts: list[int]) -> int | None:
    """Return the number of bytes after which the body breaks off; ``None`` if it is complete."""
    if call.directive.text("cut"):
        return min(total, int(call.directive.number("cut")))
    requested = call.directive.text("truncate_after")
    if shape.truncated == "no" and not requested:
        return None
    whole = int(requested) if requested else {"after": 1, "inside": 0}.get(shape.truncated, 0)
    if shape.truncated != "inside":
        # With truncate_after=0 the response ends right after the opening bracket of the list.
        return starts[0] if whole < 1 and starts else ends[min(whole, len(ends)) - 1] if ends else total // 2
    if whole >= len(ends):
        return total - 1
    return (starts[whole] + ends[whole]) // 2


def _write(call: Call, shape: Shape) -> tuple[list[bytes], list[int], list[int]]:
    """Return the JSON in pieces, and the offsets at which each image ends and starts.

    The JSON is written by hand: no JSON library produces the variants that real gateways send, and megabytes of base64
    are not copied this way.
    """
    request = call.request
    comma, colon = (b" ,\n  ", b" : ") if shape.spaces else (b",", b":")
    pieces: list[bytes] = [b"\r\n  {\n  " if shape.spaces else b"{"]
    ends: list[int] = []
    starts: list[int] = []
    simple: dict[str, Any] = {
        "created": call.created,
        "background": "transparent" if request.background == "transparent" else "opaque",
        "output_format": request.output_format,
        "quality": request.quality,
        "size": request.size,
        "usage": call.usage.to_json(),
        "error": None,
        "x_unknown": {"data": [{"b64_json": "bm90IGFuIGltYWdl"}], "note": 'a "quoted" \\ note'},
    }
    keys = shape.keys + (("x_unknown",) if shape.unknown_fields else ())
    if shape.data == "missing":
        keys = tuple(key for key in keys if key != "data")
    for position, key in enumerate(keys):
        if position:
            pieces.append(comma)
        pieces.append(b'"' + key.encode() + b'"' + colon)
        if key != "data":
            pieces.append(json.dumps(simple[key]).encode())
        elif shape.data == "null":
            pieces.append(b"null")
        else:
            pieces.append(b"[")
            count = 0 if shape.data == "empty" else max(0, request.n - shape.fewer)
            for index in range(count):
                if index:
                    pieces.append(comma)
                starts.append(sum(map(len, pieces)))
                pieces += _item(call, shape, index, colon, comma)
                ends.append(sum(map(len, pieces)))
            pieces.append(b"]")
    pieces.append(b"\n}\n\n " if shape.spaces else b"}")
    return pieces, ends, starts


def _item(call: Call, shape: Shape, index: int, colon: bytes, comma: bytes) -> list[bytes]:
    """Return one entry of ``data``."""
    kind = f"image/{call.request.output_format}"

    def entry(name: bytes, *value: bytes) -> list[bytes]:
        extra = (
            comma + b'"revised_prompt"' + colon + b'"a \\"revised\\" prompt"' if shape.unknown_fields else b""
        )
        return [b'{"', name, b'"', colon, b'"', *value, b'"', extra, b"}"]

    match shape.item:
        case "url":
            return entry(b"url", call.publish(call.image(index), kind).encode())
        case "url_missing":
            return entry(b"url", f"{call.base_url}/sandbox/images/gone.{call.request.output_format}".encode())
        case "url_elsewhere":
            return entry(
                b"url", call.directive.text("to", "http://169.254.169.254/latest/meta-data/").encode()
            )
        case "empty":
            return entry(b"b64_json")
        case "text":
            return entry(
                b"b64_json", base64.b64encode(b"The upstream could not draw this: please try again later.")
            )
    encoded = base64.b64encode(call.image(index))
    match shape.item:
        case "url_data":
            return entry(b"url", f"data:{kind};base64,".encode(), encoded)
        case "data_uri":
            return entry(b"b64_json", f"data:{kind};base64,".encode(), encoded)
        case "escaped":
            return entry(b"b64_json", encoded.replace(b"/", b"\\/"))
        case "bad":
            middle = len(encoded) // 2
            return entry(b"b64_json", encoded[:middle], b"!*not base64*!", encoded[middle + 3 :])
        case "converted":
            # Channels whose upstream is not OpenAI's API send this: an empty string means absent.
            names = (b'"url"', b'"b64_json"', b'"revised_prompt"')
            return [
                b"{",
                names[0],
                colon,
                b'""',
                comma,
                names[1],
                colon,
                b'"',
                encoded,
                b'"',
                comma,
                names[2],
                colon,
                b'""}',
            ]
    return entry(b"b64_json", encoded)


# --- images as an event stream ----------------------------------------------------------------------------------

StreamFault = Literal["none", "broken", "raw_error", "error_event", "no_completed", "hang"]


def stream_reply(
    call: Call, fault: StreamFault, work: Iterator[bytes], settle: Callable[[], None], done: bool
) -> Reply:
    """Return the images of ``call`` as server-sent events.

    :param fault: the fault to simulate.
    :param work: yields comments while the upstream works, and ends when it has finished.
    :param settle: charges for the images; called before the last event.
    :param done: whether the stream ends with ``data: [DONE]``.
    """
    headers = {
        **gateway_headers(call.request_id, "text/event-stream; charset=utf-8"),
        "Cache-Control": "no-cache",
        "X-Accel-Buffering": "no",
    }
    whole = fault not in ("broken", "hang")
    return Reply(
        200,
        headers,
        _events(call, fault, work, settle, done),
        framing="close" if call.directive.text("framing") == "close" else "chunked",
        whole=whole,
        end="keep" if whole else _ending(call),
        hang=fault == "hang",
    )


def _events(
    call: Call, fault: StreamFault, work: Iterator[bytes], settle: Callable[[], None], done: bool
) -> Iterator[bytes]:
    request = call.request
    yield b": PING\n\n"
    yield from work
    common = {
        "background": request.background,
        "created_at": call.created,
        "output_format": request.output_format,
        "quality": request.quality,
        "size": request.size,
    }
    # A fault in the middle of a stream needs an event before it.
    previews = request.partial_images or (1 if fault in ("raw_error", "error_event", "no_completed") else 0)
    for index in range(request.n):
        for number in range(previews):
            yield _event(
                "image_generation.partial_image",
                call.preview(index, number),
                {**common, "partial_image_index": number},
            )
            yield b": PING\n\n"
        last = index == request.n - 1
        if last and fault == "raw_error":
            settle()
            yield (
                json.dumps(
                    {
                        "error": {
                            "message": "The upstream broke off.",
                            "type": "upstream_error",
                            "code": "server_error",
                        }
                    }
                ).encode()
                + b"\n\n"
            )
            return
        if last and fault == "error_event":
            settle()
            problem = {
                "type": "error",
                "error": {"message": "The upstream broke off.", "code": "server_error"},
            }
            yield b"event: error\ndata: " + json.dumps(problem).encode() + b"\n\n"
            return
        if last and fault == "no_completed":
            break
        # Each completed event has the tokens of its own image. The first also counts the prompt.
        per_image = request.usage(1)
        usage = Usage(per_image.input_tokens if index == 0 else 0, per_image.output_tokens)
        event = _event("image_generation.completed", call.image(index), {**common, "usage": usage.to_json()})
        if last and fault in ("broken", "hang"):
            settle()
            yield event[: len(event) // 2]
            return
        if last:
            settle()
        yield event
    if fault == "no_completed":
        settle()
    if done:
        yield b"data: [DONE]\n\n"


def _event(name: str, image: bytes, fields: dict[str, Any]) -> bytes:
    rest = json.dumps(fields)[1:].encode()
    encoded = base64.b64encode(image)
    return b"".join(
        [
            b"event: ",
            name.encode(),
            b'\ndata: {"type": "',
            name.encode(),
            b'", "b64_json": "',
            encoded,
            b'", ',
            rest,
            b"\n\n",
        ]
    )
