"""What a task, and a Dag run, may spend: asked before each request, counted from the receipts.

A task knows what it has spent in its Dag run from its own receipts, over all its tries. For a limit
on the Dag run there is a ledger in S3, one small object with one entry for each task: what it has
spent plus what it is about to. A task only ever writes its own entry, and works it out anew each time,
so a task that died corrects the entry with its next try. An entry is written with the condition that
nobody has written meanwhile, so of two tasks that want the last of a budget one gets it. Where the store
does not honour that, the ledger is read anew before each entry, and two that write at once may pass the limit.
"""

from __future__ import annotations

import json
import logging
import random
import time
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from airflow_provider_jojokey.choices import LIMITS
from airflow_provider_jojokey.exceptions import (
    JojoKeyBudgetError,
    JojoKeyError,
    JojoKeyReceiptError,
    JojoKeyStoreError,
)
from airflow_provider_jojokey.generation import generate_images
from airflow_provider_jojokey.img2.estimate import expected_tokens
from airflow_provider_jojokey.store.keys import RECEIPTS, part
from airflow_provider_jojokey.store.ledger import Ledger
from airflow_provider_jojokey.store.receipts import Outcome, Owner, Receipt

if TYPE_CHECKING:
    from airflow_provider_jojokey.hooks.jojokey import JojoKeyHook
    from airflow_provider_jojokey.order import Order
    from airflow_provider_jojokey.settings import Settings
    from airflow_provider_jojokey.store.s3 import ImageStore

log = logging.getLogger(__name__)

VERSION = 1
RACES = 50


@dataclass(frozen=True, slots=True)
class Amount:
    """Tokens and images."""

    tokens: int = 0
    images: int = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.tokens + other.tokens, self.images + other.images)

    def __sub__(self, other: Amount) -> Amount:
        return Amount(self.tokens - other.tokens, self.images - other.images)

    def __str__(self) -> str:
        return f"{self.tokens:,} tokens and {self.images:,} images"


@dataclass(frozen=True, slots=True)
class Limit:
    """The most that may be spent; ``None`` is no limit."""

    tokens: int | None = None
    images: int | None = None

    def __bool__(self) -> bool:
        return self.tokens is not None or self.images is not None

    def allows(self, amount: Amount) -> bool:
        """Tell whether ``amount`` is within."""
        return (self.tokens is None or amount.tokens <= self.tokens) and (
            self.images is None or amount.images <= self.images
        )

    def __str__(self) -> str:
        parts = [f"{self.tokens:,} tokens"] if self.tokens is not None else []
        parts += [f"{self.images:,} images"] if self.images is not None else []
        return " and ".join(parts)


def estimate(order: Order) -> Amount:
    """Return about what an order will take."""
    return Amount(expected_tokens(order.request), order.request.n)


def spent_on(receipt: Receipt, order: Order) -> Amount:
    """Return what an order's task has spent on it in its Dag run; where no one knows, the estimate."""
    spent = Amount()
    for attempt in receipt.attempts:
        if attempt.owner.is_task_of(order.owner) and attempt.outcome is not Outcome.NOT_BILLED:
            told = (attempt.usage or {}).get("total_tokens")
            about = estimate(order)
            tokens = told if isinstance(told, int) and told else about.tokens
            spent += Amount(tokens, max(len(attempt.images), about.images))
    return spent


class Verdict(StrEnum):
    """What :meth:`Budget.reserve` says."""

    YES = "yes"
    NO = "no"
    WAIT = "wait"
    """There may be room once what is in flight turns out to cost less than was set aside for it."""


