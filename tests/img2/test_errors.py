"""Each known error of the gateway, of Cloudflare and of proxies has a row."""

# ruff: noqa: RUF001 - the gateway's messages are Chinese, with Chinese punctuation; a row is a line
from __future__ import annotations

import base64
import copy
import json
import pickle
import time
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from airflow_provider_jojokey.img2.classify import from_response
from airflow_provider_jojokey.img2.errors import ADVICE, Img2Error, Kind
from airflow_provider_jojokey.img2.redact import MAX_DETAIL_CHARACTERS, clean

ID = "20261123230854017262697a4da893a6"
RAY = "8f2c3d4e5f6a7b8c-HKG"
GATEWAY = {"Content-Type": "application/json; charset=utf-8", "X-Oneapi-Request-Id": ID}
EDGE = {"Server": "cloudflare", "CF-RAY": RAY}
TOKEN = "sk-aB3dE5gH7jK9mN1pQ2rS4tU6vW8xY0zA"


def gateway_body(message: str, code: Any = "", **more: Any) -> bytes:
    """Return an error body of the gateway, with the request ID in its text."""
    error = {"message": f"{message} (request id: {ID})", "type": "new_api_error", "code": code, **more}
    return json.dumps({"error": error}, ensure_ascii=False).encode()


def openai_body(message: str, code: str, **more: Any) -> bytes:
    """Return an error body of a proxy in OpenAI's format."""
    return json.dumps({"error": {"message": message, "type": "some_error", "code": code, **more}}).encode()


def cloudflare_body(code: int, **more: Any) -> bytes:
    """Return an error body of Cloudflare for clients that accept JSON."""
    return json.dumps(
        {
            "type": f"https://developers.cloudflare.com/support/error-{code}/",
            "title": f"Error {code}: a title",
            "status": code if code < 1000 else 403,
            "detail": "What Cloudflare has to say.",
            "error_code": code,
            "ray_id": "8f2c3d4e5f6a7b8c",
            "cloudflare_error": True,
            "retryable": True,
            **more,
        }
    ).encode()


def html_page(title: str) -> bytes:
    return f"<!DOCTYPE html>\n<html><head><title>{title}</title></head><body><h1>{title}</h1></body></html>".encode()


@dataclass
class Row:
    name: str
    status: int
    headers: dict[str, str]
    body: bytes
    kind: Kind
    billed: str = "no"
    code: str | None = None
    retry_after: float | None = None
    words: list[str] = field(default_factory=list)
    """Parts of the message."""
    advice: str = ""
    """A part of the advice, if it is not that of the kind."""

    @property
    def by_gateway(self) -> bool:
        return "X-Oneapi-Request-Id" in self.headers or ID.encode() in self.body

    def error(self) -> Img2Error:
        return from_response(self.status, self.headers, self.body, secret=TOKEN)


TRANSIENT = (Kind.RATE_LIMIT, Kind.NO_CHANNEL, Kind.OVERLOADED, Kind.UNREACHABLE)


def without_proof(status: int, kind: Kind, billed: str) -> tuple[Kind, str]:
    """Return kind and billing of an error that nothing attributes to the gateway."""
    if billed == "yes" or status in (400, 401, 402, 403, 404, 413, 422, 429):
        return kind, billed
    return Kind.UNKNOWN_OUTCOME if kind in TRANSIENT else kind, "unknown"


def gateway(
    name: str, status: int, kind: Kind, code: str, *messages: str, billed: str = "no", words: str = ""
) -> list[Row]:
    """Return the error in each language, with the gateway's header or the request ID in the text."""
    return [
        Row(
            f"{name}-{number}-{'header' if headers is GATEWAY else 'text only'}",
            status,
            headers,
            gateway_body(message, code),
            *((kind, billed) if headers is GATEWAY else without_proof(status, kind, billed)),
            code or None,
            words=[message, *filter(None, words.split("|"))],
        )
        for number, message in enumerate(messages)
        for headers in (GATEWAY, {"Content-Type": "application/json"})
    ]


