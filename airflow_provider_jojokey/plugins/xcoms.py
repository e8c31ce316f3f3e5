"""Queries for results in Airflow's database.

Only this module depends on how Airflow stores XComs.

Airflow's execution API stores results as JSON values: as text on SQLite, as JSONB on PostgreSQL, as JSON on
MySQL. SQLAlchemy's JSON paths support all three. Users who may write XComs can store any value, so the module
selects values as text and parses each row separately: an invalid row is skipped and doesn't affect others. A
custom XCom backend can store values outside of the database, see
:mod:`~airflow_provider_jojokey.plugins.backend`. Values that can't be read are counted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.models.taskinstance import TaskInstance
from airflow.models.xcom import XComModel
from sqlalchemy import (
    Text,
    and_,
    cast,
    func,
    literal,
    literal_column,
    not_,
    or_,
    select,
)
from sqlalchemy.orm import defer, lazyload

from airflow_provider_jojokey.plugins import paging
from airflow_provider_jojokey.plugins.backend import Stored, Unreadable, is_custom, read_all
from airflow_provider_jojokey.plugins.days import start_of
from airflow_provider_jojokey.plugins.paging import KEYS, inside
from airflow_provider_jojokey.results import PROGRESS_KEY, XCOM_KEY, Result
from airflow_provider_jojokey.translatable import Translatable

if TYPE_CHECKING:
    from sqlalchemy.orm import Session
    from sqlalchemy.sql import ColumnElement, Select

MAX_WORDS = 10
"""Words of a search; further words are ignored."""
ROWS_AT_ONCE = 1_000
MAX_READ_ELSEWHERE = 1_000
"""Maximum results that are read from a custom XCom backend for the sums of one filter."""

STATES = ("failed", "failed_paid", "failed_perhaps_paid", "reused")
"""Values of :attr:`Filter.state`: failed, failed and charged, failed and possibly charged, reused."""


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter for results.

    :param dag_ids: Dags to search; only those that the user may read
    :param day_from: first day
    :param day_to: last day
    :param zone: time zone of the days
    :param run: part of the run ID
    :param model: name of the model as in the result
    :param size: size such as ``"1024x1024"``
    :param words: words that must all occur in the prompt, task ID, request ID or error, ignoring case
    :param state: one of :data:`STATES`
    """

    dag_ids: frozenset[str]
    run_id: str | None = None
    task_id: str | None = None
    day_from: date | None = None
    day_to: date | None = None
    words: tuple[str, ...] = ()
    state: str | None = None
    run: str | None = None
    model: str | None = None
    size: str | None = None
    zone: str = "UTC"


@dataclass(frozen=True, slots=True)
class Row:
    """A result and its task.

    :param label: name of the mapped task in Airflow's UI, if it has one
    :param made_at: time at which the task wrote the result, in UTC
    """

    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    label: str | None
    made_at: datetime
    result: Result


@dataclass(frozen=True, slots=True)
class Rows:
    """Results, and the number of results that can't be read.

    :param unread: number of results that can't be read here
    :param why: reason for the last unreadable result
    """

    rows: list[Row]
    unread: int = 0
    why: Translatable | None = None


def page(
    session: Session,
    wanted: Filter,
    *,
    limit: int,
    cursor: str | None = None,
    scan: int | None = None,
    sort: str = "newest",
) -> tuple[Rows, str | None]:
    """Return a page of results and the cursor of the next page, in a single query.

    Rows are sorted by time of writing, then by primary key, so new rows don't shift later pages. A page is
    shorter than its limit if some rows are not results.

    :param limit: maximum number of results to return
    :param sort: ``"newest"`` first, or a key of :data:`~airflow_provider_jojokey.plugins.paging.SORTS`
    :param scan: maximum number of rows to read; ``limit`` by default
    :raises BadCursor: if this function did not return the cursor
    """
    offset = None if sort == "newest" else paging.offset(cursor)
    scan = max(limit, scan or 0)
    keys = select(*KEYS, XComModel.timestamp).where(*conditions(session, wanted))
    order = [XComModel.timestamp.desc(), *(column.desc() for column in KEYS)]
    if offset is not None:
        order = [*paging.SORTS[sort](session), *order]
        keys = keys.offset(offset)
    elif cursor is not None:
        keys = keys.where(paging.before(cursor))
    # Sort only the keys, and then read the values, which are about a hundred times larger.
    keys = keys.order_by(*order).limit(scan + 1)
    entries = read_values(session, keys, *order)

    def after(count: int) -> str:
        return paging.cursor_of(entries[count - 1][0]) if offset is None else str(offset + count)

    rows: list[Row] = []
    unread, why = 0, None
    for start in range(0, min(scan, len(entries)), limit):
        chunk = entries[start : min(start + limit, scan)]
        for number, read in enumerate(read_results(chunk), start + 1):
            if isinstance(read, Unreadable):
                unread, why = unread + 1, read.message
            elif read is not None:
                rows.append(read)
            if len(rows) == limit and number < len(entries):
                return Rows(rows, unread, why), after(number)
    return Rows(rows, unread, why), after(scan) if len(entries) > scan else None


