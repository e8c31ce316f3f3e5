"""Run a batch: one thread decides which item to send when, and one thread per image waits for its response.

Only the deciding thread changes counts, limiter and manifest. It is not the main thread: there, Airflow can raise a
timeout between any two instructions, and an image that had just arrived would not be counted. The other threads call
:func:`generate_images`, like a task with a single image.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from contextvars import copy_context
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeAlias

from msgspec.structs import replace

from airflow_provider_jojokey.batch.limiter import Limiter, Ticket
from airflow_provider_jojokey.batch.recorder import Recorder
from airflow_provider_jojokey.batch.tally import Tally, duration
from airflow_provider_jojokey.batch.worker import Failed, NeedsTicket, Turn, Workers, quiet_threads
from airflow_provider_jojokey.exceptions import (
    JojoKeyBaseUrlError,
    JojoKeyConnectionError,
    JojoKeyEdgeBlockedError,
    JojoKeyError,
    JojoKeyNoChannelError,
    JojoKeyOverloadedError,
    JojoKeyQuotaError,
    JojoKeyRateLimitError,
    JojoKeyStoreError,
    JojoKeyTLSError,
    JojoKeyTokenError,
    JojoKeyUnreachableError,
)
from airflow_provider_jojokey.integrations.telemetry import observe
from airflow_provider_jojokey.payments.amount import Amount
from airflow_provider_jojokey.payments.budget import Budget
from airflow_provider_jojokey.payments.gateway_log import GatewayLog
from airflow_provider_jojokey.payments.generate import Generated, ImageJob, Services, generate_images
from airflow_provider_jojokey.payments.totals import spent_by_job

if TYPE_CHECKING:
    from airflow_provider_jojokey.batch.manifest import Manifest
    from airflow_provider_jojokey.batch.plan import Plan
    from airflow_provider_jojokey.batch.previous import Previous
    from airflow_provider_jojokey.hooks.jojokey import JojoKeyHook
    from airflow_provider_jojokey.settings import Settings
    from airflow_provider_jojokey.store.s3 import ImageStore

log = logging.getLogger(__name__)

PROGRESS = 30.0
"""Seconds between two progress lines in the log."""
TIMEOUT_GRACE = 120.0
"""Seconds that a batch waits for images in flight after an interruption such as a timeout, because they are billed.
If Airflow stops the task, its hook decides how long, see :meth:`JojoKeyHook.stop`."""
LIMIT, RECORDING = 16.0, 3.0
"""Seconds after an interruption, and after the last response, within which everything is stored and recorded. They
leave time for the rest of the task, such as its manifest, see :mod:`operators.stopping`."""
MAX_PREPARED = 64
"""Maximum number of items that threads prepare (reading receipts, waiting to send) while others are sent."""
MAX_DISPATCHED = 100
"""Maximum number of items to dispatch before the events of the threads are handled again."""
MAX_TRIES = 3
"""Maximum number of sends of an item that fails without being billed. Rate limits don't count."""
DRAIN_POLL = 0.2
PROVING = 5.0
"""Seconds within which a stopped batch looks for items that an earlier try has completed."""
LOG_INTERVAL = 60.0
"""Seconds between two reads of the gateway log, which allows about 20 in 20 minutes."""

FATAL_ERRORS = (
    JojoKeyBaseUrlError,
    JojoKeyConnectionError,
    JojoKeyEdgeBlockedError,
    JojoKeyQuotaError,
    JojoKeyTLSError,
    JojoKeyTokenError,
)
"""After one of these, all other items would fail the same way."""
PREFLIGHT_FATAL = (JojoKeyEdgeBlockedError, JojoKeyTLSError, JojoKeyTokenError)
"""If the unbilled check fails with one of these, paid requests would fail too."""
TRANSIENT = (JojoKeyNoChannelError, JojoKeyOverloadedError, JojoKeyStoreError, JojoKeyUnreachableError)


Event: TypeAlias = tuple[Turn, "Generated | JojoKeyError | NeedsTicket | Failed"]


