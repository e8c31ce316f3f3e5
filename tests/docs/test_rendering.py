"""Templates in examples render in all runs, including runs without a logical date."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jinja2
import pytest
from airflow.sdk.api.datamodels._generated import DagRun, TIRunContext

from tests.docs.blocks import DAGS, ROOT, example
from tests.support.airflow import dags_of

SHIPPED = sorted((ROOT / "dags").glob("*.py"))


def context_of(dag: Any, task: Any) -> dict[str, Any]:
    """Return Airflow's own context of a run without a logical date."""
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    now = datetime(2026, 11, 28, 12, 30, tzinfo=UTC)
    run = DagRun.model_construct(
        dag_id=dag.dag_id,
        run_id="asset_triggered__2026-11-28T12:30:00+00:00",
        logical_date=None,
        data_interval_start=None,
        data_interval_end=None,
        run_after=now,
        start_date=now,
        end_date=None,
        clear_number=0,
        run_type="asset_triggered",
        state="running",
        conf={},
        consumed_asset_events=[],
        partition_key=None,
    )
    server = TIRunContext.model_construct(
        dag_run=run, max_tries=0, task_reschedule_count=0, variables=[], connections=[]
    )
    instance = RuntimeTaskInstance.model_construct(
        id=uuid.uuid4(),
        task_id=task.task_id,
        dag_id=dag.dag_id,
        run_id=run.run_id,
        try_number=1,
        map_index=-1,
        task=task,
    )
    instance._ti_context_from_server = server
    instance._cached_template_context = None
    context = dict(instance.get_template_context())
    # XComs and Variables would need a database.
    return {
        **context,
        "ti": SimpleNamespace(xcom_pull=lambda **_: None),
        "var": SimpleNamespace(value={}, json={}),
    }


def templates(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        if "{{" in value or "{%" in value:
            yield value
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from templates(entry)
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from templates(entry)


def templates_of(task: Any) -> Iterator[str]:
    """Yield the templates in a task's arguments; for a mapped task also those in its expanded values."""
    if hasattr(task, "partial_kwargs"):
        # The label is rendered after the task has run, for the mapped task itself.
        yield from templates({**task.partial_kwargs, "map_index_template": None})
        for name in ("expand_input", "op_kwargs_expand_input"):
            yield from templates(getattr(getattr(task, name, None), "value", None))
    else:
        for name in task.template_fields:
            yield from templates(getattr(task, name, None))


def rendered(path: Path) -> list[str]:
    """Render all templates of the Dags in a file."""
    found = []
    for dag in dags_of(path).values():
        for task in dag.tasks:
            context = context_of(dag, task)
            environment = dag.get_template_env()
            found += [environment.from_string(template).render(context) for template in templates_of(task)]
    return found


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_example_dag_renders_without_a_logical_date(path: Path) -> None:
    texts = rendered(path)
    assert path.stem == "poster_publish" or texts
    assert not any("{{" in text for text in texts)


@pytest.mark.parametrize("block", [example(block) for block in DAGS])
def test_dag_in_the_docs_renders_without_a_logical_date(block: Any, tmp_path: Path) -> None:
    (tmp_path / "example.py").write_text(block.text, encoding="utf-8")
    assert not any("{{" in text for text in rendered(tmp_path / "example.py"))


@pytest.mark.parametrize("template", ["{{ ds }}", "{{ logical_date }}", "{{ data_interval_start }}"])
@pytest.mark.parametrize("mapped", [True, False])
def test_template_that_needs_a_logical_date_is_found(template: str, mapped: bool, tmp_path: Path) -> None:
    task = (
        f"GenerateImageOperator.partial(task_id='image', prompt='a fox').expand(s3_key=['s3://posters/{template}.png'])"
        if mapped
        else f"GenerateImageOperator(task_id='image', prompt='a fox', s3_key='s3://posters/{template}.png')"
    )
    (tmp_path / "example.py").write_text(
        "from airflow.sdk import DAG\n"
        "from airflow_provider_jojokey.operators.jojokey import GenerateImageOperator\n"
        f"with DAG('example', schedule=None):\n    {task}\n"
    )
    with pytest.raises(jinja2.UndefinedError):
        rendered(tmp_path / "example.py")
