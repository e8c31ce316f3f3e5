"""The threads of a batch: one for each image that is being prepared, sent or received."""

from __future__ import annotations

import logging
import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from typing import TYPE_CHECKING

from msgspec import Struct, field

if TYPE_CHECKING:
    from airflow_provider_jojokey.batch.limiter import Ticket
    from airflow_provider_jojokey.exceptions import JojoKeyError
    from airflow_provider_jojokey.payments.job import ImageJob

THREADS = "jojokey-batch-"
CHATTY = (
    *(
        f"airflow_provider_jojokey.payments.{name}"
        for name in ("generate", "send", "reconcile", "upload", "context")
    ),
    "airflow_provider_jojokey.img2.client",
)
SAME_WARNINGS = 10
"""Times that a warning from one place is logged."""


class Turn(Struct, eq=False):
    """One item that a thread processes.

    :param index: the item's number
    :param job: its job
    :param began: when it was dispatched to a thread
    """

    index: int
    job: ImageJob
    began: float
    ticket: Ticket | None = None
    """The permission to send its request; ``None`` until it needs one."""
    decided: threading.Event = field(default_factory=threading.Event)
    """Set when it has received its ticket, or will not receive one."""


class NeedsTicket:
    """A thread waits for permission to send."""


class Failed(Struct, frozen=True):
    """A request has failed, and its thread is still recording the failure."""

    error: JojoKeyError


class Workers:
    """Threads that process items. Each takes memory, so they start when needed and end when idle.

    :param process: called in a thread with each item
    """

    def __init__(self, process: Callable[[Turn], None]) -> None:
        self._process = process
        self._turns: queue.SimpleQueue[Turn | None] = queue.SimpleQueue()
        self.count = 0
        """Number of threads."""

    def start(self) -> bool:
        """Start another thread.

        :return: ``False`` if the system has no more, so that the existing ones must do
        :raises RuntimeError: if there is no thread at all
        """
        thread = threading.Thread(
            target=copy_context().run,  # makes their spans children of the task's span
            args=(self._work,),
            name=f"{THREADS}{self.count}",
            daemon=True,
        )
        try:
            thread.start()
        except RuntimeError:
            if not self.count:
                raise
            return False
        self.count += 1
        return True

    def put(self, turn: Turn) -> None:
        """Let an idle thread process an item."""
        self._turns.put(turn)

    def keep(self, needed: int) -> None:
        """End the threads beyond the first ``needed`` ones, each after its current item."""
        while self.count > needed:
            self._turns.put(None)
            self.count -= 1

    def _work(self) -> None:
        while (turn := self._turns.get()) is not None:
            self._process(turn)


@contextmanager
def quiet_threads() -> Iterator[None]:
    """Drop log lines of single images, and limit repeated warnings."""
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
    for logger in loggers:
        logger.addFilter(passes)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(passes)
