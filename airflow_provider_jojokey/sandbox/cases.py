"""All that the stand-in can answer: one table, which is also what ``python -m … cases`` prints.

==========================  =========================================================================================
column                      meaning
==========================  =========================================================================================
name                        what a prompt or :meth:`Gateway.behave` asks for
status                      the HTTP status that reaches the client; ``None`` if none does
billed                      whether the money is gone by default; ``billed=yes|no`` in a directive overrides it
origin                      who made the reply: the gateway (its request id is in a header), Cloudflare, or the network
==========================  =========================================================================================

The money follows the real gateway: what has reached the upstream is charged, even if the client never sees the
answer; what the gateway itself answers with an error is not charged or given back. The one exception is a fee for
breaking the rules, which is kept.
"""

# ruff: noqa: RUF001 - the gateway's messages are Chinese, with Chinese punctuation
from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from airflow_provider_jojokey.sandbox import odd
from airflow_provider_jojokey.sandbox.bodies import (
    HTML,
    JSON,
    WEB_APP,
    Call,
    Shape,
    StreamFault,
    cloudflare_reply,
    error_reply,
    gateway_headers,
    images_reply,
)
from airflow_provider_jojokey.sandbox.orders import Usage
from airflow_provider_jojokey.sandbox.wire import Reply

Origin = Literal["gateway", "upstream", "cloudflare", "network"]


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    name: str
    status: int | None
    billed: bool
    origin: Origin
    summary: str
    answer: Callable[[Call], Reply]
    stream_fault: StreamFault | None = None
    """Set where the answer is an event stream, whatever the request asked for."""
    good: bool = False
    """Whether a careful client gets its images from it."""
    odd: bool = False
    """Whether no documentation promises this reply, so that only a lenient client gets them."""
    fee_usd: float | None = None
    """What is charged where it is not the price of the images, in US dollars."""

    def charge(self, usage: Usage) -> Usage:
        """Return the tokens that are charged."""
        return usage if self.fee_usd is None else Usage(0, 0)


# --- the gateway's own errors -----------------------------------------------------------------------------------


def _gateway_error(
    call: Call,
    *,
    status: int,
    en: str,
    zh: str = "",
    code: str = "",
    kind: str = "new_api_error",
    relayed: bool = False,
) -> Reply:
    message = zh if call.chinese and zh else en
    model = call.order.model
    return error_reply(
        call.request_id,
        status,
        message.format(model=model, group="default"),
        code=code,
        kind=kind,
        param="" if relayed else None,
        headers=_retry_after(call),
    )


def _retry_after(call: Call, default: str = "") -> dict[str, str]:
    seconds = call.directive.text("retry_after", default)
    return {"Retry-After": seconds} if seconds else {}


def _rate_limited(call: Call, *, retry_after: str = "", empty: bool = False) -> Reply:
    headers = _retry_after(call, retry_after)
    if empty:
        return Reply(429, {"X-Oneapi-Request-Id": call.request_id, **headers})
    text = "请求过于频繁，请稍后再试" if call.chinese else "Too many requests, please try again later"
    return error_reply(call.request_id, 429, text, headers=headers)


def _any_error(call: Call) -> Reply:
    return error_reply(
        call.request_id,
        int(call.directive.number("status", 500)),
        call.directive.text("message", "An error made to order"),
        code=call.directive.text("code"),
        kind=call.directive.text("type", "new_api_error"),
        headers=_retry_after(call),
    )


def _error(
    name: str, status: int, summary: str, en: str, zh: str = "", *, code: str = "", relayed: bool = False,
    origin: Origin = "gateway", kind: str = "new_api_error", billed: bool = False, fee_usd: float | None = None,
) -> Case:  # fmt: skip
    answer = partial(_gateway_error, status=status, en=en, zh=zh, code=code, kind=kind, relayed=relayed)
    return Case(name, status, billed, origin, summary, answer, fee_usd=fee_usd)


