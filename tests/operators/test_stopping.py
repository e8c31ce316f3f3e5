"""SIGTERM at different points of a task: it ends in time, and sends nothing more."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.loopback import Exchange, Server
from tests.support.patience import PATIENCE

SOON = 8.0
"""Time limit for a process with nothing to wait for, in seconds, on a busy machine."""


class FrontOfS3:
    """Forwards requests to S3, except those that hang."""

    def __init__(self, store: Any) -> None:
        self.hangs: Callable[[str, str], bool] = lambda method, path: False
        self.hung = threading.Event()
        self._address = store.connection["extra"]["endpoint_url"].removeprefix("http://")

    def behave(self, exchange: Exchange) -> None:
        request = exchange.request
        if self.hangs(request.method, request.target.partition("?")[0]):
            self.hung.set()
            exchange.wait_until_gone()
            return
        connection = http.client.HTTPConnection(self._address, timeout=PATIENCE)
        connection.request(request.method, request.target, request.body, request.headers)
        response = connection.getresponse()
        body = response.read()
        kept = {name: value for name in ("ETag", "Date") if (value := response.headers[name])}
        exchange.answer(response.status, body, **kept)


@pytest.fixture
def s3(store: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[FrontOfS3]:
    front = FrontOfS3(store)
    with Server(front.behave) as server:
        extra = {**store.connection["extra"], "endpoint_url": server.url}
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps({**store.connection, "extra": extra}))
        yield front


@pytest.fixture
def start(gateway: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return a function that starts a task in a separate process."""
    connection = json.loads(os.environ["AIRFLOW_CONN_JOJOKEY_DEFAULT"])
    connection["extra"] = {"read_timeout": 100, "max_resend_wait": 100, "max_resends": 3}
    monkeypatch.setenv("AIRFLOW_CONN_JOJOKEY_DEFAULT", json.dumps(connection))
    run_id = uuid.uuid4().hex
    started: list[subprocess.Popen[str]] = []

    def process(
        *,
        batch: bool = False,
        try_number: int = 1,
        grace: float = 15.0,
        limit: float = 18.0,
        **arguments: Any,
    ) -> subprocess.Popen[str]:
        if not batch:
            arguments = {"prompt": "a fox", "s3_key": "fox.png", **arguments}
        child = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("stopping_child.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "AIRFLOW__JOJOKEY__SPOOL_DIRECTORY": str(tmp_path / "spool")},
            text=True,
        )
        started.append(child)
        assert child.stdin
        job = {"batch": batch, "run_id": run_id, "try_number": try_number, "grace": grace, "limit": limit}
        child.stdin.write(json.dumps({**job, "arguments": arguments}) + "\n")
        child.stdin.flush()
        return child

    yield process
    for child in started:
        child.kill()
        child.wait()
    gateway.wait_until_idle(PATIENCE)  # a request whose client is gone may still be billed


def end_of(child: subprocess.Popen[str], within: float) -> dict[str, Any]:
    """Terminate the task, and return its report."""
    child.send_signal(signal.SIGTERM)
    out, _ = child.communicate(timeout=PATIENCE)
    end: dict[str, Any] = json.loads(out.splitlines()[-1])
    assert end["seconds"] < within
    return end


NOTHING = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}


@pytest.mark.parametrize(
    "hangs",
    [
        pytest.param(
            lambda method, path: path == "/posters/_jojokey/fox.png.json" and method == "GET", id="read"
        ),
        pytest.param(
            lambda method, path: path == "/posters/_jojokey/fox.png.json" and method == "PUT", id="claim"
        ),
        pytest.param(lambda method, path: path == "/posters/fox.png", id="look"),
    ],
)
def test_s3_that_hangs_before_payment_is_interrupted(
    start: Any, gateway: Any, s3: FrontOfS3, hangs: Callable[[str, str], bool]
) -> None:
    s3.hangs = hangs
    task = start()
    assert s3.hung.wait(PATIENCE)

    end = end_of(task, SOON)

    assert end["billed"] == "no"
    assert "Nothing was sent or billed" in end["message"]
    assert end["pushed"]["usage"] == NOTHING
    assert gateway.requests == ()


def test_retry_after_an_interrupted_claim_pays_once(start: Any, gateway: Any, s3: FrontOfS3) -> None:
    s3.hangs = lambda method, path: path.endswith("fox.png.json") and method == "PUT"
    task = start()
    assert s3.hung.wait(PATIENCE)
    end_of(task, SOON)

    s3.hangs = lambda method, path: False
    out, _ = start(try_number=2).communicate(timeout=PATIENCE)

    assert "result" in json.loads(out.splitlines()[-1])
    assert len(gateway.charges) == 1


def test_wait_before_a_resend_ends_immediately(start: Any, gateway: Any, store: Any) -> None:
    gateway.behave("no_channel", retry_after=50)
    task = start()
    gateway.wait_for_request(timeout=PATIENCE)
    time.sleep(0.5)  # the response is back, and the wait has begun

    end = end_of(task, SOON)

    assert end["billed"] == "no"
    assert len(gateway.requests) == 1
    assert [attempt["outcome"] for attempt in store.receipt("fox.png")["attempts"]] == ["not_billed"]


def test_wait_for_another_process_ends_immediately(start: Any, gateway: Any, s3: FrontOfS3) -> None:
    gateway.behave("hang")
    start()
    gateway.wait_for_request(timeout=PATIENCE)
    reads: list[str] = []
    waits = threading.Event()

    def count(method: str, path: str) -> bool:
        if method == "GET" and path.endswith("fox.png.json"):
            reads.append(path)
            if len(reads) == 3:
                waits.set()
        return False

    s3.hangs = count
    second = start(try_number=2)
    assert waits.wait(PATIENCE)

    end = end_of(second, SOON)

    assert end["billed"] == "no"
    assert len(gateway.requests) == 1


