"""The trigger of a deferred task: the same way of an image, in threads of the triggerer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import cache
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_jojokey.budget import generate_within_limits, limits
from airflow_provider_jojokey.exceptions import JojoKeyError
from airflow_provider_jojokey.order import Order

MAX_THREADS = 256
"""Threads of one triggerer that may wait for images; more triggers wait their turn."""


class GenerateImageTrigger(BaseTrigger):
    """Make the images of one order. It may be run twice, and still pays once.

    A triggerer that restarts, or two that believe they are alone, run a trigger again. The order's
    receipt in S3 is claimed before anything is paid, so the second one waits for the first.

    :param order: what is wanted, see :meth:`Order.to_json`
    :param jojokey_conn_id: the connection to JojoKey
    :param aws_conn_id: the connection to S3
    :param limits: what may be spent, by the operators' arguments
    """

    def __init__(
        self,
        order: dict[str, Any],
        jojokey_conn_id: str,
        aws_conn_id: str | None,
        limits: dict[str, int | None] | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.order = order
        self.jojokey_conn_id = jojokey_conn_id
        self.aws_conn_id = aws_conn_id
        self.limits = limits or {}

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what it takes to make this trigger again."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "order": self.order,
                "jojokey_conn_id": self.jojokey_conn_id,
                "aws_conn_id": self.aws_conn_id,
                "limits": self.limits,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Yield one event: the order, and the manifest or the error."""
        loop = asyncio.get_running_loop()
        outcome = await loop.run_in_executor(_threads(), copy_context().run, self._generate)
        yield TriggerEvent({"order": self.order, **outcome})  # type: ignore[no-untyped-call]

    def _generate(self) -> dict[str, Any]:
        from airflow_provider_jojokey.hooks.jojokey import JojoKeyHook
        from airflow_provider_jojokey.settings import Settings
        from airflow_provider_jojokey.store.s3 import ImageStore

        try:
            manifest = generate_within_limits(
                Order.from_json(self.order),
                limits(self.limits),
                jojokey=JojoKeyHook(self.jojokey_conn_id),
                store=ImageStore(self.aws_conn_id),
                settings=Settings.of_airflow(),
            )
        except JojoKeyError as error:
            return {"error": error.to_json()}
        return {"manifest": manifest}


@cache
def _threads() -> ThreadPoolExecutor:
    # Of its own: the event loop's default pool is shared with everything else in the triggerer.
    return ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="jojokey")
