"""Receipts: sums, pruning, and unreadable content."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from airflow_provider_jojokey.payments.attempt import Attempt, Outcome
from airflow_provider_jojokey.payments.receipt import MAX_UNBILLED, Receipt, ReceiptUnreadable, total_usage
from tests.support.examples import ATTEMPT, FULL
from tests.support.examples import OWNER as ME

RECEIPT = Receipt(
    "posters", "fox.png", "https://host", {"prompt": "a fox"}, (FULL, replace(ATTEMPT, id="1" * 32))
)


def numbered(number: int, outcome: Outcome = Outcome.NOT_BILLED, **changes: Any) -> Attempt:
    return replace(ATTEMPT, id=f"{number:032x}", outcome=outcome, **changes)


def test_json_round_trip() -> None:
    assert Receipt.from_json(RECEIPT.to_json()) == RECEIPT


def test_document_summarizes_the_latest_attempt() -> None:
    document = json.loads(replace(RECEIPT, attempts=(replace(FULL, outcome=Outcome.COMPLETE),)).to_json())
    assert (document["version"], document["state"], document["run_id"]) == (2, "complete", "monday")
    assert document["images"][0]["uri"] == "s3://posters/fox.png"
    assert document["request"] == {"prompt": "a fox"}


@pytest.mark.parametrize("version", [1, 2])
def test_known_versions_are_readable(version: int) -> None:
    document = {**json.loads(RECEIPT.to_json()), "version": version}
    assert Receipt.from_json(json.dumps(document).encode()) == RECEIPT


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"[]", b"null", b"\xff", b"<html>", b'{"version": 3}', b"[" * 5000,
     b'{"version": 2, "attempts": {}, "request": {}}', b'{"version": 2, "attempts": [], "request": 3}',
     b'{"version": 2, "attempts": [1], "request": {}, "bucket": "", "key": "", "host": ""}'],
)  # fmt: skip
def test_unreadable_receipt_is_never_an_empty_one(data: bytes) -> None:
    with pytest.raises(ReceiptUnreadable):
        Receipt.from_json(data)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_receipt_or_unreadable(data: bytes) -> None:
    with pytest.raises(ReceiptUnreadable):
        Receipt.from_json(data)


def test_attempt_replaces_attempt_with_the_same_id() -> None:
    changed = RECEIPT.with_attempt(replace(FULL, note="news"))
    assert [attempt.note for attempt in changed.attempts] == ["news", None]


def test_unbilled_attempts_do_not_accumulate() -> None:
    receipt = RECEIPT
    for number in range(100, 100 + 3 * MAX_UNBILLED):
        receipt = receipt.with_attempt(numbered(number))
    kept = [int(attempt.id, 16) for attempt in receipt.attempts[2:]]
    assert receipt.attempts[:2] == RECEIPT.attempts
    assert kept == list(range(100 + 2 * MAX_UNBILLED, 100 + 3 * MAX_UNBILLED))


@pytest.mark.parametrize("outcome", [item for item in Outcome if item is not Outcome.NOT_BILLED])
def test_attempts_that_may_cost_are_never_removed(outcome: Outcome) -> None:
    receipt = Receipt("b", "k")
    for number in range(50):
        receipt = receipt.with_attempt(numbered(number, outcome))
    assert len(receipt.attempts) == 50


def test_statement_of_a_user_is_never_removed() -> None:
    receipt = Receipt("b", "k").with_attempt(numbered(0, resolution={"by": "me"}))
    for number in range(1, 50):
        receipt = receipt.with_attempt(numbered(number))
    assert receipt.attempts[0].resolution == {"by": "me"}


def test_usage_counts_the_task_over_all_tries_but_no_refunds() -> None:
    usage = {
        "input_tokens": 1,
        "output_tokens": 2,
        "total_tokens": 3,
        "input_tokens_details": {"text_tokens": 1},
    }
    receipt = Receipt(
        "b",
        "k",
        attempts=(
            numbered(1, Outcome.BILLED, usage=usage),
            numbered(2, Outcome.COMPLETE, usage=usage, owner=replace(ME, try_number=2, ti_id="ti-2")),
            numbered(3, Outcome.COMPLETE, usage=usage, owner=replace(ME, run_id="tuesday")),
            numbered(4, Outcome.NOT_BILLED, usage=usage),
            numbered(5, Outcome.UNKNOWN),
        ),
    )
    assert receipt.usage_of(ME) == {
        "input_tokens": 2, "output_tokens": 4, "total_tokens": 6, "input_tokens_details": {"text_tokens": 2},
    }  # fmt: skip


def test_missing_usage_lists_attempts_to_look_up() -> None:
    attempts = (
        numbered(1, Outcome.COMPLETE, request_id="R1"),
        numbered(2, Outcome.UNKNOWN, request_id="R2"),
        numbered(3, Outcome.UNKNOWN),
        numbered(4, Outcome.OPEN, request_id="R4"),
        numbered(5, Outcome.NOT_BILLED, request_id="R5"),
        numbered(6, Outcome.COMPLETE, request_id="R6", usage={"total_tokens": 1}),
        numbered(7, Outcome.COMPLETE, request_id="R7", owner=replace(ME, run_id="tuesday")),
    )
    found = replace(RECEIPT, attempts=attempts).missing_usage(ME)
    assert [attempt.request_id for attempt in found] == ["R1", "R2"]


@pytest.mark.parametrize(
    "odd",
    [None, {}, {"total_tokens": "5"}, {"total_tokens": True}, {"total_tokens": {}}, {"total_tokens": -1}],
)
def test_odd_usage_adds_nothing(odd: Any) -> None:
    total = total_usage((odd, {"total_tokens": 2}))
    assert total["total_tokens"] == 2


DETAILED = {"total_tokens": 3, "input_tokens_details": {"text_tokens": 2, "image_tokens": 1}}


@pytest.mark.parametrize(
    ("other", "details"),
    [
        (DETAILED, {"text_tokens": 4, "image_tokens": 2}),
        ({"total_tokens": 0}, {"text_tokens": 2, "image_tokens": 1}),
        ({"total_tokens": 9}, None),
        ({"total_tokens": 9, "input_tokens_details": []}, None),
        ({"total_tokens": 9, "input_tokens_details": {"text_tokens": 9}}, {"text_tokens": 11}),
    ],
)
def test_details_are_added_up_only_if_all_tokens_have_them(other: Any, details: Any) -> None:
    for usages in ((DETAILED, other), (other, DETAILED)):
        assert total_usage(usages).get("input_tokens_details") == details
        step_by_step = total_usage((total_usage(usages), {"total_tokens": 0}))
        assert step_by_step.get("input_tokens_details") == details
    assert "input_tokens_details" not in total_usage((DETAILED, {"total_tokens": 9}, DETAILED))
