"""A trigger that is cancelled, by a user or because the triggerer ends, sends nothing more."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest

from airflow_provider_jojokey.img2.request import ImageRequest
from airflow_provider_jojokey.payments.attempt import Owner
from airflow_provider_jojokey.payments.job import ImageJob
from airflow_provider_jojokey.store.keys import Destination
from airflow_provider_jojokey.triggers.jojokey import GenerateImageTrigger


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
    await asyncio.to_thread(gateway.wait_for_request, timeout=30)
    return task


async def cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 30)


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
    assert len(gateway.ledger) == 1


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


def test_killed_trigger_closes_its_connection(trigger: Any, gateway: Any, store: Any) -> None:
    gateway.behave("hang")

    async def run() -> Any:
        task = await start(trigger, gateway)
        await trigger.on_kill()
        return await asyncio.wait_for(task, 30)

    event = asyncio.run(run())

    assert event.payload["error"]["billed"] == "unknown"
    assert len(gateway.requests) == 1
