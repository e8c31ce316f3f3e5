"""Every kind of task that the Images tab knows, in one run."""

from __future__ import annotations

from datetime import datetime

from airflow.sdk import DAG, Param, task

from airflow_provider_jojokey.operators.batch import GenerateImageBatchOperator
from airflow_provider_jojokey.operators.jojokey import GenerateImageOperator

PLACE = "s3://posters/album/{{ run_id | replace(':', '-') }}"
ITEMS = 14

with DAG("album", schedule=None, start_date=datetime(2026, 1, 1)):
    GenerateImageOperator(
        task_id="pair", prompt="Two herons", s3_key=f"{PLACE}/pair-{{index}}.png", n=2, max_cost_per_run=1
    )
    GenerateImageOperator.partial(task_id="mapped", s3_key=f"{PLACE}/{{{{ ti.map_index }}}}.png").expand(
        prompt=["A first moon", "A second moon"]
    )
    GenerateImageBatchOperator(
        task_id="batch",
        requests=[
            {"prompt": f"Tile {number}", "s3_key": f"{PLACE}/tile-{number}.png"} for number in range(ITEMS)
        ],
    )

    @task
    def words() -> str:
        """Return a value that is not a result."""
        return "no image"

    words()

with DAG(
    "single", schedule=None, start_date=datetime(2026, 1, 1), params={"prompt": Param("", type="string")}
):
    GenerateImageOperator(
        task_id="image",
        prompt="{{ params.prompt }}",
        s3_key="s3://posters/single/{{ run_id | replace(':', '-') }}.png",
    )

with DAG("slow", schedule=None, start_date=datetime(2026, 1, 1)):
    GenerateImageBatchOperator(
        task_id="batch",
        requests=[
            {"prompt": f"Slow tile {number} [sandbox: delay=12]", "s3_key": f"{PLACE}/slow-{number}.png"}
            for number in range(3)
        ],
        max_in_flight=1,
    )
