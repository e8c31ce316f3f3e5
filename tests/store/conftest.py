from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from airflow_provider_jojokey.sandbox import S3Server
from airflow_provider_jojokey.store import conditions
from airflow_provider_jojokey.store.s3 import ImageStore
from tests.support.buckets import Bucket, bucket_of, moto_bucket
from tests.support.clients import client_to, store_of
from tests.support.fault_proxy import FaultProxy

_numbers = itertools.count()


@pytest.fixture(autouse=True)
def _untested(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what is known about stores, as in a new process."""
    monkeypatch.setattr(conditions, "support", {})


@pytest.fixture(scope="module")
def moto() -> Iterator[Bucket]:
    with moto_bucket() as bucket:
        yield bucket


@pytest.fixture(scope="module")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    with S3Server(tmp_path_factory.mktemp("rclone") / "objects") as server:
        yield bucket_of(server)


@pytest.fixture(params=["moto", "rclone"])
def bucket(request: pytest.FixtureRequest) -> Bucket:
    return request.getfixturevalue(request.param)  # type: ignore[no-any-return]


@pytest.fixture
def key() -> str:
    return f"{next(_numbers)}/receipt.json"


@pytest.fixture
def proxy(moto: Bucket) -> Iterator[FaultProxy]:
    with FaultProxy(moto.endpoint_url) as proxy:
        yield proxy


@pytest.fixture
def store(proxy: FaultProxy) -> ImageStore:
    return store_of(client_to(proxy.url))
