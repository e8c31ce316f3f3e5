"""The tab and the gallery: what they show, and how they react."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from playwright.sync_api import BrowserContext, Page, Route, expect

from tests.support.standalone_airflow import HOSTILE, Airflow, Runs

CARD = ".jojokey-card"


def outside(page: Page) -> list[str]:
    """Return the elements of a page that are wider than the window, except in areas that scroll by themselves."""
    return page.evaluate("""
        [...document.querySelectorAll(".jojokey-root, .jojokey-root *")].filter(element =>
            !element.parentElement.closest(".jojokey-hidden, .jojokey-scroll")
            && !element.closest(".jojokey-hidden")
            && element.getBoundingClientRect().right > innerWidth + 1
        ).map(element => element.outerHTML.slice(0, 120))
    """)


def loaded(page: Page, selector: str) -> int:
    """Wait until the first matching image is decoded, and return its width in pixels."""
    page.wait_for_function(
        "one => { const image = document.querySelector(one); return image?.complete && image.naturalWidth }",
        arg=selector,
    )
    return int(page.evaluate("one => document.querySelector(one).naturalWidth", selector))


def test_tab_shows_a_triggered_poster_by_itself(page: Page, airflow: Airflow) -> None:
    airflow.unpause("poster_daily")
    with airflow.no_new_tasks():
        page.goto(f"{airflow.url}/dags/poster_daily")
        page.get_by_role("button", name="Trigger").click()
        form = page.get_by_role("dialog")
        form.locator("[name='element_theme'], #element_theme").fill("A quiet lake")
        form.get_by_role("button", name="Trigger").click()
        expect(form).to_be_hidden()
        runs = airflow.call("/api/v2/dags/poster_daily/dagRuns?order_by=-run_after")["dag_runs"]
        run_id = next(entry["dag_run_id"] for entry in runs if entry["run_type"] == "manual")

        page.goto(airflow.tab("poster_daily", run_id, "poster"))
        expect(page.get_by_role("heading", name="No images yet")).to_be_visible()

    assert airflow.wait("poster_daily", run_id) == "success"
    expect(page.locator(".jojokey-figure img")).to_be_visible()
    assert loaded(page, ".jojokey-figure img") == 1024
    tab = page.locator(".jojokey-root")
    expect(tab.locator(".jojokey-prompt")).to_contain_text("A quiet lake")
    expect(tab.get_by_text("Paid")).to_be_visible()
    expect(tab.get_by_text(re.compile(r"in \+ 294 out"))).to_be_visible()
    expect(tab.get_by_role("heading", name="1 Attempt")).to_be_visible()
    expect(tab.get_by_role("row").nth(1)).to_contain_text("Complete")


@pytest.mark.parametrize(
    ("request_path", "status", "message"),
    [
        ("/jojokey/api/dags/", None, "cannot be reached"),
        ("/taskInstances/pair", None, "cannot be reached"),
        ("/taskInstances/pair", 429, "did not answer as expected"),
    ],
)
def test_tab_recovers_from_an_outage_by_itself(
    page: Page,
    clock: Any,
    airflow: Airflow,
    runs: Runs,
    request_path: str,
    status: int | None,
    message: str,
) -> None:
    def fail(route: Route) -> None:
        if status is None:
            route.abort()
        else:
            route.fulfill(status=status, json={})

    page.expected_errors = ("ERR_FAILED", "429")  # type: ignore[attr-defined]
    page.route(lambda url: request_path in url, fail)
    page.goto(airflow.tab("album", runs.album, "pair"))
    alert = page.locator(".jojokey-root").get_by_role("alert")
    expect(alert).to_contain_text(message)
    page.unroute_all()
    clock.run_for(16_000)
    expect(page.locator(".jojokey-figure img").first).to_be_visible()
    expect(alert).to_have_count(0)


def open_two_pages(page: Page, airflow: Airflow, runs: Runs, text: list[str | int]) -> None:
    """Open the tab of a mapped task with one result on each of two pages.

    :param text: what the prompts begin with; a number is the status of the second page
    """

    def one_a_page(route: Route) -> None:
        address, _, query = route.request.url.partition("?")
        if "page=1" in query and isinstance(text[0], int):
            route.fulfill(status=text[0], json={})
            return
        answer = route.fetch(url=address).json()
        first, second = ({**card, "prompt": f"{text[0]} {card['prompt']}"} for card in answer["results"])
        rest = {"results": [second]} if "page=1" in query else {"results": [first], "next_page": 1}
        route.fulfill(json={**answer, **rest})

    page.route("**/jojokey/api/dags/**", one_a_page)
    page.route("**/listMapped*", lambda route: route.fulfill(json={"task_instances": [], "total_entries": 1}))
    page.goto(airflow.tab("album", runs.album, "mapped"))
    page.get_by_role("button", name="Show more").click()
    expect(page.locator(CARD)).to_have_count(2)


def test_pages_of_a_running_mapped_task_stay_open(
    page: Page, clock: Any, airflow: Airflow, runs: Runs
) -> None:
    page.expected_errors = ("404",)  # type: ignore[attr-defined]
    open_two_pages(page, airflow, runs, [""])
    with page.expect_response("**/jojokey/api/dags/**"):
        clock.run_for(10_000)
    expect(page.get_by_role("button", name="Show more")).to_have_count(0)
    expect(page.locator(CARD)).to_have_count(2)


def test_pages_of_a_mapped_task_are_refreshed_together(
    page: Page, clock: Any, airflow: Airflow, runs: Runs
) -> None:
    page.expected_errors = ("404", "503")  # type: ignore[attr-defined]
    text: list[str | int] = ["early"]
    open_two_pages(page, airflow, runs, text)
    prompts = page.locator(f"{CARD} .jojokey-card-text")
    expect(prompts).to_have_text(["early A first moon", "early A second moon"])
    page.evaluate(
        """selector => {
            globalThis.fewest = 2;
            new MutationObserver(() => {
                fewest = Math.min(fewest, document.querySelectorAll(selector).length);
            }).observe(document.body, { childList: true, subtree: true });
        }""",
        CARD,
    )
    text[0] = "late"
    clock.run_for(10_000)
    expect(prompts).to_have_text(["late A first moon", "late A second moon"])

    text[0] = 503
    clock.run_for(16_000)
    again = page.get_by_role("button", name="Try again")
    expect(again).to_be_visible()
    expect(prompts).to_have_text(["late A first moon", "late A second moon"])
    text[0] = "last"
    clock.run_for(16_000)
    expect(prompts).to_have_text(["last A first moon", "last A second moon"])
    expect(again).to_have_count(0)
    assert page.evaluate("fewest") == 2


def test_open_image_stays_while_results_come_and_go(
    page: Page, clock: Any, airflow: Airflow, runs: Runs
) -> None:
    page.expected_errors = ("404",)  # type: ignore[attr-defined]
    ended: list[int] = [1]  # the mapped tasks that have a result

    def some(route: Route) -> None:
        answer = route.fetch().json()
        results = [card for card in answer["results"] if card["map_index"] in ended]
        route.fulfill(json={**answer, "results": results, "unread": 1})

    page.route("**/jojokey/api/dags/**", some)
    page.route("**/listMapped*", lambda route: route.fulfill(json={"task_instances": [], "total_entries": 1}))
    page.goto(airflow.tab("album", runs.album, "mapped"))
    page.locator(f"{CARD} button.jojokey-picture").click()
    caption = page.locator(".jojokey-lightbox-text p")
    expect(caption).to_have_text("A second moon")
    for ended[:], label in (([0, 1], "Image 2 of 2"), ([0], "Image"), ([1], "Image 1 of 1")):
        clock.run_for(20_000)
        expect(page.get_by_role("dialog", name=label, exact=True)).to_be_visible()
        expect(caption).to_have_text("A second moon")


def test_lightbox_works_by_keyboard_and_returns_focus(page: Page, airflow: Airflow, runs: Runs) -> None:
    page.goto(airflow.tab("album", runs.album, "pair"))
    first = page.locator(".jojokey-figure-button").first
    first.focus()
    page.keyboard.press("Enter")

    dialog = page.get_by_role("dialog", name="Image 1 of 2")
    expect(dialog).to_be_visible()
    assert dialog.get_attribute("aria-modal") == "true"
    for _ in range(8):  # the focus cycles between the dialog and the browser's own toolbar
        page.keyboard.press("Tab")
        assert page.evaluate(
            "document.activeElement === document.body || !!document.activeElement.closest('dialog')"
        )
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("dialog", name="Image 2 of 2")).to_be_visible()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    expect(dialog).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("dialog")).to_have_count(0)
    expect(first).to_be_focused()


def test_arrow_keys_work_after_the_last_image(page: Page, airflow: Airflow, runs: Runs) -> None:
    page.goto(airflow.tab("album", runs.album, "pair"))
    page.locator(".jojokey-figure-button").first.click()
    page.get_by_role("dialog", name="Image 1 of 2").get_by_role("button", name="Next image").click()
    expect(page.get_by_role("dialog", name="Image 2 of 2")).to_be_visible()
    following = page.get_by_role("button", name="Next image")
    expect(following).to_be_disabled()
    expect(following).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_role("dialog", name="Image 1 of 2")).to_be_visible()


def test_arrow_keys_work_after_an_image_is_tried_again(page: Page, airflow: Airflow, runs: Runs) -> None:
    page.expected_errors = ("404", "502")  # type: ignore[attr-defined]
    page.route("**/jojokey/images/**", lambda route: route.fulfill(status=502, json={"reason": "s3"}))
    page.goto(airflow.tab("album", runs.album, "mapped"))
    page.locator(f"{CARD} button.jojokey-picture").first.click()
    again = page.locator("dialog").get_by_role("button", name="Try again")
    expect(again).to_be_visible()
    page.unroute_all()
    again.focus()
    page.keyboard.press("Enter")
    expect(again).to_have_count(0)
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("dialog", name="Image 2 of 2")).to_be_visible()


@pytest.mark.usefixtures("pasted")
def test_copied_is_said_only_of_what_was_copied(page: Page, airflow: Airflow, runs: Runs) -> None:
    page.goto(airflow.tab("album", runs.album, "pair"))
    page.locator(".jojokey-figure-button").first.click()
    dialog = page.locator("dialog")
    dialog.get_by_role("button", name="Copy a link to this image").click()
    expect(dialog.get_by_text("Copied", exact=True)).to_be_attached()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("dialog", name="Image 2 of 2")).to_be_visible()
    expect(dialog.get_by_text("Copied", exact=True)).to_have_count(0)


def test_download_is_the_object_in_s3(page: Page, airflow: Airflow, runs: Runs, tmp_path: Path) -> None:
    page.goto(airflow.tab("single", runs.hostile, "image"))
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    path = tmp_path / "downloaded"
    download.value.save_as(path)

    stored = airflow.objects / "single" / download.value.suggested_filename
    assert path.read_bytes() == stored.read_bytes()


def test_s3_uri_is_copied(page: Page, airflow: Airflow, runs: Runs, pasted: Callable[[], str]) -> None:
    page.goto(airflow.tab("single", runs.hostile, "image"))
    page.get_by_role("button", name="Copy the S3 location").click()
    expect(page.get_by_text("Copied")).to_be_attached()
    assert re.fullmatch(r"s3://posters/single/.+\.png", pasted())


@pytest.mark.usefixtures("pasted")
def test_s3_uri_is_copied_on_plain_http(page: Page, airflow: Airflow, runs: Runs) -> None:
    page.add_init_script("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    page.goto(airflow.gallery)
    page.locator(".jojokey-picture").first.click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="Copy the S3 location").click()
    expect(dialog.get_by_text("Copied")).to_be_attached()
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)  # until then, nothing outside of it gets the focus
    page.get_by_label("Words of the prompt, error, request ID or task").focus()
    page.keyboard.press("Control+v")
    expect(page.get_by_label("Words of the prompt, error, request ID or task")).to_have_value(
        re.compile(r"s3://posters/.+\.png")
    )


def test_prompt_is_shown_as_text(page: Page, airflow: Airflow, runs: Runs) -> None:
    page.goto(airflow.tab("single", runs.hostile, "image"))
    expect(page.locator(".jojokey-prompt")).to_have_text(HOSTILE)
    page.goto(f"{airflow.gallery}?run_id={runs.hostile.replace('+', '%2B')}")
    expect(page.locator(".jojokey-card-text")).to_have_text(HOSTILE)
    page.locator(CARD).get_by_role("button").first.click()
    expect(page.get_by_role("dialog")).to_contain_text(HOSTILE)
    assert page.evaluate("typeof hacked") == "undefined"
    assert page.locator(".jojokey-root script, .jojokey-root img[src='x']").count() == 0


def test_failed_task_shows_error_and_cost(page: Page, airflow: Airflow, runs: Runs) -> None:
    page.goto(airflow.tab("single", runs.refused, "image"))
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("moderation_blocked")
    expect(alert.locator("strong")).to_have_text("The task failed. Nothing was charged.")
    expect(page.locator(".jojokey-badge").first).to_have_text("Failed")
    expect(page.locator(".jojokey-table tbody tr")).to_contain_text("No")


def test_failure_of_unknown_cost_looks_the_same_everywhere(page: Page, airflow: Airflow) -> None:
    run_id = airflow.trigger("single", prompt="A bridge [sandbox: cloudflare_524]")
    assert airflow.wait("single", run_id) == "failed"

    page.goto(airflow.tab("single", run_id, "image"))
    expect(page.get_by_role("alert").locator("strong")).to_have_text(
        "The task failed. It is unknown whether it was charged."
    )
    expect(page.locator(".jojokey-facts .jojokey-badge")).to_have_text("Failed, perhaps paid")
    expect(page.locator(".jojokey-table .jojokey-badge").first).to_have_text("Failed, perhaps paid")
    page.goto(f"{airflow.gallery}?run_id={quote(run_id)}")
    expect(page.locator(f"{CARD} .jojokey-badge")).to_have_text("Failed, perhaps paid")
    expect(page.locator(CARD)).to_contain_text("No image is stored")
    expect(page.locator(f"{CARD} .jojokey-card-foot")).to_contain_text("Cost unknown")
    expect(page.locator(".jojokey-totals")).to_contain_text("1 failed · 1 of them perhaps paid")


def test_fee_of_a_failed_task_is_shown_with_the_error(page: Page, airflow: Airflow) -> None:
    run_id = airflow.trigger("single", prompt="A bridge [sandbox: violation_fee]")
    assert airflow.wait("single", run_id) == "failed"

    page.goto(airflow.tab("single", run_id, "image"))
    alert = page.get_by_role("alert")
    expect(alert.locator("strong")).to_have_text("The task failed, and it was charged.")
    expect(alert).to_contain_text(re.compile(r"Charged in this Dag run: USD\s0\.05\."))


@pytest.mark.parametrize(
    ("billed", "title"),
    [
        ("no", "Earlier attempts of it were charged."),
        ("unknown", "Earlier attempts of it were charged; it is unknown whether the last one was."),
    ],
)
def test_title_of_a_failure_tells_earlier_charges_apart(
    page: Page, airflow: Airflow, runs: Runs, billed: str, title: str
) -> None:
    def answer(route: Route) -> None:
        document = route.fetch().json()
        document["result"] |= {"paid": "yes", "billed": billed}
        route.fulfill(json=document)

    page.route("**/jojokey/api/dags/**", answer)
    page.goto(airflow.tab("single", runs.refused, "image"))

    expect(page.get_by_role("alert").locator("strong")).to_have_text(f"The task failed. {title}")


def test_failed_request_removes_previous_results(page: Page, airflow: Airflow, runs: Runs) -> None:
    page.expected_errors = ("500",)  # type: ignore[attr-defined]
    page.goto(airflow.gallery)
    expect(page.locator(CARD).first).to_be_visible()
    page.route("**/api/results*q=heron*", lambda route: route.fulfill(status=500, json={"detail": "x"}))
    page.get_by_label("Words of the prompt, error, request ID or task").fill("heron")

    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("Airflow could not look up the images.")
    expect(page.locator(CARD)).to_have_count(0)
    page.unroute("**/api/results*q=heron*")
    alert.get_by_role("button", name="Try again").click()
    expect(page.locator(CARD)).to_have_count(1)
    expect(alert).to_be_hidden()


def test_unreachable_image_says_why_and_can_be_tried_again(page: Page, airflow: Airflow, runs: Runs) -> None:
    page.expected_errors = ("404", "502")  # type: ignore[attr-defined]
    answers = {"reason": "s3", "status": 502}
    page.route(
        "**/jojokey/images/**",
        lambda route: route.fulfill(
            status=answers["status"], json={"detail": "", "reason": answers["reason"]}
        ),
    )
    page.goto(airflow.tab("single", runs.hostile, "image"))
    broken = page.locator(".jojokey-figure-broken")
    expect(broken).to_contain_text("S3 does not answer as expected now.")
    answers |= {"reason": "replaced", "status": 404}
    broken.get_by_role("button", name="Try again").click()
    expect(broken).to_contain_text("This image was overwritten")
    page.unroute("**/jojokey/images/**")
    broken.get_by_role("button", name="Try again").click()

    expect(page.locator(".jojokey-figure img")).to_be_visible()
    assert loaded(page, ".jojokey-figure img") > 0


def test_batch_images_have_their_own_captions(page: Page, airflow: Airflow, runs: Runs) -> None:
    page.goto(f"{airflow.gallery}?dag_id=album&q=Tile")
    buttons = page.locator(f"{CARD} button.jojokey-picture")
    expect(buttons).to_have_count(3)
    names = [buttons.nth(number).get_attribute("aria-label") for number in range(3)]
    assert len(set(names)) == 3
    buttons.nth(1).click()
    expect(page.locator(".jojokey-lightbox-text p")).to_have_text("tile-1.png")
    page.keyboard.press("Escape")
    page.get_by_role("link", name=re.compile(r"^\+10")).click()
    expect(page.get_by_role("heading", name="Items of the batch")).to_be_visible()


def test_batch_image_has_no_prompt_of_another_item(page: Page, airflow: Airflow, runs: Runs) -> None:
    page.goto(f"{airflow.gallery}?dag_id=album&q=Tile&run_id={quote(runs.album)}")
    page.locator(f"{CARD} button.jojokey-picture").nth(1).click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("button", name="Copy the S3 location")).to_be_visible()
    expect(dialog.get_by_role("button", name="Copy the prompt")).to_have_count(0)
    dialog.get_by_label("Select").check()
    page.keyboard.press("ArrowRight")
    dialog.get_by_label("Select").check()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Compare").click()
    figures = page.get_by_role("dialog", name="Compare").get_by_role("figure")
    expect(figures).to_have_count(2)
    expect(figures.nth(1)).to_contain_text("tile-2.png")
    expect(figures.nth(1)).not_to_contain_text("Tile 0")


def test_checkerboard_is_behind_transparent_images(page: Page, airflow: Airflow, runs: Runs) -> None:
    page.goto(f"{airflow.gallery}?q=herons&run_id={quote(runs.album)}")
    thumbnail = page.locator(f"{CARD} img").first
    expect(thumbnail).to_have_css("background-size", "20px 20px")
    # It ends where the picture ends.
    width, height = thumbnail.evaluate("image => [image.offsetWidth, image.offsetHeight]")
    assert width == pytest.approx(height, abs=1)
    thumbnail.click()
    opened = page.get_by_role("dialog").locator("img")
    expect(opened).to_have_css("background-size", "20px 20px")
    expect(opened).to_have_css("background-repeat", "repeat")


def test_comparison_says_why_an_image_is_missing(page: Page, airflow: Airflow, runs: Runs) -> None:
    page.expected_errors = ("502",)  # type: ignore[attr-defined]
    page.route(
        "**/jojokey/images/**", lambda route: route.fulfill(status=502, json={"detail": "", "reason": "s3"})
    )
    page.goto(f"{airflow.gallery}?q=herons&run_id={quote(runs.album)}")
    page.locator(f"{CARD} .jojokey-select input").check()
    page.get_by_role("button", name="Compare").click()
    figures = page.get_by_role("dialog", name="Compare").get_by_role("figure")
    for number in range(2):
        expect(figures.nth(number)).to_contain_text("S3 does not answer as expected now.")
    page.unroute("**/jojokey/images/**")
    figures.first.get_by_role("button", name="Try again").click()
    expect(figures.first.locator("img")).to_be_visible()


def test_items_of_a_batch_are_reviewed_one_after_another(page: Page, airflow: Airflow, runs: Runs) -> None:
    page.goto(airflow.tab("album", runs.album, "batch"))
    expect(page.locator(CARD)).to_have_count(14)
    page.locator(f"{CARD} button.jojokey-picture").nth(4).click()
    caption = page.locator(".jojokey-lightbox-text p")
    expect(caption).to_have_text("Tile 4")
    page.keyboard.press("ArrowRight")
    expect(caption).to_have_text("Tile 5")
    expect(page.get_by_role("dialog", name="Image 6 of 14")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)  # until then, nothing outside of it gets the focus

    page.get_by_placeholder("Search items").fill("tile-13")
    expect(page.locator(CARD)).to_have_count(1)
    page.get_by_label("Failed only").check()
    expect(page.get_by_text("No items match.")).to_be_visible()


def test_items_can_be_loaded_after_a_search_is_given_up(page: Page, airflow: Airflow, runs: Runs) -> None:
    page.expected_errors = ("503",)  # type: ignore[attr-defined]
    statuses: list[int | None] = [None, 503]  # of the searches; None leaves one without an answer

    def in_pages(route: Route) -> None:
        address, _, query = route.request.url.partition("?")
        if "q=" in query:
            status = statuses.pop(0)
            return route.fulfill(status=status, json={}) if status else None
        answer = route.fetch(url=address).json()
        items = answer["items"][12:] if "page=1" in query else answer["items"][:12]
        return route.fulfill(json={**answer, "items": items, "next_page": None if "page=1" in query else 1})

    page.route("**/jojokey/api/dags/**", in_pages)
    page.goto(airflow.tab("album", runs.album, "batch"))
    expect(page.locator(CARD)).to_have_count(12)
    search = page.get_by_role("searchbox", name="Words of an item")
    root = page.locator(".jojokey-root")
    for text in ("Loading …", "Airflow could not look up the images."):
        search.fill("Tile 3")
        search.press("Enter")
        expect(root.get_by_text(text)).to_be_visible()
        search.fill("")
        search.press("Enter")
        expect(page.locator(CARD)).to_have_count(12)
        expect(root.get_by_text(text)).to_have_count(0)
    page.get_by_role("button", name="Show more").click()
    expect(page.locator(CARD)).to_have_count(14)


def test_tab_without_images_explains_itself(page: Page, airflow: Airflow, runs: Runs) -> None:
    page.goto(airflow.tab("album", runs.album, "words"))
    expect(page.get_by_role("heading", name="No images")).to_be_visible()
    expect(page.locator(".jojokey-root")).to_contain_text("This tab shows the images that a task makes")


def test_killed_batch_shows_what_it_had_reported(page: Page, airflow: Airflow, runs: Runs) -> None:
    def killed(route: Route) -> None:
        answer = route.fetch().json()
        amount = {"amount": "3", "currency": "USD", "approximate": True}
        answer["progress"] = {
            "at": "2026-03-14T12:00:00+00:00", "total": 1000, "done": 500, "failed": 2, "images": 498,
            "tokens": 105_000, "cost": {"amounts": [amount], "unknown": 0},
        }  # fmt: skip
        route.fulfill(json=answer)

    page.route("**/jojokey/api/dags/**", killed)
    page.goto(airflow.tab("album", runs.album, "words"))

    root = page.locator(".jojokey-root")
    expect(root.get_by_role("heading", name="The batch ended without a report")).to_be_visible()
    expect(root).to_contain_text(re.compile(r"500 of 1,000 items · 498 images · 2 failed · ≈\sUSD\s3.00"))
    expect(root).not_to_contain_text("none")


def test_tab_shows_mapped_image_or_all_batch_items(page: Page, airflow: Airflow, runs: Runs) -> None:
    page.goto(airflow.tab("album", runs.album, "mapped", 1))
    expect(page.locator(".jojokey-figure img")).to_have_attribute("alt", "A second moon")
    page.goto(airflow.tab("album", runs.album, "batch"))
    expect(page.get_by_role("heading", name="Items of the batch")).to_be_visible()
    expect(page.locator(CARD)).to_have_count(14)
    assert loaded(page, f"{CARD} img") > 0


def test_gallery_filter_is_in_the_url(
    page: Page, context: BrowserContext, airflow: Airflow, runs: Runs
) -> None:
    page.goto(airflow.url)
    page.get_by_role("link", name="Images").click()
    expect(page.locator(CARD).first).to_be_visible()
    everything = page.locator(CARD).count()
    assert everything >= 5
    made = page.eval_on_selector_all(f"{CARD} time", "all => all.map(one => one.dateTime)")
    assert made == sorted(made, reverse=True)
    assert loaded(page, f"{CARD} img") > 0
    assert "/jojokey/thumbnails/" in page.locator(f"{CARD} img").first.evaluate("one => one.currentSrc")

    page.get_by_role("button", name="Filter", exact=True).click()
    page.get_by_role("menuitem", name="Dag").click()
    page.get_by_label("Dag", exact=True).select_option("album")
    expect(page.locator(CARD)).to_have_count(4)
    expect(page.get_by_role("heading", name="18 Images")).to_be_visible()
    words = page.get_by_label("Words of the prompt, error, request ID or task")
    words.press_sequentially("second moon", delay=20)
    page.wait_for_url(re.compile(r"dag_id=album.*q=second\+moon"))  # "second" alone has one result as well
    expect(page.locator(CARD)).to_have_count(1)
    expect(words).to_be_focused()

    other = context.new_page()
    other.goto(page.url)
    expect(other.locator(CARD)).to_have_count(1)
    other.close()

    page.go_back()
    expect(page.locator(CARD)).to_have_count(4)
    expect(words).to_have_value("")
    page.go_back()
    expect(page.locator(CARD)).to_have_count(everything)
    page.go_forward()
    expect(page.locator(CARD)).to_have_count(4)

    words.fill("a zebra")
    expect(page.get_by_role("heading", name="No images match these filters")).to_be_visible()
    page.get_by_role("button", name="Clear filters").first.click()
    expect(page.locator(CARD)).to_have_count(everything)
    assert "?" not in page.url


def test_gallery_links_to_the_task_and_back(page: Page, airflow: Airflow, runs: Runs) -> None:
    page.goto(f"{airflow.gallery}?q=herons")
    page.locator(CARD).get_by_role("button").first.click()
    page.get_by_role("dialog").get_by_role("link", name="Open task").click()
    expect(page).to_have_url(airflow.tab("album", runs.album, "pair"))
    expect(page.locator(".jojokey-figure")).to_have_count(2)
    page.go_back()
    expect(page.locator(CARD)).to_have_count(1)
    expect(page.get_by_label("Words of the prompt, error, request ID or task")).to_have_value("herons")


def test_gallery_works_by_keyboard(page: Page, airflow: Airflow, runs: Runs) -> None:
    page.goto(f"{airflow.gallery}?q=moon")
    expect(page.locator(CARD)).to_have_count(2)
    page.get_by_label("Words of the prompt, error, request ID or task").focus()
    met = []
    for _ in range(30):
        page.keyboard.press("Tab")
        met.append(
            page.evaluate("document.activeElement.name || document.activeElement.className.split(' ').at(-1)")
        )
    for name in ("jojokey-pill", "sort", "jojokey-picture", "jojokey-card-title"):
        assert name in met


def test_narrow_window_needs_no_sideways_scrolling(page: Page, airflow: Airflow, runs: Runs) -> None:
    page.set_viewport_size({"width": 420, "height": 900})
    page.goto(airflow.gallery)
    expect(page.locator(CARD).first).to_be_visible()
    for summary in ("Charts", "Cost by Dag, model and day"):
        page.get_by_text(summary, exact=True).click()
    expect(page.locator(".jojokey-dags li").first).to_be_visible()
    expect(page.locator(".jojokey-costs tbody tr").first).to_be_visible()
    assert outside(page) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_colors_follow_the_airflow_theme(page: Page, airflow: Airflow, runs: Runs) -> None:
    page.goto(airflow.gallery)
    expect(page.locator(CARD).first).to_be_visible()

    def colour() -> str:
        return str(page.eval_on_selector(".jojokey-root", "one => getComputedStyle(one).color"))

    light = colour()
    page.evaluate("document.documentElement.classList.replace('light', 'dark')")
    assert colour() != light


def test_texts_follow_a_language_that_is_set_later(
    page: Page, airflow: Airflow, runs: Runs, choose_language: Callable[[str], None]
) -> None:
    for address, english, chinese in (
        (airflow.gallery, "Newest first", "最新在前"),
        (airflow.tab("album", runs.album, "pair"), "Prompt", "提示词"),
    ):
        page.goto(address)
        root = page.locator(".jojokey-root")
        choose_language("en")
        expect(root).to_contain_text(english)
        choose_language("zh-CN")
        expect(root).to_contain_text(chinese)
        expect(root).not_to_contain_text(english)


@pytest.mark.usefixtures("runs", "choose_language")  # the latter restores the language
def test_texts_follow_a_language_that_another_tab_selects(page: Page, airflow: Airflow) -> None:
    page.goto(airflow.gallery)
    root = page.locator(".jojokey-root")
    expect(root).to_contain_text("Newest first")
    other = page.context.new_page()
    other.goto(f"{airflow.url}/jojokey/static/icon.svg")
    other.evaluate("localStorage.setItem('i18nextLng', 'zh-CN')")
    expect(root).to_contain_text("最新在前")
    other.close()


@pytest.mark.parametrize("themed", ["dark, Chinese"], indirect=True)
def test_language_is_known_without_the_lang_attribute(themed: Page, airflow: Airflow, runs: Runs) -> None:
    """Airflow does not set it if its translations are loaded before it listens for them."""
    themed.add_init_script("HTMLHtmlElement.prototype.setAttribute = () => {}")
    themed.goto(airflow.gallery)
    expect(themed.locator(".jojokey-root")).to_contain_text("最新在前")


def test_expired_session_is_reported(
    page: Page, context: BrowserContext, airflow: Airflow, runs: Runs
) -> None:
    page.expected_errors = ("401",)  # type: ignore[attr-defined]
    page.goto(airflow.gallery)
    expect(page.locator(CARD).first).to_be_visible()
    cookies = context.cookies()
    # One of Airflow's own requests could lead to the login page first, so they are not answered.
    held = [True]
    page.route(re.compile("/(api/v2|ui)/"), lambda route: None if held else route.continue_())
    context.clear_cookies()
    try:
        page.get_by_role("button", name="Refresh").click()
        expect(page.get_by_role("alert")).to_contain_text("Your session has ended")
        held.clear()
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_label("Username")).to_be_visible()
    finally:
        context.add_cookies(cookies)


@pytest.mark.parametrize("token", ["", "signed with another key"])
@pytest.mark.parametrize("place", ["gallery", "tab"])
def test_session_that_ends_while_a_page_is_open_is_reported(
    page: Page, clock: Any, airflow: Airflow, runs: Runs, place: str, token: str
) -> None:
    page.expected_errors = ("401", "403")  # type: ignore[attr-defined]
    gallery = f"{airflow.gallery}?dag_id=album&q=first"
    page.goto(gallery if place == "gallery" else airflow.tab("album", runs.album, "pair"))
    root = page.locator(".jojokey-root")
    expect(root.locator("img").first).to_be_visible()
    # The response to a request with the wrong token deletes the cookie, so no late one may follow the new login.
    page.wait_for_function("[...document.images].every(image => image.complete)")
    cookies = page.context.cookies()

    def hold(route: Route) -> None:
        # One of Airflow's own requests could lead to the login page first, so they are not answered.
        if route.request.headers["accept"] == "application/json":
            route.continue_()

    page.route(re.compile("/(api/v2|ui)/"), hold)
    page.context.clear_cookies()
    if token:
        page.context.add_cookies([{"name": "_token", "value": token, "url": airflow.url}])
    clock.run_for(21_000)
    alert = root.get_by_role("alert")
    expect(alert).to_contain_text("Your session has ended. Sign in again")
    expect(alert.get_by_role("button", name="Sign in")).to_be_visible()

    page.context.add_cookies(cookies)  # the user signs in in another tab
    clock.run_for(21_000)
    expect(alert).to_have_count(0)
    expect(root.locator("img").first).to_be_visible()


def test_gallery_loads_more_while_scrolling(page: Page, airflow: Airflow, runs: Runs) -> None:
    page.set_viewport_size({"width": 420, "height": 500})
    page.route(
        "**/api/results*",
        lambda route: route.continue_(url=re.sub(r"limit=\d+", "limit=1", route.request.url)),
    )
    page.goto(f"{airflow.gallery}?dag_id=album")
    cards = page.locator(CARD)
    for number in range(4):
        cards.nth(number).scroll_into_view_if_needed()
    expect(cards).to_have_count(4)
    labels = cards.all_inner_texts()
    assert len(set(labels)) == 4


def test_rejected_round_is_followed_by_a_published_one(page: Page, airflow: Airflow) -> None:
    run_id = airflow.trigger("poster_approval", prompt="A lantern <b>festival</b>")

    page.goto(airflow.question(run_id, "round_1.review"))
    pictures = page.get_by_role("img", name="Image")
    expect(pictures).to_have_count(3)
    page.wait_for_function(
        "[...document.querySelectorAll('img[alt^=Image]')].every(one => one.complete && one.naturalWidth === 640)"
    )
    expect(page.get_by_text("A lantern <b>festival</b>")).to_be_visible()
    page.get_by_role("textbox").last.fill("*more* red")
    page.get_by_role("button", name="None of them").click()

    page.goto(airflow.question(run_id, "round_2.review"))
    expect(page.get_by_text("Changed: *more* red")).to_be_visible()
    page.get_by_role("button", name="Publish 2").click()

    assert airflow.wait("poster_approval", run_id) == "success"
    (published,) = (airflow.objects / "public").rglob("*.png")
    (picked,) = (airflow.objects / "approval").rglob("round-2-1.png")
    assert published.read_bytes() == picked.read_bytes()
    page.goto(airflow.tab("poster_approval", run_id, "publish"))
    expect(page.locator(".jojokey-figure img")).to_be_visible()
    expect(page.locator(".jojokey-facts .jojokey-badge")).to_have_text("Derived")
    expect(page.locator(".jojokey-facts")).to_contain_text("round-2-1.png")


def test_tab_shows_how_much_of_the_budget_is_used(page: Page, airflow: Airflow, runs: Runs) -> None:
    page.goto(airflow.tab("album", runs.album, "pair"))
    budget = page.locator(".jojokey-budget")
    expect(budget).to_contain_text("Budget of the Dag run")
    expect(budget).to_contain_text(re.compile(r"≈\sUSD\s0\.\d{4} of USD\s1\.0000"))
    bar = budget.locator(".jojokey-rail")
    shares = bar.evaluate("bar => bar.firstChild.getBoundingClientRect().width / bar.offsetWidth")
    assert 0 < shares < 0.1


def test_tab_follows_a_task_that_is_cleared(page: Page, clock: Any, airflow: Airflow, runs: Runs) -> None:
    run_id = airflow.trigger("single", prompt="A comet")
    assert airflow.wait("single", run_id) == "success"
    page.goto(airflow.tab("single", run_id, "image"))
    bill = page.locator(".jojokey-dl .jojokey-badge").first
    expect(bill).to_have_text("Paid")
    body = {"dry_run": False, "dag_run_id": run_id, "task_ids": ["image"], "only_failed": False}
    airflow.call("/api/v2/dags/single/clearTaskInstances", body)
    assert airflow.wait("single", run_id) == "success"
    clock.run_for(16_000)
    expect(bill).to_have_text("Reused")


def test_make_again_leads_to_the_run_that_can_be_triggered_again(
    page: Page, airflow: Airflow, runs: Runs
) -> None:
    page.goto(airflow.tab("single", runs.hostile, "image"))
    page.get_by_role("link", name="Make again from the run").click()
    expect(page).to_have_url(re.compile(r"/dags/single/runs/[^/]+/?$"))
    expect(page.get_by_role("button", name="Trigger").first).to_be_visible()


def test_running_batch_shows_its_progress_and_then_its_images(page: Page, airflow: Airflow) -> None:
    run_id = airflow.trigger("slow")
    page.goto(airflow.tab("slow", run_id, "batch"))
    progress = page.locator(".jojokey-meter")
    expect(progress).to_contain_text(re.compile(r"[12] of 3 items"))
    expect(progress).to_contain_text(re.compile(r"≈\sUSD\s0\.\d{4}"))
    expect(page.locator(".jojokey-card")).to_have_count(3)
    expect(progress).to_have_count(0)
