"""Responses with status 200: with all images, with some, or with none; as JSON or as an event stream."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from airflow_provider_jojokey.sandbox.bodies import (
    HTML,
    JSON,
    WEB_APP,
    Call,
    Shape,
    StreamFault,
    gateway_headers,
    images_reply,
)
from airflow_provider_jojokey.sandbox.cases.case import Case
from airflow_provider_jojokey.sandbox.wire import Reply


def _body(call: Call, *, body: bytes, content_type: str = JSON) -> Reply:
    return Reply(200, gateway_headers(call.request_id, content_type), [body] if body else [])


_ERROR_IN_200 = (
    b'{"error":{"message":"The upstream is busy","type":"upstream_error","param":"","code":"server_error"}}'
)


def _shaped(name: str, summary: str, *, good: bool = False, **shape: Any) -> Case:
    respond = partial(images_reply, shape=Shape(**shape))
    return Case(name, 200, True, "upstream", summary, respond, good=good)


BAD_REPLIES = [
    Case("error_in_200", 200, True, "upstream", "an error inside a 200", partial(_body, body=_ERROR_IN_200)),
    Case("html_in_200", 200, False, "gateway", "a web page inside a 200",
         partial(_body, body=WEB_APP, content_type=HTML)),
    Case("empty_body", 200, True, "upstream", "a 200 without a body", partial(_body, body=b"")),
    _shaped("no_data", "JSON without the field data", data="missing"),
    _shaped("null_data", "data is null", data="null"),
    _shaped("empty_data", "data is an empty list", data="empty"),
    _shaped("fewer_images", "one image less than requested", fewer=1),
    _shaped("empty_b64", "b64_json is an empty string", item="empty"),
    _shaped("bad_base64", "b64_json is not base64", item="bad"),
    _shaped("not_an_image", "b64_json is base64 of a sentence", item="text"),
    _shaped("url_missing", "the url of the image returns 404", item="url_missing"),
    _shaped("url_elsewhere", "the url points to another host: to=ADDRESS", item="url_elsewhere"),
    _shaped("truncated", "breaks off after truncate_after=1 complete images",
            truncated="after"),
    _shaped("truncated_mid_image", "breaks off inside an image, after truncate_after=0", truncated="inside"),
    _shaped("stalls", "stops inside an image; the connection stays open", truncated="inside", hang=True),
]  # fmt: skip

_DATA_LAST = ("created", "background", "output_format", "quality", "size", "usage", "data")
GOOD_REPLIES = [
    Case("ok", 200, True, "upstream", "a good response", partial(images_reply, shape=Shape()), good=True),
    _shaped("chunked", "a chunked body", good=True, framing="chunked"),
    _shaped("close_delimited", "the end of the connection is the end of the body", good=True, framing="close"),
    _shaped("gzip", "the body is compressed", good=True, gzip=True),
    _shaped("url_reply", "a url on the gateway's host instead of b64_json; it needs no token", good=True,
            item="url"),
    _shaped("url_data_uri", "the url is a data: URI", good=True, item="url_data"),
    _shaped("data_uri", "b64_json starts with data:image/…;base64,", good=True, item="data_uri"),
    _shaped("escaped_base64", "each / in the base64 is written \\/", good=True, item="escaped"),
    _shaped("converted_channel", "a converted channel: empty url, no usage, created last", good=True, item="converted",
            keys=("data", "created")),
    _shaped("usage_first", "usage comes before the images", good=True,
            keys=("usage", "created", "data", "background", "output_format", "quality", "size")),
    _shaped("data_last", "the images come last", good=True, keys=_DATA_LAST),
    _shaped("whitespace", "spaces and line breaks wherever JSON allows them", good=True, spaces=True),
    _shaped("unknown_fields", "unknown fields, one of which contains another data list", good=True,
            unknown_fields=True),
    _shaped("null_error", "the field error is null", good=True, keys=("error", "created", "data", "usage")),
    _shaped("no_usage", "usage is missing", good=True, keys=("created", "data")),
    _shaped("wrong_content_type", "good JSON with the type text/plain", good=True, content_type="text/plain"),
]  # fmt: skip


def _stream(name: str, fault: StreamFault, summary: str) -> Case:
    return Case(
        name, 200, True, "upstream", summary, partial(images_reply, shape=Shape()), stream_fault=fault
    )


STREAMS = [
    replace(_stream("sse", "none", "a good event stream, even without stream: true"), good=True),
    _stream("sse_broken", "broken", "the stream breaks off inside the last event: end=fin|rst"),
    _stream("sse_hang", "hang", "the stream stops inside the last event; the connection stays open"),
    _stream("sse_raw_error", "raw_error", "a bare JSON error in the middle of the stream"),
    _stream("sse_error_event", "error_event", "an event named error"),
    _stream("sse_no_completed", "no_completed", "the stream ends regularly without its last image"),
]
