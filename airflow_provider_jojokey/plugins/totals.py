"""What was billed, by day, Dag and model: sums over all results that a filter selects."""

from __future__ import annotations

import csv
import io
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from airflow.utils.session import create_session
from cachetools import TLRUCache

from airflow_provider_jojokey.cost import CostSum
from airflow_provider_jojokey.plugins.cards import TOKENS
from airflow_provider_jojokey.plugins.xcoms import Filter, Sum, sums
from airflow_provider_jojokey.spreadsheets import safe_cell

KEPT = 10.0
"""Seconds for which sums hold at least: a page that is used asks for them again and again."""
KEPT_TIMES = 20
"""Sums that took long hold longer: so many times what they took."""
MAX_KEPT = 64
KEYS = ("day", "dag_id", "model")
COUNTS = ("results", "images", "failed", *TOKENS)


@dataclass(frozen=True, slots=True)
class _Kept:
    until: float
    sums: list[Sum]


_KEPT: TLRUCache[Filter, _Kept] = TLRUCache(maxsize=MAX_KEPT, ttu=lambda _filter, kept, _now: kept.until)
_KEPT_LOCK = threading.Lock()


def known(wanted: Filter) -> list[Sum] | None:
    """Return the sums, if they were added up some seconds ago."""
    with _KEPT_LOCK:
        kept = _KEPT.get(wanted)
    return None if kept is None else kept.sums


def added(wanted: Filter) -> list[Sum]:
    """Return the sums. Adding up takes a while where there are many results, so call it for one filter at a time."""
    if (found := known(wanted)) is not None:  # another request may have asked for the same just before
        return found
    started = time.monotonic()
    with create_session(scoped=False) as session:
        found = list(sums(session, wanted))
    ended = time.monotonic()
    with _KEPT_LOCK:
        _KEPT[wanted] = _Kept(ended + max(KEPT, KEPT_TIMES * (ended - started)), found)
    return found


def totals(found: list[Sum]) -> dict[str, Any]:
    """Return the sums of all, by day and by Dag."""

    def failed(*paid: str) -> int:
        return sum(one.failed for one in found if one.paid in paid)

    everything = _added_up(found)
    by_day = _grouped(found, lambda one: (one.day,))
    by_dag = _grouped(found, lambda one: (one.dag_id,))
    return {
        "images": everything["images"],
        "results": everything["results"],
        "unread": sum(one.unread for one in found),
        "failed": everything["failed"],
        "failed_paid": failed("yes"),
        "failed_perhaps_paid": failed("unknown"),
        "usage": {name: everything[name] for name in TOKENS},
        "cost": everything["cost"].to_json(),
        "by_day": [{"day": day, **_bar(row)} for (day,), row in sorted(by_day.items())],
        "by_dag": [
            {"dag_id": dag_id, **_bar(row)}
            for (dag_id,), row in sorted(by_dag.items(), key=lambda one: (-one[1]["total_tokens"], one[0]))
        ],
    }


def costs(found: list[Sum]) -> list[dict[str, Any]]:
    """Return a row for each day, Dag and model: the newest day first, then the most tokens."""
    rows = [
        dict(zip(KEYS, key, strict=True)) | row
        for key, row in _grouped(found, lambda one: (one.day, one.dag_id, one.model)).items()
    ]
    rows.sort(key=lambda row: (-row["total_tokens"], row["dag_id"], row["model"] or ""))
    rows.sort(key=lambda row: str(row["day"]), reverse=True)
    return rows


def as_json(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows as JSON values."""
    return [row | {"cost": row["cost"].to_json()} for row in rows]


def as_csv(rows: list[dict[str, Any]]) -> str:
    """Return the rows as CSV that spreadsheets open, with no cell that they evaluate.

    There is a column for each currency, with exact amounts, and one that says whether they are approximate.
    """
    currencies = sorted({cost.currency for row in rows for cost in row["cost"].amounts})
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    amounts = [f"cost_{currency}" for currency in currencies]
    writer.writerow([*KEYS, *COUNTS, *amounts, "approximate", "requests_of_unknown_cost"])
    for row in rows:
        known = {cost.currency: cost for cost in row["cost"].amounts}
        approximate = any(cost.approximate for cost in known.values())
        writer.writerow(
            [
                *(safe_cell(row[name]) for name in KEYS),
                *(row[name] for name in COUNTS),
                *(known[one].amount if one in known else "" for one in currencies),
                "yes" if approximate else "no" if known else "",
                row["cost"].unknown,
            ]
        )
    return out.getvalue()


def _bar(row: dict[str, Any]) -> dict[str, Any]:
    return {"tokens": row["total_tokens"], "images": row["images"], "cost": row["cost"].to_json()}


def _grouped(
    found: list[Sum], key: Callable[[Sum], tuple[Any, ...]]
) -> dict[tuple[Any, ...], dict[str, Any]]:
    groups: dict[tuple[Any, ...], list[Sum]] = {}
    for one in found:
        if one.results:
            groups.setdefault(key(one), []).append(one)
    return {key: _added_up(sums) for key, sums in groups.items()}


def _added_up(found: list[Sum]) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(COUNTS, 0)
    cost = CostSum()
    for one in found:
        for name, value in zip(COUNTS, (one.results, one.images, one.failed, *one.tokens), strict=True):
            row[name] += value
        cost.add_all(one.cost)
    return row | {"cost": cost.total}
