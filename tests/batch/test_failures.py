"""Batches with failures: generated images, charges, and what the next try does."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import uuid
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_jojokey.batch import limiter, models, runner, worker
from airflow_provider_jojokey.batch.plan import Plan
from airflow_provider_jojokey.batch.tally import Cause, Tally
from airflow_provider_jojokey.cost import Cost, Costs
from airflow_provider_jojokey.exceptions import (
    JojoKeyContentError,
    JojoKeyError,
    JojoKeyOverloadedError,
)
from airflow_provider_jojokey.img2.rules import FIELDS
from airflow_provider_jojokey.operators.batch import MAX_REASON
from airflow_provider_jojokey.operators.jojokey import GenerateImageBatchOperator
from airflow_provider_jojokey.payments import context
from airflow_provider_jojokey.payments.attempt import Owner
from airflow_provider_jojokey.payments.options import PAYS_AGAIN
from airflow_provider_jojokey.policies import jojokey
from airflow_provider_jojokey.results import MAX_MESSAGE, MAX_PROMPT, Result, shortened
from tests.support.alarms import alarm_when
from tests.support.campaigns import posters
from tests.support.fault_proxy import FaultProxy, Forward, Request, Response, answer, error, on, times
from tests.support.patience import PATIENCE
from tests.support.suspension import suspended


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten all pauses; the limiter's tests cover their length."""
    monkeypatch.setattr(limiter, "FIRST_PAUSE", 0.05)
    monkeypatch.setattr(limiter, "LONGEST_PAUSE", 0.2)
    monkeypatch.setattr(models, "WINDOWS", (0.5, 1.0, 2.0))
    monkeypatch.setattr(models, "FIRST_GAP", 0.1)
    monkeypatch.setattr(models, "LONGEST_GAP", 0.2)


@pytest.mark.parametrize("order", [(3, 8, 4), (8, 4, 3), (4, 3, 8)])
def test_error_names_the_first_item_whatever_ended_first(order: tuple[int, ...]) -> None:
    tally = Tally(10)
    for index in order:
        job: Any = SimpleNamespace(uri=f"s3://posters/{index}.png", request=SimpleNamespace(n=1))
        tally.fail(index, job, JojoKeyContentError(f"Item {index} was rejected.", billed="no"))
    (cause,) = tally.causes.values()
    assert (cause.index, cause.place, cause.count) == (3, "s3://posters/3.png", 3)
    assert cause.message.startswith("Item 3 was rejected.")


def test_error_separates_items_by_what_they_cost() -> None:
    tally = Tally(3)
    for index, billed in enumerate(("no", "yes", "no")):
        job: Any = SimpleNamespace(uri=f"s3://posters/{index}.png", request=SimpleNamespace(n=1))
        tally.fail(index, job, JojoKeyContentError("It was rejected.", billed=billed, sent=True))
    text = tally.error("", None).message
    assert (
        "2 JojoKeyContentError (first item 0, s3://posters/0.png: It was rejected. Nothing was billed.)"
        in text
    )
    assert (
        "1 JojoKeyContentError (first item 1, s3://posters/1.png: It was rejected. You were charged.)" in text
    )


def test_charge_proven_again_after_an_interruption_counts_once() -> None:
    tally = Tally(1)
    job: Any = SimpleNamespace(uri="s3://posters/0.png", request=SimpleNamespace(n=1))
    error = JojoKeyContentError("It was lost.", billed="unknown", sent=True)
    tally.fail(0, job, error)
    for _ in range(2):
        tally.prove(0, job, error.changed(billed="yes"))
    assert [(cause.count, cause.index) for cause in tally.causes.values()] == [(1, 0)]


