"""Decide which error a response means, and whether it proves that nothing was billed.

The error's code counts first, then signs of Cloudflare, then the sender of the response, then the status.
Messages are displayed, never parsed, because they come in two languages and change.

``billed="no"`` needs proof. The gateway refunds requests that it fails itself, and its own responses carry the
header ``X-Oneapi-Request-Id``. A request ID quoted in a message is not proof, because proxies copy messages. A
retrying proxy such as LiteLLM reports only its last attempt, and an earlier one may have been billed, so its
responses prove nothing. Cloudflare calls its 520, 522 and 524 retryable; they are not, because the generation
behind them continues and is billed.

Sources: the vendor's documentation, the gateway's behavior, Cloudflare's error pages, public bug reports.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, NamedTuple

from airflow_provider_jojokey.img2.codes import Meaning, has_fee, meaning_of_codes
from airflow_provider_jojokey.img2.errors import ADVICE, Billed, Img2Error, Kind
from airflow_provider_jojokey.img2.images import begins_binary
from airflow_provider_jojokey.img2.json_text import parse_json, without_blanks
from airflow_provider_jojokey.img2.messages import (
    Failure,
    find_failure,
    find_task_id,
    find_task_link,
    read_failure,
    task_id_of,
)
from airflow_provider_jojokey.img2.redact import clean
from airflow_provider_jojokey.img2.retry_after import read_retry_after
from airflow_provider_jojokey.img2.usage import find_usage

MAX_CODE_CHARACTERS = 100


class Sender(StrEnum):
    """The parties that may respond to a request."""

    GATEWAY = "gateway"
    """The gateway itself, identified by its header."""
    RELAY = "relay"
    """A proxy that may have sent the request more than once."""
    EDGE = "edge"
    """Cloudflare, instead of the gateway."""
    API = "api"
    """An error object in the format of OpenAI's API, without the gateway's header: a gateway or a proxy."""
    OTHER = "other"
    """Anything else: a firewall, a load balancer, a web server."""


# --- senders ----------------------------------------------------------------------------------------------------

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

REDIRECTS = {301, 302, 307, 308}
"""Redirects that ask the client to send the request elsewhere, so it was not processed here.

They come from routers and logins before anything is forwarded: new-api redirects unknown paths to its console (301),
web servers correct the scheme, host or path of a request, and Cloudflare Access leads to its login (302).

``303 See Other`` leads to the result of a request that was processed (RFC 9110, 15.4.4). The other 3xx prove nothing.
"""
REJECTIONS = {
    *REDIRECTS,
    *(400, 401, 402, 403, 404, 405, 406, 407, 410, 411, 413),
    *(414, 415, 417, 421, 422, 426, 428, 429, 431, 451),
}
"""Even without the gateway's header, these statuses mean that the request was not processed."""
EDGE_REJECTIONS = {
    *(
        1000,
        1001,
        1002,
        1003,
        1004,
        1005,
        1006,
        1007,
        1008,
        1009,
        1010,
        1011,
        1012,
        1013,
        1014,
        1015,
        1016,
        1018,
    ),
    *(1020, 1023, 1027, 1033, 1034, 1035, 1036, 1037, 1041, 1106),
}
"""Cloudflare's numbers for requests that it does not forward: its DNS, firewall, rate limits and rewrite rules.

Other numbers prove nothing. For example, a Worker that fails (1101, 1102) may have forwarded the request.
Source: Cloudflare's list of 1xxx errors.
"""
HTTP_EDGE_FAILED = 530
"""The 5xx status of Cloudflare's own errors with a four-digit number."""
HTTP_RATE_LIMITED = 429
FAILURES = {408, 424, 425, 499}
"""4xx statuses that report a failure of the server or its upstream, like 5xx."""


class Rule(NamedTuple):
    """The meaning of a sender's errors.

    :param statuses: status → kind, if no code decides
    :param rejected: the kind of any other rejection
    :param failed: the kind of 5xx and of :data:`FAILURES`
    :param proves: which of its errors prove that nothing was billed: all, none, known statuses or rejections
    """

    statuses: Mapping[int, Kind]
    rejected: Kind
    failed: Kind
    proves: str


