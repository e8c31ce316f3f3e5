"""Interrupt the main thread as Airflow's timeouts do."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.support.patience import PATIENCE


@contextmanager
def alarm_when(ready: Callable[[], object]) -> Iterator[None]:
    """Send the signal of Airflow's timeouts as soon as ``ready`` returns, unless the block has ended by then.

    A block that fails early must not cause a signal in a later test.
    """
    ended = threading.Event()

    def wait() -> None:
        ready()
        if not ended.is_set():
            os.kill(os.getpid(), signal.SIGALRM)

    threading.Thread(target=wait, daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def wait_until_reading(gateway: Any) -> None:
    """Wait until the main thread waits for the gateway's response.

    Before that, it may hold a lock of the test's own servers, which an error raised at this moment would not release.
    """
    gateway.wait_for_request(timeout=PATIENCE)
    wait_until_in("readinto")


def wait_until_in(function: str) -> None:
    """Wait until the main thread is in a function of this name."""
    main = threading.main_thread().ident
    assert main is not None
    until = time.monotonic() + PATIENCE
    while sys._current_frames()[main].f_code.co_name != function:
        assert time.monotonic() < until, f"the main thread does not wait in {function}()"
        time.sleep(0.01)
