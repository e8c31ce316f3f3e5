"""One campaign in a process of its own: ``GenerateImageBatchOperator.execute``, measured.

It takes one line of JSON, ``{"images": …, "in_flight": …, "delays": [from, to], "run": …}``, and answers
with wall time, CPU and the growth of its peak memory.
"""

from __future__ import annotations

import json
import logging
import os
import random
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3  # noqa: F401 - so that what is measured are images, not imports
import requests  # noqa: F401
from airflow.providers.amazon.aws.hooks.s3 import S3Hook  # noqa: F401

from airflow_provider_jojokey.batch import hook, runner, store  # noqa: F401
from airflow_provider_jojokey.img2 import client  # noqa: F401
from airflow_provider_jojokey.operators.batch import GenerateImageBatchOperator
from benchmarks._contenders import _status


def campaign(run: str, images: int, in_flight: int, delays: list[float]) -> tuple[dict[str, Any], float]:
    """Run one batch; return its result and the seconds that its images take, one after the other."""
    chance = random.Random(7)
    seconds = [round(chance.uniform(*delays), 3) for _ in range(images)]
    operator = GenerateImageBatchOperator(
        task_id="posters",
        s3_bucket="images",
        max_in_flight=in_flight,
        requests=[
            {"prompt": f"poster {index} [takes {one} s]", "s3_key": f"{run}/{index:04}.png"}
            for index, one in enumerate(seconds)
        ],
    )
    ti = SimpleNamespace(
        dag_id="campaign",
        run_id=run,
        task_id="posters",
        map_index=-1,
        try_number=1,
        xcom_push=lambda *_: None,
    )
    return operator.execute({"ti": ti}), sum(seconds)  # type: ignore[typeddict-item]


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Airflow's log goes to standard output
    logging.basicConfig(level=logging.INFO)
    for name in ("botocore", "urllib3", "boto3", "airflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
    print(json.dumps({"ready": True}), flush=True, file=answers)
    for line in sys.stdin:
        job = json.loads(line)
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        cpu, wall = time.process_time(), time.monotonic()
        result, seconds = campaign(job["run"], job["images"], job["in_flight"], job["delays"])
        wall = time.monotonic() - wall
        answer = {
            "made": result["made"],
            "wall": wall,
            "ideal": seconds / min(job["in_flight"], job["images"]),
            "cpu_ms_per_image": 1000 * (time.process_time() - cpu) / job["images"],
            "grown": _status("VmHWM") - before,
            "threads": threading.active_count(),
        }
        print(json.dumps(answer), flush=True, file=answers)


if __name__ == "__main__":
    main()
