"""The gallery's filters, selection, comparison and costs."""

from __future__ import annotations

import csv
import io
import re
import threading
import zipfile
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from tests.support.standalone_airflow import Airflow, Runs

CARD = ".jojokey-card"
DIALOG = "dialog.jojokey-lightbox"
SETTLE = """new Promise((done) => {
    let [seen, frames] = ["", 0];
    const look = () => {
        const cards = [...document.querySelectorAll(".jojokey-card")];
        const now = JSON.stringify(cards.map((card) => card.getBoundingClientRect()));
        frames = now === seen ? frames + 1 : 0;
        seen = now;
        if (frames < 10) requestAnimationFrame(look);
        else done();
    };
    look();
})"""
"""Waits until the cards stay in their places for ten frames, in which scroll events arrive."""


def add_filter(page: Page, name: str) -> None:
    page.get_by_role("button", name="Filter", exact=True).click()
    page.get_by_role("menuitem", name=name, exact=True).click()


def choose_zone(page: Page, event: str, zone: str) -> None:
    """Select a time zone as Airflow's own menu does."""
    page.evaluate(
        """([event, zone]) => {
            localStorage.setItem("timezone", JSON.stringify(zone));
            dispatchEvent(new StorageEvent(event, { key: "timezone" }));
        }""",
        [event, zone],
    )


def select(page: Page, *prompts: str) -> None:
    for prompt in prompts:
        page.locator(CARD, has_text=prompt).locator(".jojokey-select input").check()


def test_filters_are_chips_that_are_added_and_removed(page: Page, airflow: Airflow, runs: Runs) -> None:
    page.goto(airflow.gallery)
    add_filter(page, "State")
    chip = page.get_by_label("State", exact=True)
    expect(chip).to_be_focused()
    chip.select_option("failed")
    expect(page.locator(f"{CARD} .jojokey-badge").first).to_contain_text("Failed")
    add_filter(page, "Run ID")
    page.get_by_label("Run ID", exact=True).fill(runs.refused[-12:])
    expect(page.locator(CARD)).to_have_count(1)
    assert "state=failed" in page.url

    page.get_by_role("button", name="Remove the filter State").click()
    expect(page.get_by_label("State", exact=True)).to_have_count(0)
    expect(page.get_by_role("button", name="Filter", exact=True)).to_be_focused()
    assert "state=" not in page.url
    page.get_by_role("button", name="Filter", exact=True).click()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Escape")
    expect(page.get_by_role("menu")).to_have_count(0)


def test_typed_date_is_one_step_and_its_chip_stays(page: Page, airflow: Airflow, runs: Runs) -> None:
    page.goto(airflow.gallery)
    add_filter(page, "From")
    asked: list[str] = []
    page.on(
        "request",
        lambda request: asked.append(request.url) if "/api/results?day_from" in request.url else None,
    )
    with page.expect_request("**/api/results?day_from=2026*"):
        page.keyboard.type("01022026", delay=400)
    page.wait_for_url(re.compile(r"day_from=2026-0[12]-0[12]$"))
    assert len(asked) == 1
    page.reload()
    chip = page.get_by_label("From", exact=True)
    chip.focus()
    page.keyboard.press("Backspace")
    page.wait_for_url(re.compile("jojokey-gallery$"))
    expect(chip).to_be_focused()
    page.keyboard.type("03")
    page.wait_for_url(re.compile("day_from=2026-"))
    page.go_back()
    page.wait_for_url(re.compile("day_from=2026-"))
    page.go_back()
    page.wait_for_url(re.compile("jojokey-gallery$"))


def test_space_stays_when_the_user_pauses_between_words(page: Page, airflow: Airflow, runs: Runs) -> None:
    page.goto(f"{airflow.gallery}?dag_id=album")
    search = page.get_by_role("searchbox")
    search.press_sequentially("first ")
    page.wait_for_url("**&q=first")
    expect(page.locator(CARD)).to_have_count(1)
    search.press_sequentially("moon")
    page.wait_for_url(re.compile(r"&q=first(\+|%20)moon"))
    expect(search).to_have_value("first moon")


HELD_TIMERS = """
const { clearTimeout, setTimeout } = globalThis;
globalThis.held = [];
globalThis.setTimeout = (run, wait, ...rest) => {
  if (wait !== 350) return setTimeout(run, wait, ...rest);
  held.push(run);
  return run;
};
globalThis.clearTimeout = (timer) => {
  if (held.includes(timer)) held.splice(held.indexOf(timer), 1);
  else clearTimeout(timer);
};
"""
"""Keep the calls that wait until the user pauses, so that the test decides when that is."""

