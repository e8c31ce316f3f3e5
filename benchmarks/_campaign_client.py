"""Run one campaign in a separate process and measure it.

The process reads a line of JSON, ``{"method": …, "images": …, "in_flight": …, "delays": [from, to], "run": …}``, and
prints wall time, CPU and the growth of its peak memory. The methods are ``ours``
(``GenerateImageBatchOperator.execute``), ``requests`` (the vendor's example in a pool of threads) and ``openai`` (the
official SDK in a pool of threads). The latter two write no receipts.
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

import boto3  # noqa: F401 - imported before the measurement
import requests
from airflow.providers.amazon.aws.hooks.s3 import S3Hook

from airflow_provider_jojokey.batch import runner  # noqa: F401
from airflow_provider_jojokey.img2 import client  # noqa: F401
from airflow_provider_jojokey.operators.batch import GenerateImageBatchOperator
from benchmarks._contenders import TOKEN, _status


def ours(run: str, items: list[dict[str, str]], in_flight: int, try_number: int = 1, **limits: int) -> int:
    """Run the operator like Airflow; return the number of generated images."""
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


def in_threads(generate: Any, items: list[dict[str, str]], in_flight: int) -> int:
    """Generate all items in a pool of threads; return their number."""
    with ThreadPoolExecutor(in_flight) as pool:
        return sum(1 for _ in pool.map(generate, items))


def with_requests(run: str, items: list[dict[str, str]], in_flight: int) -> int:
    """Use the vendor's example: requests, ``.json()``, base64, ``put_object``."""
    api, s3 = _servers(in_flight)

    def generate(item: dict[str, str]) -> None:
        response = requests.post(
            f"{api}/v1/images/generations",
            headers={"Authorization": f"Bearer {TOKEN}"},
            json={"model": "gpt-image-2", "prompt": item["prompt"], "response_format": "b64_json"},
            timeout=120,
        )
        response.raise_for_status()
        content = base64.b64decode(response.json()["data"][0]["b64_json"])
        s3.put_object(Bucket="images", Key=item["s3_key"], Body=content, ContentType="image/png")

    return in_threads(generate, items, in_flight)


def with_openai(run: str, items: list[dict[str, str]], in_flight: int) -> int:
    """Use the official SDK, base64 and ``put_object``."""
    import openai

    api, s3 = _servers(in_flight)
    sdk = openai.OpenAI(api_key=TOKEN, base_url=f"{api}/v1", max_retries=0)

    def generate(item: dict[str, str]) -> None:
        response = sdk.images.generate(model="gpt-image-2", prompt=item["prompt"])
        content = base64.b64decode(response.data[0].b64_json)  # type: ignore[index, arg-type]
        s3.put_object(Bucket="images", Key=item["s3_key"], Body=content, ContentType="image/png")

    return in_threads(generate, items, in_flight)


def _servers(in_flight: int) -> tuple[str, Any]:
    from botocore.config import Config

    api = json.loads(os.environ["AIRFLOW_CONN_JOJOKEY_DEFAULT"])["host"]
    s3 = S3Hook("aws_default")
    config = s3.config.merge(Config(max_pool_connections=in_flight))
    return api, s3.get_client_type(region_name=s3.region_name, config=config)


METHODS: dict[str, Any] = {"ours": ours, "requests": with_requests, "openai": with_openai}


def main() -> None:
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Airflow's log goes to standard output
    logging.basicConfig(level=logging.INFO)
    for name in ("botocore", "urllib3", "boto3", "airflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
    print(json.dumps({"ready": True}), flush=True, file=results)
    for line in sys.stdin:
        job = json.loads(line)
        Path("/proc/self/clear_refs").write_text("5")
        chance = random.Random(7)
        seconds = [round(chance.uniform(*job["delays"]), 3) for _ in range(job["images"])]
        items = [
            {"prompt": f"poster {index} [takes {delay} s]", "s3_key": f"{job['run']}/{index:04}.png"}
            for index, delay in enumerate(seconds)
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
        made = METHODS[job["method"]](job["run"], items, job["in_flight"], **options)
        wall = time.monotonic() - wall
        result = {
            "made": made,
            "wall": wall,
            "ideal": sum(seconds) / min(job["in_flight"], job["images"]),
            "cpu_ms_per_image": 1000 * (time.process_time() - cpu) / job["images"],
            "grown": _status("VmHWM") - before,
            "threads": threading.active_count(),
        }
        print(json.dumps(result), flush=True, file=results)


if __name__ == "__main__":
    main()
