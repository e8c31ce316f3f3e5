"""A real Airflow with its own database and Dag folder, run by `dag.test()`, and the servers it needs."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import pytest

from airflow_provider_jojokey.sandbox import Gateway, S3Server
from tests.support.buckets import BUCKET, moto_server
from tests.support.fault_proxy import FaultProxy
from tests.support.patience import PATIENCE


@dataclass
class Run:
    """The result of a Dag run."""

    run_id: str
    state: str
    states: dict[tuple[str, int], str] = field(default_factory=dict)
    xcoms: dict[tuple[str, int, str], Any] = field(default_factory=dict)
    tries: dict[tuple[str, int], int] = field(default_factory=dict)
    labels: dict[tuple[str, int], str | None] = field(default_factory=dict)

    def xcom(self, key: str = "return_value", task: str = "image", map_index: int = -1) -> Any:
        return self.xcoms.get((task, map_index, key))


def dags_of(path: Path) -> dict[str, Any]:
    """Return the Dags of a file."""
    try:
        from airflow.dag_processing.dagbag import DagBag
    except ImportError:  # Airflow 3.1
        from airflow.models.dagbag import DagBag

    bag = DagBag(path)
    assert not bag.import_errors, bag.import_errors
    return bag.dags


class Airflow:
    """Writes Dag files and runs them."""

    def __init__(self, home: Path) -> None:
        self._folder = home / "dags"
        self._folder.mkdir(exist_ok=True)
        self._test = ""

    @property
    def folder(self) -> Path:
        """The folder of this test's Dags. Each run of a Dag parses all of it, so files of earlier tests are removed."""
        test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
        if test != self._test:
            shutil.rmtree(self._folder)
            self._folder.mkdir()
            self._test = test
        return self._folder

    def write(self, name: str, content: str) -> Path:
        path = self.folder / name
        path.write_text(textwrap.dedent(content), encoding="utf-8")
        # Byte code of a file of the same size that was written in the same second would count as current.
        shutil.rmtree(self.folder / "__pycache__", ignore_errors=True)
        return path

    def run(self, dag_id: str, body: str, conf: dict[str, Any] | None = None, **dag: Any) -> Run:
        """Run a Dag whose tasks are ``body``; it ends when the run ends, retries included."""
        arguments = "".join(f", {name}={value!r}" for name, value in dag.items())
        source = (
            "from datetime import datetime, timedelta\n"
            "from airflow.sdk import DAG, task\n"
            "from airflow_provider_jojokey.operators.jojokey import GenerateImageOperator\n"
            f"with DAG({dag_id!r}, schedule=None, start_date=datetime(2026, 1, 1){arguments}):\n"
            + textwrap.indent(textwrap.dedent(body), "    ")
        )
        return self.run_file(dag_id, self.write(f"{dag_id}.py", source), conf)

    def run_file(self, dag_id: str, path: Path, conf: dict[str, Any] | None = None, **test: Any) -> Run:
        dag_run = dags_of(path)[dag_id].test(run_conf=conf, **test)
        return self._result(dag_run)

    def _result(self, dag_run: Any) -> Run:
        from airflow.models.taskinstance import TaskInstance
        from airflow.models.xcom import XComModel
        from airflow.utils.session import create_session
        from sqlalchemy import select

        run = Run(dag_run.run_id, str(dag_run.state))
        with create_session() as session:
            where = {"dag_id": dag_run.dag_id, "run_id": dag_run.run_id}
            for ti in session.scalars(select(TaskInstance).filter_by(**where)):
                run.states[ti.task_id, ti.map_index] = str(ti.state)
                run.tries[ti.task_id, ti.map_index] = ti.try_number
                run.labels[ti.task_id, ti.map_index] = ti.rendered_map_index
            for row in session.scalars(select(XComModel).filter_by(**where)):
                run.xcoms[row.task_id, row.map_index, row.key] = XComModel.deserialize_value(row)
        return run