def cloudflare(
    code: int, kind: Kind, billed: str = "no", retry_after: float | None = None, advice: str = ""
) -> list[Row]:
    """Return the error as JSON, as a page and as plain text."""
    status = code if code < 1000 else (429 if code == 1015 else 403)
    waits = {} if retry_after is None else {"retry_after": retry_after}
    header = {} if retry_after is None else {"Retry-After": f"{retry_after:.0f}"}
    html = {**EDGE, "Content-Type": "text/html; charset=UTF-8"}
    return [
        Row(
            f"cloudflare {code} {name}",
            status,
            headers,
            body,
            kind,
            billed,
            str(code),
            retry_after,
            advice=advice,
        )
        for name, headers, body in (
            ("json", {**EDGE, "Content-Type": "application/problem+json"}, cloudflare_body(code, **waits)),
            ("page", {**html, **header}, html_page(f"example.com | Error {code}")),
            ("text", {**EDGE, **header, "Content-Type": "text/plain"}, f"error code: {code}".encode()),
        )
    ]


TABLE = [
    # --- the gateway's own ---
    *gateway("token", 401, Kind.TOKEN, "", "Invalid token", "无效的令牌", "未提供令牌", "该令牌已过期", "该令牌额度已用尽",
             words="connection's password"),
    *gateway("group", 403, Kind.ACCESS, "", "No access to group image", "无权访问 image 分组", words="group"),
    *gateway("model", 403, Kind.ACCESS, "", "This token has no access to model gpt-image-2", words="model"),
    *gateway("address", 403, Kind.ACCESS, "access_denied", "Your IP is not allowed", "您的 IP 不在令牌允许访问的列表中",
             words="address"),
    *gateway("banned", 403, Kind.ACCESS, "", "User is banned", "用户已被封禁"),
    *gateway("no channel", 503, Kind.NO_CHANNEL, "model_not_found",
             "No available channel for model gpt-image-2 under group default (distributor)",
             "分组 default 下模型 gpt-image-2 无可用渠道（distributor）", words=""),
    *gateway("model unknown", 404, Kind.ACCESS, "model_not_found", "The model does not exist"),
    *gateway("cpu", 503, Kind.OVERLOADED, "system_cpu_overloaded", "system overloaded", "系统 CPU 过载"),
    *gateway("memory", 503, Kind.OVERLOADED, "system_memory_overloaded", "system overloaded", "系统内存过载"),
    *gateway("disk", 503, Kind.OVERLOADED, "system_disk_overloaded", "system overloaded", "系统磁盘过载"),
    *gateway("wallet", 403, Kind.QUOTA, "insufficient_user_quota", "user quota is not enough", "用户额度不足", words="Top up"),
    *gateway("token quota", 403, Kind.QUOTA, "pre_consume_token_quota_failed", "token quota is not enough", "令牌额度不足"),
    *gateway("rate", 429, Kind.RATE_LIMIT, "", "Too many requests", "请求过于频繁，请稍后再试", words="pool"),
    *gateway("bad json", 400, Kind.REQUEST, "", "invalid character 'x'", "无效的请求体"),
    *gateway("too large", 413, Kind.REQUEST, "", "request body too large", "请求体过大"),
    *gateway("unprocessable", 422, Kind.REQUEST, "", "n must be less than 11", "参数无效"),
    *gateway("invalid", 500, Kind.REQUEST, "invalid_request", "size an unexpected error", "请求参数无效"),
    *gateway("sensitive", 500, Kind.CONTENT, "sensitive_words_detected", "sensitive words detected", "用户敏感词检测不通过",
             words="Rephrase"),
    *gateway("moderation", 400, Kind.CONTENT, "moderation_blocked", "rejected by the safety system"),
    *gateway("policy", 400, Kind.CONTENT, "content_policy_violation", "rejected as a result of our safety system"),
    *gateway("fee", 403, Kind.CONTENT, "violation_fee.grok.csam", "usage guidelines violated", billed="yes"),
    *gateway("upstream gone", 500, Kind.OVERLOADED, "do_request_failed", "upstream error: do request failed", "请求上游地址失败"),
    *gateway("upstream garbled", 500, Kind.OVERLOADED, "bad_response_body", "bad response body"),
    *gateway("upstream status", 502, Kind.OVERLOADED, "bad_response_status_code", "bad response status code 502"),
    *gateway("upstream timeout", 504, Kind.OVERLOADED, "bad_response_status_code", "bad response status code 504"),
    *gateway("upstream 524", 524, Kind.OVERLOADED, "", "upstream timed out", "上游超时"),
    *gateway("upstream 408", 408, Kind.OVERLOADED, "", "upstream timed out"),
    *gateway("upstream server error", 500, Kind.OVERLOADED, "server_error", "The server had an error"),
    *gateway("upstream quota", 429, Kind.QUOTA, "insufficient_quota", "You exceeded your current quota"),
    *gateway("upstream rate", 429, Kind.RATE_LIMIT, "rate_limit_exceeded", "Rate limit reached"),
    *gateway("unknown parameter", 400, Kind.REQUEST, "unknown_parameter", "Unknown parameter: 'response_format'."),
    *gateway("path", 404, Kind.BASE_URL, "", "Invalid URL (POST /v1/v1/images/generations)", words="https://api.jojokey.com"),
    Row("teapot", 418, GATEWAY, gateway_body("I am a teapot"), Kind.REQUEST),
    Row("teapot of an unknown server", 418, {}, openai_body("I am a teapot", ""), Kind.UNKNOWN_OUTCOME, "unknown"),
    Row("rate, empty", 429, {"X-Oneapi-Request-Id": ID}, b"", Kind.RATE_LIMIT),
    Row("429, Retry-After", 429, {**GATEWAY, "Retry-After": "7"}, gateway_body("slow down"), Kind.RATE_LIMIT, retry_after=7),
    Row("503, Retry-After", 503, {**GATEWAY, "Retry-After": "2"}, gateway_body("busy"), Kind.OVERLOADED, retry_after=2),
    Row("401, ignores Retry-After", 401, {**GATEWAY, "Retry-After": "7"}, gateway_body("Invalid token"), Kind.TOKEN),
    Row("flat", 403, {}, '{"success":false,"message":"用户已被封禁"}'.encode(), Kind.ACCESS, words=["用户已被封禁"]),
    Row("code is a number", 500, GATEWAY, gateway_body("x", 1234), Kind.OVERLOADED, code="1234"),
    Row("code is null", 500, GATEWAY, gateway_body("x", None), Kind.OVERLOADED),
    Row("gateway without JSON", 500, {"X-Oneapi-Request-Id": ID}, b"panic", Kind.OVERLOADED, words=["panic"]),
    Row("gateway redirects", 302, {"X-Oneapi-Request-Id": ID, "Location": "/"}, b"", Kind.BASE_URL, words=["redirects"]),
    # --- errors in a 200 ------
    Row("200 error", 200, GATEWAY, gateway_body("busy", "server_error"), Kind.UNKNOWN_OUTCOME, "unknown", "server_error", words=["busy"]),
    Row("200 error, no code", 200, GATEWAY, gateway_body("上游繁忙"), Kind.UNKNOWN_OUTCOME, "unknown", words=["上游繁忙"]),
    Row("200 content", 200, GATEWAY, gateway_body("no", "moderation_blocked"), Kind.CONTENT, "unknown", "moderation_blocked"),
    Row("200 fee", 200, GATEWAY, gateway_body("no", "violation_fee.x"), Kind.CONTENT, "yes", "violation_fee.x"),
    Row("200 text error", 200, GATEWAY, b'{"error":"busy"}', Kind.UNKNOWN_OUTCOME, "unknown", words=["busy"]),
    Row("200 page", 200, {"Content-Type": "text/html"}, html_page("Scanning"), Kind.BASE_URL, "unknown", words=["web page", "Scan"]),
    Row("200 page, gateway", 200, {**GATEWAY, "Content-Type": "Text/HTML"}, html_page("JojoKey"), Kind.BASE_URL),
    Row("200 page, gateway behind a proxy that retries", 200, {**GATEWAY, "x-litellm-attempted-retries": "1"},
        html_page("JojoKey"), Kind.BASE_URL, "unknown"),
    Row("200 empty, labelled HTML", 200, {**GATEWAY, "Content-Type": "text/html"}, b"", Kind.BASE_URL, "unknown"),
    Row("200 usage, labelled HTML", 200, {**GATEWAY, "Content-Type": "text/html"},
        b'{"data":[],"usage":{"total_tokens":206}}', Kind.REPLY, "yes"),
    Row("200 blank error", 200, GATEWAY, b'{"error":{"message":"","type":"","param":"","code":null},"data":[]}',
        Kind.REPLY, "yes"),
    Row("200 page, unnamed", 200, {}, b"\n <!doctype html>", Kind.BASE_URL, "unknown"),
    Row("200 page, unnamed, gateway", 200, GATEWAY, b"\n <!doctype html>", Kind.BASE_URL),
    Row("200 empty", 200, GATEWAY, b"", Kind.REPLY, "yes", words=["refund"]),
    Row("200 no data", 200, GATEWAY, b'{"created":1}', Kind.REPLY, "yes"),
    Row("202 no data", 202, GATEWAY, b'{"created":1}', Kind.REPLY, "yes"),
    Row("200 null error", 200, GATEWAY, b'{"error":null,"data":[]}', Kind.REPLY, "yes"),
    Row("204", 204, {}, b"", Kind.REPLY, "yes"),
    # --- Cloudflare ---
    *cloudflare(520, Kind.UNKNOWN_OUTCOME, "unknown", 60.0),
    *cloudflare(521, Kind.UNREACHABLE, "no", 120.0),
    *cloudflare(522, Kind.UNKNOWN_OUTCOME, "unknown"),
    *cloudflare(523, Kind.UNREACHABLE),
    *cloudflare(524, Kind.UNKNOWN_OUTCOME, "unknown", 120.0),
    *cloudflare(525, Kind.TLS, advice="Send JojoKey support the cf-ray"),
    *cloudflare(526, Kind.TLS, advice="Send JojoKey support the cf-ray"),
    *cloudflare(502, Kind.UNKNOWN_OUTCOME, "unknown"),
    *cloudflare(504, Kind.UNKNOWN_OUTCOME, "unknown"),
    *cloudflare(530, Kind.UNREACHABLE),
    *cloudflare(1010, Kind.EDGE_BLOCKED),
    *cloudflare(1020, Kind.EDGE_BLOCKED),
    *cloudflare(1015, Kind.RATE_LIMIT, "no", 30.0),
    *(
        # A Worker that fails may have forwarded the request.
        Row(f"cloudflare {number} {name}", 500, headers, body, Kind.UNKNOWN_OUTCOME, "unknown", code)
        for number in (1019, 1101, 1102, 1104, 1105, 1200, 1999)
        for name, code, headers, body in (
            ("json", str(number), {**EDGE, "Content-Type": "application/problem+json"}, cloudflare_body(number)),
            ("page", "500", {**EDGE, "Content-Type": "text/html"}, html_page(f"Error {number}")),
            ("text", str(number), {**EDGE, "Content-Type": "text/plain"}, f"error code: {number}".encode()),
        )
    ),
    Row("error of a database behind cloudflare", 500, {**EDGE, "Content-Type": "text/html"},
        html_page("Error 1213 (40001): Deadlock found"), Kind.UNKNOWN_OUTCOME, "unknown", "500"),
    Row("MySQL's 1020 behind cloudflare", 500, {**EDGE, "Content-Type": "text/html"},
        html_page("Error 1020 (HY000): Record has changed since last read"), Kind.UNKNOWN_OUTCOME, "unknown", "500"),
    Row("challenge", 403, {**EDGE, "Content-Type": "text/html", "cf-mitigated": "challenge"}, html_page("Just a moment..."),
        Kind.EDGE_BLOCKED, code="1020"),
    Row("edge 403 without a number", 403, {**EDGE, "Content-Type": "text/html"}, html_page("Attention Required!"),
        Kind.EDGE_BLOCKED, code="403"),
    Row("bare text without the edge's headers", 502, {}, b"error code: 502", Kind.UNKNOWN_OUTCOME, "unknown", "502"),
    Row("the gateway's JSON through the edge", 500, {**EDGE, **GATEWAY}, gateway_body("x", "do_request_failed"), Kind.OVERLOADED,
        code="do_request_failed"),
    Row("a page of what is behind the edge", 502, {**EDGE, "Content-Type": "text/html"}, html_page("502 Bad Gateway"),
        Kind.UNKNOWN_OUTCOME, "unknown", "502"),
    # --- proxies and web servers ---
    Row("nginx 502", 502, {"Server": "nginx", "Content-Type": "text/html"}, html_page("502 Bad Gateway"),
        Kind.UNKNOWN_OUTCOME, "unknown", words=["502 Bad Gateway"]),
    Row("nginx 504", 504, {"Server": "nginx", "Content-Type": "text/html"}, html_page("504 Gateway Time-out"),
        Kind.UNKNOWN_OUTCOME, "unknown"),
    Row("a proxy's JSON 502", 502, {"Content-Type": "application/json"}, b'{"error":"Bad Gateway","status":502}',
        Kind.UNKNOWN_OUTCOME, "unknown"),
    Row("a proxy's JSON 504", 504, {"Content-Type": "application/json"}, b'{"message":"upstream timed out"}',
        Kind.UNKNOWN_OUTCOME, "unknown"),
    *[Row(f"a proxy's {status} in OpenAI's shape{', which waits' if waits else ''}", status,
          {"Content-Type": "application/json", **waits}, openai_body("upstream request timeout", "timeout"),
          Kind.UNKNOWN_OUTCOME, "unknown", "timeout", 5 if waits else None, words=["upstream request timeout"])
      for status in (408, 500, 502, 503, 504, 521, 524, 529, 530) for waits in ({}, {"Retry-After": "5"})],
    *[Row(f"a proxy's 500 with the code {code}", 500, {}, openai_body("no", code), kind, "unknown", code)
      for code, kind in (("rate_limit_exceeded", Kind.UNKNOWN_OUTCOME), ("server_error", Kind.UNKNOWN_OUTCOME),
                         ("500", Kind.UNKNOWN_OUTCOME), ("insufficient_quota", Kind.QUOTA),
                         ("moderation_blocked", Kind.CONTENT))],
    *[Row(f"a proxy's {status} in OpenAI's shape", status, {}, openai_body("no", "some_code"), kind, code="some_code")
      for status, kind in ((400, Kind.REQUEST), (401, Kind.TOKEN), (403, Kind.ACCESS), (429, Kind.RATE_LIMIT))],
    Row("a proxy's 503 without an error object", 503, {}, b'{"success":false,"message":"busy"}', Kind.UNKNOWN_OUTCOME, "unknown"),
    *[Row(f"the gateway's {status} {code}, without its id", status, {}, openai_body("no", code), kind, billed, code)
      for status, code, kind, billed in (
          (503, "model_not_found", Kind.UNKNOWN_OUTCOME, "unknown"),
          (503, "system_cpu_overloaded", Kind.UNKNOWN_OUTCOME, "unknown"),
          (500, "do_request_failed", Kind.UNKNOWN_OUTCOME, "unknown"),
          (500, "invalid_request", Kind.REQUEST, "unknown"),
          (500, "sensitive_words_detected", Kind.CONTENT, "unknown"),
          (500, "insufficient_user_quota", Kind.QUOTA, "unknown"),
          (500, "violation_fee.x", Kind.CONTENT, "yes"),
      )],
    Row("the gateway's type without its header", 500, {}, openai_body("no", "", type="new_api_error"),
        Kind.UNKNOWN_OUTCOME, "unknown"),
    Row("500 of an unknown server", 500, {}, b"", Kind.UNKNOWN_OUTCOME, "unknown"),
    Row("503 of an unknown server", 503, {}, b"", Kind.UNKNOWN_OUTCOME, "unknown"),
    Row("503 of an unknown server with Retry-After", 503, {"Retry-After": "5"}, b"", Kind.UNKNOWN_OUTCOME, "unknown", retry_after=5),
    *[Row(f"{status} of an unknown server, {name}", status, {}, body, Kind.UNKNOWN_OUTCOME, "unknown")
      for status in (424, 425, 499) for name, body in (("empty", b""), ("JSON", openai_body("no", "")), ("page", html_page("no")))],
    *[Row(f"{status} of the gateway", status, GATEWAY, gateway_body("no"), Kind.OVERLOADED) for status in (424, 425, 499)],
    *[Row(f"interim {status} as the response", status, {}, b"", Kind.UNKNOWN_OUTCOME, "unknown") for status in (101, 103)],
    Row("408 of an unknown server", 408, {}, b"", Kind.UNKNOWN_OUTCOME, "unknown"),
    Row("403 of an unknown server", 403, {"Content-Type": "text/html"}, html_page("Forbidden"), Kind.EDGE_BLOCKED,
        advice="A proxy or firewall on the way rejected it"),
    Row("451 of an unknown server", 451, {"Content-Type": "text/html"}, html_page("Unavailable"), Kind.EDGE_BLOCKED,
        advice="A proxy or firewall on the way rejected it"),
    Row("404 page", 404, {"Content-Type": "text/html"}, html_page("Not Found"), Kind.BASE_URL, words=["Not Found"]),
    Row("405", 405, {}, b"", Kind.BASE_URL),
    Row("407", 407, {}, b"", Kind.UNREACHABLE),
    *[Row(f"redirect {status}", status, {"Location": "https://example.com/"}, b"", Kind.BASE_URL, words=["redirects"])
      for status in (301, 302, 307, 308)],
]  # fmt: skip


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_known_error_is_classified(row: Row) -> None:
    error = row.error()
    assert (error.kind, error.billed, error.status_code) == (row.kind, row.billed, row.status)
    assert error.code == row.code
    assert error.retry_after == row.retry_after
    assert error.request_id == (ID if row.by_gateway else None)
    assert (error.cf_ray or "")[:16] == (RAY[:16] if "CF-RAY" in row.headers or b"ray_id" in row.body else "")
    advice = row.advice or ("Change the request" if row.kind is Kind.REQUEST else ADVICE[row.kind].todo)
    for word in [*row.words, advice, f"HTTP {row.status}"]:
        assert word in str(error)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_only_unbilled_transient_errors_are_safe_to_resend(row: Row) -> None:
    safe = row.billed == "no" and row.kind in (
        Kind.RATE_LIMIT,
        Kind.NO_CHANNEL,
        Kind.OVERLOADED,
        Kind.UNREACHABLE,
    )
    assert row.error().is_safe_to_resend is safe


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_message_says_whether_you_were_charged(row: Row) -> None:
    sentence = {
        "no": "You were not charged.",
        "yes": "You were very likely charged.",
        "unknown": "You may have been charged.",
    }
    assert [billed for billed, words in sentence.items() if words in str(row.error())] == [row.billed]


