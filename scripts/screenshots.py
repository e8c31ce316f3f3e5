"""Take screenshots of Airflow's UI for the README and the documentation.

The script starts the sandbox and `airflow standalone` in a temporary folder, runs `poster_daily` for eight days and
`poster_approval` once, and takes the screenshots with a browser.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sqlite3
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright
from standalone import environment_of, free_port, standalone
from world import HOME, ROOT, airflow_environment

from airflow_provider_jojokey.sandbox import Sandbox

IMAGES = ROOT / "docs" / "images"
LOG = HOME / "screenshots.log"
"""Airflow's log, which outlasts the temporary folder."""
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--font-render-hinting=none",
)
WIDE, TALL, NARROW = (1400, 900), (1400, 1180), (420, 900)
PATIENCE = 900.0
COLORS = 256
LARGEST = 400_000

THEMES = (
    "A koi pond in the rain",
    "A quiet harbour",
    "Night train through the Alps",
    "A lighthouse in a storm",
    "A red fox in the snow",
    "Lemon trees by the sea",
    "The moon over a desert road",
    "A tea house in spring",
)
SIZES = ("1024x1536", "1536x1024", "1024x1536", "1024x1024")
CANDIDATES = "A jazz night under the stars"


class Airflow:
    """Airflow's REST API."""

    def __init__(self, url: str) -> None:
        self.url = url

    def call(self, path: str, body: Any = None, method: str | None = None) -> Any:
        """Send a request, and return the JSON of the response."""
        request = urllib.request.Request(
            f"{self.url}{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.loads(response.read())

    def trigger(self, dag_id: str, run_id: str, conf: dict[str, Any], day: datetime | None = None) -> bool:
        """Start a run; return whether it exists.

        SQLite has one writer at a time. On a busy machine, another process of Airflow can keep it for so long that
        the API server responds with status 500 or not at all. The run may exist nevertheless, so its ID is fixed.
        """
        body = {"dag_run_id": run_id, "logical_date": day and day.isoformat(), "conf": conf}
        try:
            self.call(f"/api/v2/dags/{dag_id}/dagRuns", body)
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code != 409:
                raise
            return error.code == 409
        except OSError:
            return False
        return True

    def unpause(self, dag_id: str) -> bool:
        """Unpause a Dag; return whether that succeeded."""
        try:
            self.call(f"/api/v2/dags/{dag_id}", {"is_paused": False}, "PATCH")
        except OSError:  # the Dag processor hasn't read it, or SQLite is locked
            return False
        return True

    def results(self, **filters: str) -> list[dict[str, Any]]:
        """Return the latest results in the format of the gallery; none if Airflow is too busy."""
        query = "&".join(f"{name}={quote(value, safe='')}" for name, value in filters.items())
        try:
            return list(self.call(f"/jojokey/api/results?limit=200&{query}")["results"])
        except OSError:
            return []


def main() -> int:
    IMAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="jojokey-screenshots-") as folder:
        home = Path(folder)
        with Sandbox(home / "world") as sandbox:
            environment = airflow_environment(sandbox, home) | environment_of(free_port())
            environment["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS"] = "True"
            # A task that starts before the API server listens fails, and Airflow retries it after five minutes.
            environment["AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION"] = "True"
            LOG.parent.mkdir(parents=True, exist_ok=True)
            print(f"Starting Airflow (its log is {LOG}) …", flush=True)
            with standalone(environment, LOG):
                airflow = Airflow(environment["AIRFLOW__API__BASE_URL"])
                print("Generating posters …", flush=True)
                generate_posters(airflow)
                spread_over_days(home / "airflow" / "airflow.db")
                take_screenshots(airflow)
    return 0


def generate_posters(airflow: Airflow) -> None:
    wait_until(lambda: airflow.unpause("poster_daily") and airflow.unpause("poster_approval"))
    today = datetime.now(UTC).replace(hour=6, minute=0, second=0, microsecond=0)
    # The schedule adds the poster of today. One run at a time has fewer processes that write to SQLite.
    wait_until(lambda: bool(airflow.results(dag_id="poster_daily")))
    for number, theme in enumerate(THEMES, start=1):
        conf = {"theme": theme, "size": SIZES[number % len(SIZES)]}
        generate(airflow, "poster_daily", conf, today - timedelta(days=len(THEMES) + 1 - number))
    generate(airflow, "poster_approval", {"prompt": CANDIDATES})


def generate(airflow: Airflow, dag_id: str, conf: dict[str, Any], day: datetime | None = None) -> None:
    """Start a run, and wait for its images."""
    run_id = f"manual__{(day or datetime.now(UTC)).isoformat()}"
    wait_until(lambda: airflow.trigger(dag_id, run_id, conf, day))
    wait_until(lambda: bool(airflow.results(dag_id=dag_id, run_id=run_id)))


def spread_over_days(database: Path) -> None:
    """Set the date of each result to its logical date: all were generated within minutes."""
    with sqlite3.connect(database, timeout=60) as connection:
        connection.execute(
            "UPDATE xcom SET timestamp = strftime('%Y-%m-%d %H:%M:%f', r.logical_date, '+1 minutes')"
            " FROM dag_run AS r WHERE r.id = xcom.dag_run_id AND r.logical_date IS NOT NULL"
        )


