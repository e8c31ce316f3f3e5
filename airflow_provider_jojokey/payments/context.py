"""The state that the steps of the payment path share: the job, its services, and derived values."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

from msgspec import Struct, field

from airflow_provider_jojokey.exceptions import JojoKeyError
from airflow_provider_jojokey.img2.estimate import duration_factor
from airflow_provider_jojokey.img2.rules import parse_size
from airflow_provider_jojokey.integrations.telemetry import Observer
from airflow_provider_jojokey.payments import clock, errors, liveness
from airflow_provider_jojokey.payments.attempt import Attempt
from airflow_provider_jojokey.payments.gateway_log import GatewayLog
from airflow_provider_jojokey.payments.receipt import Receipt
from airflow_provider_jojokey.payments.receipt_store import ReceiptStore
from airflow_provider_jojokey.payments.upload import Uploader
from airflow_provider_jojokey.store import spool_directory
from airflow_provider_jojokey.store.spool import Spool, attempts_in

if TYPE_CHECKING:
    from airflow_provider_jojokey.hooks.jojokey import JojoKeyHook
    from airflow_provider_jojokey.payments.budget import Budget
    from airflow_provider_jojokey.payments.job import ImageJob
    from airflow_provider_jojokey.settings import Settings
    from airflow_provider_jojokey.store.s3 import ImageStore

log = logging.getLogger(__name__)

POLL = 2.0
"""Seconds between two reads of a receipt while another process generates its images."""
SEND_DEADLINE = 30.0
"""Seconds after its claim within which an attempt must send its first request."""
LEASE_MARGIN = 60.0
"""Seconds added to a lease for steps without their own timeout."""
LARGEST = "3840x2160"
"""The size that takes longest."""
LOG_DELAY = 60.0
"""Seconds within which the gateway logs a finished request. It relays the response first."""


class Services(Struct, frozen=True):
    """The services that a job uses. The jobs of a batch share them.

    :param hook: the JojoKey hook
    :param store: S3
    :param settings: the worker's settings
    :param log: the gateway log, if several jobs share it
    :param budget: the limits, if several jobs share them
    :param permit: called before a claim and before each send; raises :class:`JojoKeyError` to prevent it
    :param acquire: called before a claim, after the receipt allows a payment; waits until the limiter admits the
        job, or raises :class:`JojoKeyError`
    :param on_send: called before each send, and before the last call of ``permit``, which may still prevent it
    :param on_failure: called with the error as soon as a request has failed, before that is recorded
    :param resend: whether the hook may resend a request that was not billed; a batch decides that itself
    """

    hook: JojoKeyHook
    store: ImageStore
    settings: Settings
    log: GatewayLog | None = None
    budget: Budget | None = None
    permit: Callable[[], None] = lambda: None
    acquire: Callable[[], None] = lambda: None
    on_send: Callable[[], None] = lambda: None
    on_failure: Callable[[JojoKeyError], None] = lambda error: None
    resend: bool = True


class Context(Struct, dict=True, eq=False):
    """The state of one job in the payment path.

    :param job: the job
    :param services: the services it uses
    :param observer: receives metrics and spans
    :raises JojoKeyConnectionError: if the connection cannot be used
    :raises JojoKeyStoreError: if the spool cannot be used
    """

    job: ImageJob
    services: Services
    observer: Observer = field(default_factory=Observer)

    def __post_init__(self) -> None:
        self.budget: Budget
        self.reconciled: set[str] = set()
        """Orphaned attempts that this job has reconciled, in case their spools cannot be deleted."""
        self.claimed = False
        """Whether this job has claimed an attempt, and so may have paid."""
        self._waiting = False
        self.host = self.services.hook.client.base_url  # first, because it fails if there is no token
        self.fingerprint = self.job.request.fingerprint(self.host)
        self.store = self.services.store
        self.settings = self.services.settings
        self.stopping = self.services.hook.stopping
        self.prices = self.services.hook.prices
        self.receipts = ReceiptStore(self.store, self.job.destination, self.prices, self._observe_bill)
        self.uploader = Uploader(self.job, self.store, self.settings, self.stopping, self.observer)
        try:
            self.spool_id = spool_directory.prepare(self.settings.spool_directory)
        except OSError as error:
            raise self.spool_error(error) from None

    @cached_property
    def log(self) -> GatewayLog:
        """The gateway log."""
        return self.services.log or GatewayLog(self.services.hook.client.billing_log)

    def _observe_bill(self, before: Attempt | None, recorded: Attempt) -> None:
        """Report usage and a cost that an update has added to the receipt as metrics. A fee has no usage."""
        known = before is not None and (before.usage or {}).get("total_tokens")
        cost = recorded.cost if before is None or before.cost is None else None
        if recorded.may_cost:
            self.observer.billed(None if known else recorded.usage, cost)

    def valued(self, quota: int | None, recorded: dict[str, Any] | None) -> dict[str, Any] | None:
        """Return a charge of the gateway log with its worth in money, if the gateway states that.

        A worth that is recorded stays: the gateway's exchange rate changes, but not what was paid.

        :param quota: the charge; ``None`` if the log doesn't show it
        :param recorded: the charge that the receipt shows
        """
        if quota is None or (recorded and recorded.get("quota") == quota and "amount" in recorded):
            return recorded
        charge: dict[str, Any] = {"quota": quota}
        unit = self.services.hook.quota_unit
        cost = None if unit is None else unit.cost_of(quota)
        if cost is None:
            return charge
        worth = cost.to_json()
        return {**charge, "amount": worth["amount"], "currency": worth["currency"]}

    def now(self) -> datetime:
        """Return the time of S3's clock, which all hosts share."""
        return self.store.now()

    def new_attempt(self) -> Attempt:
        """Return an attempt of this process that starts now."""
        now = self.now()
        return Attempt(
            id=uuid.uuid4().hex,
            fingerprint=self.fingerprint,
            owner=self.job.owner,
            worker=liveness.this_worker(self.spool_id),
            started_at=now,
            lease_until=now + timedelta(seconds=self._lease),
            clock=self.store.clock,
            model=self.job.request.model,
            size=self.job.request.size,
            quality=self.job.request.quality,
            requested=self.job.request.n,
        )

    def alive(self, receipt: Receipt) -> Mapping[str, bool]:
        """Return, for each attempt, whether its process may still be working on it."""
        return {attempt.id: self.is_alive(attempt) for attempt in receipt.attempts}

    def is_alive(self, attempt: Attempt) -> bool:
        """Return whether an attempt's process may still be working on it.

        A triggerer goes on running when an attempt of it has ended, so the process table is not enough.
        """
        if self.spool_of(attempt).has_ended:
            return False
        return liveness.may_be_working(attempt, self.now(), self.store.clock)

    def permit(self) -> None:
        """Check that a request may still be sent.

        :raises JojoKeyError: if not
        """
        if self.stopping.is_set():
            raise errors.stopped()
        self.services.permit()

    def wait_for(self, other: Attempt) -> None:
        """Wait a moment for an attempt of another process.

        :raises JojoKeyError: if Airflow stops this task
        """
        if not self._waiting:
            self._waiting = True
            log.info(
                "Waiting for another process (%s, process ID %d), which has been generating these images since %s.",
                other.worker.host,
                other.worker.pid,
                errors.started(other),
            )
        if clock.pause(POLL, self.stopping):
            raise errors.stopped()

    def spool_of(self, attempt: Attempt) -> Spool:
        """Return the folder on this host where an attempt's images wait."""
        return Spool.of(self.settings.spool_directory, self.job.uri, attempt.id)

    def has_spools(self) -> bool:
        """Return whether the spool on this host has attempts for the job's key.

        :raises JojoKeyStoreError: if the spool can't be read
        """
        try:
            return bool(attempts_in(self.settings.spool_directory, self.job.uri))
        except OSError as error:
            raise self.spool_error(error) from None

    @property
    def send_window(self) -> float:
        """Seconds after its claim in which an attempt sends its request, including resends."""
        settings = self.services.hook.settings
        resends = settings.max_resend_wait if self.services.resend and settings.max_resends else 0.0
        return SEND_DEADLINE + resends

    @property
    def _lease(self) -> float:
        settings = self.services.hook.settings
        # read_timeout limits each pause; a whole stream or a slow response takes longer.
        request = self.job.request
        response = settings.read_timeout * duration_factor(request.quality, request.pixels)
        return self.send_window + settings.connect_timeout + response + LEASE_MARGIN

    def sent_between(self, attempt: Attempt) -> tuple[datetime, datetime]:
        """Return the earliest and the latest time at which an attempt may have sent its request."""
        recorded = [datetime.fromisoformat(at) for at in attempt.sends]
        recorded += [datetime.fromisoformat(send["at"]) for send in self.spool_of(attempt).sends()]
        if recorded:
            return min(recorded), max(recorded)
        latest = attempt.started_at + timedelta(seconds=self.send_window)
        return attempt.started_at, min(latest, attempt.ended_at) if attempt.ended_at else latest

    def finished_by(self, attempt: Attempt) -> datetime:
        """Return the time by which the model has finished and the gateway has written its log."""
        # This job may want another size or quality. Older receipts name neither, so assume the longest generation.
        quality, pixels = attempt.quality or "high", parse_size(attempt.size or LARGEST)
        if attempt.fingerprint == self.fingerprint:
            quality, pixels = self.job.request.quality, self.job.request.pixels
        longest = self.settings.longest_generation * duration_factor(quality, pixels)
        return self.sent_between(attempt)[1] + timedelta(seconds=longest + LOG_DELAY)

    def seconds_to_finish(self, attempt: Attempt) -> float:
        """Return the seconds until :meth:`finished_by`, at least 0."""
        return max(0.0, (self.finished_by(attempt) - self.now()).total_seconds())

    def spool_error(self, error: OSError) -> JojoKeyError:
        """Return the error for a spool directory that cannot be used."""
        return errors.unusable_spool(self.settings.spool_directory, error)
