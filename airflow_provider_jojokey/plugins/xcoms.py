"""The results in Airflow's database: the one place that knows how XComs are stored.

Tasks hand their results to Airflow's execution API as JSON objects, and they are stored as such: as text on
SQLite, as JSONB on PostgreSQL, as JSON on MySQL. SQLAlchemy's JSON paths read all three. A value may be
anything at all, since whoever may write XComs may write anything; so it is taken as text and read row by
row, and one bad row is one row less. A custom XCom backend keeps values elsewhere, see
:mod:`~airflow_provider_jojokey.plugins.backend`: what can't be read is counted.
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
ROWS_AT_ONCE = 1_000
MAX_READ_ELSEWHERE = 1_000
"""Results that are read from a custom XCom backend for one sum."""
_PRIMARY_KEY = tuple(XComModel.__mapper__.attrs[one.key] for one in inspect(XComModel).primary_key)
_KEYS = tuple(one.class_attribute for one in _PRIMARY_KEY)


STATES = ("failed", "failed_paid", "failed_perhaps_paid", "reused")
"""Results that need a look: those that failed, and were or may have been paid for; and those that cost nothing."""


@dataclass(frozen=True, slots=True)
class Filter:
    """Which results are wanted.

    :param dag_ids: the Dags that the user may read, and no others
    :param day_from: the first day
    :param day_to: the last day
    :param zone: the time zone that the days are in
    :param run: a part of the run's ID
    :param model: the model's name, as the result has it
    :param size: such as ``"1024x1024"``
    :param words: all must occur in the prompt, the task ID, the request ID or the error, whatever their case
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
    """A task's result, and whose it is.

    :param label: how Airflow's UI names the mapped task, if it does
    :param made_at: when the task wrote it, in UTC
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
    """Some results.

    :param unread: how many more there are that can't be read here
    :param why: why the last of them can't be
    """

    rows: list[Row]
    unread: int = 0
    why: str | None = None


class BadCursor(ValueError):
    """A cursor that was not made by :func:`page`."""


def page(
    session: Session,
    wanted: Filter,
    *,
    limit: int,
    cursor: str | None = None,
    look: int | None = None,
    sort: str = "newest",
) -> tuple[Rows, str | None]:
    """Return the next results, newest first, and the cursor of those after them, in one query.

    The order is the time of writing, then the primary key: rows that are written meanwhile come before the
    first page and move nothing. A page is shorter than its limit where rows hold no result.

    :param limit: how many results to return at most
    :param sort: ``"newest"``, or ``"tokens"`` for the most expensive first
    :param look: how many rows to look at for them; by default as many
    :raises BadCursor: if the cursor is none of ours
    """
    passed = _offset(cursor) if sort == "tokens" else None
    look = max(limit, look or 0)
    keys = select(*_KEYS, XComModel.timestamp).where(*_conditions(session, wanted))
    order = [XComModel.timestamp.desc(), *(one.desc() for one in _KEYS)]
    if passed is not None:
        order.insert(0, _whole(session, "usage", "total_tokens").desc())
        keys = keys.offset(passed)
    elif cursor is not None:
        keys = keys.where(_before(*_decoded(cursor)))
    # The keys alone are sorted, and only then are the values read: they are a hundred times as large.
    keys = keys.order_by(*order).limit(look + 1)
    found = _read(session, keys, *order)

    def after(count: int) -> str:
        return _encoded(found[count - 1][0]) if passed is None else str(passed + count)

    rows: list[Row] = []
    unread, why = 0, None
    for start in range(0, min(look, len(found)), limit):
        chunk = found[start : min(start + limit, look)]
        for number, read in enumerate(_results(chunk), start + 1):
            if isinstance(read, Unreadable):
                unread, why = unread + 1, str(read)
            elif read is not None:
                rows.append(read)
            if len(rows) == limit and number < len(found):
                return Rows(rows, unread, why), after(number)
    return Rows(rows, unread, why), after(look) if len(found) > look else None


def of_task(session: Session, dag_id: str, run_id: str, task_id: str, map_index: int) -> Row | None:
    """Return one task's result, or ``None``.

    :raises Unreadable: if there is one that can't be read here
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
    """Return the results of a mapped task in their order, and whether there are more.

    :param limit: how many rows to look at
    :param offset: how many rows to pass over
    """
    keys = _of_task(dag_id, run_id, task_id).where(XComModel.map_index >= 0)
    keys = keys.order_by(XComModel.map_index).limit(limit + 1).offset(offset)
    found = _read(session, keys, XComModel.map_index)
    return _readable(found[:limit]), len(found) > limit


