"""Suspend threads at one place, as the system may do at any."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from tests.support.patience import PATIENCE


@dataclass
class Suspension:
    """A thread that is suspended before it runs a function.

    :param place: the function's qualified name
    :param threads: the beginning of the threads' names
    """

    place: str
    threads: str
    reached: threading.Event = field(default_factory=threading.Event)
    _resume: threading.Event = field(default_factory=threading.Event)
    _suspended: list[threading.Thread] = field(default_factory=list)

    def trace(self, frame: FrameType, event: str, _: Any) -> None:
        here = threading.current_thread().name.startswith(self.threads)
        if here and frame.f_code.co_qualname == self.place and not self._resume.is_set():
            self._suspended.append(threading.current_thread())
            self.reached.set()
            self._resume.wait(PATIENCE)

    def resume(self) -> None:
        """Let the thread run on."""
        self._resume.set()

    def join(self) -> None:
        """Wait for the end of the thread."""
        for thread in self._suspended:
            thread.join(PATIENCE)


@contextmanager
def suspended(place: str, threads: str) -> Iterator[Suspension]:
    """Suspend threads that start in the block, until its end or until they are resumed."""
    suspension = Suspension(place, threads)
    threading.settrace(suspension.trace)
    try:
        yield suspension
    finally:
        threading.settrace(None)  # type: ignore[arg-type]
        suspension.resume()
