"""The XCom value for the UI: what tasks write, and what the UI accepts."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_jojokey import results
from airflow_provider_jojokey.cost import NANOS, Cost, Costs
from airflow_provider_jojokey.exceptions import JojoKeyReplyError
from airflow_provider_jojokey.links import paths
from airflow_provider_jojokey.results import Result
from tests.support.manifests import IMAGE, MANIFEST


def value() -> dict[str, Any]:
    result = Result.from_manifest(MANIFEST, prompt="a fox", aws_conn_id="aws_default")
    return copy.deepcopy(result.to_xcom())


def test_result_survives_the_xcom() -> None:
    result = Result.from_xcom(json.loads(json.dumps(value())))

    assert result is not None
    assert result.state == "complete"
    assert (result.prompt, result.count, result.seconds, result.aws_conn_id) == (
        "a fox",
        1,
        9.7,
        "aws_default",
    )
    assert result.usage["total_tokens"] == 205
    (image,) = result.images
    assert (image.uri, image.name, image.width, image.height) == (IMAGE["uri"], "fox.png", 1024, 1536)


def test_failure_names_its_cost_and_received_images() -> None:
    error = JojoKeyReplyError("The reply broke off.", request_id="2026", billed="yes")
    error.usage, error.images, error.receipt = {"total_tokens": 205}, [IMAGE], MANIFEST["receipt"]

    failed = Result.from_error(
        error, prompt="a fox", aws_conn_id=None, options={"model": None, "size": "auto"}
    )
    result = Result.from_xcom(failed.to_xcom())

    assert result is not None
    assert (result.state, result.error, result.size) == ("failed", "JojoKeyReplyError", "auto")
    assert result.billed == "yes"
    assert result.usage == {"total_tokens": 205}
    assert len(result.images) == 1
    assert result.message is not None
    assert "broke off" in result.message


@pytest.mark.parametrize(
    ("facts", "batch"),
    [
        ({}, False),
        ({"batch": False}, False),
        ({"batch": "yes"}, False),
        ({"batch": True}, True),  # its manifest could not be stored
        ({"manifest": "s3://posters/_jojokey/m.jsonl"}, True),  # written before "batch"
    ],
)
def test_batch_is_recognized_with_and_without_manifest(facts: dict[str, Any], batch: bool) -> None:
    values = {name: entry for name, entry in value().items() if name != "batch"}
    result = Result.from_xcom({**values, **facts})

    assert result is not None
    assert result.batch is batch
    assert Result.from_xcom(result.to_xcom()) == result


FEE = Costs((Cost(NANOS // 20, "USD", approximate=False),))


@pytest.mark.parametrize(
    ("facts", "tokens"),
    [
        ({"usage": {"total_tokens": 210}}, 210),
        ({"usage": {"total_tokens": 210}, "state": "failed", "billed": "no"}, 210),  # of an earlier attempt
        ({"usage": {"total_tokens": 0}}, None),
        ({"usage": {}}, None),
        ({"usage": {"total_tokens": 0}, "reused": True}, 0),
        ({"usage": {"total_tokens": 0}, "reused": True, "cost": Costs()}, 0),
        (
            {"usage": {"total_tokens": 0}, "reused": True, "cost": Costs(unknown=1)},
            None,
        ),  # paid for by an earlier try
        ({"usage": {"total_tokens": 0}, "derived_from": "s3://b/k"}, 0),
        ({"usage": {"total_tokens": 0}, "state": "failed", "billed": "no"}, 0),
        ({"usage": {"total_tokens": 0}, "state": "failed", "billed": "no", "cost": FEE}, None),
        ({"usage": {"total_tokens": 0}, "state": "failed", "billed": "no", "cost": Costs(unknown=1)}, None),
        ({"usage": {"total_tokens": 0}, "state": "failed", "billed": "yes"}, None),
        ({"usage": {"total_tokens": 0}, "state": "failed", "billed": "unknown"}, None),
    ],
)
def test_tokens_are_unknown_unless_nothing_was_paid(facts: dict[str, Any], tokens: int | None) -> None:
    assert Result(**{"state": "complete", **facts}).tokens == tokens


def test_long_prompt_ends_with_an_ellipsis() -> None:
    result = Result.from_manifest(MANIFEST, prompt="x" * 32_000, aws_conn_id=None)

    assert len(result.prompt) == results.MAX_PROMPT
    assert result.prompt.endswith("…")


@pytest.mark.parametrize(
    "broken",
    [
        None,
        [],
        "result",
        {},
        {"version": 2},
        {"state": "other"},
        {"images": None},
        {"images": [None]},
        {"images": [{**IMAGE, "sha256": "../../etc/passwd"}]},
        {"images": [{**IMAGE, "width": -1}]},
        {"images": [{**IMAGE, "bytes": True}]},
        {"images": [{**IMAGE, "key": ""}]},
        {"images": [{**IMAGE, "bucket": ["posters"]}]},
        {"seconds": "soon"},
    ],
    ids=repr,
)
def test_invalid_value_is_not_a_result(broken: Any) -> None:
    assert Result.from_xcom({**value(), **broken} if isinstance(broken, dict) and broken else broken) is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(sorted(value())), json_values)
def test_any_value_of_a_field_is_handled(name: str, other: Any) -> None:
    result = Result.from_xcom({**value(), name: other})

    assert result is None or all(image.uri.startswith("s3://") for image in result.images)


@given(st.sampled_from(sorted(IMAGE)), json_values)
def test_any_value_of_an_image_field_is_handled(name: str, other: Any) -> None:
    result = Result.from_xcom({**value(), "images": [{**IMAGE, name: other}]})

    assert result is None or result.images[0].bytes >= 0


def test_paths_quote_run_ids() -> None:
    assert paths.tab_path("d", "manual__2026-01-01T00:00:00+00:00/x?#", "g.t", 3) == (
        "/dags/d/runs/manual__2026-01-01T00:00:00+00:00%2Fx%3F%23/tasks/g.t/mapped/3/plugin/jojokey-images"
    )
    assert paths.image_path("d", "r", "t") == "/jojokey/images/d/r/t/-1/0"
