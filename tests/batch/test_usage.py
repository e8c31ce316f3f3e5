"""Usage in XComs, receipts and the gateway's charges has the same sum for each settled run."""

from __future__ import annotations

import itertools
import json
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_provider_jojokey.batch.manifest import Manifest
from airflow_provider_jojokey.batch.recorder import Recorder
from airflow_provider_jojokey.batch.tally import Tally
from airflow_provider_jojokey.cost import Costs
from airflow_provider_jojokey.exceptions import JojoKeyError
from airflow_provider_jojokey.img2.request import ImageRequest
from airflow_provider_jojokey.integrations.lineage import lineage_of
from airflow_provider_jojokey.operators.jojokey import GenerateImageBatchOperator
from airflow_provider_jojokey.payments.attempt import Owner
from airflow_provider_jojokey.payments.job import ImageJob
from airflow_provider_jojokey.results import Result
from airflow_provider_jojokey.sandbox import accounts
from airflow_provider_jojokey.store.keys import Destination
from tests.support.campaigns import posters
from tests.support.metrics import Counters


class LateLog:
    """The gateway log, without rows until they are written."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reads = 0
        self.written = True
        self._log = accounts.token_log
        monkeypatch.setattr(accounts, "token_log", self._read)

    def _read(self, account: Any, records: Any) -> Any:
        self.reads += 1
        return self._log(account, records if self.written else ())


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> LateLog:
    return LateLog(monkeypatch)


@pytest.fixture
def settled_late(log: LateLog, monkeypatch: pytest.MonkeyPatch) -> LateLog:
    """The gateway log, without rows until a batch looks up missing usage at its end."""
    settle = GenerateImageBatchOperator._settle
    log.written = False

    def settle_with_log(self: Any, batch: Any) -> None:
        log.written = True
        settle(self, batch)

    monkeypatch.setattr(GenerateImageBatchOperator, "_settle", settle_with_log)
    return log


@pytest.fixture
def run_batch(store: Any, gateway: Any) -> Any:
    """Run one try of a batch; return its XComs and its error."""
    run_id = uuid.uuid4().hex

    def run(
        requests: list[dict[str, Any]], try_number: int = 1
    ) -> tuple[dict[str, Any], JojoKeyError | None]:
        pushed: dict[str, Any] = {}
        ti = SimpleNamespace(
            dag_id="usage",
            run_id=run_id,
            task_id="batch",
            map_index=-1,
            try_number=try_number,
            xcom_push=pushed.__setitem__,
        )
        operator = GenerateImageBatchOperator(task_id="batch", requests=requests, s3_bucket="posters")
        try:
            operator.execute({"ti": ti})  # type: ignore[typeddict-item]
        except JojoKeyError as error:
            return pushed, error
        return pushed, None

    return run


def billed(gateway: Any) -> int:
    return sum(record.total_tokens for record in gateway.charges)


def in_receipts(store: Any) -> int:
    objects = store.objects("_jojokey/posters/").items()
    receipts = [json.loads(body) for key, body in objects if key.endswith(".json")]
    usages = [attempt["usage"] or {} for receipt in receipts for attempt in receipt["attempts"]]
    return sum(usage.get("total_tokens", 0) for usage in usages)


def mixed(*cases: str) -> list[dict[str, Any]]:
    requests = posters(6)
    for number, case in enumerate(cases):
        requests[2 * number]["prompt"] = f"[sandbox: {case}] number {number}"
    return requests


def test_batch_settles_broken_responses_with_one_read(
    run_batch: Any, gateway: Any, store: Any, log: LateLog
) -> None:
    pushed, error = run_batch(mixed("no_usage", "not_an_image", "no_usage"))

    assert error is not None
    assert pushed["usage"]["total_tokens"] == in_receipts(store) == billed(gateway) > 0
    assert log.reads <= 2  # while it runs, and at its end
    assert "unknown usage" not in error.message


def lines(store: Any) -> list[dict[str, Any]]:
    (manifest,) = (body for key, body in store.objects("_jojokey/batches/").items() if key.endswith(".jsonl"))
    return [json.loads(line) for line in manifest.splitlines()]


DAMAGED = (
    "sse_no_completed", "sse_broken", "sse_error_event", "truncated", "fewer_images", "one_flagged", "not_an_image",
    "usage_zero", "violation_fee", "cloudflare_524", "moderation_blocked", "task",
)  # fmt: skip


@pytest.mark.parametrize("logged", [True, False])
def test_statements_equal_the_bill_or_say_that_they_may_be_less(
    run_batch: Any, gateway: Any, store: Any, log: LateLog, logged: bool
) -> None:
    log.written = logged
    requests = [
        {"prompt": f"[sandbox: {case}] {number}", "s3_key": f"posters/{number}.png", "n": 2, "stream": stream}
        for number, (case, stream) in enumerate(itertools.product(DAMAGED, (True, False)))
    ]
    for try_number in (1, 2):
        pushed, _ = run_batch(requests, try_number)

        statements = [(Result.from_xcom({"images": (), **line}), line["index"]) for line in lines(store)]
        assert len(statements) == len(requests)
        for result, index in [*statements, (Result.from_xcom(pushed["jojokey_images"]), None)]:
            about = requests if index is None else [requests[index]]
            prompts = {item["prompt"] for item in about}
            bill = sum(record.total_tokens for record in gateway.charges if record.prompt in prompts)
            assert result is not None
            assert result.cost is not None
            stated = result.usage.get("total_tokens", 0)
            assert stated == bill or (stated < bill and result.cost.unknown), about


@pytest.mark.parametrize(
    "cases",
    [
        ("no_usage", "no_usage"),
        ("no_usage", "not_an_image", "violation_fee"),
        ("truncated truncate_after=0", "reset", "violation_fee"),
        ("empty_body", "no_usage", "moderation_blocked"),
    ],
)
def test_lines_of_settled_items_add_up_to_the_total(
    run_batch: Any, gateway: Any, store: Any, log: LateLog, cases: tuple[str, ...]
) -> None:
    pushed, _ = run_batch(mixed(*cases))

    written = lines(store)
    assert len(written) == 6
    assert sum(line["usage"].get("total_tokens", 0) for line in written) == pushed["usage"]["total_tokens"]
    costs = sum((Costs.from_json(line["cost"]) for line in written if line["cost"]), Costs())
    assert costs == Costs.from_json(pushed["jojokey_images"]["cost"])
    for line in written:
        owned = json.loads(store.objects()[f"_jojokey/posters/{line['index']:03}.png.json"])["attempts"]
        assert line["usage"]["total_tokens"] == sum((a["usage"] or {}).get("total_tokens", 0) for a in owned)
        if line["state"] == "failed":
            assert line["billed"] == owned[-1]["billed"]
        else:
            assert line["settled"] is True


def test_batch_settles_truncated_responses(run_batch: Any, gateway: Any, store: Any, log: LateLog) -> None:
    pushed, error = run_batch(mixed("truncated truncate_after=0", "truncated truncate_after=0"))

    assert error is not None
    assert pushed["usage"]["total_tokens"] == in_receipts(store) == billed(gateway) > 0


def test_late_log_is_settled_when_the_task_is_cleared(
    run_batch: Any, gateway: Any, store: Any, log: LateLog
) -> None:
    requests = mixed("no_usage", "no_usage")
    log.written = False
    first, error = run_batch(requests)
    assert error is None
    assert first["usage"]["total_tokens"] < billed(gateway)

    log.written = True
    second, error = run_batch(requests, try_number=2)

    assert error is None
    assert len(gateway.requests) == 6
    assert second["usage"]["total_tokens"] == in_receipts(store) == billed(gateway)


def test_cost_of_reused_images_is_unknown_until_the_log_shows_it(
    run_batch: Any, log: LateLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = mixed("no_usage", "moderation_blocked")[:3]
    log.written = False
    _, first = run_batch(requests)
    _, second = run_batch(requests, try_number=2)
    settle = GenerateImageBatchOperator._settle

    def settle_with_log(self: Any, batch: Any) -> None:
        log.written = True
        settle(self, batch)

    monkeypatch.setattr(GenerateImageBatchOperator, "_settle", settle_with_log)
    _, third = run_batch(requests, try_number=3)

    for error in (first, second):
        assert error is not None
        assert ", and the cost of 1 paid image is unknown" in error.message
    assert third is not None
    assert "paid image" not in third.message
    assert {error.billed for error in (first, second, third) if error} == {"yes"}


def test_two_lost_responses_never_claim_the_same_charge(
    run_batch: Any, gateway: Any, store: Any, log: LateLog
) -> None:
    pushed, error = run_batch(mixed("reset", "reset"))

    assert error is not None
    assert error.billed == "yes"
    assert "unknown whether 2 items were billed" in error.message
    assert pushed["usage"]["total_tokens"] == in_receipts(store) <= billed(gateway)
    receipts = [store.receipt(request["s3_key"]) for request in mixed("reset", "reset")]
    hints = [
        attempt["hint"]["request_id"]
        for receipt in receipts
        for attempt in receipt["attempts"]
        if attempt["hint"]
    ]
    assert len(hints) == len(set(hints))


def test_batch_without_a_log_never_exceeds_the_bill(
    run_batch: Any, gateway: Any, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway, "shows_log", False)

    pushed, error = run_batch(mixed("no_usage", "truncated truncate_after=0", "reset"))

    assert error is not None
    assert pushed["usage"]["total_tokens"] == in_receipts(store) < billed(gateway)
    assert "the cost of 1 paid image is unknown" in error.message


def test_unreadable_receipt_hides_what_a_retry_was_billed(run_batch: Any, gateway: Any, store: Any) -> None:
    requests = mixed("not_an_image")[:3]
    run_batch(requests)
    store.client.put_object(Bucket="posters", Key="_jojokey/posters/001.png.json", Body=b"damaged")

    pushed, error = run_batch(requests, try_number=2)

    assert error is not None
    assert len(gateway.requests) == 3
    assert "unknown whether 1 item was billed" in error.message
    assert "usage" not in pushed  # the sum of all usage XComs would be lower than the bill
    assert pushed["jojokey_images"]["cost"] is None
    assert [line["billed"] for line in lines(store)] == ["yes", "unknown", None]


def test_cleared_batch_of_unknown_usage_is_not_shown_as_free(
    run_batch: Any, gateway: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway, "shows_log", False)
    requests = posters(1, prompt="[sandbox: no_usage] {}")
    results = [
        Result.from_xcom(run_batch(requests, try_number=number)[0]["jojokey_images"]) for number in (1, 2)
    ]

    assert len(gateway.charges) == 1
    assert [result and (result.reused, result.paid, result.tokens) for result in results] == [
        (False, "yes", None),
        (True, "yes", None),
    ]


def test_item_that_may_have_cost_money_before_is_not_free(
    run_batch: Any, gateway: Any, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway, "shows_log", False)
    requests = posters(1, on_unknown_outcome="regenerate")
    gateway.behave("reset", times=1)
    gateway.behave("moderation_blocked")
    run_batch(requests)
    run_batch(requests, try_number=2)

    (line,) = lines(store)
    result = Result.from_xcom(line)
    assert result is not None
    assert (line["billed"], result.cost, result.paid, result.tokens) == (
        "no",
        Costs(unknown=1),
        "unknown",
        None,
    )


def test_request_that_was_not_recorded_has_an_unknown_cost(tmp_path: Path) -> None:
    tally, manifest = Tally(1), Manifest(tmp_path, 1)
    job = ImageJob(ImageRequest("a fox"), Destination("posters", "fox.png"), Owner("dag", "run", "batch"))

    Recorder(tally, manifest, None).unrecorded(0, job)

    assert tally.cost == Costs.from_json(manifest.line(0)["cost"]) == Costs(unknown=1)
    assert Costs.from_json(tally.error("", None).cost) == Costs(unknown=1)


def test_usage_that_is_found_at_the_end_counts_in_the_metrics(
    run_batch: Any, gateway: Any, settled_late: LateLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    counters = Counters.enabled(monkeypatch)
    run_batch(mixed("no_usage", "not_an_image", "violation_fee"))

    assert counters.tokens == billed(gateway) > 0


@pytest.mark.parametrize(("case", "tokens"), [("no_usage", None), ("moderation_blocked", 0)])
def test_unknown_tokens_are_not_0_in_the_lineage(
    run_batch: Any, gateway: Any, monkeypatch: pytest.MonkeyPatch, case: str, tokens: int | None
) -> None:
    monkeypatch.setattr(gateway, "shows_log", False)
    pushed, _ = run_batch(posters(1, prompt=f"[sandbox: {case}] {{}}"))

    facet = lineage_of(pushed["jojokey_images"]).run_facets["jojokey"]

    assert (facet.inputTokens, facet.outputTokens, facet.totalTokens) == (tokens,) * 3
    assert Costs.from_json(facet.cost) == Costs(unknown=len(gateway.charges))


def test_charge_that_is_found_at_the_end_changes_the_error(
    run_batch: Any, store: Any, settled_late: LateLog
) -> None:
    _, error = run_batch(mixed("truncated truncate_after=0", "reset", "truncated truncate_after=0"))

    assert error is not None
    written = lines(store)
    assert [line["billed"] for line in written[::2]] == ["yes", "unknown", "yes"]
    for line in written[::2]:
        charged = "You were charged" if line["billed"] == "yes" else "You may have been charged"
        assert charged in line["message"]
    assert "2 JojoKeyReplyError (first item 0" in error.message
    assert error.message.count("You may have been charged") == 1


def test_usage_of_an_earlier_try_is_found_after_a_rejection(
    run_batch: Any, gateway: Any, store: Any, log: LateLog, request: pytest.FixtureRequest
) -> None:
    log.written = False
    run_batch(posters(2, prompt="[sandbox: truncated truncate_after=0] {}"))
    request.getfixturevalue("settled_late")

    pushed, error = run_batch(posters(2, prompt="[sandbox: moderation_blocked] {}"), try_number=2)

    assert error is not None
    assert pushed["usage"]["total_tokens"] == billed(gateway) > 0
    assert sum(line["usage"]["total_tokens"] for line in lines(store)) == billed(gateway)
    assert error.cost == pushed["jojokey_images"]["cost"]
    assert Costs.from_json(error.cost).unknown == 0
    assert [line["billed"] for line in lines(store)] == ["no", "no"]
    assert "paid image" not in error.message


def test_sum_of_a_batch_has_no_details_of_some_items_only(
    run_batch: Any, gateway: Any, settled_late: LateLog
) -> None:
    """The gateway log, which completes one of the responses, has no details."""
    pushed, _ = run_batch(mixed("no_usage"))

    assert pushed["usage"]["total_tokens"] == billed(gateway)
    assert "input_tokens_details" not in pushed["usage"]
    again, _ = run_batch(posters(6)[3:], try_number=2)
    assert again["usage"]["input_tokens_details"]["text_tokens"] == again["usage"]["input_tokens"] > 0
