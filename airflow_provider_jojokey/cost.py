"""Costs of requests: prices, amounts of money and their sums.

Sums are exact: amounts are whole billionths (nanos) of a currency's unit, never floats. Costs in different
currencies are never added up. A cost computed from list prices is *approximate*; a charge in the gateway's log is
exact. Without usage and without a charge, the cost is unknown, which is not the same as 0.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any

from msgspec import Struct

NANOS = 10**9
"""Nanos in one unit of a currency."""
MAX_AMOUNT = 10**9
"""Maximum amount, in units of its currency. Larger values are rejected as invalid."""
ABOUT = "≈"

_CURRENCY = re.compile(r"[A-Z]{3}")
_NUMBER = re.compile(r"[0-9]{1,12}(\.[0-9]{1,100})?")
_SMALL = re.compile(r"[0-9]{1,20}(\.[0-9]{1,20})?[eE]-[0-9]{1,3}")
_PRICES = ("text_input", "image_input", "image_output")
_WANTED = "a JSON object with currency (such as USD), text_input, image_input and image_output"


class Cost(Struct, frozen=True):
    """An amount of money.

    :param nanos: billionths of the currency's unit
    :param currency: three letters (ISO 4217)
    :param approximate: whether it was computed from prices instead of taken from a charge
    """

    nanos: int
    currency: str
    approximate: bool = True

    @property
    def amount(self) -> Decimal:
        """The amount in units of the currency, exactly."""
        return Decimal(_written(self.nanos))

    def __str__(self) -> str:
        return f"{ABOUT} {self._exactly}" if self.approximate else self._exactly

    @property
    def _exactly(self) -> str:
        """Return the currency and the amount, rounded for display."""
        return f"{self.currency} {_rounded(self.nanos)}"

    def to_json(self) -> dict[str, Any]:
        """Return the cost as JSON values.

        The amount is text, because JSON parsers convert numbers to floats.
        """
        return {"amount": _written(self.nanos), "currency": self.currency, "approximate": self.approximate}

    @classmethod
    def from_json(cls, values: Any) -> Cost:
        """Return the cost that :meth:`to_json` describes.

        :raises ValueError: if it is not a cost
        """
        if not isinstance(values, Mapping) or not isinstance(values.get("amount"), str):
            raise ValueError("a cost has no amount")
        if not isinstance(values.get("approximate"), bool):
            raise ValueError("a cost does not say whether it is approximate")
        return cls(
            to_nanos("amount", values["amount"]),
            _currency(values.get("currency")),
            values["approximate"],
        )


class Costs(Struct, frozen=True):
    """The total cost of several requests.

    :param amounts: one cost for each currency, sorted by currency
    :param unknown: number of requests that were, or may have been, billed and whose cost is unknown
    """

    amounts: tuple[Cost, ...] = ()
    unknown: int = 0

    @property
    def charged(self) -> bool:
        """Whether money was charged: whether any known amount is not 0."""
        return any(cost.nanos for cost in self.amounts)

    def __add__(self, other: Costs) -> Costs:
        total = CostSum()
        total.add_all(self)
        total.add_all(other)
        return total.total

    def without(self, part: Costs) -> Costs:
        """Return the costs without ``part``, which was added before."""
        negative = tuple(Cost(-cost.nanos, cost.currency, False) for cost in part.amounts)
        return self + Costs(negative, -part.unknown)

    def __str__(self) -> str:
        if not self.amounts:
            return "unknown" if self.unknown else "nothing"
        known = " + ".join(map(str, self.amounts))
        if not self.unknown:
            return known
        return f"{known} + {self.unknown:,} {'request' if self.unknown == 1 else 'requests'} of unknown cost"

    def to_json(self) -> dict[str, Any]:
        """Return the costs as JSON values."""
        return {"amounts": [cost.to_json() for cost in self.amounts], "unknown": self.unknown}

    @classmethod
    def from_json(cls, values: Any) -> Costs:
        """Return the costs that :meth:`to_json` describes.

        :raises ValueError: if they are not costs
        """
        amounts = values.get("amounts") if isinstance(values, Mapping) else None
        if not isinstance(amounts, (list, tuple)):
            raise ValueError("costs have no list of amounts")
        unknown = values.get("unknown", 0)
        if type(unknown) is not int or not 0 <= unknown < 2**53:
            raise ValueError("the number of unknown costs is not a number")
        return Costs(sum_of(map(Cost.from_json, amounts)).amounts, unknown)


class CostSum:
    """Adds up any number of costs. Stores only one sum per currency."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[int, bool]] = {}
        self._unknown = 0

    def add(self, cost: Cost | None) -> None:
        """Add the cost of one request; ``None`` is unknown."""
        if cost is None:
            self._unknown += 1
            return
        nanos, approximate = self._sums.get(cost.currency, (0, False))
        self._sums[cost.currency] = nanos + cost.nanos, approximate or cost.approximate

    def add_all(self, costs: Costs) -> None:
        """Add the total cost of several requests."""
        for cost in costs.amounts:
            self.add(cost)
        self._unknown += costs.unknown

    @property
    def total(self) -> Costs:
        """The sum. It is approximate if any part of it is."""
        return Costs(
            tuple(Cost(nanos, name, about) for name, (nanos, about) in sorted(self._sums.items())),
            self._unknown,
        )


