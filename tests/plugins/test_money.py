"""Money in the routes of the UI: cards and totals."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from airflow_provider_jojokey.cost import NANOS, Cost, Costs, sum_of
from tests.support.api_server import Book, Server, result

NOON = datetime(2026, 3, 14, 12, tzinfo=UTC)
CENT = Cost(NANOS // 100, "USD")
CHARGED = Cost(3, "USD", approximate=False)
YUAN = Cost(7 * NANOS, "CNY", approximate=False)


def costing(*costs: Cost | None, **more: Any) -> dict[str, Any]:
    return result(**{"cost": sum_of(costs).to_json(), **more})


def test_totals_add_up_exactly_and_keep_currencies_apart(server: Server, book: Book) -> None:
    for number in range(10):  # ten times a tenth is one: a sum of floats is not
        tenth = Cost(NANOS // 10, "USD", approximate=False)
        book.write("tenths", costing(tenth), run_id=f"r{number}", at=NOON)
    book.write("mixed", costing(CENT, YUAN, None), at=NOON + timedelta(1))
    book.write("mixed", costing(CHARGED), run_id="r2", at=NOON + timedelta(1))

    sums = server.totals()

    tenths, mixed = Costs((Cost(NANOS, "USD", approximate=False),)), sum_of((CENT, CHARGED, YUAN, None))
    assert Costs.from_json(sums["cost"]) == tenths + mixed
    assert [Costs.from_json(day["cost"]) for day in sums["by_day"]] == [tenths, mixed]
    assert {dag["dag_id"]: Costs.from_json(dag["cost"]) for dag in sums["by_dag"]} == {
        "tenths": tenths,
        "mixed": mixed,
    }


@pytest.mark.parametrize(
    ("facts", "costs"),
    [
        ({}, Costs(unknown=1)),  # written before costs were recorded
        ({"cost": None, "reused": True, "usage": {}}, Costs()),
        ({"cost": None, "state": "failed", "billed": "no", "usage": {}}, Costs()),
        ({"cost": None, "state": "failed", "billed": "unknown", "usage": {}}, Costs(unknown=1)),
        ({"cost": {"amounts": [{"amount": 0.1, "currency": "USD"}]}}, Costs(unknown=1)),  # not ours
        ({"cost": Costs((CENT,)).to_json()}, Costs((CENT,))),
    ],
)
def test_unknown_cost_is_counted_and_never_0(
    server: Server, book: Book, facts: dict[str, Any], costs: Costs
) -> None:
    run_id = f"r{sorted(facts.items())}"[:200]  # sums are kept for some seconds
    book.write("a", result(**facts), run_id=run_id)
    (card,) = server.results(run_id=run_id)["results"]
    assert Costs.from_json(card["cost"]) == Costs.from_json(server.totals(run_id=run_id)["cost"]) == costs
