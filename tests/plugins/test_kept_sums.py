"""Sums that are kept between requests equal those that are computed anew."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_provider_jojokey.cost import NANOS, Cost, Costs
from tests.support.api_server import Book, result

FIRST = datetime(2026, 3, 14, 20, tzinfo=UTC)
ZONES = ("UTC", "Asia/Shanghai", "America/New_York")
VALUES = (
    result(cost=Costs((Cost(NANOS, "USD"),)).to_json()),
    result(cost=Costs((Cost(3, "CNY"), Cost(5, "USD"))).to_json()),
    result(state="failed", usage={}, cost=None, billed="unknown"),
    result(usage={"total_tokens": 5.5}),
    {"version": 2},
    "s3://elsewhere/5",
)

CHANGES = st.tuples(
    st.integers(0, 1), st.integers(0, 3), st.integers(0, 60), st.none() | st.sampled_from(VALUES)
)
"""Dag, run, hours after :data:`FIRST`, and value: ``None`` deletes."""
REQUESTS = st.tuples(
    st.sampled_from([(0, 1), (0,), (1,)]), st.none() | st.integers(14, 17), st.none() | st.integers(14, 17)
)
"""Dags, first and last day."""


@contextmanager
def statements() -> Iterator[list[str]]:
    """Collect the SQL statements that are executed."""
    from airflow.settings import engine
    from sqlalchemy import event

    found: list[str] = []

    def collect(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        found.append(statement)

    event.listen(engine, "before_cursor_execute", collect)
    try:
        yield found
    finally:
        event.remove(engine, "before_cursor_execute", collect)


def kept(wanted: Any) -> dict[str, Any]:
    """Return the totals as the UI computes them when the short cache has expired."""
    from airflow_provider_jojokey.plugins import kept_sums, totals

    kept_sums._CACHE.clear()
    return totals.totals(kept_sums.compute_sums(wanted))


def days_kept(zone: str) -> dict[Any, Any]:
    """Return the sums that are kept, by Dag and day."""
    from airflow_provider_jojokey.plugins import kept_sums

    return next(days for (name, _), days in kept_sums._KEPT.items() if name == zone)


def anew(wanted: Any) -> dict[str, Any]:
    from airflow_provider_jojokey.plugins import kept_sums

    kept_sums._KEPT.clear()
    return kept(wanted)


def delete(dag_id: str, run_id: str) -> None:
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session
    from sqlalchemy import delete

    with create_session() as session:
        session.execute(delete(XComModel).filter_by(dag_id=dag_id, run_id=run_id))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    zone=st.sampled_from(ZONES),
    steps=st.lists(st.tuples(CHANGES, st.just(((0, 1), None, None)) | REQUESTS), max_size=16),
)
def test_kept_sums_equal_new_ones_after_any_change(book: Book, zone: str, steps: list[Any]) -> None:
    from airflow_provider_jojokey.plugins import kept_sums
    from airflow_provider_jojokey.plugins.xcoms import Filter

    dags = [f"kept_{number}_{uuid.uuid4().hex[:8]}" for number in range(2)]
    kept_sums._KEPT.clear()
    for number, ((dag, run, hours, value), (chosen, first, last)) in enumerate(steps):
        if value is None:
            delete(dags[dag], f"r{run}")
        else:  # Airflow writes each XCom at another time
            at = FIRST + timedelta(hours=hours, microseconds=number + 1)
            book.write(dags[dag], value, run_id=f"r{run}", at=at)
        days = [None if day is None else date(2026, 3, day) for day in (first, last)]
        wanted = Filter(frozenset(dags[each] for each in chosen), day_from=days[0], day_to=days[1], zone=zone)
        found = kept(wanted)
        before = dict(kept_sums._KEPT)
        assert found == anew(wanted)
        kept_sums._KEPT.update(before)


@pytest.mark.parametrize("value", [*VALUES[1:], None])
def test_result_written_again_on_the_same_day_replaces_the_first(book: Book, dag_id: str, value: Any) -> None:
    from airflow_provider_jojokey.plugins.xcoms import Filter

    for day in range(3):
        book.write(dag_id, VALUES[0], run_id=f"r{day}", at=FIRST + timedelta(days=day))
    wanted = Filter(frozenset({dag_id}))
    first = kept(wanted)
    # The value has the same size, or the time is the same.
    again = result(cost=Costs((Cost(2 * NANOS, "USD"),)).to_json()) if value is None else value
    book.write(dag_id, again, run_id="r1", at=FIRST + timedelta(days=1, microseconds=value is None))
    assert kept(wanted) == anew(wanted) != first


@pytest.mark.parametrize("amount", [2 * NANOS, 12 * NANOS])
def test_result_edited_in_place_is_noticed_in_time(book: Book, dag_id: str, amount: int) -> None:
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session
    from sqlalchemy import update

    from airflow_provider_jojokey.plugins import kept_sums
    from airflow_provider_jojokey.plugins.xcoms import Filter

    book.write(dag_id, VALUES[0], at=FIRST)
    wanted = Filter(frozenset({dag_id}))
    first = kept(wanted)
    edited = result(cost=Costs((Cost(amount, "USD"),)).to_json())
    with create_session() as session:
        session.execute(update(XComModel).filter_by(dag_id=dag_id).values(value=edited))
        same_size_on_sqlite = amount < 10 * NANOS and session.get_bind().dialect.name == "sqlite"
    if same_size_on_sqlite:
        assert kept(wanted) == first
        kept_sums._KEPT.expire(time.monotonic() + kept_sums.MAX_AGE_ON_SQLITE)
    assert kept(wanted)["cost"] == edited["cost"]


def test_sums_are_kept_without_a_limit_where_any_change_shows(book: Book, dag_id: str) -> None:
    from airflow.settings import engine

    from airflow_provider_jojokey.plugins import kept_sums
    from airflow_provider_jojokey.plugins.xcoms import Filter

    book.write(dag_id, VALUES[0], at=FIRST)
    anew(Filter(frozenset({dag_id})))
    kept_sums._KEPT.expire(time.monotonic() + kept_sums.MAX_AGE_ON_SQLITE)
    assert len(kept_sums._KEPT) == (0 if engine.dialect.name == "sqlite" else 1)


@pytest.mark.parametrize("zone", ZONES)
def test_only_changed_days_are_added_up_again(book: Book, dag_id: str, zone: str) -> None:
    from airflow_provider_jojokey.plugins.xcoms import Filter

    for day in range(5):
        book.write(dag_id, VALUES[0], run_id=f"r{day}", at=FIRST + timedelta(days=day))
    wanted = Filter(frozenset({dag_id}), zone=zone)
    first = kept(wanted)
    with statements() as unchanged:
        assert kept(wanted) == kept(replace(wanted, day_to=date(2027, 1, 1))) == first
    assert [statement for statement in unchanged if "json" in statement] == []

    before = {key: entries for key, (_, entries) in days_kept(zone).items() if key[0] == dag_id}
    book.write(dag_id, VALUES[0], run_id="r5", at=FIRST + timedelta(days=3, seconds=1))
    assert kept(wanted)["results"] == 6
    again = {key for key, entries in before.items() if days_kept(zone)[key][1] is not entries}
    assert again == set(sorted(before)[3:])


def test_users_get_the_sums_of_their_dags_only(book: Book, dag_id: str) -> None:
    from airflow_provider_jojokey.plugins.xcoms import Filter

    for name in (dag_id, f"{dag_id}_secret"):
        book.write(name, VALUES[0], at=FIRST)
    assert kept(Filter(frozenset({dag_id, f"{dag_id}_secret"})))["results"] == 2
    assert kept(Filter(frozenset({dag_id})))["results"] == 1
    assert kept(Filter(frozenset()))["results"] == 0


def test_row_without_a_value_adds_nothing(book: Book, dag_id: str) -> None:
    from sqlalchemy import null

    from airflow_provider_jojokey.plugins.xcoms import Filter

    book.write(dag_id, null(), run_id="empty", at=FIRST)
    book.write(dag_id, VALUES[0], at=FIRST + timedelta(days=1))
    assert kept(Filter(frozenset({dag_id})))["results"] == 1


def test_kept_sums_are_bounded(book: Book, dag_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow_provider_jojokey.plugins import kept_sums
    from airflow_provider_jojokey.plugins.xcoms import Filter

    monkeypatch.setattr(kept_sums, "MAX_DAYS", 3)
    kept_sums._KEPT.clear()
    for day in range(5):
        book.write(dag_id, VALUES[0], run_id=f"r{day}", at=FIRST + timedelta(days=day))
    wanted = Filter(frozenset({dag_id}))
    for day in (date(2026, 3, number) for number in range(14, 19)):
        assert kept(replace(wanted, day_from=day, day_to=day))["results"] == 1
        assert len(days_kept("UTC")) <= 3 + 1
    assert kept(wanted)["results"] == 5
    assert len(days_kept("UTC")) <= 3 + 1
