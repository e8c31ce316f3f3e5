"""Defaults, options and figures in the documentation and in the sample Dags are those of the code."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_jojokey.batch.plan import OPTIONS
from airflow_provider_jojokey.cost import PUBLISHED
from airflow_provider_jojokey.hooks.jojokey import ConnectionSettings
from airflow_provider_jojokey.img2 import estimate
from airflow_provider_jojokey.img2.request import ImageRequest
from airflow_provider_jojokey.operators.jojokey import GenerateImageBatchOperator, GenerateImageOperator
from airflow_provider_jojokey.settings import Settings
from tests.docs.blocks import ROOT
from tests.support.airflow import dags_of

DOCS = ROOT / "docs"


def rows(page: Path) -> Iterator[list[str]]:
    """Yield the cells of each row of the page's tables."""
    for line in re.findall(r"^\|(.+)\|$", page.read_text(encoding="utf-8"), re.M):
        yield [cell.strip() for cell in line.split("|")]


def price(size: str, quality: str, images: int = 1) -> float:
    """Return the list price of images with a short prompt."""
    cost = PUBLISHED.cost_of(estimate.expected_usage(ImageRequest("a", size=size, quality=quality, n=images)))
    assert cost is not None
    return float(cost.amount)


@pytest.mark.parametrize(
    ("page", "operator", "tested"),
    [
        ("README.md", GenerateImageOperator, 11),
        ("README.zh.md", GenerateImageOperator, 11),
        ("docs/campaigns.md", GenerateImageBatchOperator, 7),
    ],
)
def test_arguments_have_the_documented_defaults(page: str, operator: Any, tested: int) -> None:
    parameters = inspect.signature(operator).parameters
    found = 0
    for cells in rows(ROOT / page):
        names = re.findall(r"`(\w+)`", cells[0])
        if len(cells) < 3 or not names or names[0] not in parameters:
            continue
        default = cells[1].strip("`").replace("无", "none")
        assert set(names) <= set(parameters)
        for name in names if re.fullmatch(r"[\w.]+", default) else []:
            assert str(parameters[name].default).lower() == default.lower(), name
            found += 1
    assert found == tested


def test_batch_has_the_documented_options_of_items() -> None:
    text = (DOCS / "campaigns.md").read_text(encoding="utf-8")
    paragraph = text[text.index("An item has ") : text.index("For an option that is missing")]
    assert set(re.findall(r"`(\w+)`", paragraph)) == set(OPTIONS)


def test_batch_has_the_arguments_of_the_single_operator() -> None:
    single, batch = (
        set(inspect.signature(operator).parameters)
        for operator in (GenerateImageOperator, GenerateImageBatchOperator)
    )
    excepted = {name for cells in rows(DOCS / "campaigns.md") if cells[0].startswith("all others except")
                for name in re.findall(r"`(\w+)`", cells[0])}  # fmt: skip
    assert single - batch == {"prompt", "s3_key", *excepted}


def test_settings_have_the_documented_defaults() -> None:
    listed = {cells[0].strip("`"): cells[1] for cells in rows(DOCS / "reference" / "settings.md")}
    numbers = {
        name: int(match[1].replace(",", ""))
        for name, default in listed.items()
        if (match := re.fullmatch(r"([\d,]+) (?:s|bytes)", default))
    }
    assert len(numbers) == 4
    assert numbers == {name: getattr(Settings(), name) for name in numbers}


@pytest.mark.parametrize("page", ["how-to/connection.md", "zh/connection.md"])
def test_connection_has_the_documented_defaults(page: str) -> None:
    settings = ConnectionSettings(token="sk-1", host="")
    found = 0
    for cells in rows(DOCS / page):
        names = re.findall(r"`(\w+)`", cells[1]) if len(cells) == 3 else []
        stated = re.search(r"(?:default|即) (\d+)(?: and | 和 )(\d+)", cells[-1])
        if stated:
            assert [getattr(settings, name) for name in names] == [int(stated[1]), int(stated[2])]
            found += len(names)
    assert found == 4


@pytest.mark.parametrize("page", ["how-to/costs.md", "zh/costs.md"])
def test_images_have_the_documented_list_prices(page: str) -> None:
    found = 0
    for cells in rows(DOCS / page):
        if re.fullmatch(r"\d+x\d+", cells[0]):
            for quality, stated in zip(("low", "medium", "high"), cells[1:], strict=True):
                amount = stated.removeprefix("USD ")
                decimals = len(amount.partition(".")[2])
                assert f"{price(cells[0], quality):.{decimals}f}" == amount, (cells[0], quality)
                found += 1
    assert found == 12


def test_budgets_use_the_documented_estimates() -> None:
    text = (DOCS / "campaigns.md").read_text(encoding="utf-8")
    (stated,) = re.findall(r"figures: ([\d,]+), ([\d,]+) or ([\d,]+) output tokens", text)
    assert [int(count.replace(",", "")) for count in stated] == [
        estimate.OUTPUT_TOKENS[quality] for quality in ("low", "medium", "high")
    ]
    tokens = estimate.expected_output_tokens
    assert tokens(ImageRequest("a", quality="auto")) == tokens(ImageRequest("a", quality="medium"))
    assert tokens(ImageRequest("a", quality="hd")) == tokens(ImageRequest("a", quality="high"))
    assert tokens(ImageRequest("a", size="auto")) == tokens(ImageRequest("a", size="1024x1024"))
    assert tokens(ImageRequest("a", stream=True, partial_images=1)) == tokens(ImageRequest("a")) + 100
    assert estimate.expected_usage(ImageRequest("a" * 90))["input_tokens"] == 90 / 3 + 10


LOW, ALL = ("low",), ("low", "medium", "high")
RUNS = {
    "poster_approval": (["1024x1536"], 3, ALL),
    "poster_campaign": (["1024x1536"], 1, ALL),
    "poster_daily": (["1024x1536"], 1, ALL),
    "poster_renditions": (["1536x1024"], 1, LOW),
    "poster_sizes": (["1024x1024", "1024x1536", "1536x1024", "864x1536", "1536x512"], 1, LOW),
}
"""The sizes of the images whose cost a trigger form states, their number, and the qualities."""


@pytest.mark.parametrize("path", sorted((ROOT / "dags").glob("*.py")), ids=lambda path: path.stem)
def test_trigger_form_states_the_cost(path: Path) -> None:
    (dag,) = dags_of(path).values()
    if not any("GenerateImage" in task.task_type for task in dag.tasks):
        assert path.stem not in RUNS
        return
    sizes, images, qualities = RUNS[path.stem]
    (text,) = (
        param.description
        for param in (dag.params.get_param(name) for name in dag.params)
        if "list prices" in (param.description or "")
    )
    stated = re.findall(r"\b0\.\d+", text)
    assert stated == [f"{sum(price(size, quality, images) for size in sizes):.2f}" for quality in qualities]