def take_screenshots(airflow: Airflow) -> None:
    poster = airflow.results(q=THEMES[-1])[0]
    candidates = airflow.results(dag_id="poster_approval")[0]
    poster_tab, candidates_tab = (
        f"{airflow.url}{result['href']}".replace("%3A", ":").replace("%2B", "+")
        for result in (poster, candidates)
    )
    gallery = f"{airflow.url}/plugin/jojokey-gallery"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        themes: list[tuple[Literal["light", "dark"], str]] = [("light", ""), ("dark", "-dark")]
        for theme, ending in themes:
            with context_of(browser, theme) as context:
                take(context, f"tab{ending}", poster_tab, WIDE, ".jojokey-figure img")
                take(context, f"candidates{ending}", candidates_tab, WIDE, ".jojokey-figure img")
                take(context, f"gallery{ending}", gallery, WIDE, ".jojokey-card img")
                take(context, f"gallery-narrow{ending}", gallery, NARROW, ".jojokey-card img")
                take(context, f"tab-narrow{ending}", poster_tab, NARROW, ".jojokey-figure img")
                if theme == "dark":
                    take(context, "enlarged", gallery, WIDE, ".jojokey-card img", enlarge)
                    continue
                take(context, "compared", gallery, WIDE, ".jojokey-card img", compare)
                take(context, "selected", gallery, WIDE, ".jojokey-card img", select)
                take(context, "costs", gallery, WIDE, ".jojokey-card img", open_costs)
                form = f"{airflow.url}/dags/poster_approval"
                take(context, "trigger", form, WIDE, "button", open_form)
                review = f"{form}/runs/{candidates['run_id']}/tasks/round_1.review/required_actions"
                take(context, "approve", review, TALL, "img[src*='/jojokey/']")
        browser.close()


def select(page: Page) -> None:
    """Select the three candidates, which are on one card."""
    page.locator(".jojokey-card", has_text=CANDIDATES).locator(".jojokey-select input").check()


def compare(page: Page) -> None:
    select(page)
    page.get_by_role("button", name="Compare").click()
    page.locator(".jojokey-compared img").nth(2).wait_for()


def open_costs(page: Page) -> None:
    page.get_by_text("Cost by Dag, model and day").click()
    page.locator(".jojokey-costs tbody tr").first.wait_for()


def open_form(page: Page) -> None:
    page.get_by_role("button", name="Trigger").click()
    page.get_by_role("dialog").locator("[name='element_prompt'], #element_prompt").fill(
        "A jazz night under the stars"
    )


def enlarge(page: Page) -> None:
    page.locator(".jojokey-picture").nth(2).click()
    page.get_by_role("dialog").locator("img").wait_for()
    page.wait_for_load_state("networkidle")


def context_of(browser: Browser, theme: Literal["light", "dark"]) -> BrowserContext:
    """Return a browser context. All pages share its cache, because Airflow's scripts take seconds to load."""
    context = browser.new_context(
        color_scheme=theme, locale="en-GB", timezone_id="UTC", reduced_motion="reduce"
    )
    context.set_default_timeout(PATIENCE * 1000)
    context.add_init_script(f"localStorage.setItem('theme', '{theme}')")
    return context


VISIBLE_IMAGES_ARE_LOADED = """() => [...document.images].every((image) => {
    const { top, bottom, width } = image.getBoundingClientRect();
    return bottom < 0 || top > innerHeight || !width || (image.complete && image.naturalWidth);
})"""
"""Images outside of the window are loaded when the user scrolls to them."""


PAINTED = """async () => {
    const complete = [...document.images].filter((image) => image.complete);
    await Promise.all(complete.map((image) => image.decode().catch(() => {})));
    for (let frame = 0; frame < 2; frame += 1) await new Promise(requestAnimationFrame);
}"""
"""A loaded image is decoded later, and painted in the next frame."""


def take(
    context: BrowserContext,
    name: str,
    url: str,
    size: tuple[int, int],
    image: str,
    act: Callable[[Page], None] | None = None,
) -> None:
    """Take a screenshot as soon as its images are loaded."""
    page = context.new_page()
    page.set_viewport_size({"width": size[0], "height": size[1]})
    page.goto(url)
    page.locator(image).first.wait_for()
    if act:
        act(page)
    page.wait_for_load_state("networkidle")
    page.wait_for_function(VISIBLE_IMAGES_ARE_LOADED)
    page.evaluate(PAINTED)
    path = IMAGES / f"{name}.png"
    path.write_bytes(compress(page.screenshot(animations="disabled")))
    page.close()
    print(f"  {path.relative_to(ROOT)}  {path.stat().st_size / 1000:.0f} kB", flush=True)


def compress(png: bytes) -> bytes:
    """Return the screenshot as a small PNG, with a palette if it would be large otherwise."""
    with Image.open(io.BytesIO(png)) as picture:
        picture = picture.convert("RGB")
        for variant in (picture, picture.quantize(COLORS, dither=Image.Dither.NONE)):
            out = io.BytesIO()
            variant.save(out, "PNG", optimize=True)
            if out.tell() < LARGEST:
                break
        return out.getvalue()


def wait_until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not done():
        if time.monotonic() > deadline:
            raise TimeoutError("The posters were not generated in time. See Airflow's log.")
        time.sleep(1.0)


if __name__ == "__main__":
    sys.exit(main())
