"""Run the services of docker-compose.yaml as processes on loopback, with its order and health checks."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

import psutil

from tests.support.native import SERVICES, Container, Native
from tests.support.postgres import postgres

STARTUP = 300.0
PROGRAMS = ("redis-server", "redis-cli", "curl", "pg_isready")
NOT_STARTED = ("postgres", "volume-owners")
"""Services that don't start: :func:`database` replaces one, and folders already belong to their user."""
SETTINGS = {
    "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
    "AIRFLOW__CELERY__WORKER_CONCURRENCY": "6",
    # Detect tasks of a killed worker while a test waits for them.
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "30",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": "60",
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": "10",
    "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "2",
    "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
}
"""Settings that differ from docker-compose.yaml."""


class Process:
    """The process of a service and its child processes.

    :param make: returns a new container for each start
    """

    def __init__(self, name: str, make: Callable[[], Container], folder: Path) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self._make = make
        self._container: Container | None = None
        self._started: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._container = self._make()
        with self.log.open("ab") as log:
            self._started = subprocess.Popen(
                self._container.command, env=self._container.environment,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def run(self) -> None:
        """Start the process, and wait until it ends.

        :raises RuntimeError: if the process fails
        """
        try:
            self.start()
            assert self._started is not None
            if code := self._started.wait(STARTUP):
                raise RuntimeError(f"{self.name} ended with {code}: {self.tail()}")
        finally:
            self.end()

    def is_healthy(self) -> bool:
        """Run the health check of the service."""
        assert self._container is not None
        with self.log.open("ab") as log:
            return is_healthy(self._container, log)

    def kill(self) -> int:
        """``kill -9`` the process and its child processes at once; return their number."""
        assert self._started is not None
        whole = psutil.Process(self._started.pid)
        family = [whole, *whole.children(recursive=True)]
        for process in family:  # stop all first, so that none sees another one die
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()
        family = [whole, *whole.children(recursive=True)]
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._started.wait()
        return len(family)

    def end(self) -> None:
        if self._started is None or self._started.poll() is not None:
            return
        family = psutil.Process(self._started.pid).children(recursive=True)
        self._started.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._started.wait(20)
        for process in [*family, psutil.Process(self._started.pid) if self._started.poll() is None else None]:
            with contextlib.suppress(psutil.NoSuchProcess):
                if process is not None:
                    process.kill()

    def is_alive(self) -> bool:
        return self._started is not None and self._started.poll() is None

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-3000:]


def is_healthy(container: Container, log: IO[bytes] | int = subprocess.DEVNULL) -> bool:
    done = subprocess.run(
        container.check, env=container.environment,
        stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=STARTUP, check=False,
    )  # fmt: skip
    return done.returncode == 0


class Cluster:
    """All services; created by :func:`cluster`."""

    def __init__(self, native: Native, scale: Mapping[str, int], elsewhere: Iterable[str]) -> None:
        self.native = native
        self.processes: dict[str, Process] = {}
        self._scale = scale
        self._up = {*NOT_STARTED, *elsewhere}
        self._token = ""

    def up(self, service: str) -> None:
        """Start a service once, after its dependencies have reached their conditions."""
        if service in self._up:
            return
        self._up.add(service)
        for dependency, options in SERVICES[service].get("depends_on", {}).items():
            self.up(dependency)
            if options["condition"] == "service_healthy":
                self.wait_until_healthy(dependency)
        number = self._scale.get(service, 1)
        for name in [service] if number == 1 else [f"{service}-{index}" for index in range(1, number + 1)]:
            process = Process(
                name, lambda name=name: self.native.container(service, name), self.native.folder
            )
            if SERVICES[service].get("restart") == "no":
                process.run()
            else:
                self.processes[name] = process
                process.start()

    def down(self) -> None:
        for process in reversed(self.processes.values()):
            process.end()

    def wait_until_healthy(self, *names: str) -> None:
        """Wait until the health checks of these processes succeed."""
        for name in names:
            if process := self.processes.get(name):
                self.wait(f"{name} is healthy", process.is_healthy, STARTUP, process.tail)

    def log_in(self) -> None:
        """Log in as the administrator, with the password that ``prepare`` wrote."""
        login = {"username": "admin", "password": self.native.secrets["AIRFLOW_ADMIN_PASSWORD"]}
        self._token = self._ask("POST", "/auth/token", login)["access_token"]

    def get(self, path: str) -> Any:
        return self._ask("GET", f"/api/v2{path}")

    def post(self, path: str, body: Any) -> Any:
        return self._ask("POST", f"/api/v2{path}", body)

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        headers = {"Content-Type": "application/json"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        data = None if body is None else json.dumps(body).encode()
        url = self.native.url("api-server") + path
        request = urllib.request.Request(url, data, headers, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read() or b"null")

    def wait(
        self, event: str, probe: Callable[[], Any], timeout: float, tail: Callable[[], str] = str
    ) -> Any:
        """Return the result of ``probe`` as soon as it is not empty.

        :param tail: details for the error message
        """
        end = time.monotonic() + timeout
        while True:
            with contextlib.suppress(urllib.error.URLError, OSError):
                if found := probe():
                    return found
            dead = [process for process in self.processes.values() if not process.is_alive()]
            assert not dead, f"{dead[0].name} ended unexpectedly: {dead[0].tail()}"
            assert time.monotonic() < end, f"{event}: not within {timeout:.0f} s. {tail()}"
            time.sleep(0.5)

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


@contextlib.contextmanager
def cluster(
    folder: Path,
    dags: Path,
    elsewhere: Mapping[str, int],
    settings: Mapping[str, str],
    workers: int = 2,
) -> Iterator[Cluster]:
    """Run docker-compose.yaml with the profile ``sandbox`` and without containers, while the context lasts.

    :param folder: for volumes, homes and logs
    :param dags: the Dags
    :param elsewhere: ports of the services that the caller runs, at least S3
    :param settings: Airflow's settings in addition to docker-compose.yaml and :data:`SETTINGS`
    :raises FileNotFoundError: if a program is not installed
    """
    for program in PROGRAMS:
        if shutil.which(program) is None:
            raise FileNotFoundError(f"{program} is not installed.")
    native = Native(folder, ports=elsewhere, mounts={"./dags": dags}, settings={**SETTINGS, **settings})
    run = Cluster(native, {"worker": workers}, elsewhere)
    with database(native):
        try:
            for service, definition in SERVICES.items():
                if "sandbox" in definition.get("profiles", ["sandbox"]):
                    run.up(service)
            run.wait_until_healthy(*run.processes)
            run.log_in()
            yield run
        finally:
            run.down()


@contextlib.contextmanager
def database(native: Native) -> Iterator[None]:
    """Run PostgreSQL like its image with the settings of docker-compose.yaml."""
    environment = native.environment("postgres")
    assert environment["POSTGRES_USER"] == "airflow"
    with postgres(
        native.ports["postgres"],
        password=environment["POSTGRES_PASSWORD"],
        database=environment["POSTGRES_DB"],
    ):
        assert is_healthy(native.container("postgres", "postgres"))
        yield
