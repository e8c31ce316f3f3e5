"""Two processes or threads with one job: triggers that run twice, waits, stopping."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_jojokey import exceptions
from airflow_provider_jojokey.exceptions import JojoKeyError
from airflow_provider_jojokey.hooks.jojokey import JojoKeyHook
from airflow_provider_jojokey.payments import generate, liveness
from airflow_provider_jojokey.triggers.jojokey import GenerateImageTrigger
from tests.support.harness import Harness, name_of
from tests.support.patience import PATIENCE


async def run_trigger(harness: Harness, **job: Any) -> dict[str, Any]:
    trigger = GenerateImageTrigger(harness.job(**job).to_json(), "jojokey_default", "aws_default")
    (event,) = [event async for event in trigger.run()]
    return dict(event.payload)


@pytest.fixture
def _settings(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "airflow_provider_jojokey.settings.Settings.from_airflow_config", lambda: harness.settings
    )


@pytest.mark.usefixtures("_settings")
@pytest.mark.parametrize("reuse", ["run", "always", "never"])
def test_trigger_that_runs_twice_concurrently_pays_once(harness: Harness, reuse: str) -> None:
    harness.gateway.behave(delay=0.2)

    async def both() -> list[dict[str, Any]]:
        return await asyncio.gather(run_trigger(harness, reuse=reuse), run_trigger(harness, reuse=reuse))

    manifests = [payload["manifest"] for payload in asyncio.run(both())]

    assert sorted(manifest["reused"] for manifest in manifests) == [False, True]
    assert manifests[0]["images"] == manifests[1]["images"]
    assert harness.billed == 1


@pytest.mark.usefixtures("_settings")
@pytest.mark.parametrize("options", [{"on_unknown_outcome": "regenerate"}, {"reuse": "never"}], ids=str)
@pytest.mark.parametrize("case", ["reset", "truncated_mid_image", "not_an_image", "error_in_200"])
def test_lost_response_of_trigger_that_runs_twice_is_paid_once(
    harness: Harness, case: str, options: dict[str, str]
) -> None:
    """Airflow uses the event of one of both runs, so the task would not report a second payment."""
    prompt = f"a fox [sandbox: {case} times=1 delay=0.2]"

    async def both() -> list[dict[str, Any]]:
        return await asyncio.gather(*(run_trigger(harness, prompt=prompt, **options) for _ in range(2)))

    errors = [JojoKeyError.from_json(payload["error"]) for payload in asyncio.run(both())]

    assert harness.posts == 1
    assert all(not isinstance(error, AirflowFailException) for error in errors)
    assert errors[0].usage == errors[1].usage
    assert name_of(harness.end(prompt, try_number=2, **options)) == "image"
    assert harness.posts == 2


@pytest.mark.parametrize(
    ("options", "posts"),
    [({"on_unknown_outcome": "regenerate"}, 2), ({"reuse": "never"}, 1), ({}, 1)],
    ids=str,
)
def test_run_that_replaces_a_killed_one_pays_if_permitted(
    harness: Harness, options: dict[str, str], posts: int
) -> None:
    """A killed run reports nothing, and Airflow starts the same try of the trigger on another host."""
    harness.kill(**options)
    harness.time.skip(1000)

    harness.on("other").end(**options)

    assert harness.posts == posts


@pytest.mark.usefixtures("_settings")
def test_error_of_trigger_survives_json(harness: Harness) -> None:
    payload = asyncio.run(run_trigger(harness, prompt="a fox [sandbox: truncated]", n=2))

    error = JojoKeyError.from_json(json.loads(json.dumps(payload["error"])))
    assert isinstance(error, exceptions.JojoKeyReplyError)
    assert "1 of 2 images were received" in error.message


@contextmanager
def seen_too_late(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, run: Callable[[], Any], look: int
) -> Iterator[None]:
    """The process of ``run`` works when another one reads the receipt, and has ended when it is looked up.

    :param look: which of the look-ups is late, from 1
    """
    looks = itertools.count(1)
    looked_too_late = threading.Event()
    runs_here = liveness.runs_here

    def late(attempt: Any) -> bool:
        if threading.current_thread() is not maker and next(looks) == look:
            looked_too_late.set()
            maker.join()
        return runs_here(attempt)

    maker = threading.Thread(target=run)
    maker.start()
    harness.gateway.wait_for_request(timeout=PATIENCE)
    monkeypatch.setattr(liveness, "runs_here", late)
    yield
    assert looked_too_late.is_set()


@pytest.mark.parametrize("look", [1, 2])
def test_waiting_task_takes_result_of_process_that_just_ended(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, look: int
) -> None:
    results = []
    harness.gateway.behave(delay=0.5)
    with seen_too_late(harness, monkeypatch, lambda: results.append(harness.run()), look):
        results.append(harness.run(try_number=2))

    assert harness.billed == 1
    assert [result["reused"] for result in results] == [False, True]
    assert harness.outcomes() == ["complete"]


@pytest.mark.parametrize("look", [1, 2, 3])
@pytest.mark.parametrize("case", ["reset", "truncated_mid_image", "not_an_image", "error_in_200"])
def test_second_run_of_a_try_sees_error_of_one_that_just_ended(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, case: str, look: int
) -> None:
    job = {"prompt": f"a fox [sandbox: {case} times=1 delay=0.5]", "on_unknown_outcome": "regenerate"}
    with seen_too_late(harness, monkeypatch, lambda: harness.end(**job), look):
        harness.end(**job)

    assert harness.posts == 1
    assert name_of(harness.end(**job, try_number=2)) == "image"
    assert harness.posts == 2


def test_two_tries_reconcile_one_dead_attempt_once(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    harness.kill()
    other_is_done = threading.Event()
    reconcile = generate.reconcile

    def slowly(*arguments: Any) -> Any:
        if threading.current_thread() is not first:
            assert other_is_done.wait(PATIENCE)
        return reconcile(*arguments)

    def run_first() -> None:
        harness.run(try_number=2)
        other_is_done.set()

    monkeypatch.setattr(generate, "reconcile", slowly)
    harness.store()
    first = threading.Thread(target=run_first)
    with ThreadPoolExecutor(1) as threads:
        second = threads.submit(harness.run, try_number=2)
        first.start()
        assert second.result()["reused"] is True
    first.join()

    assert harness.billed == 1
    assert harness.outcomes() == ["complete"]


@pytest.mark.parametrize("case", ["reset", "not_an_image", "truncated_mid_image", "error_in_200"])
@pytest.mark.parametrize("permission", ["fail", "regenerate"])
def test_try_does_not_wait_for_process_whose_attempt_failed(
    harness: Harness, case: str, permission: str
) -> None:
    """For example, two triggerers on one host: the one that made the failed attempt goes on running."""
    prompt = f"a fox [sandbox: {case} times=1]"
    harness.fail(prompt)
    other, hook = harness.in_other_process(), JojoKeyHook()

    with ThreadPoolExecutor(1) as threads:
        ended = threads.submit(other.end, prompt, try_number=2, on_unknown_outcome=permission, hook=hook)
        try:
            result = ended.result(timeout=PATIENCE)
        finally:
            hook.abort()  # it would wait forever

    assert (name_of(result) == "image") is (permission == "regenerate")
    assert harness.posts == (2 if permission == "regenerate" else 1)


def test_stopped_task_that_waits_sends_nothing(harness: Harness) -> None:
    hook = JojoKeyHook()
    harness.gateway.behave(delay=1.0)
    with ThreadPoolExecutor(2) as threads:
        maker = threads.submit(harness.run)
        harness.gateway.wait_for_request(timeout=PATIENCE)
        waiter = threads.submit(harness.fail, hook=hook)
        hook.abort()
        assert "Nothing was sent" in waiter.result().message
        assert name_of(maker.result()) == "image"
    assert harness.billed == 1


def test_stopped_task_sends_nothing_after_its_claim(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = JojoKeyHook()
    generate_once = JojoKeyHook._generate_once

    def stop(self: JojoKeyHook, *arguments: Any) -> Any:
        self.abort()
        return generate_once(self, *arguments)

    monkeypatch.setattr(JojoKeyHook, "_generate_once", stop)

    error = harness.fail(hook=hook)

    assert (error.billed, harness.posts) == ("no", 0)
    assert harness.outcomes() == ["not_billed"]


def test_stopped_task_does_not_resend(harness: Harness) -> None:
    harness.connect(max_resends=5, max_resend_wait=60)
    hook = JojoKeyHook()
    with ThreadPoolExecutor(1) as threads:
        ended = threads.submit(harness.end, "a fox [sandbox: rate_limited retry_after=30]", hook=hook)
        harness.gateway.wait_for_request(timeout=PATIENCE)
        hook.abort()
        assert isinstance(ended.result(timeout=PATIENCE), JojoKeyError)
    assert harness.posts == 1


def test_aborted_response_is_not_paid_again(harness: Harness) -> None:
    hook = JojoKeyHook()
    harness.gateway.behave(delay=1.0, times=1)
    with ThreadPoolExecutor(1) as threads:
        ended = threads.submit(harness.fail, hook=hook)
        harness.gateway.wait_for_request(timeout=PATIENCE)
        hook.abort()
        assert ended.result(timeout=PATIENCE).billed == "unknown"
    harness.gateway.wait_for_charges(timeout=PATIENCE)

    results = harness.run_with_retries(first=2)

    assert isinstance(results[-1], exceptions.JojoKeyAlreadyBilledError)
    assert harness.posts == 1
