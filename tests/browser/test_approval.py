"""A person decides, with the pictures in front of them."""

from __future__ import annotations

from urllib.parse import quote

from playwright.sync_api import Page, expect

from browser.world import Airflow, _until


def waiting(airflow: Airflow, run_id: str, task_id: str) -> str:
    """Wait until a task waits for a person, and return the address of its question."""
    path = f"/api/v2/dags/poster_approval/dagRuns/{quote(run_id, safe='')}/taskInstances/{task_id}"
    # Before Airflow 3.3, a task that waits for a person is a deferred one.
    _until(lambda: airflow.call(path)["state"] in ("awaiting_input", "deferred"), f"{task_id} does not ask")
    return f"{airflow.url}/dags/poster_approval/runs/{run_id}/tasks/{task_id}/required_actions"


def test_a_person_rejects_a_round_and_publishes_a_picture_of_the_next(page: Page, airflow: Airflow) -> None:
    run_id = airflow.trigger("poster_approval", prompt="A lantern <b>festival</b>")

    page.goto(waiting(airflow, run_id, "round_1.review"))
    pictures = page.get_by_role("img", name="Picture")
    expect(pictures).to_have_count(3)
    page.wait_for_function(
        "[...document.querySelectorAll('img[alt^=Picture]')].every(one => one.complete && one.naturalWidth === 640)"
    )
    expect(page.get_by_text("A lantern <b>festival</b>")).to_be_visible()
    page.get_by_role("textbox").last.fill("*more* red")
    page.get_by_role("button", name="None of them").click()

    page.goto(waiting(airflow, run_id, "round_2.review"))
    expect(page.get_by_text("Changed: *more* red")).to_be_visible()
    page.get_by_role("button", name="Publish 2").click()

    assert airflow.wait("poster_approval", run_id) == "success"
    (published,) = (airflow.objects / "public").rglob("*.png")
    (picked,) = (airflow.objects / "approval").rglob("round-2-1.png")
    assert published.read_bytes() == picked.read_bytes()
