"""Measure a task with one image in a new process: CPU, peak memory, and calls of Airflow's API.

    python -m benchmarks.task [--rounds 15] [--json FILE] [--check]

Each task runs as LocalExecutor runs it: Airflow supervises a process that is forked from a process with the scheduler's
modules. The task uses Airflow's own execution API over HTTP. Contenders take turns.
See README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import tempfile
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks._report import add_options, conclude
from benchmarks._tls_servers import s3_extra, start_servers
from benchmarks.one_image import Child

TOKEN = "sk-benchmark"
IMAGE_BYTES = 1_500_000
MIB = 1024 * 1024
CPU_TARGET = 0.9
CALLS_TARGET = 9

HEAD = """
from datetime import datetime
from airflow.sdk import DAG, task

with DAG("$name", schedule=None, start_date=datetime(2026, 1, 1)):
"""
REQUEST = """
        import base64, requests
        from airflow.sdk import Connection

        jojokey = Connection.get("jojokey_default")
        answer = requests.post(
            f"{jojokey.host}/v1/images/generations",
            headers={"Authorization": f"Bearer {jojokey.password}"},
            json={"model": "gpt-image-2", "prompt": "a poster", "response_format": "b64_json"},
            timeout=120,
        )
        answer.raise_for_status()
        image = base64.b64decode(answer.json()["data"][0]["b64_json"])
"""
CONTENDERS = {
    "empty": (
        "empty `@task`",
        """
    @task
    def poster():
        pass

    poster()
""",
    ),
    "bash": (
        "`BashOperator`",
        """
    from airflow.providers.standard.operators.bash import BashOperator

    BashOperator(task_id="poster", bash_command="true")
""",
    ),
    "http": (
        "`HttpOperator`, without an upload",
        """
    from airflow.providers.http.operators.http import HttpOperator

    HttpOperator(
        task_id="poster",
        http_conn_id="gateway",
        endpoint="v1/images/generations",
        data='{"model": "gpt-image-2", "prompt": "a poster"}',
        headers={"Content-Type": "application/json", "Authorization": "Bearer $token"},
        response_filter=lambda response: len(response.json()["data"]),
    )
""",
    ),
    "vendor": (
        "vendor's example, `S3Hook`",
        """
    @task
    def poster(run):
        from airflow.providers.amazon.aws.hooks.s3 import S3Hook
$request
        S3Hook("aws_default").load_bytes(image, f"vendor/{run}.png", "posters")

    poster("{{ run_id }}")
""",
    ),
    "boto3": (
        "vendor's example, `boto3` alone",
        """
    @task
    def poster(run):
        import boto3
$request
        aws = Connection.get("aws_default")
        client = boto3.client(
            "s3",
            aws_access_key_id=aws.login,
            aws_secret_access_key=aws.password,
            endpoint_url=aws.extra_dejson["endpoint_url"],
            region_name=aws.extra_dejson["region_name"],
        )
        client.put_object(Bucket="posters", Key=f"boto3/{run}.png", Body=image)

    poster("{{ run_id }}")
""",
    ),
    "ours": (
        "this package",
        """
    from airflow_provider_jojokey.operators.jojokey import GenerateImageOperator

    GenerateImageOperator(
        task_id="poster", prompt="a poster", s3_bucket="posters", s3_key="ours/{{ run_id }}.png"
    )
