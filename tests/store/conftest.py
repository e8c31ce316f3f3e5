from __future__ import annotations

from collections.abc import Iterator

import pytest

from airflow_provider_jojokey.sandbox import S3Server
from tests.support.buckets import Bucket, bucket_of, moto_bucket


@pytest.fixture(scope="module")
def moto() -> Iterator[Bucket]:
    with moto_bucket() as bucket:
        yield bucket


@pytest.fixture(scope="module")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    with S3Server(tmp_path_factory.mktemp("rclone") / "objects") as server:
        yield bucket_of(server)
