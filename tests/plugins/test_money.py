"""Money in the routes of the UI: cards and totals."""

from __future__ import annotations

import csv
import io
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from airflow_provider_jojokey.__main__ import main
from airflow_provider_jojokey.cost import NANOS, PUBLISHED, Cost, Costs, sum_of
from airflow_provider_jojokey.payments.receipt import Receipt
from airflow_provider_jojokey.sandbox.charges import QUOTA_PER_USD
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
        ({"cost": {"amounts": [{"amount": 0.1, "currency": "USD"}]}}, Costs(unknown=1)),  # a float
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


ODD = {
    "many_decimals": {
        "cost": {"amounts": [{"amount": "0.0000000005", "currency": "USD", "approximate": True}]}
    },
    "large": {"cost": Costs((Cost(10**8 * NANOS - 1, "USD"),)).to_json()},
    "two_currencies": {"cost": Costs((YUAN, CENT)).to_json()},
    "no_amounts": {"cost": Costs(unknown=2).to_json()},
    "text_in_tokens": {"usage": {"input_tokens": "5", "output_tokens": 7, "total_tokens": 7}},
    "huge_tokens": {"usage": {"input_tokens": 2**63 - 1, "output_tokens": 2**53 - 1, "total_tokens": 9}},
    "fraction": {"usage": {"input_tokens": 1.0, "output_tokens": 7, "total_tokens": 7}, "count": 2.0},
    "negative": {"usage": {"input_tokens": -1, "output_tokens": 7, "total_tokens": 7}},
    "boolean": {"usage": {"input_tokens": True, "output_tokens": 7, "total_tokens": 7}},
    "derived": {"cost": None, "usage": {}, "derived_from": "s3://posters/a.png"},
    "derived_from_text": {"cost": None, "usage": {}, "derived_from": "elsewhere"},
    "derived_from_number": {"cost": None, "usage": {}, "derived_from": 5},
    "derived_from_lines": {"cost": None, "usage": {}, "derived_from": "a\nb\nc"},
    "derived_from_nothing": {"cost": None, "usage": {}, "derived_from": ""},
    "reused": {"cost": Costs().to_json(), "usage": {}, "reused": True},
    "failed": {"state": "failed", "billed": "yes", "usage": {}, "cost": None, "model": None},
    "lines": {"model": "a\nb"},
}


@pytest.mark.parametrize("odd", ODD)
def test_odd_results_are_summed_as_they_are_shown(server: Server, book: Book, odd: str) -> None:
    book.write(odd, costing(CENT), run_id="usual", at=NOON)
    for number in range(3):
        book.write(odd, result(**ODD[odd]), run_id=f"r{number}", at=NOON)
    cards = server.results(dag_id=odd)["results"]

    sums = server.totals(dag_id=odd)

    assert sums["results"] == len(cards) == 4
    assert sum((Costs.from_json(card["cost"]) for card in cards), Costs()) == Costs.from_json(sums["cost"])
    for name, tokens in sums["usage"].items():
        assert tokens == sum(card["usage"][name] for card in cards)
    assert sums["failed_paid"] == sum(card["state"] == "failed" and card["paid"] == "yes" for card in cards)
    assert sums["failed_perhaps_paid"] == 0
    assert sums["unknown_tokens"] == sum(
        card["paid"] != "no" and not card["usage"]["total_tokens"] for card in cards
    )


@pytest.mark.parametrize(
    ("facts", "tokens", "unknown"),
    [
        ([{"usage": {}}, {"usage": {}, "state": "failed", "billed": "unknown"}], "", 2),
        (
            [{"usage": {}, "state": "failed", "billed": "no", "cost": Costs((CHARGED,)).to_json()}],
            "",
            1,
        ),  # a fee
        ([{"usage": {}}, {}], "210", 1),
        ([{"usage": {}, "reused": True}], "0", 0),
        ([{"usage": {}, "state": "failed", "billed": "no"}], "0", 0),
    ],
)
def test_unknown_tokens_are_counted_and_never_0(
    server: Server, book: Book, dag_id: str, facts: list[dict[str, Any]], tokens: str, unknown: int
) -> None:
    for number, more in enumerate(facts):
        book.write(dag_id, result(**more), run_id=f"r{number}", at=NOON)

    sums = server.totals(dag_id=dag_id)
    (row,) = server.get("/jojokey/api/costs", params={"dag_id": dag_id}).json()["rows"]
    text = server.get("/jojokey/api/costs.csv", params={"dag_id": dag_id}).content.decode("utf-8-sig")

    (day,), (dag,) = sums["by_day"], sums["by_dag"]
    assert [part["unknown_tokens"] for part in (sums, day, dag, row)] == [unknown] * 4
    (line,) = csv.DictReader(io.StringIO(text))
    assert (line["total_tokens"], line["unknown_tokens"]) == (tokens, str(unknown))