def of_task(session: Session, dag_id: str, run_id: str, task_id: str, map_index: int) -> Row | None:
    """Return one task's result; ``None`` if it has none.

    :raises Unreadable: if the result can't be read here
    """
    keys = _of_task(dag_id, run_id, task_id).where(XComModel.map_index == map_index)
    for read in read_results(read_values(session, keys.limit(1))):
        if isinstance(read, Unreadable):
            raise read
        return read
    return None


def progress_of_task(
    session: Session, dag_id: str, run_id: str, task_id: str, map_index: int
) -> dict[str, Any] | None:
    """Return the progress that a running batch last reported; ``None`` if there is none."""
    query = select(cast(XComModel.value, Text), XComModel.timestamp).where(
        XComModel.dag_id == dag_id,
        XComModel.task_id == task_id,
        XComModel.run_id == run_id,
        XComModel.map_index == map_index,
        XComModel.key == PROGRESS_KEY,
    )
    found = session.execute(query).first()
    value = None if found is None else _value(found[0])
    return {**value, "at": found[1].isoformat()} if found is not None and isinstance(value, dict) else None


def of_mapped(
    session: Session, dag_id: str, run_id: str, task_id: str, *, limit: int, offset: int
) -> tuple[Rows, bool]:
    """Return the results of a mapped task by map index, and whether there are more.

    :param limit: maximum number of rows to read
    :param offset: number of rows to skip
    """
    keys = _of_task(dag_id, run_id, task_id).where(XComModel.map_index >= 0)
    keys = keys.order_by(XComModel.map_index).limit(limit + 1).offset(offset)
    entries = read_values(session, keys, XComModel.map_index)
    return _readable(entries[:limit]), len(entries) > limit


def count_unsearched(session: Session, wanted: Filter) -> int:
    """Return the number of results that a search can't cover.

    A custom XCom backend stores them outside of the database.
    """
    plain = replace(wanted, words=(), state=None, model=None, size=None)
    if plain == wanted or not is_custom():
        return 0
    query = (
        select(func.count()).select_from(XComModel).where(*conditions(session, plain), is_elsewhere(session))
    )
    return session.scalar(query) or 0


def is_elsewhere(session: Session) -> ColumnElement[bool]:
    """Return an expression: whether a value is not a result, for example a reference to one."""
    version = cast(inside(session, XComModel.value["version"]), Text)
    return func.coalesce(version, "null") == "null"


def conditions(session: Session, wanted: Filter) -> Iterator[ColumnElement[bool]]:
    """Yield the SQL conditions of a filter."""
    yield XComModel.key == XCOM_KEY
    yield XComModel.dag_id.in_(sorted(wanted.dag_ids))
    if wanted.run_id is not None:
        yield XComModel.run_id == wanted.run_id
    if wanted.run is not None:
        yield XComModel.run_id.ilike(f"%{_literal(wanted.run)}%", escape="!")
    if wanted.task_id is not None:
        yield XComModel.task_id == wanted.task_id
    if wanted.day_from is not None:
        yield XComModel.timestamp >= start_of(wanted.day_from, wanted.zone)
    if wanted.day_to is not None and wanted.day_to < date.max:
        # The last time of a day is ambiguous where clocks are set back at midnight. The first time is not.
        yield XComModel.timestamp < start_of(wanted.day_to + timedelta(days=1), wanted.zone)
    for name in ("model", "size"):
        if (text := getattr(wanted, name)) is not None:
            yield inside(session, XComModel.value[name].as_string()) == text
    if wanted.state is not None:
        yield from _has_state(session, wanted.state)
    for word in wanted.words[:MAX_WORDS]:
        yield _has_word(session, word)