def test_table_covers_every_kind_of_error() -> None:
    assert {row.kind for row in TABLE} == set(Kind)


def test_header_names_are_case_insensitive() -> None:
    for change in (str.lower, str.upper):
        headers = {change(name): value for name, value in {**EDGE, **GATEWAY, "Retry-After": "3"}.items()}
        error = from_response(429, headers, b"")
        assert (error.request_id, error.cf_ray, error.retry_after) == (ID, RAY, 3)


def test_request_id_at_end_of_long_message_is_found() -> None:
    error = from_response(400, {}, gateway_body("long " * 400))
    assert error.request_id == ID
    assert len(error.detail) <= MAX_DETAIL_CHARACTERS


def test_request_id_is_never_free_text() -> None:
    error = from_response(400, {}, json.dumps({"error": {"message": "(request id: a b\nc)"}}).encode())
    assert error.request_id is None


def test_timeout_of_high_quality_names_expected_duration() -> None:
    error = from_response(524, EDGE, cloudflare_body(524))
    assert "still generating" in str(error)
    assert "stream=True" in str(error)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("0", 0), ("1.5", 1.5), (" 12 ", 12), ("-5", 0), ("soon", None), ("nan", None), ("inf", None), ("1e9", None), ("", None)],
)  # fmt: skip
def test_retry_after_seconds_are_parsed(value: str, seconds: float | None) -> None:
    assert from_response(429, {"Retry-After": value}, b"").retry_after == seconds


