"""The shared budget of a Dag run: a small object in S3 with one entry per task.

An entry is what a task has spent plus what it has reserved. A task writes only its own entry and computes it anew
each time, so a task that died corrects its entry in its next try. Each write names the version that it replaces, so
only one of two tasks gets the last of a budget. On a store without conditional writes, two tasks that write at once
may exceed the limit.
"""

from __future__ import annotations

import json
import math
import random
from typing import TYPE_CHECKING, Any

from airflow_provider_jojokey.exceptions import JojoKeyBudgetError, JojoKeyReceiptError, JojoKeyStoreError
from airflow_provider_jojokey.payments import clock
from airflow_provider_jojokey.payments.amount import Amount
from airflow_provider_jojokey.store.keys import RECEIPTS, part

if TYPE_CHECKING:
    from airflow_provider_jojokey.payments.attempt import Owner
    from airflow_provider_jojokey.payments.job import Limit
    from airflow_provider_jojokey.store.s3 import ImageStore

VERSION = 1
MAX_CONFLICTS = 50
"""Writes to the object that may fail because of other tasks."""


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
    def is_known(self) -> bool:
        """Whether the entries of the run's other tasks have been read."""
        return self._tasks is not None

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
            if fits and tasks.get(self._own, Amount(currency=own.currency)) == own:
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
