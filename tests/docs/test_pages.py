"""The README, CONTRIBUTING and the documentation: links, structure, and agreement with the package."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import yaml

from airflow_provider_jojokey import exceptions
from airflow_provider_jojokey.batch.tally import Tally
from airflow_provider_jojokey.cost import PUBLISHED, Costs
from airflow_provider_jojokey.exceptions import JojoKeyError
from tests.docs.blocks import PAGES, ROOT
from tests.docs.error_samples import SAMPLES

PACKAGE = ROOT / "airflow_provider_jojokey"
ALL_PAGES = [*PAGES, *(ROOT / name for name in ("CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md"))]
MAX_README_WORDS = 1200
LISTED_BY_MODULE = ("payments", "img2", "store", "batch", "operators")
"""Packages of which CONTRIBUTING must list each module. Other packages may be listed as a whole."""


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(page: Path) -> str:
    """Return a page without its fenced blocks."""
    return re.sub(r"^( *)```.*?^\1```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def headings(page: Path) -> list[tuple[int, str]]:
    """Return level and text of a page's headings, in order."""
    return [(len(found[1]), found[2]) for found in re.finditer(r"^(#+) (.+)$", prose(page), re.M)]


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and this site make them."""
    return {re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-") for _, text in headings(page)}


def links(page: Path) -> list[str]:
    """Return the relative targets of a page's links and images."""
    targets = re.findall(r"\]\((\S+?)\)", prose(page))
    return [target for target in targets if not re.match("[a-z]+:", target)]


@pytest.mark.parametrize("page", ALL_PAGES, ids=name_of)
def test_links_and_anchors_exist(page: Path) -> None:
    for target in links(page):
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        assert found.is_relative_to(ROOT), target
        if anchor and found.suffix == ".md":
            assert unquote(anchor) in anchors(found), target


def test_link_check_sees_links() -> None:
    assert "docs/paying-once.md" in links(ROOT / "README.md")
    assert "guarantees-by-kind-of-store" in anchors(ROOT / "docs" / "paying-once.md")


def pages_of(navigation: Any) -> set[str]:
    """Return the pages in a part of the site's navigation."""
    if isinstance(navigation, str):
        return {navigation}
    children = navigation.values() if isinstance(navigation, dict) else navigation
    return set().union(*map(pages_of, children))


def test_navigation_lists_every_page() -> None:
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    (navigation,) = re.findall(r"^nav:\n.*", settings, re.M | re.S)
    docs = ROOT / "docs"
    assert pages_of(yaml.safe_load(navigation)["nav"]) == {
        path.relative_to(docs).as_posix() for path in docs.rglob("*.md")
    }


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= MAX_README_WORDS


def test_readme_shows_product_before_installation() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    order = ["```python", "gallery.png", "## Install", "--constraint", "| Airflow | Python |", "## Try it"]
    positions = [text.find(part) for part in order]
    assert -1 not in positions
    assert positions == sorted(positions)


def test_chinese_readme_mirrors_every_section() -> None:
    def outline(page: Path) -> list[list[str]]:
        """Return the level, tables' rows, images and code of each section, in order."""
        sections = re.split(
            r"^(?=#+ )",
            re.sub(r"^( *)```.*?^\1```$", "⌘", page.read_text("utf-8"), flags=re.M | re.S),
            flags=re.M,
        )
        return [re.findall(r"^#+(?= )|^⌘$|^\||^!\[", section, re.M) for section in sections]

    assert outline(ROOT / "README.zh.md") == outline(ROOT / "README.md")


def classes() -> list[type[JojoKeyError]]:
    found = [value for value in vars(exceptions).values() if isinstance(value, type)]
    return [error for error in found if issubclass(error, JojoKeyError)]


@pytest.mark.parametrize("language", ["", "zh"])
@pytest.mark.parametrize("error", classes(), ids=lambda error: error.__name__)
def test_error_class_is_explained(error: type[JojoKeyError], language: str) -> None:
    page = (ROOT / "docs" / language / "errors.md").read_text(encoding="utf-8")
    section = page.partition(f"\n### {error.__name__}\n")[2].partition("\n#")[0]
    sample = section.partition("```text\n")[2].partition("\n```")[0]
    (generated,) = (made for made in SAMPLES if type(made) is error)
    assert sample == f"{error.__name__}: {generated}"
    parts = ("原因", "解决", "客服需要") if language else ("Cause", "Fix", "Support")
    assert re.findall(r"^- \*\*(.+?)[:\uff1a]\*\*", section, re.M) == list(parts)


def test_error_pages_explain_no_unknown_class() -> None:
    known = {error.__name__ for error in classes()}
    for page in (ROOT / "docs" / "errors.md", ROOT / "docs" / "zh" / "errors.md"):
        named = {text for level, text in headings(page) if level == 3}
        assert named == known


def test_contributing_names_existing_modules_and_tests() -> None:
    rows = re.findall(r"^\|[^|]+\|([^|]+)\|([^|]+)\|$", prose(ROOT / "CONTRIBUTING.md"), re.M)
    modules = {path for row in rows for path in re.findall(r"`([\w/]+(?:\.py|/))`", row[0])}
    tests = {path for row in rows for path in re.findall(r"`([\w/]+(?:\.py|/))`", row[1])}
    assert [path for path in modules if not (PACKAGE / path).exists()] == []
    assert [path for path in tests if not (ROOT / "tests" / path).exists()] == []


def test_contributing_lists_every_module() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    expected = {path.name for path in PACKAGE.glob("*.py")} - {"__init__.py"}
    for package in (path.parent for path in PACKAGE.glob("*/__init__.py")):
        modules = [path for path in package.glob("*.py") if path.name != "__init__.py"]
        named = {path.relative_to(PACKAGE).as_posix() for path in modules}
        if package.name not in LISTED_BY_MODULE and f"`{package.name}/`" in text:
            continue
        expected |= named
    assert sorted(path for path in expected if f"`{path}`" not in text) == []


def test_figures_match_benchmarks() -> None:
    figure = "[\\d.]+ \u00d7, \\+[\\d.]+ MiB"  # CPU as a multiple, growth of memory
    benchmarks = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8").replace("**", "")
    comparison = (ROOT / "docs" / "comparison.md").read_text(encoding="utf-8")
    shown = re.findall(figure, comparison)
    assert shown
    assert set(shown) <= set(re.findall(figure, benchmarks))

    (row,) = re.findall(r"^\| 1 \S 6 MB \|.*$", comparison.partition("Over HTTPS")[0], re.M)
    others, _, ours = re.findall(r"([\d.]+) \S,", row)
    for name in ("README.md", "README.zh.md"):
        (sentence,) = re.findall(r"^.*(?:bare sockets|\u88f8).*\n?.*", (ROOT / name).read_text("utf-8"), re.M)
        assert f" {ours} " in sentence
        assert f" {float(others):.0f} " in sentence


def test_page_on_campaigns_shows_the_line_of_the_log() -> None:
    usage = {"input_tokens": 5_280, "output_tokens": 103_488, "total_tokens": 108_768}
    cost = PUBLISHED.cost_of(usage)
    assert cost is not None
    tally = Tally(1000, made=528, usage=usage, cost=Costs((cost,)))

    line = tally.progress_line(30.003, 64, "")

    assert f"\n{line}\n" in (ROOT / "docs" / "campaigns.md").read_text(encoding="utf-8")
