"""Models of a gateway's rate limit: each predicts when the next request will be accepted.

A 429 doesn't say what the gateway counts. It may limit the requests per window of time, per second (a token
bucket), or at once. The limiter keeps one model of each kind and follows the one that rejections have contradicted
least.

The models are pure: times are arguments, in seconds.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct

WINDOWS = (5.0, 10.0, 20.0, 30.0, 60.0)
"""Window lengths in seconds. The rate model covers shorter and longer ones."""
CLEAN_WINDOWS = 3
"""Windows without a rejection after which more is allowed, even if few requests were accepted in them."""
MARGIN = 0.03
"""Seconds added to a window, besides one percent of it, because requests take different times to arrive."""
TOLERANCE = 0.9
"""A rejection above this fraction of the bound corrects the bound, but doesn't contradict the model."""
FIRST_GAP = 1.0
LONGEST_GAP = 15.0
"""Seconds between two requests while the rate is unknown. The gap doubles after each rejection."""
GAP_SHRINKS = 0.75
"""Factor by which the gap shrinks with each accepted request."""
CAUTION = 0.95
"""Fraction of a measured rate at which requests are sent after a rejection."""
GROWTH, CYCLE, CYCLE_SECONDS = 0.1, 40, 60.0
"""Within ``CYCLE`` requests or ``CYCLE_SECONDS``, whichever is shorter, a measured rate grows by this fraction, with
the square of the time, to find a higher limit."""
DOUBLING, DOUBLING_SECONDS, DOUBLINGS = 6, 10.0, 6
"""If nothing was rejected for a whole cycle, the limit is higher than measured, for example because another batch has
ended. The rate then doubles in ``DOUBLING_SECONDS`` or ``DOUBLING`` requests, whichever is longer. The time counts:
a rate that grows with the number of requests would grow without bound before a rejection arrives."""
SHORT = 1.5
"""Seconds after a rejection in which another one does not contradict the rate: some gateways count per second."""
CATCH_UP = 10
"""Accepted requests after which the highest plausible rate is tried."""


class Ticket(Struct, eq=False):
    """Permission to send one request.

    :param given_at: time at which it was issued
    :param beside: number of requests in flight at that time
    :param sent_at: time at which the request was sent; ``None`` before that
    """

    given_at: float
    beside: int = 0
    sent_at: float | None = None
    model: Model | None = None
    """The model that permitted it."""
    given: bool = True
    """Whether the limiter has issued it, so that it counts as in flight."""
    ended: bool = False
    lost: bool = False
    """Whether it was rejected or not sent."""

    @property
    def time(self) -> float:
        """The best estimate of the time at which the gateway counts it."""
        return self.given_at if self.sent_at is None else self.sent_at


class Model(Protocol):
    """A hypothesis about what the gateway counts."""

    misses: float
    """Number of rejections that this model did not predict."""
    hits: int
    """Number of accepted requests while the limiter followed this model, since its last miss."""

    def ready_at(self, recent: Sequence[Ticket], in_flight: int) -> float:
        """Return when the next request may be sent; ``-inf`` for any time, ``inf`` for not now."""
        ...

    def reject(
        self, ticket: Ticket, now: float, recent: Sequence[Ticket], fresh: bool, retry_after: float | None
    ) -> None:
        """Learn from a rejection.

        :param recent: the requests that were not rejected, oldest first
        :param fresh: whether the request was sent after the last known rejection
        """
        ...

    def accept(self, ticket: Ticket, recent: Sequence[Ticket]) -> None:
        """Learn from an accepted request."""
        ...

    def raise_bound(self, first: bool) -> bool:
        """Allow more after a while without rejections, and return whether one more may be sent now."""
        ...

    def count(self, ticket: Ticket, change: int) -> None:
        """Count a request: 1 if it was permitted, -1 if it was then rejected or not sent."""
        ...

    period: float
    """Seconds without a rejection after which more may be allowed; ``inf`` if the model grows by itself."""
    longest_period: float
    """The same if few requests were accepted in that time."""

    @property
    def measured(self) -> bool:
        """Whether it can predict when a request is accepted."""
        ...

    @property
    def spacing(self) -> float:
        """Mean seconds between two requests."""
        ...

    def __str__(self) -> str: ...