TYPE = """(box, texts) => {
  const { set } = Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, "value");
  for (const text of texts) {
    set.call(box, text);
    box.dispatchEvent(new Event("input", { bubbles: true }));
    if (text !== texts.at(-1)) held.pop()();
  }
}"""
"""Type texts with a pause after each except the last, before React can render them."""


def test_letters_typed_while_a_search_starts_are_kept(page: Page, airflow: Airflow, runs: Runs) -> None:
    page.add_init_script(HELD_TIMERS)
    page.goto(airflow.gallery)
    search = page.get_by_role("searchbox")
    with page.expect_request(re.compile(r"api/results.*\bq=mo\b")):  # React has rendered the first text
        search.evaluate(TYPE, ["mo", "moo"])
    expect(search).to_have_value("moo")
    search.press("End")
    search.press("n")
    expect(search).to_have_value("moon")
    page.evaluate("held.pop()()")
    page.wait_for_url("**?q=moon")


def test_search_deleted_before_it_is_shown_is_removed(page: Page, airflow: Airflow, runs: Runs) -> None:
    page.add_init_script(HELD_TIMERS)
    page.goto(airflow.gallery)
    search = page.get_by_role("searchbox")
    search.evaluate(TYPE, ["absent", ""])
    page.wait_for_url("**?q=absent")
    page.evaluate("held.pop()()")
    page.wait_for_url(re.compile("jojokey-gallery$"))
    expect(search).to_have_value("")


def test_going_back_discards_text_that_is_not_sent(page: Page, airflow: Airflow, runs: Runs) -> None:
    page.add_init_script(HELD_TIMERS)
    page.goto(airflow.gallery)
    search = page.get_by_role("searchbox")
    search.press_sequentially("moon")
    page.evaluate("held.pop()()")
    page.wait_for_url("**?q=moon")
    search.press_sequentially("s")
    page.go_back()
    page.wait_for_url(re.compile("jojokey-gallery$"))
    expect(search).to_have_value("")
    assert page.evaluate("held.length") == 0

    page.go_forward()
    page.wait_for_url("**?q=moon")
    expect(search).to_have_value("moon")


def test_search_waits_for_an_input_method(page: Page, airflow: Airflow, runs: Runs) -> None:
    page.add_init_script(HELD_TIMERS)
    page.goto(airflow.gallery)
    search = page.get_by_role("searchbox")
    search.focus()
    keyboard = page.context.new_cdp_session(page)
    keyboard.send("Input.imeSetComposition", {"text": "yue", "selectionStart": 3, "selectionEnd": 3})
    expect(search).to_have_value("yue")
    assert page.evaluate("held.length") == 0
    keyboard.send("Input.insertText", {"text": "月"})
    expect(search).to_have_value("月")
    page.evaluate("held.pop()()")
    page.wait_for_url("**?q=%E6%9C%88")
    expect(page.get_by_text("No images match these filters")).to_be_visible()
    expect(search).to_have_value("月")


@pytest.mark.parametrize(
    "query",
    [
        "state=constructor",
        "state=a&state=failed",
        "sort=toString",
        "day_from=2026-02-31",
        "day_to=2026-13-01",
    ],
)
def test_invalid_filter_in_the_url_is_ignored(page: Page, airflow: Airflow, runs: Runs, query: str) -> None:
    page.goto(f"{airflow.gallery}?q=moon&{query}")
    expect(page.locator(CARD)).to_have_count(2)
    expect(page.get_by_role("button", name=re.compile("Remove the filter"))).to_have_count(0)
    expect(page.get_by_label("Order")).to_have_value("newest")


@pytest.fixture
def place(page: Page, airflow: Airflow, runs: Runs) -> Callable[[], Any]:
    """A long way down the gallery, a function that follows a link there, and returns the place of its card."""

    def short(route: Route) -> None:
        answer = route.fetch().json()
        route.fulfill(json={**answer, "results": answer["results"][:1]})

    def leave() -> Any:
        # Playwright's click scrolls at the same moment, which no user does.
        page.locator(CARD).last.locator(".jojokey-card-sub button").focus()
        page.evaluate(SETTLE)
        y = page.locator(CARD).last.evaluate("card => card.getBoundingClientRect().y")
        page.keyboard.press("Enter")
        expect(page.locator(CARD)).to_have_count(1)
        return y

    page.set_viewport_size({"width": 420, "height": 500})
    page.route(re.compile(r"api/results\?.*run_id="), short)
    page.goto(f"{airflow.gallery}?dag_id=album")
    expect(page.locator(CARD)).to_have_count(4)
    expect(page.locator(".jojokey-totals h2")).to_be_visible()  # nothing moves the cards any more
    return leave


