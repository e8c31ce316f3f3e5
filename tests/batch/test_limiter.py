"""The pace of a batch, against gateways that count: simulated, to the millisecond, in no time."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from airflow_provider_jojokey.batch.limiter import Limiter, Ticket

Verdict = tuple[str, float | None]


@dataclass
class Outcome:
    seconds: float
    refused: int
    accepted: list[float] = field(default_factory=list)
    peak: int = 0
    stalled: bool = False


def simulate(
    gateway: Callable[[float, int], Verdict],
    items: int,
    *,
    max_in_flight: int = 64,
    trip: float = 0.15,
    works: Callable[[], float] = lambda: 10.0,
    patience: float = 300.0,
) -> Outcome:
    """Send ``items`` through a limiter to ``gateway``, which is told the time and what it is working on.

    A refusal is known after a round trip of ``trip`` seconds, an image after ``works`` more.
    """
    limiter = Limiter(max_in_flight, patience)
    outcome, now, left, busy = Outcome(0, 0), 0.0, items, 0
    events: list[tuple[float, int, str, Ticket, float | None]] = []
    order = itertools.count()
    working = 0
    while left or busy:
        if limiter.stalled(now):
            outcome.stalled = True
            break
        if left and limiter.delay(now) == 0:
            ticket = limiter.give(now)
            ticket.sent_at = now
            left, busy = left - 1, busy + 1
            outcome.peak = max(outcome.peak, busy)
            said, retry_after = gateway(now + trip / 2, working)
            if said == "ok":
                working += 1
                outcome.accepted.append(now)
                heapq.heappush(events, (now + trip + works(), next(order), said, ticket, None))
            else:
                outcome.refused += 1
                heapq.heappush(events, (now + trip, next(order), said, ticket, retry_after))
            continue
        then = now + limiter.delay(now) if left else math.inf
        if events and events[0][0] <= then:
            now, _, said, ticket, retry_after = heapq.heappop(events)
            busy -= 1
            if said == "ok":
                working -= 1
                limiter.done(ticket, now)
            else:
                left += 1
                slow_down = limiter.refused if said == "429" else limiter.overloaded
                slow_down(ticket, now, retry_after)
        else:
            assert then > now
            now = then + 1e-9
        assert now < 1e6, "it never ends"
    outcome.seconds = now
    return outcome


def sliding(limit: int, window: float, tell: bool = False) -> Callable[[float, int], Verdict]:
    """A gateway that takes ``limit`` requests in any ``window`` seconds."""
    taken: deque[float] = deque()

    def answer(now: float, working: int) -> Verdict:
        while taken and taken[0] <= now - window:
            taken.popleft()
        if len(taken) >= limit:
            return "429", math.ceil(taken[0] + window - now) if tell else None
        taken.append(now)
        return "ok", None

    return answer


def fixed(limit: int, window: float, tell: bool = False) -> Callable[[float, int], Verdict]:
    """A gateway that counts from the full minute."""
    taken = {"window": -1, "count": 0}

    def answer(now: float, working: int) -> Verdict:
        current = int(now // window)
        if taken["window"] != current:
            taken.update(window=current, count=0)
        if taken["count"] >= limit:
            return "429", math.ceil((current + 1) * window - now) if tell else None
        taken["count"] += 1
        return "ok", None

    return answer


@pytest.mark.parametrize("kind", [sliding, fixed])
@pytest.mark.parametrize("tell", [False, True], ids=["silent", "retry_after"])
@pytest.mark.parametrize("max_in_flight", [8, 64, 256])
@pytest.mark.parametrize("limit", [10, 30, 120])
def test_a_limit_a_minute_is_found_with_a_handful_of_refusals_and_then_used(
    kind: Callable[..., Callable[[float, int], Verdict]], tell: bool, max_in_flight: int, limit: int
) -> None:
    items = limit * 8

    outcome = simulate(kind(limit, 60.0, tell), items, max_in_flight=max_in_flight)

    assert len(outcome.accepted) == items
    assert outcome.refused <= (12 if limit <= 30 else 16)
    ideal = max(60.0 * (items / limit - 1), 10.0 * items / max_in_flight)
    assert outcome.seconds <= 1.35 * ideal + 90


@pytest.mark.parametrize("limit", [5, 20])
def test_a_limit_a_second_is_not_taken_for_one_a_minute(limit: int) -> None:
    outcome = simulate(sliding(limit, 1.0), 300, max_in_flight=256, works=lambda: 1.0)

    assert len(outcome.accepted) == 300
    assert outcome.refused <= 25
    assert outcome.seconds <= 3.5 * 300 / limit


def test_a_gateway_without_limits_gets_all_within_seconds() -> None:
    outcome = simulate(lambda now, working: ("ok", None), 1_000, max_in_flight=1_000, works=lambda: 30.0)

    assert outcome.peak == 1_000
    assert outcome.accepted[-1] < 20
    assert outcome.refused == 0


def test_in_flight_is_never_more_than_allowed() -> None:
    assert simulate(lambda now, working: ("ok", None), 100, max_in_flight=7).peak == 7


def test_an_overloaded_gateway_is_asked_for_less_at_once_and_then_for_more_again() -> None:
    def busy_until_a_minute(now: float, working: int) -> Verdict:
        return ("503", None) if now < 60 and working >= 10 else ("ok", None)

    outcome = simulate(busy_until_a_minute, 400, max_in_flight=64)

    assert len(outcome.accepted) == 400
    assert outcome.refused <= 30
    late = [one for one in outcome.accepted if one > outcome.seconds - 40]
    assert len(late) >= 100  # by then it is back at what is allowed, or nearly


def test_retry_after_is_honoured_by_all() -> None:
    def away(now: float, working: int) -> Verdict:
        return ("429", 40.0 - now) if 2 < now < 40 else ("ok", None)

    outcome = simulate(away, 200)

    assert not [one for one in outcome.accepted if 3 < one < 40]
    assert outcome.refused <= 12


@pytest.mark.parametrize("said", ["429", "503"])
def test_a_gateway_that_only_refuses_is_given_up(said: str) -> None:
    outcome = simulate(lambda now, working: (said, None), 50)

    assert outcome.stalled
    assert 200 <= outcome.seconds <= 400
    assert outcome.refused <= 20


def test_a_wait_that_is_asked_for_and_longer_than_patience_is_not_waited() -> None:
    outcome = simulate(lambda now, working: ("429", 3_600.0), 50)

    assert outcome.stalled
    assert outcome.seconds < 1


@pytest.mark.parametrize("seed", range(20))
def test_whatever_the_gateway_counts_by_the_campaign_ends(seed: int) -> None:
    chance = random.Random(seed)
    limit, window = chance.choice([1, 3, 17, 60]), chance.choice([1.0, 5.0, 15.0, 60.0, 90.0])
    kind = chance.choice([sliding, fixed])
    items = max(20, 4 * limit)

    outcome = simulate(
        kind(limit, window, chance.random() < 0.5),
        items,
        max_in_flight=chance.choice([1, 8, 64]),
        trip=chance.choice([0.002, 0.2, 1.0]),
        works=lambda: chance.uniform(1, 30),
    )

    assert len(outcome.accepted) == items
    assert outcome.refused <= (12 + 2 * items / limit if window <= 60 else 5 * items)
