"""Decide which error a response stands for, and whether it proves that nothing was billed.

The order of decision: the error's code; the marks of Cloudflare; who answered; the status. Messages are
displayed, never parsed: they come in two languages and change.

``billed="no"`` needs proof. The gateway refunds what it fails itself, and its own responses carry the header
``X-Oneapi-Request-Id``. A request ID quoted in a message is no proof: proxies copy messages. A proxy that
retries (LiteLLM and its like) reports only its last attempt, and an earlier one may have been billed, so
nothing it reports is proof. Cloudflare calls its 520, 522 and 524 retryable; they are not, because the
generation behind them continues and is billed.

Sources: the vendor's documentation, the gateway's behavior, Cloudflare's error pages, public bug reports.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, NamedTuple

from airflow_provider_jojokey.img2.errors import ADVICE, Billed, Img2Error, Kind
from airflow_provider_jojokey.img2.messages import Failure, find_failure, find_task_id, say
from airflow_provider_jojokey.img2.redact import clean
from airflow_provider_jojokey.img2.retry_after import read_retry_after
from airflow_provider_jojokey.img2.usage import find_usage

MAX_CODE_CHARACTERS = 100


class Sender(StrEnum):
    """The parties that may answer a request."""

    GATEWAY = "gateway"
    """The gateway itself, by its header."""
    RELAY = "relay"
    """A proxy that may have sent the request more than once."""
    EDGE = "edge"
    """Cloudflare, in the gateway's place."""
    API = "api"
    """An unmarked error object in the shape of OpenAI's API: a gateway or a proxy."""
    OTHER = "other"
    """Anything else: a firewall, a load balancer, a web server."""


# --- codes ------------------------------------------------------------------------------------------------------

CHANNEL = "This is the fault of the gateway's channel, not of your token or request. Ask JojoKey support to check it."
SETUP = "Only an administrator of the gateway can fix this. Send JojoKey support the code and the request ID."


class Verdict(NamedTuple):
    """What an error code stands for."""

    kind: Kind
    summary: str = ""
    advice: str = ""


_CHANNEL_FAILED = Verdict(Kind.NO_CHANNEL, "The gateway's channel for this model failed", CHANNEL)
_KEY_FAILED = Verdict(Kind.NO_CHANNEL, "The key of the gateway's channel was rejected", CHANNEL)
_NOT_SET_UP = Verdict(Kind.ACCESS, "The gateway is not set up to serve this model", SETUP)

# Compared without case and punctuation: content_filter and contentFilter are one code.
CODES: Mapping[str, Verdict] = {
    re.sub("[^a-z0-9]", "", code.lower()): verdict
    for verdict, codes in (
        (Verdict(Kind.ACCESS), "access_denied model_access_denied"),
        (Verdict(Kind.QUOTA), "insufficient_user_quota pre_consume_token_quota_failed insufficient_quota "
                              "billing_hard_limit_reached billing_not_active budget_exceeded quota_exceeded "
                              "insufficient_balance insufficient_credits payment_required Arrearage "
                              "ExceededBudget quota_not_enough"),
        (Verdict(Kind.REQUEST), "invalid_request unknown_parameter invalid_value convert_request_failed "
                                "invalid_parameter unsupported_parameter missing_required_parameter "
                                "invalid_image_size unsupported_value invalid_size InvalidParameter "
                                "string_above_max_length invalid_json read_request_body_failed"),
        (Verdict(Kind.CONTENT), "sensitive_words_detected moderation_blocked content_policy_violation content_filter "
                                "DataInspectionFailed data_inspection_failed prompt_blocked content_blocked "
                                "ResponsibleAIPolicyViolation image_safety prohibited_content safety_violation "
                                "content_moderation policy_violation content_filtered image_generation_blocked "
                                "safety_system_blocked RECITATION SAFETY content_violation content_policy"),
        (Verdict(Kind.RATE_LIMIT), "rate_limit_exceeded rate_limit_error too_many_requests rate_limit_reached "
                                   "RateLimitReached requests_per_minute_exceeded resource_exhausted "
                                   "Throttling throttling_error"),
        (Verdict(Kind.OVERLOADED), "do_request_failed bad_response_status_code read_response_body_failed "
                                   "bad_response_body bad_response empty_response server_error overloaded_error "
                                   "service_unavailable internal_server_error internal_error engine_overloaded "
                                   "slow_down model_overloaded"),
        (Verdict(Kind.NO_CHANNEL), "get_channel_failed no_available_channel channel:no_available_key"),
        (_CHANNEL_FAILED, "DeploymentNotFound channel_error"),
        (_KEY_FAILED, "channel:invalid_key"),
        (_NOT_SET_UP, "model_price_error channel:model_mapped_error model_not_priced"),
    )
    for code in codes.split()
}  # fmt: skip

