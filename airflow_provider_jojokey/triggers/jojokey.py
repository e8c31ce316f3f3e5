"""The trigger of a deferred task. It runs the payment path in threads of the triggerer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from functools import cache
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_jojokey.exceptions import JojoKeyError
from airflow_provider_jojokey.hooks.jojokey import JojoKeyHook
from airflow_provider_jojokey.payments import errors
from airflow_provider_jojokey.payments.generate import ImageJob, Services, generate_images
from airflow_provider_jojokey.results import storable

MAX_THREADS = 256
"""Maximum number of threads per triggerer that generate images. Other triggers wait for a thread."""


RECORDING = 4.0
"""Seconds after the last response within which a cancelled trigger stores and records it."""
DEADLINE_RECORDING = 30.0
"""Seconds after the last response within which a trigger past its deadline stores and records it."""
DEADLINE_GRACE = 0.5
"""Seconds after the deadline within which an arriving response is detected. It may then finish."""
POLL = 0.1


class GenerateImageTrigger(BaseTrigger):
    """Generate the images of one job. Even if it runs twice, it pays once.

    A trigger runs again if its triggerer restarts, or if two triggerers both own it. Each run claims the job's
    receipt in S3 before it pays, so the second run waits for the first.

    :param job: the job, see :meth:`ImageJob.to_json`; if its destination has no bucket, the AWS connection's
        default bucket is used
    :param jojokey_conn_id: the connection to JojoKey
    :param aws_conn_id: the connection to S3
    :param s3_extra_args: additional S3 parameters
    :param deadline: the end of the task's ``execution_timeout``, in seconds since 1970. Airflow does not apply
        the timeout to a deferred task
    """

    def __init__(
        self,
        job: dict[str, Any],
        jojokey_conn_id: str,
        aws_conn_id: str | None,
        s3_extra_args: dict[str, Any] | None = None,
        deadline: float | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.job = job
        self.jojokey_conn_id = jojokey_conn_id
        self.aws_conn_id = aws_conn_id
        self.s3_extra_args = s3_extra_args or {}
        self.deadline = deadline
        # Created here and not when it is first used: a trigger that is cancelled while its thread creates the hook must
        # stop that hook and no other.
        self.hook = JojoKeyHook(jojokey_conn_id)
        self._sent = False

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class path and the arguments of this trigger."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "job": self.job,
                "jojokey_conn_id": self.jojokey_conn_id,
                "aws_conn_id": self.aws_conn_id,
                "s3_extra_args": self.s3_extra_args,
                # An older triggerer doesn't know the argument.
                **({} if self.deadline is None else {"deadline": self.deadline}),
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Yield one event with the job, and the manifest or the error.

        If the trigger is cancelled, because the triggerer ends or a user acts on the task, it sends nothing more. A
        response in flight is billed, so it has a few seconds to arrive and to be stored.
        """
        work = _threads().submit(copy_context().run, self._generate)
        try:
            outcome = await self._outcome(work)
        except asyncio.CancelledError:
            work.cancel()
            self.hook.stop(abort=False)  # another triggerer may have taken over, and reuses what arrives here
            await self._finish(work)
            raise
        # If the database could not store the event, the task would never resume.
        yield TriggerEvent(storable({"job": self.job, **outcome}))  # type: ignore[no-untyped-call]

    async def _outcome(self, work: Future[dict[str, Any]]) -> dict[str, Any]:
        """Return the manifest or the error. After the deadline, stop the hook and wait for the records."""
        future = asyncio.wrap_future(work)
        left = None if self.deadline is None else max(0.0, self.deadline - time.time())
        await asyncio.wait({future}, timeout=left)
        if future.done():
            return future.result()
        self.hook.stop(DEADLINE_GRACE)
        end = None
        while not future.done():
            if end is None and self.hook.stopped.is_set():
                end = time.monotonic() + DEADLINE_RECORDING
            if end is not None and time.monotonic() >= end:
                work.cancel()  # in case it still waits for a thread
                return _timed_out(errors.unrecorded() if self._sent else errors.stopped())
            await asyncio.wait({future}, timeout=POLL)
        outcome = future.result()
        return _timed_out(JojoKeyError.from_json(outcome["error"])) if "error" in outcome else outcome

    async def on_kill(self) -> None:
        """Send nothing more and close the connection. Airflow 3.3 calls this when a user ends the task."""
        self.hook.abort()

    async def _finish(self, work: Future[dict[str, Any]]) -> None:
        """Wait until a paid image is stored, or until the time limit."""
        end = None
        while self._sent and not work.done():
            if end is None and self.hook.stopped.is_set():
                end = time.monotonic() + RECORDING
            if end is not None and time.monotonic() >= end:
                return
            await asyncio.sleep(POLL)

    def _record_send(self) -> None:
        self._sent = True

    def _generate(self) -> dict[str, Any]:
        from airflow_provider_jojokey.settings import Settings
        from airflow_provider_jojokey.store.s3 import ImageStore

        store = ImageStore(self.aws_conn_id, extra_args=self.s3_extra_args)
        try:
            services = Services(self.hook, store, Settings.from_airflow_config(), on_send=self._record_send)
            self._set_default_bucket()
            generated = generate_images(ImageJob.from_json(self.job), services)
        except JojoKeyError as error:
            return {"error": error.to_json()}
        return {"manifest": generated.manifest}

    def _set_default_bucket(self) -> None:
        """Add the default bucket to the job, which is also part of the event.

        :raises JojoKeyError: if there is no bucket
        """
        from airflow_provider_jojokey.exceptions import JojoKeyRequestError
        from airflow_provider_jojokey.store.default_bucket import default_bucket
        from airflow_provider_jojokey.store.keys import NO_BUCKET

        destination = self.job["destination"]
        if destination.get("bucket"):
            return
        if not (bucket := default_bucket(self.aws_conn_id)):
            raise JojoKeyRequestError(f"The S3 destination is not valid: {NO_BUCKET}.")
        self.job = {**self.job, "destination": {**destination, "bucket": bucket}}


def _timed_out(error: JojoKeyError) -> dict[str, Any]:
    what = f"The execution_timeout of the deferred task has passed. {error.what}"
    return {"error": error.changed(what=what).to_json()}


@cache
def _threads() -> ThreadPoolExecutor:
    # The event loop's default pool is shared by all of the triggerer.
    return ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="jojokey")
