"""One task in a separate process, which tests terminate with SIGTERM."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from types import SimpleNamespace
from typing import Any

from airflow_provider_jojokey.batch import runner
from airflow_provider_jojokey.exceptions import JojoKeyError
from airflow_provider_jojokey.hooks import jojokey as hooks
from airflow_provider_jojokey.operators import stopping
from airflow_provider_jojokey.operators.jojokey import GenerateImageBatchOperator, GenerateImageOperator


def main() -> None:
    job = json.loads(sys.stdin.readline())
    logging.basicConfig(level=logging.INFO)
    for name in ("botocore", "urllib3", "boto3"):
        logging.getLogger(name).setLevel(logging.ERROR)
    hooks.JojoKeyHook.stop.__defaults__ = (job["grace"],)
    stopping.LIMIT, stopping.RECORDING = job["limit"], 1.0
    runner.LIMIT, runner.RECORDING = job["limit"], 1.0
    pushed: dict[str, Any] = {}
    ti = SimpleNamespace(
        dag_id="dag",
        run_id=job["run_id"],
        task_id="task",
        map_index=-1,
        try_number=job["try_number"],
        xcom_push=pushed.__setitem__,
    )
    kind = GenerateImageBatchOperator if job["batch"] else GenerateImageOperator
    operator = kind(task_id="task", s3_bucket="posters", **job["arguments"])
    told_at: list[float] = []

    def on_term(*_: object) -> None:  # as in Airflow's task runner
        told_at.append(time.monotonic())
        operator.on_kill()

    signal.signal(signal.SIGTERM, on_term)
    end: dict[str, Any] = {}
    try:
        end["result"] = operator.execute({"ti": ti})  # type: ignore[typeddict-item]
    except JojoKeyError as error:
        end |= {"error": type(error).__name__, "message": str(error), "billed": error.billed}
    if told_at:
        end["seconds"] = time.monotonic() - told_at[0]
    print(json.dumps({**end, "pushed": pushed}), flush=True)
    os._exit(0)  # as a task's process in Airflow


if __name__ == "__main__":
    main()
