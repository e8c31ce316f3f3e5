"""Receipts in S3: read, claim and update one receipt by compare-and-set.

Each write names the version that it replaces. For stores that do not enforce this, see :data:`CLAIM_RECHECK`.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from airflow_provider_jojokey.exceptions import JojoKeyReceiptError, JojoKeyStoreError
from airflow_provider_jojokey.payments import clock
from airflow_provider_jojokey.payments.attempt import TRANSITIONS, Attempt, Event
from airflow_provider_jojokey.payments.receipt import Receipt, ReceiptUnreadable

if TYPE_CHECKING:
    from airflow_provider_jojokey.cost import Prices
    from airflow_provider_jojokey.store.keys import Destination
    from airflow_provider_jojokey.store.s3 import ImageStore

log = logging.getLogger(__name__)

CLAIM_RECHECK = 1.0
"""Seconds between a claim and the check that it is still there, on a store without conditional writes.

Such a store accepts the claims of two writers, and the later one replaces the earlier one. The earlier writer
notices this here, unless the later one takes longer than this between its read and its write.
"""
MAX_READ_AGE = 1.0
"""Seconds after which a receipt is read again before a claim, unless the store is known to protect it."""
MAX_CONFLICTS = 20
"""Writes that may fail because of other writers before the store counts as unusable."""


class ReceiptStore:
    """The receipt at one key.

    :param store: S3
    :param destination: the images' bucket and key
    :param prices: what usage costs; without them, only a charge shows a cost
    :param on_update: called after an update with the attempt as S3 had it before, and as it is now
    """

    def __init__(
        self,
        store: ImageStore,
        destination: Destination,
        prices: Prices | None = None,
        on_update: Callable[[Attempt | None, Attempt], None] = lambda before, now: None,
    ) -> None:
        self._store = store
        self._prices = prices
        self._on_update = on_update
        self.bucket = destination.bucket
        self.key = destination.receipt_key
        self._empty = Receipt(bucket=destination.bucket, key=destination.key)
        self._etag: str | None = None
        self._receipt: Receipt | None = None
        self._read_at = float("-inf")
        self._unconfirmed: dict[str, list[tuple[Attempt | None, Attempt]]] = {}
        """Updates by attempt, as it was before and after, for which S3 has not confirmed the write."""

    @property
    def uri(self) -> str:
        """The receipt's ``s3://`` URI."""
        return f"s3://{self.bucket}/{self.key}"

    @property
    def verified(self) -> bool:
        """Whether it is proven that only one of two concurrent writers wins."""
        return self._store.conditional_writes_verified(self.bucket)

    @property
    def etag(self) -> str | None:
        """The ETag of :attr:`last`; ``None`` if it is not in S3."""
        return self._etag

    @property
    def clock(self) -> str:
        """The source of :meth:`now`: ``"s3"`` or ``"host"``."""
        return self._store.clock

    def now(self) -> datetime:
        """Return the time by S3's clock, which all hosts share."""
        return self._store.now()

    def read(self) -> Receipt:
        """Return the receipt, or an empty one if S3 reports that it does not exist.

        :raises JojoKeyStoreError: if S3 does not respond
        :raises JojoKeyReceiptError: if the receipt is unreadable
        """
        self._read_at = clock.monotonic()
        found = self._store.read(self.bucket, self.key)
        if found is None:
            self._etag, self._receipt = None, self._empty
            return self._receipt
        data, self._etag = found
        try:
            self._receipt = Receipt.from_json(data)
        except ReceiptUnreadable as error:
            self._receipt = None
            raise JojoKeyReceiptError(
                f"The receipt {self.uri} is unreadable: {error}. It records the payments of earlier attempts.",
                "Repair the object or restore an earlier version of it. If you don't need the earlier images, "
                "delete it and clear the task, which pays for a new image.",
            ) from None
        return self._receipt

    def assume_absent(self) -> Receipt:
        """Return an empty receipt without reading S3. A claim on it fails if there is a receipt."""
        self._etag = self._receipt = None
        return self._empty

    def claim(self, attempt: Attempt, host: str, request: Mapping[str, Any]) -> bool:
        """Add ``attempt`` to the receipt that was read last, before it pays.

        :param host: the gateway
        :param request: the request's body
        :return: whether it may pay; ``False`` if another process was faster
        :raises JojoKeyStoreError: if S3 does not accept the claim; the caller must not pay
        """
        seen = self._receipt
        unprotected = self._store.supports_conditional_writes is False
        if not self.verified and clock.monotonic() - self._read_at > MAX_READ_AGE:
            unprotected = True  # the claim could overwrite a newer version by another process
        if unprotected and self.read() != seen:
            return False
        receipt = self.last.with_attempt(attempt).with_request(host, request)
        # The condition also fails for a repeated request whose first response was lost.
        if not self._write(receipt) and self.read().attempt(attempt.id) is None:
            return False
        conditions = self._store.verify_conditional_writes(
            self.bucket, self.key, self.last.to_json(), self._etag or ""
        )
        self._etag = conditions.etag
        if conditions.verified:
            return True
        clock.pause(CLAIM_RECHECK)
        return self.read().attempt(attempt.id) is not None

    def update(
        self, attempt: Attempt, event: Event, *, expected: Attempt | None = None, **facts: Any
    ) -> Receipt:
        """Record an event for ``attempt``, without losing concurrent updates by other processes.

        :param expected: the attempt as it was read, if it belongs to another process: if it has changed since
            then, this does nothing
        :param facts: fields to set
        :return: the current receipt. An event that contradicts better evidence is not recorded
        :raises JojoKeyStoreError: if S3 does not accept the update
        """
        receipt = self._receipt if self.verified and self._receipt else self.read()
        for conflicts in range(MAX_CONFLICTS):
            stored = before = receipt.attempt(attempt.id)
            self._report_if_written(stored)
            if expected is not None and stored != expected:
                return receipt
            stored = stored or attempt  # absent after a lost update: add it again
            if event not in TRANSITIONS[stored.outcome]:
                log.info(
                    "The receipt keeps attempt %s as %s: it is better evidence.", stored.id, stored.outcome
                )
                return receipt
            changed = stored.after(event, **facts).priced(self._prices, stored)
            if changed == before:
                return receipt
            # The receipt has the change, too, if the response to this write was lost.
            self._unconfirmed.setdefault(attempt.id, []).append((before, changed))
            recorded = self._write(receipt.with_attempt(changed)) and self.verified
            receipt = self.last if recorded else self.read()
            if recorded or receipt.attempt(attempt.id) == changed:
                self._report_if_written(changed)
                return receipt
            clock.pause(random.uniform(0, 0.05 * (1 + conflicts)))
        raise JojoKeyStoreError(
            f"Other processes wrote to {self.uri} {MAX_CONFLICTS} times while this one tried to write.",
            "If nothing else writes there, the store mishandles conditional writes: "
            "run `airflow jojokey check --bucket`.",
            transient=True,
        )

    def _report_if_written(self, stored: Attempt | None) -> None:
        """Report an update of this process that S3 has stored, once, also if a later read shows that.

        :param stored: the attempt as S3 has it
        """
        updates = self._unconfirmed.get(stored.id, ()) if stored is not None else ()
        for before, changed in updates:
            if changed == stored:
                del self._unconfirmed[changed.id]
                self._on_update(before, changed)
                return

    @property
    def is_known(self) -> bool:
        """Whether :attr:`last` was read or written by this process."""
        return self._receipt is not None

    @property
    def last(self) -> Receipt:
        """The receipt as last read or written, or an empty one."""
        return self._receipt or self._empty

    def _write(self, receipt: Receipt) -> bool:
        etag = self._store.write(self.bucket, self.key, receipt.to_json(), replacing=self._etag)
        if etag is None:
            return False
        self._etag, self._receipt = etag, receipt
        return True
