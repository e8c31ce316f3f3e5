"""Models of a gateway's limit: each says when it expects the next request to be accepted.

A gateway that answers 429 doesn't say what it counts. It may allow so many requests in a window of time, so many a
second (a token bucket), or so many at once. The limiter keeps one model of each kind and follows the one that
refusals have contradicted least.

The models are pure: times are arguments, in seconds.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

WINDOWS = (5.0, 10.0, 20.0, 30.0, 60.0)
"""Seconds of the windows that are considered. Rates cover shorter ones, and longer ones."""
MARGIN = 0.03
"""Seconds added to a window, and one percent of it: requests don't all take the same time to arrive."""
TOLERANCE = 0.9
"""Share of a bound at which a refusal corrects the bound, but doesn't contradict the model."""
FIRST_GAP = 1.0
LONGEST_GAP = 15.0
"""Seconds between two requests while a rate is unknown: doubled from one to the other if they are refused."""
GAP_SHRINKS = 0.75
"""Factor by which that pause shrinks with each request that is accepted."""
CAUTION = 0.95
"""Share of a measured rate at which requests are sent after a refusal."""
GROWTH, CYCLE = 0.1, 40
"""Share of a measured rate by which it grows with so many accepted requests, so that a higher rate is found. It
grows with the square of their number."""
SHORT = 1.5
"""Seconds after a refusal in which a known rate may be refused again: some gateways count by the second."""
CATCH_UP = 10
"""Accepted requests after which the highest plausible rate is tried."""


@dataclass(slots=True, eq=False)
class Ticket:
    """The permission to send one request.

    :param given_at: when it was given
    :param beside: how many requests were in flight then
    :param sent_at: when the request was sent; ``None`` before that
    """

    given_at: float
    beside: int = 0
    sent_at: float | None = None
    model: Model | None = None
    """The model by which it was permitted."""
    given: bool = True
    """Whether the limiter has given it, so that it counts as in flight."""
    ended: bool = False
    lost: bool = False
    """Whether it was refused, or not sent."""

    @property
    def time(self) -> float:
        """The time at which a gateway counts it, as far as it is known."""
        return self.given_at if self.sent_at is None else self.sent_at


class Model(Protocol):
    """What a gateway may count."""

    misses: float
    """How often a request was refused that this model expected to be accepted."""
    hits: int
    """How many requests were accepted while the limiter followed this model, since its last miss."""

    def ready_at(self, recent: Sequence[Ticket], in_flight: int) -> float:
        """Return when the next request may be sent; ``-inf`` for any time, ``inf`` for not now."""
        ...

    def refuse(
        self, ticket: Ticket, now: float, recent: Sequence[Ticket], fresh: bool, retry_after: float | None
    ) -> None:
        """Learn from a refusal.

        :param recent: the requests that were not refused, oldest first
        :param fresh: whether it was decided after the refusals that are known already
        """
        ...

    def accept(self, ticket: Ticket, recent: Sequence[Ticket]) -> None:
        """Learn from a request that was not refused."""
        ...

    def raise_bound(self, first: bool) -> bool:
        """Allow more, because nothing was refused for a while; return whether one more may be sent now."""
        ...

    def count(self, ticket: Ticket, change: int) -> None:
        """Count a request that was permitted (1), or that was refused or not sent (-1)."""
        ...

    period: float
    """Seconds without a refusal after which more may be allowed; ``inf`` if the model grows by itself."""

    @property
    def spacing(self) -> float:
        """Mean seconds between two requests."""
        ...

    def __str__(self) -> str: ...


class _Bounded:
    """A model with a bound on a count."""

    period: float

    def __init__(self) -> None:
        self.misses, self.hits = 0.0, 0
        self.bound = math.inf
        self._safe = math.inf
        """The bound before it was raised."""
        self._corrections = 0
        """Fresh refusals in a row at which the bound was too high."""

    def count(self, ticket: Ticket, change: int) -> None:
        """Count a request: nothing to do, as the limiter remembers enough of them."""

    def raise_bound(self, first: bool) -> bool:
        """Allow more, because nothing was refused for a while; return whether one more may be sent now."""
        if self.bound < 1:
            return False
        self._safe = self.bound
        self.bound += 1 if first else max(2, min(8, int(0.25 * self.bound)))
        return True

    @property
    def spacing(self) -> float:
        """Mean seconds between two requests."""
        return self.period / max(1.0, self.bound)

    def _refuse(self, count: int, fresh: bool) -> None:
        if self.bound == math.inf:
            self.bound = self._safe = count
        elif count < self.bound:
            if fresh and count < self._safe:
                clear = count < TOLERANCE * self._safe - 1
                self.misses += 1.0 if clear else 0.5
                self.hits = 0 if clear else min(self.hits, 20) // 4
                self._corrections += 1
                if self._corrections > 1:  # small steps would cost a refusal each
                    count = min(count, int(self._safe * (1 - 0.05 * 2 ** (self._corrections - 1))))
            self.bound = self._safe = max(0, min(self._safe, count))


