"""Cost and usage by day, Dag and model: sums of all results that a filter selects."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from typing import Any

from airflow_provider_jojokey.cost import CostSum
from airflow_provider_jojokey.plugins.cards import TOKENS
from airflow_provider_jojokey.plugins.sums import Sum
from airflow_provider_jojokey.spreadsheets import safe_cell

KEYS = ("day", "dag_id", "model")
COUNTS = ("results", "images", "failed", *TOKENS, "unknown_tokens")


def totals(entries: list[Sum]) -> dict[str, Any]:
    """Return the total of the sums, and totals by day and by Dag, as JSON values."""

    def failed(*paid: str) -> int:
        return sum(entry.failed for entry in entries if entry.paid in paid)

    everything = _total(entries)
    by_day = _grouped(entries, lambda entry: (entry.day,))
    by_dag = _grouped(entries, lambda entry: (entry.dag_id,))
    return {
        "images": everything["images"],
        "results": everything["results"],
        "unread": sum(entry.unread for entry in entries),
        "failed": everything["failed"],
        "failed_paid": failed("yes"),
        "failed_perhaps_paid": failed("unknown"),
        "usage": {name: everything[name] for name in TOKENS},
        "unknown_tokens": everything["unknown_tokens"],
        "cost": everything["cost"].to_json(),
        "by_day": [{"day": day, **_bar(row)} for (day,), row in sorted(by_day.items())],
        "by_dag": [
            {"dag_id": dag_id, **_bar(row)}
            for (dag_id,), row in sorted(
                by_dag.items(), key=lambda group: (-group[1]["total_tokens"], group[0])
            )
        ],
    }


def costs(entries: list[Sum]) -> list[dict[str, Any]]:
    """Return a row for each day, Dag and model.

    Rows are sorted by day, newest first, then by tokens, most first.
    """
    rows = [
        dict(zip(KEYS, key, strict=True)) | row
        for key, row in _grouped(entries, lambda entry: (entry.day, entry.dag_id, entry.model)).items()
    ]
    rows.sort(key=lambda row: (-row["total_tokens"], row["dag_id"], row["model"] or ""))
    rows.sort(key=lambda row: str(row["day"]), reverse=True)
    return rows


def as_json(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows as JSON values."""
    return [row | {"cost": row["cost"].to_json()} for row in rows]


def as_csv(rows: list[dict[str, Any]]) -> str:
    """Return the rows as CSV in which spreadsheets find no formulas.

    Each currency has a column with exact amounts. Another column says whether the amounts are approximate. Tokens
    that are unknown for all results of a row are empty.
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
                *("" if name in TOKENS and _unknown(row) else row[name] for name in COUNTS),
                *(f"{known[currency].amount:f}" if currency in known else "" for currency in currencies),
                "yes" if approximate else "no" if known else "",
                row["cost"].unknown,
            ]
        )
    return out.getvalue()


def _unknown(row: dict[str, Any]) -> bool:
    return bool(row["unknown_tokens"]) and not row["total_tokens"]


def _bar(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "tokens": row["total_tokens"],
        "unknown_tokens": row["unknown_tokens"],
        "images": row["images"],
        "cost": row["cost"].to_json(),
    }


def _grouped(
    entries: list[Sum], key: Callable[[Sum], tuple[Any, ...]]
) -> dict[tuple[Any, ...], dict[str, Any]]:
    groups: dict[tuple[Any, ...], list[Sum]] = {}
    for entry in entries:
        if entry.results:
            groups.setdefault(key(entry), []).append(entry)
    return {key: _total(group) for key, group in groups.items()}


def _total(entries: list[Sum]) -> dict[str, Any]:
    cost = CostSum()
    for entry in entries:
        cost.add_all(entry.cost)
    counts = [
        (entry.results, entry.images, entry.failed, *entry.tokens, entry.unknown_tokens) for entry in entries
    ]
    added = map(sum, zip(*counts, strict=True)) if counts else (0 for _ in COUNTS)
    return dict(zip(COUNTS, added, strict=True)) | {"cost": cost.total}
