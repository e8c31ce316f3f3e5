"""The run of a batch: one thread decides what is sent when, the others wait for images, one each.

All that is counted, paced and written down is touched by the deciding thread alone. What the others
do is :func:`generate_images`, as any single task does it.
"""

from __future__ import annotations

import copy
import logging
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_jojokey import results
from airflow_provider_jojokey.batch import hook as hooks
from airflow_provider_jojokey.batch.limiter import Limiter, Ticket
from airflow_provider_jojokey.batch.tally import Tally
from airflow_provider_jojokey.budget import Amount, Budget, Verdict, estimate, spent_on
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
from airflow_provider_jojokey.generation import generate_images
from airflow_provider_jojokey.order import Order
from airflow_provider_jojokey.store.ledger import Ledger
from airflow_provider_jojokey.store.receipts import Step, decide

if TYPE_CHECKING:
    from airflow_provider_jojokey.batch.hook import BatchHook
    from airflow_provider_jojokey.batch.manifest import Manifest
    from airflow_provider_jojokey.batch.plan import Plan
    from airflow_provider_jojokey.batch.store import PooledStore
    from airflow_provider_jojokey.settings import Settings

log = logging.getLogger(__name__)

PROGRESS = 30.0
"""Seconds between two lines of progress in the log."""
GRACE = 120.0
"""Seconds for which a batch that is killed waits for images that are being made: they are paid for."""
CUT = 10.0
"""Seconds after that for what has been cut to be written down."""
MAX_TRIES = 3
"""How often one item is sent in one run, where the gateway fails it and bills nothing; waits for its rate are free."""
SURVEYED_AT_ONCE = 256

HOPELESS = (
    JojoKeyBaseUrlError,
    JojoKeyConnectionError,
    JojoKeyEdgeBlockedError,
    JojoKeyQuotaError,
    JojoKeyTLSError,
    JojoKeyTokenError,
)
"""After one of these, all other items would end the same way."""
REFUSING = (JojoKeyEdgeBlockedError, JojoKeyTLSError, JojoKeyTokenError)
"""What a free question may be refused with, and then all that is paid for would be."""
PASSING = (JojoKeyNoChannelError, JojoKeyOverloadedError, JojoKeyStoreError, JojoKeyUnreachableError)


@dataclass(frozen=True, slots=True)
class Job:
    """One item's turn.

    :param index: the item's number
    :param order: what is wanted
    :param ticket: the leave to send it
    :param refusal: why it must not be sent, where it may only be taken if it is paid for already
    """

    index: int
    order: Order
    ticket: Ticket
    refusal: JojoKeyError | None = None


