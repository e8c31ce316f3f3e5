"""What one order costs and gives, whatever happens on the way: the table of the documentation, and what is behind it.

Each test pays at the stand-in gateway and stores on a real S3 server; what was paid is read from the gateway's own
ledger, never from what the package believes.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, AirflowTaskTimeout
from loopback import Exchange, Server
from store.world import Bucket, Shop, bucket_of, moto_bucket

from airflow_provider_jojokey import exceptions as kinds
from airflow_provider_jojokey.payments import context as contexts
from airflow_provider_jojokey.exceptions import JojoKeyError
from airflow_provider_jojokey.hooks.jojokey import JojoKeyHook
from airflow_provider_jojokey.payments.generate import ImageJob, Services, generate_images
from airflow_provider_jojokey.payments import receipt_store, liveness, reconcile, send
from airflow_provider_jojokey.sandbox import Gateway, S3Server
from airflow_provider_jojokey.store import spool as spools
from airflow_provider_jojokey.payments.attempt import Outcome, Owner
from airflow_provider_jojokey.payments.receipt import Receipt
from airflow_provider_jojokey.triggers.jojokey import GenerateImageTrigger

_numbers = itertools.count()


@pytest.fixture(scope="module")
def moto() -> Iterator[Bucket]:
    with moto_bucket() as bucket:
        yield bucket


@pytest.fixture
def shop(moto: Bucket, gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """A shop with a bucket of its own, on a store that honours conditions."""
    bucket = replace(moto, name=f"posters-{next(_numbers)}")
    bucket.client().create_bucket(Bucket=bucket.name)
    monkeypatch.setattr(contexts, "POLL", 0.02)
    monkeypatch.setattr(contexts, "LOG_DELAY", 0.0)
    return Shop(gateway, bucket, tmp_path / "spool", monkeypatch)


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[S3Server]:
    """An S3 server that a test may stop and start."""
    with S3Server(tmp_path / "objects") as server:
        yield server


@pytest.fixture
def outage(s3: S3Server, gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """A shop on a server that a test may stop and start."""
    monkeypatch.setattr(contexts, "POLL", 0.02)
    monkeypatch.setattr(contexts, "LOG_DELAY", 0.0)
    monkeypatch.setattr(receipt_store, "CLAIM_RECHECK", 0.05)
    return Shop(gateway, bucket_of(s3), tmp_path / "spool", monkeypatch)


def name_of(result: JojoKeyError | dict[str, Any]) -> str:
    return "made" if isinstance(result, dict) else type(result).__name__


# --- the table ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """What happened → how the first try ends → whether it cost money → what the next try does.

    :param case: how the gateway answers, each time
    :param error: the class that the first try ends with
    :param billed: what that error says of money
    :param posts: how many paid requests there are in all with ``retries=3``
    :param payments: how many the gateway has billed in the end
    :param advice: what the message tells a person to do
    :param last: the class that the last try ends with, where it is another
    """

    case: str
    error: str
    billed: str
    posts: int
    payments: int
    advice: str
    last: str = ""


def _rows(cases: str, *columns: Any) -> list[Row]:
    return [Row(case.strip(), *columns) for case in cases.split("|")]


_LOOK_UP = "JojoKey's support"
TABLE = [
    *_rows("bad_json | invalid_request | error status=413 | error status=422 | error status=400",
           "JojoKeyRequestError", "no", 1, 0, "Change the request"),
    *_rows("invalid_token | token_missing | token_disabled | token_expired | token_exhausted",
           "JojoKeyTokenError", "no", 1, 0, "JojoKey's console"),
    *_rows("group_denied | model_denied | ip_denied | user_banned",
           "JojoKeyAccessError", "no", 1, 0, "change the token's group, models or allowed addresses"),
    *_rows("cloudflare_1010 | cloudflare_1020", "JojoKeyEdgeBlockedError", "no", 1, 0, "the cf-ray"),
    *_rows("wallet_empty | token_quota_short", "JojoKeyQuotaError", "no", 1, 0, "Top up the account"),
    *_rows("moderation_blocked | sensitive_words", "JojoKeyContentError", "no", 1, 0, "word it differently"),
    *_rows("violation_fee", "JojoKeyContentError", "yes", 1, 1, "word it differently"),
    *_rows("error status=404 | html_in_200 | redirect_301 | redirect_302 | redirect_307 | redirect_308",
           "JojoKeyBaseUrlError", "no", 1, 0, "Check the connection's host"),
    *_rows("cloudflare_525 | cloudflare_526", "JojoKeyTLSError", "no", 1, 0, "certificate"),
    *_rows("rate_limited | rate_limited_retry_after | rate_limited_empty | upstream_429",
           "JojoKeyRateLimitError", "no", 4, 0, "Airflow pool"),
    *_rows("no_channel", "JojoKeyNoChannelError", "no", 4, 0, "check the channel"),
    *_rows("overloaded_cpu | overloaded_memory | overloaded_disk | upstream_unreachable | upstream_garbled"
           "| upstream_500", "JojoKeyOverloadedError", "no", 4, 0, "overloaded or failing"),
    *_rows("cloudflare_521 | cloudflare_523", "JojoKeyUnreachableError", "no", 4, 0, "could not be reached"),
    # The answer was lost, and the log shows at once that it was billed.
    *_rows("cloudflare_524 | cloudflare_520 | cloudflare_504 | nginx_502 | nginx_504 | reset | close | hang"
           "| error_in_200", "JojoKeyAlreadyBilledError", "yes", 1, 1, _LOOK_UP),
    # The answer was lost, and the log shows, once the model must have finished, that it was not billed.
    *_rows("cloudflare_522 | cloudflare_502 | cloudflare_502_text | reset billed=no | cloudflare_524 billed=no",
           "JojoKeyUnknownOutcomeError", "unknown", 4, 0, _LOOK_UP),
    *_rows("empty_body | no_data | null_data | empty_data | fewer_images | empty_b64 | bad_base64 | not_an_image"
           "| url_missing | url_elsewhere | truncated_mid_image | stalls | sse_broken | sse_hang | sse_no_completed",
           "JojoKeyReplyError", "yes", 1, 1, _LOOK_UP),
    *_rows("sse_raw_error | sse_error_event", "JojoKeyAlreadyBilledError", "yes", 1, 1, _LOOK_UP),
]  # fmt: skip


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.case)
def test_each_failure_has_its_class_its_price_and_its_number_of_requests(shop: Shop, row: Row) -> None:
    shop.connect(read_timeout=0.4)

    results = shop.attempts(f"a fox [sandbox: {row.case}]", retries=3)

    first, last = results[0], results[-1]
    assert isinstance(first, JojoKeyError)
    assert isinstance(last, JojoKeyError)
    assert (type(first).__name__, first.billed) == (row.error, row.billed)
    assert type(last).__name__ == (row.last or row.error)
    assert shop.posts == row.posts
    assert shop.billed == row.payments
    assert row.advice in first.message
    assert type(first).retry in str(first)
    assert len(results) == (1 if isinstance(first, AirflowFailException) else 4)
    words = {"no": "Nothing was billed", "yes": "was", "unknown": "is not known"}
    assert words[first.billed] in str(first)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.case)
def test_each_failure_that_passes_ends_in_an_image_unless_that_would_pay_twice(shop: Shop, row: Row) -> None:
    shop.connect(read_timeout=0.4)

    results = shop.attempts(f"a fox [sandbox: {row.case} times=1]", retries=3)

    if issubclass(getattr(kinds, row.error), AirflowFailException):
        assert [name_of(one) for one in results] == [row.error]
        assert (shop.posts, shop.billed) == (1, row.payments)
    else:
        assert [name_of(one) for one in results] == [row.error, "made"]
        assert (shop.posts, shop.billed) == (2, 1)
        assert shop.outcomes() == ["not_billed", "complete"]
        assert results[-1]["usage"]["total_tokens"] == shop.tokens  # type: ignore[index]


@pytest.mark.parametrize("row", [row for row in TABLE if row.billed == "no"], ids=lambda row: row.case)
def test_what_cost_nothing_can_be_cleared_and_made(shop: Shop, row: Row) -> None:
    shop.refused(f"a fox [sandbox: {row.case} times=1]")

    made = shop.make(f"a fox [sandbox: {row.case} times=1]", try_number=2)

    assert made["usage"]["total_tokens"] == shop.tokens
    assert shop.billed == 1


@pytest.mark.parametrize("row", [row for row in TABLE if row.payments], ids=lambda row: row.case)
def test_what_was_billed_and_gave_nothing_is_not_paid_again_when_cleared(shop: Shop, row: Row) -> None:
    shop.connect(read_timeout=0.4)
    prompt = f"a fox [sandbox: {row.case} times=1]"
    shop.refused(prompt)

    error = shop.refused(prompt, try_number=2)

    assert isinstance(error, kinds.JojoKeyAlreadyBilledError)
    assert error.billed == "yes"
    assert "Nothing was sent by this attempt" in error.message
    assert "no image arrived" in error.message
    assert (shop.posts, shop.billed) == (1, 1)


@pytest.mark.parametrize("row", [row for row in TABLE if row.payments], ids=lambda row: row.case)
@pytest.mark.parametrize("wish", [{"on_unknown_outcome": "regenerate"}, {"reuse": "never"}], ids=str)
def test_what_was_billed_and_gave_nothing_is_paid_again_on_request(
    shop: Shop, row: Row, wish: dict[str, str]
) -> None:
    shop.connect(read_timeout=0.4)
    prompt = f"a fox [sandbox: {row.case} times=1]"
    shop.refused(prompt)

    made = shop.make(prompt, try_number=2, **wish)

    assert (shop.posts, shop.billed) == (2, 2)
    assert made["usage"]["total_tokens"] == shop.tokens


@pytest.mark.parametrize("wish", [{"on_unknown_outcome": "regenerate"}, {"reuse": "never"}], ids=str)
@pytest.mark.parametrize("case", ["not_an_image", "cloudflare_524", "truncated_mid_image", "hang"])
def test_who_asks_for_it_gets_another_image_on_airflows_own_retry(
    shop: Shop, case: str, wish: dict[str, str]
) -> None:
    shop.connect(read_timeout=0.4)

    results = shop.attempts(f"a fox [sandbox: {case} times=1]", **wish)

    assert [name_of(one) for one in results] == ["JojoKeyUnknownOutcomeError", "made"]
    assert (shop.posts, shop.billed) == (2, 2)


@pytest.mark.parametrize("case", ["cloudflare_524", "reset", "hang", "cloudflare_522", "error_in_200"])
def test_without_the_gateways_log_an_unknown_outcome_waits_for_a_person(
    shop: Shop, png: bytes, case: str
) -> None:
    with Gateway(image=png, log=False) as silent:
        shop.gateway = silent
        shop.connect(read_timeout=0.4)

        results = shop.attempts(f"a fox [sandbox: {case} times=1]")

        (error,) = results
        assert isinstance(error, kinds.JojoKeyAlreadyBilledError)
        assert error.billed == "unknown"
        assert "cannot be asked" in error.message
        assert shop.posts == 1


def test_a_log_that_is_rate_limited_is_asked_again_later(shop: Shop, png: bytes) -> None:
    with Gateway(image=png, log_limit=0) as busy:
        shop.gateway = busy
        shop.connect()

        results = shop.attempts("a fox [sandbox: reset times=1]", retries=2)

        assert [name_of(one) for one in results] == ["JojoKeyUnknownOutcomeError"] * 3
        assert shop.posts == 1


@pytest.mark.parametrize("host", ["http://127.0.0.1:9", "http://jojokey.invalid"])
def test_a_gateway_that_cannot_be_reached_costs_nothing_and_is_tried_again(shop: Shop, host: str) -> None:
    shop.connect(host=host)

    results = shop.attempts(retries=1)

    assert [name_of(one) for one in results] == ["JojoKeyUnreachableError"] * 2
    assert shop.outcomes() == ["not_billed", "not_billed"]
    assert shop.posts == 0


def test_a_failure_in_the_log_is_not_taken_for_ours_while_the_model_may_be_at_work(shop: Shop) -> None:
    """Cloudflare has cut ours; another task's failure, in the log already, says nothing about it."""
    shop.connect(read_timeout=0.3)
    shop.set(longest_generation=2.0)
    shop.refused("an owl [sandbox: invalid_request]", "owl.png", task="other")

    # Both are sent within the time that the log's clock may be off, and only the other's is in the log yet.
    results = shop.attempts("a fox [sandbox: hang delay=1 times=1]")

    assert shop.billed == 1, [str(one) for one in results]
    assert name_of(results[-1]) == "JojoKeyAlreadyBilledError"


