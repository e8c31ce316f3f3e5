"""The spending limits of a task and of a Dag run, checked before each payment and counted from the receipts.

A task knows from its own receipts what it has spent in its Dag run, over all tries. The limit of a Dag run
needs a small object in S3 with one entry per task: what the task has spent plus what it has reserved. A task
writes only its own entry and computes it anew each time, so a task that died corrects its entry in its next
try. Each write names the version that it replaces, so only one of two tasks gets the last of a budget. On a
store without conditional writes, two tasks that write at once may exceed the limit.
"""

from __future__ import annotations

import json
import logging
import math
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_provider_jojokey.cost import PUBLISHED, Cost, Prices
from airflow_provider_jojokey.exceptions import (
    JojoKeyBudgetError,
    JojoKeyError,
    JojoKeyReceiptError,
    JojoKeyStoreError,
)
from airflow_provider_jojokey.img2.estimate import expected_usage
from airflow_provider_jojokey.payments import clock
from airflow_provider_jojokey.payments.job import ImageJob, Limit
from airflow_provider_jojokey.store.keys import RECEIPTS, part

if TYPE_CHECKING:
    from airflow_provider_jojokey.payments.attempt import Owner
    from airflow_provider_jojokey.payments.receipt import Receipt
    from airflow_provider_jojokey.store.s3 import ImageStore

log = logging.getLogger(__name__)

VERSION = 1
MAX_CONFLICTS = 50
"""Writes to the run's object that may fail because of other tasks."""
BLOCK = 64
"""Maximum number of jobs for which a batch reserves at once."""
LEFT_FOR_OTHERS = 8
"""A task reserves at most this fraction (1/8) of the Dag run's remaining budget at once."""
RECHECK = 1.0
"""Seconds after which a waiting job checks whether it may still be sent."""


@dataclass(frozen=True, slots=True)
class Amount:
    """Tokens, images and money.

    :param cost: nanos of the currency's unit
    :param currency: the currency of the prices; empty if there is no cost
    """

    tokens: int = 0
    images: int = 0
    cost: int = 0
    currency: str = ""

    def __add__(self, other: Amount) -> Amount:
        currency = self.currency or other.currency
        if other.currency not in ("", currency):
            raise ValueError(f"{self.currency} and {other.currency} can't be added up")
        return Amount(
            self.tokens + other.tokens, self.images + other.images, self.cost + other.cost, currency
        )

    def __sub__(self, other: Amount) -> Amount:
        return self + Amount(-other.tokens, -other.images, -other.cost, other.currency)

    def __mul__(self, count: int) -> Amount:
        return Amount(self.tokens * count, self.images * count, self.cost * count, self.currency)

    def __str__(self) -> str:
        counts = f"{self.tokens:,} tokens and {self.images:,} image{'s' * (self.images != 1)}"
        return f"{counts} ({Cost(self.cost, self.currency)})" if self.currency else counts

    def __le__(self, other: Amount) -> bool:
        return self.tokens <= other.tokens and self.images <= other.images and self.cost <= other.cost

    def fits(self, limit: Limit) -> bool:
        """Return whether the amount is within ``limit``."""
        return (
            (limit.tokens is None or self.tokens <= limit.tokens)
            and (limit.images is None or self.images <= limit.images)
            and (limit.cost is None or self.cost <= limit.cost)
        )


def estimate(job: ImageJob, prices: Prices = PUBLISHED) -> Amount:
    """Return the estimated cost of a job, from the published token figures and the prices."""
    usage = expected_usage(job.request)
    cost = prices.cost_of(usage)
    return Amount(usage["total_tokens"], job.request.n, cost.nanos if cost else 0, prices.currency)


