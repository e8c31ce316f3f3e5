"""Amounts of tokens, images and money: estimated before a payment, and counted from receipts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from airflow_provider_jojokey.cost import PUBLISHED, Cost, Prices
from airflow_provider_jojokey.img2.estimate import Estimable, expected_usage
from airflow_provider_jojokey.img2.rules import parse_size
from airflow_provider_jojokey.payments.job import ImageJob, Limit

if TYPE_CHECKING:
    from airflow_provider_jojokey.payments.attempt import Attempt
    from airflow_provider_jojokey.payments.receipt import Receipt


class Amount(Struct, frozen=True):
    """Tokens, images and money.

    :param cost: nanos of the currency's unit
    :param currency: the currency of the prices; empty if there is no cost
    """

    tokens: int = 0
    images: int = 0
    cost: int = 0
    currency: str = ""

    def __add__(self, other: Amount) -> Amount:
        currency = self.currency or other.currency
        if other.currency not in ("", currency):
            raise ValueError(f"{self.currency} and {other.currency} can't be added up")
        return Amount(
            self.tokens + other.tokens, self.images + other.images, self.cost + other.cost, currency
        )

    def __sub__(self, other: Amount) -> Amount:
        return self + Amount(-other.tokens, -other.images, -other.cost, other.currency)

    def __mul__(self, count: int) -> Amount:
        return Amount(self.tokens * count, self.images * count, self.cost * count, self.currency)

    def __str__(self) -> str:
        counts = f"{self.tokens:,} tokens and {self.images:,} image{'s' * (self.images != 1)}"
        return f"{counts} ({Cost(self.cost, self.currency)})" if self.currency else counts

    def __le__(self, other: Amount) -> bool:
        return self.tokens <= other.tokens and self.images <= other.images and self.cost <= other.cost

    def fits(self, limit: Limit) -> bool:
        """Return whether the amount is within ``limit``."""
        return (
            (limit.tokens is None or self.tokens <= limit.tokens)
            and (limit.images is None or self.images <= limit.images)
            and (limit.cost is None or self.cost <= limit.cost)
        )


class _Sent(Struct, frozen=True):
    """What an attempt has requested, as far as its receipt shows it."""

    prompt: str
    quality: str
    n: int
    stream: bool
    partial_images: int | None
    pixels: tuple[int, int] | None


def estimate(job: ImageJob, prices: Prices = PUBLISHED) -> Amount:
    """Return the estimated cost of a job, from the published token figures and the prices."""
    return _estimate(job.request, prices)


def spent_on(receipt: Receipt, job: ImageJob, prices: Prices = PUBLISHED) -> Amount:
    """Return what a task has spent on a job in its Dag run. Attempts of unknown cost count as estimated."""
    spent = Amount()
    for attempt in receipt.attempts_of(job.owner):
        if attempt.may_cost:
            about = _estimate(_request_of(attempt, job), prices)
            tokens = (attempt.usage or {}).get("total_tokens")
            known = tokens if isinstance(tokens, int) and tokens else about.tokens
            cost = attempt.cost
            if cost is None or cost.currency != prices.currency:  # currencies are never mixed
                cost = prices.cost_of(attempt.usage)
            nanos = about.cost if cost is None else cost.nanos
            spent += Amount(known, max(len(attempt.images), about.images), nanos, prices.currency)
    return spent


def _request_of(attempt: Attempt, job: ImageJob) -> _Sent:
    """Return what an attempt has requested: in an earlier try perhaps more, or larger images, than the job does."""
    request = job.request
    return _Sent(
        prompt=request.prompt,
        quality=attempt.quality or request.quality,
        n=attempt.requested or request.n,
        stream=request.stream,
        partial_images=request.partial_images,
        pixels=parse_size(attempt.size) if attempt.size else request.pixels,
    )


def _estimate(request: Estimable, prices: Prices) -> Amount:
    usage = expected_usage(request)
    cost = prices.cost_of(usage)
    return Amount(usage["total_tokens"], request.n, cost.nanos if cost else 0, prices.currency)