def expect_last_card_at(page: Page, y: float) -> None:
    expect(page.locator(CARD)).to_have_count(4)
    page.wait_for_function(
        """([cards, y]) => {
            const { y: now } = [...document.querySelectorAll(cards)].at(-1).getBoundingClientRect();
            return Math.abs(now - y) < 2;
        }""",
        arg=[CARD, y],
    )


def test_back_returns_to_the_place_in_the_list(page: Page, place: Callable[[], Any]) -> None:
    y = place()
    page.go_back()
    expect_last_card_at(page, y)


def test_place_is_kept_when_cards_get_their_heights_late(page: Page, place: Callable[[], Any]) -> None:
    y = place()
    page.evaluate("document.head.append(Object.assign(document.createElement('style'), {id: 'low'}))")
    page.evaluate("low.textContent = '.jojokey-card { height: 60px }'")
    page.go_back()
    expect(page.locator(CARD)).to_have_count(4)
    page.evaluate(SETTLE)
    page.evaluate("low.remove()")
    expect_last_card_at(page, y)


@pytest.mark.parametrize("by", ["wheel", "scrollbar"])
def test_user_who_scrolls_after_back_is_not_pulled_back(
    page: Page, place: Callable[[], Any], by: str
) -> None:
    y = place()
    page.go_back()
    expect_last_card_at(page, y)
    page.evaluate(SETTLE)
    if by == "wheel":
        page.mouse.move(200, 250)
        page.mouse.wheel(0, -5000)
    else:  # some browsers report nothing else of a scrollbar that is dragged
        page.locator(CARD).first.evaluate("card => card.scrollIntoView()")
    expect(page.locator(CARD).first).to_be_in_viewport()
    page.evaluate(SETTLE)
    page.set_viewport_size({"width": 400, "height": 500})
    page.evaluate(SETTLE)
    expect(page.locator(CARD).last).not_to_be_in_viewport()


def test_place_is_kept_when_the_user_types_before_the_charts(page: Page, place: Callable[[], Any]) -> None:
    y = place()
    page.go_back()
    expect_last_card_at(page, y)
    page.keyboard.press("Shift")
    page.add_style_tag(content="* { overflow-anchor: none }")  # Safari has no scroll anchoring
    page.evaluate("document.querySelector('.jojokey-totals').style.marginTop = '300px'")
    page.evaluate(SETTLE)
    expect_last_card_at(page, y)


def test_page_is_mounted_once(page: Page, airflow: Airflow, runs: Runs) -> None:
    page.add_init_script("""
        globalThis.mounted = new Set();
        const look = () => document.querySelectorAll(".jojokey-root").forEach((one) => mounted.add(one));
        new MutationObserver(look).observe(document, { childList: true, subtree: true });
    """)
    page.goto(airflow.gallery)
    expect(page.locator(CARD).first).to_be_visible()
    expect(page.locator(".jojokey-totals h2")).to_be_visible()
    assert page.evaluate("mounted.size") == 1


def test_focus_stays_while_results_are_loaded(page: Page, airflow: Airflow, runs: Runs) -> None:
    page.goto(f"{airflow.gallery}?state=failed")
    expect(page.locator(CARD).first).to_be_visible()
    refresh = page.get_by_role("button", name="Refresh")
    refresh.focus()
    with page.expect_response("**/api/results*"):
        page.keyboard.press("Enter")
    expect(refresh).to_be_enabled()
    expect(refresh).to_be_focused()

    page.get_by_role("button", name="Clear filters").focus()
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("jojokey-gallery$"))
    expect(page.get_by_role("button", name="Filter", exact=True)).to_be_focused()