def sum_of(costs: Iterable[Cost | None]) -> Costs:
    """Return the sum of the costs of several requests; ``None`` is unknown."""
    total = CostSum()
    for cost in costs:
        total.add(cost)
    return total.total


class Prices(Struct, frozen=True):
    """Prices of a million tokens, in nanos of the currency's unit.

    :param currency: three letters (ISO 4217)
    :param text_input: tokens of the prompt
    :param image_input: tokens of images in the request
    :param image_output: tokens of generated images
    """

    currency: str
    text_input: int
    image_input: int
    image_output: int

    def cost_of(self, usage: Mapping[str, Any] | None) -> Cost | None:
        """Return the approximate cost of ``usage``; ``None`` if tokens are missing.

        :param usage: as normalized by :mod:`img2.usage`
        """
        tokens, details = _tokens(usage, "input_tokens"), (usage or {}).get("input_tokens_details")
        output = _tokens(usage, "output_tokens")
        if tokens is None or output is None or not tokens + output:
            return None
        images = _tokens(details, "image_tokens") or 0
        text = max(0, tokens - images)
        nanos = text * self.text_input + images * self.image_input + output * self.image_output
        return Cost((nanos + 500_000) // 1_000_000, self.currency)

    def to_json(self) -> dict[str, str]:
        """Return the prices as JSON values for :func:`parse_prices`."""
        return {"currency": self.currency, **{name: _written(getattr(self, name)) for name in _PRICES}}


PUBLISHED = Prices("USD", text_input=5 * NANOS, image_input=8 * NANOS, image_output=30 * NANOS)
"""The published list prices of gpt-image-2."""


class QuotaUnit(Struct, frozen=True):
    """The value of quota, the unit in which the gateway charges, in a currency.

    :param per_unit: quota that equals one unit of the currency
    :param currency: three letters (ISO 4217)
    """

    per_unit: Fraction
    currency: str

    def cost_of(self, quota: Any) -> Cost | None:
        """Convert ``quota`` to an exact cost; ``None`` if it is not a valid amount."""
        if type(quota) is not int or not 0 <= quota / self.per_unit <= MAX_AMOUNT:
            return None
        return Cost(round(quota * NANOS / self.per_unit), self.currency, approximate=False)

    @classmethod
    def from_status(cls, status: Mapping[str, Any]) -> QuotaUnit | None:
        """Return the unit in a response to ``GET /api/status``; ``None`` if it has none.

        ``quota_per_unit`` is for one US dollar. A gateway that displays yuan also states its exchange rate.
        """
        per_dollar, rate = (_positive(status.get(name)) for name in ("quota_per_unit", "usd_exchange_rate"))
        if per_dollar is None:
            return None
        if status.get("quota_display_type") == "CNY" and rate is not None:
            return cls(per_dollar / rate, "CNY")
        return cls(per_dollar, "USD")


def parse_prices(value: Any, name: str) -> Prices | None:
    """Return the prices in a setting; ``None`` if it is empty.

    :param value: a dict or JSON text
    :param name: the setting's name, for the error message
    :raises ValueError: if the prices are invalid
    """
    if isinstance(value, str):
        if not value.strip():
            return None
        try:
            value = json.loads(value, parse_float=str, parse_int=str)
        except (ValueError, RecursionError):
            raise ValueError(f"{name} is not JSON: write {_WANTED}") from None
    if not value:
        return None
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} must be {_WANTED}, not {type(value).__name__}")
    if unknown := [str(key)[:40] for key in value if key not in ("currency", *_PRICES)]:
        raise ValueError(f"{name} has the unknown key {unknown[0]!r}: write {_WANTED}")
    if missing := [key for key in ("currency", *_PRICES) if key not in value]:
        raise ValueError(f"{name} has no {missing[0]}: write {_WANTED}")
    try:
        currency = _currency(value["currency"])
        return Prices(currency, **{price: to_nanos(price, value[price]) for price in _PRICES})
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def to_nanos(name: str, value: Any) -> int:
    """Return an amount of money in nanos.

    :param name: its name, for the error message
    :param value: a non-negative number, or text that contains one
    :raises ValueError: if the value is anything else
    """
    nanos = -1
    if isinstance(value, str) and _SMALL.fullmatch(text := value.strip()):
        value = Decimal(text)  # a template writes 0.00001 as 1e-05
    if isinstance(value, str):
        if _NUMBER.fullmatch(text := value.strip()):
            whole, _, decimals = text.partition(".")  # a Fraction is much slower
            nanos = int(whole) * NANOS + int(decimals[:9].ljust(9, "0")) + (decimals[9:10] >= "5")
    elif isinstance(value, (int, float, Decimal)) and not isinstance(value, bool):
        # Use the float's shortest decimal form, not its binary value, so that 0.1 is exactly 0.1.
        exact = Decimal(repr(value)) if isinstance(value, float) else Decimal(value)
        if exact.is_finite() and 0 <= exact <= MAX_AMOUNT:
            nanos = 0 if exact.adjusted() < -20 else round(Fraction(exact) * NANOS)
    if not 0 <= nanos <= MAX_AMOUNT * NANOS:
        raise ValueError(
            f"{name} must be an amount of money from 0 to {MAX_AMOUNT:,}, not {str(value)[:40]!r}"
        )
    return nanos