@pytest.fixture(scope="session")
def airflow(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Airflow:
    """Airflow with its own database: the first pytest worker migrates one, the others copy it."""
    folder = tmp_path_factory.getbasetemp()
    migrate(folder.parent if hasattr(request.config, "workerinput") else folder)
    return Airflow(Path(os.environ["AIRFLOW_HOME"]))


def migrate(shared: Path) -> None:
    """Create the tables of Airflow's database, or copy them from another worker.

    :param shared: a folder of all workers of a test run
    """
    command = [sys.executable, "-m", "airflow", "db", "migrate"]
    own = os.environ["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"].removeprefix("sqlite:///")
    template = shared / "airflow.db"
    with (shared / "airflow.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if template.exists():
            # Not a copy of the file: a test without this fixture may have opened the database, which uses a WAL.
            with closing(sqlite3.connect(template)) as source, closing(sqlite3.connect(own)) as target:
                source.backup(target)
            return
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=PATIENCE)
        if Path(own).is_file():  # otherwise it is the URL of a server
            with closing(sqlite3.connect(own)) as database:
                database.execute("VACUUM INTO ?", (str(template),))


@pytest.fixture(scope="session")
def _gateway() -> Iterator[Gateway]:
    with Gateway() as gateway:
        yield gateway


@pytest.fixture
def gateway(_gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> Gateway:
    """The sandbox gateway in its initial state, and a connection to it with a short timeout."""
    _gateway.reset()
    connection = {
        "conn_type": "jojokey",
        "host": _gateway.url,
        "password": _gateway.token,
        "extra": {"connect_timeout": 2, "read_timeout": 20, "max_resend_wait": 1, "max_resends": 1},
    }
    monkeypatch.setenv("AIRFLOW_CONN_JOJOKEY_DEFAULT", json.dumps(connection))
    return _gateway


@dataclass
class Store:
    """An S3 server, inspected without the provider."""

    name: str
    client: Any
    connection: dict[str, Any]

    def objects(self, prefix: str = "") -> dict[str, bytes]:
        listed = self.client.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
        return {
            item["Key"]: self.client.get_object(Bucket=BUCKET, Key=item["Key"])["Body"].read()
            for item in listed
        }

    def receipt(self, key: str) -> dict[str, Any]:
        body = self.client.get_object(Bucket=BUCKET, Key=f"_jojokey/{key}.json")["Body"]
        return json.loads(body.read())


@pytest.fixture(scope="session")
def _stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Store]]:
    with moto_server() as moto, S3Server(tmp_path_factory.mktemp("s3")) as rclone:
        stores = {
            "moto": _store("moto", moto, "testing", "testing-key", {}),
            "rclone": _store(
                "rclone", rclone.endpoint_url, rclone.access_key, rclone.secret_key, rclone.client_settings
            ),
        }
        yield stores


def _store(name: str, endpoint: str, key: str, secret: str, settings: dict[str, Any]) -> Store:
    from botocore.config import Config

    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=key,
        aws_secret_access_key=secret,
        region_name="us-east-1",
        config=Config(**settings),
    )
    client.create_bucket(Bucket=BUCKET)
    extra = {"endpoint_url": endpoint, "region_name": "us-east-1", "config_kwargs": settings}
    return Store(name, client, {"conn_type": "aws", "login": key, "password": secret, "extra": extra})


@pytest.fixture
def _choose(
    _stores: dict[str, Store], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[[str], Store]:
    """Return a function that empties a store. The spool is empty too: it belongs to the keys in the store."""

    def choose(name: str) -> Store:
        store = _stores[name]
        for listed in store.client.list_objects_v2(Bucket=BUCKET).get("Contents", []):
            store.client.delete_object(Bucket=BUCKET, Key=listed["Key"])
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(store.connection))
        monkeypatch.setenv("AIRFLOW__JOJOKEY__SPOOL_DIRECTORY", str(tmp_path / "spool"))
        return store

    return choose


@pytest.fixture(params=["moto", "rclone"])
def any_store(request: pytest.FixtureRequest, _choose: Callable[[str], Store]) -> Store:
    """Each kind of store in turn, with and without conditional writes."""
    return _choose(request.param)


@pytest.fixture
def store(_choose: Callable[[str], Store]) -> Store:
    return _choose("moto")


@pytest.fixture
def plain_store(_choose: Callable[[str], Store]) -> Store:
    """A store of plain files, without conditional writes."""
    return _choose("rclone")


@pytest.fixture
def s3(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy between the tasks and the store, whose ``faults`` a test sets."""
    extra = store.connection["extra"]
    with FaultProxy(extra["endpoint_url"]) as proxy:
        connection = {**store.connection, "extra": {**extra, "endpoint_url": proxy.url}}
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(connection))
        yield proxy