class Window(_Bounded):
    """So many requests in any ``seconds``, or in windows of that length that begin at any time."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = self.period = seconds
        self._began = -math.inf
        """Requests before this time don't count any more: the gateway has begun a new window."""

    def ready_at(self, recent: Sequence[Ticket], in_flight: int) -> float:
        """Return when the next request may be sent."""
        if self.bound < 1:
            return math.inf
        if len(recent) < self.bound:
            return -math.inf
        oldest = recent[-int(self.bound)]
        return -math.inf if oldest.given_at < self._began else oldest.time + self.seconds * 1.01 + MARGIN

    def refuse(
        self, ticket: Ticket, now: float, recent: Sequence[Ticket], fresh: bool, retry_after: float | None
    ) -> None:
        """Learn from a refusal."""
        if retry_after is not None and retry_after > self.seconds + 1:
            self.bound = self._safe = 0
            return
        count = self._count(ticket, recent)
        if count < self._safe <= (whole := self._count(ticket, recent, -math.inf)):
            self._began, count = -math.inf, whole  # no new window had begun
            if fresh:
                self.misses += 0.5
                self.hits = 0
        self._refuse(count, fresh)

    def accept(self, ticket: Ticket, recent: Sequence[Ticket]) -> None:
        """Learn from a request that was not refused."""
        count = self._count(ticket, recent)
        if count > 0.5 * self.bound:
            self._corrections = 0
        if count < self.bound or self.bound < 1:
            return
        if ticket.given_at - self._began >= 0.8 * self.seconds:
            self._began = ticket.given_at
        else:  # no window begins so soon after another one
            self.bound = self._safe = count + 1

    def _count(self, ticket: Ticket, recent: Sequence[Ticket], began: float | None = None) -> int:
        began = self._began if began is None else began
        after = max(ticket.given_at - self.seconds, math.nextafter(began, -math.inf))
        return count_between(recent, after, ticket.given_at)

    def __str__(self) -> str:
        return f"{self.bound:.0f} in {self.seconds:.0f} s"


class Concurrency(_Bounded):
    """So many requests at once."""

    period = 10.0

    def ready_at(self, recent: Sequence[Ticket], in_flight: int) -> float:
        """Return when the next request may be sent."""
        return -math.inf if in_flight < self.bound else math.inf

    def refuse(
        self, ticket: Ticket, now: float, recent: Sequence[Ticket], fresh: bool, retry_after: float | None
    ) -> None:
        """Learn from a refusal."""
        self._refuse(ticket.beside, fresh)

    def accept(self, ticket: Ticket, recent: Sequence[Ticket]) -> None:
        """Learn from a request that was not refused."""
        self._corrections = 0
        if self.bound <= ticket.beside:  # also if others used all of it before
            self.bound = self._safe = ticket.beside + 1

    def __str__(self) -> str:
        return f"{self.bound:.0f} at once"


class Rate:
    """So many requests a second: a token bucket, which is empty whenever it refuses.

    Between two refusals it accepts what flows in, so the requests that were accepted give its rate. If it was not
    empty in between, or forgets what is not used, it is the rate of the latest requests.
    """

    period = spacing = math.inf

    def __init__(self) -> None:
        self.misses, self.hits = 0.0, 0
        self.low = self.high = 0.0
        self._since = -math.inf
        """When the last refused request was permitted."""
        self._count = 0
        """Requests since then that were not refused."""
        self._cut_at = self._last = -math.inf
        """When that refusal became known, and when the latest request after that was permitted."""
        self._given = 0
        """Requests after that refusal became known."""
        self._first_gap = FIRST_GAP
        self._patience = 1

    def count(self, ticket: Ticket, change: int) -> None:
        """Count a request that was permitted (1), or that was refused or not sent (-1)."""
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
        return self._last + (gap if self._given else max(gap, min(self._patience * gap, LONGEST_GAP)))

    @property
    def _rate(self) -> float:
        above = (self.high - self.low) * min(1.0, self._given / CATCH_UP)
        return (self.low + above) * (CAUTION + GROWTH * (self._given / CYCLE) ** 2)

    def refuse(
        self, ticket: Ticket, now: float, recent: Sequence[Ticket], fresh: bool, retry_after: float | None
    ) -> None:
        """Learn from a refusal."""
        if not fresh:
            return
        later = count_between(recent, ticket.given_at, math.inf)
        count, elapsed = max(0, self._count - later), ticket.given_at - self._since
        if retry_after is not None and retry_after > 3:
            self.misses += 1
        if self._since > -math.inf and elapsed > 0:
            unlike = count < 0.4 * self.low * elapsed if count else elapsed > SHORT or not self.low
            if unlike:
                self.misses += 0.5 if self._patience == 1 and not count else 1.0
                self.hits = 0
            if count:
                self._patience = 1
                known, self.low = self.low, count / elapsed
                half = (count + 1) // 2
                began = recent[-later - half].given_at if later + half <= len(recent) else self._since
                latest = half / max(0.1, ticket.given_at - began)
                self.high = (
                    self.low if latest < 1.15 * self.low else min(latest, (1.5 if known else 2.5) * self.low)
                )
            elif self.low:
                self._patience = min(2 * self._patience, 64)
            else:
                self._first_gap = min(LONGEST_GAP, 2 * self._first_gap)
        self._since, self._count = ticket.given_at, later
        self._cut_at, self._last, self._given = now, now, 0

    def accept(self, ticket: Ticket, recent: Sequence[Ticket]) -> None:
        """Learn from a request that was not refused: they are counted when they are permitted."""

    def raise_bound(self, first: bool) -> bool:
        """Return ``False``: a rate is raised by each accepted request."""
        return False

    def __str__(self) -> str:
        return f"{60 * self.low:.0f} a minute"


def count_between(recent: Sequence[Ticket], after: float, before: float) -> int:
    """Return how many requests were permitted in a time, without its ends."""
    first = bisect_right(recent, after, key=_given_at)
    return max(0, bisect_left(recent, before, key=_given_at) - first)


def _given_at(ticket: Ticket) -> float:
    return ticket.given_at
