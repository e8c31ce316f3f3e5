"""The gateway log, which is free to read and shared by all attempts of a process.

The gateway allows about 20 reads in 20 minutes from one address. A batch therefore reads it at most once a
minute, and uses an earlier copy only for requests that had ended before that copy was made.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

from msgspec import Struct, field

from airflow_provider_jojokey.img2.errors import Img2Error
from airflow_provider_jojokey.payments import clock
from airflow_provider_jojokey.payments.evidence import LoggedRequest, group_log

NEVER = float("-inf")
MAX_AGE = 1.0
"""Seconds for which a copy of the log counts as current."""


class GatewayLog(Struct, dict=True, eq=False):
    """The gateway log as one process sees it. Threads may share it.

    :param fetch: returns the rows, see :meth:`Client.billing_log`
    :param interval: least number of seconds between two reads
    """

    fetch: Callable[[], list[dict[str, Any]]]
    interval: float = 0.0
    known: set[str] = field(default_factory=set)
    """IDs of requests whose responses this process has received. They cannot belong to an orphaned attempt."""

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._assigned: dict[str, str] = {}
        self._read_at = NEVER
        self._requests: list[LoggedRequest] = []
        self._error: Img2Error | None = None

    def requests(self, newer_than: float = NEVER) -> list[LoggedRequest]:
        """Return the requests in the log.

        :param newer_than: :func:`clock.monotonic` seconds; an older copy is not used unless ``interval``
            forbids another read
        :raises Img2Error: if the gateway does not return its log
        """
        with self._lock:
            now = clock.monotonic()
            stale = self._read_at < newer_than or self._read_at == NEVER or self._error is not None
            if stale and now - self._read_at >= self.interval:
                try:
                    self._requests, self._error = group_log(self.fetch()), None
                except Img2Error as error:
                    self._error = error
                self._read_at = now
            if self._error is not None:
                raise self._error
            return self._requests

    def age(self) -> float:
        """Return the age in seconds of the copy that :meth:`requests` returns."""
        with self._lock:
            return 0.0 if self._read_at == NEVER else clock.monotonic() - self._read_at

    def assign(self, request_id: str, attempt_id: str) -> bool:
        """Assign a request that matches an attempt only by time, so that it counts for no other attempt.

        :return: ``False`` if it is already assigned to another attempt
        """
        with self._lock:
            return self._assigned.setdefault(request_id, attempt_id) == attempt_id

    def others(self, attempt_id: str, more: Iterable[str | None] = ()) -> frozenset[str]:
        """Return the IDs of requests that belong to other attempts.

        :param more: further such IDs
        """
        with self._lock:
            assigned = {request for request, attempt in self._assigned.items() if attempt != attempt_id}
        return frozenset({*self.known, *assigned, *filter(None, more)})