_GATEWAY = [
    _error("invalid_token", 401, "the token is wrong", "Invalid token", "无效的令牌"),
    _error("token_missing", 401, "older gateways: no token was sent", "No token was provided", "未提供令牌"),
    _error("token_disabled", 401, "older gateways: the token was disabled", "This token is disabled",
           "该令牌状态不可用"),
    _error("token_expired", 401, "older gateways: the token has expired", "This token has expired", "该令牌已过期"),
    _error("token_exhausted", 401, "older gateways: the token's quota is used up", "This token's quota is used up",
           "该令牌额度已用尽"),
    _error("group_denied", 403, "the token may not use its group", "No access to group {group}",
           "无权访问 {group} 分组"),
    _error("model_denied", 403, "the token may not use the model", "This token has no access to model {model}",
           "该令牌无权访问模型 {model}"),
    _error("ip_denied", 403, "the address is not on the token's list", "Your IP is not allowed for this token",
           "您的 IP 不在令牌允许访问的列表中", code="access_denied"),
    _error("user_banned", 403, "the account is banned", "This user is banned", "用户已被封禁"),
    _error("wallet_empty", 403, "the account has no money left", "The user's quota is not sufficient",
           "用户额度不足", code="insufficient_user_quota", relayed=True),
    _error("token_quota_short", 403, "the token's quota does not cover this request",
           "The token's quota is not enough for this request", "令牌额度不足", code="pre_consume_token_quota_failed",
           relayed=True),
    _error("no_channel", 503, "no channel serves the model right now",
           "No available channel for model {model} under group {group} (distributor)",
           "分组 {group} 下模型 {model} 无可用渠道（distributor）", code="model_not_found"),
    _error("overloaded_cpu", 503, "the gateway has too little CPU", "The system is overloaded: CPU", "系统 CPU 过载",
           code="system_cpu_overloaded"),
    _error("overloaded_memory", 503, "the gateway has too little memory", "The system is overloaded: memory",
           "系统内存过载", code="system_memory_overloaded"),
    _error("overloaded_disk", 503, "the gateway has too little disk", "The system is overloaded: disk",
           "系统磁盘过载", code="system_disk_overloaded"),
    Case("rate_limited", 429, False, "gateway", "too many requests, without Retry-After", _rate_limited),
    Case("rate_limited_retry_after", 429, False, "gateway", "too many requests, Retry-After: 1",
         partial(_rate_limited, retry_after="1")),
    Case("rate_limited_empty", 429, False, "gateway", "too many requests, no body, no Retry-After",
         partial(_rate_limited, empty=True)),
    _error("bad_json", 400, "the gateway could not read the body", "The request body is not valid JSON",
           "无效的请求体"),
    _error("invalid_request", 500, "the gateway rejects a parameter", "A parameter is not valid", "请求参数无效",
           code="invalid_request", relayed=True),
    _error("sensitive_words", 500, "the gateway's word filter", "The prompt has sensitive words",
           "用户敏感词检测不通过", code="sensitive_words_detected", relayed=True),
    _error("upstream_unreachable", 500, "the gateway could not reach its upstream",
           "The upstream could not be reached", "请求上游地址失败", code="do_request_failed", relayed=True),
    _error("upstream_garbled", 500, "the gateway could not read its upstream's reply",
           "The upstream's reply could not be read", code="bad_response_body", relayed=True),
    _error("upstream_500", 500, "the upstream's own 500, passed on", "The server had an error", code="server_error",
           kind="server_error", relayed=True, origin="upstream"),
    _error("upstream_429", 429, "the upstream's rate limit, passed on", "Rate limit reached for {model}",
           code="rate_limit_exceeded", kind="requests", relayed=True, origin="upstream"),
    _error("moderation_blocked", 400, "the model's safety system refused",
           "The request was rejected by the safety system",
           code="moderation_blocked", kind="image_generation_user_error", relayed=True, origin="upstream"),
    _error("response_format_rejected", 400, "the upstream does not know response_format",
           "Unknown parameter: 'response_format'.", code="unknown_parameter", kind="invalid_request_error",
           relayed=True, origin="upstream"),
    _error("violation_fee", 403, "a fee for breaking the rules, which is kept", "Content violates the usage guidelines",
           code="violation_fee.sandbox", relayed=True, billed=True, fee_usd=0.05),
    Case("error", None, False, "gateway", "any error: status=, code=, message=, type=, retry_after=", _any_error),
]  # fmt: skip

