"""A trigger sends nothing more after it was cancelled or its task timed out."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from typing import Any

import pytest
from msgspec.structs import force_setattr

from airflow_provider_jojokey.img2.request import ImageRequest
from airflow_provider_jojokey.payments.attempt import Owner
from airflow_provider_jojokey.payments.job import ImageJob
from airflow_provider_jojokey.store.keys import Destination
from airflow_provider_jojokey.triggers.jojokey import GenerateImageTrigger, _threads
from tests.support.patience import PATIENCE
from tests.support.suspension import suspended


@pytest.fixture
def trigger(store: Any, gateway: Any) -> GenerateImageTrigger:
    owner = Owner("dag", uuid.uuid4().hex, "image")
    job = ImageJob(ImageRequest("a fox"), Destination("posters", "fox.png"), owner)
    return GenerateImageTrigger(job.to_json(), "jojokey_default", "aws_default")


async def start(trigger: GenerateImageTrigger, gateway: Any) -> asyncio.Task[Any]:
    """Run the trigger until it has sent its request."""

    async def first_event() -> Any:
        async for event in trigger.run():
            return event

    task = asyncio.create_task(first_event())
    await asyncio.to_thread(gateway.wait_for_request, timeout=PATIENCE)
    return task


async def cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, PATIENCE)


def test_wrong_setting_of_the_triggerer_is_an_event(
    trigger: Any, gateway: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception would leave the task without the reason, and Airflow would retry it."""
    monkeypatch.setenv("AIRFLOW__JOJOKEY__UPLOAD_PATIENCE", "long")

    async def run() -> Any:
        async for event in trigger.run():
            return event

    error = asyncio.run(run()).payload["error"]

    assert error["class"] == "JojoKeyRequestError"
    assert "upload_patience" in error["what"]
    assert gateway.requests == ()


def test_cancelled_trigger_does_not_resend(trigger: Any, gateway: Any, store: Any) -> None:
    gateway.behave("no_channel", times=1, retry_after=1)

    async def run() -> None:
        task = await start(trigger, gateway)
        await cancel(task)
        await asyncio.sleep(1.5)  # the resend would be due

    asyncio.run(run())

    assert len(gateway.requests) == 1
    assert [attempt["outcome"] for attempt in store.receipt("fox.png")["attempts"]] == ["not_billed"]


def test_cancelled_trigger_stores_the_response_in_flight(trigger: Any, gateway: Any, store: Any) -> None:
    gateway.behave(delay=1.0)

    async def run() -> None:
        await cancel(await start(trigger, gateway))

    asyncio.run(run())

    assert [attempt["outcome"] for attempt in store.receipt("fox.png")["attempts"]] == ["complete"]
    assert len(gateway.charges) == 1


def test_trigger_cancelled_before_its_request_sends_nothing(trigger: Any, gateway: Any, store: Any) -> None:
    async def run() -> None:
        async for _ in trigger.run():
            raise AssertionError("it fired")

    async def cancel_at_once() -> None:
        task = asyncio.create_task(run())
        await asyncio.sleep(0)
        await cancel(task)
        await asyncio.sleep(2)

    asyncio.run(cancel_at_once())

    assert gateway.requests == ()


def test_trigger_cancelled_right_before_its_send_sends_nothing(
    trigger: Any, gateway: Any, store: Any
) -> None:
    """Its triggerer is about to end, so nothing would store the image."""
    _threads.cache_clear()  # so that the trigger starts a thread

    async def cancel_when_suspended() -> None:
        task = asyncio.create_task(anext(trigger.run()))
        assert await asyncio.to_thread(suspension.reached.wait, PATIENCE)
        await cancel(task)

    with suspended("GenerateImageTrigger._record_send", "jojokey") as suspension:
        asyncio.run(cancel_when_suspended())
    _threads().shutdown()
    _threads.cache_clear()

    assert gateway.requests == ()
    assert [attempt["outcome"] for attempt in store.receipt("fox.png")["attempts"]] == ["not_billed"]


def test_killed_trigger_closes_its_connection(trigger: Any, gateway: Any, store: Any) -> None:
    gateway.behave("hang")

    async def run() -> Any:
        task = await start(trigger, gateway)
        await trigger.on_kill()
        return await asyncio.wait_for(task, PATIENCE)

    event = asyncio.run(run())

    assert event.payload["error"]["billed"] == "unknown"
    assert len(gateway.requests) == 1