def test_a_large_image_may_be_at_work_for_longer_and_is_not_paid_twice(shop: Shop, png: bytes) -> None:
    """Cloudflare cuts a generation of many minutes; the log cannot have it yet."""
    with Gateway(image=png) as slow:
        shop.gateway = slow
        shop.connect(read_timeout=0.3)
        shop.set(longest_generation=1.0)
        small = shop.refused("a fox [sandbox: hang delay=1]")
        large = shop.refused("an owl [sandbox: hang delay=1]", "owl.png", size="3840x2160", quality="high")

    assert isinstance(large, kinds.JojoKeyUnknownOutcomeError)
    assert small.retry_after is not None
    assert large.retry_after is not None
    assert large.retry_after > small.retry_after + 5


def test_another_requests_row_in_the_log_is_not_ours_while_the_model_may_be_at_work(shop: Shop) -> None:
    shop.connect(read_timeout=12)
    shop.set(longest_generation=30.0)
    hook = JojoKeyHook()
    hook.known_requests.add(shop.make("an owl", "owl.png", task="other")["request_id"])

    error = shop.refused("a fox [sandbox: cloudflare_524 billed=no]", hook=hook)

    assert error.billed == "unknown"
    assert not isinstance(error, AirflowFailException)


def test_a_retry_sends_the_request_once_more_inside_the_hook_where_that_is_safe(shop: Shop) -> None:
    shop.connect(max_resends=2, max_resend_wait=5)

    made = shop.make("a fox [sandbox: rate_limited retry_after=0 times=2]")

    assert shop.posts == 3
    assert made["usage"]["total_tokens"] == shop.tokens
    assert shop.outcomes() == ["complete"]


