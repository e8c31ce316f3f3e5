"""GenerateImageOperator in a real Airflow, against real servers."""

from __future__ import annotations

import hashlib
import io
import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from airflow_provider_jojokey.operators.jojokey import GenerateImageOperator
from airflow_provider_jojokey.results import XCOM_KEY, Result

SINGLE_IMAGE = """
    GenerateImageOperator(
        task_id="image", prompt="{prompt}", s3_bucket="posters", s3_key="{key}", {more}
    )
"""


def single_image(prompt: str = "a fox in the snow", key: str = "fox.png", more: str = "") -> str:
    return SINGLE_IMAGE.format(prompt=prompt, key=key, more=more)


def test_task_stores_image_and_pushes_keys_and_usage(airflow: Any, gateway: Any, any_store: Any) -> None:
    run = airflow.run("single", single_image(more='size="1536x1024", quality="medium"'))

    assert run.state == "success"
    assert run.xcom("keys") == ["fox.png"]
    (billed,) = gateway.charges
    assert run.xcom("usage")["total_tokens"] == billed.total_tokens
    manifest = run.xcom()
    (image,) = manifest["images"]
    stored = any_store.objects()["fox.png"]
    assert Image.open(io.BytesIO(stored)).size == (1536, 1024) == (image["width"], image["height"])
    assert image == {
        "uri": "s3://posters/fox.png",
        "bucket": "posters",
        "key": "fox.png",
        "content_type": "image/png",
        "width": 1536,
        "height": 1024,
        "bytes": len(stored),
        "sha256": hashlib.sha256(stored).hexdigest(),
    }
    assert manifest["version"] == 1
    assert manifest["request_id"] == billed.request_id
    assert (manifest["model"], manifest["size"], manifest["quality"]) == (
        "gpt-image-2",
        "1536x1024",
        "medium",
    )
    assert manifest["reused"] is False
    page = (Path(__file__).parents[2] / "docs" / "reference" / "results.md").read_text(encoding="utf-8")
    sample = json.loads(page.partition("```json\n")[2].partition("```")[0])
    assert set(manifest) == set(sample)
    assert set(image) == set(sample["images"][0])
    assert manifest["receipt"] == "s3://posters/_jojokey/fox.png.json"


def test_task_reports_its_images_to_the_ui(airflow: Any, gateway: Any, store: Any) -> None:
    run = airflow.run("shown", single_image("a fox <b>in</b> the snow", more="n=2"))

    result = Result.from_xcom(run.xcom(XCOM_KEY))
    assert result is not None
    assert (result.state, result.count, result.prompt) == ("complete", 2, "a fox <b>in</b> the snow")
    assert [image.key for image in result.images] == run.xcom("keys")
    assert result.usage == run.xcom("usage")
    assert result.receipt == run.xcom()["receipt"]
    assert result.aws_conn_id == "aws_default"
    assert result.seconds == run.xcom()["seconds"]


def test_failed_task_reports_cost_and_images_to_the_ui(airflow: Any, gateway: Any, store: Any) -> None:
    run = airflow.run("failed_for_ui", single_image("a fox [sandbox: truncated]", more="n=2"))

    result = Result.from_xcom(run.xcom(XCOM_KEY))
    assert run.state == "failed"
    assert result is not None
    assert (result.state, result.error) == ("failed", "JojoKeyReplyError")
    assert [image.key for image in result.images] == ["fox-0.png"]
    assert "fox-0.png" in store.objects()
    assert (
        result.usage["total_tokens"] == gateway.charges[0].total_tokens == run.xcom("usage")["total_tokens"]
    )
    assert result.message is not None


def test_object_has_content_type_and_labels(airflow: Any, gateway: Any, store: Any) -> None:
    run = airflow.run("labelled", single_image(key="海报.webp", more='output_format="webp"'))

    head = store.client.head_object(Bucket="posters", Key="海报.webp")
    assert head["ContentType"] == "image/webp"
    assert head["Metadata"]["dag-id"] == "labelled"
    assert head["Metadata"]["run-id"] == run.run_id
    assert head["Metadata"]["request-id"] == gateway.charges[0].request_id


