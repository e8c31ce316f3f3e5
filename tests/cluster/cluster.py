"""Airflow as a cluster on loopback: PostgreSQL, Redis, and each of Airflow's parts as a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
from plugins.postgres import postgres

STARTUP = 180.0


class Process:
    """One of the cluster's processes, and what it has started."""

    def __init__(self, name: str, command: list[str], environment: Mapping[str, str], folder: Path) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self._command, self._environment = command, dict(environment)
        self._started: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._started = subprocess.Popen(
                self._command, env=self._environment, stdout=log, stderr=log, start_new_session=True
            )

    def kill(self) -> int:
        """``kill -9`` it and all that it has started at one stroke; return how many processes that were."""
        assert self._started is not None
        whole = psutil.Process(self._started.pid)
        family = [whole, *whole.children(recursive=True)]
        for one in family:  # first all stand still: none may see another die
            with contextlib.suppress(psutil.NoSuchProcess):
                one.suspend()
        family = [whole, *whole.children(recursive=True)]
        for one in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        self._started.wait()
        return len(family)

    def end(self) -> None:
        if self._started is None or self._started.poll() is not None:
            return
        family = psutil.Process(self._started.pid).children(recursive=True)
        self._started.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._started.wait(20)
        for one in [*family, psutil.Process(self._started.pid) if self._started.poll() is None else None]:
            with contextlib.suppress(psutil.NoSuchProcess):
                if one is not None:
                    one.kill()

    def is_alive(self) -> bool:
        return self._started is not None and self._started.poll() is None


class Cluster:
    """The whole of it; made by :func:`cluster`."""

    def __init__(self, folder: Path, environment: Mapping[str, str], port: int) -> None:
        self.folder = folder
        self.environment = dict(environment)
        self.url = f"http://127.0.0.1:{port}"
        self.processes: dict[str, Process] = {}

    def add(self, name: str, *arguments: str, **more: str) -> Process:
        command = [sys.executable, "-m", "airflow", *arguments]
        process = Process(name, command, {**self.environment, **more}, self.folder)
        self.processes[name] = process
        process.start()
        return process

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.url}/api/v2{path}", timeout=30) as answer:
            return json.load(answer)

    def post(self, path: str, body: Any, method: str = "POST") -> Any:
        request = urllib.request.Request(
            f"{self.url}/api/v2{path}",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read() or b"null")

    def wait(self, what: str, probe: Any, timeout: float) -> Any:
        """Return what ``probe`` gives as soon as it is something."""
        end = time.monotonic() + timeout
        while True:
            with contextlib.suppress(urllib.error.URLError, OSError):
                if found := probe():
                    return found
            dead = [one.name for one in self.processes.values() if not one.is_alive()]
            assert not dead, f"{dead} ended by themselves: {self.tail(dead[0])}"
            assert time.monotonic() < end, f"{what}: not within {timeout:.0f} s"
            time.sleep(0.5)

    def tail(self, name: str) -> str:
        return self.processes[name].log.read_text(errors="replace")[-3000:]

    def is_healthy(self) -> bool:
        with urllib.request.urlopen(f"{self.url}/api/v2/monitor/health", timeout=10) as answer:
            health = json.load(answer)
        parts = ("metadatabase", "scheduler", "triggerer", "dag_processor")
        return all((health.get(part) or {}).get("status") == "healthy" for part in parts)

    def tasks(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """Return all task instances of a run."""
        found: list[dict[str, Any]] = []
        while True:
            page = self.get(
                f"/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}/taskInstances?limit=100&offset={len(found)}"
            )
            found += page["task_instances"]
            if len(found) >= page["total_entries"] or not page["task_instances"]:
                return found

    def xcom(self, task: Mapping[str, Any], key: str) -> Any:
        place = f"/dags/{task['dag_id']}/dagRuns/{quote(task['dag_run_id'], safe='')}/taskInstances/{task['task_id']}"
        try:
            return self.get(f"{place}/xcomEntries/{key}?map_index={task['map_index']}&deserialize=true")[
                "value"
            ]
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def redis() -> Iterator[str]:
    """Run Redis and yield its URL.

    :raises FileNotFoundError: if it is not installed
    """
    server = shutil.which("redis-server")
    if server is None:
        raise FileNotFoundError("Redis is not installed: there is no redis-server.")
    port = free_port()
    process = subprocess.Popen(
        [server, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"],
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait(10)


@contextlib.contextmanager
def cluster(folder: Path, dags: Path, environment: Mapping[str, str], workers: int = 2) -> Iterator[Cluster]:
    """Run Airflow with Celery, PostgreSQL and Redis while the context lasts.

    :param folder: for its home and its logs
    :param dags: the Dags
    :param environment: connections and settings
    """
    port = free_port()
    with postgres() as database, redis() as broker, contextlib.ExitStack() as stack:
        whole = {
            **{name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")},
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "AIRFLOW_HOME": str(folder / "airflow"),
            "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
            "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{port}/execution/",
            "AIRFLOW__CORE__MAX_ACTIVE_TASKS_PER_DAG": "64",
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API__PORT": str(port),
            "AIRFLOW__API__WORKERS": "1",
            "AIRFLOW__API_AUTH__JWT_SECRET": "of-this-cluster-on-loopback-and-of-no-other-one",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database,
            "AIRFLOW__CELERY__BROKER_URL": broker,
            "AIRFLOW__CELERY__RESULT_BACKEND": database.replace("postgresql+psycopg2", "db+postgresql"),
            "AIRFLOW__CELERY__WORKER_CONCURRENCY": "6",
            "AIRFLOW__CELERY__WORKER_PREFETCH_MULTIPLIER": "1",
            # What was on a worker that is gone shall be noticed while a test still waits for it.
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "30",
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
            "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": "60",
            "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": "10",
            "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "2",
            "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
            "PYTHONWARNINGS": "ignore",
            **environment,
        }
        subprocess.run(
            [sys.executable, "-m", "airflow", "db", "migrate"],
            env=whole, check=True, timeout=300, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        run = Cluster(folder, whole, port)

        def end() -> None:
            for process in reversed(run.processes.values()):
                process.end()

        stack.callback(end)
        run.add("api-server", "api-server")
        run.add("scheduler", "scheduler")
        run.add("dag-processor", "dag-processor")
        run.add("triggerer", "triggerer", AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT=str(free_port()))
        for number in range(1, workers + 1):
            run.add(
                f"worker-{number}", "celery", "worker", "--celery-hostname", f"worker-{number}@%h",
                "--skip-serve-logs", AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT=str(free_port()),
            )  # fmt: skip
        run.wait("Airflow is healthy", run.is_healthy, STARTUP)
        yield run
