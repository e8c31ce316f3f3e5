"""Airflow stores and renders the arguments that a task has, and not those that it leaves at their defaults."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.sdk import DAG

from airflow_provider_jojokey.operators.jojokey import GenerateImageBatchOperator, GenerateImageOperator
from tests.support.rendered import shown

try:
    from airflow.serialization.serialized_objects import DagSerialization
except ImportError:  # before Airflow 3.2
    from airflow.serialization.serialized_objects import SerializedDAG as DagSerialization

IMAGE = {"task_id": "image", "prompt": "a fox", "s3_key": "fox.png"}


def serialized(dag: DAG) -> dict[str, Any]:
    (task,) = DagSerialization.to_dict(dag)["dag"]["tasks"]
    return dict(task["__var"])


@pytest.mark.parametrize(
    ("given", "listed"),
    [
        ({}, []),
        ({"n": 1, "reuse": "run", "replace": False, "model": None, "aws_conn_id": None}, []),
        ({"n": 2, "replace": True, "max_cost": 0}, ["n", "max_cost", "replace"]),
        ({"n": "{{ params.n }}", "extra_body": {}}, ["n", "extra_body"]),
    ],
)
def test_serialized_dag_has_only_the_arguments_of_its_task(given: dict[str, Any], listed: list[str]) -> None:
    with DAG("posters", schedule=None) as dag:
        GenerateImageOperator(**{"aws_conn_id": None} | IMAGE | given)

    task = serialized(dag)
    always = ["prompt", "s3_key", "size", "quality"]
    assert sorted(task["template_fields"]) == sorted(always + listed)
    assert set(GenerateImageOperator.template_fields) & set(task) == set(always + listed)


def test_argument_that_is_set_later_is_rendered() -> None:
    with DAG("posters", schedule=None):
        task = GenerateImageOperator(**IMAGE)
    task.background = "{{ 'transparent' }}"
    task.render_template_fields({"ti": None})

    assert task.background == "transparent"


def test_upstream_value_that_is_set_later_makes_a_dependency() -> None:
    with DAG("posters", schedule=None):
        first = GenerateImageOperator(**IMAGE | {"task_id": "first"})
        task = GenerateImageOperator(**IMAGE)
        task.extra_body = first.output

    assert task.upstream_task_ids == {"first"}


def test_subclass_can_add_templated_arguments() -> None:
    class Poster(GenerateImageOperator):
        template_fields = (*GenerateImageOperator.template_fields, "city")

        def __init__(self, *, city: str, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.city = city

    with DAG("posters", schedule=None) as dag:
        task = Poster(**IMAGE, city="{{ 'Oslo' }}", model="{{ 'gpt-image-2' }}")
    task.render_template_fields({"ti": None})

    assert (task.city, task.model) == ("Oslo", "gpt-image-2")
    assert "city" in serialized(dag)["template_fields"]


def test_every_argument_of_a_mapped_task_is_rendered() -> None:
    with DAG("posters", schedule=None) as dag:
        GenerateImageBatchOperator.partial(task_id="batch", n="{{ 2 }}").expand(requests=[[], []])

    assert set(serialized(dag)["template_fields"]) == set(GenerateImageBatchOperator.template_fields)


def test_ui_shows_a_template_that_renders_to_the_default(airflow: Any, gateway: Any, store: Any) -> None:
    run = airflow.run(
        "default",
        """
        GenerateImageOperator(
            task_id="image", prompt="a fox", s3_bucket="posters", s3_key="fox.png", n=1,
            reuse="{{ 'run' }}", background="{{ params.none }}",
        )
        """,
        params={"none": ""},
    )

    fields = shown("default", run.run_id, "image")
    assert (fields["reuse"], fields["background"], fields["quality"]) == ("run", "", "low")
    assert "n" not in fields
