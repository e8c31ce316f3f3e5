"""What was billed, by day, Dag and model: sums over all results that a filter selects."""

from __future__ import annotations

import csv
import io
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from airflow.utils.session import create_session

from airflow_provider_jojokey.plugins.cards import TOKENS
from airflow_provider_jojokey.plugins.xcoms import Filter, Sum, sums
from airflow_provider_jojokey.spreadsheets import safe_cell

KEPT = 10.0
"""Seconds for which sums hold at least: a page that is used asks for them again and again."""
KEPT_TIMES = 20
"""Sums that took long hold longer: so many times what they took."""
MAX_KEPT = 64
COLUMNS = ("day", "dag_id", "model", "results", "images", "failed", *TOKENS)


@dataclass(frozen=True, slots=True)
class _Kept:
    until: float
    sums: list[Sum]


_KEPT: OrderedDict[Filter, _Kept] = OrderedDict()
_KEPT_LOCK = threading.Lock()


def known(wanted: Filter) -> list[Sum] | None:
    """Return the sums, if they were added up some seconds ago."""
    with _KEPT_LOCK:
        kept = _KEPT.get(wanted)
    return kept.sums if kept is not None and time.monotonic() < kept.until else None


def added(wanted: Filter) -> list[Sum]:
    """Return the sums. Adding up takes a while where there are many results, so call it for one filter at a time."""
    if (found := known(wanted)) is not None:  # another request may have asked for the same just before
        return found
    started = time.monotonic()
    with create_session(scoped=False) as session:
        found = list(sums(session, wanted))
    ended = time.monotonic()
    with _KEPT_LOCK:
        _KEPT.pop(wanted, None)
        _KEPT[wanted] = _Kept(ended + max(KEPT, KEPT_TIMES * (ended - started)), found)
        while len(_KEPT) > MAX_KEPT:
            _KEPT.popitem(last=False)
    return found


def totals(found: list[Sum]) -> dict[str, Any]:
    """Return the sums of all, by day and by Dag."""

    def failed(*paid: str) -> int:
        return sum(one.failed for one in found if one.paid in paid)

    by_dag = _grouped(found, lambda one: (one.dag_id,))
    return {
        "images": sum(one.images for one in found),
        "results": sum(one.results for one in found),
        "unread": sum(one.unread for one in found),
        "failed": failed("yes", "unknown", "no"),
        "failed_paid": failed("yes"),
        "failed_perhaps_paid": failed("unknown"),
        "usage": {name: sum(one.tokens[at] for one in found) for at, name in enumerate(TOKENS)},
        "by_day": [
            {"day": day, "tokens": row["total_tokens"], "images": row["images"]}
            for (day,), row in sorted(_grouped(found, lambda one: (one.day,)).items())
        ],
        "by_dag": [
            {"dag_id": dag_id, "tokens": row["total_tokens"], "images": row["images"]}
            for (dag_id,), row in sorted(by_dag.items(), key=lambda one: (-one[1]["total_tokens"], one[0]))
        ],
    }


def costs(found: list[Sum]) -> list[dict[str, Any]]:
    """Return a row for each day, Dag and model: the newest day first, then the most tokens."""
    rows = [
        dict(zip(COLUMNS, (*key, *row.values()), strict=True))
        for key, row in _grouped(found, lambda one: (one.day, one.dag_id, one.model)).items()
    ]
    rows.sort(key=lambda row: (-row["total_tokens"], row["dag_id"], row["model"] or ""))
    rows.sort(key=lambda row: str(row["day"]), reverse=True)
    return rows


def as_csv(rows: list[dict[str, Any]]) -> str:
    """Return the rows as CSV that spreadsheets open, with no cell that they evaluate."""
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, COLUMNS)
    writer.writeheader()
    for row in rows:
        writer.writerow(
            {name: safe_cell(value) if isinstance(value, str) else value for name, value in row.items()}
        )
    return out.getvalue()


def _grouped(
    found: list[Sum], key: Callable[[Sum], tuple[Any, ...]]
) -> dict[tuple[Any, ...], dict[str, int]]:
    groups: dict[tuple[Any, ...], dict[str, int]] = {}
    for one in found:
        if not one.results:
            continue
        row = groups.setdefault(key(one), dict.fromkeys(COLUMNS[3:], 0))
        for name, value in zip(row, (one.results, one.images, one.failed, *one.tokens), strict=True):
            row[name] += value
    return groups
