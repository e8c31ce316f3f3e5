"""A real API server on loopback, its users, and database rows that Airflow's own models write."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import requests
from PIL import Image

from airflow_provider_jojokey.results import XCOM_KEY
from tests.support.airflow import BUCKET, Store
from tests.support.patience import PATIENCE
from tests.support.users import USERS

PASSWORD = "of-the-tests"
BUNDLE = "bundle-of-the-tests"
_COMMAND = (sys.executable, "-m", "airflow", "api-server", "--host", "127.0.0.1", "--workers", "1")


@dataclass
class Server:
    """An API server.

    :param url: with the prefix under which it is served
    """

    url: str
    prefix: str
    _tokens: dict[str, str] = field(default_factory=dict)

    def get(self, path: str, user: str | None = "admin", **options: Any) -> requests.Response:
        """Send a request as a user, or without a login. ``path`` includes the prefix, like the links in responses."""
        headers = dict(options.pop("headers", {}))
        if user is not None:
            headers["Authorization"] = f"Bearer {self._token(user)}"
        root = self.url.removesuffix(self.prefix)
        return requests.get(root + path, headers=headers, timeout=PATIENCE, allow_redirects=False, **options)

    def results(self, user: str = "admin", **query: Any) -> Any:
        answer = self.get(f"{self.prefix}/jojokey/api/results", user, params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def totals(self, user: str = "admin", **query: Any) -> Any:
        answer = self.get(f"{self.prefix}/jojokey/api/totals", user, params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def _token(self, user: str) -> str:
        if user not in self._tokens:
            login = {"username": user, "password": PASSWORD}
            answer = requests.post(f"{self.url}/auth/token", json=login, timeout=PATIENCE)
            assert answer.status_code == 201, answer.text
            self._tokens[user] = answer.json()["access_token"]
        return self._tokens[user]


def aws(store: Store) -> str:
    return json.dumps(store.connection)


@contextmanager
def api_server(home: Path, environment: dict[str, str], prefix: str = "") -> Iterator[Server]:
    """Run `airflow api-server` with the users of the tests until it is no longer needed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    passwords = home / "passwords.json"
    passwords.write_text(json.dumps(dict.fromkeys(USERS, PASSWORD)))
    url = f"http://127.0.0.1:{port}{prefix}"
    environ = {
        **os.environ,
        **environment,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]),
        "AIRFLOW__API__BASE_URL": url,
        "AIRFLOW__API_AUTH__JWT_SECRET": "of-the-tests-and-long-enough-for-a-signature-as-it-should-be-512-bits",
        "AIRFLOW__CORE__AUTH_MANAGER": "tests.support.users.AuthManagerOfTests",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": ",".join(
            f"{entry}:{role}" for entry, role in USERS.items()
        ),
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
        "AIRFLOW__JOJOKEY__THUMBNAIL_DIRECTORY": str(home / "thumbnails"),
    }
    log = home / f"api-server-{port}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*_COMMAND, "--port", str(port)],
            env=environ,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        end = time.monotonic() + PATIENCE
        while not _is_up(url):
            assert process.poll() is None, log.read_text()[-4000:]
            assert time.monotonic() < end, log.read_text()[-4000:]
            time.sleep(0.1)
        yield Server(url, prefix)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _is_up(url: str) -> bool:
    try:
        return requests.get(f"{url}/api/v2/version", timeout=5).ok
    except requests.RequestException:
        return False


def png_image(colour: str = "teal", size: tuple[int, int] = (96, 64), kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, kind)
    return out.getvalue()


def stored_image(
    data: bytes, key: str, bucket: str = BUCKET, size: tuple[int, int] = (96, 64), **more: Any
) -> dict[str, Any]:
    """Return an image as it is listed in a result."""
    return {
        "uri": f"s3://{bucket}/{key}",
        "bucket": bucket,
        "key": key,
        "content_type": "image/png",
        "width": size[0],
        "height": size[1],
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        **more,
    }


def result(*images: dict[str, Any], prompt: str = "a fox in the snow", **more: Any) -> dict[str, Any]:
    """Return the result that the operator would push for these images."""
    return {
        "version": 1,
        "state": "complete",
        "images": list(images),
        "count": len(images),
        "prompt": prompt,
        "model": "gpt-image-2",
        "size": "1024x1024",
        "quality": "low",
        "usage": {"input_tokens": 10, "output_tokens": 200, "total_tokens": 210},
        "seconds": 9.7,
        "request_id": "2026-1",
        "created": 1795475792,
        "reused": False,
        "receipt": None,
        "aws_conn_id": "aws_default",
        "error": None,
        "message": None,
        "manifest": None,
        **more,
    }


