"""Accessibility of every page, checked with axe-core: light and dark, English and Chinese."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.support.standalone_airflow import Airflow, Runs

CARD = ".jojokey-card"
OURS = ("jojokey-root", "jojokey-lightbox", "/jojokey/")
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}
# The document's outline is Airflow's: its pages have neither a main landmark nor a first-level heading.
RULES["rules"] = {
    name: {"enabled": False} for name in ("region", "landmark-one-main", "page-has-heading-one")
}  # type: ignore[assignment]


FINISH_TRANSITIONS = """Promise.all(
    document.getAnimations()
        .filter(animation => animation.effect.getComputedTiming().endTime < Infinity)
        .map(animation => animation.finished.catch(() => null))
)"""
"""Colors that fade in have too little contrast. A spinner never ends."""


def violations(page: Page, *selectors: str) -> list[str]:
    """Return what axe-core finds in these elements, a line for each node."""
    expect(page.locator(selectors[0]).first).to_be_visible()
    page.evaluate(FINISH_TRANSITIONS)
    found = Axe().run(page, context={"include": [[entry] for entry in selectors]}, options=RULES)
    return [
        f"{rule['id']}: {node['target']} {node['html'][:120]} {[entry['message'] for entry in node['any'] + node['all'] + node['none']]}"
        for rule in found.response["violations"]
        for node in rule["nodes"]
    ]


def gallery(page: Page, airflow: Airflow, runs: Runs) -> str:
    page.goto(airflow.gallery)
    expect(page.locator(CARD).first).to_be_visible()
    expect(page.locator(".jojokey-dags li").first).to_be_visible()  # the totals and the charts are there
    return ".jojokey-root"


def failed_tab(page: Page, airflow: Airflow, runs: Runs) -> str:
    page.goto(airflow.tab("single", runs.refused, "image"))
    expect(page.locator(".jojokey-table")).to_be_visible()
    return ".jojokey-root"


def batch_tab(page: Page, airflow: Airflow, runs: Runs) -> str:
    page.goto(airflow.tab("album", runs.album, "batch"))
    expect(page.locator(CARD)).to_have_count(14)
    return ".jojokey-root"


def pair_tab(page: Page, airflow: Airflow, runs: Runs) -> str:
    page.goto(airflow.tab("album", runs.album, "pair"))
    expect(page.locator(".jojokey-figure")).to_have_count(2)
    return ".jojokey-root"


def dialog(page: Page, airflow: Airflow, runs: Runs) -> str:
    pair_tab(page, airflow, runs)
    page.locator(".jojokey-figure-button").first.click()
    return ".jojokey-lightbox"


@pytest.mark.parametrize("visit", [gallery, failed_tab, batch_tab, pair_tab, dialog])
def test_page_has_no_accessibility_violations(
    themed: Page, airflow: Airflow, runs: Runs, visit: Callable[[Page, Airflow, Runs], str]
) -> None:
    assert violations(themed, visit(themed, airflow, runs)) == []


def test_approval_page_has_no_accessibility_violations_of_ours(themed: Page, airflow: Airflow) -> None:
    run_id = airflow.trigger("poster_approval", prompt="A lantern festival")
    themed.goto(airflow.question(run_id, "round_1.review"))
    expect(themed.locator("img[src*='/jojokey/']").first).to_be_visible()
    ours = [entry for entry in violations(themed, "body") if any(mark in entry for mark in OURS)]
    # Airflow draws the navigation's icon without an alternative text.
    assert [entry for entry in ours if "static/icon" not in entry] == []
