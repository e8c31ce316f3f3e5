"""Requests to S3 for one image. Each one costs money and time."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_jojokey.store import documents
from tests.support import fault_proxy
from tests.support.fault_proxy import FaultProxy
from tests.support.harness import Harness

MOST = 4
"""Requests for one image: look at the key or read the receipt, claim, upload, complete."""
TEST_OF_CONDITIONS = 3


def lines(requests: list[Any]) -> list[str]:
    return [f"{request.method} {request.target}" for request in requests]


@pytest.fixture
def aws(proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> FaultProxy:
    monkeypatch.setattr(documents, "is_aws", lambda _: True)
    return proxy


def test_first_image_on_aws_takes_four_requests(harness: Harness, aws: FaultProxy) -> None:
    with aws.counting() as requests:
        harness.run()
    assert len(requests) <= MOST, lines(requests)


def test_retry_on_aws_takes_few_requests(harness: Harness, aws: FaultProxy) -> None:
    harness.fail("a fox [sandbox: no_channel]")
    with aws.counting() as requests:
        harness.run(try_number=2)
    assert len(requests) <= MOST + 1, lines(requests)


def test_reused_image_takes_two_requests(harness: Harness, aws: FaultProxy) -> None:
    harness.run()
    with aws.counting() as requests:
        harness.run(try_number=2)
    assert len(requests) <= 2, lines(requests)


def test_conditions_are_tested_once_per_process(harness: Harness, proxy: FaultProxy) -> None:
    with proxy.counting() as first:
        harness.run()
    with proxy.counting() as second:
        harness.run(key="owl.png", task="other")

    assert len(first) <= MOST + TEST_OF_CONDITIONS + 1, lines(first)
    assert len(second) <= MOST, lines(second)


def test_store_without_conditions_is_tested_once(harness: Harness, proxy: FaultProxy) -> None:
    proxy.faults = [fault_proxy.ignore("if-match"), fault_proxy.ignore("if-none-match")]
    harness.run()
    with proxy.counting() as requests:
        harness.run(key="owl.png", task="other")

    # Reads around the claim, before the upload and around the last update find lost updates.
    assert len(requests) <= MOST + 6, lines(requests)


def test_image_with_several_files_adds_one_request_each(harness: Harness, aws: FaultProxy) -> None:
    with aws.counting() as requests:
        harness.run(n=3)
    puts = [request for request in requests if request.method == "PUT"]
    assert len(puts) == 2 + 3, lines(requests)
