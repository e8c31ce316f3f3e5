"""Proof that an attempt was, or was not, billed. Missing data proves nothing."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from msgspec.structs import replace

from airflow_provider_jojokey.payments.attempt import Event
from airflow_provider_jojokey.payments.evidence import (
    CLOCK_TOLERANCE,
    CONSUMED,
    FAILED,
    Facts,
    group_log,
    judge,
)

MODEL, SENT = "gpt-image-2", 10_000.0
BILLED, UNBILLED, LOST = Event.PROVEN_BILLED, Event.PROVEN_UNBILLED, Event.LOST


def row(
    request_id: str | None = "R", kind: int = CONSUMED, at: float = SENT + 20, **more: Any
) -> dict[str, Any]:
    values = {
        "type": kind, "request_id": request_id, "created_at": int(at), "use_time": 20, "model_name": MODEL,
        "prompt_tokens": 10, "completion_tokens": 200, "quota": 4200,
    }  # fmt: skip
    return {**values, **more}


def facts(*rows: dict[str, Any], log: bool = True, **changes: Any) -> Facts:
    known: dict[str, Any] = {
        "finished": True,
        "overdue": True,
        "log": group_log(rows) if log else None,
        **changes,
    }
    return Facts(model=MODEL, sent_from=SENT, sent_until=SENT + 1, **known)


OTHER_CHARGE = row("other", at=SENT + 500)
TABLE = {
    # proof of a charge
    "images were received": (facts(images=1), BILLED),
    "images were received, log off": (facts(log=False, images=2), BILLED),
    "images were received, person denies it": (facts(images=1, stated="no"), BILLED),
    "charge with its ID": (facts(row("R"), request_id="R"), BILLED),
    "charge with its ID, not finished": (facts(row("R"), request_id="R", finished=False), BILLED),
    "charge after failed channels": (facts(row("R", FAILED), row("R", FAILED), row("R"), request_id="R"), BILLED),
    "charge with its ID, another model": (facts(row("R", model_name="x"), request_id="R"), BILLED),
    "person says billed": (facts(stated="yes"), Event.STATED_BILLED),
    # proof of no charge
    "nothing was sent": (facts(unsent=True), UNBILLED),
    "nothing was sent, log off": (facts(log=False, unsent=True), UNBILLED),
    "failed with its ID": (facts(row("R", FAILED), OTHER_CHARGE, request_id="R"), UNBILLED),
    "failed channels with its ID": (facts(row("R", FAILED), row("R", FAILED), OTHER_CHARGE, request_id="R"), UNBILLED),
    "person says not billed": (facts(stated="no"), Event.STATED_UNBILLED),
    "charge with its ID, refunded": (facts(row("R"), request_id="R", stated="no", refunded=True), Event.STATED_UNBILLED),
    "images were received, refunded": (facts(images=1, stated="no", refunded=True), Event.STATED_UNBILLED),
    "charge with its ID, person denies it": (facts(row("R"), request_id="R", stated="no"), BILLED),
    # no proof
    "no log": (facts(log=False), LOST),
    "empty log": (facts(), LOST),
    "empty log, known ID": (facts(request_id="R"), LOST),
    "log of other requests only": (facts(OTHER_CHARGE, request_id="R"), LOST),
    "pruned log": (facts(row("later", at=SENT + 10_000)), LOST),
    "one charge at that time": (facts(row("A")), LOST),
    "two charges at that time": (facts(row("A"), row("B")), LOST),
    "failure at that time": (facts(row("A", FAILED), OTHER_CHARGE), LOST),
    "failed with its ID, still generating": (facts(row("R", FAILED), request_id="R", finished=False, overdue=False), LOST),
    "failed with its ID, charges not logged": (facts(row("R", FAILED), request_id="R"), LOST),
    "failed with its ID, charges logged before": (facts(row("R", FAILED), row("o", at=SENT - 99), request_id="R"), LOST),
    "failed with its ID, charge may be late": (facts(row("R", FAILED), OTHER_CHARGE, request_id="R", overdue=False), LOST),
    "rows without ID": (facts(row(None), row(""), request_id="R"), LOST),
    "row of another type": (facts(row("R", 3), request_id="R"), LOST),
}  # fmt: skip


@pytest.mark.parametrize("case", TABLE)
def test_evidence(case: str) -> None:
    known, event = TABLE[case]
    assert judge(known).event is event


@pytest.mark.parametrize("case", [case for case, (_, event) in TABLE.items() if event is LOST])
@pytest.mark.parametrize("finished", [False, True])
def test_unknown_is_final_once_the_model_has_finished(case: str, finished: bool) -> None:
    known = replace(TABLE[case][0], finished=finished)
    if (verdict := judge(known)).event is LOST:
        assert verdict.final is finished
        assert verdict.usage is None


def test_charge_brings_usage_and_quota() -> None:
    verdict = judge(facts(row("R"), request_id="R"))
    assert verdict.usage == {"input_tokens": 10, "output_tokens": 200, "total_tokens": 210}
    assert verdict.quota == 4200


def test_images_with_known_id_bring_usage_from_the_log() -> None:
    assert (
        judge(facts(row("R"), request_id="R", images=1)).usage == judge(facts(row("R"), request_id="R")).usage
    )


@pytest.mark.parametrize(
    ("changes", "hinted"),
    [
        ({}, True),
        ({"at": SENT + 20 - CLOCK_TOLERANCE}, True),
        ({"at": SENT + 21 + CLOCK_TOLERANCE}, True),
        ({"at": SENT + 19 - CLOCK_TOLERANCE}, False),
        ({"at": SENT + 22 + CLOCK_TOLERANCE}, False),
        ({"model_name": "another"}, False),
        ({"request_id": "known"}, False),
        ({"kind": FAILED}, False),
    ],
)
def test_single_match_by_time_is_a_hint_and_no_proof(changes: dict[str, Any], hinted: bool) -> None:
    verdict = judge(facts(row(**{"request_id": "A", **changes}), others=frozenset({"known"})))
    assert verdict.event is LOST
    assert (verdict.hint is not None) is hinted
    if verdict.hint:
        assert verdict.hint["request_id"] == "A"
        assert "may be this request or another one" in verdict.reason


def test_known_id_needs_no_hint() -> None:
    assert judge(facts(row("A"), request_id="R")).hint is None


def test_unreadable_log_is_named_in_the_reason() -> None:
    assert "HTTP 429" in judge(facts(log=False, log_problem="HTTP 429")).reason


def test_rows_with_one_request_id_are_one_request() -> None:
    (request,) = group_log(
        [row("R", FAILED, SENT + 5, use_time=5), row("R", FAILED, SENT + 9), row("R", at=SENT + 30)]
    )
    assert (request.charged, request.ended) == (True, SENT + 30)


def test_charges_with_one_request_id_are_added_up() -> None:
    (request,) = group_log([row("R", FAILED), row("R"), row("R", quota=300, prompt_tokens=5)])
    assert request.quota == 4200 + 300
    assert request.usage == {"input_tokens": 10 + 5, "output_tokens": 200 + 200, "total_tokens": 415}

    (request,) = group_log([row("R"), row("R", quota="many", completion_tokens=-7)])
    assert request.quota is None
    assert request.usage == {"input_tokens": 20, "output_tokens": 200, "total_tokens": 220}


ROWS = st.lists(
    st.builds(row, st.sampled_from("RS"), st.sampled_from([2, FAILED]), quota=st.integers(0, 2)), max_size=4
)


@given(ROWS, st.data())
def test_row_that_is_listed_again_counts_once(rows: list[dict[str, Any]], data: st.DataObject) -> None:
    numbered = [{**entry, "id": number} for number, entry in enumerate(rows, 1)]
    again = data.draw(st.lists(st.sampled_from(numbered))) if rows else []

    assert group_log([*numbered, *again]) == group_log(numbered)


@pytest.mark.parametrize("ids", [(1, 2), (0, 0), (None, None), ()])
def test_equal_charges_of_one_request_are_added_up(ids: tuple[int | None, ...]) -> None:
    rows = [row("R", quota=5), row("R", quota=5)]
    for entry, number in zip(rows, ids, strict=False):
        entry["id"] = number

    (request,) = group_log(rows)

    assert request.quota == 10


ODD = st.one_of(
    st.none(), st.booleans(), st.text(max_size=5), st.floats(), st.integers(), st.lists(st.none())
)


@given(st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys(row(), ODD)), max_size=5))
def test_odd_rows_are_never_an_exception_or_proof(rows: list[dict[str, Any]]) -> None:
    verdict = judge(facts(*rows))
    assert verdict.event is LOST


KNOWN = st.builds(
    facts,
    *[st.sampled_from([row("R"), row("R", FAILED), row("A"), OTHER_CHARGE, row("B", FAILED)])] * 2,
    finished=st.booleans(),
    images=st.integers(0, 2),
    unsent=st.booleans(),
    request_id=st.sampled_from([None, "R"]),
)


@given(
    KNOWN, st.sampled_from(["log", "row", "request_id", "unsent", "images", "finished"]), st.integers(0, 1)
)
def test_removing_facts_never_proves_that_nothing_was_billed(known: Facts, what: str, index: int) -> None:
    assume(not (known.unsent and known.request_id))  # a request that was not sent has no ID
    gone: dict[str, Any] = {
        "log": {"log": None},
        "request_id": {"request_id": None},
        "unsent": {"unsent": False},
        "images": {"images": known.images},
        "finished": {"finished": False},
        "row": {"log": [item for item in known.log or () if item.request_id != ("R", "other")[index]]},
    }[what]
    before, after = judge(known).event, judge(replace(known, **gone)).event
    assert after is not UNBILLED or before is UNBILLED
