"""Measure the gallery's HTTP API with 100,000 XComs in Airflow's database.

    python -m benchmarks.gallery [--database sqlite|postgres] [--rows 100000] [--share 0.2] [--json FILE] [--check]

An `airflow api-server` on loopback answers from a database that is filled beforehand. See README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from airflow_provider_jojokey.cost import Cost, Costs

TARGET = 0.2
"""Target for a page of 60: median in seconds."""
DAGS, TASKS_A_RUN = 20, 10
OTHER_KEYS = ("keys", "usage", "return_value", "_link_ImagesLink")
WORDS = (
    *("fox", "heron", "pond", "rain", "snow", "lantern", "harbour", "woodblock", "indigo"),
    *("狐狸", "雪", "bridge", "market", "morning", "fog"),
)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--database", choices=("sqlite", "postgres"), default="sqlite")
    parser.add_argument("--rows", type=int, default=100_000, help="number of XComs")
    parser.add_argument("--share", type=float, default=0.2, help="share of results")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--check", action="store_true", help=f"exit with 1 above {TARGET} s")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the servers end with it, however it ends
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jojokey-gallery-")))
        url = f"sqlite:///{home}/airflow.db"
        if options.database == "postgres":
            from tests.support.postgres import postgres

            url = stack.enter_context(postgres())
        prepare(home, url)
        filled = time.perf_counter()
        results = fill(options.rows, options.share)
        print(f"{options.rows:,} XComs, {results:,} of them results, in {options.database}: ", end="")
        print(f"written in {time.perf_counter() - filled:.0f} s", flush=True)
        figures = measure(*stack.enter_context(api_server(home)), options.rounds)
    figures = {"database": options.database, "rows": options.rows, "results": results, **figures}
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))
    return 1 if options.check and figures["first page"]["median"] > TARGET else 0


def prepare(home: Path, url: str) -> None:
    """Set up a separate Airflow for this process and its children."""
    for name in list(os.environ):
        if name.startswith("AIRFLOW"):
            del os.environ[name]
    os.environ.update(
        AIRFLOW_HOME=str(home),
        AIRFLOW__DATABASE__SQL_ALCHEMY_CONN=url,
        AIRFLOW__CORE__LOAD_EXAMPLES="False",
        AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS="True",
        AIRFLOW__USAGE_DATA_COLLECTION__ENABLED="False",
        AIRFLOW__LOGGING__LOGGING_LEVEL="WARNING",
        NO_PROXY="127.0.0.1",
    )
    subprocess.run([sys.executable, "-m", "airflow", "db", "migrate"], check=True, stdout=subprocess.DEVNULL)


def fill(rows: int, share: float) -> int:
    """Insert Dags, runs, tasks and their XComs; return the number of results."""
    from airflow.models.dag import DagModel
    from airflow.models.dag_version import DagVersion
    from airflow.models.dagbundle import DagBundleModel
    from airflow.models.dagrun import DagRun
    from airflow.models.taskinstance import TaskInstance
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session
    from airflow.utils.state import DagRunState
    from sqlalchemy import insert, text

    from airflow_provider_jojokey.results import XCOM_KEY

    others = OTHER_KEYS[: round(1 / share) - 1]
    tasks = rows // (1 + len(others))
    dice = random.Random(1)
    start = datetime.now(UTC) - timedelta(days=365)
    step = timedelta(days=364) / tasks
    with create_session() as session:
        session.add(DagBundleModel(name="benchmark"))
        session.flush()
        versions = []
        for number in range(DAGS):
            dag_id = f"posters_{number:02}"
            session.add(DagModel(dag_id=dag_id, bundle_name="benchmark", fileloc="/x.py"))  # type: ignore[no-untyped-call]
            session.flush()
            version = DagVersion(dag_id=dag_id, version_number=1, bundle_name="benchmark")
            session.add(version)
            session.flush()
            versions.append(version.id)
        for first in range(0, tasks, 10 * TASKS_A_RUN):
            instances: list[dict[str, Any]] = []
            xcoms: list[dict[str, Any]] = []
            for number in range(first, min(first + 10 * TASKS_A_RUN, tasks)):
                at = start + number * step
                dag = number // TASKS_A_RUN % DAGS
                if number % TASKS_A_RUN == 0:
                    run = DagRun(
                        dag_id=f"posters_{dag:02}",
                        run_id=f"scheduled__{at.isoformat()}",
                        run_type="scheduled",
                        state=DagRunState.SUCCESS,
                        run_after=at,
                    )
                    session.add(run)
                    session.flush()
                place = {
                    "dag_id": run.dag_id,
                    "run_id": run.run_id,
                    "task_id": f"image_{number % TASKS_A_RUN}",
                    "map_index": -1,
                }
                instances.append({
                    **place, "id": uuid.uuid4(), "pool": "default_pool", "pool_slots": 1, "queue": "default",
                    "priority_weight": 1, "try_number": 1, "max_tries": 0, "dag_version_id": versions[dag],
                })  # fmt: skip
                value = result(dice, at, place)
                row = {**place, "dag_run_id": run.id, "timestamp": at, "dag_result": False}
                xcoms += [{**row, "key": key, "value": value} for key in (XCOM_KEY, *others)]
            session.execute(insert(TaskInstance.__table__), instances)
            session.execute(insert(XComModel.__table__), xcoms)
        session.commit()
        session.execute(text("ANALYZE"))
    return tasks


def result(dice: random.Random, at: datetime, place: dict[str, Any]) -> dict[str, Any]:
    """Return a result of about 1,200 bytes, as a task pushes it."""
    key = f"{at:%Y-%m-%d}/{place['task_id']}.png"
    image = {
        "uri": f"s3://posters/{key}",
        "bucket": "posters",
        "key": key,
        "content_type": "image/png",
        "width": 1024,
        "height": 1024,
        "bytes": dice.randrange(10**6, 2 * 10**6),
        "sha256": f"{dice.getrandbits(256):064x}",
    }
    tokens = dice.randrange(200, 2_000)
    return {
        "version": 1,
        "state": "complete" if dice.random() > 0.02 else "failed",
        "images": [image],
        "count": 1,
        "prompt": " ".join(dice.choices(WORDS, k=60)) + f" number{dice.randrange(10**6)}",
        "model": "gpt-image-2",
        "size": "1024x1024",
        "quality": "low",
        "usage": {"input_tokens": 60, "output_tokens": tokens, "total_tokens": tokens + 60},
        "cost": Costs((Cost(60 * 5_000 + tokens * 30_000, "USD"),)).to_json(),
        "seconds": 9.7,
        "request_id": f"{at:%Y%m%d%H%M%S}",
        "created": int(at.timestamp()),
        "reused": False,
        "receipt": f"s3://posters/_jojokey/{key}.json",
        "aws_conn_id": "aws_default",
        "error": None,
        "message": None,
        "billed": None,
        "manifest": None,
        "derived_from": None,
    }


@contextmanager
def api_server(home: Path) -> Iterator[tuple[str, int]]:
    """Run the API server, and yield its URL and process ID."""
    import requests

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "airflow", "api-server", "--host", "127.0.0.1", "--workers", "1"]
    with (home / "api-server.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--port", str(port)], stdout=log, stderr=log, start_new_session=True
        )
    try:
        url = f"http://127.0.0.1:{port}"
        while True:
            if process.poll() is not None:
                raise RuntimeError((home / "api-server.log").read_text()[-2000:])
            try:
                if requests.get(f"{url}/api/v2/version", timeout=5).ok:
                    break
            except requests.RequestException:
                time.sleep(0.2)
        yield url, process.pid
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def measure(url: str, pid: int, rounds: int) -> dict[str, Any]:
    """Send requests, print their times, and return them in seconds."""
    import requests

    web = requests.Session()
    token = web.get(f"{url}/auth/token", timeout=60).json()["access_token"]
    web.headers["Authorization"] = f"Bearer {token}"
    figures: dict[str, Any] = {}

    def ask(name: str, path: str, times: int = rounds, other_filters: bool = False, **query: Any) -> Any:
        taken = []
        for number in range(times):
            if other_filters:  # they select the same results, but no sums are cached for them
                query["day_to"] = f"{2100 + number}-01-01"
            started = time.perf_counter()
            answer = web.get(f"{url}/jojokey/api/{path}", params=query, timeout=120)
            taken.append(time.perf_counter() - started)
            answer.raise_for_status()
        document = answer.json()
        figures[name] = {"median": statistics.median(taken), "worst": max(taken)}
        found = len(document["results"]) if path == "results" else document["results"]
        print(
            f"  {name:38} {statistics.median(taken) * 1000:7.0f} ms  (worst {max(taken) * 1000:.0f}; {found:,})"
        )
        return document

    ask("first request", "results", times=1, limit=60)
    page = ask("first page", "results", limit=60)
    ask("second page", "results", limit=60, cursor=page["next"])
    for _ in range(20):
        page = web.get(
            f"{url}/jojokey/api/results", params={"limit": 200, "cursor": page["next"]}, timeout=60
        ).json()
    ask("a page far down", "results", limit=60, cursor=page["next"])
    ask("one Dag", "results", limit=60, dag_id="posters_07")
    first = page["results"][0]
    ask("one run", "results", limit=60, dag_id=first["dag_id"], run_id=first["run_id"])
    ask("one day", "results", limit=60, day_from=_day(100), day_to=_day(100))
    ask("a frequent word", "results", limit=60, q="heron")
    ask("two Chinese words", "results", limit=60, q="狐狸 雪")
    ask("a word that occurs nowhere", "results", limit=60, q="zeppelin")
    before = peak(pid, anew=True)
    ask("sums over all, first", "totals", times=1)
    figures["sums over all, memory"] = peak(pid) - before
    print(
        f"    the API server's peak memory grew by {figures['sums over all, memory'] / 2**20:.1f} MiB over that"
    )
    ask("sums over all, again", "totals")
    ask("sums over all, kept by day", "totals", other_filters=True)
    ask("sums over one Dag, kept by day", "totals", dag_id="posters_07", other_filters=True)
    ask("sums over a word, first", "totals", times=1, q="heron")
    return figures


def peak(pid: int, anew: bool = False) -> int:
    """Return the peak memory of a process in bytes.

    :param anew: whether to reset the peak
    """
    if anew:
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def _day(ago: int) -> str:
    return (datetime.now(UTC) - timedelta(days=ago)).date().isoformat()


if __name__ == "__main__":
    sys.exit(main())
