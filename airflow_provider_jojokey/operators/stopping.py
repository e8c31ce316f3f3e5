"""End a task in time when Airflow tells it to.

Airflow's task runner calls ``on_kill`` in a signal handler, in the main thread, between two instructions of
``execute``. A call to S3 that hangs, for minutes with botocore's default timeouts, would therefore keep the
process alive. So :meth:`StopSwitch.request` raises :class:`TaskStopped` there, which interrupts the call:

* immediately, if nothing has been sent;
* if something has been sent, once its response has arrived or was given up and S3 had time to store it.

Wherever it interrupts the payment path, it does the same as ``kill -9`` at that point: the next try reconciles.
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
"""Seconds after the signal in which everything is stored and recorded, unless a response is still arriving."""
RECORDING = 4.0
"""Seconds after the last response in which it is stored and recorded."""
REPEAT = 0.5
"""Seconds between two interruptions, in case code that cleans up hangs as well."""


class TaskStopped(BaseException):
    """Interrupts whatever the task waits for. Not an :class:`Exception`, so that botocore does not retry it."""


class StopSwitch:
    """Whether a task was told to end, and which part of it may be interrupted.

    :param requested: whether the task was told to end
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
        """Allow interruptions while the context lasts.

        :param sent: whether something has been sent: then there is no interruption before time is up
        :raises TaskStopped: if the task is told to end, or was told before
        """
        self._thread, self._sent = threading.get_ident(), sent
        try:
            self._interruptible = True
            self._raise_if_due()
            yield
        finally:
            self._interruptible = False

    def end(self) -> None:
        """Take notice that the task ends by itself."""
        self._ended.set()

    def note_send(self) -> None:
        """Take notice that a paid request is sent now. From here on, its response is waited for.

        :raises TaskStopped: if the task was told to end
        """
        self._raise_if_due()
        self._sent = True

    def request(self, hook: JojoKeyHook | None) -> None:
        """Tell the task to end. Call it from ``on_kill``.

        :param hook: the hook, if there is one yet
        :raises TaskStopped: in a signal handler, if the interrupted code may be interrupted now
        """
        if not self.requested:
            self.requested, self._requested_at = True, time.monotonic()
            if hook is not None:
                hook.stop()
            enforcer = threading.Thread(target=self._enforce, args=(hook,), name="jojokey-end", daemon=True)
            try:
                enforcer.start()
            except RuntimeError:  # the system starts no more threads
                self._overdue = True
        self._raise_if_due()

    def error(self) -> JojoKeyError:
        """Return the error for a task that was interrupted."""
        from airflow_provider_jojokey.exceptions import JojoKeyUnknownOutcomeError
        from airflow_provider_jojokey.payments import errors

        if not self._sent:
            return errors.stopped()
        return JojoKeyUnknownOutcomeError(
            "The task was told to end, and S3 did not respond in time to record its request.",
            "Clear the task: it first stores what was received on this host.",
            billed="unknown",
            sent=True,
        )

    @property
    def deadline(self) -> float:
        """When the task has to end, in :func:`time.monotonic` seconds, if the last response ends now."""
        return max(self._requested_at + LIMIT, time.monotonic() + RECORDING)

    def _raise_if_due(self) -> None:
        due = self.requested and self._interruptible and (self._overdue or not self._sent)
        if due and threading.get_ident() == self._thread:
            raise TaskStopped

    def _enforce(self, hook: JojoKeyHook | None) -> None:
        """Repeat the signal, so that the main thread is interrupted in whatever it hangs in."""
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
            # Sent to the process, another thread could receive it, and the hanging call would go on.
            signal.pthread_kill(main, signal.SIGTERM)
