"""A complete Airflow: scheduler, API server, login, the sandbox, and a browser."""

from __future__ import annotations

import json
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from standalone import environment_of, free_port, standalone
from world import airflow_environment

from airflow_provider_jojokey.sandbox import Sandbox
from tests.support.patience import PATIENCE

ROOT = Path(__file__).parents[2]

USER, PASSWORD = "admin", "a-password-of-these-tests"
ENDED = {"success", "failed"}


@dataclass
class Airflow:
    """A running Airflow, and a client of its REST API.

    :param url: where it is served, without a slash at its end
    :param objects: the folder that holds the bucket's objects
    :param log: the log of all components
    """

    url: str
    objects: Path
    log: Path
    _token: str = field(default="", repr=False)

    def call(self, path: str, body: Any = None, method: str | None = None) -> Any:
        """Call the API, and return the JSON response."""
        request = urllib.request.Request(
            f"{self.url}{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "Authorization": f"Bearer {self._token}"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return json.loads(answer.read() or b"null")

    def log_in(self) -> None:
        self._token = self.call("/auth/token", {"username": USER, "password": PASSWORD})["access_token"]

    def unpause(self, dag_id: str) -> None:
        """Wait until the Dag processor has read the Dag, and let it run."""
        until(lambda: self._unpaused(dag_id), f"there is no Dag {dag_id}")

    def trigger(self, dag_id: str, **conf: Any) -> str:
        """Start a run and return its ID."""
        self.unpause(dag_id)
        run = self.call(f"/api/v2/dags/{dag_id}/dagRuns", {"logical_date": None, "conf": conf})
        return str(run["dag_run_id"])

    @contextmanager
    def no_new_tasks(self) -> Iterator[None]:
        """Keep tasks from starting inside the block: the pool has no slots."""
        pool = "/api/v2/pools/default_pool"
        slots = self.call(pool)["slots"]
        self.call(f"{pool}?update_mask=slots", {"slots": 0}, "PATCH")
        try:
            yield
        finally:
            self.call(f"{pool}?update_mask=slots", {"slots": slots}, "PATCH")

    def wait(self, dag_id: str, run_id: str) -> str:
        """Wait until a run has ended, and return its state."""
        path = f"/api/v2/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}"
        return until(lambda: (state := self.call(path)["state"]) in ENDED and state, f"{run_id} does not end")

    def tab(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> str:
        """Return the URL of a task's Images tab."""
        mapped = f"/mapped/{map_index}" if map_index >= 0 else ""
        return f"{self.url}/dags/{dag_id}/runs/{run_id}/tasks/{task_id}{mapped}/plugin/jojokey-images"

    def question(self, run_id: str, task_id: str) -> str:
        """Wait until a task of ``poster_approval`` needs an answer, and return the URL of its question."""
        path = f"/api/v2/dags/poster_approval/dagRuns/{quote(run_id, safe='')}/taskInstances/{task_id}"
        # Before Airflow 3.3, a task that waits for an answer is a deferred one.
        until(lambda: self.call(path)["state"] in ("awaiting_input", "deferred"), f"{task_id} does not ask")
        # Airflow fails a task that is answered before the scheduler has noticed that its process has ended.
        event = (
            "executor event with state success for task instance TaskInstanceKey(dag_id='poster_approval', "
        )
        event += f"task_id='{task_id}', run_id='{run_id}'"
        until(lambda: event in self.log.read_text(errors="replace"), f"the process of {task_id} does not end")
        return f"{self.url}/dags/poster_approval/runs/{run_id}/tasks/{task_id}/required_actions"

    @property
    def gallery(self) -> str:
        """The URL of the gallery."""
        return f"{self.url}/plugin/jojokey-gallery"

    def _unpaused(self, dag_id: str) -> bool:
        try:
            self.call(f"/api/v2/dags/{dag_id}", {"is_paused": False}, "PATCH")
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return False
            raise
        return True


@dataclass(frozen=True)
class Runs:
    """The IDs of runs that have ended."""

    album: str
    hostile: str
    refused: str


HOSTILE = 'Tea <script>hacked = 1</script><img src=x onerror="hacked = 2"> & "cake"'


@contextmanager
def running_airflow(home: Path, prefix: str = "") -> Iterator[Airflow]:
    """Run Airflow with the repository's Dags and the test Dags. A login needs a password.

    :param home: an empty folder
    :param prefix: the path that it is served under, such as ``/airflow``
    """
    dags = home / "dags"
    dags.mkdir()
    for path in [*(ROOT / "dags").glob("*.py"), *(ROOT / "tests" / "browser" / "dags").glob("*.py")]:
        shutil.copy(path, dags)
    # Unpaused, it would make today's poster by itself, and one of two posters of a day replaces the other.
    daily = dags / "poster_daily.py"
    daily.write_text(daily.read_text("utf-8").replace('schedule="0 6 * * *"', "schedule=None"), "utf-8")
    passwords = home / "passwords.json"
    passwords.write_text(json.dumps({USER: PASSWORD}), encoding="utf-8")
    with Sandbox(home / "world") as sandbox:
        environment = airflow_environment(sandbox, home) | environment_of(free_port(), prefix)
        environment |= {
            "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
            # A task that is started before the API server listens fails, and is retried in five minutes.
            "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "True",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": f"{USER}:admin",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
        }
        with standalone(environment, home / "airflow.log"):
            airflow = Airflow(
                environment["AIRFLOW__API__BASE_URL"],
                home / "world" / "s3" / sandbox.buckets[0],
                home / "airflow.log",
            )
            airflow.log_in()
            yield airflow


def until(found: Any, message: str) -> Any:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if result := found():
            return result
        time.sleep(0.3)
    raise AssertionError(f"{message} within {PATIENCE:.0f} s")