def test_response_that_does_not_begin_in_time_is_aborted(start: Any, gateway: Any, store: Any) -> None:
    gateway.behave("hang")
    task = start(grace=1.0)
    gateway.wait_for_request(timeout=PATIENCE)

    end = end_of(task, 1 + SOON)

    assert end["error"] == "JojoKeyUnknownOutcomeError"
    assert len(gateway.requests) == 1
    (attempt,) = store.receipt("fox.png")["attempts"]
    assert (attempt["outcome"], attempt["billed"]) == ("unknown", "unknown")


def test_response_that_begins_within_the_grace_is_stored(start: Any, gateway: Any, store: Any) -> None:
    gateway.behave(delay=3)
    task = start(grace=10.0)
    gateway.wait_for_request(timeout=PATIENCE)

    end = end_of(task, 10 + SOON)

    assert end["result"]["images"][0]["key"] == "fox.png"
    assert end["pushed"]["usage"]["total_tokens"] == gateway.charges[0].total_tokens
    assert "fox.png" in store.objects()


def test_arriving_response_can_finish_after_the_grace(
    start: Any, gateway: Any, store: Any, tmp_path: Path
) -> None:
    gateway.behave(drip=6)
    task = start(grace=1.0)
    until = time.monotonic() + PATIENCE
    while not list((tmp_path / "spool").glob("*/*/0.part")):
        assert time.monotonic() < until, "no image arrives"
        time.sleep(0.02)

    end = end_of(task, 10 + SOON)

    assert "result" in end, end
    assert "fox.png" in store.objects()


def test_response_that_stalls_inside_an_image_is_aborted(start: Any, gateway: Any, store: Any) -> None:
    gateway.behave("stalls")
    task = start(grace=1.0)
    gateway.wait_for_request(timeout=PATIENCE)

    end = end_of(task, 6 + SOON)

    assert end["billed"] == "unknown" or end["billed"] == "yes"
    assert len(gateway.requests) == 1


def test_upload_that_hangs_ends_and_a_retry_stores_the_image(start: Any, gateway: Any, s3: FrontOfS3) -> None:
    s3.hangs = lambda method, path: path == "/posters/fox.png" and method == "PUT"
    task = start(limit=2.0)
    assert s3.hung.wait(PATIENCE)

    end = end_of(task, 3 + SOON)
    s3.hangs = lambda method, path: False
    out, _ = start(try_number=2).communicate(timeout=PATIENCE)

    assert end["billed"] == "unknown"
    assert len(gateway.charges) == 1
    again = json.loads(out.splitlines()[-1])
    assert again["pushed"]["usage"]["total_tokens"] == gateway.charges[0].total_tokens


def items(count: int) -> list[dict[str, str]]:
    return [{"prompt": f"a poster, number {number}", "s3_key": f"{number}.png"} for number in range(count)]


def test_batch_whose_bucket_check_hangs_ends(start: Any, gateway: Any, s3: FrontOfS3) -> None:
    s3.hangs = lambda method, path: "/_jojokey/batches/" in path
    task = start(batch=True, requests=items(3))
    assert s3.hung.wait(PATIENCE)

    end = end_of(task, SOON)

    assert end["billed"] == "no"
    assert end["pushed"]["usage"] == NOTHING
    assert gateway.requests == ()


def test_batch_whose_receipt_reads_hang_ends(start: Any, gateway: Any, s3: FrontOfS3) -> None:
    s3.hangs = lambda method, path: path.endswith(".png.json")
    task = start(batch=True, requests=items(20), max_images=30)
    assert s3.hung.wait(PATIENCE)

    end = end_of(task, SOON)

    assert end["billed"] == "no"
    assert gateway.requests == ()


def test_batch_whose_claims_hang_ends(start: Any, gateway: Any, s3: FrontOfS3) -> None:
    s3.hangs = lambda method, path: path.endswith(".png.json") and method == "PUT"
    task = start(batch=True, requests=items(20), limit=2.0)
    assert s3.hung.wait(PATIENCE)

    end = end_of(task, 3 + SOON)

    assert end["pushed"]["usage"] == NOTHING
    assert gateway.requests == ()


def test_batch_whose_uploads_hang_counts_possible_charges(start: Any, gateway: Any, s3: FrontOfS3) -> None:
    s3.hangs = lambda method, path: path.endswith("/0.png") and method == "PUT"
    requests = [{"prompt": f"{number}", "s3_key": f"late/{number}.png"} for number in range(2)]
    task = start(batch=True, requests=requests, limit=2.0, max_in_flight=1)
    assert s3.hung.wait(PATIENCE)

    end = end_of(task, 2 + SOON)

    (charge,) = gateway.charges
    assert charge.total_tokens > 0
    assert end["billed"] == "unknown"
    message = end["pushed"]["jojokey_images"]["message"]
    assert "0 made, 0 reused, 1 failed, 1 not started" in message
    assert "it is unknown whether 1 item was billed" in message


def test_batch_whose_manifest_hangs_reports_its_usage(start: Any, gateway: Any, s3: FrontOfS3) -> None:
    seen: list[str] = []

    def hangs(method: str, path: str) -> bool:
        if "/_jojokey/batches/" in path:
            seen.append(path)
        return len(seen) > 1  # the first is the bucket check

    s3.hangs = hangs
    task = start(batch=True, requests=items(3), limit=1.0)
    assert s3.hung.wait(PATIENCE)

    end = end_of(task, 2 + SOON)

    billed = sum(record.total_tokens for record in gateway.charges)
    assert end["pushed"]["usage"]["total_tokens"] == billed > 0