@dataclass(frozen=True, slots=True)
class Sum:
    """What some results of one day, Dag and model add up to.

    :param day: in the filter's time zone
    :param model: ``None`` if the results name none
    :param failed: how many of the results failed
    :param paid: whether they were paid for: ``"yes"``, ``"no"`` or ``"unknown"``
    :param tokens: input, output and total tokens
    :param cost: of results that were or may have been paid for and have no cost, it is unknown
    :param unread: results that are kept elsewhere and weren't read; nothing else is known of them
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

    Only what adds up is read of each value: a tenth of it. Of values that a custom backend keeps elsewhere, the
    newest are read.
    """
    query = select(XComModel.timestamp, XComModel.dag_id, _added_up(session)).where(
        *_conditions(session, wanted)
    )
    rows: Iterable[Any] = session.execute(query.execution_options(yield_per=ROWS_AT_ONCE))
    elsewhere = 0
    for timestamp, dag_id, text in rows:
        values = dict(zip(_ADDED_UP, _json(text) or [None] * len(_ADDED_UP), strict=True))
        elsewhere += values["version"] is None
        result = Result.from_xcom({**values, "images": ()})
        if result is not None:
            yield _sum_of(result, _day_of(timestamp, wanted), dag_id)
    if elsewhere:
        yield from _sums_elsewhere(session, wanted)


def _added_up(session: Session) -> ColumnElement[str]:
    """Return an expression for a JSON array of what adds up in a value, with a single look into it."""
    dialect = session.get_bind().dialect.name
    if dialect == "postgresql":
        return cast(func.jsonb_build_array(*(XComModel.value[name] for name in _ADDED_UP)), Text)
    found = func.json_extract(XComModel.value, *(f"$.{name}" for name in _ADDED_UP))
    if dialect == "sqlite":
        return cast(_inside(session, found), Text)
    return cast(
        func.json_array(*(func.json_extract(XComModel.value, f"$.{name}") for name in _ADDED_UP)), Text
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
    """Return what a result has cost; one unknown cost if it was paid for, or may have been, and doesn't say."""
    if result.cost is not None:
        return result.cost
    return Costs(unknown=int(result.paid != "no"))


def whole_number(value: Any) -> int:
    """Return a count that JSON can hold exactly, or 0."""
    return value if type(value) is int and 0 <= value < 2**53 else 0


def count_unsearched(session: Session, wanted: Filter) -> int:
    """Return how many results a search can't look into, as a custom XCom backend keeps them elsewhere."""
    plain = replace(wanted, words=(), state=None, model=None, size=None)
    if plain == wanted or not is_custom():
        return 0
    conditions = _conditions(session, plain)
    query = select(func.count()).select_from(XComModel).where(*conditions, _is_elsewhere(session))
    return session.scalar(query) or 0


def _is_elsewhere(session: Session) -> ColumnElement[bool]:
    version = cast(_inside(session, XComModel.value["version"]), Text)
    return func.coalesce(version, "null") == "null"


_ADDED_UP = ("version", "state", "model", "count", "usage", "cost", "billed", "reused", "derived_from")


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
    """Yield the conditions that select what :attr:`Result.paid` says, as SQL."""
    value = XComModel.value
    if state == "reused":
        yield _inside(session, cast(value["reused"], Text)).in_(("true", "1"))
        return
    yield _inside(session, value["state"].as_string()) == "failed"
    if state == "failed":
        return
    # A malformed usage is text that no number equals.
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
    for text in (*(_inside(session, one) for one in texts), XComModel.task_id):
        prompt = prompt + func.coalesce(text, "") + "\n"
    # SQLite's LIKE, and PostgreSQL's in the locale "C", know upper and lower case of ASCII only.
    spellings = (
        sorted({word, word.lower(), word.upper(), word.capitalize()}) if not word.isascii() else [word]
    )
    return or_(*(prompt.ilike(f"%{_literal(one)}%", escape="!") for one in spellings))


def _literal(word: str) -> str:
    for special in "!%_":
        word = word.replace(special, f"!{special}")
    return word


def _inside(session: Session, expression: Any) -> Any:
    """Return an expression that looks into a value, where SQLite would stop at NaN, which Python writes."""
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
        .join(chosen, and_(*(one == chosen.c[one.key] for one in _KEYS)))
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
        .order_by(*(order or (XComModel.timestamp.desc(), *(one.desc() for one in _KEYS))))
    )
    return session.execute(query).tuples().all()