def test_several_images_have_different_keys(airflow: Any, gateway: Any, any_store: Any) -> None:
    run = airflow.run("several", single_image(key="hero.png", more="n=3"))

    assert run.xcom("keys") == ["hero-0.png", "hero-1.png", "hero-2.png"]
    assert len(gateway.charges) == 1
    assert {"hero-0.png", "hero-1.png", "hero-2.png"} < set(any_store.objects())


def test_index_and_ext_are_filled_in(airflow: Any, gateway: Any, store: Any) -> None:
    run = airflow.run(
        "filled", single_image(key="a/{index}.{ext}", more='n=2, output_format="jpeg"').replace("{{", "{")
    )

    assert run.xcom("keys") == ["a/0.jpg", "a/1.jpg"]


def test_mapped_tasks_are_labeled_by_their_image(airflow: Any, gateway: Any, any_store: Any) -> None:
    run = airflow.run(
        "mapped",
        """
        GenerateImageOperator.partial(task_id="image", s3_bucket="posters").expand_kwargs(
            [{"prompt": "a cat", "s3_key": "cat.png"}, {"prompt": "a dog", "s3_key": "dog.png"}]
        )
        """,
    )

    assert run.state == "success"
    assert [run.xcom("keys", map_index=index) for index in (0, 1)] == [["cat.png"], ["dog.png"]]
    assert [run.labels["image", index] for index in (0, 1)] == ["cat.png", "dog.png"]
    assert sorted(request.prompt for request in gateway.requests) == ["a cat", "a dog"]


def test_mapped_tasks_with_one_key_pay_once(airflow: Any, gateway: Any, any_store: Any) -> None:
    run = airflow.run(
        "clash",
        """
        GenerateImageOperator.partial(task_id="image", s3_bucket="posters", s3_key="same.png", retries=3).expand(
            prompt=["a cat", "a dog"]
        )
        """,
    )

    assert sorted(run.states.values()) == ["failed", "success"]
    assert len(gateway.requests) == 1


def test_prompt_can_be_a_file_next_to_the_dag(airflow: Any, gateway: Any, store: Any) -> None:
    airflow.write("hero.prompt", "A hero, drawn on {{ logical_date.strftime('%A') }}\n")

    run = airflow.run("from_file", single_image(prompt="hero.prompt"))

    assert run.state == "success"
    day = datetime.now(UTC).strftime("%A")
    assert [request.prompt for request in gateway.requests] == [f"A hero, drawn on {day}"]


def test_templates_render_numbers_and_missing_options(airflow: Any, gateway: Any, store: Any) -> None:
    run = airflow.run(
        "templated",
        single_image(
            key="{{ params.name }}.png",
            more='n="{{ params.n }}", background="{{ params.none }}", output_compression="{{ params.none }}"',
        ),
        params={"n": 2, "none": None, "name": "x"},
    )

    assert run.xcom("keys") == ["x-0.png", "x-1.png"]
    assert "background" not in gateway.requests[0].body


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ('size="{{ params.bad }}"', "nearest valid size is '1008x1008'"),
        ('n="{{ 11 }}"', "whole number from 1 to 10"),
        ("n=\"{{ 'many' }}\"", "must be a whole number"),
        ("reuse=\"{{ 'maybe' }}\"", "run, always, never"),
    ],
)
def test_invalid_rendered_value_fails_before_sending(
    airflow: Any, gateway: Any, store: Any, argument: str, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    run = airflow.run("wrong", single_image(more=f"{argument}, retries=3"), params={"bad": "1000x1000"})

    assert run.state == "failed"
    assert run.tries["image", -1] == 1
    assert gateway.requests == ()
    assert store.objects() == {}
    assert message in capfd.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": "1000x1000"}, "'1008x1008'"),
        ({"size": "1024×1024"}, "plain x"),  # noqa: RUF001
        ({"n": 0}, "from 1 to 10"),
        ({"prompt": ""}, "empty"),
        ({"prompt": None}, "prompt is empty"),
        ({"max_tokens": -1}, "max_tokens must be a whole number from 0"),
        ({"max_cost": Decimal("NaN")}, "max_cost is not a number"),
        ({"output_compression": 50}, "lossless"),
        ({"output_format": "jpeg", "background": "transparent"}, "no transparency"),
        ({"s3_key": "folder/"}, "does not name an object"),
        ({"s3_key": "_jojokey/x.png"}, "receipts"),
        ({"s3_key": "s3://other/x.png"}, "each name a bucket"),
        ({"reuse": "sometimes"}, "run, always, never"),
        ({"on_unknown_outcome": "shrug"}, "fail, regenerate"),
        ({"extra_body": {"n": 3}}, "use the argument"),
    ],
)
def test_invalid_literal_fails_when_the_dag_is_parsed(arguments: dict[str, Any], message: str) -> None:
    good = {"task_id": "image", "prompt": "x", "s3_bucket": "b", "s3_key": "x.png"}
    with pytest.raises(ValueError, match=message):
        GenerateImageOperator(**{**good, **arguments})