def test_retry_after_date_is_parsed() -> None:
    later = from_response(429, {"Retry-After": formatdate(time.time() + 100, usegmt=True)}, b"").retry_after
    assert later is not None
    assert 95 < later <= 100
    assert (
        from_response(429, {"Retry-After": formatdate(time.time() - 100, usegmt=True)}, b"").retry_after == 0
    )


@pytest.mark.parametrize("value", [None, [], {}, "x", True, 10**400])
def test_odd_retry_after_in_cloudflare_json_is_ignored(value: Any) -> None:
    from_response(524, EDGE, cloudflare_body(524, retry_after=value))


@given(
    st.integers(200, 599),
    st.dictionaries(
        st.sampled_from(["cf-ray", "server", "retry-after", "content-type", "x-oneapi-request-id"]), st.text()
    ),
    st.one_of(
        st.binary(),
        st.recursive(
            st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=20)),
            lambda inner: st.dictionaries(
                st.sampled_from(
                    ["error", "message", "code", "cloudflare_error", "error_code", "success", "retry_after"]
                ),
                st.one_of(inner, st.lists(inner, max_size=2)),
            ),
        ).map(lambda value: json.dumps(value).encode()),
    ),
)
def test_any_response_is_classified(status: int, headers: dict[str, str], body: bytes) -> None:
    error = from_response(status, headers, body, secret=TOKEN)
    assert "\n" not in str(error)
    assert len(str(error)) < 2000
    assert pickle.loads(pickle.dumps(error)).detail == error.detail


