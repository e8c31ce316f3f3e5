"""``jojokey attempts`` and ``jojokey resolve``: show a receipt, and record a statement in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from airflow_provider_jojokey.cli import receipts
from airflow_provider_jojokey.cli.console import OutputFailed
from airflow_provider_jojokey.payments.attempt import Attempt, Outcome
from airflow_provider_jojokey.payments.receipt import Receipt
from airflow_provider_jojokey.sandbox import Gateway
from tests.support.buckets import Bucket
from tests.support.commands import CommandOutput, Run

URI = "s3://posters/fox.png"
LOST = "a fox [sandbox: reset times=1]"


@pytest.fixture
def lost(jojokey: Run, gateway: Gateway, bucket: Bucket) -> CommandOutput:
    """A request whose response was lost, so its outcome is unknown."""
    return jojokey("generate", LOST, "--out", URI)


def receipt(bucket: Bucket, key: str = "fox.png") -> Receipt:
    answer = bucket.client().get_object(Bucket=bucket.name, Key=f"_jojokey/{key}.json")
    return Receipt.from_json(answer["Body"].read())


def write(bucket: Bucket, changed: Receipt) -> None:
    key = f"_jojokey/{changed.key}.json"
    bucket.client().put_object(Bucket=bucket.name, Key=key, Body=changed.to_json())


def test_attempts_shows_evidence_for_each_attempt(jojokey: Run, lost: CommandOutput) -> None:
    (row,) = jojokey("attempts", URI, "-o", "json").rows

    assert (row["outcome"], row["billed"], row["sends"]) == ("unknown", "unknown", 1)
    assert "gateway log" in row["evidence"]


@pytest.mark.parametrize("uri", [URI, "s3://posters/_jojokey/fox.png.json"])
def test_attempts_accepts_image_and_receipt_uri(jojokey: Run, lost: CommandOutput, uri: str) -> None:
    assert len(jojokey("attempts", uri, "-o", "json").rows) == 1


def test_attempts_lists_images_and_table_is_readable(jojokey: Run, bucket: Bucket, gateway: Gateway) -> None:
    jojokey("generate", "a fox", "--out", URI)

    output = jojokey("attempts", URI)

    assert "complete" in output.out
    assert f"image: {URI}" in output.err


def test_attempts_of_missing_receipt_fails(jojokey: Run, bucket: Bucket) -> None:
    output = jojokey("attempts", "s3://posters/nothing.png")
    assert (output.code, output.out) == (1, "")
    assert "doesn't exist" in output.err


def test_not_billed_statement_lets_the_image_be_paid(
    jojokey: Run, lost: CommandOutput, gateway: Gateway, bucket: Bucket
) -> None:
    again = jojokey("generate", LOST, "--out", URI)
    assert again.code == 4
    assert len(gateway.requests) == 1

    output = jojokey("resolve", URI, "--not-billed", "--note", "ticket 12")
    made = jojokey("generate", LOST, "--out", URI)

    assert output.code == 0
    assert made.code == 0
    assert len(gateway.requests) == 2
    first, second = receipt(bucket).attempts
    assert (first.outcome, second.outcome) == (Outcome.NOT_BILLED, Outcome.COMPLETE)
    assert first.resolution is not None
    assert (first.resolution["billed"], first.resolution["note"]) == ("no", "ticket 12")
    assert first.resolution["by"]
    assert first.resolution["at"]


def test_statement_that_cannot_be_printed_is_recorded(
    jojokey: Run, lost: CommandOutput, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*_: Any) -> None:
        raise OutputFailed("The result can't be written to standard output: No space left on device.")

    with monkeypatch.context() as patch:
        patch.setattr(receipts, "show", full_disk)
        output = jojokey("resolve", URI, "--not-billed")

    assert output.code == 0
    assert "It was recorded. The result can't be written" in output.err
    assert jojokey("attempts", URI, "--output", "json").rows[0]["outcome"] == "not_billed"


def test_billed_statement_keeps_the_image_unpaid(jojokey: Run, lost: CommandOutput, gateway: Gateway) -> None:
    assert jojokey("resolve", URI, "--billed").code == 0

    again = jojokey("generate", LOST, "--out", URI)

    assert again.code == 4
    assert "a person recorded that it was billed" in again.err
    assert len(gateway.requests) == 1


def test_request_id_adds_usage_from_gateway_log(
    jojokey: Run, lost: CommandOutput, gateway: Gateway, bucket: Bucket
) -> None:
    (record,) = gateway.charges
    jojokey("resolve", URI, "--billed", "--request-id", record.request_id)

    jojokey("generate", LOST, "--out", URI)

    (attempt,) = receipt(bucket).attempts
    assert attempt.usage is not None
    assert attempt.usage["total_tokens"] == record.total_tokens


@pytest.mark.parametrize("statement", ["--billed", "--not-billed"])
@pytest.mark.parametrize("attempt", ["first", "second"])
def test_request_id_of_another_request_is_rejected(
    jojokey: Run, gateway: Gateway, bucket: Bucket, statement: str, attempt: str
) -> None:
    """Otherwise the tokens of one request would count twice."""
    jojokey("generate", "a fox [sandbox: truncated_mid_image times=1]", "--out", URI)
    known = receipt(bucket)
    (named,) = known.attempts
    lost = replace(named, id="f" * 32, request_id=None, usage=None, outcome=Outcome.UNKNOWN, billed="unknown")
    write(bucket, known.with_attempt(lost))
    before = receipt(bucket)
    attempt_id, request_id = (named.id, "another") if attempt == "first" else (lost.id, named.request_id)

    output = jojokey("resolve", URI, statement, "--attempt", attempt_id, "--request-id", str(request_id))

    assert output.code == 2
    assert (
        f"request ID {named.request_id}" in output.err
        or f"request ID of attempt {named.id[:12]}" in output.err
    )
    assert "Nothing was recorded" in output.err
    assert receipt(bucket) == before


def test_corrected_request_id_corrects_the_tokens(
    jojokey: Run, lost: CommandOutput, gateway: Gateway, bucket: Bucket
) -> None:
    (own,) = gateway.charges
    jojokey("generate", "a large owl", "--quality", "high", "--out", "s3://posters/owl.png")
    other = gateway.charges[1]
    assert other.total_tokens != own.total_tokens
    chosen = ("--attempt", receipt(bucket).attempts[0].id)
    for record in (other, own):
        assert jojokey("resolve", URI, "--billed", *chosen, "--request-id", record.request_id).code == 0
        jojokey("generate", LOST, "--out", URI)  # reads the log

        (attempt,) = receipt(bucket).attempts
        assert (attempt.usage or {})["total_tokens"] == record.total_tokens
        assert attempt.request_id == record.request_id
    rows = jojokey("ledger", "--bucket", bucket.name, "-o", "json").rows
    assert sum(row["total_tokens"] for row in rows) == own.total_tokens + other.total_tokens


@pytest.mark.parametrize("statement", ["--billed", "--not-billed"])
def test_resolve_accepts_an_ended_attempt_of_another_host(
    jojokey: Run, lost: CommandOutput, bucket: Bucket, statement: str
) -> None:
    """The receipt shows that it has ended, so its lease doesn't matter."""
    known = receipt(bucket)
    (attempt,) = known.attempts
    elsewhere = replace(attempt.worker, identity="another host")
    write(bucket, known.with_attempt(replace(attempt, worker=elsewhere)))

    assert jojokey("resolve", URI, statement).code == 0


