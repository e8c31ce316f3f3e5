"""Costs of attempts, from prices or from the gateway's log."""

from __future__ import annotations

import dataclasses
import json
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from msgspec.structs import replace

from airflow_provider_jojokey import exceptions
from airflow_provider_jojokey.cost import Cost, Costs
from airflow_provider_jojokey.integrations import telemetry
from airflow_provider_jojokey.payments import usage
from airflow_provider_jojokey.payments.attempt import Event
from airflow_provider_jojokey.payments.receipt import Receipt, total_usage
from airflow_provider_jojokey.payments.receipt_store import ReceiptStore
from airflow_provider_jojokey.results import Result
from airflow_provider_jojokey.sandbox import accounts
from tests.support import fault_proxy
from tests.support.fault_proxy import FaultProxy, Forward, Request, Response, on, times
from tests.support.harness import Harness
from tests.support.metrics import Counters
from tests.support.scripted import (
    TOKENS,
    ScriptedGateway,
    billed_and_broken,
    billed_and_lost,
    failing,
    without_usage,
)

STATUS = {"quota_per_unit": 500_000, "quota_display_type": "USD"}
YUAN = {"quota_per_unit": 500_000, "quota_display_type": "CNY", "usd_exchange_rate": 7}
LISTED = Cost(5_930_000, "USD")  # 10 tokens of text at $5, and 196 of an image at $30 a million
CHARGED = Cost(1_400_000, "USD", approximate=False)  # 700 of quota
PRICES = {"currency": "CNY", "text_input": 0, "image_input": 0, "image_output": 100}


@pytest.fixture
def scripted(harness: Harness, png: bytes) -> Iterator[ScriptedGateway]:
    with ScriptedGateway(png) as gateway:
        yield gateway


@pytest.fixture
def on_scripted(harness: Harness, scripted: ScriptedGateway) -> Harness:
    harness.connect(host=scripted.url)
    return harness


def cost_of(manifest: dict[str, Any]) -> Costs:
    return Costs.from_json(manifest["cost"])


def test_image_cost_follows_the_price_list(
    on_scripted: Harness, scripted: ScriptedGateway, caplog: pytest.LogCaptureFixture
) -> None:
    scripted.status = STATUS
    with caplog.at_level(logging.INFO):
        manifest = on_scripted.run()
    assert cost_of(manifest) == Costs((LISTED,))
    assert on_scripted.receipt().attempts[0].cost == LISTED
    assert "206 tokens, ≈ USD 0.0059 (request ID" in caplog.text
    # Only the paid request is sent.
    assert (scripted.posts, scripted.log_reads, scripted.status_reads) == (1, 0, 0)


