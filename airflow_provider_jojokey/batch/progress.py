"""Report the progress of a batch at a limited rate."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context

JOIN = 5.0
"""Maximum seconds to wait for a call in progress at the end."""


def is_supported() -> bool:
    """Return whether a thread of the task may send messages to Airflow while another one does.

    Airflow 3.1 has one socket for a task's messages and doesn't lock it.
    """
    from airflow.version import version

    return not version.startswith("3.1.")


@contextmanager
def repeat(call: Callable[[], None], interval: float) -> Iterator[None]:
    """Repeat a call in a thread of its own while the block runs.

    Not in the main thread, where a timeout could interrupt a message to Airflow's supervisor, and not in a thread that
    sends requests, which a slow Airflow API would delay.

    :param call: must not raise
    :param interval: seconds before each call
    """
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(interval):
            call()

    thread = threading.Thread(target=copy_context().run, args=(run,), name="jojokey-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(JOIN)
