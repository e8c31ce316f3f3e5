"""Receipts in S3: one of several writers may pay, and no writer erases what another one recorded."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from msgspec.structs import replace

from airflow_provider_jojokey.exceptions import JojoKeyReceiptError, JojoKeyStoreError
from airflow_provider_jojokey.payments import clock, receipt_store
from airflow_provider_jojokey.payments.attempt import Attempt, Event, Outcome
from airflow_provider_jojokey.payments.receipt import Receipt
from airflow_provider_jojokey.payments.receipt_store import MAX_CONFLICTS, ReceiptStore
from airflow_provider_jojokey.sandbox import S3Server
from airflow_provider_jojokey.store import conditions
from airflow_provider_jojokey.store.keys import Destination
from tests.support.buckets import BUCKET, Bucket, bucket_of
from tests.support.clients import client_to, store_in, store_of
from tests.support.examples import attempt
from tests.support.fault_proxy import Fault, FaultProxy, answer, error, lose_response, on, times

_numbers = itertools.count()


class Pauses:
    """Replaces :func:`clock.pause`: notes each pause, and lets a test act in it."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.during: Callable[[], object] = lambda: None

    def __call__(self, seconds: float, stopping: Any = None) -> bool:
        self.seconds.append(seconds)
        self.during()
        return False


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> Pauses:
    pauses = Pauses()
    monkeypatch.setattr(clock, "pause", pauses)
    monkeypatch.setattr(conditions, "support", {})  # as in a new process
    return pauses


@pytest.fixture(scope="module")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    with S3Server(tmp_path_factory.mktemp("rclone") / "objects") as server:
        yield bucket_of(server)


@pytest.fixture(params=["moto", "rclone"])
def bucket(request: pytest.FixtureRequest) -> Bucket:
    return request.getfixturevalue(request.param)  # type: ignore[no-any-return]


@pytest.fixture
def place() -> Destination:
    return Destination(BUCKET, f"{next(_numbers)}/fox.png")


def receipts_in(bucket: Bucket, place: Destination) -> ReceiptStore:
    return ReceiptStore(store_in(bucket), place)


def claim(receipts: ReceiptStore, claimed: Attempt) -> bool:
    receipts.read()
    return receipts.claim(claimed, "https://host", {"prompt": "a fox"})


def stored(bucket: Bucket, place: Destination) -> Receipt:
    answer = bucket.client().get_object(Bucket=BUCKET, Key=place.receipt_key)
    return Receipt.from_json(answer["Body"].read())


def overwrite(bucket: Bucket, place: Destination, *attempts: Attempt) -> None:
    body = Receipt(BUCKET, place.key, attempts=attempts).to_json()
    bucket.client().put_object(Bucket=BUCKET, Key=place.receipt_key, Body=body)


MINE, THEIRS = attempt(id="1" * 32), attempt(id="2" * 32)


def test_claim_is_read_by_others(bucket: Bucket, place: Destination, pauses: Pauses) -> None:
    assert claim(receipts_in(bucket, place), MINE)
    receipt = receipts_in(bucket, place).read()
    assert receipt.attempts == (MINE,)
    assert (receipt.host, receipt.request) == ("https://host", {"prompt": "a fox"})


def test_only_stores_without_conditions_wait_after_claim(
    bucket: Bucket, place: Destination, pauses: Pauses
) -> None:
    assert claim(receipts_in(bucket, place), MINE)
    assert pauses.seconds == ([] if bucket.honours else [receipt_store.CLAIM_RECHECK])


def test_overwritten_claim_may_not_pay(rclone: Bucket, place: Destination, pauses: Pauses) -> None:
    pauses.during = lambda: overwrite(rclone, place, THEIRS)  # a slower writer that had read before
    assert not claim(receipts_in(rclone, place), MINE)


def test_claim_rereads_on_a_store_known_to_lack_conditions(
    rclone: Bucket, place: Destination, pauses: Pauses
) -> None:
    assert claim(receipts_in(rclone, Destination(BUCKET, f"{place.key}-known")), MINE)
    receipts = receipts_in(rclone, place)
    receipts.read()
    overwrite(rclone, place, THEIRS)
    assert not receipts.claim(MINE, "", {})
    assert stored(rclone, place).attempts == (THEIRS,)


def test_first_of_two_claims_wins(moto: Bucket, place: Destination, pauses: Pauses) -> None:
    first, second = receipts_in(moto, place), receipts_in(moto, place)
    first.read(), second.read()
    assert first.claim(MINE, "", {})
    assert not second.claim(THEIRS, "", {})
    assert stored(moto, place).attempts == (MINE,)


def test_claim_on_assumed_absence_fails_if_there_is_a_receipt(
    moto: Bucket, place: Destination, pauses: Pauses
) -> None:
    assert claim(receipts_in(moto, place), THEIRS)
    receipts = receipts_in(moto, place)
    assert receipts.assume_absent() == Receipt(BUCKET, place.key)
    assert not receipts.claim(MINE, "", {})
    assert receipts.last.attempts == (THEIRS,)


