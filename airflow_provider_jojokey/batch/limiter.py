"""Limit the send rate of a batch: one limiter for all its threads, which adapts to the gateway's responses.

Four limits apply at the same time, and the strictest one counts:

* a *ramp*: a batch starts with a few requests per second and sends more each second, so that few requests exceed
  an unknown limit;
* a *model* of the gateway's limit, after the first 429, see :mod:`batch.models`;
* a *pause*, as long as ``Retry-After`` requests. After a rejection, a single request goes first, and others follow
  after it was accepted;
* a *ceiling* for requests in flight, which is halved if the gateway is overloaded and grows with each response.

This module is pure: times are arguments, and nothing waits.
"""

from __future__ import annotations

import math
from collections import deque

from airflow_provider_jojokey.batch import models
from airflow_provider_jojokey.batch.models import Concurrency, Model, Rate, Ticket, Window

__all__ = ["Limiter", "Ticket"]

FIRST_RATE = 8.0
"""Requests per second at the start. Each second adds :data:`MORE_EACH_SECOND`."""
MORE_EACH_SECOND = 8.0
UNKNOWN = 0.25
"""Fraction of the requests so far whose outcome may be unknown while no limit is known."""
RAISE = 0.25
"""Growth of the ceiling for requests in flight per response: a quarter per round trip."""
FIRST_PAUSE = 2.0
LONGEST_PAUSE = 60.0
"""Pauses in seconds while the gateway is overloaded. Each pause is twice as long as the last one."""
GIVE_UP_AFTER = 300.0
"""Seconds after which a batch gives up if the gateway rejects every request."""
LATENCY = 0.3
"""Seconds after which a request counts as accepted, until rejections show how long they take."""
POLL = 0.05
LONGEST_CLEAN = 60.0
"""Maximum seconds without a rejection before a higher rate is tried, unless the gateway's window is longer."""
PROVEN = 10
"""Accepted requests after which a model counts as proven. It is then preferred to others with the same misses."""
UNMEASURED, UNPROVEN, TRUSTED = (1, 0.5), (1, 1.0), (4, 2.0)
"""Requests after a rejection whose outcome may be unknown: a number at first, then a fraction of those accepted."""
SOON = 5.0
"""Seconds within which a request in flight is expected to end."""
ACCEPTED_BEFORE_RAISE = 25
WAIT_PENALTY = 0.7
"""Penalty, in misses, for a model that requires 10 seconds of waiting; 30 seconds count twice, and so on."""
REJECTED_WAIT = 0.25
"""Wait after a rejected first request, as a fraction of the time since a request was last accepted."""
MISS_DECAY = 0.98
"""Factor by which each accepted request of a model reduces its misses."""
MEMORY = 75.0
"""Seconds for which requests are kept."""