class Batch:
    """One run over the items of a plan.

    :param plan: the items, checked
    :param total: number of items
    :param hook: the JojoKey hook, which all threads share
    :param store: S3, which all threads share
    :param settings: the worker's settings
    :param manifest: receives each item's result
    :param max_in_flight: maximum number of images in flight
    :param budget: the limits; ``None`` means unlimited
    """

    def __init__(
        self,
        plan: Plan,
        total: int,
        *,
        hook: JojoKeyHook,
        store: ImageStore,
        settings: Settings,
        manifest: Manifest,
        max_in_flight: int,
        aws_conn_id: str | None,
        budget: Budget | None = None,
    ) -> None:
        self.tally = Tally(total)
        self._recorder = Recorder(self.tally, manifest, aws_conn_id, is_retry=plan.owner.try_number > 1)
        self.limiter = Limiter(max_in_flight)
        self.stopped = False
        self.closed: JojoKeyError | None = None
        """Why the batch stopped sending. Paid images are still reused."""
        self.manifest = manifest
        self.settings = settings
        self._hook = hook
        self._budget = budget
        self._services = Services(
            hook,
            store,
            settings,
            log=GatewayLog(lambda: hook.client.billing_log(), interval=LOG_INTERVAL),
            budget=budget or Budget.unlimited(),
            resend=False,
        )
        self.previous: Previous | None = None
        """The result of an earlier try, if there was one."""
        self._compared = 0
        """The first item that has not been compared with the earlier try."""
        self._plan = plan
        self._fresh = plan.jobs()
        self._retries: deque[tuple[int, ImageJob]] = deque()
        self._tries: Counter[int] = Counter()
        self._workers = Workers(lambda turn: self._events.put((turn, self._generate(turn))))
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._waiting: deque[Turn] = deque()
        """Items whose receipts allow a payment, in sending order."""
        self._unpermitted = 0
        """Number of items that threads process without permission to send."""
        self._busy = 0
        self._held_until = 0.0
        """Time until which no item is dispatched, because S3 does not respond."""
        self._sent: dict[int, ImageJob] = {}
        """Items that have sent or are about to send a request, and whose outcome is not counted yet."""
        self._began = time.monotonic()
        self._next_progress = self._began + PROGRESS
        self._last_rejection: JojoKeyError | None = None

    @property
    def uses(self) -> list[dict[str, Any]]:
        """What is used of each limit, see :meth:`Budget.uses`."""
        return [] if self._budget is None else self._budget.uses()

    def stop(self) -> None:
        """Send nothing more, but wait for images in flight. Safe in a signal handler."""
        self.stopped = True
        self._events.put(None)

    def preflight(self) -> None:
        """Check the token at no cost. If the gateway rejects it, the batch only reuses paid images."""
        began = time.monotonic()
        try:
            self._hook.list_models()
            self.limiter.expect(time.monotonic() - began)
        except PREFLIGHT_FATAL as error:
            log.error("%s The batch sends nothing.", error.message)
            self._close(error)
        except JojoKeyError as error:
            log.info("Could not check the token: %s", error.message)

    def run(self) -> Tally:
        """Process all items and return the totals.

        :raises BaseException: Airflow's interruption, after images in flight were stored
        """
        self._began = time.monotonic()
        self._next_progress = self._began + PROGRESS
        failures: list[BaseException] = []
        # In Python 3.11, an exception during Thread.join() marks the running thread as ended. A second join() would
        # then return at once, and images in flight would not be counted.
        ended = threading.Event()

        def decide() -> None:
            try:
                self._run()
            except BaseException as error:
                failures.append(error)
            finally:
                ended.set()

        decider = threading.Thread(
            target=copy_context().run, args=(decide,), name="jojokey-decider", daemon=True
        )
        try:
            decider.start()  # which waits until the thread runs, so it may be interrupted too
            ended.wait()
        except BaseException:
            self.stop()
            if decider.ident is not None:
                ended.wait()
            raise
        if failures:
            raise failures[0]
        return self.tally

    def _run(self) -> None:
        try:
            with quiet_threads():
                try:
                    while not self.stopped:
                        delay = self._dispatch()
                        if delay is None and not self._busy:
                            break
                        self._wait(delay)
                finally:
                    self._drain()
                    self._record_rest()
        finally:
            self._workers.keep(0)

    def _dispatch(self) -> float | None:
        """Permit items to be sent, and dispatch items to threads.

        :return: the seconds until more may be permitted, or ``None`` if there are no more items
        """
        now = time.monotonic()
        if self.closed is None and self._waiting and self.limiter.stalled(now):
            self._give_up_waiting(now)
        delay = float("inf")
        while self._waiting:
            delay = self.limiter.delay(now)
            if delay:
                break
            turn = self._waiting.popleft()
            turn.ticket = self.limiter.acquire(now)
            self._unpermitted -= 1
            turn.decided.set()
        for _ in range(MAX_DISPATCHED):
            if self._busy >= self.limiter.max_in_flight or self._unpermitted >= MAX_PREPARED:
                return delay
            if now < self._held_until:
                return min(delay, self._held_until - now)
            item = self._next()
            if item is None:
                return delay if self._waiting else None
            if not self._is_unchanged(*item):
                self._submit(Turn(*item, now))
        return 0.0

    def _is_unchanged(self, index: int, job: ImageJob) -> bool:
        """Count an item if it is proven that an earlier try has completed it; otherwise return ``False``."""
        if self.previous is None or index < self._compared:
            return False
        self._compared = index + 1
        line = self.previous.unchanged(index, job, self._hook.client.base_url)
        if line is None:
            return False
        with observe(job) as observer:
            observer.reused(len(line["images"]))
        self._recorder.unchanged(index, line)
        return True

    def load_spent(self, wanted: Amount) -> None:
        """Read all receipts and add up what this task has spent in this Dag run.

        :param wanted: the estimated cost of all items
        :raises JojoKeyError: if a receipt cannot be read
        """
        if self._budget is None:
            return
        jobs = (job for _, job in self._plan.jobs())
        counted = spent_by_job(
            self._services.store, jobs, self.tally.total, self._budget.prices, lambda: self.stopped
        )
        self._budget.start(counted, wanted)
        if self._budget.spent.images:
            log.info("This task has spent %s in this Dag run so far.", self._budget.spent)

    def settle(self) -> None:
        """Look up missing usage and update the budget. Call this after :meth:`run`."""
        log_of_now = GatewayLog(self._hook.client.billing_log, interval=LOG_INTERVAL)
        self._recorder.settle_usage(replace(self._services, log=log_of_now))
        if self._budget is not None:
            self._budget.close()

    def _has_more(self) -> bool:
        if self._retries:
            return True
        item = next(self._fresh, None)
        if item is not None:
            self._retries.append(item)
        return item is not None

    def _next(self) -> tuple[int, ImageJob] | None:
        return self._retries.popleft() if self._has_more() else None

    def _submit(self, turn: Turn) -> None:
        if self._busy >= self._workers.count and not self._workers.start():
            log.warning(
                "The system allows only %d threads, which limits the number of images in flight.",
                self._workers.count,
            )
            self.limiter.max_in_flight = self._workers.count
        self._busy += 1
        self._unpermitted += 1
        self._workers.put(turn)

    def _generate(self, turn: Turn) -> Generated | JojoKeyError:
        def acquire() -> None:
            if turn.ticket is None:
                self._events.put((turn, NeedsTicket()))
                turn.decided.wait()
                self._permit()

        def on_send() -> None:
            assert turn.ticket is not None
            turn.ticket.sent_at = time.monotonic()
            self._sent[turn.index] = turn.job

        services = replace(
            self._services,
            permit=self._permit,
            acquire=acquire,
            on_send=on_send,
            on_failure=lambda error: self._events.put((turn, Failed(error))),
        )
        try:
            return generate_images(turn.job, services)
        except JojoKeyError as error:
            return error
        except Exception as error:
            log.exception("Item %d failed with an unexpected error", turn.index)
            return JojoKeyError(
                f"It failed with an unexpected error ({type(error).__name__}).", billed="unknown", sent=True
            )

    def _permit(self) -> None:
        if self.closed is not None:
            raise self.closed.changed()

    # Results

    def _wait(self, delay: float | None) -> None:
        """Wait for events for up to ``delay`` seconds, and handle all of them."""
        now = time.monotonic()
        until = min(self._next_progress - now, float("inf") if delay is None else delay)
        try:
            event = self._events.get(timeout=max(0.0, until))
            while True:
                if event is not None:
                    self._handle(*event)
                event = self._events.get_nowait()
        except queue.Empty:
            pass
        if time.monotonic() >= self._next_progress:
            self._next_progress = time.monotonic() + PROGRESS
            log.info(self._progress())

    def _handle(self, turn: Turn, event: Generated | JojoKeyError | NeedsTicket | Failed) -> None:
        if isinstance(event, NeedsTicket):
            if self.closed is not None:
                turn.decided.set()
            else:
                self._waiting.append(turn)
        elif isinstance(event, Failed):
            if self.closed is None:
                self._slow_down(turn, event.error)
        else:
            self._busy -= 1
            self._unpermitted -= turn.ticket is None
            self._handle_outcome(turn, event)
            if not self._has_more():
                self._workers.keep(self._busy)

    def _handle_outcome(self, turn: Turn, outcome: Generated | JojoKeyError) -> None:
        self._sent.pop(turn.index, None)
        slowed = isinstance(outcome, JojoKeyError) and self.closed is None and self._slow_down(turn, outcome)
        if turn.ticket is not None:
            self.limiter.release(turn.ticket)  # no effect if the request was rejected
        if isinstance(outcome, Generated):
            self._recorder.succeeded(turn.index, turn.job, outcome)
            return
        if slowed and not self.stopped:
            if isinstance(outcome, JojoKeyRateLimitError):
                self._retries.appendleft((turn.index, turn.job))
                return
            self._tries[turn.index] += 1
            if self._tries[turn.index] < MAX_TRIES:
                self._retries.append((turn.index, turn.job))
                return
        self._recorder.failed(turn.index, turn.job, outcome)
        if self.closed is None and (isinstance(outcome, FATAL_ERRORS) or _is_fatal_upload_error(outcome)):
            log.error(
                "%s The batch stops sending, because other items would fail the same way.", outcome.message
            )
            self._close(outcome)

    def _slow_down(self, turn: Turn, error: JojoKeyError) -> bool:
        """Slow down after an unbilled transient error, and return whether it is one.

        A request's error is reported twice: when it arrives, and when it is recorded. The limiter counts it once.
        """
        if error.billed != "no" or not getattr(error, "transient", True):
            return False
        now = time.monotonic()
        before = self.limiter.wanted_pause(now)
        ticket = turn.ticket or Ticket(turn.began, given=False)
        if isinstance(error, JojoKeyRateLimitError):
            self.limiter.rejected(ticket, now, error.retry_after)
        elif isinstance(error, TRANSIENT):
            self.limiter.overloaded(ticket, now, error.retry_after)
        else:
            return False
        self._last_rejection = error
        pause = self.limiter.wanted_pause(now)
        if turn.ticket is None:
            self._held_until = now + pause
        if not before and pause >= 1:
            log.info("%s The batch waits for %.0f s.", error.message, pause)
        return True

    def _give_up_waiting(self, now: float) -> None:
        assert self._last_rejection is not None
        wanted = self.limiter.wanted_pause(now)
        self._last_rejection.retry_after = wanted or None
        log.error(
            "The gateway has rejected every request for %.0f s, and the next one would be possible in %.0f s. This try "
            "sends nothing more.",
            now - self._began,
            wanted,
        )
        self._close(self._last_rejection)

    def _close(self, error: JojoKeyError) -> None:
        """Send nothing more. Paid images are still reused."""
        self.closed = error.changed(
            billed="no", sent=False, usage=None, images=None, kept=[], spool=None, receipt=None
        )
        while self._waiting:
            self._waiting.popleft().decided.set()

    # The end

    def _drain(self) -> None:
        """After an interruption, wait for images in flight, because they are billed."""
        self.stopped = self.stopped or bool(self._busy)
        if not self._busy:
            return
        began, hook = time.monotonic(), self._hook
        self._close(JojoKeyError("Airflow stopped the task."))
        log.warning("The task was stopped and sends nothing more. %s", self._progress())
        self._wait_for_all(lambda: hook.stopping.is_set() or time.monotonic() >= began + TIMEOUT_GRACE)
        if self._busy:
            hook.stop(0.0)  # no effect if Airflow stopped the task, which has already called it
            self._wait_for_all(hook.stopped.is_set)
            soon = time.monotonic() + RECORDING
            late = max(soon, began + LIMIT)
            self._wait_for_all(lambda: time.monotonic() >= (late if self._sent else soon))
        sent = dict(self._sent)  # a thread may be about to add an item, which it then can't send
        if sent:
            log.error("Could not record %d requests in time. A retry reconciles them.", len(sent))
            for index, job in sent.items():
                self._recorder.unrecorded(index, job)

    def _record_rest(self) -> None:
        """Record the items that have no result, because the batch was stopped.

        Otherwise, a reader of the manifest would not know that they are missing.
        """
        if self.tally.done == self.tally.total:
            return
        if self.previous is not None:
            until = time.monotonic() + PROVING
            for index, job in chain(tuple(self._retries), self._fresh):
                if time.monotonic() >= until:
                    log.warning(
                        "There is no time to look for all images of the earlier try. They are not lost."
                    )
                    break
                self._is_unchanged(index, job)
        self._recorder.not_started(self._plan, self.previous)

    def _wait_for_all(self, give_up: Callable[[], bool]) -> None:
        while self._busy and not give_up():
            self._wait(DRAIN_POLL)

    def _progress(self) -> str:
        seconds = time.monotonic() - self._began
        return self.tally.progress_line(seconds, self.limiter.in_flight, str(self.limiter))

    def summary(self) -> str:
        """Return one line about the whole run."""
        return f"In {duration(time.monotonic() - self._began)}: {self._progress()}"


def _is_fatal_upload_error(error: JojoKeyError) -> bool:
    """Return whether paid images could not be stored, for a permanent reason."""
    return isinstance(error, JojoKeyStoreError) and error.billed == "yes" and not error.transient
