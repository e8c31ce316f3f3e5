from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_jojokey.sandbox import Gateway
from tests.support.buckets import Bucket, moto_bucket
from tests.support.commands import Run, run_in_process


@pytest.fixture(scope="session")
def _moto() -> Iterator[Bucket]:
    with moto_bucket() as bucket:
        yield bucket


@pytest.fixture
def bucket(_moto: Bucket, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """An empty bucket with its AWS connection."""
    client = _moto.client()
    for entry in client.list_objects_v2(Bucket=_moto.name).get("Contents", []):
        client.delete_object(Bucket=_moto.name, Key=entry["Key"])
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(_moto.connection))
    return _moto


@pytest.fixture
def name_bucket(_moto: Bucket, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Set the default bucket of the AWS connection."""

    def name(default: str) -> None:
        connection = json.loads(json.dumps(_moto.connection))
        connection["extra"]["service_config"] = {"s3": {"bucket_name": default}}
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(connection))

    return name


@pytest.fixture
def connect(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def connection(token: str | None = None, host: str | None = None, **extra: Any) -> None:
        values = {
            "conn_type": "jojokey",
            "host": host or gateway.url,
            "password": gateway.token if token is None else token,
            "extra": {"connect_timeout": 2, "read_timeout": 5, "max_resends": 0, **extra},
        }
        monkeypatch.setenv("AIRFLOW_CONN_JOJOKEY_DEFAULT", json.dumps(values))

    connection()
    return connection


@pytest.fixture
def jojokey(
    connect: Callable[..., None],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Run:
    """Run a command like ``python -m airflow_provider_jojokey``, in this process and in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    return partial(run_in_process, capfd)