def spent_on(receipt: Receipt, job: ImageJob, prices: Prices = PUBLISHED) -> Amount:
    """Return what a task has spent on a job in its Dag run. Attempts of unknown cost count as estimated."""
    spent, about = Amount(), estimate(job, prices)
    for attempt in receipt.attempts_of(job.owner):
        if attempt.may_cost:
            tokens = (attempt.usage or {}).get("total_tokens")
            known = tokens if isinstance(tokens, int) and tokens else about.tokens
            cost = attempt.cost
            if cost is None or cost.currency != prices.currency:  # currencies are never mixed
                cost = prices.cost_of(attempt.usage)
            nanos = about.cost if cost is None else cost.nanos
            spent += Amount(known, max(len(attempt.images), about.images), nanos, prices.currency)
    return spent


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
        self._task_limit = task_limit
        self._run_limit = run_limit
        self._run = run if run_limit else None
        self._spent = spent
        self._reserved: dict[str, tuple[Amount, Amount]] = {}
        self._committed = Amount()
        """The entry of this task in the Dag run's object: at least what it has spent and reserved."""
        self._wanted = Amount()
        self._changed = threading.Condition()

    @classmethod
    def unlimited(cls) -> Budget:
        """Return a budget without limits."""
        return cls(Limit(), Limit(), None)

    def start(self, spent: Amount, wanted: Amount | None = None) -> None:
        """Set what the task has spent before its jobs start.

        :param wanted: the estimated cost of all jobs, to reserve the cost of several jobs at once
        """
        self._spent = spent
        self._wanted = spent + (wanted or Amount())

    @property
    def spent(self) -> Amount:
        """What the task has spent on jobs that have ended."""
        return self._spent or Amount()

    def reserve(self, job: ImageJob, receipt: Receipt, permit: Callable[[], None]) -> None:
        """Reserve the cost of a job. If there is no room, wait for other jobs: they may cost less than reserved.

        :param receipt: the job's receipt
        :param permit: called while waiting; raises if the job must not be sent any more
        :raises JojoKeyBudgetError: if the job would exceed a limit
        :raises JojoKeyError: if the run's object cannot be read or written
        """
        if not (self._task_limit or self._run_limit):
            return
        about, before = estimate(job, self.prices), spent_on(receipt, job, self.prices)
        with self._changed:
            if (earlier := self._reserved.pop(job.uri, None)) is not None:
                before = earlier[1]  # keep the first value; settle() adds what was spent since
            self._spent = before if self._spent is None else self._spent
            while not self._has_room(about):
                others = bool(self._reserved)
                if not others or not (self.spent + about).fits(self._task_limit):
                    raise self._exceeded_error(about)
                self._changed.wait(RECHECK)
                permit()
            self._reserved[job.uri] = (about, before)

    def settle(self, job: ImageJob, receipt: Receipt | None, claimed: bool) -> None:
        """Replace the reservation of an ended job by its actual cost.

        :param receipt: the job's receipt; ``None`` if it is unknown
        :param claimed: whether the job may have been paid for in this run; if so, and the receipt is unknown,
            the reserved amount counts as spent
        """
        with self._changed:
            about, before = self._reserved.pop(job.uri, (None, Amount()))
            if about is not None:
                unknown = before + about if claimed else before
                after = unknown if receipt is None else spent_on(receipt, job, self.prices)
                self._spent = self.spent + after - before
            elif self._spent is None and receipt is not None:
                self._spent = spent_on(
                    receipt, job, self.prices
                )  # replaces the reservation of a try that died
            self._changed.notify_all()

    def close(self) -> None:
        """Replace the task's reservation in the Dag run by what it has spent. Errors are only logged."""
        with self._changed:
            if self._run is None or self._spent is None:
                return
            try:
                self._run.commit(self._spent, Limit())
                self._committed = self._spent
            except JojoKeyError as error:
                log.warning("The Dag run's budget still contains this task's reservation: %s", error.message)

    def _has_room(self, about: Amount) -> bool:
        reserved = sum((amount for amount, _ in self._reserved.values()), self.spent + about)
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
        return JojoKeyBudgetError(what)


def budget_of(job: ImageJob, store: ImageStore, prices: Prices = PUBLISHED) -> Budget:
    """Return the budget of a task with a single job."""
    run = RunBudget(store, job.destination.bucket, job.owner) if job.run_limit else None
    return Budget(job.task_limit, job.run_limit, run, prices=prices)