def _readable(found: Sequence[tuple[XComModel, str | None, str]]) -> Rows:
    read = _results(found)
    unread = [one for one in read if isinstance(one, Unreadable)]
    return Rows(
        [one for one in read if isinstance(one, Row)], len(unread), str(unread[-1]) if unread else None
    )


def _results(found: Sequence[tuple[XComModel, str | None, str]]) -> list[Row | Unreadable | None]:
    """Return what each row holds; ``None`` if it is no result."""
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
        for xcom, _, text in found
    ]
    return [
        Row(one.dag_id, one.run_id, one.task_id, one.map_index, label, xcom.timestamp, result)
        if isinstance(result, Result)
        else result
        for one, (xcom, label, _), result in zip(stored, found, read_all(stored), strict=True)
    ]


def _value(text: str) -> Any:
    value = _json(text)
    # What Airflow's own model or its public API was given as text, it has written as text.
    return value if not isinstance(value, str) or (inner := _json(value)) is None else inner


def _json(text: str | None) -> Any:
    try:
        return None if text is None else json.loads(text)
    except (ValueError, RecursionError):
        return None


def _whole(session: Session, *path: str) -> ColumnElement[int]:
    """Return the whole number that a value holds at a path, 0 where there is something else."""
    value: Any = XComModel.value
    if session.get_bind().dialect.name == "sqlite":
        place = "$." + ".".join(path)
        is_whole = _inside(session, func.json_type(value, place)) == "integer"
        return case((is_whole, _inside(session, func.json_extract(value, place))), else_=0)
    for name in path:
        value = value[name]
    text = func.coalesce(cast(value, Text), "null")
    return case((text.regexp_match("^[0-9]{1,15}$"), cast(text, Numeric(20))), else_=0)


def _offset(cursor: str | None) -> int:
    if cursor is not None and not (cursor.isascii() and cursor.isdecimal() and len(cursor) < 10):
        raise BadCursor("the cursor is none of this page's")
    return int(cursor or 0)


def _before(timestamp: datetime, key: tuple[Any, ...]) -> ColumnElement[bool]:
    return or_(
        XComModel.timestamp < timestamp,
        and_(XComModel.timestamp == timestamp, tuple_(*_KEYS) < key),
    )


def _encoded(xcom: XComModel) -> str:
    key = [getattr(xcom, one.key) for one in _KEYS]
    text = json.dumps([xcom.timestamp.isoformat(), *key], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _decoded(cursor: str) -> tuple[datetime, tuple[Any, ...]]:
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        timestamp, *key = json.loads(text)
        kinds = [one.type.python_type for one in _KEYS]
        if len(key) != len(kinds) or any(type(one) is not kind for one, kind in zip(key, kinds, strict=True)):
            raise BadCursor("it has other parts")
        if any(abs(one) >= 2**63 if isinstance(one, int) else "\0" in one for one in key):
            raise BadCursor("it has impossible parts")
        return datetime.fromisoformat(timestamp).astimezone(UTC), tuple(key)
    except (ValueError, TypeError, OverflowError, RecursionError, binascii.Error):
        raise BadCursor("the cursor is none of this page's") from None
