"""Budgets of tasks and Dag runs, checked against the gateway's charges."""

from __future__ import annotations

import json
import threading
import uuid
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

from airflow_provider_jojokey.cost import Cost
from airflow_provider_jojokey.exceptions import (
    JojoKeyBudgetError,
    JojoKeyError,
    JojoKeyReceiptError,
    JojoKeyUnknownOutcomeError,
)
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
from tests.support.patience import PATIENCE

TOKENS_PER_POSTER = 196
"""Output tokens of one poster of low quality."""


def test_task_sends_no_more_images_than_its_limit(
    campaign: Any, gateway: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    run = campaign.run("images", posters(20), max_images=7, max_in_flight=5, retries=2)

    assert run.state == "failed"
    assert run.tries["batch", -1] == 1
    assert len(gateway.requests) == len(gateway.charges) == 7
    out = capfd.readouterr().out
    assert "This task may spend 7 images" in out
    assert "13 JojoKeyBudgetError" in out
    assert "13 of 20 items have no images (7 made, 0 reused, 13 failed)" in out
    assert run.xcom("usage", "batch")["total_tokens"] == sum(
        charge.total_tokens for charge in gateway.charges
    )


def test_task_spends_no_more_tokens_than_its_limit(campaign: Any, gateway: Any) -> None:
    run = campaign.run("tokens", posters(20), max_tokens=5 * TOKENS_PER_POSTER, max_in_flight=8)

    assert run.state == "failed"
    spent = sum(charge.total_tokens for charge in gateway.charges)
    assert 3 * TOKENS_PER_POSTER < spent <= 5 * TOKENS_PER_POSTER


def test_sufficient_budget_changes_nothing(campaign: Any, gateway: Any) -> None:
    run = campaign.run("enough", posters(6), max_images=6, max_tokens="{{ 6 * 300 }}", max_images_per_run=6)

    assert run.state == "success"
    assert len(gateway.charges) == 6
    spent = sum(charge.total_tokens for charge in gateway.charges)
    assert run.xcom("jojokey_images", "batch")["budget"] == [
        {"scope": "task", "unit": "tokens", "used": spent, "limit": 1800},
        {"scope": "task", "unit": "images", "used": 6, "limit": 6},
        {"scope": "run", "unit": "images", "used": 6, "limit": 6},
    ]


def test_budget_counts_earlier_tries(campaign: Any, gateway: Any) -> None:
    requests = posters(8)
    requests[0]["prompt"] = "[sandbox: no_channel times=3] a"

    run = campaign.run(
        "tries", requests, max_images=7, retries=2, retry_delay="timedelta(0)", max_in_flight=1
    )

    assert run.state == "failed"
    assert len(gateway.charges) == 7
    lines = campaign.manifest(run)
    assert sum(line["state"] == "complete" for line in lines) == 7


def test_budget_counts_billed_but_lost_images(campaign: Any, gateway: Any) -> None:
    requests = posters(6)
    requests[1]["prompt"] = "[sandbox: not_an_image] a"

    run = campaign.run("lost", requests, max_images=4, max_in_flight=1)

    assert run.state == "failed"
    assert len(gateway.charges) == 4


def test_tasks_of_a_dag_run_share_its_budget(airflow: Any, gateway: Any, store: Any) -> None:
    run = airflow.run(
        "shared",
        """
        from airflow_provider_jojokey.operators.jojokey import GenerateImageBatchOperator
        first = GenerateImageBatchOperator(
            task_id="one", s3_bucket="posters", max_images_per_run=5,
            requests=[{"prompt": f"one {i}", "s3_key": f"one/{i}.png"} for i in range(3)])
        second = GenerateImageBatchOperator.partial(
            task_id="two", s3_bucket="posters", max_images_per_run=5).expand(
            requests=[[{"prompt": f"two {i}", "s3_key": f"two/{i}.png"}] for i in range(4)])
        first >> second
        """,
    )

    assert run.state == "failed"
    assert len(gateway.charges) == 5
    assert sorted(state for (task, _), state in run.states.items() if task == "two") == [
        "failed",
        "failed",
        "success",
        "success",
    ]
    (key,) = store.objects("_jojokey/budgets/")
    entries = json.loads(store.objects(key)[key])["tasks"]
    assert sum(entry["images"] for entry in entries.values()) == 5
    assert sum(entry["tokens"] for entry in entries.values()) == sum(
        charge.total_tokens for charge in gateway.charges
    )


SINGLE_IMAGE = """
GenerateImageOperator(task_id="image", prompt="{prompt}", s3_bucket="posters", s3_key="fox.png", {more})
"""


@pytest.mark.parametrize("deferrable", [False, True])
def test_single_image_over_the_limit_is_not_sent(
    airflow: Any, gateway: Any, store: Any, capfd: pytest.CaptureFixture[str], deferrable: bool
) -> None:
    more = f'quality="high", max_tokens="{{{{ 3000 }}}}", retries=2, deferrable={deferrable}'
    run = airflow.run("dear", SINGLE_IMAGE.format(prompt="a fox", more=more))

    assert run.state == "failed"
    assert run.tries["image", -1] == 1
    assert gateway.requests == ()
    assert "This task may spend 3,000 tokens. It has spent 0 tokens" in capfd.readouterr().out


def test_lost_single_image_counts_when_generated_again(airflow: Any, gateway: Any, store: Any) -> None:
    more = 'reuse="never", retries=3, retry_delay=timedelta(0), max_images=2'
    run = airflow.run("again", SINGLE_IMAGE.format(prompt="[sandbox: not_an_image] a fox", more=more))

    assert run.state == "failed"
    assert len(gateway.requests) == len(gateway.charges) == 2


@pytest.mark.parametrize("deferrable", [False, True])
def test_mapped_tasks_share_the_budget_of_their_dag_run(
    airflow: Any, gateway: Any, store: Any, deferrable: bool
) -> None:
    run = airflow.run(
        "mapped_budget",
        f"""
        GenerateImageOperator.partial(
            task_id="image", s3_bucket="posters", max_tokens_per_run=700, deferrable={deferrable}
        ).expand_kwargs([{{"prompt": f"p {{i}}", "s3_key": f"{{i}}.png"}} for i in range(5)])
        """,
    )

    assert run.state == "failed"
    assert len(gateway.charges) == 3
    assert sorted(run.states.values()) == ["failed"] * 2 + ["success"] * 3
    (entries,) = (json.loads(data)["tasks"] for data in store.objects("_jojokey/budgets/").values())
    assert sum(entry["tokens"] for entry in entries.values()) == sum(
        charge.total_tokens for charge in gateway.charges
    )


@pytest.mark.parametrize("deferrable", [False, True])
def test_images_with_unknown_usage_count_in_run_budget(
    airflow: Any, gateway: Any, store: Any, deferrable: bool
) -> None:
    run = airflow.run(
        "unknown_usage",
        f"""
        GenerateImageOperator.partial(
            task_id="image", s3_bucket="posters", max_images_per_run=2, deferrable={deferrable}
        ).expand_kwargs([{{"prompt": f"[sandbox: no_usage] {{i}}", "s3_key": f"{{i}}.png"}} for i in range(5)])
        """,
    )

    assert run.state == "failed"
    assert len(gateway.requests) == len(gateway.charges) == 2
    spent = total_committed(store)
    assert spent.images == 2
    assert 2 * TOKENS_PER_POSTER < spent.tokens < 3 * TOKENS_PER_POSTER


def test_paid_images_that_s3_rejects_count(
    plain_store: Any, gateway: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__JOJOKEY__UPLOAD_PATIENCE", "0")
    plain_store.client.put_object(Bucket="posters", Key="x", Body=b"a file at the path of a folder")

    errors = [attempt(f"x/{i}.png", map_index=i, max_images_per_run=2) for i in range(4)]

    assert [str(getattr(error, "billed", error)) for error in errors] == ["yes", "yes", "no", "no"]
    assert len(gateway.charges) == 2
    assert total_committed(plain_store).images == 2


def test_each_payment_of_a_task_counts_in_run_budget(store: Any, gateway: Any) -> None:
    for number in (1, 2):
        assert attempt("fox.png", number, reuse="never", max_images_per_run=3) is None

    spent = total_committed(store)
    assert (spent.tokens, spent.images) == (sum(charge.total_tokens for charge in gateway.charges), 2)
    assert attempt("owl.png", map_index=1, max_images_per_run=3) is None
    assert isinstance(attempt("elk.png", map_index=2, max_images_per_run=3), JojoKeyBudgetError)


def test_batch_counts_payments_with_and_without_usage(store: Any, gateway: Any) -> None:
    for number, prompt in ((1, "{}"), (2, "[sandbox: no_usage] {}")):
        operator = GenerateImageBatchOperator(
            task_id="batch",
            s3_bucket="posters",
            requests=posters(2, prompt),
            reuse="never",
            max_tokens_per_run=9_000,
        )
        operator.execute({"ti": task("batch", number)})  # type: ignore[typeddict-item]

    spent = total_committed(store)
    assert spent.images == len(gateway.charges) == 4
    assert spent.tokens > 4 * TOKENS_PER_POSTER


def test_reservation_stays_if_receipt_is_unreadable(store: Any, gateway: Any) -> None:
    gateway.behave(delay=0.5)

    def damage_receipt() -> None:
        gateway.wait_for_request(timeout=PATIENCE)
        store.client.put_object(Bucket="posters", Key="_jojokey/fox.png.json", Body=b"garbage")

    damager = threading.Thread(target=damage_receipt)
    damager.start()
    error = attempt("fox.png", max_images_per_run=1)
    damager.join()

    assert isinstance(error, JojoKeyReceiptError)
    assert total_committed(store).images == len(gateway.charges) == 1


CATALOGUE = """
GenerateImageOperator.partial(task_id="image", s3_bucket="posters", reuse="always", {more}).expand_kwargs(
    [{{"prompt": f"a {{i}}", "s3_key": f"{{i}}.png"}} for i in range(4)])
"""


@pytest.mark.parametrize("deferrable", [False, True])
def test_reused_images_need_no_run_budget(airflow: Any, gateway: Any, store: Any, deferrable: bool) -> None:
    airflow.run("catalogue", CATALOGUE.format(more=""))

    more = f"max_images=0, max_images_per_run=1, deferrable={deferrable}"
    assert airflow.run("catalogue", CATALOGUE.format(more=more)).state == "success"
    assert len(gateway.requests) == 4

    for i in range(1, 4):
        store.client.delete_object(Bucket="posters", Key=f"{i}.png")
    run = airflow.run("catalogue", CATALOGUE.format(more=more))
    assert sorted(run.states.values()) == ["failed"] * 3 + ["success"]
    assert len(gateway.requests) == 4

    more = f"max_images_per_run=1, deferrable={deferrable}"
    run = airflow.run("catalogue", CATALOGUE.format(more=more))
    assert sorted(run.states.values()) == ["failed"] * 2 + ["success"] * 2
    assert len(gateway.requests) == len(gateway.charges) == 5


def attempt(key: str, number: int = 1, *, map_index: int = -1, **options: Any) -> JojoKeyError | None:
    """Run one try of a single-image task, and return its error."""
    operator = GenerateImageOperator(
        task_id="image", prompt="a fox", s3_bucket="posters", s3_key=key, **options
    )
    try:
        operator.execute({"ti": task("image", number, map_index)})  # type: ignore[typeddict-item]
    except JojoKeyError as error:
        return error
    return None


def task(name: str, number: int, map_index: int = -1) -> Any:
    return SimpleNamespace(
        dag_id="dag",
        run_id="run",
        task_id=name,
        map_index=map_index,
        try_number=number,
        xcom_push=lambda key, value: None,
    )


def total_committed(store: Any) -> Amount:
    """Return the sum of all entries in the run's budget."""
    (data,) = store.objects("_jojokey/budgets/").values()
    return sum((Amount(**task) for task in json.loads(data)["tasks"].values()), Amount())


def run_budget(task: str, map_index: int = -1) -> RunBudget:
    return RunBudget(ImageStore("aws_default"), "posters", Owner("dag", "run", task, map_index))


def test_concurrent_tasks_never_exceed_the_run_budget(store: Any, gateway: Any) -> None:
    granted: list[int] = []
    first = ImageStore("aws_default")
    _ = first.client

    def race(number: int) -> None:
        own = RunBudget(first, "posters", Owner("dag", "race", "task", number))
        if own.commit(Amount(100, 1), Limit(images=5)):
            granted.append(number)

    threads = [threading.Thread(target=race, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    written = json.loads(store.objects("_jojokey/budgets/")["_jojokey/budgets/dag/race.budget"])["tasks"]
    assert len(granted) == len(written) == 5


def job(number: int, run: str = "run") -> ImageJob:
    return ImageJob(
        ImageRequest("a fox", quality="low"),
        Destination("posters", f"{number}.png"),
        Owner("dag", run, "task"),
    )


def receipt_of(job: ImageJob) -> Receipt:
    return Receipt(job.destination.bucket, job.destination.key)


def permit() -> None:
    """Permit the wait."""


def test_alternating_batches_share_a_budget(any_store: Any, gateway: Any) -> None:
    budgets = [
        Budget(
            Limit(),
            Limit(images=10),
            RunBudget(ImageStore("aws_default"), "posters", Owner("dag", "run", f"batch_{name}")),
            Amount(),
        )
        for name in "ab"
    ]
    sent = [0, 0]
    for index in range(20):
        for number, budget in enumerate(budgets):
            image_job = job(index)
            try:
                budget.reserve(image_job, receipt_of(image_job), permit)
            except JojoKeyBudgetError:
                continue
            sent[number] += 1
            budget.settle(image_job, None, claimed=True)
    for budget in budgets:
        budget.close()

    assert sent == [5, 5]
    assert total_committed(any_store).images == 10


def test_verified_store_reads_budget_only_after_other_writers(store: Any, gateway: Any) -> None:
    images = ImageStore("aws_default")
    etag = store.client.put_object(Bucket="posters", Key="pointer", Body=b"x")["ETag"]
    assert images.verify_conditional_writes("posters", "pointer", b"x", etag).verified
    own = RunBudget(images, "posters", Owner("dag", "run", "one"))
    reads: list[str] = []
    images.client.meta.events.register("before-call.s3.GetObject", lambda **_: reads.append("read"))

    for count in range(1, 4):
        assert own.commit(Amount(100 * count, count), Limit(images=10))
    assert len(reads) == 1
    assert run_budget("two").commit(Amount(700, 7), Limit(images=10))
    assert not own.commit(Amount(400, 4), Limit(images=10))
    assert len(reads) == 2


def test_next_try_corrects_entry_of_a_dead_task(store: Any, gateway: Any) -> None:
    assert run_budget("one").commit(Amount(900, 9), Limit(images=10))  # then it is killed
    assert not run_budget("two").commit(Amount(200, 2), Limit(images=10))

    assert run_budget("one").commit(Amount(100, 1), Limit(images=10))

    assert run_budget("two").commit(Amount(200, 2), Limit(images=10))


@pytest.mark.parametrize("data", [b"", b"[]", b'{"version": 2, "tasks": {}}', b'{"version": 1, "tasks": {"a": {"tokens": -5, "images": 0}}}'])  # fmt: skip
def test_unreadable_budget_stops_the_run(store: Any, gateway: Any, data: bytes) -> None:
    store.client.put_object(Bucket="posters", Key="_jojokey/budgets/dag/run.budget", Body=data)

    with pytest.raises(JojoKeyReceiptError, match="cannot be read"):
        run_budget("one").commit(Amount(1, 1), Limit(images=10))


def test_job_waits_for_another_that_may_cost_less() -> None:
    first, second, third = job(1), job(2), job(3)
    each = estimate(first)
    budget = Budget(Limit(tokens=each.tokens + 5), Limit(), None, Amount())
    budget.reserve(first, receipt_of(first), permit)
    waits = 0

    def settle_first() -> None:
        nonlocal waits
        waits += 1
        budget.settle(first, receipt_of(first), claimed=True)  # without a charge

    budget.reserve(second, receipt_of(second), settle_first)
    budget.settle(second, None, claimed=True)

    assert waits == 1
    assert budget.spent == each
    with pytest.raises(JojoKeyBudgetError, match="It has spent"):
        budget.reserve(third, receipt_of(third), permit)


def test_sent_job_without_a_receipt_counts_as_reserved() -> None:
    image_job = job(1)
    budget = Budget(Limit(images=9), Limit(), None, Amount(150, 1))
    budget.reserve(image_job, receipt_of(image_job), permit)

    budget.settle(image_job, None, claimed=True)

    assert budget.spent == Amount(150, 1) + estimate(image_job)


def receipt_with(job: ImageJob, outcome: Outcome, tokens: int | None = None) -> Receipt:
    """Return a receipt with one attempt of the job's task."""
    now = datetime.now(UTC)
    worker = Worker("host", 1, 0.0)
    usage = None if tokens is None else {"total_tokens": tokens}
    attempt = Attempt("a" * 32, "f", job.owner, worker, now, now, outcome=outcome, usage=usage)
    return receipt_of(job).with_attempt(attempt)


@pytest.mark.parametrize("outcome", [Outcome.OPEN, Outcome.UNKNOWN, Outcome.BILLED, Outcome.COMPLETE])
def test_payment_of_another_process_counts_after_a_failed_claim(outcome: Outcome) -> None:
    image_job = job(1)
    budget = Budget(Limit(images=1), Limit(), None)
    budget.reserve(image_job, receipt_of(image_job), permit)

    with pytest.raises(JojoKeyBudgetError):
        budget.reserve(image_job, receipt_with(image_job, outcome), permit)


def test_request_that_is_still_in_flight_stays_in_run_budget(store: Any, gateway: Any) -> None:
    done, in_flight = job(1), job(2)
    own = RunBudget(ImageStore("aws_default"), "posters", done.owner)
    budget = Budget(Limit(), Limit(images=10), own, Amount())
    for image_job in (done, in_flight):
        budget.reserve(image_job, receipt_of(image_job), permit)
    budget.settle(done, receipt_with(done, Outcome.COMPLETE, 200), claimed=True)

    budget.close()  # the task must end before the second request has

    assert total_committed(store).images == 2
    assert total_committed(store).tokens == 200 + estimate(in_flight).tokens


def test_lost_request_counts_the_images_that_it_asked_for() -> None:
    larger = replace(job(1), request=ImageRequest("a fox", quality="low", n=10))
    lost = receipt_with(larger, Outcome.UNKNOWN)
    lost = replace(lost, attempts=(replace(lost.attempts[0], requested=10),))

    spent = spent_on(lost, job(1))  # the item of the next try is smaller

    assert spent.images == 10
    assert spent.tokens >= estimate(larger).tokens


@pytest.mark.parametrize("earlier", [{"quality": "high"}, {"size": "3840x2160"}, {"n": 10}], ids=str)
@pytest.mark.parametrize("limit", ["max_tokens", "max_cost"])
def test_lost_request_counts_as_what_it_requested(
    store: Any, gateway: Any, earlier: dict[str, Any], limit: str
) -> None:
    """A later try requests less, and is sent only if the limit has room for both."""
    wanted = {"prompt": "a fox [sandbox: reset times=1]", "s3_key": f"{uuid.uuid4().hex}.png"}
    about = estimate(replace(job(1), request=ImageRequest(wanted["prompt"], **{"quality": "low", **earlier})))
    value = about.tokens if limit == "max_tokens" else str(Cost(about.cost, "USD").amount)
    options = {"task_id": "image", "s3_bucket": "posters", "on_unknown_outcome": "regenerate", limit: value}
    names = {"dag_id": "dag", "run_id": uuid.uuid4().hex, "task_id": "image", "map_index": -1}

    def execute(try_number: int, **request: Any) -> None:
        ti = SimpleNamespace(**names, try_number=try_number, xcom_push=lambda *_: None)
        GenerateImageOperator(**wanted, **options, **request).execute({"ti": ti})  # type: ignore[typeddict-item]

    with pytest.raises(JojoKeyUnknownOutcomeError):
        execute(1, **earlier)
    with pytest.raises(JojoKeyBudgetError):
        execute(2)

    assert len(gateway.requests) == 1


def test_claims_that_cost_nothing_do_not_count() -> None:
    jobs = [job(number) for number in range(4)]
    budget = Budget(Limit(images=4), Limit(), None)
    budget.start({image_job.uri: estimate(image_job) for image_job in jobs})

    for image_job in jobs:
        budget.reserve(image_job, receipt_with(image_job, Outcome.NOT_BILLED), permit)
        budget.settle(image_job, receipt_with(image_job, Outcome.COMPLETE, 200), claimed=True)

    assert (budget.spent.images, budget.spent.tokens) == (4, 800)


@pytest.mark.parametrize("again", [1, 3])
def test_recovered_image_replaces_its_estimate(again: int) -> None:
    recovered, other = job(1), job(2)
    budget = Budget(Limit(tokens=10_000), Limit(), None)
    budget.start({recovered.uri: estimate(recovered), other.uri: Amount(50, 1)})

    for _ in range(again):
        budget.settle(recovered, receipt_with(recovered, Outcome.COMPLETE, 500), claimed=False)

    assert budget.spent.tokens == 550


def test_limits_are_numbers_or_numeric_strings() -> None:
    assert parse_limits({"max_tokens": "500", "max_images": "None", "max_images_per_run": 3}) == (
        Limit(tokens=500),
        Limit(images=3),
    )
    for bad in (-1, 1.5, True, "many"):
        with pytest.raises(ValueError, match="whole number"):
            parse_limits({"max_tokens": bad})