def test_upstream_values_are_not_checked_at_parsing() -> None:
    from airflow.sdk import DAG, task

    with DAG("given", schedule=None):

        @task
        def words() -> str:
            return "x"

        operator = GenerateImageOperator(
            task_id="image", prompt=words(), s3_bucket="{{ var.value.b }}", s3_key="{{ ds }}/", size="{{ s }}"
        )
    assert operator.size == "{{ s }}"


def test_transient_failure_is_retried_and_paid_once(airflow: Any, gateway: Any, store: Any) -> None:
    run = airflow.run(
        "passing",
        single_image(
            "[sandbox: no_channel times=3] a fox", more="retries=3, retry_delay=timedelta(seconds=0)"
        ),
    )

    assert run.state == "success"
    assert len(gateway.requests) == 4
    assert len(gateway.charges) == 1
    assert run.tries["image", -1] == 4
    outcomes = [attempt["outcome"] for attempt in store.receipt("fox.png")["attempts"]]
    assert outcomes == ["not_billed", "not_billed", "not_billed", "complete"]


def test_permanent_failure_is_not_retried(airflow: Any, gateway: Any, store: Any) -> None:
    run = airflow.run("hopeless", single_image("[sandbox: wallet_empty] a fox", more="retries=5"))

    assert run.state == "failed"
    assert len(gateway.requests) == 1
    assert run.tries["image", -1] == 1


def test_reused_image_of_another_run_reports_zero_usage(airflow: Any, gateway: Any, any_store: Any) -> None:
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session
    from sqlalchemy import select

    day = datetime(2026, 3, 1, tzinfo=UTC)
    path = airflow.write(
        "cleared.py",
        """
        from airflow.sdk import DAG
        from airflow_provider_jojokey.operators.jojokey import GenerateImageOperator
        with DAG("cleared", schedule=None):
            GenerateImageOperator(task_id="image", prompt="a fox", s3_bucket="posters", s3_key="fox.png", reuse="always")
        """,
    )
    first = airflow.run_file("cleared", path, logical_date=day)
    second = airflow.run_file("cleared", path, logical_date=day)

    assert len(gateway.requests) == 1
    assert second.xcom()["reused"] is True
    assert second.xcom("keys") == first.xcom("keys")
    assert first.run_id != second.run_id  # `dag.test` creates another run of the same day
    assert second.xcom("usage") == {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
    with create_session() as session:
        assert session.scalar(select(DagRun).filter_by(run_id=second.run_id)) is not None


def test_deferred_task_has_the_same_result(airflow: Any, gateway: Any, any_store: Any) -> None:
    run = airflow.run("deferred", single_image(more="deferrable=True, n=2"))

    assert run.state == "success"
    assert run.xcom("keys") == ["fox-0.png", "fox-1.png"]
    assert run.xcom("usage")["total_tokens"] == gateway.charges[0].total_tokens
    assert run.xcom()["images"][0]["content_type"] == "image/png"


def test_deferred_task_fails_with_the_same_error(
    airflow: Any, gateway: Any, store: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    run = airflow.run(
        "deferred_failure", single_image("[sandbox: wallet_empty] x", more="deferrable=True, retries=2")
    )

    assert run.state == "failed"
    assert len(gateway.requests) == 1
    assert "JojoKeyQuotaError" in capfd.readouterr().out


def test_do_xcom_push_false_pushes_nothing(airflow: Any, gateway: Any, store: Any) -> None:
    run = airflow.run("quiet", single_image(more="do_xcom_push=False"))

    assert run.state == "success"
    assert [
        key for _, _, key in run.xcoms if not key.startswith("_link_")
    ] == []  # Airflow pushes links itself
