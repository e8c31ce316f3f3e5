"""Limit requests in a sliding window."""

from __future__ import annotations

import threading
import time
from collections import deque


class SlidingWindow:
    """The times of accepted requests. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._accepted: deque[float] = deque()

    def accept(self, limit: int, seconds: float) -> bool:
        """Return whether another request is allowed, and count it if so.

        :param limit: number of requests allowed in the window
        :param seconds: length of the window
        """
        now = time.monotonic()
        with self._lock:
            while self._accepted and now - self._accepted[0] >= seconds:
                self._accepted.popleft()
            if len(self._accepted) >= limit:
                return False
            self._accepted.append(now)
            return True

    def clear(self) -> None:
        """Forget all requests."""
        with self._lock:
            self._accepted.clear()
