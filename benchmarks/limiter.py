"""Simulate the rate limiter of batches, and compare it with an oracle that knows the limit.

    python -m benchmarks.limiter [--quick N] [--seeds N] [--only TEXT] [--json FILE] [--check]

The benchmark runs the real limiter. The batch's threads, S3 and the gateway are simulated with a virtual clock. Each
image reads its receipt, waits for a permit, claims the receipt, connects and sends. A rejection arrives after a round
trip, and the item starts again after its receipt is updated. The oracle takes the same steps, and sends each request
as soon as the gateway accepts it.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import math
import random
import statistics
import sys
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from airflow_provider_jojokey.batch.limiter import Limiter, Ticket
from benchmarks._report import add_options, conclude

S3_CONNECTIONS = 32
LONGEST = 30_000.0
"""Seconds after which a campaign counts as endless."""


class Gateway:
    """A gateway that accepts all requests.

    :param retry_after: whether its rejections have a ``Retry-After``
    """

    name = "no limit"

    def __init__(self, retry_after: bool = False) -> None:
        self.retry_after = retry_after
        self.working = 0

    def free_at(self, now: float) -> float:
        """Return the time of the next accepted request; ``inf`` if another one must end first."""
        return now

    def accept(self, now: float) -> None:
        """Count a request."""

    def answer(self, now: float) -> tuple[bool, float | None]:
        """Return whether a request is accepted now, and the value of ``Retry-After``."""
        free_at = self.free_at(now)
        if free_at > now:
            wait = free_at - now if math.isfinite(free_at) else 1.0
            return False, float(math.ceil(wait)) if self.retry_after else None
        self.accept(now)
        self.working += 1
        return True, None


class Sliding(Gateway):
    """A gateway with a limit for any window of time (sliding window)."""

    def __init__(self, limit: int, window: float, retry_after: bool = False) -> None:
        super().__init__(retry_after)
        self.name = f"sliding {limit} / {window:g} s"
        self._limit, self._window = limit, window
        self._taken: deque[float] = deque()

    def free_at(self, now: float) -> float:
        """Return the time of the next accepted request."""
        while self._taken and self._taken[0] <= now - self._window:
            self._taken.popleft()
        return now if len(self._taken) < self._limit else self._taken[-self._limit] + self._window

    def accept(self, now: float) -> None:
        """Count a request."""
        self._taken.append(now)


class Fixed(Gateway):
    """A gateway with a limit for fixed windows, such as calendar minutes.

    :param phase: seconds of the current window that have passed when the batch starts
    """

    def __init__(self, limit: int, window: float, retry_after: bool = False, phase: float = 0.0) -> None:
        super().__init__(retry_after)
        self.name = f"fixed {limit} / {window:g} s"
        self._limit, self._window, self._phase = limit, window, phase
        self._current, self._count = -1, 0

    def free_at(self, now: float) -> float:
        """Return the time of the next accepted request."""
        current = int((now + self._phase) // self._window)
        if current != self._current:
            self._current, self._count = current, 0
        return now if self._count < self._limit else (current + 1) * self._window - self._phase

    def accept(self, now: float) -> None:
        """Count a request."""
        self._count += 1


class Bucket(Gateway):
    """A gateway with a token bucket."""

    def __init__(self, rate: float, burst: int, retry_after: bool = False) -> None:
        super().__init__(retry_after)
        self.name = f"bucket {rate:g} / s, {burst}"
        self._rate, self._burst = rate, burst
        self._tokens, self._at = float(burst), 0.0

    def free_at(self, now: float) -> float:
        """Return the time of the next accepted request."""
        if now > self._at:
            self._tokens = min(self._burst, self._tokens + self._rate * (now - self._at))
            self._at = now
        return now if self._tokens >= 1 - 1e-9 else now + (1 - self._tokens) / self._rate

    def accept(self, now: float) -> None:
        """Count a request."""
        self._tokens -= 1


class Concurrent(Gateway):
    """A gateway with a limit for concurrent requests."""

    def __init__(self, limit: int, retry_after: bool = False) -> None:
        super().__init__(retry_after)
        self.name = f"{limit} at once"
        self._limit = limit

    def free_at(self, now: float) -> float:
        """Return the time of the next accepted request; ``inf`` if another one must end first."""
        return now if self.working < self._limit else math.inf


@dataclass(frozen=True)
class Case:
    """One simulated campaign.

    :param gateway: makes the gateway
    :param takes: seconds for an image, from and to
    :param trips: seconds of a round trip to S3 and to the gateway
    :param batches: batches at the same time, with as many items each
    :param stagger: seconds between the starts of two batches
    """

    gateway: Callable[[random.Random], Gateway]
    items: int = 200
    in_flight: int = 200
    takes: tuple[float, float] = (5.0, 20.0)
    trips: tuple[float, float] = (0.03, 0.05)
    batches: int = 1
    stagger: float = 0.0
    seed: int = 0

    @property
    def name(self) -> str:
        """A short description."""
        gateway = self.gateway(random.Random(self.seed))
        return (
            f"{gateway.name}{', Retry-After' if gateway.retry_after else ''}; {self.items} items, "
            f"{self.in_flight} in flight, {self.takes[0]:g} to {self.takes[1]:g} s, "
            f"S3 {1000 * self.trips[0]:g} ms, gateway {1000 * self.trips[1]:g} ms"
            f"{f'; {self.batches} batches' if self.batches > 1 else ''}"
        )


@dataclass
class Outcome:
    """The result of a campaign."""

    seconds: float
    requests: int
    refused: int
    stalled: bool = False


class Clock:
    """A virtual clock with scheduled events."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def at(self, when: float, event: Callable[[], None]) -> None:
        """Schedule ``event``."""
        heapq.heappush(self._events, (max(when, self.now), next(self._order), event))

    def run(self) -> None:
        """Run all events."""
        while self._events:
            self.now, _, event = heapq.heappop(self._events)
            if self.now > LONGEST:
                return
            event()


