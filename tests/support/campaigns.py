"""Dags with one batch task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.airflow import Airflow, Run, Store

CODE = "timedelta("


class Campaign:
    """Runs Dags with one task, ``batch``, whose requests come from an upstream task."""

    def __init__(self, airflow: Airflow, store: Store) -> None:
        self.airflow = airflow
        self.store = store

    def write(self, dag_id: str, requests: Any, **arguments: Any) -> Path:
        arguments = {"s3_bucket": "posters", **arguments}
        options = ", ".join(
            f"{name}={value if str(value).startswith(CODE) else repr(value)}"
            for name, value in arguments.items()
        )
        return self.airflow.write(
            f"{dag_id}.py",
            f"""
            import json
            from datetime import datetime, timedelta
            from airflow.sdk import DAG, task
            from airflow_provider_jojokey.operators.jojokey import GenerateImageBatchOperator
            with DAG({dag_id!r}, schedule=None, start_date=datetime(2026, 1, 1)):
                @task
                def rows():
                    return json.loads({json.dumps(requests)!r})
                GenerateImageBatchOperator(task_id="batch", requests=rows(), {options})
            """,
        )

    def run(self, dag_id: str, requests: Any, **arguments: Any) -> Run:
        return self.airflow.run_file(dag_id, self.write(dag_id, requests, **arguments))

    def manifest(self, run: Run) -> list[dict[str, Any]]:
        """Return the lines of the manifest that the task's XCom names."""
        bucket, _, key = run.xcom("jojokey_images", "batch")["manifest"].removeprefix("s3://").partition("/")
        body = self.store.client.get_object(Bucket=bucket, Key=key)["Body"].read()
        return [json.loads(line) for line in body.splitlines()]


def posters(count: int, prompt: str = "a poster, number {}", **more: Any) -> list[dict[str, Any]]:
    """Return requests for ``count`` posters."""
    return [
        {"prompt": prompt.format(number), "s3_key": f"posters/{number:03}.png", **more}
        for number in range(count)
    ]
