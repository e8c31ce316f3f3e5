"""The truth table of the classification: which server responded, and what that proves."""

from __future__ import annotations

import json
import time
from email.utils import formatdate
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_jojokey.img2.classify import FAILURES, REJECTIONS, is_relay
from airflow_provider_jojokey.img2.classify import from_response as classify
from airflow_provider_jojokey.img2.errors import ADVICE, Kind
from airflow_provider_jojokey.img2.messages import find_failure, find_task_id, message_of
from airflow_provider_jojokey.img2.retry_after import MAX_SECONDS, read_retry_after
from airflow_provider_jojokey.img2.usage import add, find_usage, normalize

MARK = {"X-Oneapi-Request-Id": "2026112823085401726269"}
RELAY = {"x-litellm-call-id": "1"}
SHAPES: dict[str, bytes] = {
    "object": json.dumps(
        {"error": {"message": "no (request id: 2026)", "type": "new_api_error", "code": ""}}
    ).encode(),
    "text": json.dumps({"error": "no"}).encode(),
    "page": b"<html><title>no</title></html>",
    "empty": b"",
}
STATUSES = sorted(
    {
        400,
        401,
        402,
        403,
        404,
        405,
        409,
        413,
        418,
        422,
        429,
        500,
        502,
        503,
        504,
        524,
        529,
        *REJECTIONS,
        *FAILURES,
    }
)
CODES = (
    "",
    "moderation_blocked",
    "insufficient_user_quota",
    "model_not_found",
    "rate_limit_exceeded",
    "server_error",
)


def answer(status: int, marked: bool, relayed: bool, body: bytes) -> Any:
    return classify(status, {**(MARK if marked else {}), **(RELAY if relayed else {})}, body)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("status", STATUSES)
def test_only_gateway_error_or_rejection_proves_not_billed(status: int, shape: str) -> None:
    for marked, relayed in product((False, True), repeat=2):
        error = answer(status, marked, relayed, SHAPES[shape])
        proven = not relayed and (marked or status in REJECTIONS)
        assert error.billed == ("no" if proven else "unknown"), (marked, relayed)
        if not proven:
            assert not error.is_safe_to_resend
            assert error.kind is Kind.UNKNOWN_OUTCOME or not ADVICE[error.kind].transient


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("status", STATUSES)
def test_code_decides_kind_but_proves_nothing(status: int, code: str) -> None:
    body = json.dumps({"error": {"message": "no", "type": "x", "code": code}}).encode()
    kinds = {}
    for marked, relayed in product((False, True), repeat=2):
        error = answer(status, marked, relayed, body)
        assert error.billed == ("no" if not relayed and (marked or status in REJECTIONS) else "unknown")
        kinds[marked, relayed] = error.kind
    marked_kind = kinds[True, False]
    if code and not ADVICE[marked_kind].transient:
        assert set(kinds.values()) == {marked_kind}, "a permanent kind does not depend on the server"
    elif ADVICE[marked_kind].transient:
        assert kinds[True, True] is Kind.UNKNOWN_OUTCOME, (
            "a transient kind is unknown behind a retrying proxy"
        )


def test_fee_is_billed_whichever_server_reports_it() -> None:
    body = json.dumps({"error": {"message": "no", "code": "violation_fee.x"}}).encode()
    for marked, relayed in product((False, True), repeat=2):
        assert answer(403, marked, relayed, body).billed == "yes"