# --- redaction ---------------------------------------------------------------------------------------------


@given(st.text(), st.text(), st.booleans())
@example("无效的令牌", "", False)
@example("risk-", "x", False)
def test_token_is_redacted(before: str, after: str, with_prefix: bool) -> None:
    token = TOKEN if with_prefix else TOKEN[3:]
    assert TOKEN[3:] not in clean(f"{before}{token}{after}", TOKEN)


@pytest.mark.parametrize(
    "text",
    [
        f"令牌{TOKEN}无效",
        f"Incorrect API key provided: {TOKEN[:12]}********{TOKEN[-4:]}.",
        f"Authorization: Bearer {TOKEN}",
        f"authorization: bearer {TOKEN[3:]}",
        f'{{"key":"{TOKEN}"}}',
        f"({TOKEN})",
    ],
)
def test_unknown_token_is_redacted_by_its_form(text: str) -> None:
    assert TOKEN[5:12] not in clean(text)
    assert len(clean(text)) < 60


def test_words_similar_to_tokens_are_kept() -> None:
    text = "risk-assessment of the task-group: no Bearer authentication was tried"
    assert clean(text) == text


@given(st.binary(min_size=40), st.text(), st.sampled_from(["", "data:image/png;base64,"]), st.booleans())
def test_base64_is_redacted(data: bytes, before: str, head: str, for_urls: bool) -> None:
    encoded = (base64.urlsafe_b64encode(data) if for_urls else base64.b64encode(data)).decode()
    cleaned = clean(f"{before} {head}{encoded} after")
    assert encoded not in cleaned
    assert encoded[:40] not in cleaned