class Budget:
    """What one task may spend. Not for threads: one asks for all.

    :param limit: the task's, over all its tries in one Dag run
    :param run_limit: the Dag run's, over all its tasks
    :param ledger: where the run's tasks tell each other; needed with ``run_limit``
    :param items: how many orders the task has
    """

    def __init__(self, limit: Limit, run_limit: Limit, ledger: RunLedger | None, items: int = 1) -> None:
        self.limit = limit
        self.run_limit = run_limit
        self.ledger = ledger
        self.spent = Amount()
        self._reserved = Amount()
        self._tokens = array("q", [0]) * items
        self._images = array("q", [0]) * items
        self._wishes: dict[int, Amount] = {}

    def known(self, index: int, spent: Amount) -> None:
        """Take notice of what was spent on an item."""
        before = Amount(self._tokens[index], self._images[index])
        self._tokens[index], self._images[index] = spent.tokens, spent.images
        self.spent += spent - before

    def reserve(self, index: int, wish: Amount) -> Verdict:
        """Set ``wish`` aside for an item, if there is room for it.

        :raises JojoKeyError: if the run's ledger does not tell
        """
        own = self.spent + wish
        if not self.limit.allows(own):
            return Verdict.NO
        if not self.limit.allows(own + self._reserved):
            return Verdict.WAIT
        if self.ledger is not None and not self.ledger.book(own + self._reserved, self.run_limit):
            return Verdict.WAIT if self._wishes else Verdict.NO
        self._wishes[index] = wish
        self._reserved += wish
        return Verdict.YES

    def release(self, index: int) -> None:
        """Give back what was set aside for an item that cost nothing now."""
        self._reserved -= self._wishes.pop(index, Amount())

    def settle(self, index: int, spent: Amount | None, sent: bool) -> None:
        """Count an item that has come to an end.

        :param spent: what was spent on it by its receipt; ``None`` if that does not tell
        :param sent: whether it was sent now, and may have been billed
        """
        wish = self._wishes.get(index, Amount())
        self.release(index)
        if spent is not None:
            self.known(index, spent)
        elif sent:
            self.known(index, Amount(self._tokens[index], self._images[index]) + wish)

    def close(self) -> None:
        """Tell the run's other tasks what was really spent.

        :raises JojoKeyError: if the run's ledger does not take it
        """
        if self.ledger is not None:
            self.ledger.book(self.spent, Limit())

    def refusal(self, wish: Amount) -> JojoKeyBudgetError:
        """Return the error for what there is no room for."""
        if not self.limit.allows(self.spent + wish):
            whose, limit = "This task", self.limit
            told = f"it has spent {self.spent} in this Dag run"
        else:
            assert self.ledger is not None
            whose, limit = "This Dag run", self.run_limit
            told = f"its tasks have spent, or set aside, {self.ledger.total(self.spent)}"
        return JojoKeyBudgetError(
            f"{whose} may spend {limit}; {told}, and this would take about {wish}. It was not sent."
        )


def limits(values: Mapping[str, Any]) -> tuple[Limit, Limit]:
    """Return the task's limit and the Dag run's, from an operator's arguments.

    :param values: by the names in :data:`LIMITS`; numbers, texts of numbers, or ``None``
    :raises ValueError: if one of them is no number from 0
    """
    numbers: list[int | None] = []
    for name in LIMITS:
        value = values.get(name)
        if isinstance(value, str) and value.strip().isdecimal():
            value = int(value)
        if isinstance(value, str) and value.strip() in ("", "None"):
            value = None
        if value is not None and (type(value) is not int or value < 0):
            raise ValueError(f"{name} must be a whole number from 0, not {str(value)[:40]!r}")
        numbers.append(value)
    return Limit(*numbers[:2]), Limit(*numbers[2:])


def limits_to_json(limits: tuple[Limit, Limit]) -> dict[str, int | None]:
    """Return limits for another process, as :func:`limits` takes them."""
    own, run = limits
    return dict(zip(LIMITS, (own.tokens, own.images, run.tokens, run.images), strict=True))


def generate_within_limits(
    order: Order,
    limits: tuple[Limit, Limit],
    *,
    jojokey: JojoKeyHook,
    store: ImageStore,
    settings: Settings,
) -> dict[str, Any]:
    """Make a task's single order as :func:`generate_images` does, if its task and its Dag run may spend that.

    :param limits: the task's, and the Dag run's
    :raises JojoKeyBudgetError: if it has to be paid for, and there is no room for it
    :raises JojoKeyError: if there are no images
    """
    shop: dict[str, Any] = {"jojokey": jojokey, "store": store, "settings": settings}
    if not any(limits):
        return generate_images(order, **shop)
    try:
        manifest = generate_images(
            order, **shop, reserve=lambda receipt: reserve(order, limits, receipt, store)
        )
    except JojoKeyError as error:
        if error.billed != "unknown":  # else what was set aside stays so
            settle(order, limits, store)
        raise
    settle(order, limits, store)
    return manifest