@pytest.mark.parametrize(
    ("name", "relay"),
    [
        ("x-litellm-call-id", True),
        ("llm_provider-x-oneapi-request-id", True),
        ("x-portkey-retry-attempt-count", True),
        ("helicone-cache", True),
        ("x-retry-count", True),
        ("x-proxy-attempts", True),
        ("x-fallback-used", True),
        ("x-envoy-attempt-count", True),
        ("retry-after", False),
        ("x-retry", True),
        ("x-retry-number", True),
        ("retry-after-ms", False),
        ("x-ms-retry-after-ms", False),
        ("x-rate-limit-retry-after-seconds", False),
        ("x-amz-retry-after", False),
        ("x-should-retry", False),
        ("x-oneapi-request-id", False),
        ("x-request-id", False),
        ("content-type", False),
    ],
)
def test_retrying_proxies_are_recognized(name: str, relay: bool) -> None:
    assert is_relay({name: "1"}) is relay


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "3"}, 3),
        ({"Retry-After": "3, 8"}, 8),
        ({"Retry-After": "8, 3"}, 8),
        ({"Retry-After": "3, soon"}, 3),
        ({"Retry-After": "5s"}, 5),
        ({"Retry-After": "1m"}, 60),
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after-ms": "1500", "Retry-After": "2"}, 1.5),
        ({"retry-after-ms": "soon", "Retry-After": "2"}, 2),
        ({"X-Retry-After": "4"}, 4),
        ({"Retry-After": "Wed, 21 Oct 2026 07:28:10 GMT", "Date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 10),
        ({"Retry-After": "Wed, 21 Oct 2026 07:28:10 GMT, 30", "Date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 30),
        ({"Retry-After": "-5"}, 0),
        ({"Retry-After": "9" * 400}, None),
        ({"Retry-After": "6m0s"}, 360),
        ({"Retry-After": "1h2m3.5s"}, 3723.5),
        ({"Retry-After": "1 hour 30 minutes, 5s"}, 5400),
        ({"Retry-After": "2 minutes"}, 120),
        ({"Retry-After": "1d"}, 86_400),
        ({"Retry-After": "1s500ms"}, 1.5),
        ({"Retry-After": "PT1H0.5S"}, 3600.5),
        ({"Retry-After": "+30"}, 30),
        ({"Retry-After": "P"}, None),
        ({"Retry-After": "5 parsecs"}, None),
        ({"Retry-After": "1e3"}, None),
        ({"Retry-After": "2026-10-21T07:28:10Z", "Date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 10),
        ({"Retry-After": "2026-10-21 09:28:10+02:00", "Date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 10),
        ({"Retry-After": "1792567690", "Date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 10),
        ({"retry-after-ms": "1792567690000", "Date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 10),
        ({"Retry-After": "1792567670", "Date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 0),
        ({"x-ms-retry-after-ms": "2500"}, 2.5),
        ({"x-ratelimit-reset-requests": "6m0s"}, 360),
        ({"x-ratelimit-reset-requests": "1s", "x-ratelimit-reset-tokens": "2m"}, 120),
        (
            {
                "x-ratelimit-reset-requests": "1s",
                "x-ratelimit-remaining-requests": "0",
                "x-ratelimit-reset-tokens": "2m",
                "x-ratelimit-remaining-tokens": "149984",
            },
            1,
        ),
        ({"RateLimit-Reset": "30", "Retry-After": "2"}, 2),
        ({"RateLimit-Reset": "30"}, 30),
        ({"X-Rate-Limit-Reset": "1792567690", "Date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 10),
        ({"X-RateLimit-Reset": "-1"}, None),
        ({"X-RateLimit-Reset": "soon"}, None),
        (
            {
                "anthropic-ratelimit-requests-reset": "2026-10-21T07:28:10Z",
                "Date": "Wed, 21 Oct 2026 07:28:00 GMT",
            },
            10,
        ),
        ({}, None),
    ],
)
def test_retry_after_is_read_in_every_form(headers: dict[str, str], seconds: float | None) -> None:
    assert classify(429, headers, b"").retry_after == seconds


def test_retry_after_date_is_compared_with_local_clock() -> None:
    later = classify(429, {"Retry-After": formatdate(time.time() + 100, usegmt=True)}, b"").retry_after
    assert later is not None
    assert 90 < later <= 100


PIECES = ["1", "6", "0.", ".5", "-", "+", "m", "s", "ms", "h", "d", "PT", "M", "S", " ", ",", ":", "Z", "T", "e9", "9" * 30,
          "Wed, 21 Oct 2026 07:28:00 GMT", "2026-10-21", "\u0663", "inf", "nan", "\0"]  # fmt: skip


@given(
    st.dictionaries(
        st.sampled_from(
            ["retry-after", "retry-after-ms", "x-ratelimit-reset", "date", "x-ratelimit-remaining"]
        ),
        st.one_of(st.text(max_size=600), st.lists(st.sampled_from(PIECES)).map("".join)),
    ),
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.sampled_from(PIECES)),
        lambda inner: st.one_of(
            st.lists(inner), st.dictionaries(st.sampled_from(["retry_after", "retryDelay", "x"]), inner)
        ),
    ),
)
@settings(deadline=None)
def test_any_delay_is_a_sane_number_or_none(headers: dict[str, str], document: Any) -> None:
    seconds = read_retry_after(headers, document, limited=True)
    assert seconds is None or 0 <= seconds < MAX_SECONDS


def test_reset_of_a_limit_is_no_wait_for_other_errors() -> None:
    assert classify(503, {**MARK, "x-ratelimit-reset-requests": "6m0s"}, b"").retry_after is None


@pytest.mark.parametrize(
    "body",
    [
        {"retry_after": 7},
        {"error": {"message": "x", "retry_after_ms": 7000}},
        {"retryAfter": "7s"},
        {"error": {"message": "x", "metadata": {"retry_after_seconds": 7.0}}},
        {"error": {"message": "x", "resets_in_seconds": "7"}},
        {"error": {"message": "x", "details": [{"reason": "x"}, {"retryDelay": "7s"}]}},
        {"retry_after": True, "error": {"retry_after": None, "detail": {"retry_after": "0m7s"}}},
    ],
)
def test_retry_after_is_read_from_body(body: dict[str, Any]) -> None:
    assert classify(429, MARK, json.dumps(body).encode()).retry_after == 7


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"error": {"message": "a"}}, "a"),
        ({"error": "a"}, "a"),
        ({"message": "a"}, "a"),
        ({"msg": "a"}, "a"),
        ({"detail": "a"}, "a"),
        ({"detail": {"reason": "a"}}, "a"),
        ({"title": "a"}, "a"),
        ({"errors": ["a", "b"]}, "a; b"),
        ({"error": {"metadata": {"raw": "a"}}}, "a"),
        ({"fault": {"faultstring": "a"}}, "a"),
        ({"base_resp": {"status_code": 1, "status_msg": "x", "message": "a"}}, "a"),
        ({"data": "iVBORw0KGgo", "created": 1}, ""),
        ([], ""),
        (7, ""),
        ({"error": {"message": ["a"]}}, "a"),
        ({"message": '{"error": {"message": "a"}}'}, "a"),
        ({"message": "{not json"}, "{not json"),
    ],
)
def test_message_is_found_in_any_document_shape(document: Any, message: str) -> None:
    assert message_of(document) == message


def test_deeply_nested_document_has_no_message() -> None:
    deep: Any = "a"
    for _ in range(900):
        deep = {"error": [deep]}
    assert message_of(deep) == ""
    assert find_failure([deep]) is not None
    assert find_task_id(deep) is None
    assert find_usage(deep) is None


@pytest.mark.parametrize(
    ("usage", "normal"),
    [
        ({"total_tokens": "253"}, {"total_tokens": 253}),
        ({"total_tokens": "1,253"}, {"total_tokens": 1253}),
        ({"input_tokens": 1.0, "output_tokens": 2}, {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}),
        ({"prompt_tokens": 1, "completion_tokens": 2}, {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}),
        ({"total_tokens": 5, "input_tokens": -1}, {"total_tokens": 5}),
        ({"total_tokens": 5, "prompt_tokens_details": {"cached_tokens": "2", "x": 1}},
         {"total_tokens": 5, "input_tokens_details": {"cached_tokens": 2}}),
        ({"total_tokens": float("inf")}, None),
        ({"total_tokens": 10**30}, None),
        ({"total_tokens": 0}, None),
        ({"total_tokens": 0, "input_tokens": 24, "output_tokens": 229},
         {"total_tokens": 253, "input_tokens": 24, "output_tokens": 229}),
        ({"prompt_tokens": 24, "completion_tokens": 229, "total_tokens": 253, "input_tokens": 0, "output_tokens": 0,
          "prompt_tokens_details": {"text_tokens": 24}, "input_tokens_details": {"text_tokens": 0}},
         {"input_tokens": 24, "output_tokens": 229, "total_tokens": 253, "input_tokens_details": {"text_tokens": 24}}),
        ({"input_tokens": 0, "output_tokens": 5}, {"input_tokens": 0, "output_tokens": 5, "total_tokens": 5}),
        ({"total_tokens": True}, None),
        ({}, None),
        ("x", None),
    ],
)  # fmt: skip
def test_usage_is_normalized_to_integers_and_names(usage: Any, normal: Any) -> None:
    assert normalize(usage) == normal
    json.dumps(normalize(usage), allow_nan=False)


def test_unknown_usage_adds_nothing() -> None:
    known = {"total_tokens": 5, "input_tokens_details": {"text_tokens": 1}}
    assert add(known, None) == add(None, known) == known
    assert add(None, None) is None
    assert add(known, known) == {"total_tokens": 10, "input_tokens_details": {"text_tokens": 2}}