def _has_state(session: Session, state: str) -> Iterator[ColumnElement[bool]]:
    """Yield SQL conditions for a state, equivalent to :attr:`Result.paid`."""
    value = XComModel.value
    if state == "reused":
        yield inside(session, cast(value["reused"], Text)).in_(("true", "1"))
        return
    yield inside(session, value["state"].as_string()) == "failed"
    if state == "failed":
        return
    # A malformed usage is text that never equals a number.
    tokens = func.coalesce(inside(session, cast(value["usage"]["total_tokens"], Text)), "0")
    billed = func.coalesce(inside(session, value["billed"].as_string()), "unknown")
    # In the JSON of amounts, digits occur only in the amounts.
    amounts = func.coalesce(inside(session, cast(value[("cost", "amounts")], Text)), "")
    nothing = and_(tokens.in_(("0", "null", "")), *(not_(amounts.contains(digit)) for digit in "123456789"))
    if state == "failed_paid":
        yield or_(not_(nothing), billed == "yes")
        return
    unknown = func.coalesce(inside(session, cast(value[("cost", "unknown")], Text)), "0")
    earlier = and_(billed == "no", unknown.not_in(("0", "null", "")))
    yield and_(nothing, or_(billed == "unknown", earlier))


def _has_word(session: Session, word: str) -> ColumnElement[bool]:
    texts = [XComModel.value[name].as_string() for name in ("prompt", "request_id", "error", "message")]
    prompt: ColumnElement[str] = literal("")
    for text in (*(inside(session, column) for column in texts), XComModel.task_id):
        prompt = prompt + func.coalesce(text, "") + "\n"
    # On SQLite, and on PostgreSQL in the locale "C", LIKE ignores case only for ASCII letters.
    spellings = (
        sorted({word, word.lower(), word.upper(), word.capitalize()}) if not word.isascii() else [word]
    )
    return or_(*(prompt.ilike(f"%{_literal(spelling)}%", escape="!") for spelling in spellings))


def _literal(word: str) -> str:
    for special in "!%_":
        word = word.replace(special, f"!{special}")
    return word


def _of_task(dag_id: str, run_id: str, task_id: str) -> Select[Any]:
    return select(*KEYS).where(
        XComModel.dag_id == dag_id,
        XComModel.task_id == task_id,
        XComModel.run_id == run_id,
        XComModel.key == XCOM_KEY,
    )


def read_values(
    session: Session, keys: Select[Any], *order: Any
) -> Sequence[tuple[XComModel, str | None, str]]:
    """Return the values of the rows with these keys, each with the name of its mapped task."""
    label: Any = TaskInstance.rendered_map_index
    query = select(XComModel, label, cast(XComModel.value, Text))
    if session.get_bind().dialect.name == "sqlite":  # with a join, it takes nearly twice as long
        row: Any = literal_column(f"{XComModel.__tablename__}.rowid")
        query = query.where(row.in_(keys.with_only_columns(row).correlate(None)))
    else:
        chosen = keys.subquery()
        query = query.join(chosen, and_(*(column == chosen.c[column.key] for column in KEYS)))
    query = (
        query.outerjoin(
            TaskInstance,
            and_(
                TaskInstance.dag_id == XComModel.dag_id,
                TaskInstance.run_id == XComModel.run_id,
                TaskInstance.task_id == XComModel.task_id,
                TaskInstance.map_index == XComModel.map_index,
            ),
        )
        .options(defer(XComModel.value), lazyload(XComModel.dag_run))
        .order_by(*(order or (XComModel.timestamp.desc(), *(column.desc() for column in KEYS))))
    )
    return session.execute(query).all()


def _readable(entries: Sequence[tuple[XComModel, str | None, str]]) -> Rows:
    results = read_results(entries)
    unread = [result for result in results if isinstance(result, Unreadable)]
    return Rows(
        [result for result in results if isinstance(result, Row)],
        len(unread),
        unread[-1].message if unread else None,
    )


def read_results(entries: Sequence[tuple[XComModel, str | None, str]]) -> list[Row | Unreadable | None]:
    """Return the result in each row; ``None`` if it is not a result."""
    stored = [
        Stored(
            (tuple(getattr(xcom, key.key) for key in KEYS), xcom.timestamp),
            XCOM_KEY,
            xcom.dag_id,
            xcom.run_id,
            xcom.task_id,
            xcom.map_index,
            _value(text),
        )
        for xcom, _, text in entries
    ]
    return [
        Row(value.dag_id, value.run_id, value.task_id, value.map_index, label, xcom.timestamp, result)
        if isinstance(result, Result)
        else result
        for value, (xcom, label, _), result in zip(stored, entries, read_all(stored), strict=True)
    ]


def _value(text: str) -> Any:
    value = parsed(text)
    # Airflow's model and its public API store a value that they receive as text as a JSON string.
    return value if not isinstance(value, str) or (inner := parsed(value)) is None else inner


def parsed(text: str | None) -> Any:
    """Return JSON text as a value; ``None`` if it is not valid."""
    try:
        return None if text is None else json.loads(text)
    except (ValueError, RecursionError):
        return None