# --- Cloudflare, proxies, the network ---------------------------------------------------------------------------


def _cloudflare_text(call: Call, error_code: int) -> Reply:
    directive = replace(call.directive, options={"body": "text", **call.directive.options})
    return cloudflare_reply(replace(call, directive=directive), error_code)


def _nginx(call: Call, *, status: int, title: str) -> Reply:
    page = (
        f"<html>\r\n<head><title>{status} {title}</title></head>\r\n<body>\r\n<center><h1>{status} {title}</h1>"
        "</center>\r\n<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n"
    )
    return Reply(status, {"Server": "nginx", "Content-Type": "text/html"}, [page.encode()])


def _cloudflare(error_code: int, billed: bool, summary: str) -> Case:
    status = error_code if error_code < 1000 else 403
    answer = partial(cloudflare_reply, error_code=error_code)
    return Case(f"cloudflare_{error_code}", status, billed, "cloudflare", summary, answer)


def _redirect(call: Call, *, status: int) -> Reply:
    target = call.directive.text("to", f"{call.base_url}/sandbox/elsewhere")
    return Reply(
        status, {"Location": target, "Content-Type": HTML}, [b"<a href='" + target.encode() + b"'>moved</a>"]
    )


def _redirect_case(status: int) -> Case:
    answer = partial(_redirect, status=status)
    return Case(f"redirect_{status}", status, False, "network", "sent elsewhere: to=ADDRESS", answer)


_NETWORK = [
    _cloudflare(502, False, "Cloudflare had no valid answer from the gateway"),
    Case("cloudflare_502_text", 502, False, "cloudflare", "the same as bare text: error code: 502",
         partial(_cloudflare_text, error_code=502)),
    _cloudflare(504, True, "Cloudflare waited too long for the gateway's network"),
    _cloudflare(520, True, "the gateway's answer was empty or broken"),
    _cloudflare(521, False, "the gateway refused the connection"),
    _cloudflare(522, False, "the connection to the gateway timed out, maybe after it was open"),
    _cloudflare(523, False, "the gateway cannot be reached"),
    _cloudflare(524, True, "longer than Cloudflare waits: the image is made and charged all the same"),
    _cloudflare(525, False, "the TLS handshake with the gateway failed"),
    _cloudflare(526, False, "the gateway's certificate is not valid"),
    _cloudflare(1010, False, "Cloudflare bans this kind of client"),
    _cloudflare(1020, False, "a firewall rule blocks this request"),
    Case("nginx_502", 502, True, "network", "a proxy's bare 502 page",
         partial(_nginx, status=502, title="Bad Gateway")),
    Case("nginx_504", 504, True, "network", "a proxy's bare 504 page",
         partial(_nginx, status=504, title="Gateway Time-out")),
    Case("reset", None, True, "network", "the connection is reset after the request was read",
         lambda call: Reply(None, end="rst")),
    Case("close", None, True, "network", "the connection is closed without a reply",
         lambda call: Reply(None, end="fin")),
    Case("hang", None, True, "network", "no reply ever comes, until the client goes away",
         lambda call: Reply(None, hang=True)),
    *[_redirect_case(status) for status in (301, 302, 307, 308)],
]  # fmt: skip

# --- 200, and yet no image --------------------------------------------------------------------------------------


def _body(call: Call, *, body: bytes, content_type: str = JSON) -> Reply:
    return Reply(200, gateway_headers(call.request_id, content_type), [body] if body else [])


_ERROR_IN_200 = (
    b'{"error":{"message":"The upstream is busy","type":"upstream_error","param":"","code":"server_error"}}'
)


def _shaped(name: str, summary: str, *, good: bool = False, **shape: Any) -> Case:
    answer = partial(images_reply, shape=Shape(**shape))
    return Case(name, 200, True, "upstream", summary, answer, good=good)