def test_results_are_sorted_by_tokens_and_cost(page: Page, airflow: Airflow, runs: Runs) -> None:
    page.goto(f"{airflow.gallery}?dag_id=album&run_id={runs.album.replace('+', '%2B')}")
    expect(page.locator(CARD)).to_have_count(4)
    page.get_by_label("Order").select_option("tokens")
    expect(page.locator(CARD).first).to_contain_text("Tile 0")
    assert "sort=tokens" in page.url
    page.get_by_label("Order").select_option("cost")
    expect(page.locator(CARD)).to_have_count(4)
    expect(page.locator(CARD).first).to_contain_text("Tile 0")
    assert "sort=cost" in page.url


def test_selected_images_are_downloaded_as_zip(
    page: Page, airflow: Airflow, runs: Runs, tmp_path: Path
) -> None:
    page.goto(f"{airflow.gallery}?run_id={runs.album.replace('+', '%2B')}")
    expect(page.locator(CARD)).to_have_count(4)
    select(page, "A first moon", "A second moon", "Two herons")
    bar = page.get_by_role("region", name="Selected images")
    expect(bar).to_contain_text("4 images selected")
    with page.expect_download() as download:
        bar.get_by_role("button", name="Download as zip").click()
    download.value.save_as(tmp_path / "images.zip")
    with zipfile.ZipFile(tmp_path / "images.zip") as archive:
        assert sorted(archive.namelist()) == ["0.png", "1.png", "pair-0.png", "pair-1.png"]
        (stored,) = airflow.objects.rglob("pair-1.png")
        assert archive.read("pair-1.png") == stored.read_bytes()
    bar.get_by_role("button", name="Clear the selection").click()
    expect(bar).to_have_count(0)


def test_zip_of_many_long_names_needs_no_long_url(
    page: Page, airflow: Airflow, runs: Runs, tmp_path: Path
) -> None:
    """Proxies reject URLs of more than 8 KB."""
    urls: list[str] = []
    page.on("request", lambda request: urls.append(request.url))

    def many(route: Route) -> None:
        answer = route.fetch().json()
        card = answer["results"][0]
        gone = [image for image in card["images"] for _ in range(49)]
        for number, image in enumerate(gone):
            path = f"album/{'r' * 250}/{'t' * 250}/-1/{number}"
            gone[number] = {**image, "src": re.sub("/images/.*", f"/images/{path}", image["src"])}
        card["images"] = [card["images"][0], *gone]
        route.fulfill(json=answer)

    page.route("**/api/results*", many)
    page.goto(f"{airflow.gallery}?dag_id=album&q=first")
    expect(page.locator(CARD)).to_have_count(1)
    select(page, "A first moon")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download as zip").click()
    download.value.save_as(tmp_path / "images.zip")
    with zipfile.ZipFile(tmp_path / "images.zip") as archive:
        assert archive.namelist() == ["0.png", "not included.txt"]
        assert len(archive.read("not included.txt").splitlines()) == 49
    assert max(map(len, urls)) < 8_000


@pytest.mark.parametrize("leave", ["selects another", "clears", "opens another page"])
def test_zip_is_downloaded_while_the_user_goes_on(
    page: Page, airflow: Airflow, runs: Runs, leave: str
) -> None:
    held: list[Route] = []
    page.route("**/jojokey/zip", lambda route: held.append(route))
    page.goto(f"{airflow.gallery}?q=moon&run_id={runs.album.replace('+', '%2B')}")
    bar = page.get_by_role("region", name="Selected images")
    select(page, "A first moon")
    with page.expect_request("**/jojokey/zip"):
        page.get_by_role("button", name="Download as zip").click()
    if leave == "selects another":
        select(page, "A second moon")
        expect(bar).to_contain_text("2 images selected")
    elif leave == "clears":
        bar.get_by_role("button", name="Clear the selection").click()
        expect(bar).to_have_count(0)
    else:
        page.locator(CARD).first.get_by_role("link").first.click()
        expect(bar).to_have_count(0)
    with page.expect_download() as download:
        held[0].continue_()
    assert download.value.suggested_filename == "images.zip"


def test_zip_that_cannot_be_made_says_so(page: Page, airflow: Airflow, runs: Runs) -> None:
    page.expected_errors = ("404", "frame")  # type: ignore[attr-defined]
    status = [404]
    page.route(
        "**/jojokey/zip", lambda route: route.fulfill(status=404, json={}) if status else route.continue_()
    )
    page.goto(f"{airflow.gallery}?dag_id=album&q=first")
    select(page, "A first moon")
    button = page.get_by_role("button", name="Download as zip")
    error = page.get_by_text("The zip file could not be made.")
    button.click()
    expect(error).to_be_visible()
    status.clear()
    with page.expect_download():
        button.click()
    expect(error).to_have_count(0)
    expect(page.get_by_role("region", name="Selected images")).to_be_visible()


