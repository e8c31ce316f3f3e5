"""Queries for results in Airflow's database.

Only this module depends on how Airflow stores XComs.

Airflow's execution API stores results as JSON values: as text on SQLite, as JSONB on PostgreSQL, as JSON on
MySQL. SQLAlchemy's JSON paths support all three. Users who may write XComs can store any value, so the module
selects values as text and parses each row separately: an invalid row is skipped and doesn't affect others. A
custom XCom backend can store values outside of the database, see
:mod:`~airflow_provider_jojokey.plugins.backend`. Values that can't be read are counted.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, time
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from airflow.models.taskinstance import TaskInstance
from airflow.models.xcom import XComModel
from sqlalchemy import (
    Numeric,
    Text,
    and_,
    case,
    cast,
    func,
    inspect,
    literal,
    not_,
    or_,
    select,
    tuple_,
)
from sqlalchemy.orm import defer, lazyload

from airflow_provider_jojokey.cost import Costs
from airflow_provider_jojokey.plugins.backend import Stored, Unreadable, is_custom, read_all
from airflow_provider_jojokey.results import XCOM_KEY, Result

if TYPE_CHECKING:
    from sqlalchemy.orm import Session
    from sqlalchemy.sql import ColumnElement, Select

MAX_WORDS = 10
"""Words of a search; further words are ignored."""
ROWS_AT_ONCE = 1_000
MAX_READ_ELSEWHERE = 1_000
"""Maximum results that are read from a custom XCom backend for the sums of one filter."""
_PRIMARY_KEY = tuple(XComModel.__mapper__.attrs[column.key] for column in inspect(XComModel).primary_key)
_KEYS = tuple(attribute.class_attribute for attribute in _PRIMARY_KEY)


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
    why: str | None = None


class BadCursor(ValueError):
    """A cursor that :func:`page` did not return."""


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
    :param sort: ``"newest"`` first, or ``"tokens"`` for most tokens first
    :param scan: maximum number of rows to read; ``limit`` by default
    :raises BadCursor: if this function did not return the cursor
    """
    offset = _offset(cursor) if sort == "tokens" else None
    scan = max(limit, scan or 0)
    keys = select(*_KEYS, XComModel.timestamp).where(*_conditions(session, wanted))
    order = [XComModel.timestamp.desc(), *(column.desc() for column in _KEYS)]
    if offset is not None:
        order.insert(0, _whole(session, "usage", "total_tokens").desc())
        keys = keys.offset(offset)
    elif cursor is not None:
        keys = keys.where(_before(*_decoded(cursor)))
    # Sort only the keys, and then read the values, which are about a hundred times larger.
    keys = keys.order_by(*order).limit(scan + 1)
    entries = _read(session, keys, *order)

    def after(count: int) -> str:
        return _encoded(entries[count - 1][0]) if offset is None else str(offset + count)

    rows: list[Row] = []
    unread, why = 0, None
    for start in range(0, min(scan, len(entries)), limit):
        chunk = entries[start : min(start + limit, scan)]
        for number, read in enumerate(_results(chunk), start + 1):
            if isinstance(read, Unreadable):
                unread, why = unread + 1, str(read)
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
    for read in _results(_read(session, keys.limit(1))):
        if isinstance(read, Unreadable):
            raise read
        return read
    return None


def of_mapped(
    session: Session, dag_id: str, run_id: str, task_id: str, *, limit: int, offset: int
) -> tuple[Rows, bool]:
    """Return the results of a mapped task by map index, and whether there are more.

    :param limit: maximum number of rows to read
    :param offset: number of rows to skip
    """
    keys = _of_task(dag_id, run_id, task_id).where(XComModel.map_index >= 0)
    keys = keys.order_by(XComModel.map_index).limit(limit + 1).offset(offset)
    entries = _read(session, keys, XComModel.map_index)
    return _readable(entries[:limit]), len(entries) > limit


