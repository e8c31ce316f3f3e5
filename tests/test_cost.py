"""Prices, costs and sums of costs."""

from __future__ import annotations

import json
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_jojokey.cost import (
    NANOS,
    PUBLISHED,
    Cost,
    Costs,
    Prices,
    QuotaUnit,
    parse_prices,
    sum_of,
    to_nanos,
)

LOW = {"input_tokens": 10, "output_tokens": 196, "total_tokens": 206}
PRICES = {"currency": "CNY", "text_input": 36, "image_input": "57.6", "image_output": 216.5}

currencies = st.sampled_from(["USD", "CNY", "EUR"])
costs = st.builds(Cost, st.integers(0, 10**15), currencies, st.booleans())
optional_costs = st.lists(st.none() | costs, max_size=20)


def test_published_prices_are_those_of_the_list() -> None:
    million = {"input_tokens": 2_000_000, "output_tokens": 1_000_000, "total_tokens": 3_000_000}
    cost = PUBLISHED.cost_of(
        {**million, "input_tokens_details": {"text_tokens": 1_000_000, "image_tokens": 1_000_000}}
    )
    assert cost is not None
    assert (cost.amount, cost.currency, cost.approximate) == (Decimal(5 + 8 + 30), "USD", True)


def test_low_quality_image_costs_less_than_a_cent() -> None:
    cost = PUBLISHED.cost_of(LOW)
    assert cost is not None
    assert cost.amount == Decimal("0.00593")
    assert str(cost) == "≈ USD 0.0059"


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {},
        {"total_tokens": 206},
        {"input_tokens": 10, "total_tokens": 206},
        {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0},
        {"input_tokens": "10", "output_tokens": 196},
        {"input_tokens": True, "output_tokens": 196},
        {"input_tokens": -1, "output_tokens": 196},
    ],
)
def test_cost_without_usage_is_unknown(usage: Any) -> None:
    assert PUBLISHED.cost_of(usage) is None


def test_prices_are_read_from_json_and_from_a_dict() -> None:
    expected = Prices("CNY", 36 * NANOS, 57_600_000_000, 216_500_000_000)
    assert parse_prices(json.dumps(PRICES), "here") == parse_prices(PRICES, "here") == expected


@pytest.mark.parametrize("empty", ["", "  ", None, {}])
def test_empty_prices_are_none(empty: Any) -> None:
    assert parse_prices(empty, "here") is None


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("{", "here is not JSON"),
        ("[1]", "must be a JSON object"),
        ({**PRICES, "text_output": 1}, "unknown key 'text_output'"),
        ({name: price for name, price in PRICES.items() if name != "image_output"}, "has no image_output"),
        ({**PRICES, "currency": "usd"}, "currency must be three capital letters"),
        ({**PRICES, "currency": None}, "currency must be"),
        ({**PRICES, "text_input": -1}, "here: text_input must be an amount of money"),
        ({**PRICES, "text_input": True}, "text_input must be"),
        ({**PRICES, "text_input": float("nan")}, "text_input must be"),
        ({**PRICES, "text_input": float("inf")}, "text_input must be"),
        ({**PRICES, "text_input": "1e3"}, "text_input must be"),
        ({**PRICES, "text_input": "1/3"}, "text_input must be"),
        ({**PRICES, "text_input": 10**12}, "text_input must be"),
        ({**PRICES, "text_input": "٣"}, "text_input must be"),
        ('{"currency": "USD", "text_input": NaN, "image_input": 1, "image_output": 1}', "text_input must be"),
    ],
)
def test_unusable_prices_are_named(value: Any, problem: str) -> None:
    with pytest.raises(ValueError, match="here") as caught:
        parse_prices(value, "here")
    assert problem in str(caught.value)


@given(st.text() | st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists) | st.dictionaries(
    st.sampled_from(["currency", "text_input", "image_input", "image_output", "x"]),
    st.text() | st.floats() | st.integers() | st.none() | st.sampled_from(["USD", "1"]),
))  # fmt: skip
def test_prices_are_read_or_rejected_with_a_message(value: Any) -> None:
    for written in (value, json.dumps(value)):
        try:
            prices = parse_prices(written, "here")
        except ValueError:
            continue
        assert prices is None or parse_prices(prices.to_json(), "here") == prices


@given(st.decimals(0, 10**9, places=9))
def test_amounts_of_nine_decimals_are_exact(amount: Decimal) -> None:
    nanos = to_nanos("amount", format(amount, "f"))
    cost = Cost(nanos, "USD")
    assert cost.amount == amount
    assert Cost.from_json(json.loads(json.dumps(cost.to_json()))) == cost


@pytest.mark.parametrize(
    ("value", "nanos"),
    [
        (0.1, 100_000_000),
        ("2.50", 2_500_000_000),
        (3, 3 * NANOS),
        (1e-7, 100),
        (1e-300, 0),
        (Decimal("0.25"), 250_000_000),
    ],
)
def test_amounts_are_read_as_written(value: Any, nanos: int) -> None:
    assert to_nanos("max_cost", value) == nanos
    assert to_nanos("max_cost", f" {value}\n") == nanos  # as a template writes it


