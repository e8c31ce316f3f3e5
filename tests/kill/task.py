"""One try of a task, in a separate process that may kill itself at an exact step.

The steps are the package's own functions. Each one is called for real, and an accident happens before or after it.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import botocore.loaders
from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_jojokey import settings
from airflow_provider_jojokey.exceptions import JojoKeyError
from airflow_provider_jojokey.hooks.jojokey import JojoKeyHook
from airflow_provider_jojokey.img2 import client, errors, images  # noqa: F401 - loaded before the fork
from airflow_provider_jojokey.payments import context, generate, send, usage
from airflow_provider_jojokey.payments.generate import ImageJob, Services, generate_images
from airflow_provider_jojokey.payments.receipt_store import ReceiptStore
from airflow_provider_jojokey.settings import Settings
from airflow_provider_jojokey.store.s3 import ImageStore
from airflow_provider_jojokey.store.spool import Spool
from airflow_provider_jojokey.triggers.jojokey import GenerateImageTrigger

STEPS: dict[str, tuple[Any, str]] = {
    "reconcile": (generate, "reconcile"),
    "create": (Spool, "create"),
    "claim": (ReceiptStore, "claim"),
    "write": (ImageStore, "write"),
    "generate": (JojoKeyHook, "generate"),
    "mark": (Spool, "mark_sending"),
    "seal": (images.ImageFile, "seal"),
    "keep": (Spool, "mark_complete"),
    "put": (ImageStore, "put_image"),
    "update": (ReceiptStore, "update"),
    "discard": (Spool, "discard"),
}


@dataclass(frozen=True)
class Act:
    """Something that happens at a step.

    :param when: ``before`` or ``after``
    :param nth: at which call of the step's function, from 1
    :param what: ``kill`` this process; ``pull`` the cable to the store, for ``seconds`` or for good; ``lose`` the
        response to the next request to the store; ``meet``: wait until the other process has reached the step
    """

    step: str
    when: str
    nth: int = 1
    what: str = "kill"
    seconds: float | None = None


@dataclass(frozen=True)
class Job:
    """The job of a process."""

    job: dict[str, Any]
    environ: dict[str, str]
    spools: str
    log: str
    patience: float
    longest_generation: float
    acts: tuple[Act, ...] = ()
    triggers: int = 0
    """Number of triggers that it runs at once; 0 is a plain task."""


@dataclass(frozen=True)
class End:
    """How one process ended; ``None`` stands for a process that was killed."""

    manifests: list[dict[str, Any]] = field(default_factory=list)
    error: str = ""
    message: str = ""
    final: bool = False
    billed: str = "no"
    retry_after: float | None = None


def run(job: Job, pipe: Connection) -> None:
    """Run ``job``, and send ``pipe`` how it ended."""
    log = os.open(job.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    logging.basicConfig(force=True, level=logging.INFO, format=f"%(asctime)s {os.getpid()} %(message)s")
    for name in ("botocore", "urllib3", "boto3"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.info("begins: %s", job.acts)
    os.environ.update(job.environ)
    own = Settings(Path(job.spools), upload_patience=job.patience, longest_generation=job.longest_generation)
    settings.Settings.from_airflow_config = lambda: own  # type: ignore[method-assign]
    context.POLL = 0.1
    context.SEND_DEADLINE = send.SEND_DEADLINE = 4.0
    context.LOG_DELAY = usage.LOG_DELAY = 0.5
    for act in job.acts:
        _instrument(act, pipe)
    try:
        if job.triggers:
            end = asyncio.run(_run_triggers(job))
        else:
            services = Services(JojoKeyHook(), ImageStore("aws_default"), own)
            end = End([generate_images(ImageJob.from_json(job.job), services).manifest])
    except JojoKeyError as error:
        end = _end_of(error)
    logging.info("ends: %s", end)
    pipe.send(("end", end))


async def _run_triggers(job: Job) -> End:
    async def run_trigger() -> dict[str, Any]:
        trigger = GenerateImageTrigger(job.job, "jojokey_default", "aws_default")
        (event,) = [event async for event in trigger.run()]
        return dict(event.payload)

    payloads = await asyncio.gather(*(run_trigger() for _ in range(job.triggers)))
    for payload in payloads:
        if "error" in payload:
            return _end_of(JojoKeyError.from_json(payload["error"]))
    return End([payload["manifest"] for payload in payloads])


def _end_of(error: JojoKeyError) -> End:
    final = isinstance(error, AirflowFailException)
    return End([], type(error).__name__, str(error), final, error.billed, error.retry_after)


def _instrument(act: Act, pipe: Connection) -> None:
    owner, name = STEPS[act.step]
    original = getattr(owner, name)
    calls = 0

    @functools.wraps(original)
    def wrapped(*arguments: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        its_turn = calls == act.nth
        if its_turn and act.when == "before":
            _happen(act, pipe)
        result = original(*arguments, **more)
        if its_turn and act.when == "after":
            _happen(act, pipe)
        return result

    setattr(owner, name, wrapped)


def _happen(act: Act, pipe: Connection) -> None:
    logging.info("now: %s", act)
    if act.what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    pipe.send((act.what, act.seconds))
    pipe.recv()  # it has happened


def _warm_up() -> None:
    """Load botocore's models once; forked processes share them."""
    loader = botocore.loaders.JSONFileLoader()
    read: Callable[[str], Any] = functools.cache(loader.load_file)
    botocore.loaders.JSONFileLoader.load_file = lambda self, file_path: read(file_path)
    os.environ["AIRFLOW_CONN_AWS_DEFAULT"] = (
        '{"conn_type": "aws", "login": "abc", "password": "abcdef", "extra": {"region_name": "us-east-1"}}'
    )
    logging.disable(logging.INFO)
    ImageStore("aws_default").client  # noqa: B018
    logging.disable(logging.NOTSET)


if os.environ.get("JOJOKEY_KILL_WARM_UP"):
    _warm_up()
