"""The transition table, the identity of owners, and the JSON of an attempt."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from airflow_provider_jojokey.cost import PUBLISHED, Cost
from airflow_provider_jojokey.payments.attempt import (
    TRANSITIONS,
    Attempt,
    Event,
    IllegalTransition,
    Outcome,
    Owner,
    Worker,
)
from airflow_provider_jojokey.results import StoredImage
from tests.support.examples import IMAGE, ME, NOON, attempt

# --- the table -------------------------------------------------------------------------------------------------------

EVENTS = (
    Event.STORED,
    Event.PROVEN_BILLED,
    Event.PROVEN_UNBILLED,
    Event.LOST,
    Event.STATED_BILLED,
    Event.STATED_UNBILLED,
    Event.DETAIL,
)
# For each outcome, the outcome after each of these events; "-" where the event is illegal.
TABLE = {
    "open": ("complete", "billed", "not_billed", "unknown", "billed", "not_billed", "open"),
    "unknown": ("complete", "billed", "not_billed", "unknown", "billed", "not_billed", "unknown"),
    "not_billed": ("complete", "billed", "-", "-", "billed", "-", "not_billed"),
    "billed": ("complete", "billed", "-", "-", "billed", "not_billed", "billed"),
    "complete": ("-", "-", "-", "-", "-", "-", "complete"),
}
ROWS = [
    (outcome, event, after)
    for outcome, row in TABLE.items()
    for event, after in zip(EVENTS, row, strict=True)
]
CHARGE = {"complete": "yes", "billed": "yes", "not_billed": "no", "unknown": "unknown", "open": "unknown"}


def test_table_covers_all_outcomes_and_events() -> None:
    assert set(TABLE) == set(Outcome) == set(TRANSITIONS)
    assert set(EVENTS) == set(Event)


@pytest.mark.parametrize(("outcome", "event", "after"), ROWS)
def test_event_leads_to_outcome_or_is_illegal(outcome: str, event: Event, after: str) -> None:
    before = attempt(outcome)
    if after == "-":
        with pytest.raises(IllegalTransition, match=f"{event} after {outcome}"):
            before.after(event, note="new")
        return
    changed = before.after(event, note="new")
    assert (changed.outcome, changed.billed, changed.note) == (after, CHARGE[after], "new")
    assert replace(changed, outcome=before.outcome, billed=before.billed, note=None) == before


@pytest.mark.parametrize("event", [event for event in Event if event is not Event.DETAIL])
def test_facts_cannot_override_the_outcome_of_an_event(event: Event) -> None:
    changed = attempt().after(event, outcome=Outcome.OPEN, billed="maybe")
    assert changed == attempt().after(event)


def test_only_proof_of_no_charge_makes_an_attempt_free() -> None:
    assert [outcome for outcome in Outcome if not attempt(outcome).may_cost] == [Outcome.NOT_BILLED]


BILLING = [event for event in Event if event in (Event.STORED, Event.PROVEN_BILLED, Event.STATED_BILLED)]
USAGE = {"input_tokens": 10, "output_tokens": 200, "total_tokens": 210}
COST = Cost(6_050_000, "USD")


REVISED = [(outcome, event) for outcome in ("open", "unknown", "billed") for event in BILLING]
REVISED.remove(("billed", Event.STORED))  # an image says nothing about a refund


@pytest.mark.parametrize(("outcome", "event"), REVISED)
@pytest.mark.parametrize("facts", [{}, {"usage": None}, {"resolution": {"billed": "yes"}}], ids=str)
def test_usage_survives_a_statement_that_is_revised(
    outcome: str, event: Event, facts: dict[str, Any]
) -> None:
    known = attempt(outcome, usage=USAGE, cost=COST)

    free = known.after(Event.STATED_UNBILLED, resolution={"billed": "no"}).priced(None, known)
    free = Attempt.from_json(json.loads(json.dumps(free.to_json())))
    again = free.after(event, **facts).priced(None, free)

    assert (free.billed, free.usage, free.cost) == ("no", None, None)
    assert (again.billed, again.usage, again.cost) == ("yes", USAGE, COST)
    newer = {"total_tokens": 7}
    assert free.after(event, usage=newer).usage == newer


def test_stored_images_of_a_refunded_attempt_are_free() -> None:
    known = attempt("billed", usage=USAGE, cost=COST)
    refunded = known.after(Event.STATED_UNBILLED, resolution={"billed": "no"}).priced(None, known)

    stored = refunded.after(Event.STORED, usage=USAGE).priced(PUBLISHED, refunded)
    stored = Attempt.from_json(json.loads(json.dumps(stored.to_json())))

    assert (stored.outcome, stored.billed, stored.usage, stored.cost) == (Outcome.COMPLETE, "no", None, None)
    assert not stored.may_cost
    assert stored.after(Event.DETAIL, charge={"quota": 7}).priced(PUBLISHED, stored).cost is None


@pytest.mark.parametrize(
    "replaces", [None, 7, [], {}, {"usage": None}, {"usage": USAGE, "cost": {"amount": 7}}]
)
def test_damaged_statement_is_no_error(replaces: Any) -> None:
    stated = attempt("not_billed", resolution={"billed": "no", "replaces": replaces})
    changed = stated.after(Event.STORED)
    assert changed.outcome is Outcome.COMPLETE
    assert changed.cost is None
    assert not stated.is_refunded


# --- owners ----------------------------------------------------------------------------------------------------------

OWNERS = [
    # another owner, and whether it is the same run, task and try
    (ME, True, True, True),
    (replace(ME, try_number=3), True, True, True),  # a deferred task instance keeps its ID
    (replace(ME, ti_id="ti-1"), True, True, False),  # dag.test() creates a run again, with the same names
    (replace(ME, ti_id=""), True, True, True),  # a receipt of version 1
    (replace(ME, ti_id="", try_number=1), True, True, False),
    (replace(ME, map_index=3, ti_id=""), True, False, False),
    (replace(ME, task_id="footer", ti_id=""), True, False, False),
    (replace(ME, run_id="sunday", ti_id=""), False, False, False),
    (replace(ME, dag_id="banners", ti_id=""), False, False, False),
]


@pytest.mark.parametrize(("other", "run", "task", "same_try"), OWNERS)
def test_owners_share_run_task_and_try(other: Owner, run: bool, task: bool, same_try: bool) -> None:
    for first, second in ((ME, other), (other, ME)):
        assert first.is_run_of(second) is run
        assert first.is_task_of(second) is task
        assert first.is_try_of(second) is same_try


def test_owners_without_task_id_are_compared_by_name() -> None:
    old = replace(ME, ti_id="")
    assert old.is_try_of(old)
    assert not old.is_try_of(replace(old, try_number=1))


# --- JSON ------------------------------------------------------------------------------------------------------------

TEXT = st.text(max_size=20)
TIMES = st.datetimes(
    min_value=datetime(2020, 1, 1),
    max_value=datetime(2100, 1, 1),
    timezones=st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30)), timezone(-timedelta(hours=8))]),
)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.none() | st.dictionaries(TEXT, JSON_VALUES, max_size=4)
IMAGES = st.builds(
    StoredImage, st.text(min_size=1, max_size=9), st.text(min_size=1, max_size=9), TEXT, *[st.integers(0)] * 3
)
TEXTS = st.lists(TEXT, max_size=2).map(tuple)
SENDS = st.lists(TIMES.map(datetime.isoformat), max_size=2).map(tuple)
ATTEMPTS = st.builds(
    Attempt,
    id=st.uuids().map(lambda uuid: uuid.hex),
    fingerprint=TEXT,
    owner=st.builds(Owner, TEXT, TEXT, TEXT, st.integers(-1, 9), st.integers(1, 9), TEXT),
    worker=st.builds(Worker, TEXT, st.integers(1, 2**22), st.floats(0, 1e12), TEXT, TEXT),
    started_at=TIMES,
    lease_until=TIMES,
    clock=st.sampled_from(["s3", "host"]),
    outcome=st.sampled_from(Outcome),
    ended_at=st.none() | TIMES,
    billed=st.sampled_from(["no", "yes", "unknown"]),
    usage=OBJECTS,
    charge=OBJECTS,
    images=st.lists(IMAGES, max_size=2).map(tuple),
    preview=st.none() | IMAGES,
    kept=TEXTS,
    created=st.none() | st.integers(),
    seconds=st.none() | st.floats(0, 1e6),
    request_id=st.none() | TEXT,
    requested=st.none() | st.integers(1, 10),
    sends=SENDS,
    note=st.none() | TEXT,
    hint=OBJECTS,
    resolution=OBJECTS,
)


@given(ATTEMPTS)
def test_attempt_survives_json(written: Attempt) -> None:
    text = json.dumps(written.to_json()).encode("utf-8", "surrogatepass")
    assert Attempt.from_json(json.loads(text)) == written


def _old(**changes: Any) -> dict[str, Any]:
    """An attempt as version 1 wrote it."""
    return {
        "id": "b" * 32,
        "fingerprint": "fox",
        "owner": {
            "dag_id": "posters",
            "run_id": "monday",
            "task_id": "hero",
            "map_index": -1,
            "try_number": 1,
        },
        "worker": {"host": "here pid:[1]", "pid": 7, "started": 1.5, "spool": "spool"},
        "started_at": "2026-07-30T12:00:00+00:00",
        "lease_until": "2026-07-30T12:10:00+00:00",
        "outcome": "complete",
        "ended_at": "2026-07-30T12:01:00+00:00",
        "billed": "yes",
        "usage": {"total_tokens": 208},
        "images": [
            {
                "uri": "s3://posters/fox.png",
                "bucket": "posters",
                "key": "fox.png",
                "content_type": "image/png",
                "width": 96,
                "height": 64,
                "bytes": 5,
                "sha256": "0" * 64,
            }
        ],
        "preview": None,
        **changes,
    }


def test_version_1_attempt_is_read() -> None:
    read = Attempt.from_json(_old())
    assert read == Attempt(
        id="b" * 32,
        fingerprint="fox",
        owner=Owner("posters", "monday", "hero", -1, 1),
        worker=Worker("here pid:[1]", 7, 1.5, "spool"),
        started_at=NOON,
        lease_until=NOON + timedelta(minutes=10),
        outcome=Outcome.COMPLETE,
        ended_at=NOON + timedelta(minutes=1),
        billed="yes",
        usage={"total_tokens": 208},
        images=(IMAGE,),
    )
    # Their times come from the host's own clock, and nothing identifies their host.
    assert (read.clock, read.worker.identity, read.owner.ti_id) == ("host", "", "")
    assert (read.requested, read.sends, read.kept, read.charge) == (None, (), (), None)


@pytest.mark.parametrize("place", ["", "owner", "worker"])
def test_unknown_fields_are_ignored(place: str) -> None:
    values = attempt("billed").to_json()
    (values[place] if place else values)["mood"] = {"good": True}
    assert Attempt.from_json(values) == attempt("billed")


HOSTILE: list[tuple[str, Any]] = [
    *[(name, value) for name in ("id", "fingerprint") for value in (None, 7, [], {})],
    *[("owner", value) for value in (None, [], "posters", {}, {"dag_id": "posters"})],
    *[("owner.dag_id", value) for value in (None, 7, [])],
    *[("owner.map_index", value) for value in (None, "3", True, 1.5)],
    *[("owner.try_number", value) for value in (None, "1", [])],
    *[("owner.ti_id", value) for value in (None, 7, {})],
    *[("worker", value) for value in (None, [], {}, {"host": "here"})],
    *[("worker.pid", value) for value in (None, "7", 1.5, True, -1, 10**30)],
    *[("worker.started", value) for value in (None, "1.5", float("nan"), True)],
    *[("worker.identity", value) for value in (None, 7)],
    *[
        (name, value)
        for name in ("started_at", "lease_until")
        for value in (None, 1_785_412_800, "noon", "2026-07-30T12:00:00", "2026-07-30", [])
    ],
    *[("ended_at", value) for value in (0, "noon", "2026-07-30T12:00:00", {})],
    *[("outcome", value) for value in (None, "lost", "OPEN", [], 1)],
    *[("billed", value) for value in (None, "maybe", True, [])],
    *[(name, value) for name in ("usage", "charge", "hint", "resolution") for value in ([], "x", 7, False)],
    *[("images", value) for value in (None, 7, "x", [None], ["s3://posters/fox.png"], [{"key": "fox.png"}])],
    ("images", [{"bucket": "posters", "key": "fox.png", "bytes": "5"}]),
    *[("preview", value) for value in ("x", 7, {"key": "fox.png"}, ["x"])],
    *[("sends", value) for value in ("2026", 7, {"at": 1}, ["noon"], ["2026-07-30T12:00:00"], [None], [7])],
    *[("kept", value) for value in ("s3://posters/x", 7, [None], [{}])],
    *[(name, 7) for name in ("model", "size", "quality", "cf_ray", "code", "error", "note")],
    *[(name, value) for name in ("model", "request_id") for value in (7, [], {}, True)],
    *[("created", value) for value in ("1", 1.5, [])],
    *[("seconds", value) for value in ("1", float("nan"), -1, [], {})],
    *[("requested", value) for value in ("1", 1.5, True, [], -1)],
    *[("clock", value) for value in (None, 7, [])],
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), HOSTILE)
def test_hostile_value_is_an_error(name: str, value: Any) -> None:
    values = attempt("complete", images=(IMAGE,)).to_json()
    place, _, field = name.rpartition(".")
    (values[place] if place else values)[field] = value
    with pytest.raises((ValueError, KeyError, TypeError, AttributeError)):
        Attempt.from_json(values)


@pytest.mark.parametrize(
    "name", ["id", "fingerprint", "owner", "worker", "started_at", "lease_until", "outcome"]
)
def test_missing_field_is_an_error(name: str) -> None:
    values = attempt().to_json()
    del values[name]
    with pytest.raises((KeyError, TypeError)):
        Attempt.from_json(values)


def test_attempt_with_replaced_hostile_values_is_valid() -> None:
    written = attempt("complete", images=(IMAGE,))
    assert Attempt.from_json(written.to_json()) == written