_AMBIGUOUS_REDIRECT = Meaning(
    Kind.UNKNOWN_OUTCOME,
    "The response is a redirect that may lead to the result of the request, and paid requests never follow redirects",
    ADVICE[Kind.BASE_URL].todo,
)

_UNPROVEN: Mapping[Sender, str] = {
    Sender.RELAY: "A proxy in front of JojoKey reported an error",
    Sender.API: "The error response lacks the header with JojoKey's request ID",
    Sender.OTHER: "The error response lacks the header with JojoKey's request ID",
}

RULES: Mapping[Sender, Rule] = {
    Sender.GATEWAY: Rule(_API_STATUS, Kind.REQUEST, Kind.OVERLOADED, "all"),
    Sender.RELAY: Rule(_API_STATUS, Kind.REQUEST, Kind.UNKNOWN_OUTCOME, "none"),
    Sender.EDGE: Rule(_EDGE_STATUS, Kind.EDGE_BLOCKED, Kind.UNKNOWN_OUTCOME, "known"),
    Sender.API: Rule(_API_STATUS, Kind.REQUEST, Kind.UNKNOWN_OUTCOME, "rejections"),
    Sender.OTHER: Rule(_OTHER_STATUS, Kind.EDGE_BLOCKED, Kind.UNKNOWN_OUTCOME, "rejections"),
}

# Headers of retrying proxies. _RELAY_WORDS matches generic names: …-retry-count, …-attempt, …-fallback.
_RELAY_PREFIXES = (
    "x-litellm-",
    "llm_provider-",
    "x-portkey-",
    "helicone-",
    "x-helicone-",
    "x-bifrost-",
    "x-bf-",
)
_RELAY_WORDS = re.compile(
    r"(?:^|[-_])(?:(?<!should[-_])retr(?:y(?![-_]after)|ies)|retried|attempts?|attempted|fallbacks?)(?:[-_]|$)"
)
_RELAY_MESSAGE = re.compile(r"\blitellm\.|\bLiteLLM\b")
"""The only message that is parsed. It can only make an outcome less certain, never allow a payment."""


def is_relay(headers: Mapping[str, str]) -> bool:
    """Return whether a response comes from a retrying proxy.

    :param headers: the response's headers, with lower-case names
    """
    return any(name.startswith(_RELAY_PREFIXES) or _RELAY_WORDS.search(name) for name in headers)


def from_response(
    status: int, headers: Mapping[str, str], body: bytes, *, secret: str = "", document: Any = None
) -> Img2Error:
    """Return the error for a response without images.

    :param status: the HTTP status
    :param headers: the response's headers, in any case
    :param body: the beginning of the body
    :param secret: the token, which must not appear in the error
    :param document: the body as JSON, if the caller has already parsed it
    """
    headers = {name.lower(): value for name, value in headers.items()}
    if document is None:
        document = _parse(body)
    failure = read_failure(document)
    cloudflare = document if isinstance(document, dict) and document.get("cloudflare_error") else {}
    edge_code = _edge_code(status, headers, body, cloudflare)
    sender = _sender(headers, failure, edge_code)
    meaning, billed = _classify(status, sender, failure, edge_code)
    kind, summary, advice = meaning
    if sender is Sender.EDGE and kind is Kind.TLS:
        summary = "Cloudflare could not establish a TLS connection to JojoKey"
    if status in REDIRECTS:
        summary = "The address of the image API redirects, and paid requests never follow redirects"
    if 200 <= status < 300:
        (kind, summary, advice), billed = _classify_success(meaning, billed, failure, document, headers, body)
    if kind is Kind.UNKNOWN_OUTCOME and "524" in (edge_code, str(status)):
        summary = "Cloudflare timed out (after 100 to 125 seconds) while JojoKey was still generating"
    task_id = None
    if 200 <= status < 300 and kind is Kind.REPLY:
        task_id = find_task_id(document) or task_id_of(find_task_link(headers))
    if task_id:
        task_id = clean(task_id, secret)[:MAX_CODE_CHARACTERS]
        summary = (
            f"The gateway started an asynchronous task (ID {task_id}), which this package does not support"
        )
        advice = "Use a model or group whose channel returns images directly, or fetch the task's image from JojoKey."
    detail = clean(_QUOTED_ID.sub("", failure.message) or _plain_text(headers, body, cloudflare), secret)
    error = Img2Error(
        kind,
        summary,
        billed=billed,
        detail=detail,
        status_code=status,
        code=clean(failure.code, secret)[:MAX_CODE_CHARACTERS] or edge_code or None,
        request_id=clean(headers.get("x-oneapi-request-id") or _quoted_id(failure.message), secret) or None,
        cf_ray=clean(headers.get("cf-ray") or str(cloudflare.get("ray_id") or ""), secret) or None,
        retry_after=_retry_after(kind, status, headers, document),
        advice=advice or _advice(kind, sender, bool(detail)),
    )
    error.task_id = task_id
    error.usage = find_usage(document)
    return error


