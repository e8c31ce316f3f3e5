"""Sums of results equal the sum of each result, whatever JSON their XComs contain."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_provider_jojokey.results import Result
from tests.support.api_server import Book, result

NOON = datetime(2026, 3, 14, 12, tzinfo=UTC)
NUMBERS = st.sampled_from([0, 1, 7, 60, 2**53 - 1, 2**53, 10**30, -1, 5.0, 5.5, True, None, "7", [], {}])
TEXTS = st.sampled_from([None, "", "a", "b", 7, True, ["a"]])
USAGE = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("input_tokens", "output_tokens", "total_tokens", "other"), NUMBERS)
)
AMOUNTS = st.sampled_from(
    [
        "0",
        "0.00",
        "1",
        "0.053",
        "0.123456789",
        "0.1234567895",
        "12345678.9",
        "10000000000",
        "1e-05",
        "",
        "x",
        " 1 ",
    ]
)
AMOUNT = st.fixed_dictionaries(
    {
        "amount": AMOUNTS | NUMBERS,
        "currency": st.sampled_from(["USD", "CNY", "usd", "", None]),
        "approximate": st.sampled_from([True, False, None, 1]),
    }
)
COST = st.fixed_dictionaries({"amounts": st.lists(AMOUNT, max_size=2)}, optional={"unknown": NUMBERS})
ODD = st.fixed_dictionaries(
    {},
    optional={
        "version": st.sampled_from([1, 1.0, True, "1", 2]),
        "state": st.sampled_from(["failed", "complete", "odd", None]),
        "model": TEXTS,
        "count": NUMBERS,
        "usage": USAGE | NUMBERS,
        "cost": COST | NUMBERS,
        "billed": TEXTS | st.sampled_from(["yes", "no", "unknown"]),
        "reused": TEXTS | st.booleans(),
        "derived_from": TEXTS | st.just("s3://posters/fox.png"),
    },
)


def amount(value: str, currency: str) -> dict[str, Any]:
    return {"amount": value, "currency": currency, "approximate": True}


BARE: dict[str, Any] = {"usage": {}, "cost": None}
BASES = st.sampled_from([result(), result(**BARE), result(**BARE, state="failed", billed="unknown")])
USUAL = st.fixed_dictionaries(
    {},
    optional={
        "state": st.sampled_from(["failed", "complete"]),
        "billed": st.sampled_from([None, "yes", "no", "unknown"]),
        "reused": st.booleans(),
        "derived_from": st.sampled_from([None, "", "s3://posters/fox.png"]),
        "usage": st.sampled_from([{}, {"input_tokens": 7}, {"total_tokens": 0}, {"total_tokens": 9}]),
        "cost": st.lists(st.sampled_from([("0", "USD"), ("0.053", "USD"), ("7", "CNY")]), max_size=2).map(
            lambda found: {"amounts": [amount(*each) for each in found], "unknown": 0}
        ),
    },
)
"""Facts of usual results, any of which can decide whether a bare result was paid for."""


def test_result_with_nan_counts_once(book: Book) -> None:
    from airflow_provider_jojokey.plugins import kept_sums, totals
    from airflow_provider_jojokey.plugins.xcoms import Filter

    dag_id = f"nan_{uuid.uuid4().hex[:8]}"
    try:
        book.write(dag_id, {**result(), "seconds": float("nan")}, run_id="nan", at=NOON)
    except Exception:  # PostgreSQL rejects it
        book.write(dag_id, result(), run_id="nan", at=NOON)
    book.write(
        dag_id, "s3://elsewhere/5", run_id="elsewhere", at=NOON
    )  # its presence makes the sums read values
    assert totals.totals(kept_sums.compute_sums(Filter(frozenset({dag_id}))))["results"] == 1


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(BASES, USUAL | ODD), min_size=1, max_size=8))
def test_sums_equal_the_sum_of_each_result(book: Book, given_results: list[tuple[Any, Any]]) -> None:
    from airflow.utils.session import create_session

    from airflow_provider_jojokey.plugins import sums, totals
    from airflow_provider_jojokey.plugins.xcoms import Filter

    dag_id = f"sums_{uuid.uuid4().hex[:8]}"
    expected = []
    for number, (base, change) in enumerate(given_results):
        values = json.loads(json.dumps({**base, **change}))
        book.write(dag_id, values, run_id=f"r{number}", at=NOON)
        if (one := Result.from_xcom({**values, "images": ()})) is not None:
            expected.append(sums._sum_of(one, "2026-03-14", dag_id))
    with create_session() as session:
        found = list(sums.stored_sums(session, Filter(frozenset({dag_id}))))
    assert totals.totals(found) == totals.totals(expected)
    assert totals.costs(found) == totals.costs(expected)
