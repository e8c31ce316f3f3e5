"""Fixtures: one Airflow and one browser for all tests in this folder, and a new page for each test."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect, sync_playwright

from tests.support.standalone_airflow import HOSTILE, PASSWORD, USER, Airflow, Runs, running_airflow

STATIC = Path(__file__).parents[2] / "airflow_provider_jojokey" / "plugins" / "static"
NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
SIZE = {"width": 1400, "height": 900}
PATIENCE = 120_000.0
"""Milliseconds to wait for an element: long, because the machine may be busy."""


@pytest.fixture(scope="session")
def chromium() -> str:
    """The browser's path."""
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("There is no Chromium here: the browser tests were not run (set CHROMIUM to its path).")
    return found


@pytest.fixture(scope="session")
def browser(chromium: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(ARGUMENTS))
        expect.set_options(timeout=PATIENCE)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def airflow(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Airflow]:
    """Airflow, started once. Without a browser, its tests are skipped."""
    with running_airflow(tmp_path_factory.mktemp("browser")) as airflow:
        yield airflow


@pytest.fixture(scope="session")
def runs(airflow: Airflow) -> Runs:
    """Finished runs of the test Dags, with one task of each kind."""
    made = {
        "album": ("album", airflow.trigger("album")),
        "hostile": ("single", airflow.trigger("single", prompt=HOSTILE)),
        "refused": ("single", airflow.trigger("single", prompt="A bird [sandbox: moderation_blocked]")),
    }
    ended = {name: airflow.wait(*run) for name, run in made.items()}
    assert ended == {"album": "success", "hostile": "success", "refused": "failed"}
    return Runs(**{name: run_id for name, (_, run_id) in made.items()})


@pytest.fixture(scope="session")
def cookies(airflow: Airflow, browser: Browser) -> Any:
    """The cookies and the storage of a browser after a login with the form."""
    with browser.new_context() as context:
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.goto(airflow.url)
        page.get_by_label("Username").fill(USER)
        page.get_by_label("Password").fill(PASSWORD)
        page.get_by_role("button", name="Sign in").click()
        page.get_by_role("link", name="Dags").first.wait_for()
        return context.storage_state()


@contextmanager
def open_context(browser: Browser, cookies: Any) -> Iterator[BrowserContext]:
    with browser.new_context(
        storage_state=cookies, viewport=SIZE, locale="en-GB", timezone_id="UTC", accept_downloads=True
    ) as context:
        context.set_default_timeout(PATIENCE)
        yield context


@pytest.fixture(scope="session")
def context(browser: Browser, cookies: Any) -> Iterator[BrowserContext]:
    """One browser context for all pages, so that Airflow's scripts are loaded once."""
    with open_context(browser, cookies) as context:
        yield context


@pytest.fixture(params=["light, English", "dark, Chinese"])
def themed(request: pytest.FixtureRequest, browser: Browser, cookies: Any) -> Iterator[Page]:
    """A page in one theme and one language."""
    theme, language = request.param.split(", ")
    with browser.new_context(storage_state=cookies, viewport=SIZE, color_scheme=theme) as context:
        chosen = {"theme": theme, "i18nextLng": {"English": "en", "Chinese": "zh-CN"}[language]}
        for name, value in chosen.items():
            context.add_init_script(f"localStorage.setItem({name!r}, {value!r})")
        context.set_default_timeout(PATIENCE)
        yield context.new_page()


@pytest.fixture
def page(request: pytest.FixtureRequest, browser: Browser, cookies: Any) -> Iterator[Page]:
    """A page with a login. The test fails if the page logs an error or opens a JavaScript dialog."""
    with ExitStack() as stack:
        if "clock" in request.fixturenames:  # a context's pages have one clock
            context = stack.enter_context(open_context(browser, cookies))
        else:
            context = request.getfixturevalue("context")
        yield from _checked(context.new_page())


@pytest.fixture
def clock(page: Page) -> Any:
    """The clock of the page, which the test can move."""
    page.clock.install()
    return page.clock


def _checked(page: Page) -> Iterator[Page]:
    wrong: list[str] = []

    def listen(message: ConsoleMessage) -> None:
        if message.type == "error":
            wrong.append(f"{message.text} ({message.location.get('url')})")

    page.on("console", listen)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
    yield page
    page.close()
    expected = getattr(page, "expected_errors", ())
    assert [entry for entry in wrong if not any(word in entry for word in expected)] == []


KEEP_COPIED = """
const { setTimeout } = globalThis;
globalThis.setTimeout = (run, wait, ...rest) => (wait === 2000 ? 0 : setTimeout(run, wait, ...rest));
"""
"""The text "Copied" stays. Otherwise it is gone before a busy machine looks for it."""


@pytest.fixture
def pasted(page: Page) -> Callable[[], str]:
    """A function that returns what the page has copied."""
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.add_init_script(KEEP_COPIED)
    return lambda: str(page.evaluate("navigator.clipboard.readText()"))


@pytest.fixture
def choose_language(page: Page) -> Iterator[Callable[[str], None]]:
    """A function that selects a language as Airflow's menu does. Other pages share the selection."""

    def choose(language: str) -> None:
        page.evaluate(
            """language => {
                localStorage.setItem("i18nextLng", language);
                document.documentElement.lang = language;
            }""",
            language,
        )

    yield choose
    choose("en")


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def scripts(browser: Browser) -> Iterator[Page]:
    """A page that can import the UI's scripts. It needs no Airflow."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(STATIC)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    page = browser.new_page()
    page.goto(f"http://127.0.0.1:{server.server_port}/icon.svg")
    yield page
    page.close()
    server.shutdown()
    thread.join()
    server.server_close()
