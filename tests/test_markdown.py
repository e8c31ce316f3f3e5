"""A task's images as Markdown, in the body of an approval."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_jojokey import results
from airflow_provider_jojokey.cost import Cost, Costs
from airflow_provider_jojokey.markdown import escape, pictures
from airflow_provider_jojokey.results import Result
from tests.support.manifests import IMAGE, MANIFEST


class TaskInstance:
    """The parts of a running task instance that templates use."""

    dag_id, run_id = "posters", "manual__2026-01-01T00:00:00+00:00"

    def __init__(self, xcom: Any) -> None:
        self._xcom = xcom

    def xcom_pull(self, task_ids: str, key: str, map_indexes: int) -> Any:
        return self._xcom if (task_ids, key, map_indexes) == ("candidates", results.XCOM_KEY, -1) else None


def task_with_images(count: int) -> TaskInstance:
    cost = Costs((Cost(5_930_000, "USD"),)).to_json()
    manifest = {**MANIFEST, "images": [IMAGE] * count, "cost": cost}
    result = Result.from_manifest(manifest, prompt="a [fox](https://evil)", aws_conn_id=None)
    return TaskInstance(result.to_xcom())


def test_images_are_numbered_and_linked() -> None:
    numbers, _, row = pictures(task_with_images(3), "candidates").splitlines()[:3]

    assert numbers == "| **1** | **2** | **3** |"
    place = "posters/manual__2026-01-01T00%3A00%3A00%2B00%3A00/candidates/-1/2"
    assert row.endswith(f"[![Image 3](/jojokey/thumbnails/{place}?width=640)](/jojokey/images/{place}) |")


def test_body_has_the_cost_but_no_prompt_or_s3_link() -> None:
    body = pictures(task_with_images(2), "candidates")

    assert body.endswith(" · ≈ USD 0.0059 · 205 tokens")
    assert "evil" not in body
    assert "s3://" not in body
    assert "http" not in body


def test_unknown_tokens_are_not_0_in_the_body() -> None:
    usage = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
    manifest = {**MANIFEST, "usage": usage, "cost": Costs(unknown=1).to_json()}
    result = Result.from_manifest(manifest, prompt="a fox", aws_conn_id=None)

    body = pictures(TaskInstance(result.to_xcom()), "candidates")

    assert body.endswith(" · unknown · tokens unknown")


def test_paths_follow_the_base_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://example.org/team/airflow/")

    assert "(/team/airflow/jojokey/thumbnails/posters/" in pictures(task_with_images(1), "candidates")


@pytest.mark.parametrize("xcom", [None, {}, {"version": 1, "images": "x"}, {"images": [IMAGE]}])
def test_body_reports_missing_images(xcom: Any) -> None:
    assert "reported no images" in pictures(TaskInstance(xcom), "candidates")


def test_feedback_is_shown_literally() -> None:
    assert escape("![x](https://evil/x.png)\n# <b>*red*") == (
        r"\!\[x\]\(https\:\/\/evil\/x\.png\) \# \<b\>\*red\*".replace(r"\/", "/")
    )


@given(st.text())
def test_escaped_text_is_one_line_without_bare_marks(text: str) -> None:
    escaped = escape(text)

    assert "\n" not in escaped
    bare = [
        char
        for index, char in enumerate(escaped)
        if char in "[]<>!*`" and (not index or escaped[index - 1] != "\\")
    ]
    assert not bare
