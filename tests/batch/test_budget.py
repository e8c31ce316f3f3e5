"""What a task and a Dag run may spend: counted by the gateway's own charges."""

from __future__ import annotations

import json
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_provider_jojokey.exceptions import JojoKeyBudgetError, JojoKeyError, JojoKeyReceiptError
from airflow_provider_jojokey.img2.request import ImageRequest
from airflow_provider_jojokey.operators.jojokey import GenerateImageBatchOperator, GenerateImageOperator
from airflow_provider_jojokey.payments.amount import Amount, estimate
from airflow_provider_jojokey.payments.attempt import Owner
from airflow_provider_jojokey.payments.budget import Budget
from airflow_provider_jojokey.payments.job import ImageJob, Limit, parse_limits
from airflow_provider_jojokey.payments.receipt import Receipt
from airflow_provider_jojokey.payments.run_budget import RunBudget
from airflow_provider_jojokey.store.keys import Destination
from airflow_provider_jojokey.store.s3 import ImageStore
from tests.support.campaigns import posters
from tests.support.patience import PATIENCE

EACH = 196
"""Output tokens of one poster of low quality."""


def test_no_more_images_are_sent_than_the_task_may_make(
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
    assert run.xcom("usage", "batch")["total_tokens"] == sum(one.total_tokens for one in gateway.charges)


def test_no_more_tokens_are_spent_than_the_task_may_spend(campaign: Any, gateway: Any) -> None:
    run = campaign.run("tokens", posters(20), max_tokens=5 * EACH, max_in_flight=8)

    assert run.state == "failed"
    spent = sum(one.total_tokens for one in gateway.charges)
    assert 3 * EACH < spent <= 5 * EACH


def test_a_budget_that_is_enough_is_no_matter(campaign: Any, gateway: Any) -> None:
    run = campaign.run("enough", posters(6), max_images=6, max_tokens="{{ 6 * 300 }}", max_images_per_run=6)

    assert run.state == "success"
    assert len(gateway.charges) == 6
    spent = sum(charge.total_tokens for charge in gateway.charges)
    assert run.xcom("jojokey_images", "batch")["budget"] == [
        {"scope": "task", "unit": "tokens", "used": spent, "limit": 1800},
        {"scope": "task", "unit": "images", "used": 6, "limit": 6},
        {"scope": "run", "unit": "images", "used": 6, "limit": 6},
    ]


def test_what_earlier_tries_have_spent_counts(campaign: Any, gateway: Any) -> None:
    requests = posters(8)
    requests[0]["prompt"] = "[sandbox: no_channel times=3] a"

    run = campaign.run(
        "tries", requests, max_images=7, retries=2, retry_delay="timedelta(0)", max_in_flight=1
    )

    assert run.state == "failed"
    assert len(gateway.charges) == 7
    lines = campaign.manifest(run)
    assert sum(line["state"] == "complete" for line in lines) == 7


def test_what_is_billed_and_gave_nothing_counts(campaign: Any, gateway: Any) -> None:
    requests = posters(6)
    requests[1]["prompt"] = "[sandbox: not_an_image] a"

    run = campaign.run("lost", requests, max_images=4, max_in_flight=1)

    assert run.state == "failed"
    assert len(gateway.charges) == 4


def test_the_tasks_of_a_dag_run_share_its_budget(airflow: Any, gateway: Any, store: Any) -> None:
    run = airflow.run(
        "shared",
        """
        from airflow_provider_jojokey.operators.jojokey import GenerateImageBatchOperator
        one = GenerateImageBatchOperator(
            task_id="one", s3_bucket="posters", max_images_per_run=5,
            requests=[{"prompt": f"one {i}", "s3_key": f"one/{i}.png"} for i in range(3)])
        two = GenerateImageBatchOperator.partial(
            task_id="two", s3_bucket="posters", max_images_per_run=5).expand(
            requests=[[{"prompt": f"two {i}", "s3_key": f"two/{i}.png"}] for i in range(4)])
        one >> two
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
    assert sum(one["images"] for one in entries.values()) == 5
    assert sum(one["tokens"] for one in entries.values()) == sum(one.total_tokens for one in gateway.charges)


ONE = """
GenerateImageOperator(task_id="image", prompt="{prompt}", s3_bucket="posters", s3_key="fox.png", {more})
"""


@pytest.mark.parametrize("deferrable", [False, True])
def test_a_single_image_that_would_pass_its_limit_is_not_sent(
    airflow: Any, gateway: Any, store: Any, capfd: pytest.CaptureFixture[str], deferrable: bool
) -> None:
    more = f'quality="high", max_tokens="{{{{ 3000 }}}}", retries=2, deferrable={deferrable}'
    run = airflow.run("dear", ONE.format(prompt="a fox", more=more))

    assert run.state == "failed"
    assert run.tries["image", -1] == 1
    assert gateway.requests == ()
    assert "This task may spend 3,000 tokens. It has spent 0 tokens" in capfd.readouterr().out


def test_a_single_image_that_was_billed_and_gave_nothing_counts_when_it_is_made_again(
    airflow: Any, gateway: Any, store: Any
) -> None:
    more = 'reuse="never", retries=3, retry_delay=timedelta(0), max_images=2'
    run = airflow.run("again", ONE.format(prompt="[sandbox: not_an_image] a fox", more=more))

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
    (entries,) = (json.loads(one)["tasks"] for one in store.objects("_jojokey/budgets/").values())
    assert sum(one["tokens"] for one in entries.values()) == sum(one.total_tokens for one in gateway.charges)


@pytest.mark.parametrize("deferrable", [False, True])
def test_images_whose_tokens_nobody_tells_count_in_the_budget_of_their_dag_run(
    airflow: Any, gateway: Any, store: Any, deferrable: bool
) -> None:
    run = airflow.run(
        "untold",
        f"""
        GenerateImageOperator.partial(
            task_id="image", s3_bucket="posters", max_images_per_run=2, deferrable={deferrable}
        ).expand_kwargs([{{"prompt": f"[sandbox: no_usage] {{i}}", "s3_key": f"{{i}}.png"}} for i in range(5)])
        """,
    )

    assert run.state == "failed"
    assert len(gateway.requests) == len(gateway.charges) == 2
    spent = booked(store)
    assert spent.images == 2
    assert 2 * EACH < spent.tokens < 3 * EACH


def test_images_that_s3_refuses_after_they_were_paid_for_count(
    plain_store: Any, gateway: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__JOJOKEY__UPLOAD_PATIENCE", "0")
    plain_store.client.put_object(Bucket="posters", Key="x", Body=b"a file, where a folder would have to be")

    errors = [attempt(f"x/{i}.png", map_index=i, max_images_per_run=2) for i in range(4)]

    assert [str(getattr(error, "billed", error)) for error in errors] == ["yes", "yes", "no", "no"]
    assert len(gateway.charges) == 2
    assert booked(plain_store).images == 2


def test_each_payment_of_a_task_counts_in_the_budget_of_its_dag_run(store: Any, gateway: Any) -> None:
    for number in (1, 2):
        assert attempt("fox.png", number, reuse="never", max_images_per_run=3) is None

    spent = booked(store)
    assert (spent.tokens, spent.images) == (sum(one.total_tokens for one in gateway.charges), 2)
    assert attempt("owl.png", map_index=1, max_images_per_run=3) is None
    assert isinstance(attempt("elk.png", map_index=2, max_images_per_run=3), JojoKeyBudgetError)


def test_each_payment_of_a_batch_counts_though_only_one_told_its_tokens(store: Any, gateway: Any) -> None:
    for number, prompt in ((1, "{}"), (2, "[sandbox: no_usage] {}")):
        operator = GenerateImageBatchOperator(
            task_id="batch",
            s3_bucket="posters",
            requests=posters(2, prompt),
            reuse="never",
            max_tokens_per_run=9_000,
        )
        operator.execute({"ti": task("batch", number)})  # type: ignore[typeddict-item]

    spent = booked(store)
    assert spent.images == len(gateway.charges) == 4
    assert spent.tokens > 4 * EACH


def test_what_was_set_aside_stays_so_where_the_receipt_does_not_tell_what_was_spent(
    store: Any, gateway: Any
) -> None:
    gateway.behave(delay=0.5)

    def spoil() -> None:
        gateway.wait_for_request(timeout=PATIENCE)
        store.client.put_object(Bucket="posters", Key="_jojokey/fox.png.json", Body=b"garbage")

    spoiler = threading.Thread(target=spoil)
    spoiler.start()
    error = attempt("fox.png", max_images_per_run=1)
    spoiler.join()

    assert isinstance(error, JojoKeyReceiptError)
    assert booked(store).images == len(gateway.charges) == 1


CATALOGUE = """
GenerateImageOperator.partial(task_id="image", s3_bucket="posters", reuse="always", {more}).expand_kwargs(
    [{{"prompt": f"a {{i}}", "s3_key": f"{{i}}.png"}} for i in range(4)])
"""


@pytest.mark.parametrize("deferrable", [False, True])
def test_images_of_another_run_need_no_room_and_those_that_are_gone_do(
    airflow: Any, gateway: Any, store: Any, deferrable: bool
) -> None:
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
    """Make one try of a task for one image; return the error it ends with."""
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


def booked(store: Any) -> Amount:
    """What all tasks of the one Dag run have in its budget."""
    (data,) = store.objects("_jojokey/budgets/").values()
    return sum((Amount(**one) for one in json.loads(data)["tasks"].values()), Amount())


def run_budget(task: str, map_index: int = -1) -> RunBudget:
    return RunBudget(ImageStore("aws_default"), "posters", Owner("dag", "run", task, map_index))


def test_of_tasks_that_race_for_the_last_of_a_budget_only_so_many_get_it(store: Any, gateway: Any) -> None:
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
    """Allow it."""


def test_batches_that_take_turns_share_a_budget(any_store: Any, gateway: Any) -> None:
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
            wanted = job(index)
            try:
                budget.reserve(wanted, receipt_of(wanted), permit)
            except JojoKeyBudgetError:
                continue
            sent[number] += 1
            budget.settle(wanted, None, claimed=True)
    for budget in budgets:
        budget.close()

    assert sent == [5, 5]
    assert booked(any_store).images == 10


def test_on_a_store_that_is_proven_a_batch_reads_the_budget_only_where_somebody_else_has_written(
    store: Any, gateway: Any
) -> None:
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


def test_a_task_that_died_corrects_its_entry_with_its_next_try(store: Any, gateway: Any) -> None:
    assert run_budget("one").commit(Amount(900, 9), Limit(images=10))  # and it dies
    assert not run_budget("two").commit(Amount(200, 2), Limit(images=10))

    assert run_budget("one").commit(Amount(100, 1), Limit(images=10))

    assert run_budget("two").commit(Amount(200, 2), Limit(images=10))


@pytest.mark.parametrize("data", [b"", b"[]", b'{"version": 2, "tasks": {}}', b'{"version": 1, "tasks": {"a": {"tokens": -5, "images": 0}}}'])  # fmt: skip
def test_a_budget_that_cannot_be_read_stops_the_run(store: Any, gateway: Any, data: bytes) -> None:
    store.client.put_object(Bucket="posters", Key="_jojokey/budgets/dag/run.budget", Body=data)

    with pytest.raises(JojoKeyReceiptError, match="cannot be read"):
        run_budget("one").commit(Amount(1, 1), Limit(images=10))


def test_job_waits_for_another_that_may_turn_out_cheaper() -> None:
    first, second, third = job(1), job(2), job(3)
    each = estimate(first)
    budget = Budget(Limit(tokens=each.tokens + 5), Limit(), None, Amount())
    budget.reserve(first, receipt_of(first), permit)
    waits = 0

    def settle_first() -> None:
        nonlocal waits
        waits += 1
        budget.settle(first, receipt_of(first), claimed=True)  # it cost nothing

    budget.reserve(second, receipt_of(second), settle_first)
    budget.settle(second, None, claimed=True)

    assert waits == 1
    assert budget.spent == each
    with pytest.raises(JojoKeyBudgetError, match="It has spent"):
        budget.reserve(third, receipt_of(third), permit)


def test_sent_job_without_a_receipt_counts_as_reserved() -> None:
    wanted = job(1)
    budget = Budget(Limit(images=9), Limit(), None, Amount(150, 1))
    budget.reserve(wanted, receipt_of(wanted), permit)

    budget.settle(wanted, None, claimed=True)

    assert budget.spent == Amount(150, 1) + estimate(wanted)


def test_limits_are_numbers_or_texts_of_numbers() -> None:
    assert parse_limits({"max_tokens": "500", "max_images": "None", "max_images_per_run": 3}) == (
        Limit(tokens=500),
        Limit(images=3),
    )
    for bad in (-1, 1.5, True, "many"):
        with pytest.raises(ValueError, match="whole number"):
            parse_limits({"max_tokens": bad})