@given(st.text(alphabet="abcXYZ019%+/=-_.&", min_size=1))
def test_query_of_signed_link_is_redacted(signature: str) -> None:
    assume(signature not in "https://bucket.s3.example.com/posters/fox.png?X-Amz-Signature=")
    for scheme in ("https", "HTTPS", "s3"):
        link = f"{scheme}://bucket.s3.example.com/posters/fox.png?X-Amz-Signature={signature}"
        assert clean(f"see <{link}>") == f"see <{scheme}://bucket.s3.example.com/posters/fox.png>"


def test_url_credentials_and_signatures_are_redacted() -> None:
    assert clean("proxy http://joe:s3cret@10.0.0.1:3128/ refused") == "proxy http://10.0.0.1:3128/ refused"
    assert "f00" not in clean("expired: X-Amz-Credential=f00&X-Amz-Signature=f00f00")


@given(st.text(alphabet=st.characters(), max_size=1200))
def test_detail_is_one_short_printable_line(text: str) -> None:
    cleaned = clean(text)
    assert len(cleaned) <= MAX_DETAIL_CHARACTERS
    assert cleaned == cleaned.strip()
    cleaned.encode("utf-8")
    for character in cleaned:
        assert ord(character) >= 32
        assert character not in "\x7f\u2028\u2029\u202e\u2066\u200b\ufeff"
        assert not 0x7F <= ord(character) <= 0x9F


