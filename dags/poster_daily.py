"""Generate a poster every day. The date is part of the prompt, and the trigger form has the other options."""

from __future__ import annotations

from datetime import datetime, time
from typing import Any

from airflow.sdk import DAG, Asset, Param

from airflow_provider_jojokey.operators.jojokey import GenerateImageOperator


def key_of(dag_run: Any) -> str:
    """Return the S3 key: one per day, and another one for each run that a person triggers."""
    when = dag_run.logical_date or dag_run.run_after
    triggered = dag_run.run_type == "manual" and when.time() != time.min
    return str(when.strftime("daily/%Y-%m-%d-%H%M%S.{ext}" if triggered else "daily/%Y-%m-%d.{ext}"))


with DAG(
    dag_id="poster_daily",
    description="Generate a poster every day, with the date in its prompt.",
    schedule="0 6 * * *",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=4,
    doc_md=__doc__,
    tags=["jojokey", "poster"],
    user_defined_macros={"key_of": key_of},
    params={
        "theme": Param("A quiet harbour", type="string", title="Theme", description="What the poster shows."),
        "size": Param(
            "1024x1536", enum=["1024x1024", "1024x1536", "1536x1024"], title="Size", description="In pixels."
        ),
        "quality": Param(
            "low",
            enum=["low", "medium", "high"],
            title="Quality",
            description="At list prices, a poster of 1024x1536 costs about USD 0.01 (low), 0.08 (medium) or 0.32 "
            "(high).",
        ),
        "reuse": Param(
            "run",
            enum=["run", "always", "never"],
            title="Reuse",
            description="Which earlier payments count: of this run, of any run, or none.",
        ),
    },
):
    GenerateImageOperator(
        task_id="poster",
        prompt="""\
{% set day = dag_run.logical_date or dag_run.run_after -%}
{{ params.theme }}: a screen-printed poster for a {{ day.strftime("%A in %B") }}.
Three flat colours, generous margins, the date "{{ day.strftime("%-d %B %Y") }}" set small at the foot.
""",
        s3_bucket="{{ var.value.get('posters_bucket', 'posters') }}",
        s3_key="{{ key_of(dag_run) }}",
        size="{{ params.size }}",
        quality="{{ params.quality }}",
        # To pay for another poster, set the Variable `poster_redraw` to the run's ID, and clear the task.
        reuse="{{ 'never' if var.value.get('poster_redraw', '') == run_id else params.reuse }}",
        retries=3,
        outlets=[Asset("daily_poster")],
    )