_BAD_200 = [
    Case("error_in_200", 200, True, "upstream", "an error inside a 200", partial(_body, body=_ERROR_IN_200)),
    Case("html_in_200", 200, False, "gateway", "a web page inside a 200",
         partial(_body, body=WEB_APP, content_type=HTML)),
    Case("empty_body", 200, True, "upstream", "a 200 without a body", partial(_body, body=b"")),
    _shaped("no_data", "JSON without the field data", data="missing"),
    _shaped("null_data", "data is null", data="null"),
    _shaped("empty_data", "data is an empty list", data="empty"),
    _shaped("fewer_images", "one image less than ordered", fewer=1),
    _shaped("empty_b64", "b64_json is an empty string", item="empty"),
    _shaped("bad_base64", "b64_json is not base64", item="bad"),
    _shaped("not_an_image", "b64_json is base64 of a sentence", item="text"),
    _shaped("url_missing", "the url of the image answers 404", item="url_missing"),
    _shaped("url_elsewhere", "the url points to another host: to=ADDRESS", item="url_elsewhere"),
    _shaped("truncated", "breaks off after truncate_after=1 whole images",
            truncated="after"),
    _shaped("truncated_mid_image", "breaks off inside an image, after truncate_after=0", truncated="inside"),
    _shaped("stalls", "stops inside an image and keeps the connection open", truncated="inside", hang=True),
]  # fmt: skip

# --- 200 with images, written in unusual ways -------------------------------------------------------------------

_DATA_LAST = ("created", "background", "output_format", "quality", "size", "usage", "data")
_GOOD_200 = [
    Case("ok", 200, True, "upstream", "a plain good reply", partial(images_reply, shape=Shape()), good=True),
    _shaped("chunked", "the body comes in chunks", good=True, framing="chunked"),
    _shaped("close_delimited", "the body ends with the connection", good=True, framing="close"),
    _shaped("gzip", "the body is compressed", good=True, gzip=True),
    _shaped("url_reply", "a url on the gateway's host in place of b64_json, no token needed", good=True,
            item="url"),
    _shaped("url_data_uri", "the url is a data: URI", good=True, item="url_data"),
    _shaped("data_uri", "b64_json starts with data:image/…;base64,", good=True, item="data_uri"),
    _shaped("escaped_base64", "each / in the base64 is written \\/", good=True, item="escaped"),
    _shaped("converted_channel", "a converted channel: empty url, no usage, created last", good=True, item="converted",
            keys=("data", "created")),
    _shaped("usage_first", "usage comes before the images", good=True,
            keys=("usage", "created", "data", "background", "output_format", "quality", "size")),
    _shaped("data_last", "the images come last", good=True, keys=_DATA_LAST),
    _shaped("whitespace", "blanks and line breaks wherever JSON allows them", good=True, spaces=True),
    _shaped("unknown_fields", "fields nobody knows, one of which holds another data list", good=True,
            unknown_fields=True),
    _shaped("null_error", "the field error is there and null", good=True, keys=("error", "created", "data", "usage")),
    _shaped("no_usage", "usage is missing", good=True, keys=("created", "data")),
    _shaped("wrong_content_type", "good JSON, called text/plain", good=True, content_type="text/plain"),
]  # fmt: skip


# --- event streams ----------------------------------------------------------------------------------------------


def _stream(name: str, fault: StreamFault, summary: str) -> Case:
    return Case(
        name, 200, True, "upstream", summary, partial(images_reply, shape=Shape()), stream_fault=fault
    )


_STREAMS = [
    replace(_stream("sse", "none", "a good event stream, even if none was asked for"), good=True),
    _stream("sse_broken", "broken", "the stream breaks off inside the last event: end=fin|rst"),
    _stream("sse_hang", "hang", "the stream stops inside the last event and keeps the connection open"),
    _stream("sse_raw_error", "raw_error", "a bare JSON error in the middle of the stream"),
    _stream("sse_error_event", "error_event", "an event named error"),
    _stream("sse_no_completed", "no_completed", "the stream ends properly without its last image"),
]

