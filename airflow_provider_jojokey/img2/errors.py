"""What went wrong, whether it cost money, and what to do: one decision for every bad answer.

Decided in this order: the body's ``error.code``; Cloudflare's marks; whether the gateway itself
replied; the status. The gateway's marks are its header, the request id in its message, its type of
error and its own codes. A JSON error without one has OpenAI's shape, which many a proxy takes too:
with a 408 or 5xx it tells nothing of what goes on behind the proxy, and its code is not believed.
Texts are shown, never matched: they come in two languages and change. Sources: the vendor's page,
the gateway's behaviour, Cloudflare's error pages.

``billed="no"`` is said only where it is sure: where the request did not leave, or where the
gateway itself answered with an error, which it refunds. Cloudflare calls its 520, 522 and 524
"retryable"; they are not, because the generation behind them goes on and is billed.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Any, Literal

Billed = Literal["no", "yes", "unknown"]

MAX_DETAIL_CHARACTERS = 500
MAX_CODE_CHARACTERS = 100


class Kind(StrEnum):
    """The kinds of cause, by what a person has to do about them."""

    REQUEST = "request"
    TOKEN = "token"
    ACCESS = "access"
    EDGE_BLOCKED = "edge_blocked"
    QUOTA = "quota"
    CONTENT = "content"
    BASE_URL = "base_url"
    TLS = "tls"
    RATE_LIMIT = "rate_limit"
    NO_CHANNEL = "no_channel"
    OVERLOADED = "overloaded"
    UNREACHABLE = "unreachable"
    UNKNOWN_OUTCOME = "unknown_outcome"
    REPLY = "reply"


@dataclass(frozen=True, slots=True)
class Advice:
    """What a kind of cause means for a person.

    :param todo: what to do
    :param passing: whether the same request may succeed later without anyone doing anything
    """

    todo: str
    passing: bool = False


ADVICE: Mapping[Kind, Advice] = {
    Kind.REQUEST: Advice("Change the request: the gateway's words say what it did not accept."),
    Kind.TOKEN: Advice(
        "Check the token in the connection's password: it may be wrong, disabled, expired or used up. "
        "Make a new one in JojoKey's console if need be."
    ),
    Kind.ACCESS: Advice(
        "This token may not use this model, group or address. Make a token in the image group that has "
        "the model, or change the token's group, models or allowed addresses in JojoKey's console."
    ),
    Kind.EDGE_BLOCKED: Advice(
        "The network edge in front of JojoKey refused this machine before the gateway saw the request. "
        "Send JojoKey's support the cf-ray and the address this worker calls from."
    ),
    Kind.QUOTA: Advice("Top up the account, or raise the token's quota, in JojoKey's console."),
    Kind.CONTENT: Advice("The content check refused the prompt: word it differently."),
    Kind.BASE_URL: Advice(
        "Check the connection's host: the base URL of the API, https://api.jojokey.com "
        "(with or without /v1, without any further path)."
    ),
    Kind.TLS: Advice(
        "The TLS connection could not be trusted. Check the connection's host and the extra 'verify' "
        "(a CA bundle for a company proxy); if both are right, the gateway's certificate is broken."
    ),
    Kind.RATE_LIMIT: Advice(
        "Too many requests for this token. Put the tasks in an Airflow pool, or lower max_in_flight.",
        passing=True,
    ),
    Kind.NO_CHANNEL: Advice(
        "No channel serves this model in the token's group at the moment. If it lasts, ask JojoKey's "
        "support to check the channel.",
        passing=True,
    ),
    Kind.OVERLOADED: Advice("The gateway or the model behind it is overloaded or failing.", passing=True),
    Kind.UNREACHABLE: Advice(
        "The gateway could not be reached. Check the host, DNS, the proxy and the firewall of this worker "
        "if it lasts.",
        passing=True,
    ),
    Kind.UNKNOWN_OUTCOME: Advice(
        "The request was sent and its answer was lost. If it keeps happening, send JojoKey's support the "
        "request id or cf-ray and the time; for high quality or large sizes, set stream=True or ask for less.",
        passing=True,
    ),
    Kind.REPLY: Advice(
        "The gateway said yes but sent no usable image. Send JojoKey's support the request id: "
        "what was billed without an image can be refunded only there."
    ),
}

_BILLING = {
    "no": "Nothing was billed.",
    "yes": "It was very likely billed.",
    "unknown": "Whether it was billed is not known.",
}


class Img2Error(Exception):
    """A generation that gave no images.

    :param kind: the kind of cause
    :param summary: what happened, without a full stop
    :param billed: whether it cost money: ``"no"``, ``"yes"`` or ``"unknown"``
    :param detail: the gateway's own words, at most 500 characters, without secrets or image data
    :param status_code: the HTTP status, if there was one
    :param code: the body's ``error.code``, or Cloudflare's error number
    :param request_id: the gateway's request id, for the vendor's support
    :param cf_ray: Cloudflare's ray id, for the vendor's support
    :param retry_after: seconds that the server asked to wait
    :param advice: what to do, where it is more special than the kind's
    """

    def __init__(
        self,
        kind: Kind,
        summary: str,
        *,
        billed: Billed = "no",
        detail: str = "",
        status_code: int | None = None,
        code: str | None = None,
        request_id: str | None = None,
        cf_ray: str | None = None,
        retry_after: float | None = None,
        advice: str = "",
    ) -> None:
        self.kind = kind
        self.summary = summary
        self.billed = billed
        self.detail = detail
        self.status_code = status_code
        self.code = code
        self.request_id = request_id
        self.cf_ray = cf_ray
        self.retry_after = retry_after
        self.advice = advice or ADVICE[kind].todo
        self.salvaged: list[Any] = []
        """The images that had arrived whole before the reply broke off."""
        self.links: list[str] = []
        """Whole URLs of images that were paid for and could not be downloaded. Never in the message."""
        self.task_id: str | None = None
        """The ID of the asynchronous task that the gateway started instead of sending images."""
        self.usage: dict[str, Any] | None = None
        """The tokens that the response reported, normalized, if it did."""
        super().__init__(str(self))

    @property
    def is_safe_to_resend(self) -> bool:
        """Whether the same request may succeed later and was definitely not billed."""
        return self.billed == "no" and ADVICE[self.kind].passing

    resend_is_safe = is_safe_to_resend

    def __str__(self) -> str:
        said = f': "{self.detail}"' if self.detail else ""
        return f"{self.summary}{self._marks()}{said}. {_BILLING[self.billed]} {self.advice}"

    def __reduce__(self) -> tuple[Any, ...]:
        state = {name: value for name, value in vars(self).items() if name not in ("salvaged", "__notes__")}
        return _rebuild, (type(self), state)

    def _marks(self) -> str:
        marks = {
            "HTTP": self.status_code,
            "code": self.code,
            "request id": self.request_id,
            "cf-ray": self.cf_ray,
        }
        known = ", ".join(f"{name} {value}" for name, value in marks.items() if value)
        return f" ({known})" if known else ""


def _rebuild(cls: type[Img2Error], state: dict[str, Any]) -> Img2Error:
    found = {name: state.pop(name) for name in ("links", "task_id", "usage")}
    error = cls(**state)
    vars(error).update(found)
    return error


# error.code → kind. The gateway's own …
_GATEWAY_CODES: Mapping[str, Kind] = {
    "access_denied": Kind.ACCESS,
    "insufficient_user_quota": Kind.QUOTA,
    "pre_consume_token_quota_failed": Kind.QUOTA,
    "invalid_request": Kind.REQUEST,
    "sensitive_words_detected": Kind.CONTENT,
    "do_request_failed": Kind.OVERLOADED,
}
# … and those of the API behind it.
_CODES: Mapping[str, Kind] = {
    **_GATEWAY_CODES,
    "insufficient_quota": Kind.QUOTA,
    "billing_hard_limit_reached": Kind.QUOTA,
    "unknown_parameter": Kind.REQUEST,
    "invalid_value": Kind.REQUEST,
    "moderation_blocked": Kind.CONTENT,
    "content_policy_violation": Kind.CONTENT,
    "rate_limit_exceeded": Kind.RATE_LIMIT,
}

_GATEWAY_STATUS: Mapping[int, Kind] = {
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

# Who else may answer: an edge, a proxy, a web server with nothing behind it.
_STRANGER_STATUS: Mapping[int, Kind] = {
    **_GATEWAY_STATUS,
    403: Kind.EDGE_BLOCKED,
    407: Kind.UNREACHABLE,
    521: Kind.UNREACHABLE,
    523: Kind.UNREACHABLE,
    525: Kind.TLS,
    526: Kind.TLS,
    530: Kind.UNREACHABLE,
}

_SUMMARIES: Mapping[Kind, str] = {
    Kind.REQUEST: "JojoKey refused the request as invalid",
    Kind.TOKEN: "JojoKey refused the token",
    Kind.ACCESS: "JojoKey does not allow this token to do that",
    Kind.EDGE_BLOCKED: "The request was blocked before it reached JojoKey",
    Kind.QUOTA: "The balance is not enough for this request",
    Kind.CONTENT: "JojoKey refused the prompt for its content",
    Kind.BASE_URL: "There is no image API at this address",
    Kind.TLS: "No trusted connection to JojoKey could be made",
    Kind.RATE_LIMIT: "JojoKey limits the rate of requests",
    Kind.NO_CHANNEL: "JojoKey has no available channel for this model",
    Kind.OVERLOADED: "JojoKey could not do it now",
    Kind.UNREACHABLE: "JojoKey could not be reached",
    Kind.UNKNOWN_OUTCOME: "The answer of JojoKey was lost",
    Kind.REPLY: "JojoKey's reply cannot be used",
}


def from_response(
    status: int, headers: Mapping[str, str], body: bytes, *, secret: str = "", document: Any = None
) -> Img2Error:
    """Return the error that an HTTP answer without images stands for.

    :param status: the HTTP status
    :param headers: the answer's headers, looked up without regard to case
    :param body: the body's beginning
    :param secret: a text that must not appear in the error, the token
    :param document: the body as JSON, where the caller has parsed it already
    """
    headers = {name.lower(): value for name, value in headers.items()}
    if document is None:
        document = _parse(body)
    error = _error_object(document)
    message = str(error.get("message") or "")
    code = str(error.get("code") or "")
    request_id = headers.get("x-oneapi-request-id") or _request_id_in(message)
    cloudflare = document if isinstance(document, dict) and document.get("cloudflare_error") else {}
    edge_code = _edge_code(status, headers, body, cloudflare)
    # {"error": "a text"} is what many a proxy says; the gateway's errors are objects.
    in_its_shape = bool(error) and not isinstance(document.get("error"), str)
    marked = bool(request_id) or error.get("type") == "new_api_error" or _is_gateways_own(code)
    may_go_on = status == 408 or status >= 500
    by_gateway = not cloudflare and (marked or (in_its_shape and not may_go_on))

    billed: Billed = "no"
    kind = _kind_of_code(code, status) if marked or not may_go_on else None
    if kind is None:
        if edge_code:
            kind = _kind_of_edge(edge_code)
        elif in_its_shape and not by_gateway:
            kind = Kind.UNKNOWN_OUTCOME
        elif by_gateway:
            kind = _kind_of_gateway(status)
        else:
            kind = _kind_of_stranger(status, headers)
    if code.startswith("violation_fee"):
        billed = "yes"
    if kind is Kind.UNKNOWN_OUTCOME:
        billed = "unknown"
    summary = _SUMMARIES[kind]
    if 300 <= status < 400:
        summary = "The address of the image API redirects, and a paid request is never redirected"
    if 200 <= status < 300:
        kind, billed, summary = _inside_a_200(kind, bool(error), headers, body, billed)
    if kind is Kind.UNKNOWN_OUTCOME and "524" in (edge_code, str(status)):
        summary = "JojoKey was still generating when Cloudflare cut the wait (100 to 125 seconds)"
    return Img2Error(
        kind,
        summary,
        billed=billed,
        detail=clean(_REQUEST_ID.sub("", message) or _plain_text(headers, body, cloudflare), secret),
        status_code=status,
        code=clean(code, secret)[:MAX_CODE_CHARACTERS] or edge_code or None,
        request_id=clean(request_id, secret) or None,
        cf_ray=clean(headers.get("cf-ray") or str(cloudflare.get("ray_id") or ""), secret) or None,
        retry_after=_retry_after(headers, cloudflare) if ADVICE[kind].passing else None,
    )


def _inside_a_200(
    kind: Kind, has_error: bool, headers: Mapping[str, str], body: bytes, billed: Billed
) -> tuple[Kind, Billed, str]:
    """A 200 without images: the gateway believes that it succeeded, and bills what succeeds."""
    if has_error:
        if kind in (Kind.CONTENT, Kind.REQUEST, Kind.QUOTA, Kind.ACCESS, Kind.TOKEN):
            return (
                kind,
                "yes" if billed == "yes" else "unknown",
                f"{_SUMMARIES[kind]}, inside a reply of success",
            )
        return Kind.UNKNOWN_OUTCOME, "unknown", "JojoKey reported success with an error inside"
    if _is_html(headers, body):
        return Kind.BASE_URL, "no", "A web page answered instead of the image API"
    return Kind.REPLY, "yes", "JojoKey reported success without an image"


def _kind_of_code(code: str, status: int) -> Kind | None:
    if code == "model_not_found":
        return Kind.NO_CHANNEL if status == 503 else Kind.ACCESS
    if code.startswith("violation_fee"):
        return Kind.CONTENT
    if code.startswith("system_"):
        return Kind.OVERLOADED
    return _CODES.get(code)


def _is_gateways_own(code: str) -> bool:
    return (
        code in _GATEWAY_CODES or code == "model_not_found" or code.startswith(("system_", "violation_fee"))
    )


def _kind_of_gateway(status: int) -> Kind:
    if status < 300:
        return Kind.REPLY
    if status < 400:
        return Kind.BASE_URL
    return _GATEWAY_STATUS.get(
        status, Kind.OVERLOADED if status >= 500 or status in (408, 425) else Kind.REQUEST
    )


def _kind_of_edge(code: str) -> Kind:
    if code == "1015":
        return Kind.RATE_LIMIT
    if len(code) == 4:
        return Kind.UNREACHABLE if code in ("1000", "1001", "1016", "1033") else Kind.EDGE_BLOCKED
    return _STRANGER_STATUS.get(int(code), Kind.UNKNOWN_OUTCOME)


def _kind_of_stranger(status: int, headers: Mapping[str, str]) -> Kind:
    if status < 400:
        return Kind.REPLY if status < 300 else Kind.BASE_URL
    if status == 503 and "retry-after" in headers:
        return Kind.OVERLOADED
    return _STRANGER_STATUS.get(
        status, Kind.UNKNOWN_OUTCOME if status >= 500 or status == 408 else Kind.EDGE_BLOCKED
    )


_EDGE_TEXT = re.compile(rb"\s*error code:\s*([0-9]{3,4})\b", re.IGNORECASE)
_EDGE_PAGE = re.compile(rb"(?:error code|error-code|Error|cf-error-code\">)\s*:?\s*([0-9]{3,4})\b")


def _edge_code(
    status: int, headers: Mapping[str, str], body: bytes, cloudflare: Mapping[str, Any]
) -> str | None:
    """Return Cloudflare's error number (``524``, ``1010`` …) if the answer is Cloudflare's own."""
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
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _error_object(document: Any) -> Mapping[str, Any]:
    """Return the ``error`` of an OpenAI-like document; some servers send a text or a flat object."""
    if not isinstance(document, dict):
        return {}
    error = document.get("error")
    if isinstance(error, dict):
        return error
    if isinstance(error, str) and error:
        return {"message": error}
    if document.get("success") is False and document.get("message"):
        return {"message": document["message"]}
    return {}


def _is_html(headers: Mapping[str, str], body: bytes) -> bool:
    return "html" in headers.get("content-type", "").lower() or body.lstrip()[:1] == b"<"


def _plain_text(headers: Mapping[str, str], body: bytes, cloudflare: Mapping[str, Any]) -> str:
    if cloudflare:
        return str(cloudflare.get("detail") or cloudflare.get("title") or "")
    if _is_html(headers, body):
        title = re.search(rb"<title[^<>]{0,200}>([^<]{0,500})</title>", body, re.IGNORECASE)
        body = title[1] if title else b""
    elif body.lstrip()[:1] in (b"{", b"["):
        return ""  # JSON without an error: nothing in it is written for people
    return body[:4096].decode("utf-8", errors="replace")


_REQUEST_ID = re.compile(r"\(request[ _]id: ([A-Za-z0-9._-]{1,100})\)")


def _request_id_in(message: str) -> str:
    found = _REQUEST_ID.search(message)
    return found[1] if found else ""


def _retry_after(headers: Mapping[str, str], cloudflare: Mapping[str, Any]) -> float | None:
    value = headers.get("retry-after") or cloudflare.get("retry_after")
    if value is None:
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):
        try:
            seconds = parsedate_to_datetime(str(value)[:100]).timestamp() - time.time()
        except (TypeError, ValueError, OverflowError):
            return None
    return max(0.0, seconds) if seconds == seconds and seconds < 1e6 else None  # NaN and nonsense


# No \b before these: a Chinese character is a word character too, and may stand right before a token.
_TOKEN = re.compile(
    r"(?<![A-Za-z0-9])(?:(sk)-[A-Za-z0-9_*.-]{6,}|(Bearer)\s+[A-Za-z0-9_*.~+/=-]{16,})", re.IGNORECASE
)
_BASE64 = re.compile(r"(?:data:[a-z/+.-]{1,60};base64,)?[A-Za-z0-9+/_=-]{48,}")
_URL_LOGIN = re.compile(r"(://)[^\s/@\"'<>]*@")
# Bounded, because a hostile answer would make an unbounded one search for seconds.
_URL_QUERY = re.compile(r"(://[^\s?\"'<>]{1,2000})\?[^\s\"'<>]+")
_SIGNATURE = re.compile(r"(X-Amz-[A-Za-z-]+=)[^\s&\"'<>]+", re.IGNORECASE)
# Controls, line separators, what turns or hides text, and half characters, which no file takes.
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ud800-\udfff\ufeff\ufff9-\ufffb]+"
)


def clean(text: str, secret: str = "") -> str:
    """Return ``text`` fit for logs and messages: no secret, no image data, no query, one short line."""
    if secret:
        text = text.replace(secret, "sk-…")
        if len(bare := secret.removeprefix("sk-")) >= 8:  # the gateway calls a token by its name without sk-
            text = text.replace(bare, "…")
    text = _SIGNATURE.sub(r"\1…", _URL_LOGIN.sub(r"\1", _URL_QUERY.sub(r"\1", text[:20_000])))
    text = _BASE64.sub("…", _TOKEN.sub(lambda found: f"{found[1] or found[2]}-…", text))
    text = " ".join(_UNPRINTABLE.sub(" ", text).split())
    return text if len(text) <= MAX_DETAIL_CHARACTERS else text[: MAX_DETAIL_CHARACTERS - 1] + "…"
