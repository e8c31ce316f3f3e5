"""Was a request billed whose answer was lost? The gateway's log may tell.

The log has no place for a request id of ours, and a request that Cloudflare cut has none of
theirs. So a row is recognised by its model and by when it began; and where several rows fit, the
answer is that nobody knows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from airflow_provider_jojokey.img2.errors import Billed

CONSUMED, FAILED = 2, 5
"""The types of log rows that tell of requests."""

MAX_ROWS = 1000
TOLERANCE = 10.0
"""Seconds by which a row's own times, whole seconds on another clock, may be off."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the log tells.

    :param billed: ``"yes"``, ``"no"``, or ``"unknown"``
    :param why: half a sentence for people
    :param final: whether asking later cannot change it
    :param request_id: the gateway's id of the row that fits
    :param usage: the tokens of the row that fits
    """

    billed: Billed
    why: str
    final: bool
    request_id: str | None = None
    usage: dict[str, int] | None = None


def was_billed(
    rows: Iterable[Mapping[str, Any]],
    *,
    model: str,
    sent_at: float,
    sent_by: float,
    now: float,
    finished_by: float,
    lost_at: float | None = None,
    others: Iterable[str | None] = (),
    request_id: str | None = None,
) -> Verdict:
    """Return whether a request was billed.

    :param rows: the gateway's log, any order
    :param model: the model that was asked for
    :param sent_at: when the request was sent at the earliest, in seconds since 1970 by the gateway's clock
    :param sent_by: when at the latest, if it had to be sent again
    :param now: the time now, by the same clock
    :param finished_by: when the model must have finished: only after it does the lack of a row mean anything
    :param lost_at: when its answer was lost, where that was seen: until then it had not ended
    :param others: request ids that are known to belong to other requests
    :param request_id: the request's own, where its answer got as far as telling it
    """
    rows = list(rows)
    known = {one for one in others if one}
    own = [row for row in rows if request_id and row.get("request_id") == request_id]
    own = [row for row in own if row.get("type") in (CONSUMED, FAILED)]
    fitting = own or [
        row
        for row in rows
        if row.get("model_name") == model
        and row.get("type") in (CONSUMED, FAILED)
        and row.get("request_id") not in known
        and not (request_id and row.get("request_id"))  # it has another id, so it is another request
        and _began_between(row, sent_at, sent_by, finished_by)
    ]
    consumed = [row for row in fitting if row["type"] == CONSUMED]
    if len(consumed) == 1 and len(fitting) == 1:
        row = consumed[0]
        ended_before = lost_at is not None and _number(row.get("created_at")) < lost_at - TOLERANCE
        if not own and ended_before and now < finished_by:
            why = "the gateway's log has a request that fits but had ended earlier; ours may still be at work"
            return Verdict("unknown", why, False)
        request_id = str(row.get("request_id") or "") or None
        name = f" (request id {request_id})" if request_id else ""
        why = f"the gateway's log has one request that fits, and it was billed{name}"
        return Verdict("yes", why, True, request_id, _usage(row))
    if fitting and consumed:
        return Verdict(
            "unknown", f"{len(fitting)} requests in the gateway's log fit, and no one can tell which", True
        )
    if own and not consumed:
        return Verdict("no", _FAILED, True)
    # A failed row alone may be another request's, or that of a first sending: ours may still be at work.
    if now < finished_by:
        return Verdict(
            "unknown", "the gateway's log does not have it yet; the model may still be at work", False
        )
    if len(rows) >= MAX_ROWS and min(_number(row.get("created_at")) for row in rows) > sent_at:
        return Verdict("unknown", "the gateway's log does not reach back that far", True)
    if fitting:
        return Verdict("no", _FAILED, True)
    return Verdict("no", "the gateway's log has no such request", True)


_FAILED = "the gateway's log has it as failed, and failed requests are not billed"


def _began_between(row: Mapping[str, Any], sent_at: float, sent_by: float, finished_by: float) -> bool:
    """Tell whether the row's request began when ours was sent.

    A row is written when its request ends. Where it tells how long that took, its beginning is known;
    where not, it only has to lie between. A failure may well take no whole second.
    """
    ended = _number(row.get("created_at"))
    took = _number(row.get("use_time"))
    if took > 0 or row["type"] == FAILED:
        return sent_at - TOLERANCE <= ended - took <= sent_by + TOLERANCE
    return sent_at - TOLERANCE <= ended <= finished_by + TOLERANCE


def _usage(row: Mapping[str, Any]) -> dict[str, int] | None:
    tokens = {
        "input_tokens": int(_number(row.get("prompt_tokens"))),
        "output_tokens": int(_number(row.get("completion_tokens"))),
    }
    total = sum(tokens.values())
    return {**tokens, "total_tokens": total} if total else None


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else 0.0