# --- what was seen in the wild ----------------------------------------------------------------------------------


def _odd(
    name: str, summary: str, answer: Callable[[Call], Reply], *, status: int = 200, good: bool = True
) -> Case:
    return Case(name, status, True, "upstream", summary, answer, good=good, odd=good)


def _refused(
    name: str,
    status: int,
    summary: str,
    answer: Callable[[Call], Reply],
    *,
    origin: Origin = "gateway",
    billed: bool = False,
) -> Case:
    return Case(name, status, billed, origin, summary, answer)


def _translated(images: list[str], old: str, new: str) -> list[dict[str, str]]:
    return odd.items([image.translate(str.maketrans(old, new)) for image in images])


_FLAGGED = {"error": {"code": "content_filter", "message": "This image was filtered"}}

_ODD_200 = [
    _odd("interim_102", "three 102 Processing before the reply",
         odd.with_reply(odd.document(odd.plain), interim=(102, 102, 102))),
    _odd("interim_103", "a 103 Early Hints before the reply", odd.with_reply(odd.document(odd.plain), interim=(103,))),
    _odd("data_object", "data is an object, not a list",
         odd.document(lambda call, images: {"data": odd.items(images)[0] if len(images) == 1 else odd.items(images)})),
    _odd("root_list", "the list of images is the whole document", odd.document(lambda call, images: odd.items(images))),
    _odd("images_list", "images instead of data", odd.document(lambda call, images: {"images": odd.items(images)})),
    _odd("bare_images", "images holds bare base64", odd.document(lambda call, images: {"images": images})),
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
    _odd("late_link", "links that answer 404 twice at first", odd.linked(odd.published_late)),
    _odd("usage_text", "usage as text",
         odd.with_usage(lambda usage: {name: str(value) for name, value in usage.items() if isinstance(value, int)})),
    _odd("usage_chat", "usage under the names of the chat API", odd.with_usage(lambda usage: {
        "prompt_tokens": usage["input_tokens"], "completion_tokens": float(usage["output_tokens"])})),
    _odd("usage_zero", "usage is all zeros, which says nothing", odd.with_usage(lambda usage: dict.fromkeys(usage, 0))),
    _odd("second_document", "another JSON document behind the reply", odd.document(odd.plain, after=b'{"late": true}')),
    _odd("no_last_chunk", "the reply is whole, and its last chunk is missing",
         odd.with_reply(odd.document(odd.plain), framing="chunked", whole=False, end="fin")),
    _odd("long_content_length", "the reply is whole, and its Content-Length too long",
         odd.with_reply(odd.document(odd.plain), extra_length=99, end="fin")),
    _odd("sse_link", "a completed event with a link", odd.stream(lambda call, images: [
        {"type": "image_generation.completed", "url": odd.published(call, index)} for index in range(call.order.n)])),
    _odd("sse_edit", "a preview as the edits endpoint sends it, then the images",
         odd.stream(odd.edit_preview, odd.completed)),
    _odd("sse_cr", "lines that end in a carriage return", odd.stream(odd.edit_preview, odd.completed, end="\r")),
    _odd("sse_open", "a whole stream, and the connection stays open",
         odd.stream(odd.completed, whole=False, hang=True)),
    _odd("wrong_size", "images of another size", odd.resized, good=False),
    _odd("one_flagged", "the last image is replaced by an error", odd.document(
        lambda call, images: {**odd.plain(call, images), "data": [*odd.items(images)[:-1], _FLAGGED]}), good=False),
    _odd("avif", "an image of a type that is not supported", odd.document(
        lambda call, images: {"data": odd.items([base64.b64encode(odd.AVIF).decode()] * call.order.n)}), good=False),
    _odd("cut_image", "base64 of an image that is cut short", odd.document(
        lambda call, images: {"data": odd.items([image[: len(image) // 8 * 4] for image in images])}), good=False),
    _odd("task", "an asynchronous task in place of images", odd.document(
        lambda call, images: {"code": 200, "data": [{"status": "submitted", "task_id": f"task_{call.request_id}"}]}),
        good=False),
    _odd("task_202", "the same with a 202", odd.document(
        lambda call, images: {"data": {"task_id": f"task_{call.request_id}", "status": "queued"}}, 202),
        status=202, good=False),
    _odd("sse_flat_error", "an event of type error with its words at the root", odd.stream(
        odd.edit_preview,
        lambda call, images: {"type": "error", "code": "server_error", "message": "The model failed"}), good=False),
    _odd("sse_edit_only", "a stream that ends after a preview", odd.stream(odd.edit_preview), good=False),
]  # fmt: skip

_ODD_ERRORS = [
    _refused("relay_429", 429, "a rate limit as a proxy that retries reports it",
             odd.relayed(429, "429", "litellm.RateLimitError: too many requests"), origin="network"),
    _refused("relay_503", 503, "a failure as a proxy that retries reports it; an earlier try was billed",
             odd.relayed(503, "model_not_found", "No available channel"), origin="network", billed=True),
    _refused("relay_budget", 429, "a proxy's own budget is used up",
             odd.relayed(429, "429", "Budget has been exceeded!", "budget_exceeded"), origin="network"),
    _refused("relay_response_format", 400, "a proxy does not know response_format",
             odd.relayed(400, "400", "litellm.UnsupportedParamsError: response_format"), origin="network"),
    _refused("quoted_id", 503, "an unmarked failure that quotes a request ID",
             odd.relayed(503, "model_not_found", "No available channel", headers={"Content-Type": "application/json"}),
             origin="network", billed=True),
    *[_refused(f"unmarked_{status}", status, "an unmarked failure that proves nothing",
               odd.body(status, {"message": "Failed"}), origin="network", billed=True) for status in (424, 425, 499)],
    _refused("fastapi_422", 422, "the words of FastAPI",
             odd.body(422, {"detail": [{"loc": ["body", "size"], "msg": "size is not supported"}]}), origin="network"),
    _refused("policy_403", 403, "words at the root", odd.body(403, {"message": "Forbidden by policy X"}),
             origin="network"),
    _refused("content_filter", 400, "a content filter", odd.error(400, "content_filter", "The prompt was filtered")),
    _refused("content_filter_azure", 400, "the same, as another API writes it", odd.error(400, "contentFilter")),
    _refused("inspection_failed", 400, "the same, as a third one writes it", odd.error(400, "DataInspectionFailed")),
    _refused("entitlement", 403, "the plan does not cover the request", odd.error(403, "entitlement_exhausted")),
    _refused("model_price_error", 500, "the model has no price: only an administrator can help",
             odd.error(500, "model_price_error")),
    _refused("channel_invalid_key", 401, "the key of the gateway's channel was rejected",
             odd.error(401, "invalid_api_key", "Incorrect API key provided", "invalid_request_error")),
    _refused("channel_no_key", 500, "the channel has no key left", odd.error(500, "channel:no_available_key")),
    _refused("deployment_missing", 404, "the channel's deployment is gone", odd.error(404, "DeploymentNotFound")),
    _refused("retry_after_two", 429, "two waits in one header", odd.error(429, "", Retry_After="1, 2")),
    _refused("retry_after_ms", 429, "the wait in milliseconds", odd.error(429, "", retry_after_ms="1500")),
]  # fmt: skip

CASES: Mapping[str, Case] = {
    case.name: case
    for case in [*_GOOD_200, *_GATEWAY, *_NETWORK, *_BAD_200, *_STREAMS, *_ODD_200, *_ODD_ERRORS]
}
"""Every case by name."""


def describe_cases() -> str:
    """Return the table as text."""
    width = max(map(len, CASES))
    lines = [f"{'case':{width}}  status  billed  origin      what happens", ""]
    for case in CASES.values():
        status = "-" if case.status is None else str(case.status)
        lines.append(
            f"{case.name:{width}}  {status:6}  {'yes' if case.billed else 'no':6}  {case.origin:10}  {case.summary}"
        )
    return "\n".join(lines)
