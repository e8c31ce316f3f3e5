"""Responses that real gateways and proxies have sent, although no documentation describes them."""

from __future__ import annotations

import base64
from collections.abc import Callable

from airflow_provider_jojokey.sandbox.bodies import Call
from airflow_provider_jojokey.sandbox.cases import odd_replies as odd
from airflow_provider_jojokey.sandbox.cases.case import Case, Origin
from airflow_provider_jojokey.sandbox.wire import Reply


def _odd(
    name: str, summary: str, respond: Callable[[Call], Reply], *, status: int = 200, good: bool = True
) -> Case:
    return Case(name, status, True, "upstream", summary, respond, good=good, odd=good)


def _rejected(
    name: str,
    status: int,
    summary: str,
    respond: Callable[[Call], Reply],
    *,
    origin: Origin = "gateway",
    billed: bool = False,
) -> Case:
    return Case(name, status, billed, origin, summary, respond)


def _translated(images: list[str], old: str, new: str) -> list[dict[str, str]]:
    return odd.items([image.translate(str.maketrans(old, new)) for image in images])


_FLAGGED = {"error": {"code": "content_filter", "message": "This image was filtered"}}

ODD_REPLIES = [
    _odd("interim_102", "three 102 Processing before the response",
         odd.with_reply(odd.document(odd.plain), interim=(102, 102, 102))),
    _odd("interim_103", "a 103 Early Hints before the response",
         odd.with_reply(odd.document(odd.plain), interim=(103,))),
    _odd("data_object", "data is an object, not a list",
         odd.document(lambda call, images: {"data": odd.items(images)[0] if len(images) == 1 else odd.items(images)})),
    _odd("root_list", "the list of images is the whole document", odd.document(lambda call, images: odd.items(images))),
    _odd("images_list", "images instead of data", odd.document(lambda call, images: {"images": odd.items(images)})),
    _odd("bare_images", "images contains bare base64", odd.document(lambda call, images: {"images": images})),
    _odd("nested_data", "code, and data inside data",
         odd.document(lambda call, images: {"code": 0, "data": odd.plain(call, images)})),
    _odd("status_201", "a 201 with the images", odd.document(odd.plain, 201), status=201),
    _odd("status_202", "a 202 with the images", odd.document(odd.plain, 202), status=202),
    _odd("b64_url_safe", "base64 in the URL-safe alphabet",
         odd.document(lambda call, images: {"data": _translated(images, "+/", "-_")})),
    _odd("b64_unpadded", "base64 without its padding",
         odd.document(lambda call, images: {"data": odd.items([image.rstrip("=") for image in images])})),
    _odd("bom", "a byte order mark first", odd.document(odd.plain, before=b"\xef\xbb\xbf")),
    _odd("newline_pings", "line breaks first, to keep the connection alive",
         odd.document(odd.plain, before=b"\n\r\n\n")),
    _odd("json_lines", "a preview and the images as JSON lines", odd.json_lines),
    _odd("relative_link", "links relative to the gateway", odd.linked(odd.published)),
    _odd("late_link", "links that return 404 twice at first", odd.linked(odd.published_late)),
    _odd("usage_text", "usage as strings",
         odd.with_usage(lambda usage: {name: str(value) for name, value in usage.items() if isinstance(value, int)})),
    _odd("usage_chat", "usage under the names of the chat API", odd.with_usage(lambda usage: {
        "prompt_tokens": usage["input_tokens"], "completion_tokens": float(usage["output_tokens"])})),
    _odd("usage_zero", "all usage is zero, which means unknown", odd.with_usage(lambda usage: dict.fromkeys(usage, 0))),
    _odd("second_document", "another JSON document after the response",
         odd.document(odd.plain, after=b'{"late": true}')),
    _odd("no_last_chunk", "the body is complete, but its last chunk is missing",
         odd.with_reply(odd.document(odd.plain), framing="chunked", whole=False, end="fin")),
    _odd("long_content_length", "the body is complete, but its Content-Length is too large",
         odd.with_reply(odd.document(odd.plain), extra_length=99, end="fin")),
    _odd("sse_link", "a completed event with a link", odd.stream(lambda call, images: [
        {"type": "image_generation.completed", "url": odd.published(call, index)} for index in range(call.request.n)])),
    _odd("sse_edit", "a preview as the edits endpoint sends it, then the images",
         odd.stream(odd.edit_preview, odd.completed)),
    _odd("sse_cr", "lines that end in a carriage return", odd.stream(odd.edit_preview, odd.completed, end="\r")),
    _odd("sse_open", "a complete stream; the connection stays open",
         odd.stream(odd.completed, whole=False, hang=True)),
    _odd("wrong_size", "images of a different size", odd.resized, good=False),
    _odd("one_flagged", "the last image is replaced by an error", odd.document(
        lambda call, images: {**odd.plain(call, images), "data": [*odd.items(images)[:-1], _FLAGGED]}), good=False),
    _odd("avif", "an image of an unsupported type", odd.document(
        lambda call, images: {"data": odd.items([base64.b64encode(odd.AVIF).decode()] * call.request.n)}), good=False),
    _odd("cut_image", "base64 of an incomplete image", odd.document(
        lambda call, images: {"data": odd.items([image[: len(image) // 8 * 4] for image in images])}), good=False),
    _odd("task", "an asynchronous task instead of images", odd.document(
        lambda call, images: {"code": 200, "data": [{"status": "submitted", "task_id": f"task_{call.request_id}"}]}),
        good=False),
    _odd("task_202", "the same with a 202", odd.document(
        lambda call, images: {"data": {"task_id": f"task_{call.request_id}", "status": "queued"}}, 202),
        status=202, good=False),
    _odd("sse_flat_error", "an event of type error with its message at the root", odd.stream(
        odd.edit_preview,
        lambda call, images: {"type": "error", "code": "server_error", "message": "The model failed"}), good=False),
    _odd("sse_edit_only", "a stream that ends after a preview", odd.stream(odd.edit_preview), good=False),
]  # fmt: skip

ODD_ERRORS = [
    _rejected("relay_429", 429, "a rate limit, reported by a proxy that retries",
             odd.relayed(429, "429", "litellm.RateLimitError: too many requests"), origin="network"),
    _rejected("relay_503", 503, "a failure of a proxy that retries; an earlier attempt was billed",
             odd.relayed(503, "model_not_found", "No available channel"), origin="network", billed=True),
    _rejected("relay_budget", 429, "the budget of a proxy is exhausted",
             odd.relayed(429, "429", "Budget has been exceeded!", "budget_exceeded"), origin="network"),
    _rejected("relay_response_format", 400, "a proxy does not know response_format",
             odd.relayed(400, "400", "litellm.UnsupportedParamsError: response_format"), origin="network"),
    _rejected("quoted_id", 503, "a failure without the gateway's header that quotes a request ID",
             odd.relayed(503, "model_not_found", "No available channel", headers={"Content-Type": "application/json"}),
             origin="network", billed=True),
    *[_rejected(f"unmarked_{status}", status, "a failure without the gateway's header, which proves nothing",
               odd.body(status, {"message": "Failed"}), origin="network", billed=True) for status in (424, 425, 499)],
    _rejected("fastapi_422", 422, "an error in the format of FastAPI",
             odd.body(422, {"detail": [{"loc": ["body", "size"], "msg": "size is not supported"}]}), origin="network"),
    _rejected("policy_403", 403, "an error with its message at the root",
             odd.body(403, {"message": "Forbidden by policy X"}), origin="network"),
    _rejected("content_filter", 400, "a content filter", odd.error(400, "content_filter", "The prompt was filtered")),
    _rejected("content_filter_azure", 400, "the same, in the format of Azure", odd.error(400, "contentFilter")),
    _rejected("inspection_failed", 400, "the same, in the format of Alibaba Cloud",
             odd.error(400, "DataInspectionFailed")),
    _rejected("entitlement", 403, "the plan does not cover the request", odd.error(403, "entitlement_exhausted")),
    _rejected("model_price_error", 500, "the model has no price: only the gateway's administrator can fix it",
             odd.error(500, "model_price_error")),
    _rejected("channel_invalid_key", 401, "the key of the gateway's channel was rejected",
             odd.error(401, "invalid_api_key", "Incorrect API key provided", "invalid_request_error")),
    _rejected("channel_no_key", 500, "the channel has no key left", odd.error(500, "channel:no_available_key")),
    _rejected("deployment_missing", 404, "the channel's deployment does not exist",
             odd.error(404, "DeploymentNotFound")),
    _rejected("retry_after_two", 429, "two delays in one header", odd.error(429, "", Retry_After="1, 2")),
    _rejected("retry_after_ms", 429, "the delay in milliseconds", odd.error(429, "", retry_after_ms="1500")),
]  # fmt: skip
