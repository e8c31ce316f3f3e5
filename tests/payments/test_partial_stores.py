"""Stores with partial conditional writes, and S3 responses that are lost, broken or wrong."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from airflow_provider_jojokey import exceptions
from airflow_provider_jojokey.payments import receipt_store
from airflow_provider_jojokey.payments.job import Limit
from airflow_provider_jojokey.store.s3 import ImageStore
from tests.support import fault_proxy
from tests.support.fault_proxy import FaultProxy, Forward, Request, Response, on, times
from tests.support.harness import Harness, name_of
from tests.support.patience import PATIENCE

STORES = {
    "conforming": [],
    "ignores If-Match": [fault_proxy.ignore("if-match")],
    "ignores If-None-Match": [fault_proxy.ignore("if-none-match")],
    "ignores both": [fault_proxy.ignore("if-match"), fault_proxy.ignore("if-none-match")],
    "rejects If-Match": [fault_proxy.refuse_if_match],
    "knows no conditions": [fault_proxy.no_conditions()],
    "compares ETags without quotes": [fault_proxy.ceph],
}


@pytest.fixture(params=STORES, ids=str)
def partial(request: pytest.FixtureRequest, proxy: FaultProxy) -> str:
    proxy.faults = list(STORES[request.param])
    return str(request.param)


def test_image_is_paid_once_and_delivered(harness: Harness, partial: str) -> None:
    first = harness.run()
    again = harness.run(try_number=2)

    assert again == {**first, "reused": True}
    assert harness.billed == 1
    assert harness.outcomes() == ["complete"]


def test_broken_response_is_recorded(harness: Harness, partial: str) -> None:
    error = harness.fail("a fox [sandbox: truncated]", n=2)

    assert (error.billed, harness.outcomes()) == ("yes", ["billed"])
    assert harness.spooled() == []


def test_killed_task_is_not_paid_again(harness: Harness, partial: str) -> None:
    harness.kill()

    manifest = harness.run(try_number=2)

    assert (manifest["reused"], harness.billed) == (True, 1)


def test_two_workers_of_one_task_pay_once(
    harness: Harness, partial: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receipt_store, "CLAIM_RECHECK", 0.5)
    harness.gateway.behave(delay=0.5)
    workers = [harness.on("a"), harness.on("b")]
    harness.store()
    together = threading.Barrier(2)

    def run(worker: Harness) -> dict[str, Any]:
        together.wait(PATIENCE)
        return worker.run()

    with ThreadPoolExecutor(2) as threads:
        manifests = list(threads.map(run, workers))

    assert harness.billed == 1
    assert sorted(manifest["reused"] for manifest in manifests) == [False, True]
    assert harness.outcomes() == ["complete"]


def test_run_limit_holds_for_tasks_in_turn(harness: Harness, partial: str) -> None:
    limits = {"run_limit": Limit(images=3)}
    results = [harness.end(key=f"{i}.png", task=f"t{i}", limits=limits) for i in range(5)]

    assert [name_of(result) for result in results] == ["image"] * 3 + ["JojoKeyBudgetError"] * 2
    assert harness.billed == 3


@pytest.mark.parametrize("store", ["conforming", "compares ETags without quotes"])
def test_run_limit_holds_for_concurrent_tasks(harness: Harness, proxy: FaultProxy, store: str) -> None:
    proxy.faults = list(STORES[store])
    harness.run(key="warm.png", task="warm", run="sunday")  # the store's conditions are tested
    limits = {"run_limit": Limit(images=3)}
    harness.gateway.behave(delay=0.2)

    with ThreadPoolExecutor(6) as threads:
        results = list(
            threads.map(lambda i: harness.end(key=f"{i}.png", task=f"t{i}", limits=limits), range(6))
        )

    assert sorted(name_of(result) for result in results).count("image") == 3
    assert harness.billed == 4


def test_later_claim_wins_without_conditions(harness: Harness, proxy: FaultProxy, monkeypatch: Any) -> None:
    """The slower of two writers replaces the claim of the faster one, which finds out before it pays."""
    monkeypatch.setattr(receipt_store, "CLAIM_RECHECK", 1.0)
    proxy.faults = list(STORES["ignores both"])
    harness.run(key="warm.png", task="warm")
    claims = iter((0.4, 0.0))
    write, lock = ImageStore.write, threading.Lock()

    def slow_write(self: Any, bucket: str, key: str, data: bytes, replacing: str | None) -> str | None:
        if "fox" in key:
            with lock:
                delay = next(claims, 0.0)
            threading.Event().wait(delay)
        return write(self, bucket, key, data, replacing)

    monkeypatch.setattr(ImageStore, "write", slow_write)
    harness.gateway.behave(delay=2.0)
    with ThreadPoolExecutor(2) as threads:
        ends = list(threads.map(lambda worker: worker.end(), [harness.on("a"), harness.on("b")]))

    assert [name_of(end) for end in ends] == ["image", "image"]
    assert harness.billed == 2  # the warm-up and one image


# --- F6: stores without conditions -----------------------------------------------------------------------------------


def test_attempt_erased_by_slow_writer_is_recorded_again(harness: Harness, proxy: FaultProxy) -> None:
    """Another run's late write takes this run's complete attempt out of the receipt."""
    proxy.faults = list(STORES["ignores both"])
    harness.run(run="monday")
    old = harness.receipt()
    harness.run(run="tuesday")
    both = harness.receipt()
    late = {"done": False}

    def overwrite(request: Request, forward: Forward) -> Response:
        response = forward(request)
        if b'"complete"' in request.body and b"wednesday" in request.body and not late["done"]:
            late["done"] = True
            forward(replace(request, body=old.to_json(), headers=_headers(request, old.to_json())))
        return response

    proxy.faults = [*STORES["ignores both"], on("PUT", ".json", overwrite)]
    harness.run(run="wednesday")

    runs = {attempt.owner.run_id for attempt in harness.receipt().attempts}
    assert late["done"]
    assert "wednesday" in runs
    assert len(both.attempts) == 2


def _headers(request: Request, body: bytes) -> dict[str, str]:
    kept = {k: v for k, v in request.headers.items() if not k.startswith(("x-amz-checksum", "content-md5"))}
    return {**kept, "content-length": str(len(body))}


@pytest.mark.parametrize("reuse", ["run", "always"])
@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_bare_404_of_a_proxy_does_not_pay_again(
    harness: Harness, proxy: FaultProxy, reuse: str, method: str
) -> None:
    harness.run()
    proxy.faults = [on(method, "fox.png", fault_proxy.bare_404)]
    if method == "HEAD":
        proxy.faults.append(on("GET", "/fox.png", fault_proxy.bare_404))

    result = harness.end(run="monday" if reuse == "run" else "tuesday", try_number=2, reuse=reuse)

    assert harness.billed == 1
    assert name_of(result) in ("JojoKeyStoreError", "JojoKeyReceiptError")


# --- F11 b, c: broken errors and contradictions ----------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "PUT", "HEAD"])
def test_reset_within_an_error_of_s3_costs_nothing(harness: Harness, proxy: FaultProxy, method: str) -> None:
    broken = fault_proxy.answer(replace(fault_proxy.error(500, "InternalError", "x" * 500), cut=40))
    proxy.faults = [on(method, "fox.png.json" if method != "HEAD" else "fox.png", broken)]

    result = harness.end(try_number=2)

    if method != "HEAD" or isinstance(result, exceptions.JojoKeyError):
        assert isinstance(result, exceptions.JojoKeyStoreError)
        assert (result.billed, result.sent, harness.posts) == ("no", False, 0)


def test_contradicting_store_ends_the_loop(harness: Harness, proxy: FaultProxy) -> None:
    """Every conditional PUT fails although a GET finds nothing."""
    failed = fault_proxy.error(412, "PreconditionFailed")
    proxy.faults = [
        on("PUT", "fox.png.json", fault_proxy.answer(failed)),
        on("GET", "fox.png.json", fault_proxy.answer(fault_proxy.error(404, "NoSuchKey"))),
    ]

    error = harness.fail(try_number=2)

    assert isinstance(error, exceptions.JojoKeyStoreError)
    assert "jojokey check" in error.message
    assert (harness.posts, harness.spooled()) == (0, [])
    assert len(proxy.requests) < 250


# --- lost responses of S3 --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault", [fault_proxy.lose_request, fault_proxy.lose_response], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("nth", range(8))
def test_lost_s3_response_neither_pays_twice_nor_loses_images(
    harness: Harness, proxy: FaultProxy, fault: Any, nth: int
) -> None:
    proxy.faults = [times(1, fault, after=nth)]

    results = harness.run_with_retries()

    assert isinstance(results[-1], dict)
    assert harness.billed == 1
    assert harness.spooled() == []
    assert harness.receipt().attempts[-1].outcome == "complete"


@pytest.mark.parametrize("nth", range(4))
def test_lost_s3_response_on_store_without_conditions(harness: Harness, proxy: FaultProxy, nth: int) -> None:
    proxy.faults = [*STORES["ignores both"], on("PUT", "", times(1, fault_proxy.lose_response, after=nth))]

    results = harness.run_with_retries()

    assert isinstance(results[-1], dict)
    assert harness.billed == 1
