"""A task's images as Markdown, before the eyes of the person who decides."""

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
    """As much of a running task instance as a template sees."""

    dag_id, run_id = "posters", "manual__2026-01-01T00:00:00+00:00"

    def __init__(self, xcom: Any) -> None:
        self._xcom = xcom

    def xcom_pull(self, task_ids: str, key: str, map_indexes: int) -> Any:
        return self._xcom if (task_ids, key, map_indexes) == ("candidates", results.XCOM_KEY, -1) else None


def made(count: int) -> TaskInstance:
    cost = Costs((Cost(5_930_000, "USD"),)).to_json()
    manifest = {**MANIFEST, "images": [IMAGE] * count, "cost": cost}
    result = Result.from_manifest(manifest, prompt="a [fox](https://evil)", aws_conn_id=None)
    return TaskInstance(result.to_xcom())


def test_images_are_numbered_and_linked() -> None:
    numbers, _, row = pictures(made(3), "candidates").splitlines()[:3]

    assert numbers == "| **1** | **2** | **3** |"
    place = "posters/manual__2026-01-01T00%3A00%3A00%2B00%3A00/candidates/-1/2"
    assert row.endswith(f"[![Image 3](/jojokey/thumbnails/{place}?width=640)](/jojokey/images/{place}) |")


def test_body_has_the_cost_but_no_prompt_or_s3_link() -> None:
    told = pictures(made(2), "candidates")

    assert told.endswith(" · ≈ USD 0.0059 · 205 tokens")
    assert "evil" not in told
    assert "s3://" not in told
    assert "http" not in told


def test_paths_follow_the_base_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://example.org/team/airflow/")

    assert "(/team/airflow/jojokey/thumbnails/posters/" in pictures(made(1), "candidates")


@pytest.mark.parametrize("xcom", [None, {}, {"version": 1, "images": "x"}, {"images": [IMAGE]}])
def test_body_without_images_says_so(xcom: Any) -> None:
    assert "has no images" in pictures(TaskInstance(xcom), "candidates")


def test_feedback_is_shown_literally() -> None:
    assert escape("![x](https://evil/x.png)\n# <b>*red*") == (
        r"\!\[x\]\(https\:\/\/evil\/x\.png\) \# \<b\>\*red\*".replace(r"\/", "/")
    )


@given(st.text())
def test_escaped_text_is_one_line_without_bare_marks(text: str) -> None:
    told = escape(text)

    assert "\n" not in told
    bare = [
        one for index, one in enumerate(told) if one in "[]<>!*`" and (not index or told[index - 1] != "\\")
    ]
    assert not bare
