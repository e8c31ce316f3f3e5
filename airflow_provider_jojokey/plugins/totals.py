"""What was billed, by day and by Dag: sums over all results that a filter lets through."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from typing import Any

from airflow.utils.session import create_session

from airflow_provider_jojokey.plugins.cards import TOKENS, tokens
from airflow_provider_jojokey.plugins.xcoms import Filter, usages

KEPT = 15.0
"""Seconds for which sums hold: a page that is scrolled asks for them again and again."""
MAX_KEPT = 64

_SUMS: OrderedDict[Filter, tuple[float, dict[str, Any]]] = OrderedDict()
_SUMS_LOCK = threading.Lock()
_ADDING = threading.Lock()


def totals(wanted: Filter) -> dict[str, Any]:
    """Return the sums, some seconds old at most."""
    if (known := _known(wanted)) is not None:
        return known
    with _ADDING:  # one at a time: it is work for a processor, and the next may want the same
        if (known := _known(wanted)) is not None:
            return known
        sums = _added(wanted)
        with _SUMS_LOCK:
            _SUMS[wanted] = time.monotonic(), sums
            while len(_SUMS) > MAX_KEPT:
                _SUMS.popitem(last=False)
        return sums


def _known(wanted: Filter) -> dict[str, Any] | None:
    with _SUMS_LOCK:
        made_at, sums = _SUMS.get(wanted, (0.0, None))
        return sums if sums is not None and time.monotonic() - made_at < KEPT else None


def _added(wanted: Filter) -> dict[str, Any]:
    usage = dict.fromkeys(TOKENS, 0)
    results = images = failed = 0
    by_day: dict[str, list[int]] = {}
    by_dag: dict[str, list[int]] = {}
    with create_session(scoped=False) as session:
        for day, dag_id, result in usages(session, wanted):
            billed = tokens(result.usage)
            results += 1
            images += result.count
            failed += result.state == "failed"
            for name in TOKENS:
                usage[name] += billed[name]
            for sums in (by_day.setdefault(day.isoformat(), [0, 0]), by_dag.setdefault(dag_id, [0, 0])):
                sums[0] += billed["total_tokens"]
                sums[1] += result.count
    return {
        "images": images,
        "results": results,
        "failed": failed,
        "usage": usage,
        "by_day": [
            {"day": day, "tokens": count, "images": made} for day, (count, made) in sorted(by_day.items())
        ],
        "by_dag": [
            {"dag_id": dag_id, "tokens": count, "images": made}
            for dag_id, (count, made) in sorted(by_dag.items(), key=lambda one: (-one[1][0], one[0]))
        ],
    }