# By their beginning, after the whole codes.
PREFIXES: tuple[tuple[str, Verdict], ...] = (
    ("violation_fee", Verdict(Kind.CONTENT)),
    ("entitlement", Verdict(Kind.QUOTA)),
    ("system_", Verdict(Kind.OVERLOADED)),
    ("channel:", _CHANNEL_FAILED),
)

# The upstream API's own errors of authentication: relayed by the gateway, they are about its channel's key.
KEY_CODES = {"invalid_api_key", "authentication_error", "account_deactivated", "invalid_authentication",
             "AuthenticationError", "InvalidApiKey", "Unauthorized", "UNAUTHENTICATED"}  # fmt: skip

# --- who answered -----------------------------------------------------------------------------------------------

_API_STATUS: Mapping[int, Kind] = {
    400: Kind.REQUEST,
    401: Kind.TOKEN,
    402: Kind.QUOTA,
    403: Kind.ACCESS,
    404: Kind.BASE_URL,
    405: Kind.BASE_URL,
    413: Kind.REQUEST,
    422: Kind.REQUEST,
    429: Kind.RATE_LIMIT,
}
_OTHER_STATUS: Mapping[int, Kind] = {**_API_STATUS, 403: Kind.EDGE_BLOCKED, 407: Kind.UNREACHABLE}
_EDGE_STATUS: Mapping[int, Kind] = {
    **_OTHER_STATUS,
    521: Kind.UNREACHABLE,
    523: Kind.UNREACHABLE,
    525: Kind.TLS,
    526: Kind.TLS,
    530: Kind.UNREACHABLE,
    1000: Kind.UNREACHABLE,
    1001: Kind.UNREACHABLE,
    1015: Kind.RATE_LIMIT,
    1016: Kind.UNREACHABLE,
    1033: Kind.UNREACHABLE,
}

REFUSALS = {
    400,
    401,
    402,
    403,
    404,
    405,
    406,
    407,
    410,
    411,
    413,
    414,
    415,
    417,
    421,
    422,
    426,
    428,
    429,
    431,
    451,
}
"""Unmarked, these still say that the request went no further. Other 4xx and 5xx do not."""
FAILURES = {408, 424, 425, 499}
"""4xx that are failures of the server or of what is behind it, like 5xx."""


class Rule(NamedTuple):
    """What a sender's errors mean.

    :param statuses: status → kind, where no code decides
    :param refused: the kind of another refusal
    :param failed: the kind of 5xx and of :data:`FAILURES`
    :param proves: which of its errors prove that nothing was billed
    """

    statuses: Mapping[int, Kind]
    refused: Kind
    failed: Kind
    proves: str


_UNPROVEN: Mapping[Sender, str] = {
    Sender.RELAY: "A proxy in front of JojoKey reported an error",
    Sender.API: "An error came back that does not bear JojoKey's mark",
    Sender.OTHER: "An error came back that does not bear JojoKey's mark",
}

RULES: Mapping[Sender, Rule] = {
    Sender.GATEWAY: Rule(_API_STATUS, Kind.REQUEST, Kind.OVERLOADED, "all"),
    Sender.RELAY: Rule(_API_STATUS, Kind.REQUEST, Kind.UNKNOWN_OUTCOME, "none"),
    Sender.EDGE: Rule(_EDGE_STATUS, Kind.EDGE_BLOCKED, Kind.UNKNOWN_OUTCOME, "known"),
    Sender.API: Rule(_API_STATUS, Kind.REQUEST, Kind.UNKNOWN_OUTCOME, "refusals"),
    Sender.OTHER: Rule(_OTHER_STATUS, Kind.EDGE_BLOCKED, Kind.UNKNOWN_OUTCOME, "refusals"),
}

# Headers of proxies that retry by themselves. Generic names follow: …-retry-count, …-attempt, …-fallback.
_RELAY_PREFIXES = (
    "x-litellm-",
    "llm_provider-",
    "x-portkey-",
    "helicone-",
    "x-helicone-",
    "x-bifrost-",
    "x-bf-",
)
_RELAY_WORDS = re.compile(r"(?:^|[-_])(?:retr(?:y|ies)|retried|attempts?|attempted|fallbacks?)(?:[-_]|$)")
_NO_RELAY = {"retry-after", "retry-after-ms", "x-retry-after", "x-should-retry", "x-amz-retry-after"}
_RELAY_MESSAGE = re.compile(r"\blitellm\.|\bLiteLLM\b")
"""The one message that is looked at: it can only make an outcome less certain, never allow a payment."""


def is_relay(headers: Mapping[str, str]) -> bool:
    """Return whether a response bears marks of a proxy that retries.

    :param headers: the response's headers, with lower-case names
    """
    return any(
        name.startswith(_RELAY_PREFIXES) or (name not in _NO_RELAY and _RELAY_WORDS.search(name))
        for name in headers
    )


