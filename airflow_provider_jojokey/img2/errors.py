"""Errors of the image API as data: what happened, whether it was billed, what to do.

:mod:`~airflow_provider_jojokey.img2.classify` turns a response into an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Literal

from msgspec import Struct

Billed = Literal["no", "yes", "unknown"]


class Kind(StrEnum):
    """The kinds of errors. Each kind has one remedy."""

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


class Advice(Struct, frozen=True):
    """The summary and remedy of one kind of error.

    :param summary: what happened, without a full stop
    :param todo: what to do
    :param transient: whether the same request may succeed later without any change
    """

    summary: str
    todo: str
    transient: bool = False


ADVICE: Mapping[Kind, Advice] = {
    Kind.REQUEST: Advice(
        "JojoKey rejected the request as invalid",
        "Change the request.",
    ),
    Kind.TOKEN: Advice(
        "JojoKey rejected the token",
        "Check the token in the connection's password: it may be wrong, disabled, expired or exhausted. "
        "If necessary, create a new one in JojoKey's console.",
    ),
    Kind.ACCESS: Advice(
        "JojoKey denied this token access",
        "The token may not use this model, group or address. Create a token in the image group that has the "
        "model, or change the token's group, models or allowed addresses in JojoKey's console.",
    ),
    Kind.EDGE_BLOCKED: Advice(
        "The request was blocked before it reached JojoKey",
        "The network edge in front of JojoKey rejected this machine. Send JojoKey support the cf-ray and "
        "the public IP address of this worker.",
    ),
    Kind.QUOTA: Advice(
        "The balance is too low for this request",
        "Top up the account, or raise the token's quota, in JojoKey's console.",
    ),
    Kind.CONTENT: Advice("JojoKey rejected the prompt for its content", "Rephrase the prompt."),
    Kind.BASE_URL: Advice(
        "This address does not serve the image API",
        "Check the connection's host. It must be the base URL of the API, such as https://api.jojokey.com, with or "
        "without /v1.",
    ),
    Kind.TLS: Advice(
        "The TLS connection to JojoKey is not trusted",
        "Check the connection's host and the extra 'verify' (a CA bundle for a company proxy). If both are "
        "right, the gateway's certificate is broken.",
    ),
    Kind.RATE_LIMIT: Advice(
        "JojoKey rate-limits this token",
        "This token sends too many requests. Put the tasks in an Airflow pool, or lower max_in_flight.",
        transient=True,
    ),
    Kind.NO_CHANNEL: Advice(
        "JojoKey has no available channel for this model",
        "No channel of the token's group serves this model at the moment. If it lasts, ask JojoKey support "
        "to check the channel.",
        transient=True,
    ),
    Kind.OVERLOADED: Advice(
        "JojoKey could not process the request",
        "The gateway or the model behind it is overloaded or failing.",
        transient=True,
    ),
    Kind.UNREACHABLE: Advice(
        "JojoKey could not be reached",
        "If it lasts, check the host, DNS, the proxy and the firewall of this worker.",
        transient=True,
    ),
    Kind.UNKNOWN_OUTCOME: Advice(
        "The response of JojoKey was lost",
        "If it keeps happening, send JojoKey support the request ID or cf-ray and the time. For high quality "
        "or large sizes, set stream=True, or choose a lower quality or a smaller size.",
        transient=True,
    ),
    Kind.REPLY: Advice(
        "JojoKey's response cannot be used",
        "Send JojoKey support the request ID: only they can refund an image that was billed but not delivered.",
    ),
}

BILLING = {
    "no": "You were not charged.",
    "yes": "You were very likely charged.",
    "unknown": "You may have been charged.",
}

_SET_LATER = ("links", "task_id", "usage")
"""Attributes that are not arguments of :class:`Img2Error`."""


class Img2Error(Exception):
    """A failed generation.

    :param kind: the kind of error
    :param summary: what happened, without a full stop; by default the kind's summary
    :param billed: whether the request was billed: ``"no"``, which needs proof, ``"yes"`` or ``"unknown"``
    :param detail: the gateway's own message, at most 500 characters, without secrets or image data
    :param status_code: the HTTP status, if there was one
    :param code: the body's ``error.code``, or Cloudflare's error number
    :param request_id: the gateway's request ID, for the vendor's support
    :param cf_ray: Cloudflare's ray ID, for the vendor's support
    :param retry_after: seconds to wait before a retry, as the server requested
    :param advice: what to do; by default the kind's remedy
    """

    def __init__(
        self,
        kind: Kind,
        summary: str = "",
        *,
        billed: Billed = "unknown",
        detail: str = "",
        status_code: int | None = None,
        code: str | None = None,
        request_id: str | None = None,
        cf_ray: str | None = None,
        retry_after: float | None = None,
        advice: str = "",
    ) -> None:
        self.kind = kind
        self.summary = summary or ADVICE[kind].summary
        self.billed = billed
        self.detail = detail
        self.status_code = status_code
        self.code = code
        self.request_id = request_id
        self.cf_ray = cf_ray
        self.retry_after = retry_after
        self.advice = advice or ADVICE[kind].todo
        self.salvaged: list[Any] = []
        """The images that arrived completely before the response was interrupted."""
        self.links: list[str] = []
        """Complete URLs of paid images that could not be downloaded. Never part of the message."""
        self.task_id: str | None = None
        """The ID of the asynchronous task that the gateway started instead of sending images."""
        self.usage: dict[str, Any] | None = None
        """The tokens that the response reported, normalized; ``None`` if it reported none."""
        super().__init__(str(self))

    @property
    def is_safe_to_resend(self) -> bool:
        """Whether the same request may succeed later and was definitely not billed."""
        return self.billed == "no" and ADVICE[self.kind].transient

    def __str__(self) -> str:
        return f"{describe(self.summary, self)} {BILLING[self.billed]} {self.advice}"

    def __reduce__(self) -> tuple[Any, ...]:
        state = {name: value for name, value in vars(self).items() if name not in ("salvaged", "__notes__")}
        return _rebuild, (type(self), state)


def identifiers(error: Any) -> str:
    """Return the status, the codes and the IDs of an error, in parentheses; an empty string if it has none."""
    known = {
        "HTTP": error.status_code,
        "code": error.code,
        "request ID": error.request_id,
        "cf-ray": error.cf_ray,
    }
    listed = ", ".join(f"{name} {value}" for name, value in known.items() if value)
    return f" ({listed})" if listed else ""


def describe(what: str, error: Any) -> str:
    """Return one sentence: what happened, the error's identifiers, and the quoted message of the server."""
    text = f"{what.removesuffix('.')}{identifiers(error)}"
    return (
        f'{text}: "{error.detail}"{"" if is_sentence(error.detail) else "."}' if error.detail else f"{text}."
    )


def is_sentence(text: str) -> bool:
    """Return whether a text ends like a sentence, so that no full stop follows it."""
    return text.endswith((".", "!", "?", "。", "！", "？"))  # noqa: RUF001


def _rebuild(cls: type[Img2Error], state: dict[str, Any]) -> Img2Error:
    set_later = {name: state.pop(name) for name in _SET_LATER}
    error = cls(**state)
    vars(error).update(set_later)
    return error