def run(trigger: GenerateImageTrigger, timeout: float) -> Any:
    """Return the event of a trigger whose task's ``execution_timeout`` ends in some seconds."""
    trigger.deadline = time.time() + timeout

    async def first_event() -> Any:
        async for event in trigger.run():
            return event.payload

    return asyncio.run(asyncio.wait_for(first_event(), PATIENCE))


def test_timeout_ends_a_request_in_flight(trigger: Any, gateway: Any, store: Any) -> None:
    gateway.behave("hang")

    event = run(trigger, 5)

    assert (event["error"]["class"], event["error"]["billed"]) == ("JojoKeyUnknownOutcomeError", "unknown")
    assert "execution_timeout" in event["error"]["what"]
    assert len(gateway.requests) == 1
    assert [attempt["outcome"] for attempt in store.receipt("fox.png")["attempts"]] == ["unknown"]


def test_timeout_prevents_a_resend(trigger: Any, gateway: Any, store: Any) -> None:
    gateway.behave("rate_limited", retry_after=40)
    force_setattr(trigger.hook.settings, "max_resend_wait", 60.0)

    event = run(trigger, 4)

    assert event["error"]["billed"] == "no"
    assert len(gateway.requests) == 1


def test_timeout_before_the_start_costs_nothing(trigger: Any, gateway: Any, store: Any) -> None:
    event = run(trigger, -1)

    assert (event["error"]["billed"], event["error"]["sent"]) == ("no", False)
    assert gateway.requests == ()


def test_paid_image_is_reused_after_the_timeout(trigger: Any, gateway: Any, store: Any) -> None:
    paid = run(trigger, 60)
    again = GenerateImageTrigger(trigger.job, "jojokey_default", "aws_default")

    event = run(again, -1)

    assert event["manifest"]["images"] == paid["manifest"]["images"]
    assert len(gateway.requests) == 1


def test_response_that_is_arriving_at_the_timeout_is_stored(trigger: Any, gateway: Any, store: Any) -> None:
    gateway.behave(drip=20)

    event = run(trigger, 8)

    assert "manifest" in event, event
    assert "fox.png" in store.objects()


def test_deadline_survives_a_restart_of_the_triggerer(trigger: Any) -> None:
    trigger.deadline = 1_800_000_000.5
    path, arguments = trigger.serialize()

    assert GenerateImageTrigger(**arguments).deadline == trigger.deadline
    assert path.endswith(".GenerateImageTrigger")


def test_timeout_of_a_deferred_task_keeps_its_usage(airflow: Any, gateway: Any, store: Any) -> None:
    gateway.behave("hang")

    result = airflow.run(
        "late",
        """
        GenerateImageOperator(
            task_id="image", prompt="a fox", s3_bucket="posters", s3_key="late.png", deferrable=True,
            execution_timeout=timedelta(seconds=8),
        )
        """,
    )

    assert result.states == {("image", -1): "failed"}
    assert result.xcom("usage")["total_tokens"] == 0
    error = result.xcom("jojokey_images")
    assert (error["error"], error["billed"]) == ("JojoKeyUnknownOutcomeError", "unknown")
    assert "execution_timeout" in error["message"]
    assert len(gateway.requests) == 1


def test_event_holds_only_what_a_database_stores(trigger: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = {"model": "gpt\0\ud800", "seconds": float("nan"), "usage": {"total_tokens": 10**30}}
    monkeypatch.setattr(trigger, "_generate", lambda: {"manifest": manifest})

    event = run(trigger, 60)

    json.dumps(event, allow_nan=False).encode()
    assert event["manifest"] == {
        "model": "gpt\ufffd\ufffd", "seconds": None, "usage": {"total_tokens": None},
    }  # fmt: skip


def test_failing_template_after_payment_does_not_fail_the_task(
    airflow: Any, gateway: Any, store: Any, tmp_path: Any
) -> None:
    path = airflow.write(
        "renders_once.py",
        f"""
        from pathlib import Path
        from airflow.sdk import DAG
        from airflow_provider_jojokey.operators.jojokey import GenerateImageOperator

        def once():
            Path({str(tmp_path / "rendered")!r}).touch(exist_ok=False)
            return "a fox"

        with DAG("renders_once", schedule=None, user_defined_macros={{"once": once}}):
            GenerateImageOperator(
                task_id="image", prompt="{{{{ once() }}}}", s3_bucket="posters", s3_key="once.png", deferrable=True
            )
        """,
    )

    result = airflow.run_file("renders_once", path)

    assert (result.state, result.tries) == ("success", {("image", -1): 1})
    assert result.xcom("jojokey_images")["prompt"] == "a fox"
    assert len(gateway.charges) == 1