""",
    ),
}


class Tasks:
    """A gateway, an S3, Airflow's API and a worker.

    :param contenders: their names
    """

    def __init__(self, stack: ExitStack, contenders: list[str]) -> None:
        self._home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        self._servers, bundle = start_servers(stack, self._home, IMAGE_BYTES)
        dags = self._home / "dags"
        dags.mkdir()
        for name in contenders:
            source = HEAD + CONTENDERS[name][1]
            for field, value in (("request", REQUEST), ("name", name), ("token", TOKEN)):
                source = source.replace(f"${field}", value)
            (dags / f"{name}.py").write_text(source)
        environment = {
            "AIRFLOW_HOME": str(self._home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{self._home}/airflow.db",
            "AIRFLOW__JOJOKEY__SPOOL_DIRECTORY": f"{self._home}/spool",
            "SSL_CERT_FILE": str(bundle),
            "REQUESTS_CA_BUNDLE": str(bundle),
            "NO_PROXY": "127.0.0.1",
            "PYTHONDONTWRITEBYTECODE": "",  # as in an installation, byte code is read from files
        }
        gateway = f"https://127.0.0.1:{self._servers.first['api']}"
        aws = s3_extra(self._servers.first["s3"])
        connections = {
            "jojokey_default": {"conn_type": "jojokey", "host": gateway, "password": TOKEN},
            "gateway": {"conn_type": "http", "host": gateway},
            "aws_default": {
                "conn_type": "aws",
                "login": "benchmark",
                "password": "benchmark",
                "extra": json.dumps(aws),
            },
        }
        self._api = stack.enter_context(Child("_task_api", json.dumps(connections), environment=environment))
        server = f"http://127.0.0.1:{self._api.first['port']}/"
        self._worker = stack.enter_context(Child("_task_worker", server, environment=environment))

    def run(self, name: str) -> dict[str, Any]:
        """Run a contender's task; end the benchmark unless it succeeds and does its work."""
        ti = self._api.ask(f"queue {name}")
        log = self._home / "log"
        found = self._worker.ask(json.dumps({"ti": ti, "file": f"{name}.py", "log": str(log)}))
        calls = self._api.ask("calls")
        counted = self._servers.ask("stats")
        images = int(name not in ("empty", "bash", "http"))
        posts = int(name not in ("empty", "bash"))
        state = self._api.ask(f"state {ti['id']}")
        if state != "success" or counted["posts"] != posts or counted["images"] != images:
            raise SystemExit(f"{name} does not do its work ({state}, {counted}):\n{log.read_text()}")
        calls = [re.sub("[0-9a-f]{8}-[0-9a-f-]{27}", "ID", call) for call in calls]
        log.unlink()
        return {**found, "calls": calls}


def measure(rounds: int, contenders: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Return the figures of each task."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
    with ExitStack() as stack:
        tasks = Tasks(stack, contenders)
        for number in range(rounds + 1):  # the first writes byte code
            for name in contenders[number % len(contenders) :] + contenders[: number % len(contenders)]:
                result = tasks.run(name)
                if number:
                    found[name].append(result)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="tasks of each contender (default 15)")
    parser.add_argument("--only", nargs="*", choices=CONTENDERS, help="names of contenders")
    parser.add_argument("--calls", action="store_true", help="list the calls of Airflow's API")
    add_options(parser)
    arguments = parser.parse_args()
    contenders = [name for name in CONTENDERS if not arguments.only or name in arguments.only]
    found = measure(arguments.rounds, contenders)
    cpu = {name: 1000 * statistics.median(task["cpu"] for task in tasks) for name, tasks in found.items()}
    peak = {name: statistics.median(task["peak"] for task in tasks) / MIB for name, tasks in found.items()}
    least = min(peak.values())
    print("| task | CPU | peak memory above the least | calls of Airflow's API |\n|---|---|---|---|")
    for name, tasks in found.items():
        calls = statistics.median(len(task["calls"]) for task in tasks)
        print(f"| {CONTENDERS[name][0]} | {cpu[name]:.0f} ms | +{peak[name] - least:.0f} MiB | {calls:g} |")
        if arguments.calls:
            print("\n".join(f"    {call} {n}" for call, n in Counter(tasks[-1]["calls"]).items()))
    judged: list[tuple[bool, str]] = []
    if "ours" in found:
        calls = statistics.median(len(task["calls"]) for task in found["ours"])
        judged.append((calls <= CALLS_TARGET, f"{calls:g} calls (target: at most {CALLS_TARGET})"))
    for other in ("vendor", "boto3"):
        if "ours" in found and other in found:
            pairs = zip(found["ours"], found[other], strict=True)
            ratio = statistics.median(mine["cpu"] / theirs["cpu"] for mine, theirs in pairs)
            target = f" (target: at most {CPU_TARGET})" if other == "vendor" else ""
            met = ratio <= CPU_TARGET or other != "vendor"
            judged.append((met, f"{ratio:.2f} of the CPU of: {CONTENDERS[other][0]}{target}"))
    print()
    return conclude(arguments, judged, found)


if __name__ == "__main__":
    sys.exit(main())
