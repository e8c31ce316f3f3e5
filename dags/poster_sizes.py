"""One prompt, many sizes: a mapped task for each, named after its size in the grid.

A pool of your own, with as many slots as JojoKey may be asked for at once, keeps mapped tasks of all Dags within
the gateway's limit: `airflow pools set jojokey 8 "Images that are made at a time"`, and then `pool="jojokey"` below.
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
    description="One prompt in five sizes, a mapped task each.",
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
            description="What all of them show.",
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
