"""One try of a batch in a separate process, which tests terminate or kill."""

from __future__ import annotations

import json
import logging
import resource
import signal
import sys
from types import SimpleNamespace
from typing import Any

from airflow_provider_jojokey.exceptions import JojoKeyError
from airflow_provider_jojokey.hooks import jojokey as hooks
from airflow_provider_jojokey.operators.jojokey import GenerateImageBatchOperator
from airflow_provider_jojokey.payments import context, reconcile


def main() -> None:
    job = json.loads(sys.stdin.readline())
    logging.basicConfig(level=logging.INFO)
    for name in ("botocore", "urllib3", "boto3"):
        logging.getLogger(name).setLevel(logging.ERROR)
    context.LOG_DELAY = reconcile.LOG_DELAY = job.get("log_delay", 0.5)
    hooks.JojoKeyHook.stop.__defaults__ = (job.get("grace", hooks.STOP_GRACE),)
    if largest := job.get("largest_file"):
        sys.dont_write_bytecode = True
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY))
    pushed: dict[str, Any] = {}
    ti = SimpleNamespace(
        dag_id="campaign",
        run_id="monday",
        task_id="batch",
        map_index=-1,
        try_number=job["try_number"],
        xcom_push=pushed.__setitem__,
    )
    operator = GenerateImageBatchOperator(task_id="batch", s3_bucket="posters", **job["arguments"])
    signal.signal(signal.SIGTERM, lambda *_: operator.on_kill())  # as Airflow's task runner does
    end: dict[str, Any] = {}
    try:
        end["result"] = operator.execute({"ti": ti})  # type: ignore[typeddict-item]
    except JojoKeyError as error:
        end |= {"error": type(error).__name__, "message": str(error)}
    print(json.dumps({**end, "pushed": pushed}), flush=True)


if __name__ == "__main__":
    main()
