"""Decisions before payment, from the receipt alone."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from airflow_provider_jojokey.payments.attempt import Attempt, Outcome, Owner
from airflow_provider_jojokey.payments.decision import Conflict, Decision, Pay, Reconcile, Reuse, Wait, decide
from airflow_provider_jojokey.payments.receipt import Receipt
from tests.support.examples import ATTEMPT
from tests.support.examples import OWNER as ME

RETRY = replace(ME, try_number=2, ti_id="ti-2")
TUESDAY = replace(ME, run_id="tuesday", ti_id="ti-3")


def attempt(outcome: str, number: int = 1, **changes: Any) -> Attempt:
    return replace(ATTEMPT, id=f"{number:032x}", outcome=Outcome(outcome), **changes)


def decision(
    *attempts: Attempt,
    owner: Owner = RETRY,
    fingerprint: str = "fox",
    reuse: str = "run",
    alive: bool = False,
) -> Decision:
    receipt = Receipt("posters", "fox.png", attempts=attempts)
    return decide(receipt, owner, fingerprint, reuse, {attempt.id: alive for attempt in attempts})


@pytest.mark.parametrize("reuse", ["run", "always", "never"])
def test_first_request_is_paid(reuse: str) -> None:
    assert decision(reuse=reuse) == Pay()


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        ("complete", Reuse),
        ("open", Reconcile),
        ("unknown", Reconcile),
        ("billed", Reconcile),
        ("not_billed", Pay),
    ],
)
def test_retry_follows_the_earlier_outcome(outcome: str, expected: type) -> None:
    assert isinstance(decision(attempt(outcome)), expected)


@pytest.mark.parametrize("outcome", ["open", "unknown", "billed"])
def test_unbilled_attempts_do_not_hide_earlier_ones(outcome: str) -> None:
    found = decision(attempt(outcome), attempt("not_billed", 2), attempt("not_billed", 3))
    assert found == Reconcile(attempt(outcome))


@pytest.mark.parametrize("outcome", ["complete", "unknown", "open", "billed"])
def test_changed_prompt_does_not_hide_a_lost_attempt(outcome: str) -> None:
    other = attempt(outcome, 2, fingerprint="owl")
    assert decision(attempt("unknown"), other) == Reconcile(attempt("unknown"))


def test_images_are_reused_even_if_a_later_attempt_was_lost() -> None:
    assert decision(attempt("complete"), attempt("unknown", 2)) == Reuse(attempt("complete"))


def test_other_prompt_is_paid() -> None:
    assert decision(attempt("complete"), fingerprint="owl") == Pay()


@pytest.mark.parametrize("fingerprint", ["fox", "owl"])
@pytest.mark.parametrize("outcome", ["open", "unknown", "not_billed"])
def test_live_attempt_of_the_task_is_waited_for(fingerprint: str, outcome: str) -> None:
    expected = Pay if outcome == "not_billed" else Wait
    assert isinstance(decision(attempt(outcome), fingerprint=fingerprint, alive=True), expected)


def test_live_attempt_after_complete_attempt_is_awaited() -> None:
    receipt = Receipt("b", "k", attempts=(attempt("open", 1), attempt("complete", 2)))
    assert decide(receipt, RETRY, "fox", "run", {f"{1:032x}": True}) == Wait(receipt.attempts[0])


@pytest.mark.parametrize(
    ("reuse", "expected"), [("run", Pay), ("never", Pay), ("always", Reuse)], ids=["run", "never", "always"]
)
def test_new_run_reuses_images_only_with_always(reuse: str, expected: type) -> None:
    assert isinstance(decision(attempt("complete"), owner=TUESDAY, reuse=reuse), expected)


def test_always_does_not_reuse_another_request() -> None:
    assert decision(attempt("complete", fingerprint="owl"), owner=TUESDAY, reuse="always") == Pay()


@pytest.mark.parametrize("outcome", ["complete", "unknown", "billed"])
def test_never_pays_in_each_try(outcome: str) -> None:
    assert decision(attempt(outcome), reuse="never") == Pay()


@pytest.mark.parametrize(
    ("outcome", "expected"), [("complete", Reuse), ("unknown", Reconcile), ("open", Reconcile)]
)
def test_never_pays_once_for_a_trigger_that_runs_twice(outcome: str, expected: type) -> None:
    assert isinstance(decision(attempt(outcome), owner=ME, reuse="never"), expected)


def test_never_pays_again_when_a_run_is_recreated() -> None:
    assert decision(attempt("complete"), owner=replace(ME, ti_id="ti-9"), reuse="never") == Pay()


def test_never_reconciles_an_orphan_before_it_pays() -> None:
    assert decision(attempt("open"), reuse="never") == Reconcile(attempt("open"))


@pytest.mark.parametrize("outcome", ["open", "complete", "unknown", "billed", "not_billed"])
@pytest.mark.parametrize("other", [{"task_id": "other"}, {"map_index": 3}], ids=str)
def test_other_task_of_the_run_is_a_conflict(outcome: str, other: dict[str, Any]) -> None:
    found = decision(attempt(outcome, owner=replace(ME, **other), fingerprint="owl"))
    assert isinstance(found, Pay if outcome == "not_billed" else Conflict)


def test_moved_map_index_is_reused_after_a_clear_only() -> None:
    made = attempt("complete", owner=replace(ME, map_index=2))
    mapped = replace(RETRY, map_index=1)
    assert decision(made, owner=mapped) == Reuse(made)
    assert decision(made, owner=mapped, fingerprint="owl") == Conflict(made)
    assert decision(made, owner=replace(mapped, try_number=1)) == Conflict(made)
    assert decision(replace(made, outcome=Outcome.OPEN), owner=mapped, alive=True) == Conflict(
        replace(made, outcome=Outcome.OPEN)
    )


ATTEMPTS = st.builds(
    attempt,
    st.sampled_from(["open", "complete", "unknown", "billed", "not_billed"]),
    st.integers(1, 10**6),
    fingerprint=st.sampled_from(["fox", "owl"]),
    owner=st.sampled_from([ME, RETRY, TUESDAY]),
)


@given(st.lists(ATTEMPTS, max_size=6, unique_by=lambda attempt: attempt.id), st.booleans())
def test_run_never_pays_after_attempt_that_may_be_billed(attempts: list[Attempt], alive: bool) -> None:
    found = decision(*attempts, alive=alive)
    same = [
        attempt
        for attempt in attempts
        if attempt.may_cost and attempt.fingerprint == "fox" and attempt.owner.is_task_of(RETRY)
    ]
    if isinstance(found, Pay):
        assert not same
