"""The trigger of a deferred task: the same payment path, in threads of the triggerer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_jojokey.exceptions import JojoKeyError
from airflow_provider_jojokey.payments.generate import ImageJob, Services, generate_images

if TYPE_CHECKING:
    from airflow_provider_jojokey.hooks.jojokey import JojoKeyHook

MAX_THREADS = 256
"""Threads of one triggerer that may generate images; more triggers wait for a thread."""


class GenerateImageTrigger(BaseTrigger):
    """Generate the images of one job. It may run twice, and still pays once.

    A triggerer that restarts, or two that both believe they own a trigger, run it again. The job's receipt
    in S3 is claimed before anything is paid, so the second run waits for the first.

    :param job: the job, see :meth:`ImageJob.to_json`
    :param jojokey_conn_id: the connection to JojoKey
    :param aws_conn_id: the connection to S3
    :param s3_extra_args: additional S3 parameters
    """

    def __init__(
        self,
        job: dict[str, Any],
        jojokey_conn_id: str,
        aws_conn_id: str | None,
        s3_extra_args: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.job = job
        self.jojokey_conn_id = jojokey_conn_id
        self.aws_conn_id = aws_conn_id
        self.s3_extra_args = s3_extra_args or {}

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what it takes to create this trigger again."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "job": self.job,
                "jojokey_conn_id": self.jojokey_conn_id,
                "aws_conn_id": self.aws_conn_id,
                "s3_extra_args": self.s3_extra_args,
            },
        )

    @cached_property
    def hook(self) -> JojoKeyHook:
        """The JojoKey hook."""
        from airflow_provider_jojokey.hooks.jojokey import JojoKeyHook

        return JojoKeyHook(self.jojokey_conn_id)

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Yield one event: the job, and the manifest or the error."""
        loop = asyncio.get_running_loop()
        outcome = await loop.run_in_executor(_threads(), copy_context().run, self._generate)
        yield TriggerEvent({"job": self.job, **outcome})  # type: ignore[no-untyped-call]

    def _generate(self) -> dict[str, Any]:
        from airflow_provider_jojokey.settings import Settings
        from airflow_provider_jojokey.store.s3 import ImageStore

        store = ImageStore(self.aws_conn_id, extra_args=self.s3_extra_args)
        services = Services(self.hook, store, Settings.from_airflow_config())
        try:
            generated = generate_images(ImageJob.from_json(self.job), services)
        except JojoKeyError as error:
            return {"error": error.to_json()}
        return {"manifest": generated.manifest}


@cache
def _threads() -> ThreadPoolExecutor:
    # Not the event loop's default pool, which everything else in the triggerer shares.
    return ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="jojokey")
