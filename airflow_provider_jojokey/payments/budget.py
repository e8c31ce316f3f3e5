"""The spending limits of a task and of its Dag run, checked before each payment.

A task knows from its own receipts what it has spent in its Dag run, over all tries. The tasks of a run share their
sums in S3, see :mod:`payments.run_budget`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from airflow_provider_jojokey.cost import PUBLISHED, Cost, Prices
from airflow_provider_jojokey.exceptions import JojoKeyBudgetError, JojoKeyError
from airflow_provider_jojokey.payments.amount import Amount, estimate, spent_on
from airflow_provider_jojokey.payments.job import ImageJob, Limit
from airflow_provider_jojokey.payments.run_budget import RunBudget

if TYPE_CHECKING:
    from airflow_provider_jojokey.payments.receipt import Receipt
    from airflow_provider_jojokey.store.s3 import ImageStore

log = logging.getLogger(__name__)

BLOCK = 64
"""Maximum number of jobs for which a batch reserves at once."""
LEFT_FOR_OTHERS = 8
"""A task reserves at most this fraction (1/8) of the Dag run's remaining budget at once."""
RECHECK = 1.0
"""Seconds after which a waiting job checks whether it may still be sent."""


class Budget:
    """The spending limit of one task. Threads may share it.

    :param task_limit: the task's limit, over all tries in one Dag run
    :param run_limit: the limit of all tasks of the Dag run
    :param run: the shared budget of the run's tasks; needed with ``run_limit``
    :param spent: what the task has spent so far; ``None`` to read it from the first job's receipt
    :param prices: what tokens cost
    """

    def __init__(
        self,
        task_limit: Limit,
        run_limit: Limit,
        run: RunBudget | None,
        spent: Amount | None = None,
        prices: Prices = PUBLISHED,
    ) -> None:
        self.prices = prices
        self._nothing = Amount(
            currency=prices.currency
        )  # without it, the costs of other tasks would be left out
        self._task_limit = task_limit
        self._run_limit = run_limit
        self._run = run if run_limit else None
        self._spent = spent
        self._counted: dict[str, Amount] = {}
        """What :attr:`spent` contains for each job, as its receipt showed it last."""
        self._reserved: dict[str, Amount] = {}
        self._committed = Amount()
        """The entry of this task in the Dag run's object: at least what it has spent and reserved."""
        self._wanted = Amount()
        self._changed = threading.Condition()

    @classmethod
    def unlimited(cls) -> Budget:
        """Return a budget without limits."""
        return cls(Limit(), Limit(), None)

    def start(self, counted: dict[str, Amount], wanted: Amount | None = None) -> None:
        """Set what the task has spent before its jobs start.

        :param counted: what each job has spent, by its URI
        :param wanted: the estimated cost of all jobs, to reserve the cost of several jobs at once
        """
        self._counted = counted
        self._spent = sum(counted.values(), self._nothing)
        self._wanted = self._spent + (wanted or Amount())

    @property
    def spent(self) -> Amount:
        """What the task has spent, without reservations."""
        return self._spent or self._nothing

    def reserve(self, job: ImageJob, receipt: Receipt, permit: Callable[[], None]) -> None:
        """Reserve the cost of a job. If there is no room, wait for other jobs: they may cost less than reserved.

        :param receipt: the job's receipt
        :param permit: called while waiting; raises if the job must not be sent any more
        :raises JojoKeyBudgetError: if the job would exceed a limit
        :raises JojoKeyError: if the run's object cannot be read or written
        """
        if not (self._task_limit or self._run_limit):
            return
        about = estimate(job, self.prices)
        with self._changed:
            self._reserved.pop(job.uri, None)
            self._count(job, spent_on(receipt, job, self.prices))
            while not self._has_room(about):
                others = bool(self._reserved)
                if not others or not (self.spent + about).fits(self._task_limit):
                    raise self._exceeded_error(about)
                self._changed.wait(RECHECK)
                permit()
            self._reserved[job.uri] = about

    def settle(self, job: ImageJob, receipt: Receipt | None, claimed: bool) -> None:
        """Replace the reservation of an ended job by its actual cost, or correct what was counted for it.

        :param receipt: the job's receipt; ``None`` if it is unknown
        :param claimed: whether the job may have been paid for in this run; if so, and the receipt is unknown,
            the reserved amount counts as spent
        """
        if not (self._task_limit or self._run_limit):
            return
        with self._changed:
            about = self._reserved.pop(job.uri, None)
            if receipt is not None:
                self._count(job, spent_on(receipt, job, self.prices))
            elif about is not None and claimed:
                self._count(job, self._counted.get(job.uri, Amount()) + about)
            self._changed.notify_all()

    def close(self) -> None:
        """Replace the task's reservation in the Dag run by what it has spent. Errors are only logged.

        A job that has not ended, because the task was stopped, may have been billed: its reservation stays.
        """
        with self._changed:
            if self._run is None or self._spent is None:
                return
            own = sum(self._reserved.values(), self._spent)
            try:
                self._run.commit(own, Limit())
                self._committed = own
            except JojoKeyError as error:
                log.warning(
                    "The Dag run's budget still contains this task's reservation: %s", error.what_happened
                )

    def uses(self) -> list[dict[str, Any]]:
        """Return what is used of each limit as JSON values, from what is known without a request to S3.

        Amounts of money are in nanos. Of a Dag run, the reservations of other tasks count as used.
        """
        scopes = [("task", self._task_limit, self.spent)]
        if self._run is not None and self._run.is_known:
            scopes.append(("run", self._run_limit, self._run.total(self.spent)))
        return [
            {
                "scope": scope,
                "unit": unit,
                "used": getattr(used, unit),
                "limit": getattr(limit, unit),
                **({"currency": self.prices.currency} if unit == "cost" else {}),
            }
            for scope, limit, used in scopes
            for unit in ("tokens", "images", "cost")
            if getattr(limit, unit) is not None
        ]

    def _count(self, job: ImageJob, amount: Amount) -> None:
        """Replace what was counted for a job. Its receipt may change in the meantime, also by other processes."""
        self._spent = self.spent - self._counted.get(job.uri, Amount()) + amount
        self._counted[job.uri] = amount

    def _has_room(self, about: Amount) -> bool:
        reserved = sum(self._reserved.values(), self.spent + about)
        if not reserved.fits(self._task_limit):
            return False
        if self._run is None or reserved <= self._committed:
            return True
        for amount in (self._with_block(reserved, about), reserved):
            if self._run.commit(amount, self._run_limit):
                self._committed = amount
                return True
        return False

    def _with_block(self, reserved: Amount, about: Amount) -> Amount:
        """Return ``reserved`` plus the cost of further jobs, so that not every job writes the Dag run's object.

        The result never exceeds what this task needs in total. Of the run's remaining budget, it takes only a small
        part, because it reduces what other tasks can spend. Without conditional writes, nothing is added, because
        the object must be read each time anyway.
        """
        assert self._run is not None
        if not self._run.protected:
            return reserved
        left = self._run.left(reserved, self._run_limit)
        wanted, each = self._wanted, about
        jobs = min(
            float(BLOCK),
            *(
                min(free / LEFT_FOR_OTHERS, all_jobs - taken) / max(1, cost)
                for free, all_jobs, taken, cost in (
                    (left[0], wanted.tokens, reserved.tokens, each.tokens),
                    (left[1], wanted.images, reserved.images, each.images),
                    (left[2], wanted.cost, reserved.cost, each.cost),
                )
            ),
        )
        return reserved + about * max(0, int(jobs))

    def _exceeded_error(self, about: Amount) -> JojoKeyBudgetError:
        if (self.spent + about).fits(self._task_limit) and self._run is not None:
            what = (
                f"This Dag run may spend {_text(self._run_limit, self.prices)}. Its tasks have spent or reserved "
                f"{self._run.total(self.spent)}, and this request would cost about {about}."
            )
        else:
            what = (
                f"This task may spend {_text(self._task_limit, self.prices)}. It has spent {self.spent} in this "
                f"Dag run, and this request would cost about {about}."
            )
        return JojoKeyBudgetError(
            what, "Raise the limit and clear the task, or request fewer or smaller images."
        )


def budget_of(job: ImageJob, store: ImageStore, prices: Prices = PUBLISHED) -> Budget:
    """Return the budget of a task with a single job."""
    run = RunBudget(store, job.destination.bucket, job.owner) if job.run_limit else None
    return Budget(job.task_limit, job.run_limit, run, prices=prices)


def _text(limit: Limit, prices: Prices) -> str:
    parts = [f"{limit.tokens:,} tokens"] if limit.tokens is not None else []
    parts += [f"{limit.images:,} images"] if limit.images is not None else []
    parts += [str(Cost(limit.cost, prices.currency, approximate=False))] if limit.cost is not None else []
    return " and ".join(parts)