class Batch:
    """One run over a plan's items.

    :param plan: the items, checked
    :param total: how many there are
    :param hook: who draws
    :param store: who keeps
    :param settings: the worker's
    :param manifest: where to write down what came of each item
    :param max_in_flight: how many images may be waited for at once
    :param budget: what may be spent; ``None`` is no limit
    """

    def __init__(
        self,
        plan: Plan,
        total: int,
        *,
        hook: BatchHook,
        store: PooledStore,
        settings: Settings,
        manifest: Manifest,
        max_in_flight: int,
        aws_conn_id: str | None,
        budget: Budget | None = None,
    ) -> None:
        self.hook = hook
        self.store = store
        # An answer of the gateway's log serves for a while: an item is missing in it only that much later.
        self.settings = replace(settings, longest_generation=settings.longest_generation + hooks.LOG_MAX_AGE)
        self.manifest = manifest
        self.tally = Tally(total)
        self.limiter = Limiter(max_in_flight)
        self.stopped = False
        self.budget = budget
        self._plan = plan
        self._aws_conn_id = aws_conn_id
        self._fresh = plan.orders()
        self._again: deque[tuple[int, Order]] = deque()
        self._tries: Counter[int] = Counter()
        self._spent: dict[int, Amount | None] = {}
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._ended: queue.SimpleQueue[tuple[Job, dict[str, Any] | JojoKeyError] | None] = queue.SimpleQueue()
        self._threads = 0
        self._busy = 0
        self._began = time.monotonic()
        self._next_progress = self._began + PROGRESS
        self._last_refusal: JojoKeyError | None = None

    def stop(self) -> None:
        """Send nothing more; what is in flight is still waited for. May be called from a signal's handler."""
        self.stopped = True
        self._ended.put(None)

    def preflight(self) -> None:
        """Ask the gateway, for free, whether it knows the token: if not, nothing is sent, only taken what is paid."""
        try:
            self.hook.list_models()
        except REFUSING as error:
            log.error("%s Nothing is sent.", error.message)
            self._close(error)
        except JojoKeyError as error:
            log.info("Whether the token is good could not be asked: %s", error.message)

    def run(self) -> Tally:
        """Go through all items, and return what it came to.

        :raises BaseException: what Airflow interrupts a task with; by then what was in flight has been seen to
        """
        self._began = time.monotonic()
        self._next_progress = self._began + PROGRESS
        try:
            with _quiet_threads():
                self._survey()
                try:
                    while not self.stopped:
                        delay = self._send_what_may_be_sent()
                        if delay is None and not self._busy:
                            break
                        self._wait(delay)
                finally:
                    self._drain()
                    self._close_budget()
        finally:
            self._let_go(0)
        return self.tally

    def _send_what_may_be_sent(self) -> float | None:
        """Hand items to threads; return the seconds until the next may follow, ``None`` if there is no next."""
        while True:
            now = time.monotonic()
            if self.hook.closed is None and self.limiter.stalled(now):
                self._give_up_waiting(now)
            delay = 0.0 if self.hook.closed else self.limiter.delay(now)
            if self._busy >= self.limiter.max_in_flight:
                return float("inf")
            if delay:
                return delay if self._has_more() else None
            item = self._next()
            if item is None:
                return None
            refusal = None
            if self.budget is not None and self.hook.closed is None:
                verdict = self._reserve(*item)
                if verdict is Verdict.WAIT:
                    self._again.appendleft(item)
                    return float("inf")
                refusal = self.budget.refusal(estimate(item[1])) if verdict is Verdict.NO else None
            self._submit(Job(*item, self.limiter.give(now), refusal))

    def _reserve(self, index: int, order: Order) -> Verdict:
        """Set aside what an item will take, if there is room for it."""
        assert self.budget is not None
        try:
            return self.budget.reserve(index, estimate(order))
        except JojoKeyError as error:
            log.error("%s No more is sent.", error.message)
            self._close(error)
            return Verdict.YES  # it is closed: only what is paid for is taken

    def _survey(self) -> None:
        """Read all receipts, to know what this task has spent in this Dag run before it spends more.

        :raises JojoKeyError: if one of them does not tell
        """
        if self.budget is None:
            return

        def look(item: tuple[int, Order]) -> tuple[int, Amount]:
            index, order = item
            return index, spent_on(Ledger(self.store, order.destination).read(), order)

        orders = self._plan.orders()
        with ThreadPoolExecutor(self.store.connections, thread_name_prefix=THREADS) as readers:
            while some := list(islice(orders, SURVEYED_AT_ONCE)):
                for index, spent in readers.map(look, some):
                    self.budget.known(index, spent)
        if self.budget.spent.images:
            log.info("Spent so far by this task in this Dag run: %s", self.budget.spent)

    def _has_more(self) -> bool:
        if self._again:
            return True
        item = next(self._fresh, None)
        if item is not None:
            self._again.append(item)
        return item is not None

    def _next(self) -> tuple[int, Order] | None:
        return self._again.popleft() if self._has_more() else None

    def _submit(self, job: Job) -> None:
        if self._busy >= self._threads:
            self._start_thread()
        self._busy += 1
        self._jobs.put(job)

    def _start_thread(self) -> None:
        """Start one thread more; where the system gives none, go on with those that there are.

        :raises RuntimeError: if there is none at all
        """
        thread = threading.Thread(
            target=copy_context().run,  # so that their spans belong to the task's
            args=(self._work,),
            name=f"{THREADS}{self._threads}",
            daemon=True,
        )
        try:
            thread.start()
        except RuntimeError:
            if not self._threads:
                raise
            log.warning("The system gives no more threads than %d: as many are in flight.", self._threads)
            self.limiter.max_in_flight = self._threads
            return
        self._threads += 1

    def _let_go(self, needed: int) -> None:
        """Let threads end that have nothing left to do: each has its memory."""
        while self._threads > needed:
            self._jobs.put(None)
            self._threads -= 1

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            outcome = self._outcome(job)
            self._spent[job.index] = self._spent_on(job.order)
            self._ended.put((job, outcome))

    def _outcome(self, job: Job) -> dict[str, Any] | JojoKeyError:
        try:
            closed = self.hook.closed or job.refusal
            if closed is not None and (usage := self._unpaid(job.order)) is not None:
                error = copy.copy(closed)
                error.usage = usage
                return error
            self.hook.take(job.ticket, job.refusal)
            return generate_images(job.order, jojokey=self.hook, store=self.store, settings=self.settings)
        except JojoKeyError as error:
            return error
        except Exception as error:
            log.exception("Item %d failed in an unforeseen way", job.index)
            return JojoKeyError(f"It failed in an unforeseen way: {type(error).__name__}.", billed="unknown")

    def _spent_on(self, order: Order) -> Amount | None:
        """Return what was spent on an item, if there is a budget and its receipt tells."""
        if self.budget is None:
            return None
        try:
            return spent_on(Ledger(self.store, order.destination).read(), order)
        except Exception as error:  # whatever it is, what was set aside stays so, and the thread goes on
            log.warning("What an item has cost cannot be read: %s", error)
            return None

    def _unpaid(self, order: Order) -> dict[str, Any] | None:
        """Return what a task has spent on an item that would have to be paid for; ``None`` if nothing has to be.

        :raises JojoKeyError: if its receipt does not tell
        """
        receipt = Ledger(self.store, order.destination).read()
        fingerprint = order.request.fingerprint(self.hook.client.base_url)
        decision = decide(receipt, order.owner, fingerprint, order.reuse, {})
        return None if decision.step in (Step.REUSE, Step.SETTLE) else receipt.usage_of(order.owner)

    # What has come back

    def _wait(self, delay: float | None) -> None:
        """Wait until something comes back, or for ``delay`` seconds; take it all."""
        now = time.monotonic()
        until = min(self._next_progress - now, float("inf") if delay is None else delay)
        try:
            ended = self._ended.get(timeout=max(0.0, until))
            while True:
                if ended is not None:
                    self._busy -= 1
                    self._take(*ended)
                    if not self._has_more():
                        self._let_go(self._busy)
                ended = self._ended.get_nowait()
        except queue.Empty:
            pass
        if time.monotonic() >= self._next_progress:
            self._next_progress = time.monotonic() + PROGRESS
            log.info(self._progress())

    def _take(self, job: Job, outcome: dict[str, Any] | JojoKeyError) -> None:
        now = time.monotonic()
        self._settle(job, outcome)
        if not isinstance(outcome, JojoKeyError):
            self.limiter.done(job.ticket, now)
            self._succeeded(job, outcome)
            return
        may_go_again = not self.stopped and self.hook.closed is None
        if isinstance(outcome, JojoKeyRateLimitError):
            self._slow_down(outcome, lambda: self.limiter.refused(job.ticket, now, outcome.retry_after))
            if may_go_again:
                self._again.appendleft((job.index, job.order))
                return
        elif isinstance(outcome, PASSING) and outcome.billed == "no" and getattr(outcome, "passing", True):
            self._slow_down(outcome, lambda: self.limiter.overloaded(job.ticket, now, outcome.retry_after))
            self._tries[job.index] += 1
            if may_go_again and self._tries[job.index] < MAX_TRIES:
                self._again.append((job.index, job.order))
                return
        else:
            self.limiter.done(job.ticket, now)
        self._failed(job, outcome)
        if self.hook.closed is None and (isinstance(outcome, HOPELESS) or _was_paid_in_vain(outcome)):
            log.error("%s No more is sent: the other items would end the same way.", outcome.message)
            self._close(outcome)

    def _settle(self, job: Job, outcome: dict[str, Any] | JojoKeyError) -> None:
        """Count in the budget what an item has really cost."""
        if self.budget is None:
            return
        free = isinstance(outcome, JojoKeyError) and outcome.billed == "no"
        self.budget.settle(job.index, self._spent.pop(job.index), job.ticket.sent_at is not None and not free)

    def _slow_down(self, error: JojoKeyError, take_notice: Any) -> None:
        before = self.limiter.wanted_pause(time.monotonic())
        take_notice()
        self._last_refusal = error
        pause = self.limiter.wanted_pause(time.monotonic())
        if not before and pause >= 1:
            log.info("%s All of the batch waits for %.0f s.", error.message, pause)

    def _give_up_waiting(self, now: float) -> None:
        assert self._last_refusal is not None
        wanted = self.limiter.wanted_pause(now)
        self._last_refusal.retry_after = wanted or None
        log.error(
            "Nothing but refusals for %.0f s, and the next try would be in %.0f s: no more is sent in this try.",
            now - self._began,
            wanted,
        )
        self._close(self._last_refusal)

    def _close(self, error: JojoKeyError) -> None:
        """Send nothing more; items that are paid for are still taken."""
        closed = type(error)(error.message, status_code=error.status_code, code=error.code, billed="no")
        closed.retry_after = error.retry_after
        self.hook.closed = closed

    def _succeeded(self, job: Job, manifest: dict[str, Any]) -> None:
        self.tally.succeed(job.index, manifest)
        if manifest["request_id"]:
            self.hook.known_requests.add(manifest["request_id"])
        prompt = job.order.request.prompt
        self.manifest.add(
            job.index, results.of_manifest(manifest, prompt=prompt, aws_conn_id=self._aws_conn_id)
        )

    def _failed(self, job: Job, error: JojoKeyError) -> None:
        self.tally.fail(job.index, job.order, error)
        request = job.order.request
        options = {name: getattr(request, name) for name in ("model", "size", "quality")}
        line = results.of_error(error, prompt=request.prompt, aws_conn_id=self._aws_conn_id, options=options)
        self.manifest.add(job.index, line | {"retryable": not isinstance(error, AirflowFailException)})

    # The end

    def _drain(self) -> None:
        """See to what is in flight, if the run was broken off: it is paid for."""
        self.stopped = self.stopped or bool(self._busy)
        if not self._busy:
            return
        log.warning("The task is to end: nothing more is sent. %s", self._progress())
        self._wait_for_all(GRACE)
        if self._busy:
            log.warning("%d images were not waited for: their connections are cut.", self._busy)
            self.hook.cut()
            self._wait_for_all(CUT)

    def _close_budget(self) -> None:
        try:
            if self.budget is not None:
                self.budget.close()
        except JojoKeyError as error:
            log.warning("The Dag run's ledger still holds what was set aside: %s", error.message)

    def _wait_for_all(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while self._busy and (left := end - time.monotonic()) > 0:
            self._wait(left)

    def _progress(self) -> str:
        tally = self.tally
        elapsed = max(0.001, time.monotonic() - self._began)
        rate = tally.made / elapsed
        left = tally.total - tally.done
        time_left = f", about {_duration(left / rate)} left" if rate and left else ""
        pace = f", JojoKey takes {self.limiter.limit:.0f} in {self.limiter.window:.0f} s"
        return (
            f"{tally.done} of {tally.total} done: {tally.made} made, {tally.reused} reused, {tally.failed} failed; "
            f"{self._busy} in flight, {tally.tokens:,} tokens, {60 * rate:.1f} a minute{time_left}"
            f"{pace if self.limiter.limit < float('inf') else ''}"
        )

    def summary(self) -> str:
        """Return one line on how it went."""
        return f"In {_duration(time.monotonic() - self._began)}: {self._progress()}"


def _was_paid_in_vain(error: JojoKeyError) -> bool:
    """Tell whether images that were paid for could not be kept, for a reason that will not pass by itself."""
    return isinstance(error, JojoKeyStoreError) and error.billed == "yes" and not error.passing


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


THREADS = "jojokey-batch-"
CHATTY = ("airflow_provider_jojokey.generation", "airflow_provider_jojokey.img2.client")
SAME_WARNINGS = 10


@contextmanager
def _quiet_threads() -> Iterator[None]:
    """Keep a line for each image out of the log, and a warning that says the same of each."""
    seen: Counter[tuple[str, int]] = Counter()

    def passes(record: logging.LogRecord) -> bool:
        if not (record.threadName or "").startswith(THREADS) or record.levelno >= logging.ERROR:
            return True
        if record.levelno < logging.WARNING:
            return False
        where = (record.pathname, record.lineno)
        seen[where] += 1
        return seen[where] <= SAME_WARNINGS

    loggers = [logging.getLogger(name) for name in CHATTY]
    for one in loggers:
        one.addFilter(passes)
    try:
        yield
    finally:
        for one in loggers:
            one.removeFilter(passes)