class _Bounded:
    """A model with a bound on a count."""

    period: float
    longest_period = 60.0
    measured = True

    def __init__(self) -> None:
        self.misses, self.hits = 0.0, 0
        self.bound = math.inf
        self._safe = math.inf
        """The bound before it was raised."""
        self._corrections = 0
        """Fresh rejections in a row at which the bound was too high."""

    def count(self, ticket: Ticket, change: int) -> None:
        """Do nothing: the limiter keeps the requests."""

    def raise_bound(self, first: bool) -> bool:
        """Allow more after a while without rejections, and return whether one more may be sent now."""
        if not 1 <= self.bound < math.inf:  # without a rejection there is no bound
            return False
        self._safe = self.bound
        self.bound += 1 if first else max(2, min(8, int(0.25 * self.bound)))
        return True

    @property
    def spacing(self) -> float:
        """Mean seconds between two requests."""
        return self.period / max(1.0, self.bound)

    def _lower_bound(self, count: int, fresh: bool) -> None:
        if self.bound == math.inf:
            self.bound = self._safe = count
        elif count < self.bound:
            if fresh and count < self._safe:
                clear = count < TOLERANCE * self._safe - 1
                self.misses += 1.0 if clear else 0.5
                self.hits = 0 if clear else min(self.hits, 20) // 4
                self._corrections += 1
                if self._corrections > 1:  # each small step would cost a rejection
                    count = min(count, int(self._safe * (1 - 0.05 * 2 ** (self._corrections - 1))))
            self.bound = self._safe = max(0, min(self._safe, count))


class Window(_Bounded):
    """A limit per ``seconds``, in a sliding window or in windows that begin at any time."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = self.period = seconds
        self.longest_period = min(self.longest_period, CLEAN_WINDOWS * seconds)
        self._began = -math.inf
        """Requests before this time don't count, because the gateway has begun a new window."""

    def ready_at(self, recent: Sequence[Ticket], in_flight: int) -> float:
        """Return when the next request may be sent."""
        if self.bound < 1:
            return math.inf
        if len(recent) < self.bound:
            return -math.inf
        oldest = recent[-int(self.bound)]
        return -math.inf if oldest.given_at < self._began else oldest.time + self.seconds * 1.01 + MARGIN

    def reject(
        self, ticket: Ticket, now: float, recent: Sequence[Ticket], fresh: bool, retry_after: float | None
    ) -> None:
        """Learn from a rejection."""
        if retry_after is not None and retry_after > self.seconds + 1:
            self.bound = self._safe = 0
            return
        count = self._count(ticket, recent)
        if count < self._safe <= (whole := self._count(ticket, recent, -math.inf)):
            self._began, count = -math.inf, whole  # no new window had begun
            if fresh:
                self.misses += 0.5
                self.hits = 0
        self._lower_bound(count, fresh)

    def accept(self, ticket: Ticket, recent: Sequence[Ticket]) -> None:
        """Learn from an accepted request."""
        count = self._count(ticket, recent)
        if count > 0.5 * self.bound:
            self._corrections = 0
        if count < self.bound or self.bound < 1:
            return
        if ticket.given_at - self._began >= 0.8 * self.seconds:
            self._began = ticket.given_at
        else:  # a new window cannot begin so soon
            self.bound = self._safe = count + 1

    def _count(self, ticket: Ticket, recent: Sequence[Ticket], began: float | None = None) -> int:
        began = self._began if began is None else began
        after = max(ticket.given_at - self.seconds, math.nextafter(began, -math.inf))
        return count_between(recent, after, ticket.given_at)

    def __str__(self) -> str:
        return f"{self.bound:.0f} in {self.seconds:.0f} s"


class Concurrency(_Bounded):
    """A limit of requests in flight."""

    period = 10.0

    def ready_at(self, recent: Sequence[Ticket], in_flight: int) -> float:
        """Return when the next request may be sent."""
        return -math.inf if in_flight < self.bound else math.inf

    def reject(
        self, ticket: Ticket, now: float, recent: Sequence[Ticket], fresh: bool, retry_after: float | None
    ) -> None:
        """Learn from a rejection."""
        self._lower_bound(ticket.beside, fresh)

    def accept(self, ticket: Ticket, recent: Sequence[Ticket]) -> None:
        """Learn from an accepted request."""
        self._corrections = 0
        if self.bound <= ticket.beside:  # the limit is higher than assumed
            self.bound = self._safe = ticket.beside + 1

    def __str__(self) -> str:
        return f"{self.bound:.0f} at once"


