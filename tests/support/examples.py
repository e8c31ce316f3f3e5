"""Attempts and receipts for tests that need no S3."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from msgspec.structs import replace

from airflow_provider_jojokey.payments.attempt import Attempt, Outcome, Owner, Worker
from airflow_provider_jojokey.payments.receipt import Receipt
from airflow_provider_jojokey.results import StoredImage

NOON = datetime(2026, 7, 30, 12, tzinfo=UTC)
ME = Owner("posters", "monday", "hero", -1, 2, "ti-2")
IMAGE = StoredImage("posters", "fox.png", "image/png", 96, 64, 5, "0" * 64)
BILLED = {Outcome.COMPLETE: "yes", Outcome.BILLED: "yes", Outcome.NOT_BILLED: "no"}


def attempt(outcome: str = "open", owner: Owner = ME, fingerprint: str = "fox", **more: Any) -> Attempt:
    state = Outcome(outcome)
    values: dict[str, Any] = {"id": "a" * 32, "billed": BILLED.get(state, "unknown")}
    return Attempt(
        fingerprint=fingerprint,
        owner=owner,
        worker=Worker("here", 7, 1.5, "spool", "machine"),
        started_at=NOON,
        lease_until=NOON + timedelta(minutes=10),
        outcome=state,
        **values | more,
    )


def receipt(*attempts: Attempt) -> Receipt:
    return Receipt("posters", "fox.png", attempts=attempts)


def try_of(owner: Owner, number: int) -> Owner:
    return replace(owner, try_number=number, ti_id=f"ti-{number}")


OWNER = Owner("spring", "monday", "hero", ti_id="ti-1")
ATTEMPT = Attempt("0" * 32, "fox", OWNER, Worker("host", 1, 0.5, "spool", "identity"), NOON, NOON)
FULL = replace(
    ATTEMPT,
    ended_at=NOON,
    outcome=Outcome.BILLED,
    billed="yes",
    usage={"total_tokens": 5},
    charge={"quota": 1},
    images=(IMAGE,),
    preview=IMAGE,
    kept=("s3://posters/links",),
    sends=(NOON.isoformat(),),
    requested=2,
    hint={"request_id": "R"},
    resolution={"by": "me"},
)