def test_connection_prices_take_precedence(
    on_scripted: Harness, scripted: ScriptedGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    configured = {"currency": "EUR", "text_input": 0, "image_input": 0, "image_output": 50}
    monkeypatch.setenv("AIRFLOW__JOJOKEY__PRICE_PER_MILLION", json.dumps(configured))
    assert cost_of(on_scripted.run(key="a.png")).amounts == (Cost(9_800_000, "EUR"),)
    for number, written in enumerate((PRICES, json.dumps(PRICES))):
        on_scripted.connect(host=scripted.url, price_per_million=written)
        assert cost_of(on_scripted.run(key=f"{number}.png")).amounts == (Cost(19_600_000, "CNY"),)


@pytest.mark.parametrize("place", ["connection", "configuration"])
def test_invalid_prices_fail_before_anything_is_sent(
    on_scripted: Harness, scripted: ScriptedGateway, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    if place == "connection":
        on_scripted.connect(host=scripted.url, price_per_million={**PRICES, "image_output": -1})
    else:
        monkeypatch.setenv("AIRFLOW__JOJOKEY__PRICE_PER_MILLION", '{"currency": "USD"}')
    error = on_scripted.fail()
    assert isinstance(error, exceptions.JojoKeyFailure)
    assert "price_per_million" in str(error)
    assert scripted.posts == 0
    assert on_scripted.objects() == []


def test_reply_without_usage_costs_what_the_log_shows(
    on_scripted: Harness, scripted: ScriptedGateway
) -> None:
    scripted.status, scripted.behaviors = STATUS, [without_usage]
    manifest = on_scripted.run()
    assert cost_of(manifest) == Costs((CHARGED,))
    attempt = on_scripted.receipt().attempts[0]
    assert attempt.cost == CHARGED
    assert attempt.charge == {"quota": 700, "amount": "0.0014", "currency": "USD"}


@pytest.mark.parametrize("status", [None, {}, {"quota_per_unit": 0}, {"quota_per_unit": "many"}])
def test_charge_without_a_unit_is_unknown(
    on_scripted: Harness, scripted: ScriptedGateway, status: dict[str, Any] | None
) -> None:
    scripted.status, scripted.behaviors = status, [without_usage]
    assert cost_of(on_scripted.run()) == Costs((LISTED,))  # from the log's tokens
    assert on_scripted.receipt().attempts[0].charge == {"quota": 700}


def test_no_usage_and_no_charge_is_unknown_and_not_0(
    on_scripted: Harness, scripted: ScriptedGateway, caplog: pytest.LogCaptureFixture
) -> None:
    scripted.logs_charges, scripted.behaviors = False, [without_usage]
    with caplog.at_level(logging.INFO):
        manifest = on_scripted.run()
    assert cost_of(manifest) == Costs((), unknown=1)
    assert on_scripted.receipt().attempts[0].cost is None
    assert "cost unknown (request ID" in caplog.text


def test_lost_response_costs_what_the_log_shows(on_scripted: Harness, scripted: ScriptedGateway) -> None:
    """Its request ID is in the response's head only, so the charge is known once the log is read with it."""
    scripted.status, scripted.behaviors = STATUS, [billed_and_lost]
    error = on_scripted.fail()
    assert error.billed == "unknown"
    assert error.cost == {"amounts": [], "unknown": 1}
    result = Result.from_error(error, prompt="a fox", aws_conn_id=None)
    read = Result.from_xcom(json.loads(json.dumps(result.to_xcom())))
    assert read is not None
    assert read.cost == Costs((), 1)


def test_unbilled_request_costs_nothing(on_scripted: Harness, scripted: ScriptedGateway) -> None:
    scripted.behaviors = [failing()]
    error = on_scripted.fail()
    assert (error.billed, error.cost) == ("no", {"amounts": [], "unknown": 0})
    assert on_scripted.receipt().attempts[0].cost is None


def test_reused_image_costs_nothing_again(on_scripted: Harness) -> None:
    paid = on_scripted.run(reuse="always")
    again = on_scripted.run(reuse="always", try_number=2)
    other_run = on_scripted.run(reuse="always", run="tuesday")
    assert cost_of(paid) == cost_of(again) == Costs((LISTED,))
    assert cost_of(other_run) == Costs()


def test_recorded_cost_stays_when_prices_change(on_scripted: Harness, scripted: ScriptedGateway) -> None:
    on_scripted.kill()
    on_scripted.run(try_number=2)
    on_scripted.connect(host=scripted.url, price_per_million=PRICES)
    assert cost_of(on_scripted.run(try_number=3)) == Costs((LISTED,))
    attempt = on_scripted.receipt().attempts[0]
    assert attempt.priced(None, attempt).cost == LISTED


@pytest.mark.parametrize("later", [{**YUAN, "usd_exchange_rate": 8}, STATUS, None])
def test_recorded_charge_keeps_its_worth_if_the_rate_changes(
    on_scripted: Harness, scripted: ScriptedGateway, later: dict[str, Any] | None
) -> None:
    scripted.status, scripted.behaviors = YUAN, [billed_and_broken]
    error = on_scripted.fail()
    (attempt,) = on_scripted.receipt().attempts
    assert attempt.cost == Cost(9_800_000, "CNY", approximate=False)

    scripted.status = later
    again = on_scripted.fail(try_number=2)

    assert again.cost == error.cost == {"amounts": [attempt.cost.to_json()], "unknown": 0}
    assert on_scripted.receipt().attempts[0].charge == attempt.charge


def test_different_currencies_are_not_added_up(on_scripted: Harness, scripted: ScriptedGateway) -> None:
    on_scripted.run(reuse="never")
    on_scripted.connect(host=scripted.url, price_per_million=PRICES)
    manifest = on_scripted.run(reuse="never", try_number=2)
    assert cost_of(manifest) == Costs((Cost(19_600_000, "CNY"), LISTED))


def test_receipt_of_an_earlier_version_has_no_cost(on_scripted: Harness) -> None:
    on_scripted.run()
    receipt = on_scripted.receipt()
    document = json.loads(receipt.to_json())
    for attempt in document["attempts"]:
        del attempt["cost"]
    old = Receipt.from_json(json.dumps(document).encode())
    assert old.attempts == (replace(receipt.attempts[0], cost=None),)
    assert old.cost_of(receipt.attempts[0].owner) == Costs((), unknown=1)


@pytest.mark.parametrize("cost", [7, [], "1", {}, {"amount": 1, "currency": "USD", "approximate": True}])
def test_damaged_cost_makes_a_receipt_unreadable(on_scripted: Harness, cost: Any) -> None:
    on_scripted.run()
    document = json.loads(on_scripted.receipt().to_json())
    document["attempts"][0]["cost"] = cost
    with pytest.raises(ValueError, match="not a receipt"):
        Receipt.from_json(json.dumps(document).encode())


@pytest.mark.parametrize("case", ["ok", "no_usage", "not_an_image", "violation_fee"])
def test_cost_metric_counts_each_charge_once(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    counters = Counters.enabled(monkeypatch)
    for try_number in (1, 2):
        harness.end(f"[sandbox: {case}] a fox", try_number=try_number)

    costs = [attempt.cost for attempt in harness.receipt().attempts]
    assert counters.values[telemetry.COST] == sum(cost.nanos // 1000 for cost in costs if cost) > 0
    assert counters.tokens == harness.tokens


def killed_and_found_in_the_log(first: Harness, second: Harness) -> None:
    """One host's process dies with the response. Another host finds its usage in the gateway log."""
    first.kill()
    first.time.skip(3600)
    receipts = ReceiptStore(first.store(), first.job().destination)
    (attempt,) = receipts.read().attempts
    receipts.update(attempt, Event.STATED_BILLED, request_id="request-1", ended_at=receipts.now())
    second.fail(try_number=2)


def test_tokens_from_the_log_and_the_spool_count_once(
    harness: Harness, scripted: ScriptedGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    counters = Counters.enabled(monkeypatch)
    first, second = harness.on("first"), harness.on("second")
    harness.connect(host=scripted.url)
    killed_and_found_in_the_log(first, second)

    assert counters.tokens == scripted.tokens > 0
    first.run(try_number=3)

    assert harness.outcomes() == ["complete"]
    assert counters.tokens == scripted.tokens
    assert counters.values[telemetry.COST] == LISTED.nanos // 1000


@pytest.fixture
def proxy(harness: Harness) -> Iterator[FaultProxy]:
    with FaultProxy(harness.bucket.endpoint_url) as proxy:
        harness.bucket = dataclasses.replace(harness.bucket, endpoint_url=proxy.url)
        harness.connect()
        yield proxy


UNAVAILABLE = fault_proxy.answer(fault_proxy.error(503, "ServiceUnavailable"))


def test_error_of_an_image_in_the_spool_names_earlier_costs(harness: Harness, proxy: FaultProxy) -> None:
    harness.set(upload_patience=0.1)
    harness.run(reuse="never", n=2)
    (earlier,) = harness.receipt("fox.png").attempts
    proxy.faults = [on("PUT", "/fox-", UNAVAILABLE)]

    error = harness.fail("a fox [sandbox: truncated]", reuse="never", n=2, try_number=2)

    assert (error.billed, error.usage) == ("yes", total_usage([earlier.usage]))
    assert Costs.from_json(error.cost) == Costs((earlier.cost,), unknown=1)


def test_error_of_an_image_in_the_spool_counts_its_tokens_once(
    harness: Harness, proxy: FaultProxy, scripted: ScriptedGateway
) -> None:
    """The receipt shows its usage already, from the gateway log."""
    harness.set(upload_patience=0.1)
    first, second = harness.on("first"), harness.on("second")
    harness.connect(host=scripted.url)
    killed_and_found_in_the_log(first, second)
    proxy.faults = [on("PUT", "/fox.png", UNAVAILABLE)]

    error = first.fail(try_number=3)

    assert error.spool
    assert (error.usage, Costs.from_json(error.cost)) == (TOKENS, Costs((LISTED,)))


@pytest.mark.parametrize("outage", [0, 1])
@pytest.mark.parametrize("case", ["ok", "no_usage", "not_an_image"])
def test_metrics_count_a_receipt_whose_response_is_lost(
    harness: Harness, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, case: str, outage: int
) -> None:
    """S3 stores an update of the receipt, its response is lost, and S3 is unavailable for some requests."""
    harness.run(key="first.png")  # the store's conditional writes are tested
    counters = Counters.enabled(monkeypatch)
    paid = harness.tokens
    receipt = "_jojokey/fox.png.json"
    lost = times(1, fault_proxy.lose_response, after=1)  # the first one is the claim
    written = threading.Event()

    def lose(request: Request, forward: Forward) -> Response:
        try:
            return lost(request, forward)
        except fault_proxy.Reset:
            written.set()
            raise

    def unavailable(request: Request, forward: Forward) -> Response:
        return outages(request, forward) if written.is_set() else forward(request)

    outages = times(outage, UNAVAILABLE)
    proxy.faults = [on("", receipt, unavailable), on("PUT", receipt, lose)]

    harness.end(f"[sandbox: {case}] a fox")

    assert written.is_set()
    proxy.faults = []
    (attempt,) = harness.receipt().attempts
    assert attempt.cost is not None
    assert counters.tokens == harness.tokens - paid > 0
    assert counters.values[telemetry.COST] == attempt.cost.nanos // 1000


def test_charge_that_the_log_shows_late_changes_the_error(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, read = [], accounts.token_log

    def late_log(account: Any, records: Any) -> Any:
        reads.append(account)
        return read(account, records if len(reads) > 1 else ())

    monkeypatch.setattr(accounts, "token_log", late_log)
    monkeypatch.setattr(usage, "USAGE_RETRY", 1.5)

    error = harness.fail("[sandbox: truncated truncate_after=0] a fox")

    assert harness.outcomes() == ["billed"]
    assert error.usage is not None
    assert error.usage["total_tokens"] == harness.tokens > 0
    assert error.billed == "yes"
    assert "You were charged" in error.message
