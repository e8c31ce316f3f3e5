"""What a batch has spent in earlier tries, from the receipts of its items."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from airflow_provider_jojokey.payments.amount import Amount, spent_on
from airflow_provider_jojokey.payments.receipt_store import ReceiptStore

if TYPE_CHECKING:
    from airflow_provider_jojokey.cost import Prices
    from airflow_provider_jojokey.payments.job import ImageJob
    from airflow_provider_jojokey.store.s3 import ImageStore


def sum_spent(
    store: ImageStore, jobs: Iterator[ImageJob], total: int, prices: Prices, stopped: Callable[[], bool]
) -> Amount:
    """Return what was spent on these jobs in earlier tries of their task. Reads their receipts in parallel.

    :param total: number of jobs
    :param stopped: whether the batch has been stopped
    :raises JojoKeyError: if a receipt cannot be read
    """
    lock, ended = threading.Lock(), threading.Event()
    sums: queue.SimpleQueue[Amount | BaseException] = queue.SimpleQueue()

    def add_up() -> None:
        spent = Amount()
        try:
            while not (ended.is_set() or stopped()):
                with lock:
                    job = next(jobs, None)
                if job is None:
                    break
                spent += spent_on(ReceiptStore(store, job.destination).read(), job, prices)
        except BaseException as error:
            sums.put(error)
        else:
            sums.put(spent)

    # A thread pool would wait for its threads even if S3 does not respond.
    readers = min(store.connections or 1, total)
    for number in range(readers):
        threading.Thread(target=add_up, name=f"jojokey-receipts-{number}", daemon=True).start()
    spent = Amount()
    try:
        for _ in range(readers):
            found = sums.get()
            if isinstance(found, BaseException):
                raise found
            spent += found
    finally:
        ended.set()  # after an error or an interruption, the readers end
    return spent
