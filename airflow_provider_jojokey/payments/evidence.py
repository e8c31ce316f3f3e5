"""Which facts prove that an attempt was, or was not, billed.

Missing data proves nothing. A log without a row may be switched off, pruned or late; a missing file may
have been deleted. Only the proofs in :func:`judge` count. Everything else is unknown, and the user's
``on_unknown_outcome`` decides.

This module does no I/O.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from msgspec import Struct

from airflow_provider_jojokey.payments.attempt import Event

CONSUMED, FAILED = 2, 5
"""Types of rows in the gateway log: a charge, and a failed channel (new-api, ``model/log.go``)."""

CLOCK_TOLERANCE = 300.0
"""Seconds by which the gateway's clock may differ from S3's. It can't be read: ``Date`` is the clock of the CDN."""

CHARGE_DELAY = 600.0
"""Seconds after the response within which the gateway logs the charge. It logs failures at once."""


class LoggedRequest(Struct, frozen=True):
    """One request in the gateway log: all rows with its ID.

    The gateway writes a row for each channel that failed, and one for each charge.

    :param request_id: the gateway's ID
    :param charged: whether there is a row for a charge
    :param model: the model
    :param began: when it began, in seconds since 1970 by the gateway's clock
    :param ended: when its last row was written
    :param usage: the billed tokens
    :param quota: what was charged, in the gateway's quota units
    """

    request_id: str
    charged: bool
    model: str
    began: float
    ended: float
    usage: dict[str, int] | None = None
    quota: int | None = None


class Facts(Struct, frozen=True):
    """What is known about one attempt without a usable response.

    :param stated: what a person stated: ``"yes"`` or ``"no"``
    :param refunded: whether a person stated that a known charge was refunded, so that it proves nothing new
    :param images: images that were received
    :param unsent: whether the spool proves that the request was not sent
    :param request_id: the gateway's ID of the request, if its response got far enough
    :param model: the requested model
    :param sent_from: earliest time of a send, in seconds since 1970
    :param sent_until: latest time of a send
    :param finished: whether the model must have finished by now
    :param overdue: whether even a late charge must have been logged by now
    :param log: the gateway log; ``None`` if it could not be read
    :param log_problem: why it could not be read, without a full stop
    :param others: IDs of requests that belong to other attempts
    """

    model: str
    sent_from: float
    sent_until: float
    finished: bool
    overdue: bool = False
    stated: str | None = None
    refunded: bool = False
    images: int = 0
    unsent: bool = False
    request_id: str | None = None
    log: Sequence[LoggedRequest] | None = None
    log_problem: str = ""
    others: frozenset[str] = frozenset()


class Verdict(Struct, frozen=True):
    """What the facts prove.

    :param event: ``PROVEN_BILLED``, ``PROVEN_UNBILLED`` or ``LOST``
    :param reason: the evidence, without a full stop
    :param final: whether looking again cannot change it
    :param usage: the billed tokens, if the log proves them
    :param quota: what was charged, if the log proves it
    :param hint: a request in the log that matches only by time; not evidence
    """

    event: Event
    reason: str
    final: bool = True
    usage: dict[str, int] | None = None
    quota: int | None = None
    hint: dict[str, Any] | None = None


def judge(facts: Facts) -> Verdict:
    """Return what ``facts`` prove. The first proof that applies counts."""
    request = _logged_request(facts)
    bill: dict[str, Any] = {}
    if request is not None and request.charged:
        bill = {"usage": request.usage, "quota": request.quota}
    if facts.refunded:
        return Verdict(Event.STATED_UNBILLED, "a person recorded that the charge was refunded")
    if facts.stated == "yes":
        return Verdict(Event.STATED_BILLED, "a person recorded that it was billed", **bill)
    if facts.images:
        received = "an image was" if facts.images == 1 else f"{facts.images} images were"
        return Verdict(Event.PROVEN_BILLED, f"{received} received", **bill)
    if request is not None and request.charged:
        return Verdict(Event.PROVEN_BILLED, shows_charge(request), **bill)
    if facts.stated == "no":
        return Verdict(Event.STATED_UNBILLED, "a person recorded that it was not billed")
    if facts.unsent:
        return Verdict(Event.PROVEN_UNBILLED, "the process ended before it sent the request")
    if request is not None and facts.overdue and _logs_charges_after(facts, request):
        return Verdict(
            Event.PROVEN_UNBILLED,
            f"the gateway log shows that the request failed (request ID {request.request_id}), and no charge",
        )
    return _unknown(facts, request)


