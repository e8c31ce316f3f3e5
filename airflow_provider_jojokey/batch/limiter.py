"""How fast the gateway may be asked: one pace for all senders of a batch, found by what it answers.

Three brakes, the strictest of which holds:

* a *ramp*: a batch begins with a few requests a second and sends more each second, so that a limit is
  met by a few requests and not by all of them at once;
* a *window*: once the gateway has said 429, no more are sent in so many seconds than it took in the
  last such stretch of time. Which stretch it counts by (a second, a minute) is found by trying the
  short ones first; ``Retry-After`` tells it outright. Now and then one more is tried, and less often
  each time that this is refused;
* a *ceiling* on what is in flight: halved when the gateway is overloaded, raised again by what it answers.

Everything here is pure: times come in as arguments, nobody waits, and there are no threads.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

WINDOWS = (2.0, 10.0, 60.0)
"""Seconds by which a gateway may count, shortest first."""
MARGIN = 0.05
"""The share of a window that is waited on top: its clock begins when a request arrives, not when it is sent."""
FIRST_RATE = 8.0
"""Requests a second at the start; each second adds as many."""
RATE_AFTER_REFUSAL = 1.0
"""The same after a refusal."""
RAISE = 0.25
"""What each answer adds to the ceiling on what is in flight: a quarter more with each round."""
FIRST_PAUSE = 2.0
LONGEST_PAUSE = 60.0
"""Seconds without sending after a refusal that named none: doubled from the one to the other."""
PATIENCE = 300.0
"""Seconds after which a batch gives up where all it sends is refused."""


@dataclass(slots=True, eq=False)
class Ticket:
    """The leave to send one request.

    :param given_at: when it was given
    :param sent_at: when the request was sent; ``None`` before that, and where none was needed
    """

    given_at: float
    sent_at: float | None = None

    @property
    def time(self) -> float:
        """When it counts from."""
        return self.given_at if self.sent_at is None else self.sent_at


class Limiter:
    """The pace of one batch.

    :param max_in_flight: how many requests may be in flight at once
    :param patience: seconds after which it gives up where everything is refused
    """

    def __init__(self, max_in_flight: int, patience: float | None = None) -> None:
        self.max_in_flight = max_in_flight
        self.patience = PATIENCE if patience is None else patience
        self.in_flight = 0
        self.limit = math.inf
        """Requests that may be sent within the window."""
        self.refusals = 0
        """How often the gateway has said no, in all."""
        self._ceiling = float(max_in_flight)
        self._window = 0
        self._recent: deque[Ticket] = deque()
        self._not_before = -math.inf
        self._last_given = -math.inf
        self._ramp: tuple[float, float] | None = None
        self._cut_at = -math.inf
        self._in_a_row = 0
        self._refused_since: float | None = None
        self._clean_since = math.inf
        self._raised = False
        self._step = 1
        self._clean_windows = 2

    @property
    def window(self) -> float:
        """The seconds by which the gateway seems to count."""
        return WINDOWS[self._window]

    def delay(self, now: float) -> float:
        """Return the seconds until the next request may be sent: 0 for now, ``inf`` for when one has come back."""
        if self.in_flight >= min(self._ceiling, self.max_in_flight):
            return math.inf
        return max(0.0, self._not_before - now, self._ramp_delay(now), self._window_delay(now))

    def give(self, now: float) -> Ticket:
        """Return the leave to send a request now."""
        if self._ramp is None:
            self._ramp = (now, FIRST_RATE)
        ticket = Ticket(now)
        self._recent.append(ticket)
        self._last_given = now
        self.in_flight += 1
        return ticket

    def done(self, ticket: Ticket, now: float) -> None:
        """Take notice that a request was answered, well or not, or that none was needed."""
        self.in_flight -= 1
        if ticket.sent_at is None:
            self._forget(ticket)
            return
        self._ceiling = min(self.max_in_flight, self._ceiling + RAISE)
        if ticket.sent_at >= self._cut_at:
            self._in_a_row = 0
            self._refused_since = None

    def refused(self, ticket: Ticket, now: float, retry_after: float | None) -> None:
        """Take notice of a 429: more was sent than the gateway takes."""
        fresh = self._refused(ticket, now, retry_after)
        if fresh:
            if retry_after is not None:
                while self.window < retry_after and self._window + 1 < len(WINDOWS):
                    self._window += 1
            elif self.limit < math.inf:
                self._learn_from_a_probe()
            self.limit = max(1.0, min(self.limit, float(self._sent_within(now))))
            if retry_after is not None:
                self._recent.clear()  # by then the gateway counts from the beginning, it says
            self._clean_since = now
        elif self._recent:
            self.limit = max(1.0, min(self.limit, float(self._sent_within(now))))

    def overloaded(self, ticket: Ticket, now: float, retry_after: float | None) -> None:
        """Take notice that the gateway, or the way to it, cannot take so much at once now."""
        if self._refused(ticket, now, retry_after):
            self._ceiling = max(1.0, min(self._ceiling, self.in_flight + 1) / 2)

    def stalled(self, now: float) -> bool:
        """Tell whether nothing but refusals came for so long that waiting on makes no sense."""
        if self._refused_since is None or self.in_flight:
            return False
        return max(now, self._not_before) - self._refused_since > self.patience

    def wanted_pause(self, now: float) -> float:
        """Return the seconds for which the gateway does not want to be asked."""
        return max(0.0, self._not_before - now)

    def _refused(self, ticket: Ticket, now: float, retry_after: float | None) -> bool:
        """Slow down; tell whether this is news, and not of a request that was on its way when that happened."""
        self.in_flight -= 1
        self.refusals += 1
        self._forget(ticket)
        if self._refused_since is None:
            self._refused_since = now
        if retry_after is not None:
            self._not_before = max(self._not_before, now + retry_after)
        if ticket.time < self._cut_at:
            return False
        self._cut_at = now
        self._in_a_row += 1
        if retry_after is None:
            pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(self._in_a_row - 1, 16))
            self._not_before = max(self._not_before, now + pause)
        self._ramp = (self._not_before, RATE_AFTER_REFUSAL)
        return True

    def _learn_from_a_probe(self) -> None:
        """Draw the lesson from a refusal although no more was sent than the window allowed."""
        if self._raised:
            self._clean_windows = min(32, self._clean_windows * 2)  # one more was too many
        elif self._window + 1 < len(WINDOWS):
            self._window += 1  # it counts by a longer stretch of time
            self.limit = math.inf
        elif self._in_a_row > 1:
            self.limit = max(1.0, self.limit // 2)
        self._raised = False
        self._step = 1

    def _window_delay(self, now: float) -> float:
        if self.limit == math.inf:
            self._drop(now - WINDOWS[-1] * (1 + MARGIN))
            return 0.0
        length = self.window * (1 + MARGIN)
        if now - self._clean_since > length * self._clean_windows:
            self.limit += self._step
            self._step *= 2
            self._raised = True
            self._clean_since = now
        self._drop(now - WINDOWS[-1] * (1 + MARGIN))
        recent = [one for one in self._recent if one.time > now - length]
        if len(recent) < self.limit:
            return 0.0
        return max(0.0, sorted(one.time for one in recent)[len(recent) - int(self.limit)] + length - now)

    def _ramp_delay(self, now: float) -> float:
        if self._ramp is None:
            return 0.0
        began, first = self._ramp
        rate = first * (1.0 + max(0.0, now - began))
        return self._last_given + 1 / rate - now

    def _sent_within(self, now: float) -> int:
        return sum(one.time > now - self.window for one in self._recent)

    def _drop(self, before: float) -> None:
        while self._recent and self._recent[0].time < before:
            self._recent.popleft()

    def _forget(self, ticket: Ticket) -> None:
        try:
            self._recent.remove(ticket)
        except ValueError:
            pass