@given(st.text(alphabet="abc 中文.,!", max_size=400))
def test_plain_text_is_unchanged(text: str) -> None:
    assume("aa" not in text and len(text.split()) == len(text.split(" ")))
    assume(max((len(word) for word in text.split()), default=0) < 48)
    assert clean(text) == text


def test_all_fields_are_redacted() -> None:
    body = json.dumps({"error": {"message": "x", "code": f"{TOKEN}\n" + "y " * 500}}).encode()
    headers = {"X-Oneapi-Request-Id": f"{TOKEN}\x1b[31m", "cf-ray": "z" * 5000}
    error = from_response(500, headers, body, secret=TOKEN)
    for text in (error.code, error.request_id, error.cf_ray, str(error)):
        assert text is not None
        assert TOKEN not in text
        assert "\n" not in text
        assert "\x1b" not in text
        assert len(text) < 1000
    assert error.code is not None
    assert len(error.code) <= 100


def test_json_without_a_message_is_not_shown() -> None:
    error = from_response(200, GATEWAY, b'{"data":[{"revised_prompt":"a secret plan"}]}')
    assert error.detail == ""


def test_large_body_is_read_quickly() -> None:
    started = time.process_time()
    for filler in (
        b"<title>" * 9000,
        b"{" * 64000,
        b"error code: " * 5000,
        b"Bearer " * 9000,
        b"A" * 64000,
        b"://" * 20000,
    ):
        from_response(502, EDGE, filler)
    assert time.process_time() - started < 2


