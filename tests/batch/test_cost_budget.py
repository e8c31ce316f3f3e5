"""Cost limits of tasks and Dag runs, checked against the gateway's charges."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from msgspec.structs import replace

from airflow_provider_jojokey.cost import NANOS, PUBLISHED, Cost, parse_prices
from airflow_provider_jojokey.exceptions import JojoKeyBudgetError
from airflow_provider_jojokey.img2.request import ImageRequest
from airflow_provider_jojokey.operators.jojokey import GenerateImageBatchOperator, GenerateImageOperator
from airflow_provider_jojokey.payments.amount import Amount, estimate, spent_on
from airflow_provider_jojokey.payments.attempt import Attempt, Outcome, Owner, Worker
from airflow_provider_jojokey.payments.budget import Budget
from airflow_provider_jojokey.payments.job import ImageJob, Limit, parse_limits
from airflow_provider_jojokey.payments.receipt import Receipt
from airflow_provider_jojokey.payments.run_budget import RunBudget
from airflow_provider_jojokey.store.keys import Destination
from airflow_provider_jojokey.store.s3 import ImageStore
from tests.support.campaigns import posters

YUAN = parse_prices({"currency": "CNY", "text_input": 0, "image_input": 0, "image_output": 216}, "prices")
BAD = ["-1", "many", "1e3", -0.01, float("nan"), float("inf"), True, [1], 10**12]


def job(number: int = 0, **more: Any) -> ImageJob:
    return ImageJob(
        ImageRequest("a fox"), Destination("posters", f"{number}.png", 1), Owner("dag", "run", "task"), **more
    )


def listed(gateway: Any) -> int:
    """Return the cost of the gateway's charges by the price list, in nanos."""
    costs = [
        PUBLISHED.cost_of({"input_tokens": record.input_tokens, "output_tokens": record.output_tokens})
        for record in gateway.charges
    ]
    return sum(cost.nanos for cost in costs if cost is not None)


