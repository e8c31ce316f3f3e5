"""Measure the time that the package adds to a generation, with network latency.

    python -m benchmarks.latency [--rounds 15] [--s3 30] [--gateway 50] [--json FILE] [--check]

A gateway with TLS and an S3 server answer at once, behind proxies that simulate a round-trip time. The contenders
take turns: the vendor's example (``requests`` and ``put_object``), and ``GenerateImageOperator.execute`` with receipt,
claim and spool. Like a task, each round uses new connections. Clients are created before.
"""

from __future__ import annotations

import argparse
import base64
import json
import logging
import os
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

from benchmarks._report import add_options, conclude
from benchmarks._tls_servers import s3_extra, start_servers
from benchmarks.one_image import Child

TOKEN = "sk-benchmark"
IMAGE_BYTES = 1_500_000
TARGET = 1.1


def vendors_example(api: str) -> float:
    """Return the seconds of ``requests``, base64 and ``put_object``."""
    import requests
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook

    s3 = S3Hook("aws_default").get_conn()
    started = time.perf_counter()
    response = requests.post(
        f"{api}/v1/images/generations",
        headers={"Authorization": f"Bearer {TOKEN}"},
        json={"model": "gpt-image-2", "prompt": "a poster", "response_format": "b64_json"},
        timeout=120,
    )
    response.raise_for_status()
    content = base64.b64decode(response.json()["data"][0]["b64_json"])
    s3.put_object(Bucket="images", Key=f"{uuid.uuid4()}.png", Body=content, ContentType="image/png")
    return time.perf_counter() - started


def ours(api: str) -> float:
    """Return the seconds of the operator's ``execute``."""
    from airflow_provider_jojokey.operators.jojokey import GenerateImageOperator

    operator = GenerateImageOperator(
        task_id="poster", prompt="a poster", s3_bucket="images", s3_key=f"{uuid.uuid4()}.png"
    )
    ti = SimpleNamespace(
        dag_id="latency",
        run_id=str(uuid.uuid4()),
        task_id="poster",
        map_index=-1,
        try_number=1,
        xcom_push=lambda *_, **__: None,
    )
    operator.hook.client, operator.store.client  # noqa: B018 - creating them takes CPU, not round trips
    started = time.perf_counter()
    operator.execute({"ti": ti})  # type: ignore[typeddict-item]
    return time.perf_counter() - started


CONTENDERS: dict[str, Callable[[str], float]] = {"vendor's example": vendors_example, "this package": ours}


def measure(rounds: int, s3_trip: float, gateway_trip: float) -> dict[str, list[float]]:
    """Return the milliseconds of each round."""
    found: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    with tempfile.TemporaryDirectory() as home, ExitStack() as stack:
        servers, bundle = start_servers(stack, Path(home), IMAGE_BYTES)
        ports = {}
        for name, seconds in (("s3", s3_trip), ("api", gateway_trip)):
            delays = ("--port", str(servers.first[name]), "--round-trip", str(seconds))
            ports[name] = stack.enter_context(Child("_delays", *delays)).first["port"]
        api = f"https://127.0.0.1:{ports['api']}"
        aws = s3_extra(ports["s3"])
        os.environ |= {
            "AIRFLOW_HOME": home,
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__JOJOKEY__SPOOL_DIRECTORY": f"{home}/spool",
            "AIRFLOW_CONN_JOJOKEY_DEFAULT": json.dumps(
                {"conn_type": "jojokey", "host": api, "password": TOKEN}
            ),
            "AIRFLOW_CONN_AWS_DEFAULT": json.dumps(
                {"conn_type": "aws", "login": "benchmark", "password": "benchmark", "extra": aws}
            ),
            "SSL_CERT_FILE": str(bundle),
            "REQUESTS_CA_BUNDLE": str(bundle),
            "NO_PROXY": "127.0.0.1",
        }
        logging.disable(logging.CRITICAL)
        # The first round imports modules and tests the store, so it isn't measured.
        for number in range(rounds + 1):
            for name, contender in CONTENDERS.items():
                seconds = contender(api)
                if number:
                    found[name].append(1000 * seconds)
        counted = servers.ask("stats")
    if not counted["posts"] == counted["images"] == len(CONTENDERS) * (rounds + 1):
        raise SystemExit(f"not every image was generated and stored once: {counted}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--s3", type=float, default=30.0, help="milliseconds of a round trip to S3 (default 30)"
    )
    parser.add_argument(
        "--gateway", type=float, default=50.0, help="milliseconds of a round trip to the gateway (default 50)"
    )
    add_options(parser)
    arguments = parser.parse_args()
    found = measure(arguments.rounds, arguments.s3 / 1000, arguments.gateway / 1000)
    medians = {name: statistics.median(each) for name, each in found.items()}
    print("| contender | median | fastest | slowest |\n|---|---|---|---|")
    for name, each in found.items():
        print(f"| {name} | {medians[name]:.0f} ms | {min(each):.0f} ms | {max(each):.0f} ms |")
    ratio = medians["this package"] / medians["vendor's example"]
    print()
    sentence = f"{ratio:.2f} of the vendor's example (target: at most {TARGET})"
    return conclude(arguments, [(ratio <= TARGET, sentence)], found)


if __name__ == "__main__":
    sys.exit(main())
