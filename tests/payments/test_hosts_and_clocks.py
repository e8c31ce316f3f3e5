"""Workers whose clocks differ, and machines with the same name."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from airflow_provider_jojokey import exceptions
from airflow_provider_jojokey.payments import liveness
from tests.support import fault_proxy
from tests.support.fault_proxy import FaultProxy
from tests.support.harness import Harness, Killed, name_of
from tests.support.patience import PATIENCE

SKEWS = [-3600, -600, -20, 20, 600, 3600]


def assert_second_try_reuses(harness: Harness, first: Harness, second: Harness) -> None:
    """Start another try while the request of the first is in flight; it must not pay."""
    with ThreadPoolExecutor(2) as threads:
        first_try = threads.submit(first.run)
        harness.gateway.wait_for_request(timeout=PATIENCE)
        second_try = threads.submit(second.run, try_number=2)

    assert sorted((first_try.result()["reused"], second_try.result()["reused"])) == [False, True]
    assert harness.billed == 1


@pytest.mark.parametrize("ahead", SKEWS)
@pytest.mark.parametrize("skewed", ["first", "second", "both"])
def test_skewed_host_waits_for_request_in_flight(harness: Harness, ahead: float, skewed: str) -> None:
    harness.gateway.behave(delay=0.6)
    first = harness.on("first", ahead=ahead if skewed != "second" else 0)
    second = harness.on("second", ahead=-ahead if skewed == "both" else ahead if skewed == "second" else 0)
    harness.store()
    assert_second_try_reuses(harness, first, second)


@pytest.mark.parametrize("sender", SKEWS)
@pytest.mark.parametrize("retrier", [-600, 0, 600])
def test_lost_response_is_not_paid_again_by_skewed_hosts(
    harness: Harness, sender: float, retrier: float
) -> None:
    harness.set(longest_generation=300.0)
    harness.on("sender", ahead=sender).fail("a fox [sandbox: reset times=1]")

    results = harness.on("retrier", ahead=retrier).run_with_retries(
        "a fox [sandbox: reset times=1]", first=2, retries=6
    )

    assert isinstance(results[-1], exceptions.JojoKeyError)
    assert results[-1].billed == "unknown"
    assert harness.posts == 1


@pytest.mark.parametrize(
    "date", [fault_proxy.date(None), fault_proxy.date("yesterday")], ids=["none", "broken"]
)
@pytest.mark.parametrize("ahead", [-400, 400])
def test_store_without_date_tolerates_skew(harness: Harness, date: fault_proxy.Fault, ahead: float) -> None:
    with FaultProxy(harness.bucket.endpoint_url, date) as proxy:
        harness.bucket = replace(harness.bucket, endpoint_url=proxy.url)
        harness.connect()
        harness.gateway.behave(delay=0.6)
        harness.store()
        with ThreadPoolExecutor(2) as threads:
            first_try = threads.submit(harness.on("first").run)
            harness.gateway.wait_for_request(timeout=PATIENCE)
            second_try = threads.submit(harness.on("second", ahead=ahead).run, try_number=2)

        assert sorted((first_try.result()["reused"], second_try.result()["reused"])) == [False, True]
        assert harness.receipt().attempts[0].clock == "host"
        assert harness.billed == 1


def test_other_host_takes_over_after_the_lease_only(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness.on("first").kill()
    second = harness.on("second")
    lease = harness.receipt().attempts[0].lease_until - harness.store().now()
    waits: list[float] = []

    def wait(seconds: float, stopping: object = None) -> bool:
        waits.append(seconds)
        harness.time.skip(lease.total_seconds() / 4)
        return False

    monkeypatch.setattr("airflow_provider_jojokey.payments.clock.pause", wait)
    error = second.fail(try_number=2)

    assert isinstance(error, exceptions.JojoKeyUnknownOutcomeError)
    assert len(waits) >= 3
    assert harness.posts == 1


def test_machines_with_the_same_name_are_different_hosts(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process ID of another machine is missing on this one; its process may be alive."""
    harness.gateway.behave(delay=0.6)
    first, second = harness.on("worker", "machine-1"), harness.on("worker", "machine-2")
    harness.store()
    monkeypatch.setattr(liveness, "is_running", lambda worker: False)
    assert_second_try_reuses(harness, first, second)


def test_host_that_wakes_up_late_does_not_send(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """It slept between claim and request; another host has taken over meanwhile."""
    first, second = harness.on("first"), harness.on("second")
    generate = "airflow_provider_jojokey.hooks.jojokey.JojoKeyHook.generate"
    with pytest.MonkeyPatch.context() as patch:
        from airflow_provider_jojokey.hooks.jojokey import JojoKeyHook

        real = JojoKeyHook.generate

        def sleep_first(self: JojoKeyHook, *arguments: object, **more: object) -> object:
            patch.setattr(generate, real)
            harness.time.skip(3600)
            assert name_of(second.end(try_number=2)) == "JojoKeyAlreadyBilledError"
            return real(self, *arguments, **more)  # type: ignore[arg-type]

        patch.setattr(generate, sleep_first)
        error = first.fail()

    assert isinstance(error, exceptions.JojoKeyStoreError)
    assert (error.billed, harness.posts) == ("no", 0)


def test_first_hosts_images_survive_takeover(harness: Harness) -> None:
    """The second host recorded the attempt as lost; then the first one's spool turns up."""
    first, second = harness.on("first"), harness.on("second")
    first.kill(n=2)
    harness.time.skip(3600)
    second.fail(n=2, try_number=2)

    manifest = first.run(n=2, try_number=3)

    assert (manifest["reused"], len(manifest["images"]), harness.posts) == (True, 2, 1)


def test_try_that_dies_while_waiting_changes_nothing(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness.on("first").kill()

    def die(*_: object) -> bool:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("airflow_provider_jojokey.payments.clock.pause", die)
        with pytest.raises(Killed):
            harness.on("second").run(try_number=2)

    assert harness.outcomes() == ["open"]
