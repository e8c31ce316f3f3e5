"""What a task has spent and was billed in its Dag run, from the receipts at all of its keys."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

from msgspec import Struct, field

from airflow_provider_jojokey.cost import Costs
from airflow_provider_jojokey.payments.amount import Amount, spent_on
from airflow_provider_jojokey.payments.receipt import total_usage
from airflow_provider_jojokey.payments.receipt_store import ReceiptStore

if TYPE_CHECKING:
    from airflow_provider_jojokey.cost import Prices
    from airflow_provider_jojokey.payments.attempt import Owner
    from airflow_provider_jojokey.payments.job import ImageJob
    from airflow_provider_jojokey.store.keys import Destination
    from airflow_provider_jojokey.store.s3 import ImageStore


class _Sum(Protocol):
    def __add__(self, other: Self, /) -> Self: ...


Item = TypeVar("Item")
Sum = TypeVar("Sum", bound=_Sum)


class Billed(Struct, frozen=True):
    """The tokens billed to a task, and what they cost, as far as its receipts show it."""

    usage: dict[str, Any] = field(default_factory=lambda: total_usage(()))
    cost: Costs = field(default_factory=Costs)

    def __add__(self, other: Billed) -> Billed:
        return Billed(total_usage((self.usage, other.usage)), self.cost + other.cost)


def spent_by_job(
    store: ImageStore, jobs: Iterator[ImageJob], total: int, prices: Prices, stopped: Callable[[], bool]
) -> dict[str, Amount]:
    """Return what earlier tries of a task have spent on each of its jobs, by the job's URI.

    :param total: number of jobs
    :param stopped: whether the batch has been stopped
    :raises JojoKeyError: if a receipt cannot be read
    """
    counted: dict[str, Amount] = {}

    def spent(job: ImageJob) -> Amount:
        amount = spent_on(ReceiptStore(store, job.destination).read(), job, prices)
        if amount != Amount():  # most jobs of a large batch have none
            counted[job.uri] = amount
        return amount

    _add_up(jobs, spent, Amount(), min(store.connections or 1, total), stopped)
    return counted


def billed_so_far(
    store: ImageStore, destinations: Iterator[Destination], total: int, owner: Owner, within: float
) -> Billed:
    """Return what a task was billed at these destinations in its Dag run, over all tries.

    :param total: number of destinations
    :param within: time limit in seconds
    :raises JojoKeyError: if a receipt cannot be read
    :raises TimeoutError: if S3 does not respond in time
    """

    def billed(destination: Destination) -> Billed:
        receipt = ReceiptStore(store, destination).read()
        return Billed(receipt.usage_of(owner), receipt.cost_of(owner))

    readers = min(store.connections or 1, total)
    try:
        return _add_up(destinations, billed, Billed(), readers, lambda: False, within)
    except queue.Empty:
        raise TimeoutError("S3 did not respond in time") from None


def _add_up(
    items: Iterator[Item],
    value: Callable[[Item], Sum],
    zero: Sum,
    threads: int,
    stopped: Callable[[], bool],
    within: float | None = None,
) -> Sum:
    """Return the sum of ``value`` over all items, computed by several threads."""
    lock, ended = threading.Lock(), threading.Event()
    sums: queue.SimpleQueue[Sum | BaseException] = queue.SimpleQueue()

    def add_up() -> None:
        total = zero
        try:
            while not (ended.is_set() or stopped()):
                with lock:
                    item = next(items, None)
                if item is None:
                    break
                total += value(item)
        except BaseException as error:
            sums.put(error)
        else:
            sums.put(total)

    # A thread pool would wait for its threads even if S3 does not respond.
    for number in range(threads):
        threading.Thread(target=add_up, name=f"jojokey-receipts-{number}", daemon=True).start()
    total, end = zero, None if within is None else time.monotonic() + within
    try:
        for _ in range(threads):
            found = sums.get(timeout=None if end is None else max(0.0, end - time.monotonic()))
            if isinstance(found, BaseException):
                raise found
            total += found
    finally:
        ended.set()  # after an error or an interruption, the readers end
    return total
