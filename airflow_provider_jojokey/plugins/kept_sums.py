"""Sums of results, kept from one request to the next.

Three numbers show whether the results of a Dag on a day have changed: how many there are, and the sums of their
times and versions. The database finds them in a fraction of the time that adding up takes. A task's XCom is a new
row with a new time. On PostgreSQL, a row's version is the transaction that wrote it, so any change shows. On
SQLite it is the size of the value, because there is nothing better: before Airflow 3.3, an XCom that a user edits
keeps its time. So on SQLite, sums are not kept longer than :data:`MAX_AGE_ON_SQLITE`.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date
from typing import TYPE_CHECKING, Any

from airflow.models.xcom import XComModel
from airflow.utils.session import create_session
from cachetools import TLRUCache
from sqlalchemy import BigInteger, LargeBinary, Text, cast, func, literal_column, select

from airflow_provider_jojokey.plugins.days import can_group, day_in_sql, shifted
from airflow_provider_jojokey.plugins.sums import Sum, fence, stored_sums, sums_elsewhere
from airflow_provider_jojokey.plugins.xcoms import Filter, conditions

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

TTL_FACTOR = 5
"""Sums are returned without a query for this many times the duration of their computation: usually for less than a
second, so that they agree with the images on the same page, and longer if they are expensive."""
MAX_CACHED = 64
"""Maximum number of filters whose sums are returned without a query."""
MAX_ZONES = 3
"""Maximum number of time zones whose sums are kept."""
MAX_DAYS = 30_000
"""Number of days, times Dags, whose sums are kept for each time zone: about 30 MiB. More are added up each time."""

MAX_AGE_ON_SQLITE = 600.0
"""Maximum time in seconds for which the sums of a time zone are kept on SQLite."""

_Key = tuple[str, str]
"""Dag and day."""
_Mark = tuple[int, int, int]
"""Number of results, and sums of their times within the minute and of their versions."""


@dataclass(frozen=True, slots=True)
class _CachedSums:
    expires: float
    sums: list[Sum]


_CACHE: TLRUCache[Filter, _CachedSums] = TLRUCache(
    maxsize=MAX_CACHED, ttu=lambda _filter, cached, _now: cached.expires
)
_KEPT: TLRUCache[tuple[str, float], dict[_Key, tuple[_Mark, list[Sum]]]] = TLRUCache(
    maxsize=MAX_ZONES, ttu=lambda key, _kept, now: now + key[1]
)
"""By time zone and maximum age."""
_LOCK = threading.Lock()


def cached_sums(wanted: Filter) -> list[Sum] | None:
    """Return the sums from the cache; ``None`` if they are not in it."""
    with _LOCK:
        cached = _CACHE.get(wanted)
    return None if cached is None else cached.sums


def compute_sums(wanted: Filter) -> list[Sum]:
    """Return the sums. Compute them if they are not cached.

    This is slow if there are many results, so callers run only one computation at a time.
    """
    if (entries := cached_sums(wanted)) is not None:  # another request may have just computed them
        return entries
    started = time.monotonic()
    with create_session(scoped=False) as session:
        stored = list(
            _kept(session, wanted) if _has_whole_days(session, wanted) else stored_sums(session, wanted)
        )
        entries = [entry for entry in stored if not entry.elsewhere]
        if len(entries) < len(stored):
            entries += sums_elsewhere(session, wanted)
    ended = time.monotonic()
    with _LOCK:
        _CACHE[wanted] = _CachedSums(ended + TTL_FACTOR * (ended - started), entries)
    return entries


def _has_whole_days(session: Session, wanted: Filter) -> bool:
    """Whether the filter selects all results of its Dags on its days."""
    only_days = Filter(wanted.dag_ids, day_from=wanted.day_from, day_to=wanted.day_to, zone=wanted.zone)
    return wanted == only_days and can_group(session)


def _kept(session: Session, wanted: Filter) -> Iterator[Sum]:
    """Yield the sums of whole days. Compute those that have changed, and of their Dags all later ones."""
    marks = _marks(session, wanted)
    if len(marks) > MAX_DAYS:
        yield from stored_sums(session, wanted)
        return
    max_age = MAX_AGE_ON_SQLITE if session.get_bind().dialect.name == "sqlite" else math.inf
    with _LOCK:
        kept = _KEPT.setdefault((wanted.zone, max_age), {})
    if len(kept) > MAX_DAYS:
        kept.clear()
    # A result that arrives now may be in the sums but not in the marks: then these sums are computed again next time.
    current = {key: kept[key][1] for key, mark in marks.items() if key in kept and kept[key][0] == mark}
    if changed := marks.keys() - current.keys():
        dag_ids = frozenset(dag_id for dag_id, _ in changed)
        first = min(day for _, day in changed)
        fresh: dict[_Key, list[Sum]] = {key: [] for key in marks if key[0] in dag_ids and key[1] >= first}
        for entry in stored_sums(
            session, replace(wanted, dag_ids=dag_ids, day_from=date.fromisoformat(first))
        ):
            if (key := (entry.dag_id, entry.day)) in fresh:
                fresh[key].append(entry)
        kept.update({key: (marks[key], entries) for key, entries in fresh.items()})
        current |= fresh
    for entries in current.values():
        yield from entries


def _marks(session: Session, wanted: Filter) -> dict[_Key, _Mark]:
    """Return what changes when the results of a Dag and day change."""
    day, shift = day_in_sql(session, wanted.zone)
    timestamp: Any = XComModel.timestamp
    if session.get_bind().dialect.name == "sqlite":
        time_of_row: Any = cast(func.replace(func.substr(timestamp, 18), ".", ""), BigInteger)
        version: Any = func.length(cast(XComModel.value, LargeBinary))  # counting characters is slow
    else:
        time_of_row = func.date_part("microseconds", timestamp)
        version = cast(cast(literal_column(f"{XComModel.__tablename__}.xmin"), Text), BigInteger)
    columns = {"day": day, "shift": shift, "time": time_of_row, "version": version}
    rows = select(XComModel.dag_id, *(column.label(name) for name, column in columns.items()))
    row = fence(session, rows.where(*conditions(session, wanted)))
    key = (row.dag_id, row.day, row.shift)
    versions = func.coalesce(func.sum(row.version), 0)  # a row can have no value
    query = select(*key, func.count(), func.sum(row.time), versions).group_by(*key)
    marks: dict[_Key, _Mark] = {}
    for dag_id, day, shift, *sums in session.execute(query):
        at = (dag_id, shifted(str(day), shift))
        count, times, version = (
            known + int(added) for known, added in zip(marks.get(at, (0, 0, 0)), sums, strict=True)
        )
        marks[at] = (count, times, version)
    return marks