@pytest.mark.parametrize("case", ["not_an_image", "truncated_mid_image"])
def test_statement_that_is_revised_restores_the_cost(
    jojokey: Run, gateway: Gateway, bucket: Bucket, case: str
) -> None:
    jojokey("generate", f"a fox [sandbox: {case} times=1]", "--out", URI)
    (paid,) = jojokey("attempts", URI, "-o", "json").rows
    assert paid["tokens"] == gateway.charges[0].total_tokens
    chosen = ("--attempt", paid["attempt"], "-o", "json")

    (refunded,) = jojokey("resolve", URI, "--not-billed", *chosen).rows
    ledger = jojokey("ledger", "--bucket", bucket.name, "-o", "json").rows
    (billed,) = jojokey("resolve", URI, "--billed", *chosen).rows

    assert (refunded["billed"], refunded["tokens"], refunded["cost"]) == ("no", None, None)
    assert refunded["resolution"]["replaces"]["usage"]["total_tokens"] == paid["tokens"]
    assert ledger == []
    assert (billed["billed"], billed["tokens"], billed["cost"]) == ("yes", paid["tokens"], paid["cost"])


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("s3://posters/fox.png",), 2, "either --billed or --not-billed"),
        (("s3://posters/fox.png", "--billed", "--not-billed"), 2, "either --billed or --not-billed"),
        (("fox.png", "--billed"), 2, "bucket"),
        (("s3://posters/", "--billed"), 2, "s3_key"),
        (("s3://posters/nothing.png", "--billed"), 2, "0 attempts"),
        (("s3://posters/fox.png", "--billed", "--attempt", "zz"), 2, "0 attempts"),
    ],
)
def test_resolve_rejects_unclear_statements(
    jojokey: Run, lost: CommandOutput, bucket: Bucket, arguments: tuple[str, ...], code: int, words: str
) -> None:
    before = receipt(bucket)

    output = jojokey("resolve", *arguments)

    assert output.code == code
    assert words in output.err
    assert receipt(bucket) == before


def test_resolve_asks_which_of_several_attempts(jojokey: Run, lost: CommandOutput, bucket: Bucket) -> None:
    known = receipt(bucket)
    other = replace(known.attempts[0], id="f" * 32)
    write(bucket, known.with_attempt(other))

    assert jojokey("resolve", URI, "--billed").code == 2
    assert jojokey("resolve", URI, "--billed", "--attempt", "fff").code == 0

    assert [attempt.outcome for attempt in receipt(bucket).attempts] == [Outcome.UNKNOWN, Outcome.BILLED]


@pytest.mark.parametrize(
    "change",
    [
        lambda attempt: replace(attempt, outcome=Outcome.COMPLETE),
        lambda attempt: replace(
            attempt, outcome=Outcome.OPEN, lease_until=attempt.started_at.replace(year=2999),
            worker=replace(attempt.worker, identity="another host"),
        ),
    ],
    ids=["complete", "in flight elsewhere"],
)  # fmt: skip
def test_resolve_does_not_contradict_better_evidence(
    jojokey: Run, lost: CommandOutput, bucket: Bucket, change: Callable[[Attempt], Any]
) -> None:
    known = receipt(bucket)
    write(bucket, known.with_attempt(change(known.attempts[0])))

    output = jojokey("resolve", URI, "--not-billed", "--attempt", known.attempts[0].id)

    assert output.code == 1
    assert receipt(bucket).attempts[0].resolution is None
