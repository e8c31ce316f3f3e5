"""Generate one prompt in five sizes, with a mapped task per size.

The grid labels each task with its size. To limit the requests of all Dags, create a pool with as many slots as JojoKey
accepts concurrently, `airflow pools set jojokey 8 "Images in flight"`, and set `pool="jojokey"` below.
"""

from __future__ import annotations

from datetime import datetime

from airflow.sdk import DAG, Param

from airflow_provider_jojokey.operators.jojokey import GenerateImageOperator

SIZES = {
    "square": "1024x1024",
    "portrait": "1024x1536",
    "landscape": "1536x1024",
    "story": "864x1536",
    "banner": "1536x512",
}

with DAG(
    dag_id="poster_sizes",
    description="Generate one prompt in five sizes, with a mapped task per size.",
    schedule=None,
    start_date=datetime(2026, 1, 1),
    catchup=False,
    doc_md=__doc__,
    tags=["jojokey", "poster", "mapped"],
    params={
        "prompt": Param(
            "A lighthouse in the fog, two colours, generous margins",
            type="string",
            title="Prompt",
            description="What all posters show. At list prices, a run costs about USD 0.04.",
        ),
    },
):
    GenerateImageOperator.partial(
        task_id="poster",
        prompt="{{ params.prompt }}",
        s3_bucket="{{ var.value.get('posters_bucket', 'posters') }}",
        map_index_template="{{ task.s3_key.rpartition('/')[2].partition('.')[0] }}, {{ task.size }}",
        max_active_tis_per_dagrun=4,
        retries=3,
    ).expand_kwargs(
        [
            {"size": size, "s3_key": "sizes/{{ run_id | replace(':', '-') }}/" + name + ".{ext}"}
            for name, size in SIZES.items()
        ]
    )
