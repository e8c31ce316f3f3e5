"""A retry of a killed or terminated campaign pays for each poster once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.support.campaigns import posters
from tests.support.patience import PATIENCE


@pytest.fixture
def start(gateway: Any, store: Any, tmp_path: Path) -> Any:
    """Return a function that starts one try of the campaign."""
    started: list[subprocess.Popen[str]] = []

    def start_try(requests: Any, try_number: int = 1, **job: Any) -> subprocess.Popen[str]:
        settings = {name: job.pop(name) for name in ("grace", "log_delay", "largest_file") if name in job}
        environment = {
            **os.environ,
            "AIRFLOW__JOJOKEY__SPOOL_DIRECTORY": str(tmp_path / "spool"),
            "AIRFLOW__JOJOKEY__LONGEST_GENERATION": "1",
        }
        process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("child.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        started.append(process)
        assert process.stdin
        arguments = {"requests": requests, **job}
        process.stdin.write(json.dumps({"try_number": try_number, "arguments": arguments, **settings}) + "\n")
        process.stdin.flush()
        return process

    yield start_try
    for process in started:
        process.kill()
        process.wait()
    gateway.wait_until_idle(PATIENCE)  # the gateway finishes and bills requests of killed processes


def end_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, _ = process.communicate(timeout=PATIENCE)
    report: dict[str, Any] = json.loads(out.splitlines()[-1])
    return report


def times_billed(gateway: Any) -> Counter[str]:
    return Counter(record.prompt for record in gateway.charges)


def test_retry_after_kill_pays_no_poster_twice(start: Any, gateway: Any, store: Any) -> None:
    gateway.behave(delay=0.4)
    first = start(posters(24), max_in_flight=4)
    gateway.wait_for_charges(9, timeout=PATIENCE)
    first.kill()
    first.wait()
    gateway.wait_until_idle(PATIENCE)
    gateway.behave_well()

    for try_number in range(2, 7):  # as Airflow does, while the error permits a retry
        end = end_of(start(posters(24), try_number=try_number, max_in_flight=4))
        if end.get("error") != "JojoKeyBatchError":
            break

    assert set(times_billed(gateway).values()) == {1}
    objects = store.objects("posters/")
    lost = 24 - len(objects)
    billed_and_lost = len(gateway.charges) - len(objects)
    assert 0 <= billed_and_lost <= lost <= 4  # the kill may have come between a claim and its request
    if lost:
        assert f"{lost} of 24 items have no images" in end["message"]
    if billed_and_lost:
        assert "JojoKeyAlreadyBilledError" in end["message"]


def test_retry_after_kill_completes_if_repayment_is_allowed(start: Any, gateway: Any, store: Any) -> None:
    gateway.behave(delay=0.4)
    first = start(posters(12), max_in_flight=3, on_unknown_outcome="regenerate")
    gateway.wait_for_charges(4, timeout=PATIENCE)
    first.kill()
    first.wait()
    gateway.wait_until_idle(PATIENCE)
    gateway.behave_well()

    end = end_of(start(posters(12), try_number=2, max_in_flight=3, on_unknown_outcome="regenerate"))

    assert "error" not in end
    assert len(store.objects("posters/")) == 12
    assert 12 <= len(gateway.charges) <= 15
    assert max(times_billed(gateway).values()) <= 2


def test_sigterm_stores_images_in_flight_and_sends_no_more(start: Any, gateway: Any, store: Any) -> None:
    gateway.behave(delay=1.0)
    first = start(posters(20), max_in_flight=4)
    gateway.wait_for_request(6, timeout=PATIENCE)
    first.send_signal(signal.SIGTERM)

    end = end_of(first)

    sent = len(gateway.requests)
    assert sent < 20
    assert len(gateway.charges) == len(store.objects("posters/")) == sent
    assert end["error"] == "JojoKeyBatchError"
    assert "because Airflow stopped the task" in end["message"]
    billed = sum(record.total_tokens for record in gateway.charges)
    assert end["pushed"]["usage"]["total_tokens"] == billed

    gateway.behave_well()
    second = end_of(start(posters(20), try_number=2, max_in_flight=4))

    assert second["result"]["made"] == 20 - sent
    assert second["result"]["reused"] == sent
    assert set(times_billed(gateway).values()) == {1}
    assert len(gateway.charges) == 20
    assert second["result"]["usage"]["total_tokens"] == sum(charge.total_tokens for charge in gateway.charges)


def test_requests_longer_than_the_grace_are_aborted(start: Any, gateway: Any) -> None:
    gateway.behave(delay=5.0)
    first = start(posters(4), max_in_flight=2, grace=0.2)
    gateway.wait_for_request(2, timeout=PATIENCE)
    first.send_signal(signal.SIGTERM)

    end = end_of(first)

    assert end["error"] == "JojoKeyBatchError"
    assert len(gateway.requests) == 2
    gateway.wait_until_idle(PATIENCE)


@pytest.mark.parametrize("stop", [False, True])
def test_batch_counts_all_images_on_a_full_disk(
    start: Any, gateway: Any, store: Any, png: bytes, stop: bool
) -> None:
    """The disk has space for each image, but not for the results of all items."""
    gateway.behave(delay=0.5)
    first = start(posters(30), max_in_flight=6, largest_file=len(png) + 1000)
    if stop:
        gateway.wait_for_request(18, timeout=PATIENCE)
        first.send_signal(signal.SIGTERM)

    end = end_of(first)

    made = len(gateway.charges)
    assert made == len(gateway.requests) == len(store.objects("posters/"))
    assert made == 30 or stop
    assert ("error" in end) == (made < 30)
    assert end["pushed"]["usage"]["total_tokens"] == sum(charge.total_tokens for charge in gateway.charges)
    result = end["pushed"]["jojokey_images"]
    assert (result["count"], result["manifest"]) == (made, None)

    gateway.behave_well()
    second = end_of(start(posters(30), try_number=2))

    assert second["result"]["reused"] == made
    assert len(gateway.charges) == 30