class Batch:
    """The batch's loop: items, threads that prepare and send them, and permits in the order of their requests.

    :param limiter: the limiter; ``None`` simulates the oracle
    """

    def __init__(
        self, clock: Clock, case: Case, gateway: Gateway, chance: random.Random, limiter: Limiter | None
    ) -> None:
        self._clock, self._case, self._gateway, self._chance = clock, case, gateway, chance
        self._limiter = limiter
        factor = 1 if limiter else case.batches
        self._left = case.items * factor
        self._threads = case.in_flight * factor
        self._waiting: deque[float] = deque()
        self._busy = 0
        self._s3 = [0.0] * S3_CONNECTIONS
        self._wakes_at = math.inf
        self.outcome = Outcome(0.0, 0, 0)

    def start(self) -> None:
        """Start the first threads, and send the first requests."""
        self._dispatch()

    def _dispatch(self) -> None:
        if self.outcome.stalled:
            return
        while self._left and self._busy < self._threads:
            self._left -= 1
            self._busy += 1
            self._clock.at(self._after_s3(1), self._prepared)
        while self._waiting:
            delay = self._delay()
            if delay > 0:
                if delay < math.inf:
                    self._wake(self._clock.now + delay)
                return
            self._waiting.popleft()
            self._send(self._limiter.acquire(self._clock.now) if self._limiter else Ticket(self._clock.now))

    def _delay(self) -> float:
        now = self._clock.now
        if self._limiter is None:
            arrival = now + self._mean_arrival
            free_at = self._gateway.free_at(arrival)
            return free_at - arrival
        if self._limiter.stalled(now):
            self.outcome.stalled = True
            return math.inf
        return self._limiter.delay(now)

    def _wake(self, when: float) -> None:
        when += 1e-6
        if when < self._wakes_at:
            self._wakes_at = when

            def woken() -> None:
                if self._wakes_at == when:
                    self._wakes_at = math.inf
                self._dispatch()

            self._clock.at(when, woken)

    def _prepared(self) -> None:
        self._waiting.append(self._clock.now)
        self._dispatch()

    def _send(self, ticket: Ticket) -> None:
        takes = self._chance.uniform(*self._case.takes)
        if self._limiter is None:
            self._gateway.answer(self._clock.now + self._mean_arrival)
            self.outcome.requests += 1
            end = self._clock.now + self._mean_arrival + takes
            self._clock.at(end, lambda: self._finished(ticket))
            return
        claimed = self._after_s3(1)

        def send() -> None:
            ticket.sent_at = self._clock.now
            self._clock.at(self._clock.now + self._trip(1.5), arrive)  # a connection, and half a round trip

        def arrive() -> None:
            self.outcome.requests += 1
            accepted, retry_after = self._gateway.answer(self._clock.now)
            if accepted:
                self._clock.at(self._clock.now + takes, lambda: self._finished(ticket))
            else:
                self.outcome.refused += 1
                self._clock.at(self._clock.now + self._trip(0.5), lambda: self._refused(ticket, retry_after))

        self._clock.at(claimed, send)

    def _refused(self, ticket: Ticket, retry_after: float | None) -> None:
        assert self._limiter is not None
        self._limiter.rejected(ticket, self._clock.now, retry_after)
        self._clock.at(self._after_s3(1), self._starts_again)
        self._dispatch()

    def _starts_again(self) -> None:
        self._busy -= 1
        self._left += 1
        self._dispatch()

    def _finished(self, ticket: Ticket) -> None:
        self._gateway.working -= 1
        if self._limiter is None:
            self._dispatch()
        received = self._clock.now + self._trip(0.5)
        self._clock.at(received, lambda: self._clock.at(self._after_s3(2), lambda: self._ended(ticket)))

    def _ended(self, ticket: Ticket) -> None:
        if self._limiter is not None:
            self._limiter.release(ticket)
        self._busy -= 1
        self.outcome.seconds = self._clock.now
        self._dispatch()

    @property
    def _mean_arrival(self) -> float:
        s3, gateway = self._case.trips
        return s3 + 1.5 * gateway

    def _trip(self, trips: float) -> float:
        return trips * self._case.trips[1] * self._jitter()

    def _after_s3(self, requests: int) -> float:
        """Return the time when S3 has answered a number of requests on a shared connection."""
        free = min(range(len(self._s3)), key=self._s3.__getitem__)
        begin = max(self._clock.now, self._s3[free])
        self._s3[free] = begin + sum(self._case.trips[0] * self._jitter() for _ in range(requests))
        return self._s3[free]

    def _jitter(self) -> float:
        if self._limiter is None:
            return 1.0
        slow = 4.0 if self._chance.random() < 0.01 else 1.0
        return slow * self._chance.uniform(0.8, 1.5)


