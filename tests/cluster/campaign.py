"""The Dag of the cluster test: 200 posters, most in batches, some by deferred tasks."""

from __future__ import annotations

from datetime import datetime, timedelta

from airflow.sdk import DAG

from airflow_provider_jojokey.operators.jojokey import GenerateImageBatchOperator, GenerateImageOperator

BATCHES, ITEMS, DEFERRED = 4, 40, 40

with DAG("campaign", schedule=None, start_date=datetime(2026, 1, 1), max_active_tasks=48):
    options = {
        "s3_bucket": "posters",
        "on_unknown_outcome": "{{ var.value.get('on_unknown_outcome', 'fail') }}",
        "retries": 5,
        "retry_delay": timedelta(seconds=2),
    }
    GenerateImageBatchOperator.partial(task_id="batch", max_in_flight=6, **options).expand(
        requests=[
            [
                {
                    "prompt": f"batch {batch} poster {item} [sandbox: delay=1]",
                    "s3_key": f"batch/{batch}/{item}.png",
                }
                for item in range(ITEMS)
            ]
            for batch in range(BATCHES)
        ]
    )
    GenerateImageOperator.partial(task_id="deferred", deferrable=True, **options).expand_kwargs(
        [
            # In sequence, so that some are complete and some in flight whenever the triggerer is killed.
            {
                "prompt": f"deferred poster {item} [sandbox: delay={1 + item}]",
                "s3_key": f"deferred/{item}.png",
            }
            for item in range(DEFERRED)
        ]
    )