@dataclass(frozen=True, slots=True)
class Sum:
    """The sum of results that have the same day, Dag and model.

    :param day: day in the filter's time zone
    :param model: ``None`` if the results don't contain a model
    :param failed: number of failed results
    :param paid: whether the results were paid for: ``"yes"``, ``"no"`` or ``"unknown"``
    :param tokens: input, output and total tokens
    :param cost: a result without a cost that was, or may have been, paid for counts as one unknown cost
    :param unread: number of results outside of the database that weren't read; they count only here
    """

    day: str = ""
    dag_id: str = ""
    model: str | None = None
    results: int = 0
    images: int = 0
    failed: int = 0
    paid: str = "no"
    tokens: tuple[int, int, int] = (0, 0, 0)
    cost: Costs = field(default_factory=Costs)
    unread: int = 0


_TOKENS = ("input_tokens", "output_tokens", "total_tokens")


def sums(session: Session, wanted: Filter) -> Iterator[Sum]:
    """Yield a sum for each result that the filter selects.

    The query selects only the fields that are needed, about a tenth of each value. Of values that a custom backend
    stores outside of the database, only the newest :data:`MAX_READ_ELSEWHERE` are read.
    """
    query = select(XComModel.timestamp, XComModel.dag_id, _summed_fields(session)).where(
        *_conditions(session, wanted)
    )
    rows: Iterable[Any] = session.execute(query.execution_options(yield_per=ROWS_AT_ONCE))
    elsewhere = 0
    for timestamp, dag_id, text in rows:
        values = dict(zip(_SUMMED_FIELDS, _json(text) or [None] * len(_SUMMED_FIELDS), strict=True))
        elsewhere += values["version"] is None
        result = Result.from_xcom({**values, "images": ()})
        if result is not None:
            yield _sum_of(result, _day_of(timestamp, wanted), dag_id)
    if elsewhere:
        yield from _sums_elsewhere(session, wanted)


def _summed_fields(session: Session) -> ColumnElement[str]:
    """Return a single expression for a JSON array of the fields that are summed."""
    dialect = session.get_bind().dialect.name
    if dialect == "postgresql":
        return cast(func.jsonb_build_array(*(XComModel.value[name] for name in _SUMMED_FIELDS)), Text)
    extracted = func.json_extract(XComModel.value, *(f"$.{name}" for name in _SUMMED_FIELDS))
    if dialect == "sqlite":
        return cast(_inside(session, extracted), Text)
    return cast(
        func.json_array(*(func.json_extract(XComModel.value, f"$.{name}") for name in _SUMMED_FIELDS)), Text
    )


def _sums_elsewhere(session: Session, wanted: Filter) -> Iterator[Sum]:
    keys = select(*_KEYS, XComModel.timestamp, XComModel.dag_id)
    keys = keys.where(*_conditions(session, wanted), _is_elsewhere(session))
    keys = keys.order_by(XComModel.timestamp.desc())
    for read in _results(_read(session, keys.limit(MAX_READ_ELSEWHERE))):
        if isinstance(read, Row):
            yield _sum_of(read.result, _day_of(read.made_at, wanted), read.dag_id)
        elif read is not None:
            yield Sum(unread=1)
    yield Sum(unread=sum(1 for _ in session.execute(keys.offset(MAX_READ_ELSEWHERE))))


def _day_of(made_at: datetime, wanted: Filter) -> str:
    return made_at.astimezone(ZoneInfo(wanted.zone)).date().isoformat()


def _sum_of(result: Result, day: str, dag_id: str) -> Sum:
    tokens = [whole_number(result.usage.get(name)) for name in _TOKENS]
    return Sum(
        day=day,
        dag_id=dag_id,
        model=result.model,
        results=1,
        images=result.count,
        failed=int(result.state == "failed"),
        paid=result.paid,
        tokens=(tokens[0], tokens[1], tokens[2]),
        cost=costs_of(result),
    )


def costs_of(result: Result) -> Costs:
    """Return a result's cost: if none is recorded, unknown unless nothing was paid."""
    if result.cost is not None:
        return result.cost
    return Costs(unknown=int(result.paid != "no"))