class RunBudget:
    """The object in S3 that records what the tasks of one Dag run have spent and reserved.

    :param store: S3
    :param bucket: the bucket, the same for all tasks that share the limit
    :param owner: this task
    """

    def __init__(self, store: ImageStore, bucket: str, owner: Owner) -> None:
        self._store = store
        self._bucket = bucket
        # Not .json, which would look like a receipt.
        self._key = f"{RECEIPTS}budgets/{part(owner.dag_id)}/{part(owner.run_id)}.budget"
        self._own = f"{owner.task_id}[{owner.map_index}]" if owner.map_index >= 0 else owner.task_id
        self._tasks: dict[str, Amount] | None = None
        self._etag: str | None = None

    @property
    def uri(self) -> str:
        """The object's ``s3://`` URI."""
        return f"s3://{self._bucket}/{self._key}"

    @property
    def protected(self) -> bool:
        """Whether a task cannot overwrite another task's entry unnoticed."""
        return self._store.conditional_writes_verified(self._bucket)

    def left(self, own: Amount, limit: Limit) -> tuple[float, float, float]:
        """Return the tokens, images and nanos that the run has left, with ``own`` for this task, as last read."""
        total = self.total(own)
        return (
            math.inf if limit.tokens is None else limit.tokens - total.tokens,
            math.inf if limit.images is None else limit.images - total.images,
            math.inf if limit.cost is None else limit.cost - total.cost,
        )

    def total(self, own: Amount) -> Amount:
        """Return the sum over the run's tasks, with ``own`` for this task. Costs in other currencies are left out."""
        total = own
        for amount in self._others():
            same = amount.currency == own.currency
            total += amount if same else Amount(amount.tokens, amount.images)
        return total

    def _others(self) -> list[Amount]:
        return [amount for task, amount in (self._tasks or {}).items() if task != self._own]

    def _check_currencies(self, own: Amount) -> None:
        """Check that the tasks' costs have the same currency.

        :raises JojoKeyBudgetError: if the currencies differ
        """
        currencies = {amount.currency for amount in (own, *self._others()) if amount.tokens}
        if len(currencies) > 1:
            listed = ", ".join(sorted(currency or "an unknown currency" for currency in currencies))
            raise JojoKeyBudgetError(
                f"max_cost_per_run can't be checked: the tasks of this Dag run have costs in {listed}.",
                "Use one currency in price_per_million of all connections.",
            )

    def commit(self, own: Amount, limit: Limit) -> bool:
        """Write this task's entry, unless the run would exceed ``limit``.

        :return: whether the entry fits into the limit
        :raises JojoKeyStoreError: if S3 does not accept it
        :raises JojoKeyReceiptError: if the object is unreadable
        """
        for conflicts in range(MAX_CONFLICTS):
            # Without conditional writes, a write could replace newer entries, so read first.
            fresh = self._tasks is None or not self.protected
            tasks = self._tasks = self._read() if fresh or self._tasks is None else self._tasks
            if limit.cost is not None:
                self._check_currencies(own)
            fits = self.total(own).fits(limit)
            if fits and tasks.get(self._own, Amount()) == own:
                return True  # also if the response to an earlier write was lost
            if not fits and fresh:
                return False
            if fits:
                changed = {**tasks, self._own: own}
                etag = self._store.write(self._bucket, self._key, _to_json(changed), replacing=self._etag)
                if etag is not None:
                    self._tasks, self._etag = changed, etag
                    return True
                clock.pause(random.uniform(0, 0.05 * min(conflicts + 1, 10)))
            self._tasks = None  # other tasks may have written since the read
        raise JojoKeyStoreError(
            f"Other tasks wrote to {self.uri} {MAX_CONFLICTS} times while this one tried to write.",
            transient=True,
        )

    def _read(self) -> dict[str, Amount]:
        found = self._store.read(self._bucket, self._key)
        if found is None:
            self._etag = None
            return {}
        data, self._etag = found
        try:
            document = json.loads(data)
            if document["version"] != VERSION:
                raise ValueError("another version")
            return {
                task: Amount(
                    _count(entry["tokens"]),
                    _count(entry["images"]),
                    _count(entry.get("cost", 0)),
                    str(entry.get("currency", "")),
                )
                for task, entry in document["tasks"].items()
            }
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise JojoKeyReceiptError(
                f"The budget of the Dag run, {self.uri}, cannot be read, so what its tasks have spent is unknown.",
                "Repair the object or restore an earlier version of it. Do not delete it unless you accept that "
                "the limit no longer counts what finished tasks have spent.",
            ) from None


def _to_json(tasks: dict[str, Amount]) -> bytes:
    entries: dict[str, Any] = {
        task: {
            "tokens": amount.tokens,
            "images": amount.images,
            **({"cost": amount.cost, "currency": amount.currency} if amount.currency else {}),
        }
        for task, amount in tasks.items()
    }
    return json.dumps({"version": VERSION, "tasks": entries}, indent=1).encode()


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError
    return value


def _text(limit: Limit, prices: Prices) -> str:
    parts = [f"{limit.tokens:,} tokens"] if limit.tokens is not None else []
    parts += [f"{limit.images:,} images"] if limit.images is not None else []
    parts += [str(Cost(limit.cost, prices.currency, approximate=False))] if limit.cost is not None else []
    return " and ".join(parts)
