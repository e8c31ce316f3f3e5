"""Sums of results.

Interpreting 100,000 results one by one takes seconds, so the usual ones are grouped by everything that is not a number
to add up, and only the numbers of each group are added up. PostgreSQL does that in SQL, with parallel workers. For
other databases, Python reads the values and does it: SQLite's JSON functions need twice the time. Results that
can't be added up exactly like this, such as amounts with more than nine decimals or text instead of numbers, are read
one by one. Either way, :class:`Result` interprets the values.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from airflow.models.xcom import XComModel
from sqlalchemy import (
    BigInteger,
    Boolean,
    Numeric,
    Text,
    and_,
    case,
    cast,
    func,
    literal,
    literal_column,
    or_,
    select,
)
from sqlalchemy.dialects.postgresql import JSONB

from airflow_provider_jojokey.cost import NANOS, Cost, Costs
from airflow_provider_jojokey.plugins.days import day_in_sql, day_of, shifted
from airflow_provider_jojokey.plugins.paging import KEYS, inside
from airflow_provider_jojokey.plugins.usual import read_usual
from airflow_provider_jojokey.plugins.xcoms import (
    MAX_READ_ELSEWHERE,
    ROWS_AT_ONCE,
    Filter,
    Row,
    conditions,
    is_elsewhere,
    parsed,
    read_results,
    read_values,
)
from airflow_provider_jojokey.results import Result

if TYPE_CHECKING:
    from sqlalchemy.orm import Session
    from sqlalchemy.sql import ColumnElement, Select
    from sqlalchemy.sql.base import ReadOnlyColumnCollection

MAX_ODD = 100
"""Maximum different facts of results that are read row by row."""
_TOKENS = ("input_tokens", "output_tokens", "total_tokens")
_USUAL = {"version": 1, "state": "complete", "billed": None, "reused": False}
"""Facts of most results, which are compared at once."""
_NUMBERS = {name: f"usage.{name}" for name in _TOKENS} | {"images": "count"}
_DERIVED = "s3://"
"""The beginning of ``derived_from``."""
_ANY_AMOUNT = "?"
"""Replaces the amount in the facts of a group."""
_YES = "+"
MAX_NUMBER = 10**15
"""SQL adds up only numbers below it, of which no sum overflows."""


class Sum(NamedTuple):
    """The sum of results that have the same day, Dag and model.

    :param day: day in the filter's time zone
    :param model: ``None`` if the results don't contain a model
    :param failed: number of failed results
    :param paid: whether the results were paid for: ``"yes"``, ``"no"`` or ``"unknown"``
    :param tokens: input, output and total tokens
    :param cost: a result without a cost that was, or may have been, paid for counts as one unknown cost
    :param unread: number of results outside of the database that weren't read; they count only here
    :param elsewhere: whether the values may be references to results outside of the database; they are not summed
    """

    day: str = ""
    dag_id: str = ""
    model: str | None = None
    results: int = 0
    images: int = 0
    failed: int = 0
    paid: str = "no"
    tokens: tuple[int, int, int] = (0, 0, 0)
    cost: Costs = Costs()
    unread: int = 0
    elsewhere: bool = False

    @property
    def unknown_tokens(self) -> int:
        """Number of results whose tokens are unknown, see :attr:`Result.tokens`.

        All results of one sum have tokens, or none has.
        """
        return self.results if self.paid != "no" and not self.tokens[2] else 0


def stored_sums(session: Session, wanted: Filter) -> Iterator[Sum]:
    """Yield sums of the results in the database that the filter selects."""
    odd: set[str] | None = None
    groups: list[tuple[Any, ...]] = []
    if session.get_bind().dialect.name == "postgresql":
        groups = [tuple(group) for group in session.execute(_groups(session, wanted))]
        odd = {facts for _, _, _, facts, *_ in groups if not _facts_of(facts).exact}
        if len(odd) > MAX_ODD:
            groups, odd = [], None
    for group in groups:
        facts = _facts_of(group[3])
        if facts.exact and facts.each is not None:
            yield _sum_of_group(group, facts.each, facts.has_amount)
    if odd is None or odd:
        yield from _sums_of_rows(session, wanted, odd)


_ELSEWHERE = Sum(elsewhere=True)


@dataclass(frozen=True, slots=True)
class _Facts:
    """What the results of a group have in common.

    :param each: the sum of one result with these facts; ``None`` if the group contains no results
    :param exact: whether SQL can add up the numbers of the group exactly
    :param has_amount: whether each result has one amount of money
    """

    each: Sum | None = None
    exact: bool = True
    has_amount: bool = False


@lru_cache(maxsize=1_000)
def _facts_of(text: str) -> _Facts:
    """Parse the text of :func:`_fields`."""
    flags, model, cost, common, *others = text.split("\n", 4)
    values = dict(_USUAL) if common == "" else dict(zip(_USUAL, parsed(common), strict=True))
    if values["version"] is None:
        return _Facts(_ELSEWHERE)
    derived = "".join(others)
    has_tokens, exact_numbers, exact_amount, has_cost = (flag == _YES for flag in flags)
    values |= {"model": parsed(model), "cost": parsed(cost)}
    amounts = values["cost"].get("amounts") if isinstance(values["cost"], dict) else None
    has_amount = False
    if isinstance(amounts, list) and len(amounts) == 1 and isinstance(amounts[0], dict):
        has_amount = amounts[0].get("amount") == _ANY_AMOUNT
        amounts[0]["amount"] = "1" if has_cost else "0"
    result = Result.from_xcom(
        {
            **values,
            "images": (),
            "usage": {"total_tokens": int(has_tokens)},
            "derived_from": derived or None,
        }
    )
    exact = exact_numbers and derived in ("", _DERIVED) and (exact_amount if has_amount else not amounts)
    if result is None:
        return _Facts(exact=exact)
    return _Facts(_sum_of(result, "", ""), exact, has_amount and result.cost is not None)


def _sum_of_group(group: tuple[Any, ...], each: Sum, has_amount: bool) -> Sum:
    """Return the sum of a row of :func:`_groups`, in which each result adds ``each`` except for the numbers."""
    day, shift, dag_id, _, results, input_tokens, output_tokens, total_tokens, images, nanos = group
    amounts = each.cost.amounts
    if has_amount:
        amounts = (Cost(int(nanos), amounts[0].currency, amounts[0].approximate),)
    return Sum(
        day=shifted(str(day), shift),
        dag_id=dag_id,
        model=each.model,
        results=each.results * results,
        images=int(images),
        failed=each.failed * results,
        paid=each.paid,
        tokens=(int(input_tokens), int(output_tokens), int(total_tokens)),
        cost=Costs(amounts, each.cost.unknown * results),
        elsewhere=each.elsewhere,
    )


def _groups(session: Session, wanted: Filter) -> Select[Any]:
    """Return a query for the groups: day and its shift, Dag, facts, number of results, sums of numbers and nanos."""
    day, shift = day_in_sql(session, wanted.zone)
    row = _fields(session, wanted, day=day, shift=shift)
    numbers = {name: case((row.can_add, cast(row[name], BigInteger))) for name in _NUMBERS} | {
        "nanos": row.nanos
    }
    added = (func.coalesce(func.sum(number), 0).label(name) for name, number in numbers.items())
    key = (row.day, row.shift, row.dag_id, row.facts)
    return select(*key, func.count().label("results"), *added).group_by(*key)


def _fields(
    session: Session, wanted: Filter, **more: ColumnElement[Any]
) -> ReadOnlyColumnCollection[str, Any]:
    """Return the columns of a subquery with the numbers of each result that are summed, and its facts.

    The facts, by which results are grouped, are lines of text: four flags (whether there are tokens, whether the
    numbers can be added up, whether the amount can, and whether it is not zero), the JSON of the model and of the cost
    without its amount, and an empty line for usual results. For others, the JSON array of the values in :data:`_USUAL`
    and the beginning of ``derived_from`` follow instead.

    :param more: further columns
    """
    columns = [column.label(name) for name, column in {**more, **_extracted()}.items()]
    row = fence(session, select(XComModel.dag_id, *columns).where(*conditions(session, wanted)))
    without_amount = func.replace(row.cost, '"' + func.coalesce(row.amount, "-") + '"', f'"{_ANY_AMOUNT}"')
    lines = (
        func.coalesce(row.model, "null") + "\n" + func.coalesce(without_amount, "null") + "\n" + row.common
    )
    values = {**_numbers(row), "lines": lines, **{name: row[name] for name in ("dag_id", *more)}}
    row = fence(session, select(*(column.label(name) for name, column in values.items())))
    can_add = _can_add(row)
    facts: ColumnElement[Any] = literal("")
    for flag in (row.total_tokens > 0, can_add, row.nanos.is_not(None), row.nanos > 0):
        facts = facts + case((flag, _YES), else_="-")
    facts = facts + "\n" + row.lines
    names = ("dag_id", *more, *_NUMBERS, "nanos")
    return fence(
        session, select(facts.label("facts"), can_add.label("can_add"), *(row[name] for name in names))
    )


def fence(session: Session, query: Select[Any]) -> ReadOnlyColumnCollection[str, Any]:
    """Return the columns of a subquery that the database evaluates once a row, not once for each use."""
    if session.get_bind().dialect.name == "sqlite":
        return query.limit(-1).subquery().c
    # As text, it needs no conversion to bigint: only then does PostgreSQL consider parallel workers.
    return query.offset(literal_column("'0'")).subquery().c


def _extracted() -> dict[str, ColumnElement[Any]]:
    value = XComModel.value
    usual = cast(literal(json.dumps(_USUAL | {"derived_from": None})), JSONB)
    array = cast(func.jsonb_build_array(*(value[name] for name in _USUAL)), Text)
    derived = func.coalesce(func.substr(value["derived_from"].as_string(), 1, len(_DERIVED)), "")
    usage = value["usage"]
    return {
        # Building an array takes several times as long as comparing values.
        "common": case((value.op("@>", return_type=Boolean())(usual), ""), else_=array + "\n" + derived),
        "model": cast(value["model"], Text),
        "cost": cast(value["cost"], Text),
        "amount": value[("cost", "amounts", 0, "amount")].as_string(),
        **{name: usage[name] for name in _TOKENS},
        "images": value["count"],
    }


def _numbers(row: Any) -> dict[str, ColumnElement[Any]]:
    def number(value: Any) -> ColumnElement[Any]:
        kind = func.coalesce(func.jsonb_typeof(value), "null")
        return case((kind == "number", cast(value, Numeric)), (kind == "null", 0))

    # translate() deletes characters. Regular expressions are several times slower.
    others = func.translate(row.amount, "0123456789", "")
    point = func.strpos(row.amount, ".")
    is_exact = or_(
        and_(others == ".", point.between(2, 10), (func.length(row.amount) - point).between(1, 9)),
        and_(others == "", func.length(row.amount).between(1, 9)),
    )
    nanos = case((is_exact, cast(cast(row.amount, Numeric) * NANOS, BigInteger)))
    return {name: number(row[name]) for name in _NUMBERS} | {"nanos": nanos}


def _can_add(row: Any) -> ColumnElement[bool]:
    numbers = [row[name] for name in _NUMBERS]
    decimals = func.scale(numbers[0] + numbers[1] + numbers[2] + numbers[3])  # NULL if one is not a number
    return and_(decimals == 0, func.least(*numbers) >= 0, func.greatest(*numbers) < MAX_NUMBER)


def _sums_of_rows(session: Session, wanted: Filter, only: set[str] | None) -> Iterator[Sum]:
    """Yield sums that Python adds up.

    :param only: facts of the results to read; ``None`` for all
    """
    value: Any = cast(XComModel.value, Text)
    day, shift = day_in_sql(session, wanted.zone)
    if only is None:
        query = select(day, shift, XComModel.dag_id, value).where(*conditions(session, wanted))
    else:
        row = _fields(session, wanted, day=day, shift=shift, value=value)
        query = select(row.day, row.shift, row.dag_id, row.value).where(row.facts.in_(sorted(only)))
    groups: dict[tuple[Any, ...], list[int]] = {}
    for day, shift, dag_id, text in session.execute(query.execution_options(yield_per=ROWS_AT_ONCE)):
        if (usual := read_usual(text)) is not None:
            facts, numbers = usual
            added = groups.setdefault((day, shift, dag_id, facts), [0] * (1 + len(numbers)))
            added[0] += 1
            for index, number in enumerate(numbers, 1):
                added[index] += number
            continue
        values = parsed(text)
        at = {"day": _day(day, shift, wanted.zone), "dag_id": dag_id}
        if values is not None and (not isinstance(values, dict) or values.get("version") is None):
            yield _ELSEWHERE._replace(**at)
        elif (result := _without_images(values)) is not None:
            yield _sum_of(result, **at)
    for (day, shift, dag_id, facts), added in groups.items():
        each = _sum_of_one(*facts)
        group = (_day(day, shift, wanted.zone), 0, dag_id, facts, *added)
        yield _sum_of_group(group, each, bool(each.cost.amounts))


@lru_cache(maxsize=1_000)
def _sum_of_one(
    state: str,
    model: str | None,
    billed: str | None,
    reused: bool | None,
    derived: bool,
    has_tokens: bool,
    cost: tuple[Any, ...] | None,
) -> Sum:
    """Return the sum of one result with these facts.

    :param cost: unknown costs and, if there is an amount, its currency, whether it is approximate, and whether it is
        more than 0
    """
    values: dict[str, Any] = {
        "version": 1,
        "state": state,
        "model": model,
        "billed": billed,
        "reused": reused,
    }
    values |= {"usage": {"total_tokens": int(has_tokens)}, "derived_from": _DERIVED if derived else None}
    if cost is not None:
        unknown, *amount = cost
        amounts = []
        if amount:
            currency, approximate, positive = amount
            amounts = [{"amount": str(int(positive)), "currency": currency, "approximate": approximate}]
        values["cost"] = {"amounts": amounts, "unknown": unknown}
    result = _without_images(values)
    if result is None:
        raise AssertionError("a usual result is not a result")
    return _sum_of(result, "", "")


def _without_images(values: Any) -> Result | None:
    return Result.from_xcom({**values, "images": ()}) if isinstance(values, dict) else None


def _day(day: Any, shift: int, zone: str) -> str:
    """Return the day of a row whose day and shift are those of :func:`day_in_sql`."""
    return day_of(day, zone) if isinstance(day, datetime) else shifted(str(day), shift)


def sums_elsewhere(session: Session, wanted: Filter) -> Iterator[Sum]:
    """Yield the sums of results that a custom backend stores outside of the database.

    Only the newest :data:`MAX_READ_ELSEWHERE` are read.
    """
    keys = select(*KEYS, XComModel.timestamp, XComModel.dag_id)
    # Values that are not valid JSON for SQLite, for example because of NaN, are sums of rows.
    is_valid = inside(session, literal(1)) == 1
    keys = keys.where(*conditions(session, wanted), is_valid, is_elsewhere(session))
    keys = keys.order_by(XComModel.timestamp.desc())
    for read in read_results(read_values(session, keys.limit(MAX_READ_ELSEWHERE))):
        if isinstance(read, Row):
            yield _sum_of(read.result, day_of(read.made_at, wanted.zone), read.dag_id)
        elif read is not None:
            yield Sum(unread=1)
    yield Sum(unread=sum(1 for _ in session.execute(keys.offset(MAX_READ_ELSEWHERE))))


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
