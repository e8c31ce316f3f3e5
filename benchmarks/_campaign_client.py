"""One campaign in a process of its own, measured.

It takes one line of JSON, ``{"way": …, "images": …, "in_flight": …, "delays": [from, to], "run": …}``, and
answers with wall time, CPU and the growth of its peak memory. The ways: ``ours``, that is
``GenerateImageBatchOperator.execute``; ``requests``, the vendor's example in a pool of threads; and ``openai``,
the official SDK in one. The latter two write no receipts.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import random
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3  # noqa: F401 - so that what is measured are images, not imports
import requests
from airflow.providers.amazon.aws.hooks.s3 import S3Hook

from airflow_provider_jojokey.batch import runner  # noqa: F401
from airflow_provider_jojokey.img2 import client  # noqa: F401
from airflow_provider_jojokey.operators.batch import GenerateImageBatchOperator
from benchmarks._contenders import TOKEN, _status


def ours(run: str, items: list[dict[str, str]], in_flight: int, try_number: int = 1, **limits: int) -> int:
    """Run the operator as Airflow does; return how many images were made."""
    operator = GenerateImageBatchOperator(
        task_id="posters",
        s3_bucket="images",
        max_in_flight=in_flight,
        requests=items,
        **limits,  # type: ignore[arg-type]
    )
    ti = SimpleNamespace(
        dag_id="campaign",
        run_id=run,
        task_id="posters",
        map_index=-1,
        try_number=try_number,
        xcom_push=lambda *_: None,
    )
    return int(operator.execute({"ti": ti})["made"])  # type: ignore[typeddict-item]


def in_threads(one: Any, items: list[dict[str, str]], in_flight: int) -> int:
    """Do all items in a pool of threads; return how many were done."""
    with ThreadPoolExecutor(in_flight) as pool:
        return sum(1 for _ in pool.map(one, items))


def with_requests(run: str, items: list[dict[str, str]], in_flight: int) -> int:
    """Go the way of the vendor's page: requests, ``.json()``, base64, ``put_object``."""
    api, s3 = _servers(in_flight)

    def one(item: dict[str, str]) -> None:
        answer = requests.post(
            f"{api}/v1/images/generations",
            headers={"Authorization": f"Bearer {TOKEN}"},
            json={"model": "gpt-image-2", "prompt": item["prompt"], "response_format": "b64_json"},
            timeout=120,
        )
        answer.raise_for_status()
        content = base64.b64decode(answer.json()["data"][0]["b64_json"])
        s3.put_object(Bucket="images", Key=item["s3_key"], Body=content, ContentType="image/png")

    return in_threads(one, items, in_flight)


def with_openai(run: str, items: list[dict[str, str]], in_flight: int) -> int:
    """Go the way of the official SDK: base64, ``put_object``."""
    import openai

    api, s3 = _servers(in_flight)
    sdk = openai.OpenAI(api_key=TOKEN, base_url=f"{api}/v1", max_retries=0)

    def one(item: dict[str, str]) -> None:
        answer = sdk.images.generate(model="gpt-image-2", prompt=item["prompt"])
        content = base64.b64decode(answer.data[0].b64_json)  # type: ignore[index, arg-type]
        s3.put_object(Bucket="images", Key=item["s3_key"], Body=content, ContentType="image/png")

    return in_threads(one, items, in_flight)


def _servers(in_flight: int) -> tuple[str, Any]:
    from botocore.config import Config

    api = json.loads(os.environ["AIRFLOW_CONN_JOJOKEY_DEFAULT"])["host"]
    s3 = S3Hook("aws_default")
    config = s3.config.merge(Config(max_pool_connections=in_flight))
    return api, s3.get_client_type(region_name=s3.region_name, config=config)


WAYS: dict[str, Any] = {"ours": ours, "requests": with_requests, "openai": with_openai}


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
        chance = random.Random(7)
        seconds = [round(chance.uniform(*job["delays"]), 3) for _ in range(job["images"])]
        items = [
            {"prompt": f"poster {index} [takes {one} s]", "s3_key": f"{job['run']}/{index:04}.png"}
            for index, one in enumerate(seconds)
        ]
        options: dict[str, int] = {}
        if done := job.get("done"):
            ours(job["run"], items[:done], job["in_flight"])
            options["try_number"] = 2
        if job.get("budget"):
            options["max_tokens_per_run"] = 400 * len(items)
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        cpu, wall = time.process_time(), time.monotonic()
        made = WAYS[job["way"]](job["run"], items, job["in_flight"], **options)
        wall = time.monotonic() - wall
        answer = {
            "made": made,
            "wall": wall,
            "ideal": sum(seconds) / min(job["in_flight"], job["images"]),
            "cpu_ms_per_image": 1000 * (time.process_time() - cpu) / job["images"],
            "grown": _status("VmHWM") - before,
            "threads": threading.active_count(),
        }
        print(json.dumps(answer), flush=True, file=answers)


if __name__ == "__main__":
    main()
