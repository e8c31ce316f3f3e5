"""What was billed, by day and by Dag: sums over all results that a filter lets through."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any

from airflow.utils.session import create_session
from cachetools import TLRUCache

from airflow_provider_jojokey.cost import CostSum
from airflow_provider_jojokey.plugins.cards import TOKENS, costs_of, tokens
from airflow_provider_jojokey.plugins.xcoms import Filter, usages

KEPT = 10.0
"""Seconds for which sums hold at least: a page that is used asks for them again and again."""
KEPT_TIMES = 20
"""Sums that took long hold longer: so many times what they took."""
MAX_KEPT = 64


@dataclass(frozen=True, slots=True)
class _Sums:
    until: float
    told: dict[str, Any]


@dataclass(slots=True)
class _Part:
    """The sums of one day or Dag."""

    tokens: int = 0
    images: int = 0
    cost: CostSum = field(default_factory=CostSum)

    def to_json(self) -> dict[str, Any]:
        """Return them as JSON values."""
        return {"tokens": self.tokens, "images": self.images, "cost": self.cost.total.to_json()}


_SUMS: TLRUCache[Filter, _Sums] = TLRUCache(maxsize=MAX_KEPT, ttu=lambda _key, sums, _now: sums.until)
_SUMS_LOCK = threading.Lock()


def known(wanted: Filter) -> dict[str, Any] | None:
    """Return the sums, if they were added up some seconds ago."""
    with _SUMS_LOCK:
        sums = _SUMS.get(wanted)
    return None if sums is None else sums.told


def totals(wanted: Filter) -> dict[str, Any]:
    """Return the sums. It takes seconds where there are 100,000 results, so it is done for one at a time."""
    if (sums := known(wanted)) is not None:  # somebody else may have asked for the same just before
        return sums
    started = time.monotonic()
    sums = _added(wanted)
    ended = time.monotonic()
    with _SUMS_LOCK:
        _SUMS[wanted] = _Sums(ended + max(KEPT, KEPT_TIMES * (ended - started)), sums)
    return sums


def _added(wanted: Filter) -> dict[str, Any]:
    usage = dict.fromkeys(TOKENS, 0)
    results = images = unread = 0
    failed = dict.fromkeys(("yes", "unknown", "no"), 0)
    by_day: dict[str, _Part] = {}
    by_dag: dict[str, _Part] = {}
    cost = CostSum()
    with create_session(scoped=False) as session:
        for day, dag_id, result in usages(session, wanted):
            if result is None:
                unread += 1
                continue
            billed = tokens(result.usage)
            results += 1
            images += result.count
            if result.state == "failed":
                failed[result.paid] += 1
            for name in TOKENS:
                usage[name] += billed[name]
            costs = costs_of(result)
            cost.add_all(costs)
            for part in (by_day.setdefault(day.isoformat(), _Part()), by_dag.setdefault(dag_id, _Part())):
                part.tokens += billed["total_tokens"]
                part.images += result.count
                part.cost.add_all(costs)
    return {
        "images": images,
        "results": results,
        "unread": unread,
        "failed": sum(failed.values()),
        "failed_paid": failed["yes"],
        "failed_perhaps_paid": failed["unknown"],
        "usage": usage,
        "cost": cost.total.to_json(),
        "by_day": [{"day": day, **part.to_json()} for day, part in sorted(by_day.items())],
        "by_dag": [
            {"dag_id": dag_id, **part.to_json()}
            for dag_id, part in sorted(by_dag.items(), key=lambda item: (-item[1].tokens, item[0]))
        ],
    }