# --- before anything is paid -------------------------------------------------------------------------------------


def test_without_a_token_nothing_is_tried(shop: Shop) -> None:
    shop.connect(token=" ")

    assert isinstance(shop.refused(), kinds.JojoKeyConnectionError)
    assert (shop.posts, shop.keys()) == (0, [])


def test_a_bucket_that_does_not_exist_costs_nothing(shop: Shop) -> None:
    error = shop.refused(bucket="nowhere-at-all")

    assert isinstance(error, kinds.JojoKeyStoreError)
    assert "Create the bucket" in error.message
    assert "Nothing was sent or billed" in error.message
    assert shop.posts == 0


def test_a_spool_that_cannot_be_made_costs_nothing(shop: Shop, tmp_path: Path) -> None:
    (tmp_path / "a file").write_text("")
    shop.set(spool_directory=tmp_path / "a file" / "spool")

    error = shop.refused()

    assert isinstance(error, kinds.JojoKeyStoreError)
    assert "spool_directory" in error.message
    assert shop.posts == 0


def test_a_disk_without_room_for_the_images_costs_nothing(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spools, "ROOM_TO_SPARE", 10**18)

    error = shop.refused()

    assert isinstance(error, kinds.JojoKeyStoreError)
    assert "nearly full" in error.message
    assert "Nothing was sent or billed" in error.message
    assert shop.posts == 0
    assert shop.outcomes() == ["not_billed"]
    assert shop.spooled() == []


