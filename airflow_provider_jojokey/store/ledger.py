"""The receipts in S3: read, claimed by one process at a time, and written again when there is news."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING, Any

from airflow_provider_jojokey.exceptions import JojoKeyReceiptError, JojoKeyStoreError
from airflow_provider_jojokey.store.keys import Destination
from airflow_provider_jojokey.store.receipts import Attempt, Owner, Receipt, ReceiptUnreadable, Worker

if TYPE_CHECKING:
    from airflow_provider_jojokey.store.s3 import ImageStore

log = logging.getLogger(__name__)

SETTLING = 1.0
"""Seconds between a claim and the look whether it still stands, on a store that knows no conditions."""

_at_work: set[str] = set()
_at_work_lock = threading.Lock()


class Ledger:
    """The receipt of one place for images.

    :param store: S3
    :param destination: the place
    """

    def __init__(self, store: ImageStore, destination: Destination) -> None:
        self.store = store
        self.bucket = destination.bucket
        self.key = destination.receipt_key
        self._empty = Receipt(bucket=destination.bucket, key=destination.key)
        self._etag: str | None = None
        self._receipt: Receipt | None = None

    @property
    def uri(self) -> str:
        """The receipt's ``s3://`` URI."""
        return f"s3://{self.bucket}/{self.key}"

    def read(self) -> Receipt:
        """Return what was written down so far; an empty receipt if surely nothing was.

        :raises JojoKeyStoreError: if S3 does not tell
        :raises JojoKeyReceiptError: if what is there cannot be understood
        """
        found = self.store.read(self.bucket, self.key)
        if found is None:
            self._etag = self._receipt = None
            return self._empty
        data, self._etag = found
        try:
            self._receipt = Receipt.from_json(data)
            return self._receipt
        except ReceiptUnreadable as error:
            raise JojoKeyReceiptError(
                f"The receipt {self.uri} cannot be read: {error}. Nothing was sent or billed by this attempt, "
                "but what it says of earlier ones is lost to it. Repair it; or, if no earlier image is to be "
                "kept, delete it and clear the task: that pays for a new image."
            ) from None

    def claim(self, receipt: Receipt, attempt: Attempt) -> bool:
        """Write ``attempt`` down as open, before it pays; tell whether it may.

        :param receipt: as it was read last, with ``attempt`` in it
        :return: ``False`` if another process was faster: read again
        :raises JojoKeyStoreError: if S3 does not take it; nothing may be paid then
        """
        data = receipt.to_json()
        etag = self.store.write(self.bucket, self.key, data, replacing=self._etag)
        if etag is None:
            return False
        self._etag = etag
        self._receipt = receipt
        if self.store.honours_conditions(self.bucket, self.key, data):
            return True
        # Such a store takes both of two writers' claims. The later one stands; the earlier one sees that
        # here, unless the other was slower than this between its reading and its writing. Who has read
        # this claim keeps it and adds to it, so it stands wherever it is found.
        time.sleep(SETTLING)
        return self.read().attempt(attempt.id) is not None

    def record(self, attempt: Attempt, instead_of: Attempt | None = None) -> Receipt:
        """Write down what became of ``attempt``, whatever others have written meanwhile.

        :param instead_of: what was read of an attempt that is not this process's own: if others have
            written something else of it since then, that stands
        :return: the receipt as it is now
        :raises JojoKeyStoreError: if S3 does not take it
        """
        for again in range(20):
            # Nobody else can have written where conditions hold; if somebody has, the write says so.
            unchanged = self._receipt if self.store.proven and not again else None
            receipt = unchanged or self.read()
            if instead_of is not None and receipt.attempt(attempt.id) != instead_of:
                return receipt
            receipt = receipt.with_attempt(attempt)
            etag = self.store.write(self.bucket, self.key, receipt.to_json(), replacing=self._etag)
            if etag is not None:
                self._etag, self._receipt = etag, receipt
                return receipt
        raise JojoKeyStoreError(f"{self.uri} is written by others all the time.", passing=True)


def new_attempt(fingerprint: str, owner: Owner, lease: float, spool_id: str) -> Attempt:
    """Return an attempt of this process, beginning now.

    :param lease: seconds for which others, who cannot see this process, believe that it is at work
    :param spool_id: the id of the folder where its images will wait
    """
    now = datetime.now(UTC)
    return Attempt(
        id=uuid.uuid4().hex,
        fingerprint=fingerprint,
        owner=owner,
        worker=replace(this_worker(), spool=spool_id),
        started_at=now,
        lease_until=now + timedelta(seconds=lease),
    )


def begin(attempt: Attempt) -> None:
    """Mark an attempt as under way in this process, where a thread's death would go unseen."""
    with _at_work_lock:
        _at_work.add(attempt.id)


def end(attempt: Attempt) -> None:
    """Take the mark away."""
    with _at_work_lock:
        _at_work.discard(attempt.id)


def may_be_alive(attempt: Attempt) -> bool:
    """Tell whether the process that makes ``attempt`` may still be at work.

    On this host it is looked at; elsewhere it counts as alive until its lease ends.
    """
    here = this_worker()
    there = attempt.worker
    if there.host != here.host:
        return datetime.now(UTC) < attempt.lease_until
    if there.pid == here.pid and _same_start(there.started, here.started):
        return attempt.id in _at_work
    return _runs(there)


def _runs(worker: Worker) -> bool:
    import psutil

    try:
        process = psutil.Process(worker.pid)
        return bool(
            _same_start(process.create_time(), worker.started) and process.status() != psutil.STATUS_ZOMBIE
        )
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True  # it is there, and more is not ours to know


def _same_start(one: float, other: float) -> bool:
    return abs(one - other) < 2.0


def this_worker() -> Worker:
    """Return this process."""
    return _worker_of(os.getpid())  # asked each time: a fork has another


@cache
def _worker_of(pid: int) -> Worker:
    import psutil

    return Worker(host=_host(), pid=pid, started=psutil.Process(pid).create_time())


def _host() -> str:
    """Return the host's name, and its process namespace: containers may share the one without the other."""
    try:
        namespace: Any = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    return f"{socket.gethostname()} {namespace}".strip()
