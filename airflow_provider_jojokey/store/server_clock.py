"""S3's clock, which all hosts share."""

from __future__ import annotations

import email.utils
import threading
from collections.abc import Mapping
from datetime import UTC, datetime

from msgspec import Struct

from airflow_provider_jojokey.payments import clock


class _Sample(Struct, frozen=True):
    """One reading of S3's clock.

    :param date: seconds since 1970
    :param seen: the time of the reading on this host's monotonic clock
    """

    date: float
    seen: float

    def at(self, moment: float) -> float:
        return self.date + moment - self.seen


class ServerClock:
    """S3's clock, estimated from its responses.

    A ``Date`` is never ahead of S3's clock, but may be behind it by the duration of the response. So the best of
    several samples is the one furthest ahead. A ``Date`` that contradicts earlier samples counts only if the next
    response agrees, because proxies and caches send wrong ones.
    """

    MAX_DURATION = 10.0
    """Seconds. The ``Date`` of a slower response is too old."""
    MAX_STEP = 60.0
    """Seconds by which two samples may differ."""
    MAX_HOST_ERROR = 24 * 3600.0
    """Seconds by which this host's clock may be wrong, for the first sample. S3 itself tolerates 900."""
    MAX_AGE = 600.0
    """Seconds after which a newer sample replaces one with a later time, because clocks drift."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sample: _Sample | None = None
        self._unconfirmed: _Sample | None = None

    @property
    def known(self) -> bool:
        """Whether a response of S3 had a usable ``Date``."""
        return self._sample is not None

    def now(self) -> datetime:
        """Return S3's time, or this host's time while S3's is unknown."""
        sample = self._sample
        return clock.now() if sample is None else datetime.fromtimestamp(sample.at(clock.monotonic()), UTC)

    def observe(self, headers: Mapping[str, str], began: float | None = None) -> None:
        """Take the time from a response's headers, if they have a usable ``Date``.

        :param began: the start of the request, in :func:`clock.monotonic` seconds. If the machine was suspended while
            it waited, the ``Date`` is old, and other hosts would treat a claim with this time as expired
        """
        date = _parsed_date(headers)
        new = _Sample(date or 0.0, clock.monotonic())
        if date is None or (began is not None and new.seen - began > self.MAX_DURATION):
            return
        with self._lock:
            known = self._sample
            if known is None:
                agrees = abs(date - clock.now().timestamp()) <= self.MAX_HOST_ERROR
            else:
                agrees = abs(date - known.at(new.seen)) <= self.MAX_STEP
            if not agrees:
                if self._unconfirmed is None or abs(date - self._unconfirmed.at(new.seen)) > self.MAX_STEP:
                    self._unconfirmed = new
                    return
                known = None
            self._unconfirmed = None
            if known is None or date >= known.at(new.seen) or new.seen - known.seen > self.MAX_AGE:
                self._sample = new


def _parsed_date(headers: Mapping[str, str]) -> float | None:
    if headers.get("age", "0").strip() not in ("", "0"):
        return None  # from a cache
    try:
        date = email.utils.parsedate_to_datetime(headers["date"])
        return date.replace(tzinfo=date.tzinfo or UTC).timestamp()
    except (KeyError, ValueError, TypeError, OverflowError, IndexError):
        return None