def test_batch_stays_within_its_cost_limit(
    campaign: Any, gateway: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    run = campaign.run("money", posters(12), max_cost="0.03", max_in_flight=5, retries=2)

    assert run.state == "failed"
    assert run.tries["batch", -1] == 1
    assert 3 <= len(gateway.charges) <= 5  # an image costs about USD 0.0059
    assert listed(gateway) <= 30_000_000
    out = capfd.readouterr().out
    assert "This task may spend USD 0.03. It has spent" in out
    assert "(≈ USD 0.0" in out


@pytest.mark.parametrize("deferrable", [False, True])
def test_single_image_over_the_cost_limit_is_not_sent(
    airflow: Any, gateway: Any, store: Any, capfd: pytest.CaptureFixture[str], deferrable: bool
) -> None:
    run = airflow.run(
        "dear",
        'GenerateImageOperator(task_id="image", prompt="a fox", s3_key="s3://posters/fox.png", quality="high", '
        f'max_cost="{{{{ 0.2 }}}}", retries=2, deferrable={deferrable})',
    )
    assert (run.state, run.tries["image", -1]) == ("failed", 1)
    assert not gateway.requests
    assert "would cost about 7,0" in capfd.readouterr().out


def test_tasks_of_a_dag_run_share_its_cost_limit(airflow: Any, gateway: Any, store: Any) -> None:
    run = airflow.run(
        "shared",
        """
        from airflow_provider_jojokey.operators.jojokey import GenerateImageBatchOperator
        GenerateImageBatchOperator(
            task_id="one", s3_bucket="posters", max_cost_per_run=0.03,
            requests=[{"prompt": f"one {i}", "s3_key": f"one/{i}.png"} for i in range(3)]
        ) >> GenerateImageOperator.partial(
            task_id="two", prompt="two", max_cost_per_run=0.03
        ).expand(s3_key=[f"s3://posters/two/{i}.png" for i in range(4)])
        """,
    )
    assert run.state == "failed"
    assert len(gateway.charges) == 5
    assert listed(gateway) <= 30_000_000
    (key,) = store.objects("_jojokey/budgets/")
    entries = json.loads(store.objects(key)[key])["tasks"]
    assert sum(entry["cost"] for entry in entries.values()) == listed(gateway)
    assert {entry["currency"] for entry in entries.values()} == {"USD"}


def test_task_that_spent_nothing_reports_the_money_of_its_run(store: Any, gateway: Any) -> None:
    runs = [RunBudget(ImageStore("aws_default"), "posters", Owner("dag", "run", task)) for task in ("a", "b")]
    limit = Limit(cost=8_000_000)
    first, second = (Budget(Limit(), limit, run) for run in runs)
    first.reserve(job(), Receipt("posters", "0.png"), lambda: None)

    with pytest.raises(
        JojoKeyBudgetError, match=r"spent or reserved 207 tokens and 1 image \(≈ USD 0\.0059\)"
    ):
        second.reserve(job(1), Receipt("posters", "1.png"), lambda: None)

    (used,) = (use["used"] for use in second.uses() if use["scope"] == "run")
    assert used == estimate(job()).cost


@pytest.mark.parametrize("operator", [GenerateImageOperator, GenerateImageBatchOperator])
@pytest.mark.parametrize("name", ["max_cost", "max_cost_per_run"])
@pytest.mark.parametrize("value", BAD, ids=str)
def test_invalid_limit_fails_when_the_dag_is_parsed(operator: Any, name: str, value: Any) -> None:
    own = (
        {"requests": []}
        if operator is GenerateImageBatchOperator
        else {"prompt": "x", "s3_key": "s3://b/x.png"}
    )
    with pytest.raises(ValueError, match=name):
        operator(task_id="image", **own, **{name: value})


@pytest.mark.parametrize("value", BAD, ids=str)
def test_limit_that_is_not_an_amount_is_rejected(value: Any) -> None:
    with pytest.raises(ValueError, match="max_cost_per_run"):
        parse_limits({"max_cost_per_run": value})


@pytest.mark.parametrize("value", [2.5, "2.5", Decimal("2.5"), " 2.50 "])
def test_limit_can_be_a_number_or_text(value: Any) -> None:
    assert parse_limits({"max_cost": value}) == (Limit(cost=2_500_000_000), Limit())
    assert parse_limits({"max_cost": "None", "max_cost_per_run": 0}) == (Limit(), Limit(cost=0))


def test_job_with_limits_reaches_the_trigger() -> None:
    limited = job(task_limit=Limit(cost=5), run_limit=Limit(images=1))
    written = json.loads(json.dumps(limited.to_json()))
    assert ImageJob.from_json(written) == limited
    assert written["run_limit"] == {"tokens": None, "images": 1}  # an older triggerer knows only these


def test_concurrent_jobs_never_reserve_more_than_the_limit() -> None:
    each = estimate(job())
    budget = Budget(Limit(cost=3 * each.cost + each.cost // 2), Limit(), None, Amount())
    refused: list[JojoKeyBudgetError] = []

    def run(number: int) -> None:
        own = job(number)
        try:
            budget.reserve(own, Receipt("posters", own.destination.key), lambda: None)
        except JojoKeyBudgetError as error:
            refused.append(error)
        else:
            budget.settle(own, None, claimed=True)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 9
    assert budget.spent == each * 3


def test_run_with_two_currencies_is_rejected(store: Any) -> None:
    assert YUAN is not None

    def entry(task: str) -> RunBudget:
        return RunBudget(ImageStore("aws_default"), "posters", Owner("dag", "run", task))

    assert entry("one").commit(estimate(job()), Limit(cost=NANOS))
    with pytest.raises(JojoKeyBudgetError, match="costs in CNY, USD") as caught:
        entry("two").commit(estimate(job(), YUAN), Limit(cost=NANOS))
    assert "Raise the limit" not in str(caught.value)
    assert entry("two").commit(estimate(job(), YUAN), Limit(images=2))
    assert not entry("three").commit(estimate(job(), YUAN), Limit(images=2))


def test_charge_in_another_currency_is_priced_by_the_list() -> None:
    """A charge in another currency is not compared with the limit: the tokens are priced instead."""
    assert YUAN is not None
    now = datetime(2026, 3, 1, tzinfo=UTC)
    attempt = Attempt(
        id="0" * 32,
        fingerprint="f",
        owner=job().owner,
        worker=Worker("host", 1, 0.0),
        started_at=now,
        lease_until=now,
        outcome=Outcome.COMPLETE,
        billed="yes",
        usage={"input_tokens": 10, "output_tokens": 196, "total_tokens": 206},
        cost=Cost(5_000_000, "USD", approximate=False),
    )
    receipt = Receipt("posters", "0.png", attempts=(attempt,))
    assert spent_on(receipt, job(), YUAN).cost == 42_336_000
    assert spent_on(receipt, job()).cost == 5_000_000
    unknown = replace(attempt, usage=None, cost=None)
    assert spent_on(replace(receipt, attempts=(unknown,)), job(), YUAN).cost == estimate(job(), YUAN).cost