def from_response(
    status: int, headers: Mapping[str, str], body: bytes, *, secret: str = "", document: Any = None
) -> Img2Error:
    """Return the error that a response without images stands for.

    :param status: the HTTP status
    :param headers: the response's headers, looked up without regard to case
    :param body: the body's beginning
    :param secret: a text that must not appear in the error, the token
    :param document: the body as JSON, where the caller has parsed it already
    """
    headers = {name.lower(): value for name, value in headers.items()}
    if document is None:
        document = _parse(body)
    failure = say(document)
    cloudflare = document if isinstance(document, dict) and document.get("cloudflare_error") else {}
    edge_code = _edge_code(status, headers, body, cloudflare)
    sender = _sender(headers, failure, edge_code)
    verdict, billed = _judge(status, sender, failure, edge_code)
    kind, summary, advice = verdict
    if 300 <= status < 400:
        summary = "The address of the image API redirects, and a paid request is never redirected"
    if 200 <= status < 300:
        (kind, summary, advice), billed = _judge_success(verdict, billed, failure, document, headers, body)
    if kind is Kind.UNKNOWN_OUTCOME and "524" in (edge_code, str(status)):
        summary = "JojoKey was still generating when Cloudflare gave up waiting (after 100 to 125 seconds)"
    task_id = find_task_id(document) if 200 <= status < 300 and kind is Kind.REPLY else None
    if task_id:
        task_id = clean(task_id, secret)[:MAX_CODE_CHARACTERS]
        summary = f"This gateway answered with a task (ID {task_id}), which this package does not wait for"
        advice = "Use a model or group whose channel answers with the image, or fetch the task's image from JojoKey."
    words = clean(_QUOTED_ID.sub("", failure.message) or _plain_text(headers, body, cloudflare), secret)
    error = Img2Error(
        kind,
        summary,
        billed=billed,
        detail=words,
        status_code=status,
        code=clean(failure.code, secret)[:MAX_CODE_CHARACTERS] or edge_code or None,
        request_id=clean(headers.get("x-oneapi-request-id") or _quoted_id(failure.message), secret) or None,
        cf_ray=clean(headers.get("cf-ray") or str(cloudflare.get("ray_id") or ""), secret) or None,
        retry_after=read_retry_after(headers, document) if ADVICE[kind].passing else None,
        advice=advice or _advice(kind, sender, bool(words)),
    )
    error.task_id = task_id
    error.usage = find_usage(document)
    return error


def _judge(status: int, sender: Sender, failure: Failure, edge_code: str | None) -> tuple[Verdict, Billed]:
    """Return what an error stands for and whether it was billed: code first, then sender and status."""
    rule = RULES[sender]
    number = int(edge_code) if sender is Sender.EDGE and edge_code else status
    if status < 200:
        return Verdict(Kind.UNKNOWN_OUTCOME), "unknown"  # an interim response, or a switch of protocols
    verdict = _verdict_of_codes(failure, status, sender) if sender is not Sender.EDGE else None
    if verdict is None:
        verdict = Verdict(_kind_of_status(number, rule))
    if any(code.startswith("violation_fee") for code in failure.codes):
        return verdict, "yes"
    proven = {
        "all": True,
        "none": False,
        "known": verdict.kind is not Kind.UNKNOWN_OUTCOME,
        "refusals": status in REFUSALS or 300 <= status < 400,
    }[rule.proves]
    if not proven and ADVICE[verdict.kind].passing:
        verdict = Verdict(Kind.UNKNOWN_OUTCOME, _UNPROVEN.get(sender, ""))
    if verdict.kind is Kind.UNKNOWN_OUTCOME:
        return verdict, "unknown"
    return verdict, "no" if proven else "unknown"


def _kind_of_status(number: int, rule: Rule) -> Kind:
    if number < 300:
        return Kind.REPLY
    if number < 400:
        return Kind.BASE_URL
    if (known := rule.statuses.get(number)) is not None:
        return known
    refused = number >= 1000 or number in REFUSALS or (rule.proves == "all" and number < 500)
    return rule.refused if refused and number not in FAILURES else rule.failed


def _verdict_of_codes(failure: Failure, status: int, sender: Sender) -> Verdict | None:
    """Return what the error's codes stand for, if one is known."""
    for code in failure.codes:
        if code == "model_not_found":
            return Verdict(Kind.NO_CHANNEL if status == 503 else Kind.ACCESS)
        if code in KEY_CODES and sender is Sender.GATEWAY and failure.type != "new_api_error":
            return _KEY_FAILED
        if (verdict := CODES.get(re.sub("[^a-z0-9]", "", code.lower()))) is not None:
            return verdict
        for prefix, verdict in PREFIXES:
            if code.startswith(prefix):
                return verdict
    return None