def test_claim_with_lost_response_is_recognized(moto: Bucket, place: Destination, pauses: Pauses) -> None:
    with FaultProxy(moto.endpoint_url, on("PUT", "", times(1, lose_response))) as proxy:
        store = store_of(client_to(proxy.url, retries={"total_max_attempts": 2}))
        assert claim(ReceiptStore(store, place), MINE)
    assert stored(moto, place).attempts == (MINE,)


def test_update_records_the_event(bucket: Bucket, place: Destination, pauses: Pauses) -> None:
    receipts = receipts_in(bucket, place)
    claim(receipts, MINE)
    receipt = receipts.update(MINE, Event.PROVEN_BILLED, usage={"total_tokens": 3})
    assert receipt.attempts == (
        replace(MINE, outcome=Outcome.BILLED, billed="yes", usage={"total_tokens": 3}),
    )
    assert stored(bucket, place) == receipt


def test_update_keeps_attempts_of_other_writers(bucket: Bucket, place: Destination, pauses: Pauses) -> None:
    receipts = receipts_in(bucket, place)
    claim(receipts, MINE)
    claim(receipts_in(bucket, place), THEIRS)
    receipts.update(MINE, Event.LOST)
    assert [str(found.outcome) for found in stored(bucket, place).attempts] == ["unknown", "open"]


def test_lost_update_is_detected_and_repeated(rclone: Bucket, place: Destination, pauses: Pauses) -> None:
    receipts = receipts_in(rclone, place)
    claim(receipts, MINE)
    overwritten: list[int] = []
    write = receipts._store.write

    def write_and_lose(*values: Any, **more: Any) -> str | None:
        etag = write(*values, **more)
        if not overwritten:
            overwritten.append(1)
            overwrite(rclone, place, MINE, THEIRS)
        return etag

    receipts._store.write = write_and_lose  # type: ignore[method-assign]
    receipts.update(MINE, Event.PROVEN_BILLED)
    assert [str(found.outcome) for found in stored(rclone, place).attempts] == ["billed", "open"]


def test_update_of_a_changed_attempt_is_dropped(bucket: Bucket, place: Destination, pauses: Pauses) -> None:
    receipts, others = receipts_in(bucket, place), receipts_in(bucket, place)
    claim(receipts, MINE)
    others.read()
    receipts.update(MINE, Event.PROVEN_BILLED)
    receipt = others.update(MINE, Event.DETAIL, expected=MINE, note="late")
    assert [found.note for found in receipt.attempts] == [None]


def test_update_never_replaces_better_evidence(bucket: Bucket, place: Destination, pauses: Pauses) -> None:
    receipts = receipts_in(bucket, place)
    claim(receipts, MINE)
    receipts.update(MINE, Event.STORED)
    assert receipts.update(MINE, Event.LOST).attempts[0].outcome is Outcome.COMPLETE
    assert stored(bucket, place).attempts[0].outcome is Outcome.COMPLETE


def test_deleted_receipt_is_written_again(bucket: Bucket, place: Destination, pauses: Pauses) -> None:
    receipts = receipts_in(bucket, place)
    claim(receipts, MINE)
    bucket.client().delete_object(Bucket=BUCKET, Key=place.receipt_key)
    receipts.update(MINE, Event.STORED)
    assert [str(found.outcome) for found in stored(bucket, place).attempts] == ["complete"]


def test_contradictory_store_ends_with_an_error(moto: Bucket, place: Destination, pauses: Pauses) -> None:
    # Every PUT gets a 412, and every GET a NoSuchKey.
    refuse: Fault = on("PUT", "", answer(error(412, "PreconditionFailed")))
    with FaultProxy(moto.endpoint_url, refuse) as proxy:
        receipts = ReceiptStore(store_of(client_to(proxy.url)), place)
        assert not claim(receipts, MINE)
        with pytest.raises(JojoKeyStoreError, match=r"airflow jojokey check") as caught:
            receipts.update(MINE, Event.LOST)
    assert caught.value.transient
    assert len(pauses.seconds) == MAX_CONFLICTS
    assert max(pauses.seconds) > 0


@pytest.mark.parametrize("body", [b"", b"{}", b"<html>", b'{"version": 3}', b"\x89PNG"])
def test_unreadable_receipt_is_never_empty(
    bucket: Bucket, place: Destination, pauses: Pauses, body: bytes
) -> None:
    receipts = receipts_in(bucket, place)
    claim(receipts, MINE)
    bucket.client().put_object(Bucket=BUCKET, Key=place.receipt_key, Body=body)
    with pytest.raises(JojoKeyReceiptError, match=r"Nothing was sent or billed") as caught:
        receipts_in(bucket, place).read()
    assert receipts.uri in caught.value.message
    with pytest.raises(JojoKeyReceiptError):
        receipts.update(MINE, Event.STORED)
    assert not receipts.is_known
    assert bucket.client().get_object(Bucket=BUCKET, Key=place.receipt_key)["Body"].read() == body