def test_selection_that_is_too_large_for_a_zip_says_so(page: Page, airflow: Airflow, runs: Runs) -> None:
    def large(route: Route) -> None:
        answer = route.fetch().json()
        for card in answer["results"]:
            for image in card["images"]:
                image["bytes"] = 300 * 2**20
        route.fulfill(json=answer)

    page.route("**/api/results*", large)
    page.goto(f"{airflow.gallery}?q=moon&run_id={runs.album.replace('+', '%2B')}")
    expect(page.locator(CARD)).to_have_count(2)
    bar = page.get_by_role("region", name="Selected images")
    select(page, "A first moon")
    expect(bar.get_by_role("button", name="Download as zip")).to_be_visible()
    select(page, "A second moon")
    expect(bar).to_contain_text("One zip file holds at most 536.9 MB.")
    expect(bar.get_by_role("button", name="Download as zip")).to_have_count(0)


def test_selected_images_are_compared_side_by_side(page: Page, airflow: Airflow, runs: Runs) -> None:
    page.goto(f"{airflow.gallery}?q=moon&run_id={runs.album.replace('+', '%2B')}")
    expect(page.locator(CARD)).to_have_count(2)
    select(page, "A first moon")
    compare = page.get_by_role("button", name="Compare")
    expect(compare).to_be_disabled()
    select(page, "A second moon")
    compare.click()
    dialog = page.get_by_role("dialog", name="Compare")
    expect(dialog.get_by_role("figure")).to_have_count(2)
    expect(dialog.locator("mark", has_text="moon")).to_have_count(2)
    assert sorted(dialog.locator("mark", has_text="moon").all_inner_texts()) == [
        "A first moon",
        "A second moon",
    ]
    page.go_back()
    expect(dialog).to_have_count(0)
    expect(page.get_by_role("region", name="Selected images")).to_contain_text("2 images selected")


def test_comparison_says_that_images_share_a_cost(page: Page, airflow: Airflow, runs: Runs) -> None:
    page.goto(f"{airflow.gallery}?q=herons&run_id={runs.album.replace('+', '%2B')}")
    select(page, "Two herons")
    page.get_by_role("button", name="Compare").click()
    figures = page.get_by_role("dialog", name="Compare").get_by_role("figure")
    expect(figures).to_have_count(2)
    for number in range(2):
        expect(figures.nth(number)).to_contain_text(re.compile(r"≈\sUSD\s0\.\d{4} for 2 images"))
        expect(figures.nth(number)).to_contain_text(re.compile(r"Tokens\d+ for 2 images"))


def test_comparison_says_that_tokens_are_unknown(page: Page, airflow: Airflow, runs: Runs) -> None:
    def changed(route: Route) -> None:
        answer = route.fetch().json()
        for card, paid in zip(answer["results"], ("yes", "no"), strict=True):
            card |= {"usage": {"total_tokens": 0}, "paid": paid}
        route.fulfill(json=answer)

    page.route("**/api/results*", changed)
    page.goto(f"{airflow.gallery}?q=moon&run_id={runs.album.replace('+', '%2B')}")
    expect(page.locator(CARD)).to_have_count(2)
    select(page, "A first moon", "A second moon")
    page.get_by_role("button", name="Compare").click()
    facts = page.get_by_role("dialog", name="Compare").locator("dl")
    expect(facts.filter(has_text=re.compile(r"Tokens(Unknown)"))).to_have_count(1)
    expect(facts.filter(has_text=re.compile(r"Tokens0"))).to_have_count(1)


def test_cost_table_counts_results_of_unknown_tokens(page: Page, airflow: Airflow, runs: Runs) -> None:
    def changed(route: Route) -> None:
        answer = route.fetch().json()
        row = answer["rows"][0]
        known = {"total_tokens": 1200, "unknown_tokens": 0}
        answer["rows"] = [
            {**row, **known, "model": "a"},
            {**row, **known, "model": "b", "unknown_tokens": 2},
            {**row, "model": "c", "total_tokens": 0, "unknown_tokens": 1},
        ]
        route.fulfill(json=answer)

    page.route("**/api/costs?*", changed)
    page.goto(f"{airflow.gallery}?dag_id=album")
    page.get_by_text("Cost by Dag, model and day").click()
    expect(page.locator(".jojokey-costs tbody td:nth-child(5)")).to_have_text(
        ["1,200", "1,200 tokens + 2 results of unknown tokens", "Tokens unknown"]
    )