def whole_number(value: Any) -> int:
    """Return ``value`` if it is a count that JSON can represent exactly, otherwise 0."""
    return value if type(value) is int and 0 <= value < 2**53 else 0


def count_unsearched(session: Session, wanted: Filter) -> int:
    """Return the number of results that a search can't cover.

    A custom XCom backend stores them outside of the database.
    """
    plain = replace(wanted, words=(), state=None, model=None, size=None)
    if plain == wanted or not is_custom():
        return 0
    conditions = _conditions(session, plain)
    query = select(func.count()).select_from(XComModel).where(*conditions, _is_elsewhere(session))
    return session.scalar(query) or 0


def _is_elsewhere(session: Session) -> ColumnElement[bool]:
    version = cast(_inside(session, XComModel.value["version"]), Text)
    return func.coalesce(version, "null") == "null"


_SUMMED_FIELDS = ("version", "state", "model", "count", "usage", "cost", "billed", "reused", "derived_from")


def _conditions(session: Session, wanted: Filter) -> Iterator[ColumnElement[bool]]:
    yield XComModel.key == XCOM_KEY
    yield XComModel.dag_id.in_(sorted(wanted.dag_ids))
    if wanted.run_id is not None:
        yield XComModel.run_id == wanted.run_id
    if wanted.run is not None:
        yield XComModel.run_id.ilike(f"%{_literal(wanted.run)}%", escape="!")
    if wanted.task_id is not None:
        yield XComModel.task_id == wanted.task_id
    if wanted.day_from is not None:
        yield XComModel.timestamp >= datetime.combine(wanted.day_from, time.min, ZoneInfo(wanted.zone))
    if wanted.day_to is not None:
        yield XComModel.timestamp <= datetime.combine(wanted.day_to, time.max, ZoneInfo(wanted.zone))
    for name in ("model", "size"):
        if (text := getattr(wanted, name)) is not None:
            yield _inside(session, XComModel.value[name].as_string()) == text
    if wanted.state is not None:
        yield from _has_state(session, wanted.state)
    for word in wanted.words[:MAX_WORDS]:
        yield _has_word(session, word)


def _has_state(session: Session, state: str) -> Iterator[ColumnElement[bool]]:
    """Yield SQL conditions for a state, equivalent to :attr:`Result.paid`."""
    value = XComModel.value
    if state == "reused":
        yield _inside(session, cast(value["reused"], Text)).in_(("true", "1"))
        return
    yield _inside(session, value["state"].as_string()) == "failed"
    if state == "failed":
        return
    # A malformed usage is text that never equals a number.
    tokens = func.coalesce(_inside(session, cast(value["usage"]["total_tokens"], Text)), "0")
    billed = func.coalesce(_inside(session, value["billed"].as_string()), "unknown")
    no_tokens = tokens.in_(("0", "null", ""))
    yield (
        or_(not_(no_tokens), billed == "yes")
        if state == "failed_paid"
        else and_(no_tokens, billed == "unknown")
    )


def _has_word(session: Session, word: str) -> ColumnElement[bool]:
    texts = [XComModel.value[name].as_string() for name in ("prompt", "request_id", "error", "message")]
    prompt: ColumnElement[str] = literal("")
    for text in (*(_inside(session, column) for column in texts), XComModel.task_id):
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


def _inside(session: Session, expression: Any) -> Any:
    """Return an expression that is NULL on SQLite if the value is not valid JSON.

    Python writes NaN, on which SQLite's JSON functions fail.
    """
    if session.get_bind().dialect.name != "sqlite":
        return expression
    return case((func.json_valid(XComModel.value) == 1, expression))


def _of_task(dag_id: str, run_id: str, task_id: str) -> Select[Any]:
    return select(*_KEYS).where(
        XComModel.dag_id == dag_id,
        XComModel.task_id == task_id,
        XComModel.run_id == run_id,
        XComModel.key == XCOM_KEY,
    )


