"""Run the same campaign with four methods on a small Celery cluster.

The methods are one batch, mapped tasks, mapped deferred tasks, and mapped tasks with the vendor's example.

    python -m benchmarks.ways [--images 60]

Like `make test-cluster`, it needs PostgreSQL, Redis and curl. Airflow, the sandbox gateway and S3 run on the same
machine. Two workers have six slots each. See README.md.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import random
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import psutil

SLOTS = 12
MIB = 1024 * 1024
DAG = """
from datetime import datetime
from airflow.sdk import DAG, task
from airflow_provider_jojokey.operators.jojokey import GenerateImageBatchOperator, GenerateImageOperator

def items(method):
    return [{{**item, "s3_key": f"{{method}}/{{item['s3_key']}}"}} for item in {items!r}]

options = {{"s3_bucket": "posters"}}
with DAG("batch", schedule=None, start_date=datetime(2026, 1, 1)):
    GenerateImageBatchOperator(task_id="images", requests=items("batch"), max_in_flight={slots}, **options)
with DAG("mapped", schedule=None, start_date=datetime(2026, 1, 1)):
    GenerateImageOperator.partial(task_id="images", **options).expand_kwargs(items("mapped"))
with DAG("deferred", schedule=None, start_date=datetime(2026, 1, 1)):
    GenerateImageOperator.partial(task_id="images", deferrable=True, **options).expand_kwargs(items("deferred"))
with DAG("vendor", schedule=None, start_date=datetime(2026, 1, 1)):

    @task
    def images(prompt, s3_key):
        import base64
        import requests
        from airflow.providers.amazon.aws.hooks.s3 import S3Hook
        from airflow.sdk import Connection

        jojokey = Connection.get("jojokey_default")
        answer = requests.post(
            f"{{jojokey.host}}/v1/images/generations",
            headers={{"Authorization": f"Bearer {{jojokey.password}}"}},
            json={{"model": "gpt-image-2", "prompt": prompt, "response_format": "b64_json"}},
            timeout=120,
        )
        answer.raise_for_status()
        image = base64.b64decode(answer.json()["data"][0]["b64_json"])
        S3Hook("aws_default").load_bytes(image, s3_key, "posters")

    images.expand_kwargs(items("vendor"))
"""
METHODS = {
    "batch": "one batch",
    "mapped": "mapped tasks",
    "deferred": "mapped and deferred",
    "vendor": "the vendor's example in mapped tasks",
}


class Meter:
    """Memory and CPU of the workers and the triggerer, including their child processes."""

    def __init__(self, cluster: Any) -> None:
        self._roots = [
            psutil.Process(process._started.pid)
            for name, process in cluster.processes.items()
            if name.startswith(("worker", "triggerer"))
        ]
        self._stop = threading.Event()
        self._cpu: dict[tuple[int, float], float] = {}
        self.before = self._look()
        self._cpu_before = sum(self._cpu.values())
        self.peak = self.before
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def end(self) -> tuple[float, float]:
        """Return the growth of the peak memory in MiB, and the CPU seconds."""
        self._stop.set()
        self._thread.join()
        return (self.peak - self.before) / MIB, sum(self._cpu.values()) - self._cpu_before

    def _watch(self) -> None:
        while not self._stop.wait(0.5):
            self.peak = max(self.peak, self._look())

    def _look(self) -> int:
        total = 0
        for root in self._roots:
            for process in [root, *root.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    times = process.cpu_times()
                    self._cpu[process.pid, process.create_time()] = times.user + times.system
                    total += process.memory_full_info().pss
        return total


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=60, metavar="N", help="posters of each campaign (60)")
    arguments = parser.parse_args()
    from moto.server import ThreadedMotoServer
    from PIL import Image

    from airflow_provider_jojokey.sandbox import Gateway
    from tests.support.cluster import cluster

    chance = random.Random(1)
    delays = [round(chance.uniform(5, 20), 1) for _ in range(arguments.images)]
    items = [
        {"prompt": f"poster {number} [sandbox: delay={delay}]", "s3_key": f"{number}.png"}
        for number, delay in enumerate(delays)
    ]
    image = io.BytesIO()
    Image.effect_noise((1024, 1024), 90).save(image, "PNG")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    moto.start()
    with (
        tempfile.TemporaryDirectory() as folder,
        Gateway(image=image.getvalue(), log_limit=None) as gateway,
    ):
        dags = Path(folder, "dags")
        dags.mkdir()
        (dags / "ways.py").write_text(DAG.format(items=items, slots=SLOTS), encoding="utf-8")
        jojokey = {"conn_type": "jojokey", "host": gateway.url, "password": gateway.token}
        settings = {
            "AIRFLOW__CORE__MAX_ACTIVE_TASKS_PER_DAG": "64",
            "AIRFLOW_CONN_JOJOKEY_DEFAULT": json.dumps(jojokey),
        }
        elsewhere = {"s3": moto.get_host_and_port()[1], "sandbox": gateway.port}
        with cluster(Path(folder), dags, elsewhere, settings) as run:
            print(f"\n{arguments.images} images of {len(image.getvalue()) / 1e6:.1f} MB after 5 to 20 s\n")
            print("| method | seconds | images per minute | CPU per image | peak memory | most in flight |")
            print("|---|---|---|---|---|---|")
            for method in METHODS:
                run.wait("the Dag is there", lambda method=method: run.get(f"/dags/{method}"), 120)
                gateway.reset()
                meter = Meter(run)
                run_id = run.post(f"/dags/{method}/dagRuns", {"logical_date": None})["dag_run_id"]
                ended_run = run.wait(
                    f"{method} ends",
                    lambda method=method, run_id=run_id: (
                        (found := run.get(f"/dags/{method}/dagRuns/{run_id.replace('+', '%2B')}"))["state"]
                        in ("success", "failed")
                        and found
                    ),
                    1200,
                )
                memory, cpu = meter.end()
                assert ended_run["state"] == "success"
                assert len(gateway.charges) == arguments.images
                seconds = ended_run["duration"]
                print(
                    f"| {METHODS[method]} | {seconds:.0f} | {60 * arguments.images / seconds:.0f} "
                    f"| {cpu / arguments.images:.2f} s | +{memory:.0f} MiB | {gateway.peak_in_flight} |",
                    flush=True,
                )
    moto.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