class Rate:
    """A limit of requests per second: a token bucket, which is empty whenever it rejects a request.

    Between two rejections, the bucket accepts as many requests as it is refilled, so the accepted requests show its
    rate. If it was not empty in between, or discards unused tokens, the latest requests show the rate.
    """

    period = longest_period = spacing = math.inf

    def __init__(self) -> None:
        self.misses, self.hits = 0.0, 0
        self.low = self.high = 0.0
        self._since = -math.inf
        """When the last rejected request was permitted."""
        self._count = 0
        """Requests since then that were not rejected."""
        self._cut_at = self._last = -math.inf
        """When that rejection became known, and when the latest request since then was permitted."""
        self._given = 0
        """Requests after that rejection became known."""
        self._first_gap = FIRST_GAP
        self._backoff = 1

    def count(self, ticket: Ticket, change: int) -> None:
        """Count a request: 1 if it was permitted, -1 if it was then rejected or not sent."""
        if ticket.given_at > self._since:
            self._count += change
        if ticket.given_at >= self._cut_at:
            self._given += change
            if change > 0:
                self._last = ticket.given_at

    def ready_at(self, recent: Sequence[Ticket], in_flight: int) -> float:
        """Return when the next request may be sent."""
        if self._since == -math.inf:
            return -math.inf
        if not self.low:
            return self._last + self._first_gap * GAP_SHRINKS**self._given
        gap = 1 / self._rate
        return self._last + (gap if self._given else max(gap, min(self._backoff * gap, LONGEST_GAP)))

    @property
    def measured(self) -> bool:
        """Whether a rate has been measured."""
        return self.low > 0

    @property
    def _rate(self) -> float:
        above = (self.high - self.low) * min(1.0, self._given / CATCH_UP)
        measured = self.low + above
        seconds = self._last - self._cut_at if self._given else 0.0
        cycle = min(CYCLE_SECONDS, CYCLE / measured)
        if seconds < cycle:
            return measured * (CAUTION + GROWTH * (seconds / cycle) ** 2)
        doublings = (seconds - cycle) / max(DOUBLING_SECONDS, DOUBLING / measured)
        return measured * (CAUTION + GROWTH) * 2 ** min(DOUBLINGS, doublings)

    def reject(
        self, ticket: Ticket, now: float, recent: Sequence[Ticket], fresh: bool, retry_after: float | None
    ) -> None:
        """Learn from a rejection."""
        if not fresh:
            return
        later = count_between(recent, ticket.given_at, math.inf)
        count, elapsed = max(0, self._count - later), ticket.given_at - self._since
        if retry_after is not None and retry_after > 3:
            self.misses += 1
        if self._since > -math.inf and elapsed > 0:
            unlike = count < 0.4 * self.low * elapsed if count else elapsed > SHORT or not self.low
            if unlike:
                self.misses += 0.5 if self._backoff == 1 and not count else 1.0
                self.hits = 0
            if count:
                self._backoff = 1
                known, self.low = self.low, count / elapsed
                half = (count + 1) // 2
                began = recent[-later - half].given_at if later + half <= len(recent) else self._since
                latest = half / max(0.1, ticket.given_at - began)
                self.high = (
                    self.low if latest < 1.15 * self.low else min(latest, (1.5 if known else 2.5) * self.low)
                )
            elif self.low:
                self._backoff = min(2 * self._backoff, 64)
            else:
                self._first_gap = min(LONGEST_GAP, 2 * self._first_gap)
        self._since, self._count = ticket.given_at, later
        self._cut_at, self._last, self._given = now, now, 0

    def accept(self, ticket: Ticket, recent: Sequence[Ticket]) -> None:
        """Do nothing: requests are counted when they are permitted."""

    def raise_bound(self, first: bool) -> bool:
        """Return ``False``, because each accepted request raises the rate."""
        return False

    def __str__(self) -> str:
        return f"{60 * self.low:.0f} a minute"


def count_between(recent: Sequence[Ticket], after: float, before: float) -> int:
    """Return the number of requests that were permitted between two times, exclusive."""
    first = bisect_right(recent, after, key=_given_at)
    return max(0, bisect_left(recent, before, key=_given_at) - first)


def _given_at(ticket: Ticket) -> float:
    return ticket.given_at