# --- the exception ----------------------------------------------------------------------------------------------


def full_error() -> Img2Error:
    return Img2Error(
        Kind.RATE_LIMIT,
        "Too fast",
        billed="unknown",
        detail="slow down",
        status_code=429,
        code="rate",
        request_id=ID,
        cf_ray=RAY,
        retry_after=2.5,
        advice="Wait.",
    )


@pytest.mark.parametrize("copied", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy, copy.deepcopy])
def test_error_can_be_pickled(copied: Any) -> None:
    error = full_error()
    error.salvaged.append(object())
    error.add_note("seen on the way")
    again = copied(error)
    assert str(again) == str(error)
    for name in (
        "kind",
        "summary",
        "billed",
        "detail",
        "status_code",
        "code",
        "request_id",
        "cf_ray",
        "retry_after",
        "advice",
    ):
        assert getattr(again, name) == getattr(error, name)
    assert again.salvaged == []


def test_message_contains_all_fields() -> None:
    assert str(full_error()) == (
        f'Too fast (HTTP 429, code rate, request ID {ID}, cf-ray {RAY}): "slow down". '
        "You may have been charged. Wait."
    )
    poor = Img2Error(Kind.QUOTA, "Poor", billed="no")
    assert str(poor) == f"Poor. You were not charged. {ADVICE[Kind.QUOTA].todo}"


@pytest.mark.parametrize("kind", Kind)
def test_error_without_proof_may_be_billed(kind: Kind) -> None:
    error = Img2Error(kind)
    assert (error.billed, error.is_safe_to_resend) == ("unknown", False)


@pytest.mark.parametrize("kind", Kind)
def test_each_kind_has_advice(kind: Kind) -> None:
    assert ADVICE[kind].todo.endswith(".")


@pytest.mark.parametrize("status", [525, 526])
def test_edge_that_cannot_connect_blames_the_gateway(status: int) -> None:
    text = str(
        from_response(status, {**EDGE, "Content-Type": "text/html"}, html_page("Invalid SSL certificate"))
    )
    assert "Cloudflare could not establish a TLS connection to JojoKey" in text
    assert "Send JojoKey support the cf-ray" in text
    assert "verify" not in text  # it is about the worker's own connection


def test_rejection_of_a_proxy_is_not_a_case_for_jojokey() -> None:
    text = str(from_response(403, {"Content-Type": "text/html"}, html_page("Forbidden by policy X")))
    assert "A proxy or firewall on the way rejected it" in text
    assert "support" not in text
    blocked = from_response(403, {**EDGE, "Content-Type": "text/html"}, html_page("Error 1020"))
    assert "Send JojoKey support the cf-ray" in str(blocked)


def test_quoted_request_id_is_not_called_missing() -> None:
    body = openai_body("No available channel (request id: 20261123-x)", "model_not_found")
    text = str(from_response(503, {}, body))
    assert "request ID 20261123-x" in text
    assert "lacks the header with JojoKey's request ID" in text


def test_base_url_may_have_a_path() -> None:
    assert "any other path" not in str(Img2Error(Kind.BASE_URL))
