"""Days of results in the user's time zone, in Python and in SQL."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from airflow.models.xcom import XComModel
from sqlalchemy import Date, case, cast, func, literal

if TYPE_CHECKING:
    from sqlalchemy.orm import Session
    from sqlalchemy.sql import ColumnElement

FIRST_YEAR = 2000
"""Days before this year are computed with the time zone's offset at its start."""


def day_of(made_at: datetime, zone: str) -> str:
    """Return the day of a time in a time zone, in ISO format."""
    return made_at.astimezone(ZoneInfo(zone)).date().isoformat()


def start_of(day: date, zone: str) -> datetime:
    """Return the time at which a day starts in a time zone: its first midnight or, without one, the jump past it.

    The first day of the calendar starts with it, because databases store UTC, which has no earlier time.
    """
    return max(datetime.combine(day, time.min, ZoneInfo(zone)), datetime.min.replace(tzinfo=UTC))


@lru_cache(maxsize=10_000)
def shifted(day: str, days: int) -> str:
    """Return the day that is some days later, in ISO format."""
    return (date.fromisoformat(day) + timedelta(days=days)).isoformat()


def can_group(session: Session) -> bool:
    """Whether SQL can group results by day in this database."""
    return session.get_bind().dialect.name in ("postgresql", "sqlite")


def day_in_sql(session: Session, zone: str) -> tuple[ColumnElement[Any], ColumnElement[int]]:
    """Return expressions for the day on which a row was written, and for the number of days to add to it.

    Where SQL has no functions for them, the day is the time at which the row was written.
    """
    timestamp: Any = XComModel.timestamp
    if not can_group(session):
        return timestamp, literal(0)
    periods = _offsets(zone)

    def by_period(value: Any) -> Any:
        if len(periods) == 1:
            return value(periods[0][1])
        *newer, (_, first) = periods
        return case(*((timestamp >= start, value(offset)) for start, offset in newer), else_=value(first))

    if session.get_bind().dialect.name != "sqlite":
        utc: Any = func.timezone("UTC", timestamp)
        return cast(by_period(lambda offset: utc + offset), Date), literal(0)
    # SQLite's date functions are slow, so compare the time of day with the time at which the zone's day begins.
    time_of_day = func.substr(timestamp, 12)

    def shift(offset: timedelta) -> Any:
        begins = str(datetime.min + (-offset % timedelta(days=1)))[11:]
        if offset > timedelta(0):
            return case((time_of_day >= begins, 1), else_=0)
        return case((time_of_day < begins, -1), else_=0) if offset else literal(0)

    return func.substr(timestamp, 1, 10), by_period(shift)


@lru_cache(maxsize=100)
def _offsets(zone: str) -> list[tuple[datetime, timedelta]]:
    """Return the UTC offsets of a time zone and when each starts, newest first."""
    info = ZoneInfo(zone)
    at = datetime(FIRST_YEAR, 1, 1, tzinfo=UTC)
    found = [(at, _offset(at, info))]
    end = datetime.now(UTC) + timedelta(days=365)
    while at < end:
        after = at + timedelta(days=7)
        if _offset(after, info) != found[-1][1]:
            low, high = at, after
            while high - low > timedelta(seconds=1):
                middle = low + (high - low) / 2
                low, high = (low, middle) if _offset(middle, info) != found[-1][1] else (middle, high)
            start = high.replace(microsecond=0)
            found.append((start, _offset(start, info)))
        at = after
    return found[::-1]


def _offset(at: datetime, zone: ZoneInfo) -> timedelta:
    return at.astimezone(zone).utcoffset() or timedelta(0)
