"""Attempts: which events change them, and how they travel through JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from airflow_provider_jojokey.payments.attempt import (
    Attempt,
    Event,
    IllegalTransition,
    Outcome,
    Owner,
    Worker,
)
from airflow_provider_jojokey.results import StoredImage

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
ME = Owner("spring", "monday", "hero", ti_id="ti-1")
ATTEMPT = Attempt("0" * 32, "fox", ME, Worker("host", 1, 0.5, "spool", "identity"), NOON, NOON)

BILLED, UNBILLED = ("billed", "yes"), ("not_billed", "no")
STORED, LOST = ("complete", "yes"), ("unknown", "unknown")
ILLEGAL = None
TABLE = {
    #                    open      unknown   not_billed  billed    complete
    "stored":           (STORED,   STORED,   STORED,     STORED,   ILLEGAL),
    "proven_billed":    (BILLED,   BILLED,   BILLED,     BILLED,   ILLEGAL),
    "proven_unbilled":  (UNBILLED, UNBILLED, ILLEGAL,    ILLEGAL,  ILLEGAL),
    "lost":             (LOST,     LOST,     ILLEGAL,    ILLEGAL,  ILLEGAL),
    "stated_billed":    (BILLED,   BILLED,   BILLED,     BILLED,   ILLEGAL),
    "stated_unbilled":  (UNBILLED, UNBILLED, ILLEGAL,    UNBILLED, ILLEGAL),
}  # fmt: skip
OUTCOMES = ("open", "unknown", "not_billed", "billed", "complete")
ROWS = [
    (event, outcome, after)
    for event, row in TABLE.items()
    for outcome, after in zip(OUTCOMES, row, strict=True)
]


def test_table_covers_all_events_and_outcomes() -> None:
    assert {*TABLE, "detail"} == {event.value for event in Event}
    assert set(OUTCOMES) == {outcome.value for outcome in Outcome}


@pytest.mark.parametrize(("event", "outcome", "after"), ROWS)
def test_transition(event: str, outcome: str, after: tuple[str, str] | None) -> None:
    attempt = replace(ATTEMPT, outcome=Outcome(outcome), billed="before")

    if after is None:
        with pytest.raises(IllegalTransition, match=f"{event} after {outcome}"):
            attempt.after(Event(event), note="news")
    else:
        changed = attempt.after(Event(event), note="news")
        assert (changed.outcome, changed.billed, changed.note) == (*after, "news")


@pytest.mark.parametrize("outcome", Outcome)
def test_detail_changes_no_outcome(outcome: Outcome) -> None:
    attempt = replace(ATTEMPT, outcome=outcome, billed="before")
    assert attempt.after(Event.DETAIL, usage={"total_tokens": 5}) == replace(
        attempt, usage={"total_tokens": 5}
    )


@pytest.mark.parametrize("outcome", Outcome)
def test_only_proven_unbilled_attempts_cost_nothing(outcome: Outcome) -> None:
    assert replace(ATTEMPT, outcome=outcome).may_cost is (outcome is not Outcome.NOT_BILLED)


FULL = replace(
    ATTEMPT,
    ended_at=NOON,
    outcome=Outcome.BILLED,
    billed="yes",
    usage={"total_tokens": 5},
    charge={"quota": 1},
    images=(StoredImage("posters", "fox.png", "image/png", 3, 2, 100, "0" * 64),),
    preview=StoredImage("posters", "p.png", "image/png", 3, 2, 100, "0" * 64),
    kept=("s3://posters/links",),
    sends=(NOON.isoformat(),),
    requested=2,
    hint={"request_id": "R"},
    resolution={"by": "me"},
)


@pytest.mark.parametrize("attempt", [ATTEMPT, FULL], ids=["new", "full"])
def test_json_round_trip(attempt: Attempt) -> None:
    assert Attempt.from_json(json.loads(json.dumps(attempt.to_json()))) == attempt


def test_fields_of_newer_versions_are_ignored() -> None:
    values = {**ATTEMPT.to_json(), "future": 1}
    values["owner"] = {**values["owner"], "future": 1}
    values["worker"] = {**values["worker"], "future": 1}
    assert Attempt.from_json(values) == ATTEMPT


def test_attempt_of_version_1_is_readable() -> None:
    values = {
        "id": "0" * 32,
        "fingerprint": "fox",
        "owner": {
            "dag_id": "spring",
            "run_id": "monday",
            "task_id": "hero",
            "map_index": -1,
            "try_number": 1,
        },
        "worker": {"host": "host pid:[1]", "pid": 1, "started": 0.5, "spool": "s"},
        "started_at": NOON.isoformat(),
        "lease_until": NOON.isoformat(),
        "outcome": "complete",
        "images": [{"uri": "s3://b/k", "bucket": "b", "key": "k", "bytes": 5}],
    }
    attempt = Attempt.from_json(values)
    assert (attempt.owner.ti_id, attempt.worker.identity, attempt.clock) == ("", "", "host")
    assert attempt.images[0].uri == "s3://b/k"


@pytest.mark.parametrize(
    "change",
    [
        {"outcome": "paid"},
        {"billed": "maybe"},
        {"usage": [1]},
        {"charge": 3},
        {"hint": "R"},
        {"started_at": "2026-03-01T12:00:00"},
        {"lease_until": "never"},
        {"owner": "me"},
        {"worker": None},
        {"images": [{"bucket": "b", "key": "k"}]},
        {"images": [{"bucket": "b", "key": "k", "bytes": -1}]},
        {"images": [{"bucket": "", "key": "k", "bytes": 1}]},
        {"preview": {"bucket": "b"}},
    ],
    ids=str,
)
def test_unreadable_attempt_is_an_error(change: dict[str, Any]) -> None:
    with pytest.raises((ValueError, KeyError, TypeError, AttributeError)):
        Attempt.from_json({**ATTEMPT.to_json(), **change})


@pytest.mark.parametrize(
    ("other", "task", "same_try"),
    [
        (ME, True, True),
        (replace(ME, try_number=2), True, True),  # one task instance, as in a trigger that runs twice
        (replace(ME, ti_id="ti-2"), True, False),  # dag.test() made the run again under the same names
        (replace(ME, ti_id=""), True, True),  # a receipt of version 1 has names only
        (replace(ME, ti_id="", try_number=2), True, False),
        (replace(ME, map_index=1, ti_id="ti-2"), False, False),
        (replace(ME, task_id="other", ti_id=""), False, False),
        (replace(ME, run_id="tuesday", ti_id=""), False, False),
    ],
)
def test_task_instance_id_tells_tries_apart(other: Owner, task: bool, same_try: bool) -> None:
    assert (ME.is_task_of(other), ME.is_try_of(other)) == (task, same_try)