def _retry_after(kind: Kind, status: int, headers: Mapping[str, str], document: Any) -> float | None:
    if not ADVICE[kind].transient:
        return None
    return read_retry_after(headers, document, limited=kind is Kind.RATE_LIMIT or status == HTTP_RATE_LIMITED)


def _classify(status: int, sender: Sender, failure: Failure, edge_code: str | None) -> tuple[Meaning, Billed]:
    """Return the meaning of an error and whether it was billed: by code, then by sender and status."""
    rule = RULES[sender]
    number = int(edge_code) if sender is Sender.EDGE and edge_code else status
    if status < 200:
        return Meaning(Kind.UNKNOWN_OUTCOME), "unknown"  # an interim response or a protocol switch
    if 300 <= status < 400 and status not in REDIRECTS:
        return _AMBIGUOUS_REDIRECT, "unknown"
    meaning = (
        meaning_of_codes(failure, status, sender is Sender.GATEWAY) if sender is not Sender.EDGE else None
    )
    if meaning is None:
        meaning = Meaning(_kind_of_status(number, rule))
    if has_fee(failure):
        return meaning, "yes"
    proven = {
        "all": True,
        "none": False,
        "known": meaning.kind is not Kind.UNKNOWN_OUTCOME,
        "rejections": status in REJECTIONS,
    }[rule.proves]
    if not proven and ADVICE[meaning.kind].transient:
        meaning = Meaning(Kind.UNKNOWN_OUTCOME, _UNPROVEN.get(sender, ""))
    if meaning.kind is Kind.UNKNOWN_OUTCOME:
        return meaning, "unknown"
    return meaning, "no" if proven else "unknown"


def _kind_of_status(number: int, rule: Rule) -> Kind:
    if number < 300:
        return Kind.REPLY
    if number < 400:
        return Kind.BASE_URL
    if (known := rule.statuses.get(number)) is not None:
        return known
    rejected = number in REJECTIONS | EDGE_REJECTIONS or (rule.proves == "all" and number < 500)
    return rule.rejected if rejected and number not in FAILURES else rule.failed


def _sender(headers: Mapping[str, str], failure: Failure, edge_code: str | None) -> Sender:
    if is_relay(headers):
        return Sender.RELAY
    if edge_code:
        return Sender.EDGE
    if headers.get("x-oneapi-request-id"):
        return Sender.GATEWAY  # even if its channel is a retrying proxy: the gateway refunds failed requests
    if _RELAY_MESSAGE.search(failure.message):
        return Sender.RELAY
    return Sender.API if failure.structured else Sender.OTHER