def _read(session: Session, keys: Select[Any], *order: Any) -> Sequence[tuple[XComModel, str | None, str]]:
    chosen = keys.subquery()
    label: Any = TaskInstance.rendered_map_index
    query = (
        select(XComModel, label, cast(XComModel.value, Text))
        .join(chosen, and_(*(column == chosen.c[column.key] for column in _KEYS)))
        .outerjoin(
            TaskInstance,
            and_(
                TaskInstance.dag_id == XComModel.dag_id,
                TaskInstance.run_id == XComModel.run_id,
                TaskInstance.task_id == XComModel.task_id,
                TaskInstance.map_index == XComModel.map_index,
            ),
        )
        .options(defer(XComModel.value), lazyload(XComModel.dag_run))
        .order_by(*(order or (XComModel.timestamp.desc(), *(column.desc() for column in _KEYS))))
    )
    return session.execute(query).tuples().all()


def _readable(entries: Sequence[tuple[XComModel, str | None, str]]) -> Rows:
    results = _results(entries)
    unread = [result for result in results if isinstance(result, Unreadable)]
    return Rows(
        [result for result in results if isinstance(result, Row)],
        len(unread),
        str(unread[-1]) if unread else None,
    )


def _results(entries: Sequence[tuple[XComModel, str | None, str]]) -> list[Row | Unreadable | None]:
    """Return the result in each row; ``None`` if it is not a result."""
    stored = [
        Stored(
            (tuple(getattr(xcom, key.key) for key in _KEYS), xcom.timestamp),
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
    value = _json(text)
    # Airflow's model and its public API store a value that they receive as text as a JSON string.
    return value if not isinstance(value, str) or (inner := _json(value)) is None else inner


def _json(text: str | None) -> Any:
    try:
        return None if text is None else json.loads(text)
    except (ValueError, RecursionError):
        return None


def _whole(session: Session, *path: str) -> ColumnElement[int]:
    """Return an expression for the whole number at a path; 0 if it is not one."""
    value: Any = XComModel.value
    if session.get_bind().dialect.name == "sqlite":
        json_path = "$." + ".".join(path)
        is_whole = _inside(session, func.json_type(value, json_path)) == "integer"
        return case((is_whole, _inside(session, func.json_extract(value, json_path))), else_=0)
    for name in path:
        value = value[name]
    text = func.coalesce(cast(value, Text), "null")
    return case((text.regexp_match("^[0-9]{1,15}$"), cast(text, Numeric(20))), else_=0)


def _offset(cursor: str | None) -> int:
    if cursor is not None and not (cursor.isascii() and cursor.isdecimal() and len(cursor) < 10):
        raise BadCursor("the cursor is invalid")
    return int(cursor or 0)


def _before(timestamp: datetime, key: tuple[Any, ...]) -> ColumnElement[bool]:
    return or_(
        XComModel.timestamp < timestamp,
        and_(XComModel.timestamp == timestamp, tuple_(*_KEYS) < key),
    )


def _encoded(xcom: XComModel) -> str:
    key = [getattr(xcom, column.key) for column in _KEYS]
    text = json.dumps([xcom.timestamp.isoformat(), *key], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _decoded(cursor: str) -> tuple[datetime, tuple[Any, ...]]:
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        timestamp, *key = json.loads(text)
        kinds = [column.type.python_type for column in _KEYS]
        if len(key) != len(kinds) or any(
            type(part) is not kind for part, kind in zip(key, kinds, strict=True)
        ):
            raise BadCursor("the cursor has unexpected parts")
        if any(abs(part) >= 2**63 if isinstance(part, int) else "\0" in part for part in key):
            raise BadCursor("the cursor has parts out of range")
        return datetime.fromisoformat(timestamp).astimezone(UTC), tuple(key)
    except (ValueError, TypeError, OverflowError, RecursionError, binascii.Error):
        raise BadCursor("the cursor is invalid") from None