def test_back_closes_the_dialog_and_a_link_opens_it(
    page: Page, airflow: Airflow, runs: Runs, pasted: Callable[[], str]
) -> None:
    page.goto(f"{airflow.gallery}?q=herons&run_id={runs.album.replace('+', '%2B')}")
    address = page.url
    page.locator(f"{CARD} button.jojokey-picture").nth(1).click()
    dialog = page.locator(DIALOG)
    dialog.get_by_role("button", name="Copy a link to this image").click()
    expect(dialog.get_by_text("Copied")).to_be_attached()
    link = pasted()
    page.go_back()
    expect(dialog).to_have_count(0)
    assert page.url == address

    page.goto(link)
    expect(page.get_by_role("dialog", name="Image 2 of 2")).to_be_visible()


@pytest.mark.parametrize("change", ["language", "time zone"])
def test_discarded_dialog_leaves_no_step_in_the_history(
    page: Page, airflow: Airflow, runs: Runs, choose_language: Callable[[str], None], change: str
) -> None:
    for dag_id in ("single", "album"):
        page.goto(f"{airflow.gallery}?dag_id={dag_id}")
    page.locator(f"{CARD} button.jojokey-picture").first.click()
    expect(page.locator(DIALOG)).to_be_visible()
    if change == "language":
        choose_language("zh-CN")
    else:
        choose_zone(page, "local-storage", "Pacific/Auckland")
    expect(page.locator(DIALOG)).to_have_count(0)
    page.wait_for_function("!history.state.jojokey")
    expect(page.locator(CARD)).to_have_count(4)
    page.evaluate("localStorage.removeItem('timezone')")
    page.go_back()
    page.wait_for_url("**?dag_id=single")


def test_double_click_opens_an_image(page: Page, airflow: Airflow, runs: Runs) -> None:
    for dag_id in ("single", "album"):
        page.goto(f"{airflow.gallery}?dag_id={dag_id}")
    picture = page.locator(f"{CARD} button.jojokey-picture").first
    expect(page.locator(".jojokey-totals h2")).to_be_visible()  # nothing moves the cards any more
    box = picture.bounding_box()
    assert box is not None
    picture.dblclick(position={"x": 5, "y": box["height"] / 2})  # beside the image of the dialog
    expect(page.locator(DIALOG)).to_be_visible()
    page.go_back()
    expect(page.locator(DIALOG)).to_have_count(0)
    assert page.url.endswith("dag_id=album")
    picture.click()
    page.locator(".jojokey-stage").click(position={"x": 5, "y": 5})
    expect(page.locator(DIALOG)).to_have_count(0)


def test_link_opens_its_image_among_equal_file_names(
    page: Page, airflow: Airflow, runs: Runs, pasted: Callable[[], str]
) -> None:
    def renamed(route: Route) -> None:
        answer = route.fetch().json()
        for card in (answer["result"], *answer["items"]):
            for image in card["images"]:
                image["name"] = "front.png"
        route.fulfill(json=answer)

    page.route("**/jojokey/api/dags/**", renamed)
    page.goto(airflow.tab("album", runs.album, "batch"))
    page.locator(f"{CARD} button.jojokey-picture").nth(2).click()
    dialog = page.locator(DIALOG)
    caption = dialog.locator(".jojokey-lightbox-text p")
    expect(caption).to_have_text("Tile 2")
    dialog.get_by_role("button", name="Copy a link to this image").click()
    expect(dialog.get_by_text("Copied")).to_be_attached()

    page.goto(pasted())
    expect(caption).to_have_text("Tile 2")


def test_new_results_are_announced_and_shown(page: Page, clock: Any, airflow: Airflow, runs: Runs) -> None:
    page.goto(f"{airflow.gallery}?dag_id=single")
    expect(page.locator(CARD).first).to_be_visible()
    before = page.locator(CARD).count()
    run_id = airflow.trigger("single", prompt="A brand new comet")
    assert airflow.wait("single", run_id) == "success"
    clock.run_for(25_000)
    page.get_by_role("button", name="Show 1 new result").click()
    expect(page.locator(CARD)).to_have_count(before + 1)
    expect(page.locator(CARD).first).to_contain_text("A brand new comet")