@settings(max_examples=300, deadline=None)
@given(
    causes=st.integers(1, 40),
    length=st.integers(0, 5_000),
    key=st.integers(1, 900),
    names=st.integers(1, 209),
    pays_again=st.sampled_from(PAYS_AGAIN),
    spool=st.integers(0, 100),
    retryable=st.booleans(),
    reason=st.integers(0, MAX_REASON),
)
def test_error_fits_into_the_result_whatever_the_causes(
    causes: int, length: int, key: int, names: int, pays_again: str, spool: int, retryable: bool, reason: int
) -> None:
    costs = Costs((Cost(10**15, "CNY"), Cost(10**15, "USD")))
    tally = Tally(50_000, made=50_000 - causes, failed=causes, paid=True, unknown_outcomes=causes, cost=costs)
    tally.without_cost = 50_000
    tally.pays_again, tally.retryable = pays_again, int(retryable)
    tally.spool = f"/{'s' * spool}" if spool else None
    for index in range(causes):
        tally.causes[f"JojoKeyUnknownOutcome{index}Error", "yes"] = Cause(
            49_900 + index, f"s3://posters/{'k' * key}.png", "x" * length, 1
        )
    end = f", because the task was interrupted ({'r' * reason})" if reason else ""
    names_of_run = "/".join(["n" * names] * 3)
    error = tally.error(end, f"s3://{'b' * 63}/_jojokey/batches/{names_of_run}.jsonl")
    text = str(error)
    assert len(text) < MAX_MESSAGE
    assert text.endswith(error.retry_sentence)
    counted = [int(count) for count in re.findall(r"(\d+) (?:JojoKeyUnknown|with other errors)", text)]
    assert sum(counted) == causes


def test_error_ends_with_the_advice_if_keys_are_long() -> None:
    tally = Tally(4)
    for index, billed in enumerate(("no", "yes", "unknown")):
        uri = f"s3://posters/{'campaign/' * 12}{index}.png"
        job: Any = SimpleNamespace(uri=uri, request=SimpleNamespace(n=1))
        for kind in (JojoKeyContentError, JojoKeyOverloadedError):
            tally.fail(index, job, kind("It failed. " * 30, billed=billed, sent=True))
    error = tally.error("", f"s3://posters/_jojokey/batches/{'campaign' * 10}.jsonl")
    result = Result.from_error(error, prompt="", aws_conn_id=None)
    assert result.message == str(error)
    assert result.message.endswith(error.retry)


def prompts(gateway: Any) -> list[str]:
    return sorted(record.prompt for record in gateway.charges)


