"""Receipts: what is decided from them, what they cost in sum, and that nothing unclear passes for nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_jojokey.store.receipts import (
    VERSION,
    Attempt,
    Outcome,
    Owner,
    Receipt,
    ReceiptUnreadable,
    Step,
    Worker,
    decide,
    total_usage,
)

NOON = datetime(2026, 7, 30, 12, tzinfo=UTC)
ME = Owner("posters", "monday", "hero", -1, 2)
WHOSE = {
    "this very try": ME,
    "an earlier try": replace(ME, try_number=1),
    "another run": replace(ME, run_id="sunday"),
    "another Dag": replace(ME, dag_id="banners"),
    "another task of the run": replace(ME, task_id="footer"),
    "another mapped task of the run": replace(ME, map_index=3),
}


def attempt(outcome: str = "open", owner: Owner = ME, fingerprint: str = "fox", **more: Any) -> Attempt:
    more.setdefault("id", "a" * 32)
    return Attempt(
        fingerprint=fingerprint,
        owner=owner,
        worker=Worker("here", 7, 1.5, "spool"),
        started_at=NOON,
        lease_until=NOON + timedelta(minutes=10),
        outcome=Outcome(outcome),
        **more,
    )


def receipt(*attempts: Attempt) -> Receipt:
    return Receipt("posters", "fox.png", attempts=attempts)


def step(*attempts: Attempt, reuse: str = "run", alive: bool = False) -> str:
    is_alive = {one.id: alive for one in attempts}
    return str(decide(receipt(*attempts), ME, "fox", reuse, is_alive).step)


# --- what to do next ---------------------------------------------------------------------------------------------

STATES = ("open, alive", "open, dead", "complete", "unknown", "billed", "not_billed")
COUNTS = ("wait", "settle", "reuse", "settle", "settle", "pay")
HIDDEN = ("pay",) * 6
FORBIDDEN = ("conflict",) * 5 + ("pay",)
# An item was taken out of the list before it: what it wants has been made under another index.
MOVED = ("conflict", *COUNTS[1:])
# What a dead try has paid for may still be on this host.
LEFT = ("pay", "settle", *("pay",) * 4)
# Whose attempt is there, by which reuse → what to do for each of the states, if it is for the same request.
SAME_REQUEST = {
    "this very try": {"run": COUNTS, "always": COUNTS, "never": COUNTS},
    "an earlier try": {"run": COUNTS, "always": COUNTS, "never": LEFT},
    "another run": {"run": HIDDEN, "always": COUNTS, "never": HIDDEN},
    "another Dag": {"run": HIDDEN, "always": COUNTS, "never": HIDDEN},
    "another task of the run": {"run": FORBIDDEN, "always": FORBIDDEN, "never": FORBIDDEN},
    "another mapped task of the run": {"run": MOVED, "always": MOVED, "never": ("conflict", *HIDDEN[1:])},
}
OTHER = ("wait", *("pay",) * 5)
OTHER_REQUEST = {
    "this very try": {"run": OTHER, "always": OTHER, "never": OTHER},
    "an earlier try": {"run": OTHER, "always": OTHER, "never": HIDDEN},
    "another run": {"run": HIDDEN, "always": HIDDEN, "never": HIDDEN},
    "another Dag": {"run": HIDDEN, "always": HIDDEN, "never": HIDDEN},
    "another task of the run": {"run": FORBIDDEN, "always": FORBIDDEN, "never": FORBIDDEN},
    "another mapped task of the run": {"run": FORBIDDEN, "always": FORBIDDEN, "never": FORBIDDEN},
}


@pytest.mark.parametrize("reuse", ["run", "always", "never"])
@pytest.mark.parametrize("whose", WHOSE)
@pytest.mark.parametrize(("fingerprint", "table"), [("fox", SAME_REQUEST), ("owl", OTHER_REQUEST)])
def test_what_is_there_decides_what_to_do(
    fingerprint: str, table: dict[str, dict[str, tuple[str, ...]]], whose: str, reuse: str
) -> None:
    decided = tuple(
        step(
            attempt(state.partition(",")[0], WHOSE[whose], fingerprint),
            reuse=reuse,
            alive=state.endswith("alive"),
        )
        for state in STATES
    )
    assert dict(zip(STATES, decided, strict=True)) == dict(zip(STATES, table[whose][reuse], strict=True))


@pytest.mark.parametrize("reuse", ["run", "always", "never"])
def test_without_an_attempt_it_is_paid(reuse: str) -> None:
    assert decide(receipt(), ME, "fox", reuse, {}).step is Step.PAY


def test_the_decision_names_the_attempt_that_it_is_about() -> None:
    old, new = attempt("billed", id="1" * 32), attempt("complete", id="2" * 32)
    assert decide(receipt(old, new), ME, "fox", "run", {}).attempt is new


def test_the_latest_attempt_counts() -> None:
    paid, lost = attempt("complete", id="1" * 32), attempt("unknown", id="2" * 32)
    assert step(paid, lost) == "settle"
    assert step(lost, paid) == "reuse"


def test_an_attempt_that_cost_nothing_hides_nothing() -> None:
    free = attempt("not_billed", id="2" * 32)
    assert step(attempt("complete"), free) == "reuse"
    assert step(attempt("unknown"), free) == "settle"
    assert step(attempt("open"), free, alive=True) == "wait"


def test_another_tasks_attempt_is_a_conflict_whatever_came_after_it() -> None:
    theirs = attempt("complete", WHOSE["another task of the run"], id="1" * 32)
    decision = decide(receipt(theirs, attempt("complete")), ME, "fox", "run", {})
    assert decision.step is Step.CONFLICT
    assert decision.attempt is theirs


def test_an_open_attempt_that_nobody_has_looked_at_counts_as_dead() -> None:
    assert decide(receipt(attempt()), ME, "fox", "run", {}).step is Step.SETTLE


# --- the document ------------------------------------------------------------------------------------------------

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
OBJECTS = st.dictionaries(TEXT, JSON_VALUES, max_size=4)
IMAGES = st.fixed_dictionaries(
    {"uri": TEXT, "bucket": TEXT, "key": TEXT, "bytes": st.integers(0), "width": st.integers(1)}
)
ATTEMPTS = st.builds(
    Attempt,
    id=st.uuids().map(lambda one: one.hex),
    fingerprint=TEXT,
    owner=st.builds(Owner, TEXT, TEXT, TEXT, st.integers(-1, 9), st.integers(1, 9)),
    worker=st.builds(Worker, TEXT, st.integers(1), st.floats(0, 1e12), TEXT),
    started_at=TIMES,
    lease_until=TIMES,
    outcome=st.sampled_from(Outcome),
    ended_at=st.none() | TIMES,
    billed=st.sampled_from(["no", "yes", "unknown"]),
    usage=st.none() | OBJECTS,
    images=st.lists(IMAGES, max_size=2),
    preview=st.none() | IMAGES,
    seconds=st.none() | st.floats(0, 1e6),
    created=st.none() | st.integers(),
    note=st.none() | TEXT,
    request_id=st.none() | TEXT,
)
RECEIPTS = st.builds(
    Receipt,
    TEXT,
    TEXT,
    TEXT,
    OBJECTS,
    st.lists(ATTEMPTS, max_size=3, unique_by=lambda one: one.id).map(tuple),
)


@given(RECEIPTS)
def test_a_receipt_is_read_as_it_was_written(written: Receipt) -> None:
    assert Receipt.from_json(written.to_json()) == written


@given(RECEIPTS, st.integers(min_value=1))
def test_a_receipt_that_is_cut_short_is_never_read_as_a_shorter_one(written: Receipt, cut: int) -> None:
    document = written.to_json()
    with pytest.raises(ReceiptUnreadable):
        Receipt.from_json(document[: -1 - cut % (len(document) - 1)])


def test_a_receipt_reads_plainly() -> None:
    done = attempt(
        "complete",
        images=[{"uri": "s3://posters/fox.png", "bucket": "posters", "key": "fox.png", "bytes": 5}],
        usage={"total_tokens": 7},
    )
    written = receipt(attempt("billed", id="b" * 32)).with_attempt(
        done, "https://api.jojokey.com", {"prompt": "海报"}
    )
    document = json.loads(written.to_json())
    del document["attempts"]
    assert document == {
        "version": VERSION,
        "state": "complete",
        "bucket": "posters",
        "key": "fox.png",
        "host": "https://api.jojokey.com",
        "fingerprint": "fox",
        "dag_id": "posters",
        "run_id": "monday",
        "task_id": "hero",
        "request": {"prompt": "海报"},
        "images": done.images,
        "usage": {"total_tokens": 7},
    }
    assert "海报".encode() in written.to_json()


@pytest.mark.parametrize("outcome", [one for one in Outcome if one is not Outcome.COMPLETE])
def test_only_a_complete_attempt_makes_a_receipt_complete(outcome: Outcome) -> None:
    written = receipt(attempt("complete", id="1" * 32), attempt(outcome, id="2" * 32))
    assert json.loads(written.to_json())["state"] == "started"


def test_half_a_character_in_a_prompt_survives() -> None:
    written = receipt().with_attempt(attempt(), "", {"prompt": "a \ud83d fox"})
    assert Receipt.from_json(written.to_json()).request == {"prompt": "a \ud83d fox"}


def test_what_a_newer_version_adds_to_an_attempt_does_not_hinder() -> None:
    document = json.loads(receipt(attempt()).to_json())
    document["attempts"][0]["mood"] = "good"
    assert Receipt.from_json(json.dumps(document).encode()) == receipt(attempt())


def _broken(**changes: Any) -> bytes:
    document = json.loads(receipt(attempt("complete", usage={"total_tokens": 1})).to_json())
    for name, value in changes.items():
        place, _, last = name.rpartition("__")
        target = document["attempts"][0] if place.startswith("attempt") else document
        if place == "attempt_owner":
            target = target["owner"]
        if value is Ellipsis:
            del target[last]
        else:
            target[last] = value
    return json.dumps(document).encode()


UNREADABLE = {
    "nothing": b"",
    "no JSON": b"<html>",
    "half of it": b'{"version": 1, "bucket": "post',
    "no UTF-8": b'{"version": "\xff\xfe\x80"}',
    "too deep": b"[" * 200_000,
    "null": b"null",
    "a list": b"[]",
    "a text": b'"receipt"',
    "an empty object": b"{}",
    "a newer version": _broken(version=2),
    "a version in words": _broken(version="1"),
    "no version": _broken(version=...),
    "no bucket": _broken(bucket=...),
    "no key": _broken(key=...),
    "no host": _broken(host=...),
    "no request": _broken(request=...),
    "a list as request": _broken(request=[]),
    "no attempts": _broken(attempts=...),
    "null as attempts": _broken(attempts=None),
    "an object as attempts": _broken(attempts={}),
    "a text as attempts": _broken(attempts=""),
    "an attempt that is a list": _broken(attempts=[[]]),
    "an attempt that is null": _broken(attempts=[None]),
    "an attempt without an id": _broken(attempt__id=...),
    "an attempt without an outcome": _broken(attempt__outcome=...),
    "an outcome that nobody knows": _broken(attempt__outcome="lost"),
    "an attempt without an owner": _broken(attempt__owner=...),
    "an owner without a run": _broken(attempt_owner__run_id=...),
    "an owner that is a list": _broken(attempt__owner=["posters"]),
    "an attempt without a worker": _broken(attempt__worker=...),
    "an attempt without a beginning": _broken(attempt__started_at=...),
    "an attempt that began at no time": _broken(attempt__started_at=None),
    "a beginning without a time zone": _broken(attempt__started_at="2026-07-30T12:00:00"),
    "a lease without a time zone": _broken(attempt__lease_until="2026-07-30"),
    "an end without a time zone": _broken(attempt__ended_at="2026-07-30T12:00:00"),
    "a time that is a number": _broken(attempt__started_at=1_785_412_800),
    "a list as usage": _broken(attempt__usage=[]),
    "null as images": _broken(attempt__images=None),
    "an image without a place": _broken(attempt__images=[{"uri": "s3://posters/fox.png"}]),
    "an image that is a text": _broken(attempt__images=["s3://posters/fox.png"]),
}


@pytest.mark.parametrize("document", UNREADABLE.values(), ids=UNREADABLE)
def test_a_document_that_is_not_understood_is_refused(document: bytes) -> None:
    with pytest.raises(ReceiptUnreadable):
        Receipt.from_json(document)


def test_a_document_of_another_version_says_so() -> None:
    with pytest.raises(ReceiptUnreadable, match="version 2, and this package reads 1"):
        Receipt.from_json(_broken(version=2))


def test_the_documents_to_break_are_readable_before() -> None:
    assert Receipt.from_json(_broken()).attempts[0].outcome is Outcome.COMPLETE


# --- the attempts are the ledger ---------------------------------------------------------------------------------


@given(RECEIPTS, ATTEMPTS)
def test_attempts_are_added_at_the_end_and_never_dropped(before: Receipt, one: Attempt) -> None:
    after = before.with_attempt(one)
    others = [known for known in before.attempts if known.id != one.id]
    assert [known for known in after.attempts if known.id != one.id] == others
    assert after.attempt(one.id) == one
    assert after.attempts[-1] == one


@given(RECEIPTS.filter(lambda one: one.attempts), st.integers(0, 2), st.sampled_from(Outcome))
def test_an_attempt_that_has_ended_takes_its_own_place(before: Receipt, place: int, outcome: Outcome) -> None:
    place %= len(before.attempts)
    ended = replace(before.attempts[place], outcome=outcome, note="ended")
    after = before.with_attempt(ended)
    assert after.attempts == (*before.attempts[:place], ended, *before.attempts[place + 1 :])


def test_the_request_and_its_host_change_only_with_a_new_request() -> None:
    before = receipt().with_attempt(attempt(), "https://one", {"prompt": "fox"})
    closed = before.with_attempt(attempt("complete"), "https://two")
    assert (closed.host, closed.request) == ("https://one", {"prompt": "fox"})
    other = closed.with_attempt(attempt(id="b" * 32), "https://two", {"prompt": "owl"})
    assert (other.host, other.request) == ("https://two", {"prompt": "owl"})


def test_an_attempt_that_is_not_there_is_none() -> None:
    assert receipt(attempt()).attempt("b" * 32) is None


# --- what it cost ------------------------------------------------------------------------------------------------


def test_usage_adds_up_with_its_details() -> None:
    one = {
        "input_tokens": 10,
        "total_tokens": 10,
        "input_tokens_details": {"text_tokens": 8, "image_tokens": 2},
    }
    other = {
        "input_tokens": 5,
        "output_tokens": 7,
        "total_tokens": 12,
        "input_tokens_details": {"text_tokens": 5},
    }
    assert total_usage([one, None, other]) == {
        "input_tokens": 15,
        "output_tokens": 7,
        "total_tokens": 22,
        "input_tokens_details": {"text_tokens": 13, "image_tokens": 2},
    }
    assert one["input_tokens_details"] == {"text_tokens": 8, "image_tokens": 2}, "what was told is left alone"


def test_the_three_totals_are_always_there() -> None:
    assert total_usage([]) == {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}


@pytest.mark.parametrize(
    "odd",
    [
        {"input_tokens": True},
        {"input_tokens": "3"},
        {"input_tokens": None},
        {"input_tokens": {"text_tokens": 3}},
        {"input_tokens": [3]},
    ],
)
def test_what_is_no_count_is_not_counted(odd: dict[str, Any]) -> None:
    assert total_usage([odd, {"input_tokens": 1}])["input_tokens"] == 1


def test_details_that_are_told_in_two_shapes_do_not_hinder() -> None:
    assert total_usage([{"details": 3}, {"details": {"text": 1}}, {"details": 4}])["details"] == 7
    assert total_usage([{"details": {"text": 1}}, {"details": 3}])["details"] == {"text": 1}


def test_a_task_is_billed_for_all_its_tries_and_for_nobody_elses() -> None:
    billed = [
        attempt("billed", replace(ME, try_number=1), id="1" * 32, usage={"total_tokens": 1}),
        attempt("complete", ME, "owl", id="2" * 32, usage={"total_tokens": 20}),
        attempt("unknown", ME, id="3" * 32),
        *(
            attempt("complete", WHOSE[whose], id=str(number) * 32, usage={"total_tokens": 300})
            for number, whose in enumerate(list(WHOSE)[2:], 4)
        ),
    ]
    assert receipt(*billed).usage_of(ME)["total_tokens"] == 21


def test_at_its_first_try_a_mapped_task_with_anothers_key_is_a_conflict() -> None:
    theirs = attempt("complete", replace(ME, map_index=3))
    assert decide(receipt(theirs), replace(ME, try_number=1), "fox", "run", {}).step is Step.CONFLICT