def test_many_new_results_are_not_counted_exactly(
    page: Page, clock: Any, airflow: Airflow, runs: Runs
) -> None:
    shown: list[int] = [7]  # the map indexes of the results on the first page: higher ones are newer

    def numbered(route: Route) -> None:
        if "cursor=" in route.request.url:
            return  # the second page never arrives
        answer = route.fetch().json()
        first = answer["results"][0]
        results = [
            {**first, "map_index": number, "made_at": f"2026-01-01T00:00:{number:02}+00:00"}
            for number in shown
        ]
        route.fulfill(json={**answer, "results": results, "next": "x"})

    page.route("**/api/results*", numbered)
    page.goto(f"{airflow.gallery}?dag_id=album")
    expect(page.locator(CARD)).to_have_count(1)
    new = page.get_by_role("button", name="new result")
    for shown[:], text in (
        ([8, 7], "Show 1 new result"),
        ([20, 19, 8], "Show 3 or more new results"),
        ([7, 6], None),  # 6 was on the second page, and another one was deleted
        ([9, 8, 7], "Show 2 new results"),
        ([6, 5], None),
    ):
        with page.expect_response("**/api/results*"):
            clock.run_for(20_000)
        expect(new).to_have_text([text] if text else [])


def test_relative_times_go_on(page: Page, clock: Any, airflow: Airflow, runs: Runs) -> None:
    page.goto(f"{airflow.gallery}?dag_id=album")
    made = page.locator(f"{CARD} time").first
    before = made.inner_text()
    assert "hour" not in before
    clock.fast_forward("05:00:00")
    expect(made).to_have_text(re.compile("^[56] hours ago$"))  # the run is older in a long session


def test_bars_of_two_weeks_are_wide_and_as_high_as_their_cost(
    page: Page, airflow: Airflow, runs: Runs
) -> None:
    def spread(route: Route) -> None:
        totals = route.fetch().json()
        today = date.fromisoformat(totals["by_day"][-1]["day"])
        cost = {"amounts": [{"amount": "1", "currency": "USD", "approximate": True}], "unknown": 0}
        days = [
            {**totals["by_day"][-1], "cost": cost, "day": f"{today - timedelta(ago)}"} for ago in range(14)
        ]
        days[0]["cost"] = {"amounts": [{**cost["amounts"][0], "amount": "0.5"}], "unknown": 0}
        days[1]["images"] = 0  # all requests failed
        route.fulfill(json={**totals, "by_day": days[::-1]})

    page.route("**/api/totals*", spread)
    page.goto(airflow.gallery)
    bars = page.locator("button.jojokey-bar")
    expect(bars).to_have_count(14)
    sizes = bars.evaluate_all(
        """bars => bars.map(bar => {
            const { width, height } = getComputedStyle(bar, "::before");
            return [parseFloat(width) / bar.offsetWidth, parseFloat(height) / bar.offsetHeight];
        })"""
    )
    assert all(0.7 < width <= 1 for width, _ in sizes)
    assert [round(height, 1) for _, height in sizes] == [1.0] * 13 + [0.5]


def unanswered_until(released: threading.Event) -> Callable[[Route], None]:
    def handle(route: Route) -> None:
        if released.is_set():
            route.continue_()

    return handle


def test_totals_that_are_not_those_of_the_filter_are_gray(page: Page, airflow: Airflow, runs: Runs) -> None:
    page.goto(f"{airflow.gallery}?dag_id=album")
    totals = page.locator(".jojokey-totals")
    expect(totals).to_contain_text("18 Images")
    released = threading.Event()
    page.route(re.compile("/api/(results|totals).*q=moon"), unanswered_until(released))
    page.get_by_role("searchbox").fill("moon")
    expect(totals).to_have_css("opacity", "0.55")
    expect(totals).to_contain_text("18 Images")  # the page doesn't move while the user waits
    released.set()
    page.get_by_role("searchbox").fill("first moon")
    expect(totals).to_contain_text("1 Image")
    expect(totals).to_have_css("opacity", "1")


