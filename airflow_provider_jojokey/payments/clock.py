"""The clock of the payment path. Tests and simulations replace these functions."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime


def now() -> datetime:
    """Return the wall-clock time of this host."""
    return datetime.now(UTC)


def monotonic() -> float:
    """Return seconds that never go back and include the time in which the machine was suspended.

    Otherwise a laptop that sleeps between a claim and its request would wake up and pay after other hosts have
    stopped waiting for it.
    """
    boottime = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boottime is None else time.clock_gettime(boottime)


def pause(seconds: float, stopping: threading.Event | None = None) -> bool:
    """Sleep for ``seconds``, or until ``stopping`` is set.

    :return: whether ``stopping`` was set
    """
    return (stopping or threading.Event()).wait(max(0.0, seconds))