def simulate(case: Case, limiter: Callable[..., Limiter] | None = Limiter) -> list[Outcome]:
    """Return the result of each batch of a case.

    :param limiter: makes the limiter; ``None`` simulates the oracle, as one batch with the items of all
    """
    chance = random.Random(case.seed)
    gateway, clock = case.gateway(chance), Clock()
    batches = []
    for number in range(case.batches if limiter else 1):
        # A batch first lists the models, which takes a connection and a round trip.
        real = limiter(case.in_flight, latency=2.5 * case.trips[1]) if limiter else None
        batch = Batch(clock, case, gateway, chance, real)
        clock.at(number * case.stagger, batch.start)
        batches.append(batch)
    clock.run()
    return [batch.outcome for batch in batches]


def compare(case: Case) -> dict[str, Any]:
    """Return the wall time of a case relative to the oracle's, and the share of rejected requests."""
    outcomes = simulate(case)
    ideal = simulate(case, None)[0].seconds
    seconds = max(outcome.seconds for outcome in outcomes)
    requests = sum(outcome.requests for outcome in outcomes)
    refused = sum(outcome.refused for outcome in outcomes)
    stalled = any(outcome.stalled for outcome in outcomes)
    complete = requests - refused == case.items * case.batches
    return {
        "seconds": seconds,
        "oracle": ideal,
        "ratio": seconds / ideal if complete and not stalled else math.inf,
        "refused": refused,
        "share": refused / requests,
    }


