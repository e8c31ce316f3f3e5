"""Forward signals to a command that runs in the sandbox."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from types import FrameType
from typing import Any, Self


class SignalForwarder:
    """Catches signals that end the process, and forwards them to the command; a context manager."""

    _NAMES = ("SIGINT", "SIGTERM", "SIGHUP")

    def __init__(self) -> None:
        self.signal: int | None = None
        """The latest signal."""
        # The interpreter writes a byte to this pipe at each signal. Without it, a signal that arrives right before this
        # process waits for a lock or a child would be noticed only after the wait.
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._child: subprocess.Popen[bytes] | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for name in self._NAMES:
            number = getattr(signal, name, None)
            if number is not None:
                self._previous[number] = signal.signal(number, self._caught)
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(-1)
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        os.close(self._reader)
        os.close(self._writer)

    def wait(self) -> None:
        """Block until a signal arrives."""
        while self.signal is None:
            os.read(self._reader, 1)

    def wait_for(self, child: subprocess.Popen[bytes]) -> int:
        """Block until ``child`` has ended, forward signals meanwhile, and return its return code."""

        def watch() -> None:
            child.wait()
            os.write(self._writer, b".")

        self._child = child
        if self.signal is not None:  # it arrived while the command was starting
            child.send_signal(self.signal)
        watcher = threading.Thread(target=watch, name="jojokey-sandbox-child", daemon=True)
        watcher.start()
        while child.returncode is None:
            os.read(self._reader, 1)
        self._child = None
        watcher.join()
        return child.returncode

    def _caught(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        # A terminal also sends Ctrl-C to the command. Programs often end gracefully at the first signal and at once
        # at the second, so don't send another one.
        if self._child is not None and not (number == signal.SIGINT and _in_foreground()):
            self._child.send_signal(number)


def _in_foreground() -> bool:
    for stream in (0, 1, 2):
        with contextlib.suppress(OSError, AttributeError):
            if os.isatty(stream):
                return os.tcgetpgrp(stream) == os.getpgrp()
    return False