def _classify_success(
    meaning: Meaning,
    billed: Billed,
    failure: Failure,
    document: Any,
    headers: Mapping[str, str],
    body: bytes,
) -> tuple[Meaning, Billed]:
    """Classify a 2xx response without images. The gateway regards it as a success, and bills it."""
    # A known code says enough, such as a finish_reason of content_filter. Other codes may be those of a success.
    explained = failure.message or meaning.kind is not Kind.REPLY
    says_failure = failure.code and explained and find_task_id(document) is None
    if failure.structured or find_failure(document) is not None or says_failure:
        if ADVICE[meaning.kind].transient or meaning.kind is Kind.REPLY:
            return Meaning(
                Kind.UNKNOWN_OUTCOME, "JojoKey returned an error with a status of success"
            ), "unknown"
        summary = f"{meaning.summary or ADVICE[meaning.kind].summary}, in a response with a status of success"
        return Meaning(meaning.kind, summary, meaning.advice), "yes" if billed == "yes" else "unknown"
    if document is None and _is_html(headers, body):  # some servers label JSON as HTML
        # The gateway serves its console at other paths. A proxy's page may replace an image, and a label alone proves
        # nothing: a program that ends early sends an empty body with its default type.
        from_console = headers.get("x-oneapi-request-id") and _is_html({}, body) and not is_relay(headers)
        return Meaning(Kind.BASE_URL, "The address returned a web page instead of an API response"), (
            "no" if from_console else "unknown"
        )
    return Meaning(Kind.REPLY, "JojoKey reported success without an image"), "yes"


_ADVICE_BY_SENDER: Mapping[tuple[Kind, Sender], str] = {
    (
        Kind.UNKNOWN_OUTCOME,
        Sender.RELAY,
    ): "A proxy in front of JojoKey responded. It may have sent the request several "
    "times, and reports only the last error. Turn off its retries (num_retries: 0 in LiteLLM), or connect to JojoKey "
    "directly.",
    (
        Kind.TLS,
        Sender.EDGE,
    ): "The gateway's certificate or TLS setup is broken. Send JojoKey support the cf-ray and the time.",
    (
        Kind.EDGE_BLOCKED,
        Sender.OTHER,
    ): "A proxy or firewall on the way rejected it, such as that of your network. Ask "
    "its administrator, or connect without it.",
}


def _advice(kind: Kind, sender: Sender, has_detail: bool) -> str:
    if kind is Kind.REQUEST:
        return (
            "Change the request as the gateway's message says."
            if has_detail
            else ("Change the request. The gateway gave no reason.")
        )
    return _ADVICE_BY_SENDER.get((kind, sender), "")


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
        # A page of the server behind Cloudflare may have an error number of its own, such as one of its database.
        # Cloudflare's pages for requests that it does not forward have a 4xx status or 530.
        if 500 <= status != HTTP_EDGE_FAILED:
            return str(status)
        numbers = (int(found[1]) for found in _EDGE_PAGE.finditer(body))
        return str(next((number for number in numbers if number in EDGE_REJECTIONS), status))
    return None


def _parse(body: bytes) -> Any:
    """Return the body as JSON. If it is lines or events, return the first one that reports an error."""
    if (document := parse_json(body)) is not None:
        return document
    for line in body.decode("utf-8-sig", "replace").splitlines()[:100]:
        line = line.removeprefix("data:").strip()
        document = parse_json(line) if line[:1] == "{" else None
        if document is not None and find_failure(document) is not None:
            return document
    return None


def _is_html(headers: Mapping[str, str], body: bytes) -> bool:
    return "html" in headers.get("content-type", "").lower() or without_blanks(body).startswith(b"<")


def _plain_text(headers: Mapping[str, str], body: bytes, cloudflare: Mapping[str, Any]) -> str:
    if cloudflare:
        return str(cloudflare.get("detail") or cloudflare.get("title") or "")
    if begins_binary(body) or b"\0" in body:
        return ""  # an image or compressed data, which must not be displayed
    if _is_html(headers, body):
        title = re.search(rb"<title[^<>]{0,200}>([^<]{0,500})</title>", body, re.IGNORECASE)
        body = title[1] if title else b""
    elif body.lstrip().startswith((b"{", b"[", b"data:", b"event:", b":")):
        return ""  # JSON or events without a human-readable message
    return body[:4096].decode("utf-8", errors="replace")


_QUOTED_ID = re.compile(r"\(request[ _]id: ([A-Za-z0-9._-]{1,100})\)")


def _quoted_id(message: str) -> str:
    """Return the request ID that a message quotes. It helps support but proves nothing."""
    found = _QUOTED_ID.search(message)
    return found[1] if found else ""