def reserve(order: Order, limits: tuple[Limit, Limit], receipt: Receipt, store: ImageStore) -> None:
    """See that there is room for an order that has to be paid for, and set it aside in the run's ledger.

    An attempt of which nobody knows whether it was billed counts as spent.

    :raises JojoKeyBudgetError: if there is no room
    :raises JojoKeyError: if the run's ledger does not tell
    """
    budget = _of_one(order, limits, store)
    budget.known(0, spent_on(receipt, order))
    if budget.reserve(0, estimate(order)) is not Verdict.YES:
        error = budget.refusal(estimate(order))
        error.usage = receipt.usage_of(order.owner)
        raise error


def settle(order: Order, limits: tuple[Limit, Limit], store: ImageStore) -> None:
    """Write down in the run's ledger what an order has cost by its receipt; what that does not tell stays set aside."""
    budget = _of_one(order, limits, store)
    if budget.ledger is None:
        return
    try:
        budget.known(0, spent_on(Ledger(store, order.destination).read(), order))
        budget.close()
    except JojoKeyError as error:
        log.warning("The Dag run's ledger still holds what was set aside: %s", error.message)


def _of_one(order: Order, limits: tuple[Limit, Limit], store: ImageStore) -> Budget:
    own, run = limits
    return Budget(own, run, RunLedger(store, order.destination.bucket, order.owner) if run else None)


class RunLedger:
    """What the tasks of one Dag run have spent, in S3.

    :param store: S3
    :param bucket: the bucket, the same for all tasks that share the limit
    :param owner: this task
    """

    def __init__(self, store: ImageStore, bucket: str, owner: Owner) -> None:
        self.store = store
        self.bucket = bucket
        # Not .json: that would be the name of a receipt.
        self.key = f"{RECEIPTS}budgets/{part(owner.dag_id)}/{part(owner.run_id)}.ledger"
        self._own = f"{owner.task_id}[{owner.map_index}]" if owner.map_index >= 0 else owner.task_id
        self._tasks: dict[str, Amount] | None = None
        self._etag: str | None = None

    @property
    def uri(self) -> str:
        """The ledger's ``s3://`` URI."""
        return f"s3://{self.bucket}/{self.key}"

    def total(self, own: Amount) -> Amount:
        """Return what the run has come to, with ``own`` for this task."""
        others = [amount for task, amount in (self._tasks or {}).items() if task != self._own]
        return sum(others, own)

    def book(self, own: Amount, limit: Limit) -> bool:
        """Write this task's entry, unless the run would pass ``limit``.

        :return: whether there was room
        :raises JojoKeyStoreError: if S3 does not take it
        :raises JojoKeyReceiptError: if what is there cannot be understood
        """
        for again in range(RACES):
            # Only where conditions hold does a write fail that would replace what others have written since.
            fresh = self._tasks is None or not self.store.proven
            if self._tasks is None or fresh:
                self._tasks = self._read()
            if self._tasks.get(self._own, Amount()) == own and limit.allows(self.total(own)):
                return True  # nothing is to be written
            if not limit.allows(self.total(own)):
                if fresh:
                    return False
                self._tasks = None  # others may have given something back since it was read
                continue
            tasks = {**self._tasks, self._own: own}
            etag = self.store.write(self.bucket, self.key, _to_json(tasks), replacing=self._etag)
            if etag is not None:
                self._tasks, self._etag = tasks, etag
                return True
            self._tasks = None
            time.sleep(random.uniform(0, 0.05 * min(again + 1, 10)))  # others write just now
        raise JojoKeyStoreError(f"{self.uri} is written by others all the time.", passing=True)

    def _read(self) -> dict[str, Amount]:
        found = self.store.read(self.bucket, self.key)
        if found is None:
            self._etag = None
            return {}
        data, self._etag = found
        try:
            document = json.loads(data)
            if document["version"] != VERSION:
                raise ValueError("another version")
            return {
                task: Amount(_count(one["tokens"]), _count(one["images"]))
                for task, one in document["tasks"].items()
            }
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise JojoKeyReceiptError(
                f"The Dag run's ledger {self.uri} cannot be read, so what its tasks have spent is not known. "
                "Nothing was sent. Repair it, or delete it and clear the task: each task then counts its own again."
            ) from None


def _to_json(tasks: dict[str, Amount]) -> bytes:
    entries: dict[str, Any] = {
        task: {"tokens": one.tokens, "images": one.images} for task, one in tasks.items()
    }
    return json.dumps({"version": VERSION, "tasks": entries}, indent=1).encode()


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError
    return value
