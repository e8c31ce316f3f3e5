"""The rate limiter of batches, with simulated gateways in virtual time."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_jojokey.batch.limiter import Limiter, Ticket
from airflow_provider_jojokey.batch.models import Concurrency, Window
from benchmarks.limiter import Bucket, Case, Concurrent, Fixed, Gateway, Sliding, compare, simulate

FAST, SLOW = (0.03, 0.05), (0.1, 0.25)


@pytest.mark.parametrize("tells", [False, True], ids=["silent", "retry_after"])
@pytest.mark.parametrize("trips", [FAST, SLOW], ids=["fast", "slow"])
@pytest.mark.parametrize("in_flight", [16, 64, 200])
@pytest.mark.parametrize("limit", [30, 120])
def test_limit_per_minute_is_found_and_used(
    limit: int, in_flight: int, trips: tuple[float, float], tells: bool
) -> None:
    result = compare(Case(lambda _: Sliding(limit, 60.0, tells), 400, in_flight, trips=trips))

    assert result["ratio"] <= 1.25
    assert result["share"] <= 0.15


@pytest.mark.parametrize("phase", [0.3, 0.7])
def test_minute_that_ends_soon_is_noticed(phase: float) -> None:
    result = compare(Case(lambda _: Fixed(120, 60.0, phase=60 * phase), 500, 200))

    assert result["ratio"] <= 1.5
    assert result["share"] <= 0.12


@pytest.mark.parametrize("limit", [5, 20])
def test_limit_per_second_is_not_taken_for_one_per_minute(limit: int) -> None:
    result = compare(Case(lambda _: Sliding(limit, 1.0), 300, 200))

    assert result["ratio"] <= 1.5
    assert result["share"] <= 0.12


@pytest.mark.parametrize("rate", [0.5, 2.0, 10.0])
def test_token_bucket_is_used_at_its_rate(rate: float) -> None:
    result = compare(Case(lambda _: Bucket(rate, 20), 300, 200))

    assert result["ratio"] <= 1.3
    assert result["share"] <= 0.15


@pytest.mark.parametrize("seed", [2, 4])
@pytest.mark.parametrize("tells", [False, True], ids=["silent", "retry_after"])
def test_full_bucket_is_not_taken_for_its_rate(tells: bool, seed: int) -> None:
    result = compare(Case(lambda _: Bucket(2.0, 120, tells), 400, 200, (20.0, 60.0), SLOW, seed=seed))

    assert result["ratio"] <= 1.1
    assert result["share"] <= 0.15


@pytest.mark.parametrize("limit", [5, 20, 60])
def test_limit_on_concurrent_requests_is_used(limit: int) -> None:
    result = compare(Case(lambda _: Concurrent(limit), 300, 200))

    assert result["ratio"] <= 1.25
    assert result["share"] <= 0.12


@pytest.mark.parametrize(("before", "ratio"), [(0.5, 1.55), (1.0, 1.35)])
@pytest.mark.parametrize("seed", range(3))
def test_rate_recovers_when_another_batch_ends(before: float, ratio: float, seed: int) -> None:
    class Shared(Bucket):
        def free_at(self, now: float) -> float:
            if now > 60 and self._rate < 5:
                super().free_at(60.0)
                self._rate = 5.0
            return super().free_at(now)

    result = compare(Case(lambda _: Shared(before, 10), 400, 200, seed=seed))

    assert result["ratio"] <= ratio
    assert result["share"] <= 0.05


def test_starved_batch_recovers_when_the_other_ends() -> None:
    result = compare(Case(lambda _: Sliding(40, 10.0), 200, 100, batches=2, stagger=7.0))

    assert result["ratio"] <= 1.5
    assert result["share"] <= 0.12


def test_two_batches_share_a_limit() -> None:
    first, second = simulate(Case(lambda _: Sliding(120, 60.0, True), 200, 100, batches=2))

    assert first.requests - first.refused == second.requests - second.refused == 200
    assert abs(first.seconds - second.seconds) <= 120


def test_gateway_without_limit_gets_all_within_seconds() -> None:
    result = compare(Case(lambda _: Gateway(), 1_000, 1_000, takes=(30.0, 30.0)))

    assert result["refused"] == 0
    assert result["seconds"] - result["oracle"] <= 15


def test_in_flight_is_never_more_than_allowed() -> None:
    class Counting(Gateway):
        peak = 0

        def accept(self, now: float) -> None:
            Counting.peak = max(Counting.peak, self.working + 1)

    simulate(Case(lambda _: Counting(), 100, 7))

    assert Counting.peak == 7


def test_rejections_decided_before_a_cut_count_once() -> None:
    limiter, tickets, now = Limiter(64), [], itertools.count()
    for _ in range(40):
        ticket = limiter.acquire(next(now))
        tickets.append(ticket)
    for ticket in tickets[:10]:
        ticket.sent_at = 40.0  # long after the permit was granted

    limiter.rejected(tickets[0], 41.0, None)
    first = limiter.delay(41.0)
    for ticket in tickets[1:10]:
        limiter.rejected(ticket, 41.0, None)

    assert limiter.delay(41.0) <= first
    assert limiter.rejections == 10


def test_rejected_request_reported_twice_counts_once() -> None:
    limiter = Limiter(8)
    ticket = limiter.acquire(0.0)
    ticket.sent_at = 0.1

    limiter.rejected(ticket, 0.2, None)
    limiter.rejected(ticket, 0.3, None)
    limiter.release(ticket)

    assert (limiter.rejections, limiter.in_flight) == (1, 0)


def test_unused_permit_does_not_count() -> None:
    limiter = Limiter(1)
    ticket = limiter.acquire(0.0)

    limiter.release(ticket)

    assert limiter.in_flight == 0
    assert limiter.delay(1.0) == 0


def test_retry_after_is_honored() -> None:
    class Away(Gateway):
        times: list[float] = []  # noqa: RUF012

        def free_at(self, now: float) -> float:
            Away.times.append(now)
            return 40.0 if 2 < now < 40 else now

    outcome = simulate(Case(lambda _: Away(retry_after=True), 200, 64))[0]

    assert not [time for time in Away.times if 3 < time < 39.9]
    assert outcome.refused <= 12


class Never(Gateway):
    """A gateway that rejects everything."""

    def free_at(self, now: float) -> float:
        return now + 3_600.0


def test_gateway_that_rejects_everything_is_given_up() -> None:
    outcome = simulate(Case(lambda _: Never(), 50, 64))[0]

    assert outcome.stalled
    assert outcome.refused <= 40


def test_progress_resets_the_time_to_give_up() -> None:
    limiter = Limiter(8, give_up_after=10.0)
    for moment in range(0, 100, 5):
        refused, made = limiter.acquire(float(moment)), limiter.acquire(moment + 1.0)
        refused.sent_at = made.sent_at = moment + 1.0
        limiter.rejected(refused, moment + 2.0, None)
        limiter.release(made)
        assert not limiter.stalled(moment + 4.0)

    last = limiter.acquire(100.0)
    last.sent_at = 100.0
    limiter.rejected(last, 101.0, None)

    assert not limiter.stalled(110.0)
    assert limiter.stalled(112.0)


def test_wait_over_the_limit_fails_immediately() -> None:
    limiter = Limiter(8)
    ticket = limiter.acquire(0.0)
    ticket.sent_at = 0.0

    limiter.rejected(ticket, 0.1, 3_600.0)

    assert limiter.stalled(0.2)


def test_overloaded_gateway_gets_fewer_then_more_requests() -> None:
    limiter = Limiter(64)
    tickets = [limiter.acquire(0.0) for _ in range(64)]
    for ticket in tickets:
        ticket.sent_at = 0.0
    for ticket in tickets[32:]:
        limiter.overloaded(ticket, 1.0, None)
    limits = []
    for ticket in tickets[:32]:
        limiter.release(ticket)
    for moment in (10.0, 100.0):
        given: list[Ticket] = []
        while limiter.delay(moment) < float("inf"):
            given.append(limiter.acquire(moment))
            given[-1].sent_at = moment
            moment += 1.0
        limits.append(len(given))
        for ticket in given:
            limiter.release(ticket)

    assert limits[0] < 64
    assert limits[1] > limits[0]


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(
    "make",
    [
        lambda chance: Sliding(chance.choice([3, 17, 60]), chance.choice([1.0, 15.0, 90.0]), bool(chance.getrandbits(1))),
        lambda chance: Fixed(chance.choice([3, 17, 60]), chance.choice([1.0, 15.0, 90.0]), bool(chance.getrandbits(1))),
        lambda chance: Bucket(chance.uniform(0.2, 20), chance.choice([1, 10, 100]), bool(chance.getrandbits(1))),
        lambda chance: Concurrent(chance.choice([1, 3, 40]), bool(chance.getrandbits(1))),
    ],
    ids=["sliding", "fixed", "bucket", "concurrent"],
)  # fmt: skip
def test_campaign_ends_with_any_kind_of_limit(make: Callable[..., Gateway], seed: int) -> None:
    result = compare(Case(make, 150, 64, seed=seed))

    assert result["ratio"] < float("inf")
    assert result["share"] <= 0.5


@pytest.mark.parametrize("first", [True, False])
def test_model_without_a_bound_is_not_raised(first: bool) -> None:
    """After an outage, the models are new, and no rejection has set their bounds."""
    for model in (Concurrency(), Window(5.0)):
        assert model.raise_bound(first) is False
        assert model.bound == float("inf")


EVENTS = st.one_of(
    st.tuples(st.just("wait"), st.sampled_from([0.01, 0.2, 1.0, 5.0, 30.0, 200.0])),
    st.tuples(st.just("send"), st.sampled_from([0.0, 0.02, 2.0])),
    st.tuples(st.sampled_from(["succeed", "cancel"]), st.integers(0, 9)),
    st.tuples(st.sampled_from(["reject", "overload"]), st.integers(0, 9), st.sampled_from([None, 0.0, 0.5, 7.0, 90.0])),
)  # fmt: skip


@given(st.lists(EVENTS, max_size=60))
@settings(max_examples=300)
def test_any_sequence_of_responses_leaves_a_next_request(events: list[tuple[Any, ...]]) -> None:
    limiter, now, open_tickets, paused_until = Limiter(64), 0.0, [], 0.0

    def check() -> float:
        delay = limiter.delay(now)
        assert delay >= 0
        assert delay > 0 or now >= paused_until
        assert limiter.in_flight == len(open_tickets)
        assert str(limiter) is not None
        return delay

    for kind, value, *more in events:
        if kind == "wait":
            now += value
        elif kind == "send":
            while (delay := check()) and delay <= 5:
                now += delay
            if delay == 0:
                open_tickets.append(limiter.acquire(now))
                open_tickets[-1].sent_at = now + value
        elif open_tickets:
            ticket = open_tickets.pop(value % len(open_tickets))
            if kind == "succeed":
                limiter.release(ticket)
            elif kind == "cancel":
                ticket.sent_at = None
                limiter.release(ticket)
            else:
                now = max(now, ticket.sent_at or now)
                (limiter.rejected if kind == "reject" else limiter.overloaded)(ticket, now, *more)
                paused_until = max(paused_until, now + (more[0] or 0.0))
        check()

    while open_tickets:
        limiter.release(open_tickets.pop())
    end = 3 * now + 400  # a rate is measured over the time that has passed
    while delay := check():
        now += delay
        assert now < end, "nothing is in flight, and nothing may be sent"
