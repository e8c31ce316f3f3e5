"""One try of a task, in a process of its own that may kill itself at an exact step.

The steps are the package's own methods: each is called for real, and before or after it something happens.
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

from airflow_provider_jojokey import generation, settings
from airflow_provider_jojokey.exceptions import JojoKeyError
from airflow_provider_jojokey.generation import generate_images
from airflow_provider_jojokey.hooks.jojokey import JojoKeyHook
from airflow_provider_jojokey.img2 import client, errors, images  # noqa: F401 - so that a fork has them
from airflow_provider_jojokey.order import Order
from airflow_provider_jojokey.settings import Settings
from airflow_provider_jojokey.store.ledger import Ledger
from airflow_provider_jojokey.store.s3 import ImageStore
from airflow_provider_jojokey.store.spool import Spool
from airflow_provider_jojokey.triggers.jojokey import GenerateImageTrigger

STEPS: dict[str, tuple[Any, str]] = {
    "settle": (generation._Till, "_settle"),
    "claim": (Ledger, "claim"),
    "write": (ImageStore, "write"),
    "create": (Spool, "create"),
    "generate": (JojoKeyHook, "generate"),
    "seal": (images.ImageFile, "seal"),
    "keep": (Spool, "keep"),
    "put": (ImageStore, "put_image"),
    "record": (Ledger, "record"),
    "discard": (Spool, "discard"),
}


@dataclass(frozen=True)
class Act:
    """Something that happens at a step.

    :param when: ``before`` or ``after``
    :param nth: at which call of the step's method, from 1
    :param what: ``kill`` this process; ``pull`` the cable to the store, for ``seconds`` or for good; ``lose`` the
        reply to the next request to the store; ``meet``, wait until the other process has come as far
    """

    step: str
    when: str
    nth: int = 1
    what: str = "kill"
    seconds: float | None = None


@dataclass(frozen=True)
class Job:
    """What one process does."""

    order: dict[str, Any]
    environ: dict[str, str]
    spools: str
    log: str
    patience: float
    longest_generation: float
    acts: tuple[Act, ...] = ()
    triggers: int = 0
    """How many triggers it runs at once; 0 is a plain task."""


@dataclass(frozen=True)
class End:
    """How one process ended; :class:`None` takes its place where it was killed."""

    manifests: list[dict[str, Any]] = field(default_factory=list)
    error: str = ""
    message: str = ""
    final: bool = False
    billed: str = "no"
    retry_after: float | None = None


def run(job: Job, pipe: Connection) -> None:
    """Do ``job``; tell ``pipe`` how it ended, if it comes so far."""
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
    generation.POLL = 0.1
    generation.START_WITHIN = 4.0
    for act in job.acts:
        _instrument(act, pipe)
    order = Order.from_json(job.order)
    try:
        if job.triggers:
            end = asyncio.run(_run_triggers(job))
        else:
            manifest = generate_images(
                order, jojokey=JojoKeyHook(), store=ImageStore("aws_default"), settings=own
            )
            end = End([manifest])
    except JojoKeyError as error:
        end = _end_of(error)
    logging.info("ends: %s", end)
    pipe.send(("end", end))


async def _run_triggers(job: Job) -> End:
    async def one() -> dict[str, Any]:
        trigger = GenerateImageTrigger(job.order, "jojokey_default", "aws_default")
        (event,) = [event async for event in trigger.run()]
        return dict(event.payload)

    payloads = await asyncio.gather(*(one() for _ in range(job.triggers)))
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
    """Read botocore's models once, and share them with all that are forked from here."""
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
