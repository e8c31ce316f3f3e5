"""S3's clock, which all hosts share."""

from __future__ import annotations

import email.utils
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from airflow_provider_jojokey.payments import clock


@dataclass(frozen=True, slots=True)
class _Sample:
    """What S3's clock said at one moment.

    :param date: seconds since 1970
    :param seen: the same moment on this host's monotonic clock
    """

    date: float
    seen: float

    def at(self, moment: float) -> float:
        return self.date + moment - self.seen


class ServerClock:
    """S3's clock, as far as its responses show it.

    A ``Date`` is never ahead of the truth, but may be behind it, by the time that the response took. So of
    several samples the one that is furthest ahead is the best. A ``Date`` that is far away from what was known
    before counts only if the next response agrees: proxies and caches send absurd ones.
    """

    MAX_DURATION = 10.0
    """Seconds that a request may take; the ``Date`` of a slower one is too old."""
    MAX_STEP = 60.0
    """Seconds by which two samples may differ."""
    MAX_HOST_ERROR = 24 * 3600.0
    """Seconds by which this host's clock may be wrong, for the first sample. S3 itself tolerates 900."""
    MAX_AGE = 600.0
    """Seconds after which a newer sample is better than one that was further ahead: clocks drift."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sample: _Sample | None = None
        self._doubtful: _Sample | None = None

    @property
    def known(self) -> bool:
        """Whether a response of S3 had a usable ``Date``."""
        return self._sample is not None

    def now(self) -> datetime:
        """Return S3's time, or this host's while S3's is unknown."""
        sample = self._sample
        return clock.now() if sample is None else datetime.fromtimestamp(sample.at(clock.monotonic()), UTC)

    def observe(self, headers: Mapping[str, str], began: float | None = None) -> None:
        """Take the time from a response's headers, if they have a usable ``Date``.

        :param began: when its request began, :func:`clock.monotonic` seconds. A machine that is suspended while it
            waits reads an old ``Date``: a claim made by it would look expired to other hosts at once
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
                if self._doubtful is None or abs(date - self._doubtful.at(new.seen)) > self.MAX_STEP:
                    self._doubtful = new
                    return
                known = None
            self._doubtful = None
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