class Limiter:
    """The send rate of one batch.

    :param max_in_flight: maximum number of requests in flight
    :param give_up_after: seconds after which it gives up if the gateway rejects every request
    :param latency: expected seconds from sending a request to its rejection, until rejections show it
    """

    def __init__(
        self, max_in_flight: int, give_up_after: float | None = None, latency: float = LATENCY
    ) -> None:
        self.max_in_flight = max_in_flight
        self.give_up_after = GIVE_UP_AFTER if give_up_after is None else give_up_after
        self.in_flight = 0
        self.rejections = 0
        """Number of rejected requests."""
        self._models: list[Model] = []
        self._recent: list[Ticket] = []
        self._undecided: deque[Ticket] = deque()
        self._ceiling = float(max_in_flight)
        self._not_before = -math.inf
        self._last_given = -math.inf
        self._ramp = -math.inf
        self._cut_at = -math.inf
        self._overloads = 0
        self._rejected_since: float | None = None
        self._latency = latency
        self._tried = 0
        """Requests since the last pause whose outcome is unknown."""
        self._accepted = 0
        """Requests since the last pause that were accepted."""
        self._clean_since = -math.inf
        self._clean_accepted = 0
        """Requests since the last rejection that were accepted."""
        self._started_at = -math.inf
        self._opening = False
        self._last_accepted = -math.inf
        self._clean_periods = 1
        self._raised_at = -math.inf

    def expect(self, latency: float) -> None:
        """Set the expected seconds from sending a request to its rejection."""
        self._latency = min(max(latency, 0.05), 2.0)

    def delay(self, now: float) -> float:
        """Return the seconds until the next request may be sent: 0 for now, ``inf`` if one must end first."""
        if self.in_flight >= min(self._ceiling, self.max_in_flight):
            return math.inf
        self._accept(now)
        waits = [self._not_before - now, self._ramp_delay(now)]
        if self._models:
            self._forget_old(now)
            model, ready_at = self._followed(now)
            waits.append(self._start_delay(model, now))
            if isinstance(model, Window) and ready_at - now > 2 * self._confirmation:
                self._start_again(now)  # the window may end later than expected
                self._opening = True
            if (
                model is not None
                and self._not_before <= now  # else the gateway has requested the wait, not the model
                and ready_at - now > 0.8 * model.spacing
                and self._may_raise(model, now)
            ):
                return 0.0
            waits.append(ready_at - now)
        return max(0.0, *waits)

    def acquire(self, now: float) -> Ticket:
        """Return a ticket for a request that is sent now."""
        if self._ramp == -math.inf:
            self._ramp = now
        ticket = Ticket(now, self.in_flight)
        if self._models:
            ticket.model = self._followed(now)[0]
        self._tried += 1
        self._recent.append(ticket)
        self._undecided.append(ticket)
        for each in self._models:
            each.count(ticket, 1)
        self._last_given = now
        self.in_flight += 1
        if not self._models:
            self._forget_old(now)
        return ticket

    def release(self, ticket: Ticket) -> None:
        """Record that a request has ended without a rejection, or was not sent."""
        if ticket.ended:
            return
        self._end(ticket)
        if ticket.sent_at is None:
            self._forget(ticket)
            return
        self._ceiling = min(self.max_in_flight, self._ceiling + RAISE)
        self._rejected_since = None
        self._overloads = 0

    def rejected(self, ticket: Ticket, now: float, retry_after: float | None) -> None:
        """Record a 429: the gateway's rate limit is reached."""
        fresh = self._slow_down(ticket, now, retry_after)
        if not self._models:
            self._models = [Concurrency(), *map(Window, models.WINDOWS), Rate()]
        for model in self._models:
            model.reject(ticket, now, self._recent, fresh, retry_after)
        if fresh:
            if self._raised_at > self._clean_since:
                self._clean_periods = 2
            self._clean_since = now

    def overloaded(self, ticket: Ticket, now: float, retry_after: float | None) -> None:
        """Record that the gateway or the network cannot handle so many requests at once."""
        if self._slow_down(ticket, now, retry_after):
            self._overloads += 1
            if retry_after is None:
                pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(self._overloads - 1, 16))
                self._not_before = max(self._not_before, now + pause)
            self._ceiling = max(1.0, min(self._ceiling, self.in_flight + 1) / 2)

    def stalled(self, now: float) -> bool:
        """Return whether the gateway has rejected every request for so long that waiting is useless."""
        if self._rejected_since is None or self.in_flight:
            return False
        return max(now, self._not_before) - self._rejected_since > self.give_up_after

    def wanted_pause(self, now: float) -> float:
        """Return the seconds for which the gateway has requested a pause."""
        return max(0.0, self._not_before - now)

    def __str__(self) -> str:
        """Return the estimated limit of the gateway, or an empty string if none is known."""
        model = self._followed(self._last_given)[0] if self._models else None
        return "" if model is None else str(model)

    # Models

    def _followed(self, now: float) -> tuple[Model | None, float]:
        """Return the model to follow now, and the time at which it allows the next request."""
        best: tuple[tuple[float, float], Model] | None = None
        for model in self._models:
            ready_at = model.ready_at(self._recent, self.in_flight)
            if ready_at == math.inf and not (isinstance(model, Concurrency) and self.in_flight):
                continue
            ready_at = max(ready_at, now, self._not_before)
            wait = min(ready_at - now, SOON if math.isinf(ready_at) else math.inf)
            key = (
                model.misses - min(1.0, model.hits / PROVEN) + WAIT_PENALTY * math.log2(1 + wait / 10),
                ready_at,
            )
            if best is None or key < best[0]:
                best = key, model
        return (None, -math.inf) if best is None else (best[1], best[0][1])

    def _may_raise(self, model: Model, now: float) -> bool:
        """Raise a model's bound after a long time without rejections, and return whether a request may be sent.

        The first raise permits one request. If that is accepted, the next raise permits more.
        """
        since, clean = now - self._clean_since, model.period * self._clean_periods
        if self._clean_accepted < ACCEPTED_BEFORE_RAISE * self._clean_periods:
            clean = max(clean, model.longest_period * self._clean_periods)
        else:
            clean = min(clean, max(model.period, LONGEST_CLEAN))
        if since <= clean or now - self._raised_at <= 2 * self._confirmation:
            return False
        first = self._raised_at < self._clean_since + clean
        self._raised_at = now
        return model.raise_bound(first)

    def _accept(self, now: float) -> None:
        """Count requests as accepted if a rejection would have arrived by now."""
        before = now - self._confirmation
        while self._undecided:
            ticket = self._undecided[0]
            if not ticket.ended and (ticket.sent_at is None or ticket.sent_at > before):
                return
            self._undecided.popleft()
            after_cut, after_start = ticket.given_at >= self._cut_at, ticket.given_at >= self._started_at
            self._tried -= after_start
            if ticket.lost:
                continue
            self._accepted += after_start
            self._clean_accepted += after_cut
            self._last_accepted = max(self._last_accepted, ticket.time)
            if self._models and all(model.bound < 1 for model in self._models if isinstance(model, Window)):
                self._models = [Concurrency(), *map(Window, models.WINDOWS), Rate()]  # an outage is over
            if after_cut:
                for model in self._models:
                    model.accept(ticket, self._recent)
            if ticket.model is not None:
                ticket.model.hits += 1
                ticket.model.misses *= MISS_DECAY

    # Pauses

    def _slow_down(self, ticket: Ticket, now: float, retry_after: float | None) -> bool:
        """Slow down, and return whether the request was sent after the last rejection became known."""
        if ticket.ended:
            return False
        self._end(ticket)
        self.rejections += 1
        if ticket.given:
            self._forget(ticket)
        if self._rejected_since is None:
            self._rejected_since = now
        if retry_after is not None:
            self._not_before = max(self._not_before, now + retry_after)
        if ticket.given:
            self._latency = max(0.8 * self._latency, now - ticket.time)
        if ticket.given_at < self._cut_at:
            return False
        self._cut_at = now
        self._clean_accepted = 0
        self._opening = False
        self._start_again(now)
        self._ramp = -math.inf
        return True

    def _start_again(self, now: float) -> None:
        self._started_at = now
        self._tried = self._accepted = 0

    def _start_delay(self, model: Model | None, now: float) -> float:
        """Return the seconds to wait for the outcome of earlier requests after a rejection.

        One request goes first, or a few if the followed model is proven. Then the requests whose outcome is unknown
        are limited by those accepted since, so that a wrong model costs few rejections.
        """
        if model is None or self._cut_at == -math.inf:
            return 0.0
        if not self._tried and not self._clean_accepted:
            return self._cut_at + REJECTED_WAIT * min(60.0, self._cut_at - self._last_accepted) - now
        if not model.measured:
            first, fraction = UNMEASURED
        elif model.hits < PROVEN or self._opening:
            first, fraction = UNPROVEN
        else:
            first, fraction = TRUSTED
        if self._tried < max(first, fraction * self._accepted):
            return 0.0
        oldest = next((ticket for ticket in self._undecided if ticket.given_at >= self._started_at), None)
        if oldest is None or oldest.sent_at is None:
            return POLL
        return max(POLL / 10, oldest.sent_at + self._confirmation - now)

    @property
    def _confirmation(self) -> float:
        """Seconds after which a request without a rejection counts as accepted."""
        return 1.5 * self._latency + POLL

    def _ramp_delay(self, now: float) -> float:
        if self._ramp == -math.inf:
            return 0.0
        rate = FIRST_RATE + MORE_EACH_SECOND * max(0.0, now - self._ramp)
        if not self._models:
            rate = min(rate, FIRST_RATE / 2 + UNKNOWN * len(self._recent) / self._confirmation)
        return self._last_given + 1 / rate - now

    # Requests

    def _end(self, ticket: Ticket) -> None:
        ticket.ended = True
        self.in_flight -= ticket.given

    def _forget(self, ticket: Ticket) -> None:
        ticket.lost = True
        for other in self._undecided:
            if other.given_at > ticket.given_at:
                other.beside -= 1
        for index in range(len(self._recent) - 1, -1, -1):
            if self._recent[index] is ticket:
                del self._recent[index]
                for model in self._models:
                    model.count(ticket, -1)
                return

    def _forget_old(self, now: float) -> None:
        if self._recent and self._recent[0].given_at < now - 1.5 * MEMORY:
            self._recent = [ticket for ticket in self._recent if ticket.given_at >= now - MEMORY]
