"""Decide, from the receipt alone, what to do before any money is spent.

:func:`decide` is pure: no I/O and no clock. The caller acts on the decision, reads the receipt again and
decides again, until the decision is to reuse images or to pay.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from msgspec import Struct

from airflow_provider_jojokey.payments.attempt import Attempt, Outcome, Owner
from airflow_provider_jojokey.payments.receipt import Receipt


class Pay(Struct, frozen=True):
    """Nothing prevents a payment."""


class _AboutAttempt(Struct, frozen=True):
    attempt: Attempt


class Reuse(_AboutAttempt, frozen=True):
    """``attempt`` has the requested images."""


class Wait(_AboutAttempt, frozen=True):
    """``attempt`` may be in flight in another process."""


class Reconcile(_AboutAttempt, frozen=True):
    """``attempt`` may have been billed: collect evidence first."""


class Conflict(_AboutAttempt, frozen=True):
    """Another task of the same Dag run writes to the same key."""


Decision: TypeAlias = Pay | Reuse | Wait | Reconcile | Conflict


def decide(
    receipt: Receipt, owner: Owner, fingerprint: str, reuse: str, alive: Mapping[str, bool]
) -> Decision:
    """Return what to do next.

    :param receipt: the attempts so far
    :param owner: the task that wants images
    :param fingerprint: of the request
    :param reuse: ``"run"``, ``"always"`` or ``"never"``
    :param alive: for each attempt's ID, whether its process may still be working on it
    """

    def is_dead(attempt: Attempt) -> bool:
        return attempt.outcome is Outcome.OPEN and not alive.get(attempt.id, False)

    def is_alive(attempt: Attempt) -> bool:
        return alive.get(attempt.id, False)

    def was_moved(attempt: Attempt) -> bool:
        """Whether it is this mapped task's, with another index because an earlier item was removed from the list.

        This needs an identical request that has ended, and a cleared task. In the first try of a task, two items with
        one key are a mistake.
        """
        if owner.try_number == 1 or is_alive(attempt):
            return False
        same_task = attempt.owner.is_run_of(owner) and attempt.owner.task_id == owner.task_id
        return same_task and attempt.fingerprint == fingerprint

    def counts(attempt: Attempt) -> bool:
        if attempt.outcome is Outcome.NOT_BILLED:
            return False  # unbilled attempts do not hide earlier ones
        if reuse == "always":
            return attempt.owner.is_task_of(owner) or attempt.fingerprint == fingerprint
        if reuse == "never":  # a trigger that runs twice is one try
            orphaned = is_dead(attempt) and attempt.owner.is_task_of(owner)
            return attempt.owner.is_try_of(owner) or orphaned
        return attempt.owner.is_task_of(owner) or was_moved(attempt)

    for attempt in receipt.attempts:
        other_task = attempt.owner.is_run_of(owner) and not attempt.owner.is_task_of(owner)
        if other_task and attempt.outcome is not Outcome.NOT_BILLED and not was_moved(attempt):
            return Conflict(attempt)
    counting = [attempt for attempt in reversed(receipt.attempts) if counts(attempt)]
    for attempt in counting:
        if is_alive(attempt):
            return Wait(attempt)
    # Only attempts with this prompt count. Otherwise, a prompt that is changed and changed back would be paid for
    # again while its first attempt is unresolved.
    same = [attempt for attempt in counting if attempt.fingerprint == fingerprint]
    for attempt in same:  # images that exist are reused, even if a later attempt was lost
        if attempt.outcome is Outcome.COMPLETE:
            return Reuse(attempt)
    return Reconcile(same[0]) if same else Pay()