def _currency(value: Any) -> str:
    if not isinstance(value, str) or not _CURRENCY.fullmatch(value):
        raise ValueError(f"currency must be three capital letters such as USD, not {str(value)[:40]!r}")
    return value


def _positive(value: Any) -> Fraction | None:
    try:
        nanos = to_nanos("", value)
    except ValueError:
        return None
    return Fraction(nanos, NANOS) if nanos else None


def _tokens(usage: Any, name: str) -> int | None:
    value = usage.get(name) if isinstance(usage, Mapping) else None
    return value if type(value) is int and value >= 0 else None


def _written(nanos: int) -> str:
    """Return an amount exactly, without trailing zeros."""
    whole, rest = divmod(abs(nanos), NANOS)
    decimals = f".{rest:09d}".rstrip("0.") if rest else ""
    return f"{'-' if nanos < 0 else ''}{whole}{decimals}"


def _rounded(nanos: int) -> str:
    """Return an amount rounded for display.

    Amounts below one unit have four decimals, because an image can cost less than a cent.
    """
    if nanos >= NANOS or nanos == 0:
        cents = (nanos + 5_000_000) // 10_000_000
        return f"{cents // 100:,}.{cents % 100:02d}"
    parts = (nanos + 50_000) // 100_000
    if not parts:
        return "<0.0001"
    text = f"{parts // 10_000}.{parts % 10_000:04d}"
    return text[:-2] if text.endswith("00") else text
