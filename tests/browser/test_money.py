"""Money in the browser and in Python: the same values have the same text and the same sums."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st
from playwright.sync_api import Page

from airflow_provider_jojokey.cost import MAX_AMOUNT, NANOS, Cost, Costs, sum_of

RENDER = """async (all) => {
    const { cost, sumOf } = await import("./money.js");
    return [all.map((one) => cost(one)), cost(sumOf(all)), sumOf(all)];
}"""
IN_A_SENTENCE = {"Cost unknown": "unknown", "No cost": "nothing"}
"""Texts that stand alone in the browser, and within a sentence in Python."""

TOKENS = """async (all) => {
    const { tokens, tokensOf } = await import("./format.js");
    return [all.map((one) => tokens(...one)), [[0, "no"], [0, "yes"], [0, "unknown"], [5, "yes"]].map((one) => tokensOf(...one))];
}"""

# Where rounding and the number of decimals change.
EDGES = [0, 1, 49_999, 50_000, 99_999, 100_000, 149_999, 150_000, 9_949_999, 9_950_000, 10_000_000]
EDGES += [
    NANOS - 50_001,
    NANOS - 50_000,
    NANOS - 1,
    NANOS,
    1_005_000_000,
    1_004_999_999,
    MAX_AMOUNT * NANOS - 1,
]
nanos = st.sampled_from(EDGES) | st.integers(0, 2 * NANOS) | st.integers(0, MAX_AMOUNT * NANOS)
costs = st.lists(st.none() | st.builds(Cost, nanos, st.sampled_from(("USD", "CNY", "EUR")), st.booleans()))


@example([sum_of([Cost(edge, "USD", approximate)]) for edge in EDGES for approximate in (True, False)])
@example(
    [
        Costs(),
        Costs(unknown=1),
        Costs(unknown=1_234),
        Costs((Cost(5, "USD"),), 1),
        Costs((Cost(5, "USD"),), 2),
    ]
)
@example([sum_of([Cost(7 * NANOS, "USD"), Cost(5_900_000, "CNY", approximate=False), None])])
@given(st.lists(costs.map(sum_of), max_size=20))
def test_browser_and_python_show_the_same_money(scripts: Page, listed: list[Costs]) -> None:
    texts, sum_text, sums = scripts.evaluate(RENDER, [value.to_json() for value in listed])
    shown = [IN_A_SENTENCE.get(text, text.replace("\N{NO-BREAK SPACE}", " ")) for text in [*texts, sum_text]]
    total = sum(listed, Costs())
    assert shown == [str(value) for value in [*listed, total]]
    assert [(each["currency"], each["approximate"]) for each in sums["amounts"]] == [
        (cost.currency, cost.approximate) for cost in total.amounts
    ]


def test_unknown_tokens_are_not_shown_as_0(scripts: Page) -> None:
    sums, results = scripts.evaluate(TOKENS, [[0, 0], [0, 2], [5, 0], [5, 1], [1_234, 2]])
    assert sums == [
        "0 tokens",
        "Tokens unknown",
        "5 tokens",
        "5 tokens + 1 result of unknown tokens",
        "1,234 tokens + 2 results of unknown tokens",
    ]
    assert results == ["0 tokens", "Tokens unknown", "Tokens unknown", "5 tokens"]
