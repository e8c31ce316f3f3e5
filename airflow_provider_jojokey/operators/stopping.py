"""End a task in time when Airflow stops it.

Airflow's task runner calls ``on_kill`` in a signal handler, in the main thread, between two instructions of
``execute``. A hanging call to S3, which takes minutes with botocore's default timeouts, would keep the process
alive. So :meth:`StopSwitch.request` raises :class:`TaskStopped` there, which interrupts the call:

* immediately, if nothing has been sent;
* otherwise after the response has arrived or timed out, and S3 had time to store it.

An interruption of the payment path has the same effect as ``kill -9`` at that point: the next try reconciles.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airflow_provider_jojokey.exceptions import JojoKeyError
    from airflow_provider_jojokey.hooks.jojokey import JojoKeyHook

LIMIT = 18.0
"""Seconds after the signal within which everything is stored and recorded, unless a response is still arriving."""
RECORDING = 4.0
"""Seconds after the last response within which it is stored and recorded."""
REPEAT = 0.5
"""Seconds between two interruptions, in case the cleanup code also hangs."""


class TaskStopped(BaseException):
    """Interrupts a waiting task. Not an :class:`Exception`, so that botocore does not retry it."""


class StopSwitch:
    """Whether Airflow has stopped the task, and which part of it may be interrupted.

    :param requested: whether Airflow has stopped the task
    """

    def __init__(self) -> None:
        self.requested = False
        self._requested_at = 0.0
        self._overdue = False
        self._interruptible = False
        self._sent = False
        self._thread = 0
        self._ended = threading.Event()

    @contextmanager
    def interruptible(self, *, sent: bool = False) -> Iterator[None]:
        """Allow interruptions inside the context.

        :param sent: whether a request has been sent, so that there is no interruption before the deadline
        :raises TaskStopped: if Airflow stops the task, or has already stopped it
        """
        self._thread, self._sent = threading.get_ident(), sent
        try:
            self._interruptible = True
            self._raise_if_due()
            yield
        finally:
            self._interruptible = False

    @property
    def sent(self) -> bool:
        """Whether a paid request may have been sent."""
        return self._sent

    def end(self) -> None:
        """Record that the task has ended, so that it is not interrupted any more."""
        self._ended.set()

    def record_send(self) -> None:
        """Record that a paid request is being sent, so that an interruption waits for its response.

        :raises TaskStopped: if Airflow has stopped the task
        """
        self._raise_if_due()
        self._sent = True

    def request(self, hook: JojoKeyHook | None) -> None:
        """Stop the task. Call this from ``on_kill``.

        :param hook: the hook, if it exists already
        :raises TaskStopped: in a signal handler, if the interrupted code may be interrupted now
        """
        if not self.requested:
            self.requested, self._requested_at = True, time.monotonic()
            if hook is not None:
                hook.stop()
            enforcer = threading.Thread(target=self._enforce, args=(hook,), name="jojokey-end", daemon=True)
            try:
                enforcer.start()
            except RuntimeError:  # the thread limit is reached
                self._overdue = True
        self._raise_if_due()

    def error(self) -> JojoKeyError:
        """Return the error for a task that was interrupted."""
        from airflow_provider_jojokey.exceptions import JojoKeyUnknownOutcomeError
        from airflow_provider_jojokey.payments import errors

        if not self._sent:
            return errors.stopped()
        return JojoKeyUnknownOutcomeError(
            "Airflow stopped the task, and S3 did not respond in time to record its request.",
            "Clear the task: it first stores the images that were received on this host.",
            billed="unknown",
            sent=True,
        )

    @property
    def deadline(self) -> float:
        """The time by which the task must end, in :func:`time.monotonic` seconds, if the last response ends now."""
        return max(self._requested_at + LIMIT, time.monotonic() + RECORDING)

    def _raise_if_due(self) -> None:
        due = self.requested and self._interruptible and (self._overdue or not self._sent)
        if due and threading.get_ident() == self._thread:
            raise TaskStopped

    def _enforce(self, hook: JojoKeyHook | None) -> None:
        """Repeat the signal until the main thread ends, wherever it hangs."""
        deadline = None
        while not self._ended.wait(REPEAT):
            if deadline is None and (hook is None or hook.stopped.is_set()):
                deadline = self.deadline
            self._overdue = self._overdue or (deadline is not None and time.monotonic() >= deadline)
            if self._interruptible and (self._overdue or not self._sent):
                self._interrupt()

    def _interrupt(self) -> None:
        main = threading.main_thread().ident
        if main is not None and main == self._thread and callable(signal.getsignal(signal.SIGTERM)):
            # A signal to the process could reach another thread, and the hanging call would continue.
            signal.pthread_kill(main, signal.SIGTERM)