def test_failed_items_keep_others_and_are_not_retried(
    campaign: Any, gateway: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    requests = posters(10)
    requests[3]["prompt"] = "[sandbox: moderation_blocked] a"
    requests[4]["prompt"] = "[sandbox: sensitive_words] b"
    requests[7]["prompt"] = "[sandbox: not_an_image] c"

    run = campaign.run("partly", requests, retries=3, max_in_flight=3)

    assert run.state == "failed"
    assert run.tries["batch", -1] == 1
    assert len(gateway.requests) == 10
    billed = sum(record.total_tokens for record in gateway.charges)
    assert run.xcom("usage", "batch")["total_tokens"] == billed
    assert len(campaign.store.objects("posters/")) == 7
    log = capfd.readouterr().out
    assert "3 of 10 items have no images (7 made, 0 reused, 3 failed)" in log
    assert "2 JojoKeyContentError (first item 3, s3://posters/posters/003.png" in log
    assert "1 JojoKeyReplyError (first item 7" in log
    assert re.search(rf"{billed:,} tokens \(≈ USD [\d.]+\) were billed", log)
    assert "JojoKeyBatchFailure" in log
    assert "Airflow does not retry the task" in log
    lines = campaign.manifest(run)
    assert [line["state"] for line in lines].count("failed") == 3
    assert lines[3]["error"] == "JojoKeyContentError"
    shown = run.xcom("jojokey_images", "batch")
    assert (shown["state"], shown["error"], shown["count"]) == ("failed", "JojoKeyBatchFailure", 7)


@pytest.mark.parametrize(
    ("failing", "text"),
    [
        (["truncated truncate_after=2"], "1 of 3 items lacks some images (2 made"),
        (
            ["truncated truncate_after=2", "not_an_image"],
            "2 of 3 items lack some or all of their images (1 made",
        ),
        (["not_an_image"], "1 of 3 items has no images (2 made"),
    ],
)
def test_error_of_items_with_some_images_denies_none(
    store: Any, gateway: Any, failing: list[str], text: str
) -> None:
    requests = posters(3, n=3)
    for index, request in enumerate(requests):
        request["s3_key"] = f"posters/{index}-{{index}}.png"
    for request, case in zip(requests, failing, strict=False):
        request["prompt"] = f"[sandbox: {case}] a poster"

    assert text in failed(requests).message


def test_unknown_usage_of_paid_images_is_reported(
    store: Any, gateway: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway, "shows_log", False)
    requests = posters(5, prompt="[sandbox: no_usage] number {}")
    requests[3]["prompt"] = "[sandbox: moderation_blocked] a"

    error = failed(requests)

    assert error.billed == "yes"
    assert len(gateway.charges) == 4
    assert "an unknown number of tokens were billed to this task in this Dag run" in error.message
    assert "the cost of 4 paid images is unknown" in error.message


def test_known_fee_without_tokens_has_no_unknown_cost(store: Any, gateway: Any) -> None:
    error = failed(posters(3, prompt="[sandbox: violation_fee] number {}"))

    assert error.billed == "yes"
    assert "an unknown number of tokens (USD 0.15) were billed to this task in this Dag run" in error.message
    assert "is unknown" not in error.message


@pytest.mark.parametrize(
    ("tokens", "cost", "billed"),
    [
        (0, Costs(), "no"),
        (0, Costs((Cost(0, "USD", approximate=False),)), "no"),
        (0, Costs(unknown=1), "yes"),  # of a reused image
        (0, Costs((Cost(1, "USD", approximate=False),)), "yes"),  # a fee of an earlier try
        (210, Costs(unknown=1), "yes"),
    ],
)
def test_batch_was_billed_if_money_or_tokens_were(tokens: int, cost: Costs, billed: str) -> None:
    usage = {"input_tokens": 0, "output_tokens": tokens, "total_tokens": tokens}
    tally = Tally(2)
    tally.succeed(0, {"reused": True, "images": [], "usage": usage, "cost": cost.to_json()})
    rejected = JojoKeyOverloadedError("The gateway is overloaded.", sent=True)
    tally.fail(1, SimpleNamespace(uri="s3://posters/1.png", request=SimpleNamespace(n=1)), rejected)  # type: ignore[arg-type]

    error = tally.error("", "")

    assert (tally.billed, error.billed) == (billed, billed)
    assert ("Nothing was billed: 0 tokens" in error.message) == (billed == "no")


def test_paid_image_that_s3_rejects_is_reported_as_billed(
    plain_store: Any, gateway: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__JOJOKEY__UPLOAD_PATIENCE", "0")
    plain_store.client.put_object(Bucket="posters", Key="posters", Body=b"a file at the path of a folder")

    error = failed(posters(3))

    billed = sum(record.total_tokens for record in gateway.charges)
    assert error.billed == "yes"
    assert len(gateway.charges) == 3
    assert os.path.isdir(error.spool or "")
    assert f"The received images are safe on this host in {error.spool}." in error.message
    assert "Images of 3 items wait on this host. All others that were received are in S3" in error.message
    assert re.search(
        rf"{billed:,} tokens \(≈ USD [\d.]+\) were billed to this task in this Dag run", error.message
    )


def test_unbilled_failure_is_reported_as_free(store: Any, gateway: Any) -> None:
    error = failed(posters(2, prompt="[sandbox: moderation_blocked] {}"))

    assert error.billed == "no"
    assert "Nothing was billed: 0 tokens were billed to this task in this Dag run." in error.message
    assert "not known" not in error.message


def failed(requests: list[dict[str, Any]]) -> JojoKeyError:
    """Run a try that fails, and return its error."""
    ti = SimpleNamespace(
        dag_id="dag",
        run_id=uuid.uuid4().hex,
        task_id="batch",
        map_index=-1,
        try_number=1,
        xcom_push=lambda *_, **__: None,
    )
    operator = GenerateImageBatchOperator(task_id="batch", requests=requests, s3_bucket="posters")
    with pytest.raises(JojoKeyError) as caught:
        operator.execute({"ti": ti})  # type: ignore[typeddict-item]
    return caught.value


def test_retry_generates_missing_images_only(campaign: Any, gateway: Any) -> None:
    requests = posters(8)
    requests[2]["prompt"] = "[sandbox: no_channel times=3] a"
    requests[5]["prompt"] = "[sandbox: upstream_500 times=4] b"
    requests[6]["prompt"] = "[sandbox: moderation_blocked] c"

    run = campaign.run("again", requests, retries=1, retry_delay="timedelta(0)")

    assert run.state == "failed"
    assert run.tries["batch", -1] == 2
    assert len(gateway.charges) == 7
    assert len(set(prompts(gateway))) == 7
    lines = campaign.manifest(run)
    assert [line["index"] for line in lines if line["state"] == "failed"] == [6]
    assert [line["index"] for line in lines if not line["reused"]] == [2, 5, 6]
    assert run.xcom("usage", "batch")["total_tokens"] == sum(
        charge.total_tokens for charge in gateway.charges
    )


def test_transient_failures_are_resent_within_the_try(campaign: Any, gateway: Any) -> None:
    requests = posters(6)
    requests[1]["prompt"] = "[sandbox: overloaded_cpu times=2] a"
    requests[2]["prompt"] = "[sandbox: rate_limited times=5] b"
    requests[3]["prompt"] = "[sandbox: upstream_unreachable times=1] c"

    run = campaign.run("soon", requests)

    assert run.state == "success"
    assert len(gateway.requests) == 6 + 2 + 5 + 1
    assert len(gateway.charges) == 6
    assert run.xcom("return_value", "batch")["made"] == 6


def test_rate_limited_gateway_gets_few_extra_requests(
    campaign: Any, gateway: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway, "rate", (10, 2.0))

    run = campaign.run("limited", posters(40), max_in_flight=16)

    assert run.state == "success"
    assert len(gateway.charges) == 40
    # Each window may end with a few rejections. On a busy machine, the batch needs more than four windows.
    windows = (gateway.requests[-1].time - gateway.requests[0].time) / 2.0
    assert len(gateway.requests) - 40 <= 3 * max(windows, 4)


def test_rejected_token_is_found_before_sending(
    campaign: Any, gateway: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = {"conn_type": "jojokey", "host": gateway.url, "password": "sk-wrong"}
    monkeypatch.setenv("AIRFLOW_CONN_JOJOKEY_DEFAULT", json.dumps(connection))

    run = campaign.run("refused", posters(5), retries=2)

    assert run.state == "failed"
    assert run.tries["batch", -1] == 1
    assert gateway.requests == ()
    assert campaign.store.objects("_jojokey/posters/") == {}
    assert {line["error"] for line in campaign.manifest(run)} == {"JojoKeyTokenError"}


def test_empty_balance_stops_the_batch_and_keeps_images(campaign: Any, gateway: Any) -> None:
    requests = posters(40)
    requests[8]["prompt"] = "[sandbox: wallet_empty] x"

    run = campaign.run("empty", requests, max_in_flight=2, retries=2)

    assert run.state == "failed"
    assert run.tries["batch", -1] == 1
    assert 8 <= len(gateway.charges) <= 11
    made = [line["index"] for line in campaign.manifest(run) if line["state"] == "complete"]
    assert len(made) == len(gateway.charges)
    assert len(campaign.manifest(run)) == 40


def test_gateway_that_only_sends_429_is_left_to_a_retry(
    campaign: Any, gateway: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limiter, "GIVE_UP_AFTER", 1.0)
    gateway.behave("rate_limited")

    run = campaign.run("never", posters(20), max_in_flight=4)

    assert run.state == "failed"
    assert gateway.charges == ()
    assert len(gateway.requests) <= 30
    assert {line["error"] for line in campaign.manifest(run)} == {"JojoKeyRateLimitError"}
    assert len(campaign.manifest(run)) == 20
    assert all(line["retryable"] for line in campaign.manifest(run))


def test_missing_bucket_is_found_before_sending(
    campaign: Any, gateway: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    requests = [*posters(3), {"prompt": "x", "s3_key": "s3://nowhere/x.png"}]

    run = campaign.run("no_bucket", requests)

    assert run.state == "failed"
    assert gateway.requests == ()
    assert "Create the bucket" in capfd.readouterr().out


def test_lost_response_that_was_billed_is_not_paid_twice(
    campaign: Any, gateway: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # The retry waits until the gateway log should show the charge: minutes, if these times are not shortened.
    monkeypatch.setenv("AIRFLOW__JOJOKEY__LONGEST_GENERATION", "0")
    monkeypatch.setattr(context, "LOG_DELAY", 1.0)
    monkeypatch.setattr(jojokey, "MARGIN", 0.5)
    requests = posters(6)
    requests[1]["prompt"] = "[sandbox: reset] a"
    requests[4]["prompt"] = "[sandbox: cloudflare_524] b"

    run = campaign.run("lost", requests, retries=2, retry_delay="timedelta(0)")

    assert run.state == "failed"
    assert len(gateway.charges) == len(set(prompts(gateway))) == 6
    assert len(gateway.requests) == 6
    lines = campaign.manifest(run)
    assert [line["index"] for line in lines if line["state"] == "failed"] == [1, 4]
    if jojokey.AVAILABLE:
        assert "by then the gateway log should show whether the request was billed" in capfd.readouterr().out


def test_log_shows_progress_but_not_each_image(
    campaign: Any, gateway: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    campaign.run("log", posters(30), max_in_flight=8)

    out = capfd.readouterr().out
    assert "30 of 30 done: 30 made, 0 reused, 0 failed" in out
    assert "a minute" in out
    own = [line for line in out.splitlines() if "airflow_provider_jojokey" in line]
    assert len(own) < 10
    assert gateway.token not in out


def test_store_that_rejects_images_stops_the_batch_early(campaign: Any, gateway: Any, s3: FaultProxy) -> None:
    s3.faults = [on("PUT", "/posters/posters/", answer(error(403, "AccessDenied")))]
    run = campaign.run("refused", posters(20), max_in_flight=2)
    paid = len(gateway.charges)

    assert run.state == "failed"
    assert 1 <= paid <= 4
    assert run.xcom("usage", "batch")["total_tokens"] == sum(
        charge.total_tokens for charge in gateway.charges
    )


def test_timeout_reports_what_was_spent(campaign: Any, gateway: Any) -> None:
    gateway.behave(delay=0.2)
    with alarm_when(lambda: gateway.wait_for_charges(3, PATIENCE)):
        run = campaign.run("timeout", posters(50), max_in_flight=1, execution_timeout="timedelta(hours=1)")

    assert run.state == "failed"
    billed = sum(record.total_tokens for record in gateway.charges)
    assert 3 <= len(gateway.charges) < 50
    assert run.xcom("usage", "batch")["total_tokens"] == billed
    made, missing = len(gateway.charges), 50 - len(gateway.charges)
    result = run.xcom("jojokey_images", "batch")
    assert (result["state"], result["error"]) == ("failed", "AirflowTaskTimeout")
    assert (
        f"{missing} of 50 items have no images ({made} made, 0 reused, 0 failed, {missing} not started)"
        in result["message"]
    )
    assert "Timeout" in result["message"]
    lines = campaign.manifest(run)
    assert [line["index"] for line in lines] == list(range(50))
    rest = [line for line in lines if line["state"] == "failed"]
    assert len(rest) == missing
    assert {(line["billed"], line["retryable"], len(line["images"])) for line in rest} == {("no", True, 0)}


@pytest.mark.parametrize(
    ("case", "billed"), [("no_channel", "no"), ("not_an_image", "yes"), ("reset", "unknown")]
)
def test_stopped_retry_keeps_what_earlier_tries_did(
    campaign: Any, gateway: Any, case: str, billed: str
) -> None:
    """A stopped retry must not list images as missing that an earlier try has stored, nor forget what one cost."""
    requests = posters(6)
    requests[5]["prompt"] = f"[sandbox: {case}] a poster"
    pushed: dict[str, Any] = {}

    def execute(try_number: int, stop: bool) -> None:
        ti = SimpleNamespace(
            dag_id="dag", run_id="monday", task_id="batch", map_index=-1, try_number=try_number,
            xcom_push=pushed.__setitem__,
        )  # fmt: skip
        operator = GenerateImageBatchOperator(task_id="batch", s3_bucket="posters", requests=requests)
        operator._preflight = lambda *_: operator._batch.stop() if stop else None  # type: ignore[assignment, method-assign, union-attr]
        with pytest.raises(JojoKeyError):
            operator.execute({"ti": ti})  # type: ignore[typeddict-item]

    execute(1, stop=False)
    usage, cost = pushed["usage"], pushed["jojokey_images"]["cost"]
    execute(2, stop=True)

    body = campaign.store.objects("_jojokey/batches/dag/monday/batch.jsonl").popitem()[1]
    lines = [json.loads(line) for line in body.splitlines()]
    assert [line["state"] for line in lines] == ["complete"] * 5 + ["failed"]
    assert lines[5]["billed"] == billed
    assert (pushed["usage"], pushed["jojokey_images"]["cost"]) == (usage, cost)
    assert ("whether 1 item was billed" in pushed["jojokey_images"]["message"]) == (billed == "unknown")
    assert "5 reused, 0 failed, 1 not started" in pushed["jojokey_images"]["message"]


def test_stopped_retry_knows_no_bill_without_a_manifest(store: Any, gateway: Any) -> None:
    """An earlier try that was killed has written none."""
    pushed: dict[str, Any] = {}
    ti = SimpleNamespace(
        dag_id="dag", run_id=uuid.uuid4().hex, task_id="batch", map_index=-1, try_number=2,
        xcom_push=pushed.__setitem__,
    )  # fmt: skip
    operator = GenerateImageBatchOperator(task_id="batch", s3_bucket="posters", requests=posters(3))
    operator._preflight = lambda *_: operator._batch.stop()  # type: ignore[assignment, method-assign, union-attr]

    with pytest.raises(JojoKeyError, match="whether 3 items were billed") as caught:
        operator.execute({"ti": ti})  # type: ignore[typeddict-item]

    assert caught.value.usage is None
    assert "usage" not in pushed
    assert pushed["jojokey_images"]["billed"] == "unknown"
    assert (pushed["jojokey_images"].get("usage"), pushed["jojokey_images"].get("cost")) in [
        ({}, None),
        (None, None),
    ]
    body = store.objects("_jojokey/batches/").popitem()[1]
    assert [json.loads(line)["billed"] for line in body.splitlines()] == ["unknown"] * 3


def test_shown_options_of_items_are_those_of_their_jobs() -> None:
    items = [
        {"prompt": " a fox\n", "s3_key": "a.png"},
        {"prompt": "x" * 3000, "s3_key": "s3://other/b.png", "size": "1024x640", "n": "2", "quality": "low"},
        {"prompt": 7, "s3_key": "c-{index}.{ext}", "model": "None", "size": "", "n": float("nan")},
    ]
    owner = Owner(ti_id="", dag_id="dag", run_id="run", task_id="batch", map_index=-1, try_number=1)
    defaults = {
        "s3_bucket": "posters",
        "model": "gpt-image-2",
        "size": "1024x1024",
        "quality": "high",
        "n": 3,
    }
    plan = Plan(
        items, {**dict.fromkeys(FIELDS), "reuse": "run", "on_unknown_outcome": "fail", **defaults}, owner
    )

    for (index, item, shown), (number, job) in zip(plan.shown(), plan.jobs(), strict=True):
        request, destination = job.request, job.destination
        assert (index, item) == (number, items[number])
        assert shown == {
            "prompt": shortened(request.prompt, MAX_PROMPT),
            "model": request.model,
            "size": request.size,
            "quality": request.quality,
        }
        assert plan.images_of(item) == request.n
        assert plan.receipt_of(item) == destination.uri(destination.receipt_key)


@pytest.mark.parametrize(
    ("place", "billed", "requests"),
    [
        ("Spool.mark_sending", "no", 0),
        ("Batch._generate.<locals>.on_send", "no", 0),
        ("GatewaySession.request", "unknown", 1),
    ],
)
def test_batch_reports_request_of_a_suspended_thread(
    store: Any, gateway: Any, monkeypatch: pytest.MonkeyPatch, place: str, billed: str, requests: int
) -> None:
    """A thread that the system suspends around its last check sends nothing that the batch doesn't report."""
    monkeypatch.setattr(runner, "RECORDING", 0.1)
    monkeypatch.setattr(runner, "LIMIT", 0.2)
    pushed: dict[str, Any] = {}
    ti = SimpleNamespace(
        dag_id="dag", run_id=uuid.uuid4().hex, task_id="batch", map_index=-1, try_number=1,
        xcom_push=pushed.__setitem__,
    )  # fmt: skip
    key = f"{uuid.uuid4().hex}.png"
    item = {"prompt": "a poster", "s3_key": key}
    operator = GenerateImageBatchOperator(task_id="batch", s3_bucket="posters", requests=[item])

    with suspended(place, worker.THREADS) as suspension:

        def stop() -> None:
            suspension.reached.wait(PATIENCE)
            assert operator._batch is not None
            operator._batch.stop()
            operator.hook.stop(0.0)

        stopper = threading.Thread(target=stop)
        stopper.start()
        with pytest.raises(JojoKeyError) as caught:
            operator.execute({"ti": ti})  # type: ignore[typeddict-item]
        stopper.join()
    suspension.join()

    assert suspension.reached.is_set()
    assert (caught.value.billed, pushed["jojokey_images"]["billed"]) == (billed, billed)
    assert len(gateway.requests) == requests
    outcome = store.receipt(key)["attempts"][0]["outcome"]
    assert outcome == ("complete" if requests else "not_billed")


def test_timeout_after_the_last_image_reports_what_was_spent(
    campaign: Any, gateway: Any, s3: FaultProxy
) -> None:
    def time_out(request: Request, forward: Forward) -> Response:
        os.kill(os.getpid(), signal.SIGALRM)  # as Airflow's timer does
        return forward(request)

    # The first manifest is written before any image.
    s3.faults = [on("PUT", ".jsonl", times(1, time_out, after=1))]
    run = campaign.run("late", posters(5), max_in_flight=2, execution_timeout="timedelta(hours=1)")

    assert run.state == "failed"
    assert len(gateway.charges) == 5
    billed = sum(record.total_tokens for record in gateway.charges)
    assert run.xcom("usage", "batch")["total_tokens"] == billed
    assert run.xcom("jojokey_images", "batch")["state"] == "failed"


def test_batch_continues_with_fewer_threads(
    campaign: Any, gateway: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start
    given: list[threading.Thread] = []

    def start_three(thread: threading.Thread) -> None:
        if thread.name.startswith(worker.THREADS):
            if len(given) == 3:
                raise RuntimeError("can't start new thread")
            given.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_three)
    gateway.behave(delay=0.05)
    run = campaign.run("threads", posters(12), max_in_flight=8)

    assert run.state == "success"
    assert len(gateway.charges) == 12
    assert gateway.peak_in_flight <= 3