def grid(seeds: int = 2) -> Iterator[Case]:
    """Yield the cases."""
    fast, slow = (0.03, 0.05), (0.1, 0.25)
    for seed in range(seeds):
        for make in (*_gateways(),):
            for trips, in_flight, items, takes in (
                (fast, 200, 200, (5.0, 20.0)),
                (fast, 64, 500, (5.0, 20.0)),
                (slow, 200, 400, (20.0, 60.0)),
                (fast, 16, 200, (2.0, 6.0)),
            ):
                yield Case(make, items, in_flight, takes, trips, seed=seed)
            yield Case(make, 200, 100, batches=2, stagger=0.0 if seed % 2 else 7.0, seed=seed)


def _gateways() -> Iterator[Callable[[random.Random], Gateway]]:
    yield lambda _: Gateway()
    for retry_after in (False, True):
        for limit, window in ((5, 1.0), (20, 1.0), (40, 10.0), (30, 60.0), (120, 60.0), (500, 60.0)):
            yield lambda _, of=(limit, window, retry_after): Sliding(*of)  # type: ignore[misc]
            yield lambda chance, of=(limit, window, retry_after): Fixed(  # type: ignore[misc]
                *of, phase=chance.uniform(0, of[1])
            )
        for rate, burst in ((0.5, 10), (2.0, 20), (2.0, 120), (10.0, 10)):
            yield lambda _, of=(rate, burst, retry_after): Bucket(*of)  # type: ignore[misc]
        for limit in (5, 20, 60):
            yield lambda _, of=(limit, retry_after): Concurrent(*of)  # type: ignore[misc]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", type=int, default=1, metavar="N", help="run only every Nth case")
    parser.add_argument("--seeds", type=int, default=2, metavar="N", help="run each case N times")
    parser.add_argument("--only", default="", metavar="TEXT", help="run only cases whose name contains TEXT")
    add_options(parser)
    arguments = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {}
    for number, case in enumerate(grid(arguments.seeds)):
        if number % arguments.quick == 0 and arguments.only in case.name:
            found.setdefault(case.name, []).append(compare(case))
    print("| campaign | oracle | limiter | ratio | refused | share |\n|---|---|---|---|---|---|")
    for name, each in found.items():
        worst = max(each, key=lambda result: float(result["ratio"]))
        refused = max(each, key=lambda result: float(result["share"]))
        print(
            f"| {name} | {worst['oracle']:.0f} s | {worst['seconds']:.0f} s | {worst['ratio']:.2f} "
            f"| {refused['refused']} | {100 * refused['share']:.1f} % |"
        )
    results = [result for each in found.values() for result in each]
    ratios, shares = [result["ratio"] for result in results], [100 * result["share"] for result in results]
    judged = [
        (value <= target, f"{what} {value:.2f}{unit} (target: at most {target:g}{unit})")
        for what, value, target, unit in (
            ("the median wall time, as a multiple of the oracle's, is", statistics.median(ratios), 1.25, ""),
            ("the worst wall time, as a multiple of the oracle's, is", max(ratios), 1.5, ""),
            ("the median share of refusals is", statistics.median(shares), 5.0, " %"),
            ("the worst share of refusals is", max(shares), 12.0, " %"),
        )
    ]
    print(f"\n{len(results)} campaigns:\n")
    return conclude(arguments, judged, found)


if __name__ == "__main__":
    sys.exit(main())