TIMES = ("2026-03-07T22:00", "2026-03-08T02:30", "2026-11-01T03:59", "2026-11-01T04:00", "2026-11-01T05:00")
# Santiago sets its clocks back at midnight on 5 April, Cairo on 30 October. Santiago skips midnight on 6 September.
TIMES += ("2026-04-05T02:30", "2026-04-05T03:30", "2026-04-05T04:00", "2026-09-06T03:59", "2026-09-06T04:00")
TIMES += ("2026-10-29T20:30", "2026-10-29T21:30", "2026-10-29T22:00")


@pytest.mark.parametrize(
    "zone",
    ["UTC", "Asia/Shanghai", "America/New_York", "America/Santiago", "Africa/Cairo", "Asia/Kathmandu"],
)
def test_days_follow_the_zone_and_its_summer_time(server: Server, book: Book, zone: str) -> None:
    # New York changes from UTC-5 to UTC-4 on 8 March, and back on 1 November.
    times = [datetime.fromisoformat(f"{time}+00:00") for time in TIMES]
    for number, at in enumerate(times):
        book.write(zone, costing(CENT, count=1), run_id=f"r{number}", at=at)
    days = Counter(at.astimezone(ZoneInfo(zone)).date().isoformat() for at in times)
    sums = server.totals(dag_id=zone, tz=zone)
    assert {day["day"]: day["images"] for day in sums["by_day"]} == days
    for day, images in days.items():
        assert len(server.results(dag_id=zone, tz=zone, day_from=day, day_to=day)["results"]) == images


RUN = """
from tests.support.harness import DiesAfterResponse

def die_once(context):
    if context["ti"].try_number == 1:  # as after kill -9: the response has arrived, and nothing is recorded
        vars(context["task"])["hook"] = DiesAfterResponse()

at = {"retries": 1, "retry_delay": timedelta(0), "s3_bucket": "posters"}
GenerateImageOperator(task_id="killed", prompt="a fox", s3_key="{{ run_id }}/killed.png", pre_execute=die_once, **at)
GenerateImageOperator(task_id="reused", prompt="an owl", s3_key="owl.png", reuse="always", quality="medium", **at)
GenerateImageOperator(task_id="failed", prompt="[sandbox: not_an_image] a", s3_key="{{ run_id }}/failed.png", **at)
GenerateImageOperator(task_id="unbilled", prompt="[sandbox: moderation_blocked] a", s3_key="{{ run_id }}/no.png", **at)
"""


def test_receipts_gallery_csv_and_ledger_agree_to_the_cent(
    airflow: Any,
    gateway: Any,
    store: Any,
    server: Server,
    book: Book,
    dag_id: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """After a kill, a reuse and a failed paid request. The gateway's charges are the reference."""
    runs = [airflow.run(dag_id, RUN) for _ in range(2)]
    assert all(run.tries["killed", -1] == 2 for run in runs)
    assert {run.states["killed", -1] for run in runs} == {"success"}
    assert {run.states["failed", -1] for run in runs} == {"failed"}

    # After a kill and after a failure, the provider reads the gateway log, so the actual charge is known.
    truth = sum_of(
        Cost(record.quota * NANOS // QUOTA_PER_USD, "USD", approximate=False)
        if record.prompt != "an owl"
        else PUBLISHED.cost_of({"input_tokens": record.input_tokens, "output_tokens": record.output_tokens})
        for record in gateway.charges
        if record.billed
    )
    receipts = [
        Receipt.from_json(data) for key, data in store.objects("_jojokey/").items() if key.endswith(".json")
    ]
    capfd.readouterr()
    main(["ledger", "--bucket", "posters", "--by", "dag,model,day", "-o", "csv"])
    (row,) = csv.DictReader(io.StringIO(capfd.readouterr().out))
    sums = server.totals(dag_id=dag_id)

    assert sum(record.billed for record in gateway.charges) == 2 + 1 + 2
    assert truth.unknown == 0
    assert sum_of(a.cost for receipt in receipts for a in receipt.attempts if a.may_cost) == truth
    assert Costs.from_json(sums["cost"]) == truth
    assert [Costs.from_json(dag["cost"]) for dag in sums["by_dag"]] == [truth]
    assert (Decimal(row["amount"]), row["currency"], row["cost_unknown"]) == (
        truth.amounts[0].amount,
        "USD",
        "0",
    )
    assert row["cost"] == str(truth)
    manifests = [run.xcom("return_value", task)["cost"] for run in runs for task in ("killed", "reused")]
    failed = [run.xcom("jojokey_images", "failed")["cost"] for run in runs]
    assert sum((Costs.from_json(cost) for cost in (*manifests, *failed)), Costs()) == truth


def test_sums_include_new_results_soon(book: Book) -> None:
    from airflow_provider_jojokey.plugins import kept_sums
    from airflow_provider_jojokey.plugins.xcoms import Filter

    wanted = Filter(frozenset({"soon"}))
    started = time.monotonic()
    before = kept_sums.compute_sums(wanted)
    elapsed = time.monotonic() - started
    book.write("soon", result(), at=NOON)
    time.sleep(elapsed * 6)  # sums are cached for five times the duration of their computation
    after = kept_sums.compute_sums(wanted)
    assert [sum(entry.results for entry in entries) for entries in (before, after)] == [0, 1]