class Book:
    """Writes results into Airflow's database as the execution API does, with the runs and tasks they belong to."""

    def __init__(self) -> None:
        self._runs: dict[tuple[str, str], int] = {}

    def write(
        self,
        dag_id: str,
        value: Any,
        *,
        run_id: str = "manual__1",
        task_id: str = "image",
        map_index: int = -1,
        at: datetime | None = None,
        label: str | None = None,
        key: str = XCOM_KEY,
        serialize: bool = False,
    ) -> None:
        from airflow.models.taskinstance import TaskInstance
        from airflow.models.xcom import XComModel
        from airflow.utils.session import create_session
        from sqlalchemy import delete, select, update

        with create_session() as session:
            run = self._run(session, dag_id, run_id)
            where = {"dag_id": dag_id, "run_id": run_id, "task_id": task_id, "map_index": map_index}
            if session.scalar(select(TaskInstance.id).filter_by(**where)) is None:
                session.execute(
                    TaskInstance.__table__.insert().values(
                        id=TaskInstance.__table__.c.id.type.python_type(str(uuid.uuid4())),
                        rendered_map_index=label,
                        pool="default_pool",
                        pool_slots=1,
                        queue="default",
                        priority_weight=1,
                        try_number=1,
                        max_tries=0,
                        dag_version_id=run[1],
                        **where,
                    )
                )
            session.execute(delete(XComModel).filter_by(key=key, **where))
            stored = XComModel.serialize_value(value) if serialize else value
            session.add(XComModel(dag_run_id=run[0], key=key, value=stored, **where))
            session.flush()
            if at is not None:
                session.execute(update(XComModel).filter_by(key=key, **where).values(timestamp=at))

    def remove_dags(self) -> None:
        """Remove the Dags: their versions have no serialized Dag, which would break a later run of the same Dag."""
        from airflow.models.dag import DagModel
        from airflow.models.dag_version import DagVersion
        from airflow.models.dagrun import DagRun
        from airflow.models.taskinstance import TaskInstance
        from airflow.models.xcom import XComModel
        from airflow.utils.session import create_session
        from sqlalchemy import delete, select

        with create_session() as session:
            ours = select(DagModel.dag_id).where(DagModel.bundle_name == BUNDLE)
            for model in (XComModel, TaskInstance, DagRun, DagVersion, DagModel):
                session.execute(
                    delete(model).where(model.dag_id.in_(ours)).execution_options(synchronize_session=False)
                )

    def _run(self, session: Any, dag_id: str, run_id: str) -> Any:
        from airflow.models.dag import DagModel
        from airflow.models.dag_version import DagVersion
        from airflow.models.dagbundle import DagBundleModel
        from airflow.models.dagrun import DagRun
        from airflow.utils.types import DagRunType
        from sqlalchemy import select, update

        if session.get(DagBundleModel, BUNDLE) is None:
            session.add(DagBundleModel(name=BUNDLE))
            session.flush()
        if session.get(DagModel, dag_id) is None:
            session.add(DagModel(dag_id=dag_id, bundle_name=BUNDLE, fileloc="/nowhere.py"))
            session.flush()
            session.add(DagVersion(dag_id=dag_id, version_number=1, bundle_name=BUNDLE))
            session.flush()
        version = session.scalar(select(DagVersion.id).filter_by(dag_id=dag_id))
        run = session.scalar(select(DagRun).filter_by(dag_id=dag_id, run_id=run_id))
        if run is None:
            run = DagRun(
                dag_id=dag_id,
                run_id=uuid.uuid4().hex,
                run_type=DagRunType.MANUAL,
                state="success",
                run_after=datetime.now(UTC),
                start_date=datetime.now(UTC),
            )
            session.add(run)
            session.flush()
            # Skip the model's check of the run ID: it depends on a setting, and older rows may not pass it.
            session.execute(update(DagRun.__table__).values(run_id=run_id).where(DagRun.id == run.id))
            session.expire(run)
        return run.id, version