def shows_charge(request: LoggedRequest) -> str:
    """Return the reason why a request in the log was billed, without a full stop."""
    return f"the gateway log shows the charge (request ID {request.request_id})"


def _unknown(facts: Facts, request: LoggedRequest | None) -> Verdict:
    matching = [] if facts.request_id else _matching_by_time(facts)
    hint = None
    if facts.log is None:
        reason = f"the gateway log cannot be read ({facts.log_problem})" if facts.log_problem else ""
    elif request is not None and not facts.finished:
        reason = "the gateway log shows a failed channel, but another one may still be generating"
    elif request is not None:
        reason = "the gateway log shows that the request failed, and no charges since then, so it may not list charges"
    elif facts.request_id and not facts.finished:
        reason = f"the gateway log doesn't show the request yet (request ID {facts.request_id})"
    elif facts.request_id:
        reason = f"the gateway log doesn't show the request (request ID {facts.request_id})"
    elif len(matching) == 1:
        hint = {"request_id": matching[0].request_id, "usage": matching[0].usage, "quota": matching[0].quota}
        reason = (
            f"the gateway log shows a charge at about that time (request ID {matching[0].request_id}), "
            "which may be this request or another one"
        )
    elif matching:
        reason = (
            f"the gateway log shows {len(matching)} charges at about that time, which may be other requests"
        )
    elif facts.finished:
        reason = (
            "the gateway log shows no such request, which proves nothing: logs can be off, pruned or late"
        )
    else:
        reason = "the gateway log doesn't show the request yet"
    return Verdict(Event.LOST, reason, final=facts.finished, hint=hint)


def _logs_charges_after(facts: Facts, failed: LoggedRequest) -> bool:
    """Return whether the log recorded a charge after a request had failed.

    A gateway may log failures but no charges, and then a failed channel looks like a failed request.
    """
    return any(request.charged and request.ended >= failed.ended for request in facts.log or ())


def _logged_request(facts: Facts) -> LoggedRequest | None:
    if not facts.request_id:
        return None
    return next((request for request in facts.log or () if request.request_id == facts.request_id), None)


def _matching_by_time(facts: Facts) -> list[LoggedRequest]:
    """Return the charges whose model and time match the attempt."""
    earliest, latest = facts.sent_from - CLOCK_TOLERANCE, facts.sent_until + CLOCK_TOLERANCE
    return [
        request
        for request in facts.log or ()
        if request.charged
        and request.model == facts.model
        and request.request_id not in facts.others
        and earliest <= request.began <= latest
    ]


def group_log(rows: Iterable[Mapping[str, Any]]) -> list[LoggedRequest]:
    """Return the requests in the rows of the gateway log, grouped by request ID.

    Rows without a request ID identify nothing and are left out. A row that is listed again, with the same ``id``,
    counts once. Equal rows with other IDs or none count: a gateway may charge each image of a request separately.
    """
    by_id: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        request_id = row.get("request_id")
        if isinstance(request_id, str) and request_id and row.get("type") in (CONSUMED, FAILED):
            known = by_id.setdefault(request_id, [])
            if not row.get("id") or row not in known:
                known.append(row)
    return [_grouped(request_id, rows) for request_id, rows in by_id.items()]


def _grouped(request_id: str, rows: Sequence[Mapping[str, Any]]) -> LoggedRequest:
    charges = [row for row in rows if row.get("type") == CONSUMED]
    ended = max(_number(row.get("created_at")) for row in rows)
    # A row is written when its request ends. It states how long the request took.
    began = min(_number(row.get("created_at")) - _number(row.get("use_time")) for row in rows)
    names = [row.get("model_name") for row in (*charges, *rows)]
    quotas = [quota for row in charges if type(quota := row.get("quota")) is int]
    return LoggedRequest(
        request_id=request_id,
        charged=bool(charges),
        model=next((name for name in names if isinstance(name, str)), ""),
        began=began,
        ended=ended,
        usage=_usage(charges),
        quota=sum(quotas) if quotas and len(quotas) == len(charges) else None,
    )


def _usage(charges: Iterable[Mapping[str, Any]]) -> dict[str, int] | None:
    tokens = {"input_tokens": 0, "output_tokens": 0}
    for row in charges:
        tokens["input_tokens"] += max(0, int(_number(row.get("prompt_tokens"))))
        tokens["output_tokens"] += max(0, int(_number(row.get("completion_tokens"))))
    total = sum(tokens.values())
    return {**tokens, "total_tokens": total} if total else None


def _number(value: Any) -> float:
    """Return a finite number, or 0 for any other JSON value."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if number and abs(value) < 1e15 else 0.0