def _sender(headers: Mapping[str, str], failure: Failure, edge_code: str | None) -> Sender:
    if is_relay(headers):
        return Sender.RELAY
    if edge_code:
        return Sender.EDGE
    if headers.get("x-oneapi-request-id"):
        return Sender.GATEWAY  # even if its own channel is such a proxy: the gateway refunds what it fails
    if _RELAY_MESSAGE.search(failure.message):
        return Sender.RELAY
    return Sender.API if failure.shaped else Sender.OTHER


def _judge_success(
    verdict: Verdict,
    billed: Billed,
    failure: Failure,
    document: Any,
    headers: Mapping[str, str],
    body: bytes,
) -> tuple[Verdict, Billed]:
    """Judge a 2xx without images: the gateway believes that it succeeded, and bills what succeeds."""
    if failure.shaped or find_failure(document) is not None:
        if ADVICE[verdict.kind].passing or verdict.kind is Kind.REPLY:
            return Verdict(Kind.UNKNOWN_OUTCOME, "JojoKey reported success with an error inside"), "unknown"
        summary = f"{verdict.summary or ADVICE[verdict.kind].summary}, inside a response of success"
        return Verdict(verdict.kind, summary, verdict.advice), "yes" if billed == "yes" else "unknown"
    if _is_html(headers, body):
        return Verdict(Kind.BASE_URL, "A web page answered instead of the image API"), (
            "unknown" if is_relay(headers) else "no"
        )
    return Verdict(Kind.REPLY, "JojoKey reported success without an image"), "yes"


def _advice(kind: Kind, sender: Sender, has_words: bool) -> str:
    if kind is Kind.REQUEST:
        return (
            "Change the request: the message above says what is wrong."
            if has_words
            else ("Change the request. The gateway gave no reason.")
        )
    if sender is Sender.RELAY and kind is Kind.UNKNOWN_OUTCOME:
        return (
            "A proxy in front of JojoKey answered. It may have sent the request several times and reports only the "
            "last error. Turn off its retries (num_retries: 0 in LiteLLM), or connect to JojoKey directly."
        )
    return ""


_EDGE_TEXT = re.compile(rb"\s*error code:\s*([0-9]{3,4})\b", re.IGNORECASE)
_EDGE_PAGE = re.compile(rb"(?:error code|error-code|Error|cf-error-code\">)\s*:?\s*([0-9]{3,4})\b")


def _edge_code(
    status: int, headers: Mapping[str, str], body: bytes, cloudflare: Mapping[str, Any]
) -> str | None:
    """Return Cloudflare's error number (``524``, ``1010`` …) if the response is Cloudflare's own."""
    if cloudflare:
        code = str(cloudflare.get("error_code") or status)
        return code if re.fullmatch("[0-9]{3,4}", code) else str(status)
    if "x-oneapi-request-id" in headers or status < 400:
        return None
    if text := _EDGE_TEXT.match(body):
        return text[1].decode()
    from_edge = "cf-ray" in headers or headers.get("server", "").lower() == "cloudflare"
    if from_edge and (_is_html(headers, body) or not body.strip()):
        if "cf-mitigated" in headers:
            return "1020"
        page = _EDGE_PAGE.search(body)
        code = page[1].decode() if page else str(status)
        return code if len(code) == 4 or code == str(status) else str(status)
    return None


def _parse(body: bytes) -> Any:
    """Return the body as JSON; of lines or events, the first that reports an error."""
    text = body.decode("utf-8-sig", "replace")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    for line in text.splitlines()[:100]:
        line = line.removeprefix("data:").strip()
        try:
            document = json.loads(line) if line[:1] == "{" else None
        except (ValueError, RecursionError):
            continue
        if document is not None and find_failure(document) is not None:
            return document
    return None


def _is_html(headers: Mapping[str, str], body: bytes) -> bool:
    return (
        "html" in headers.get("content-type", "").lower() or body.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"<"
    )


def _plain_text(headers: Mapping[str, str], body: bytes, cloudflare: Mapping[str, Any]) -> str:
    if cloudflare:
        return str(cloudflare.get("detail") or cloudflare.get("title") or "")
    if _is_html(headers, body):
        title = re.search(rb"<title[^<>]{0,200}>([^<]{0,500})</title>", body, re.IGNORECASE)
        body = title[1] if title else b""
    elif body.lstrip().startswith((b"{", b"[", b"data:", b"event:", b":")):
        return ""  # JSON or events without a message: nothing in it is written for people
    return body[:4096].decode("utf-8", errors="replace")


_QUOTED_ID = re.compile(r"\(request[ _]id: ([A-Za-z0-9._-]{1,100})\)")


def _quoted_id(message: str) -> str:
    """Return the request ID that a message quotes: useful for support, and no proof of anything."""
    found = _QUOTED_ID.search(message)
    return found[1] if found else ""