def test_page_says_that_the_totals_are_loading(page: Page, airflow: Airflow, runs: Runs) -> None:
    page.expected_errors = ("500",)  # type: ignore[attr-defined]
    page.route("**/api/totals*", lambda route: None)
    page.goto(f"{airflow.gallery}?dag_id=album")
    expect(page.locator(CARD)).to_have_count(4)
    totals = page.locator(".jojokey-totals")
    expect(totals).to_have_text("Loading …")
    page.route("**/api/totals*", lambda route: route.fulfill(status=500, json={}))
    page.get_by_role("button", name="Refresh").click()
    expect(page.get_by_role("alert")).to_be_visible()
    expect(totals).to_have_text("")


def test_page_that_is_reopened_requests_only_what_it_lacks(
    page: Page, airflow: Airflow, runs: Runs, choose_language: Callable[[str], None]
) -> None:
    """A change of the language reopens the page, here with the totals or the images still on their way."""
    images, totals = page.locator(CARD).first, page.locator(".jojokey-totals h2")
    for early, late, there, language in (
        ("results", "totals", images, "de"),
        ("totals", "results", totals, "fr"),
    ):
        never_answered = re.compile(rf"/api/{late}\?.*dag_id=")
        released = threading.Event()
        # The route stays: without it, the browser would continue the requests that it holds back.
        page.route(never_answered, unanswered_until(released))
        page.goto(f"{airflow.gallery}?dag_id=album&run_id={runs.album.replace('+', '%2B')}")
        expect(there).to_be_visible()
        released.set()
        requests: list[str] = []
        page.on("request", lambda request, requests=requests: requests.append(request.url))
        choose_language(language)
        expect(images).to_be_visible()
        expect(totals).to_be_visible()
        assert not any(re.search(rf"/api/{early}\?.*dag_id=", url) for url in requests)
        assert any(never_answered.search(url) for url in requests)
        page.unroute_all()


def test_refresh_reloads_the_open_cost_table(page: Page, airflow: Airflow, runs: Runs) -> None:
    page.goto(f"{airflow.gallery}?dag_id=album&run_id={runs.album.replace('+', '%2B')}")
    page.get_by_text("Cost by Dag, model and day").click()
    images = page.locator(".jojokey-costs tbody td").nth(3)
    expect(images).to_have_text("18")
    more = page.get_by_text("The CSV file has all 12,345 rows.")
    expect(more).to_have_count(0)

    def grown(route: Route) -> None:
        answer = {**route.fetch().json(), "count": 12_345}
        answer["rows"][0]["images"] = 19
        route.fulfill(json=answer)

    page.route("**/api/costs?*", grown)
    page.get_by_role("button", name="Refresh").click()
    expect(images).to_have_text("19")
    expect(more).to_be_visible()


def test_days_follow_a_time_zone_that_is_selected_later(page: Page, airflow: Airflow, runs: Runs) -> None:
    page.goto(f"{airflow.gallery}?run_id={runs.album.replace('+', '%2B')}")
    expect(page.locator(CARD)).to_have_count(4)
    for event in ("local-storage", "storage"):
        zone = {"local-storage": "Pacific/Auckland", "storage": "Europe/Berlin"}[event]
        with page.expect_request(lambda request, zone=zone: f"tz={zone.replace('/', '%2F')}" in request.url):
            choose_zone(page, event, zone)
        expect(page.locator(CARD)).to_have_count(4)
    page.evaluate("localStorage.removeItem('timezone')")


def test_cost_table_and_its_csv_agree_with_the_totals(
    page: Page, airflow: Airflow, runs: Runs, tmp_path: Path
) -> None:
    page.goto(f"{airflow.gallery}?dag_id=album&run_id={runs.album.replace('+', '%2B')}")
    totals = page.locator(".jojokey-totals")
    expect(totals).to_contain_text(re.compile(r"≈\sUSD\s0\.\d+"))
    page.get_by_text("Cost by Dag, model and day").click()
    row = page.locator(".jojokey-costs tbody tr")
    expect(row).to_have_count(1)
    with page.expect_download() as download:
        page.get_by_role("link", name="Download as CSV").click()
    download.value.save_as(tmp_path / "costs.csv")
    (line,) = csv.DictReader(io.StringIO((tmp_path / "costs.csv").read_text("utf-8-sig")))
    assert (line["dag_id"], line["images"], line["approximate"]) == ("album", "18", "yes")
    shown_cost = re.search(r"USD\s([\d.]+)", totals.inner_text())
    assert shown_cost is not None
    assert shown_cost[1] in row.inner_text()
    assert f"{float(line['cost_USD']):.4f}".startswith(shown_cost[1])