@given(st.floats(0, 10**6), st.integers(0, 10**8), st.integers(0, 10**8))
def test_cost_follows_from_prices_and_tokens(price: float, tokens: int, output: int) -> None:
    prices = parse_prices(
        {"currency": "USD", "text_input": price, "image_input": 0, "image_output": price}, "here"
    )
    assert prices is not None
    cost = prices.cost_of({"input_tokens": tokens, "output_tokens": output, "total_tokens": tokens + output})
    if tokens + output == 0:
        assert cost is None
        return
    assert cost is not None
    exact = Fraction(prices.image_output, NANOS) * (tokens + output) / 10**6
    assert abs(Fraction(cost.amount) - exact) <= Fraction(1, 2 * NANOS)


@given(optional_costs)
def test_sum_is_exact_and_keeps_currencies_apart(listed: list[Cost | None]) -> None:
    total = sum_of(listed)
    assert total.unknown == listed.count(None)
    known = [cost for cost in listed if cost is not None]
    assert [cost.currency for cost in total.amounts] == sorted({cost.currency for cost in known})
    for cost in total.amounts:
        parts = [part for part in known if part.currency == cost.currency]
        assert cost.nanos == sum(part.nanos for part in parts)
        assert cost.approximate == any(part.approximate for part in parts)


@given(optional_costs, optional_costs)
def test_sums_add_up_in_any_grouping(first: list[Cost | None], second: list[Cost | None]) -> None:
    together = sum_of(first) + sum_of(second)
    assert together == sum_of([*first, *second]) == sum_of(second) + sum_of(first)
    assert Costs.from_json(json.loads(json.dumps(together.to_json()))) == together
    rest = together.without(sum_of(first))
    for cost in sum_of(second).amounts:
        assert cost.nanos == next(part.nanos for part in rest.amounts if part.currency == cost.currency)
    assert rest.unknown == second.count(None)


@pytest.mark.parametrize(
    ("costs", "text"),
    [
        ([], "nothing"),
        ([None], "unknown"),
        ([Cost(NANOS * 1234, "USD", False)], "USD 1,234.00"),
        ([Cost(5_930_000, "USD"), Cost(0, "USD", False)], "≈ USD 0.0059"),
        ([Cost(210_000_000, "USD", False)], "USD 0.21"),
        ([Cost(1, "USD", False)], "USD <0.0001"),
        ([Cost(999_960_000, "USD", False)], "USD 1.00"),
        ([Cost(NANOS, "USD"), Cost(NANOS, "CNY", False)], "CNY 1.00 + ≈ USD 1.00"),
        ([Cost(NANOS, "USD"), None], "≈ USD 1.00 + 1 request of unknown cost"),
        ([Cost(NANOS, "USD"), None, None], "≈ USD 1.00 + 2 requests of unknown cost"),
    ],
)
def test_costs_are_written_for_people(costs: list[Cost | None], text: str) -> None:
    assert str(sum_of(costs)) == text


@pytest.mark.parametrize(
    "value",
    [None, [], {}, {"amounts": {}}, {"amounts": [1]}, {"amounts": [], "unknown": -1}, {"amounts": [], "unknown": "1"},
     {"amounts": [{"amount": 1.0, "currency": "USD", "approximate": True}]},
     {"amounts": [{"amount": "1", "currency": "$", "approximate": True}]},
     {"amounts": [{"amount": "-1", "currency": "USD", "approximate": True}]},
     {"amounts": [{"amount": "1", "currency": "USD"}]}],
)  # fmt: skip
def test_other_values_are_no_costs(value: Any) -> None:
    with pytest.raises(ValueError, match=r"cost|amount|currency|unknown"):
        Costs.from_json(value)


def test_quota_has_the_value_that_the_gateway_states() -> None:
    unit = QuotaUnit.from_status({"quota_per_unit": 500_000, "quota_display_type": "USD"})
    assert unit is not None
    assert unit.cost_of(4_200) == Cost(8_400_000, "USD", approximate=False)
    yuan = {"quota_per_unit": 500_000, "quota_display_type": "CNY", "usd_exchange_rate": 7.3}
    unit = QuotaUnit.from_status(yuan)
    assert unit is not None
    assert unit.cost_of(500_000) == Cost(7_300_000_000, "CNY", approximate=False)
    unit = QuotaUnit.from_status({"quota_per_unit": 500_000, "quota_display_type": "CNY"})
    assert unit is not None
    assert unit.cost_of(500_000) == Cost(NANOS, "USD", approximate=False)


@pytest.mark.parametrize("value", [None, 0, -1, True, "many", float("nan"), float("inf"), [], {}])
def test_quota_without_a_unit_is_worth_an_unknown_amount(value: Any) -> None:
    assert QuotaUnit.from_status({"quota_per_unit": value}) is None
    unit = QuotaUnit.from_status({"quota_per_unit": 500_000})
    assert unit is not None
    if value != 0:
        assert unit.cost_of(value) is None
