from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from airflow_provider_jojokey.img2 import download
from airflow_provider_jojokey.payments import context, generate, receipt_store, usage
from airflow_provider_jojokey.sandbox import Gateway, S3Server
from airflow_provider_jojokey.store import conditions
from tests.support.buckets import Bucket, bucket_of, moto_bucket
from tests.support.fault_proxy import FaultProxy
from tests.support.harness import Harness, Time, simulate_hosts

_numbers = itertools.count()


@pytest.fixture(scope="module")
def moto() -> Iterator[Bucket]:
    with moto_bucket() as bucket:
        yield bucket


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    return simulate_hosts(monkeypatch)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten waits that have no setting."""
    monkeypatch.setattr(download, "WAIT", 0.02)
    monkeypatch.setattr(context, "POLL", 0.02)
    monkeypatch.setattr(context, "LOG_DELAY", 0.0)
    monkeypatch.setattr(usage, "USAGE_RETRY", 0.05)
    monkeypatch.setattr(receipt_store, "CLAIM_RECHECK", 0.05)
    monkeypatch.setattr(generate, "CONFLICT_PAUSE", 0.002)
    monkeypatch.setattr(conditions, "support", {})


@pytest.fixture
def harness(
    moto: Bucket, gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None, time: Time
) -> Harness:
    """A worker with a bucket of its own, on a store with conditional writes."""
    bucket = replace(moto, name=f"posters-{next(_numbers)}")
    bucket.client().create_bucket(Bucket=bucket.name)
    return Harness(gateway, bucket, tmp_path / "spool", monkeypatch, time=time)


@pytest.fixture
def proxy(harness: Harness) -> Iterator[FaultProxy]:
    """A proxy between the worker and its bucket, whose ``faults`` a test sets."""
    with FaultProxy(harness.bucket.endpoint_url) as proxy:
        harness.bucket = replace(harness.bucket, endpoint_url=proxy.url)
        harness.connect()
        yield proxy


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[S3Server]:
    """An S3 server without conditional writes, which a test may stop and start."""
    with S3Server(tmp_path / "objects") as server:
        yield server


@pytest.fixture
def unconditional(
    s3: S3Server, gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None, time: Time
) -> Harness:
    """A worker on a store without conditional writes."""
    return Harness(gateway, bucket_of(s3), tmp_path / "spool", monkeypatch, time=time)