def test_a_spool_that_cannot_be_made_in_the_end_costs_nothing_and_is_not_left_open(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.spools.mkdir()
    (shop.spools / "id").write_text("an id")
    place = (
        generation._Till(shop.job(), JojoKeyHook(), shop.store(), shop.settings)
        .spool_of(ledgers.new_attempt("", Owner("", "", ""), 1, ""))
        .folder.parent
    )
    place.write_text("a file where a folder should be")

    error = shop.refused()

    assert isinstance(error, kinds.JojoKeyStoreError)
    assert shop.posts == 0
    assert shop.outcomes() == ["not_billed"]


def test_an_intent_that_took_too_long_to_write_is_not_paid_for(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others may take it for dead by then: a machine that slept between the two wakes up and must not pay."""
    with monkeypatch.context() as slow:
        slow.setattr(generation, "START_WITHIN", -1.0)
        error = shop.refused()

    assert isinstance(error, kinds.JojoKeyStoreError)
    assert "Nothing was sent or billed" in error.message
    assert shop.posts == 0
    assert shop.outcomes() == ["not_billed"]
    assert name_of(shop.make(try_number=2)) == "made"


def test_a_receipt_that_cannot_be_understood_stops_the_task(shop: Shop) -> None:
    shop.bucket.client().put_object(Bucket=shop.bucket.name, Key="_jojokey/fox.png.json", Body=b"{}")

    error = shop.refused()

    assert isinstance(error, kinds.JojoKeyReceiptError)
    assert isinstance(error, AirflowFailException)
    assert "delete it" in error.message
    assert shop.posts == 0


# --- reuse -------------------------------------------------------------------------------------------------------


def test_a_task_that_is_cleared_takes_what_its_run_has_paid_for(shop: Shop) -> None:
    first = shop.make()

    again = shop.make(try_number=2)

    assert again == {**first, "reused": True}
    assert (shop.posts, again["usage"]["total_tokens"]) == (1, shop.tokens)


def test_a_new_run_pays_for_a_new_image(shop: Shop) -> None:
    shop.make()
    shop.make(run="tuesday")
    assert shop.billed == 2


def test_another_request_in_the_same_run_is_another_image(shop: Shop) -> None:
    shop.make()
    made = shop.make("an owl", try_number=2)
    assert shop.billed == 2
    assert made["usage"]["total_tokens"] == shop.tokens


def test_with_reuse_always_any_earlier_run_counts_and_costs_this_one_nothing(shop: Shop) -> None:
    shop.make()

    again = shop.make(run="tuesday", reuse="always")

    assert (shop.billed, again["reused"], again["usage"]["total_tokens"]) == (1, True, 0)


def test_with_reuse_always_another_request_is_paid_for(shop: Shop) -> None:
    shop.make()
    assert shop.make("an owl", run="tuesday", reuse="always")["reused"] is False
    assert shop.billed == 2


def test_with_reuse_never_each_attempt_pays(shop: Shop) -> None:
    shop.make()

    again = shop.make(try_number=2, reuse="never")

    assert (shop.billed, again["reused"]) == (2, False)
    assert again["usage"]["total_tokens"] == shop.tokens


def test_with_reuse_never_one_attempt_that_is_run_twice_pays_once(shop: Shop) -> None:
    shop.make(reuse="never")
    assert shop.make(reuse="never")["reused"] is True
    assert shop.billed == 1


def test_two_mapped_tasks_with_one_key_end_before_the_second_pays(shop: Shop) -> None:
    shop.make(map_index=0)

    error = shop.refused(map_index=1)

    assert isinstance(error, kinds.JojoKeyReceiptError)
    assert "image[0]" in error.message
    assert "ti.map_index" in error.message
    assert shop.billed == 1


def test_two_tasks_with_one_key_that_start_at_once_pay_once(shop: Shop) -> None:
    shop.gateway.behave(delay=0.3)

    def one(map_index: int) -> str:
        try:
            return name_of(shop.make(map_index=map_index))
        except JojoKeyError as error:
            return name_of(error)

    shop.store()
    with ThreadPoolExecutor(4) as threads:
        ends = sorted(threads.map(one, range(4)))

    assert ends == ["JojoKeyReceiptError"] * 3 + ["made"]
    assert shop.billed == 1


def test_an_image_that_was_deleted_since_is_not_paid_for_again(shop: Shop) -> None:
    shop.make()
    shop.bucket.client().delete_object(Bucket=shop.bucket.name, Key="fox.png")

    error = shop.refused(try_number=2)

    assert isinstance(error, kinds.JojoKeyReceiptError)
    assert "is missing or has changed" in error.message
    assert "reuse='never'" in error.message
    assert shop.billed == 1


def test_an_image_that_another_run_has_overwritten_is_not_taken_for_ours(shop: Shop) -> None:
    shop.make()
    shop.make("an owl", run="tuesday")

    error = shop.refused(try_number=2)

    assert isinstance(error, kinds.JojoKeyReceiptError)
    assert "another Dag run has overwritten it" in error.message
    assert shop.billed == 2


def test_with_reuse_always_an_image_that_is_gone_is_made_again(shop: Shop) -> None:
    shop.make()
    shop.bucket.client().delete_object(Bucket=shop.bucket.name, Key="fox.png")

    assert shop.make(run="tuesday", reuse="always")["reused"] is False
    assert shop.billed == 2


def test_an_order_is_reserved_by_the_receipt_that_it_is_claimed_with_or_not_sent(shop: Shop) -> None:
    shop.make(run="sunday")
    asked: list[int] = []

    def reserve(receipt: Receipt) -> None:
        asked.append(len(receipt.attempts))
        if len(asked) == 1:
            shop.make(run="monday")  # somebody else pays while the money is set aside
        if len(asked) == 3:
            raise kinds.JojoKeyBudgetError("There is no room.")

    for run in ("tuesday", "wednesday"):
        with contextlib.suppress(kinds.JojoKeyBudgetError):
            generation.generate_images(
                shop.job(run=run),
                jojokey=JojoKeyHook(),
                store=shop.store(),
                settings=shop.settings,
                reserve=reserve,
            )

    assert asked == [1, 2, 3]
    assert shop.posts == 3
    assert [one.owner.run_id for one in shop.receipt().attempts] == ["sunday", "monday", "tuesday"]


def test_what_is_reused_is_not_reserved(shop: Shop) -> None:
    shop.make()

    made = generation.generate_images(
        shop.job(run="tuesday", reuse="always"),
        jojokey=JojoKeyHook(),
        store=shop.store(),
        settings=shop.settings,
        reserve=lambda _: pytest.fail("nothing is to be paid"),
    )

    assert made["reused"] is True


def test_what_all_tries_of_a_task_cost_adds_up(shop: Shop) -> None:
    prompt = "a fox [sandbox: truncated times=1]"
    refused = shop.refused(prompt, n=2)
    assert refused.usage is not None
    made = shop.make(prompt, try_number=2, n=2, on_unknown_outcome="regenerate")
    cleared = shop.make(prompt, try_number=3, n=2, reuse="never")
    reused = shop.make(prompt, try_number=4, n=2)
    other = shop.make(prompt, run="tuesday", n=2)

    each = [record.total_tokens for record in shop.gateway.ledger]
    assert refused.usage["total_tokens"] == each[0], "the broken reply did not tell it, but the log does"
    assert made["usage"]["total_tokens"] == each[0] + each[1]
    assert cleared["usage"] == reused["usage"]
    assert cleared["usage"]["total_tokens"] + other["usage"]["total_tokens"] == sum(each) == shop.tokens


def test_what_was_paid_over_before_the_gateways_log_knew_of_it_is_added_to_the_bill(shop: Shop) -> None:
    prompt = "a fox [sandbox: delay=1]"
    shop.connect(read_timeout=0.3)
    unknown = shop.refused(prompt)
    assert unknown.billed == "unknown"
    shop.connect(read_timeout=30)

    made = shop.make(prompt, try_number=2, on_unknown_outcome="regenerate")

    assert shop.billed == 2
    assert made["usage"]["total_tokens"] == shop.tokens
    first, second = shop.receipt().attempts
    assert (first.outcome, second.outcome) == (Outcome.BILLED, Outcome.COMPLETE)
    assert first.request_id != second.request_id


# --- S3 fails after the money is gone ----------------------------------------------------------------------------


def when_asked(gateway: Gateway, then: Callable[[], object]) -> threading.Thread:
    """Do something as soon as the gateway has the paid request."""

    def wait() -> None:
        gateway.wait_for_request()
        then()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_an_outage_of_s3_after_the_reply_is_waited_out(outage: Shop, s3: S3Server) -> None:
    s3.stop()
    s3.start()  # on the port that it keeps
    down = threading.Event()

    def stop_and_start() -> None:
        s3.stop()
        down.set()
        outage.gateway.wait_for_ledger()
        outage.gateway.wait_until_idle()
        threading.Event().wait(1.0)
        s3.start()

    outage.gateway.behave(delay=0.5)
    helper = when_asked(outage.gateway, stop_and_start)
    made = outage.make(n=3)
    helper.join()

    assert down.is_set()
    assert outage.posts == 1
    assert [len(outage.read(image["key"])) for image in made["images"]] == [
        image["bytes"] for image in made["images"]
    ]
    assert outage.spooled() == []


def test_what_s3_never_took_waits_on_disk_for_the_next_attempt(outage: Shop, s3: S3Server) -> None:
    outage.set(upload_patience=0.1)
    outage.gateway.behave(delay=0.3)
    helper = when_asked(outage.gateway, s3.stop)

    error = outage.refused(n=2)
    helper.join()

    assert isinstance(error, kinds.JojoKeyStoreError)
    assert not isinstance(error, AirflowFailException)
    assert error.billed == "yes"
    assert "paid for and safe on this host" in error.message
    assert outage.spooled() == ["0.image", "1.image", "reply.json"]

    still_down = outage.refused(n=2, try_number=2)
    assert "Nothing was sent or billed by this attempt" in still_down.message
    s3.start()
    made = outage.make(n=2, try_number=3)

    assert outage.posts == 1
    assert len(made["images"]) == 2
    assert made["usage"]["total_tokens"] == outage.tokens
    assert outage.spooled() == []
    assert outage.outcomes() == ["complete"]


def test_what_arrived_of_a_broken_reply_waits_on_disk_too(outage: Shop, s3: S3Server) -> None:
    outage.set(upload_patience=0.1)
    outage.gateway.behave("truncated", delay=0.3, times=1)
    helper = when_asked(outage.gateway, s3.stop)

    error = outage.refused(n=3)
    helper.join()

    assert isinstance(error, kinds.JojoKeyStoreError)
    assert not isinstance(error, AirflowFailException), "only a retry can store them"
    assert error.billed == "yes"
    assert "1 of 3 images had arrived" in error.message
    assert outage.spooled() == ["0.image"]

    s3.start()
    final = outage.refused(n=3, try_number=2)

    assert isinstance(final, kinds.JojoKeyAlreadyBilledError)
    assert "1 of 3 images arrived: s3://posters/fox-0.png" in final.message
    assert outage.read("fox-0.png")
    assert outage.posts == 1
    assert outage.spooled() == []


def test_a_full_disk_keeps_no_whole_reply_from_s3(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("airflow_provider_jojokey.store.spool.Spool.keep", full)

    assert name_of(shop.make()) == "made"
    assert shop.outcomes() == ["complete"]


def test_nothing_stays_on_disk_once_s3_has_it(shop: Shop) -> None:
    shop.make()
    shop.attempts("an owl [sandbox: no_channel]", "owl.png")
    shop.attempts("an owl [sandbox: truncated]", "owls.png", n=2)
    assert [path.name for path in shop.spools.iterdir()] == ["id"]


def test_old_spools_are_deleted(shop: Shop) -> None:
    old = shop.spools / ("0" * 32) / ("1" * 32)
    old.mkdir(parents=True)
    (old / "0.image").write_bytes(b"nobody came back for it")
    os.utime(old, (1, 1))

    shop.make()

    assert not old.exists()


def test_a_spool_that_was_cleaned_for_its_age_does_not_mean_that_nothing_was_sent(
    shop: Shop, png: bytes
) -> None:
    with Gateway(image=png, log=False) as silent:
        shop.gateway = silent
        shop.connect()
        with pytest.raises(AirflowTaskTimeout):
            shop.make(hook=Interrupted())
        receipt = shop.receipt()
        (attempt,) = receipt.attempts
        old = replace(attempt, started_at=attempt.started_at - timedelta(days=8))
        document = replace(receipt, attempts=(old,)).to_json()
        shop.bucket.client().put_object(Bucket=shop.bucket.name, Key="_jojokey/fox.png.json", Body=document)
        (folder,) = (path for path in shop.spools.glob("*/*") if path.is_dir())
        os.utime(folder, (1, 1))
        spools.clean(shop.spools)
        assert not folder.exists()

        error = shop.refused(try_number=2)

        assert isinstance(error, kinds.JojoKeyAlreadyBilledError)
        assert error.billed == "unknown"
        assert shop.posts == 1


# --- replies that break off --------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("end", ["fin", "rst"])
def test_a_reply_without_its_end_is_a_success_if_all_images_had_arrived(shop: Shop, n: int, end: str) -> None:
    made = shop.make(f"a fox [sandbox: ok truncate_after={n} end={end}]", n=n)

    assert len(made["images"]) == n
    assert shop.outcomes() == ["complete"]
    assert made["usage"]["total_tokens"] == shop.tokens, "the log tells what the reply could not"
    assert shop.posts == 1


def test_images_that_arrived_before_the_reply_broke_off_are_stored_and_named(shop: Shop) -> None:
    error = shop.refused("a fox [sandbox: truncated truncate_after=2]", n=3)

    places = [f"s3://{shop.bucket.name}/fox-{index}.png" for index in (0, 1)]
    assert f"2 of 3 images had arrived: {', '.join(places)}" in error.message
    (attempt,) = shop.receipt().attempts
    assert (attempt.outcome, attempt.billed) == (Outcome.BILLED, "yes")
    assert [image["uri"] for image in attempt.images] == places
    assert shop.read("fox-0.png") == shop.read("fox-1.png") != b""


@pytest.mark.parametrize(
    "case", ["sse_broken", "sse_hang", "sse_raw_error", "sse_error_event", "sse_no_completed"]
)
def test_the_preview_of_an_image_that_never_came_is_kept_and_named(shop: Shop, case: str) -> None:
    shop.connect(read_timeout=0.4)

    error = shop.refused(f"a fox [sandbox: {case}]", stream=True, partial_images=2)

    (attempt,) = shop.receipt().attempts
    assert attempt.preview is not None
    assert attempt.preview["key"] == "_jojokey/fox.png.preview.png"
    assert attempt.preview["uri"] in error.message
    assert shop.read(attempt.preview["key"])
    assert shop.billed == 1


@pytest.mark.parametrize("streams", ["supported", "ignored"])
def test_a_stream_gives_the_same_images_whether_the_gateway_knows_it(
    shop: Shop, png: bytes, streams: Any
) -> None:
    with Gateway(image=png, stream=streams) as other:
        shop.gateway = other
        shop.connect()

        made = shop.make(stream=True, partial_images=1, n=2)

        assert [shop.read(image["key"]) for image in made["images"]] == [png, png]
        assert made["usage"]["total_tokens"] == shop.tokens
        assert shop.spooled() == []


# --- killed in flight --------------------------------------------------------------------------------------------


class Interrupted(JojoKeyHook):
    """A hook whose task is ended from outside once its request was answered."""

    error: type[BaseException] = AirflowTaskTimeout

    def generate(self, *arguments: Any) -> Any:
        super().generate(*arguments).close()
        raise self.error


@pytest.mark.parametrize("error", [AirflowTaskTimeout, KeyboardInterrupt, SystemExit])
def test_a_task_that_is_ended_while_it_waits_loses_nothing(
    shop: Shop, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Interrupted, "error", error)
    with pytest.raises(error):
        shop.make(hook=Interrupted())
    assert shop.outcomes() == ["open"]

    made = shop.make(try_number=2)

    assert (shop.posts, made["reused"]) == (1, True)
    assert made["usage"]["total_tokens"] == shop.tokens
    assert shop.spooled() == []


def test_an_attempt_that_died_before_it_sent_anything_is_told_by_its_missing_spool(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(generation._Till, "open_spool", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            shop.make()
    assert shop.outcomes() == ["open"]

    shop.make(try_number=2)

    first, second = shop.receipt().attempts
    assert (first.outcome, first.note) == (Outcome.NOT_BILLED, "it died before it sent anything")
    assert second.outcome is Outcome.COMPLETE
    assert shop.billed == 1


def test_a_task_that_is_killed_while_it_waits_for_another_sends_nothing(shop: Shop) -> None:
    hook = JojoKeyHook()
    shop.gateway.behave(delay=1.0)
    with ThreadPoolExecutor(2) as threads:
        maker = threads.submit(shop.make)
        shop.gateway.wait_for_request()
        waiter = threads.submit(shop.refused, hook=hook)
        hook.cut()
        assert "Nothing was sent" in waiter.result().message
        assert name_of(maker.result()) == "made"
    assert shop.billed == 1


# --- two at once -------------------------------------------------------------------------------------------------


def run_trigger(shop: Shop, **order: Any) -> Any:
    trigger = GenerateImageTrigger(shop.job(**order).to_json(), "jojokey_default", "aws_default")

    async def run() -> Any:
        return [event async for event in trigger.run()]

    return run()


@pytest.mark.parametrize("reuse", ["run", "always", "never"])
def test_one_trigger_that_is_run_twice_at_once_pays_once(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, reuse: str
) -> None:
    monkeypatch.setattr("airflow_provider_jojokey.settings.Settings.from_airflow_config", lambda: shop.settings)
    shop.gateway.behave(delay=0.2)

    async def both() -> Any:
        return await asyncio.gather(run_trigger(shop, reuse=reuse), run_trigger(shop, reuse=reuse))

    manifests = [event.payload["manifest"] for (event,) in asyncio.run(both())]

    assert sorted(one["reused"] for one in manifests) == [False, True]
    assert manifests[0]["images"] == manifests[1]["images"]
    assert shop.billed == 1


def test_a_triggers_error_comes_back_as_it_was(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airflow_provider_jojokey.settings.Settings.from_airflow_config", lambda: shop.settings)

    (event,) = asyncio.run(run_trigger(shop, prompt="a fox [sandbox: truncated]", n=2))

    error = JojoKeyError.from_json(json.loads(json.dumps(event.payload["error"])))
    assert isinstance(error, kinds.JojoKeyReplyError)
    assert "1 of 2 images had arrived" in error.message


def test_an_order_survives_its_way_through_json(shop: Shop) -> None:
    order = shop.job(reuse="always", n=2, extra_body={"user": "me"})
    assert Order.from_json(json.loads(json.dumps(order.to_json()))) == order


def test_who_waits_takes_the_result_even_if_the_maker_ends_between_two_looks(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The receipt is read while the maker is at work, its process is looked at when it has ended.

    That looks like a death in flight with no spool left, which is what an attempt that never sent anything looks
    like. The receipt, read again, knows better.
    """
    looked_too_late = threading.Event()

    def late(attempt: Any) -> bool:
        if threading.current_thread() is not maker and not looked_too_late.is_set():
            looked_too_late.set()
            maker.join()
        return alive(attempt)

    results = []
    alive = ledgers.may_be_alive
    shop.gateway.behave(delay=0.5)
    maker = threading.Thread(target=lambda: results.append(shop.make()))
    maker.start()
    shop.gateway.wait_for_request()
    monkeypatch.setattr(ledgers, "may_be_alive", late)

    results.append(shop.make())

    assert looked_too_late.is_set()
    assert shop.billed == 1
    assert [one["reused"] for one in results] == [False, True]
    assert shop.outcomes() == ["complete"]


def test_two_that_come_back_for_one_dead_attempt_store_it_once_and_pay_nothing(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(AirflowTaskTimeout):
        shop.make(hook=Interrupted())
    other_is_done = threading.Event()

    def slowly(till: Any, earlier: Any) -> bool:
        if threading.current_thread() is not first:
            assert other_is_done.wait(10)
        return settle(till, earlier)

    def make_first() -> None:
        shop.make(try_number=2)
        other_is_done.set()

    settle = generation._Till._settle
    monkeypatch.setattr(generation._Till, "_settle", slowly)
    shop.store()
    first = threading.Thread(target=make_first)
    with ThreadPoolExecutor(1) as threads:
        second = threads.submit(shop.make, try_number=2)
        first.start()
        assert second.result()["reused"] is True
    first.join()

    assert shop.billed == 1
    assert shop.outcomes() == ["complete"]


def test_what_was_made_under_another_map_index_is_taken_once_the_list_has_become_shorter(shop: Shop) -> None:
    shop.make(map_index=2)

    made = shop.make(map_index=1, try_number=2)

    assert (made["reused"], shop.billed) == (True, 1)
    assert made["usage"]["total_tokens"] == 0, "it was billed to the other one"


def test_two_items_of_a_list_that_share_a_key_are_a_conflict_when_cleared_as_well(shop: Shop) -> None:
    shop.make("a fox", map_index=2)

    assert isinstance(shop.refused("an owl", map_index=1, try_number=2), kinds.JojoKeyReceiptError)
    assert shop.billed == 1


def test_what_is_refused_inside_a_reply_of_success_and_not_billed_is_refused(shop: Shop) -> None:
    def refuse(exchange: Exchange) -> None:
        log = {"success": True, "data": [{"type": 5, "request_id": "ours", "created_at": 1}]}
        refusal = {"error": {"message": "no", "code": "moderation_blocked"}}
        told = log if exchange.request.method == "GET" else refusal
        exchange.answer(200, json.dumps(told).encode(), X_Oneapi_Request_Id="ours")

    with Server(refuse) as server:
        shop.connect(host=server.url)
        results = shop.attempts(retries=3)
        posts = [request for request in server.requests if request.method == "POST"]

    assert [name_of(one) for one in results] == ["JojoKeyContentError"]
    assert len(posts) == 1
    assert shop.outcomes() == ["not_billed"]


def test_what_a_dead_try_has_paid_for_counts_although_each_try_is_to_pay(shop: Shop) -> None:
    with pytest.raises(AirflowTaskTimeout):
        shop.make(hook=Interrupted(), reuse="never")

    made = shop.make(reuse="never", try_number=2)

    assert (made["reused"], shop.billed) == (False, 2)
    assert made["usage"]["total_tokens"] == shop.tokens
    assert shop.outcomes() == ["complete", "complete"]
