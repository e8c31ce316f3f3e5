"""Run one plan: two machines, two tasks, one store and one gateway around the real package."""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from airflow_provider_jojokey.exceptions import JojoKeyError
from airflow_provider_jojokey.hooks.jojokey import ConnectionSettings, JojoKeyHook
from airflow_provider_jojokey.img2.images import ImageFile
from airflow_provider_jojokey.img2.request import ImageRequest
from airflow_provider_jojokey.payments.attempt import Owner
from airflow_provider_jojokey.payments.generate import Services, generate_images
from airflow_provider_jojokey.payments.job import ImageJob
from airflow_provider_jojokey.settings import Settings
from airflow_provider_jojokey.store.keys import Destination
from airflow_provider_jojokey.store.s3 import ImageStore
from airflow_provider_jojokey.store.spool import Spool
from tests.adversary import subject
from tests.adversary.gateway import Adapter, Gateway, Sent
from tests.adversary.plan import Event, Plan, Run
from tests.adversary.s3 import S3, S3Client
from tests.adversary.virtual import MAX_SECONDS, Clock, Host, Process, Scheduler, StopEvent

BUCKET = "images"
KEYS = ("a.png", "b.png")
URL = "https://gateway.example.org"
CLOCK = Clock()
LOG = logging.getLogger("airflow_provider_jojokey")
HOOK = ConnectionSettings(token="sk-simulated", host=URL)


@dataclass
class Task:
    """A task as Airflow sees it."""

    key: str
    run: int = 1
    number: int = 0
    ti_id: str = ""
    instances: int = 0


@dataclass
class Ended:
    """A process of a task and its result."""

    step: Run
    job: Any
    process: Process
    manifest: dict[str, Any] | None = None
    error: JojoKeyError | None = None
    usage_in_receipt: dict[str, int] | None = None
    alone: bool = False


@dataclass
class World:
    """A plan while it runs, and what happened.

    :param folder: for the spools
    """

    plan: Plan
    folder: Path
    scheduler: Scheduler = field(default_factory=Scheduler)
    ended: list[Ended] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    synced: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        host0, host1, s3, gateway, edge = self.plan.offsets
        self.rng = Random(self.plan.seed)
        self.hosts = [
            Host(name, "worker" if self.plan.same_hostname else name, self.folder / name, offset)
            for name, offset in (("host0", host0), ("host1", host1))
        ]
        self.tasks = [Task(key) for key in KEYS]
        self.s3 = S3(self.scheduler, self.plan.store, s3)
        self.gateway = Gateway(
            self.scheduler,
            self.rng,
            log=self.plan.log,
            foreign=self.plan.foreign,
            offset=gateway,
            edge_offset=edge,
            error_rows=self.plan.error_rows,
        )
        self.held: dict[str, set[str]] = {host.name: set() for host in self.hosts}
        """Digests of complete images that a host received and no event of the plan deleted."""
        self.bereft: set[Process] = set()
        """Processes whose spool an event of the plan has deleted."""

    def run(self) -> None:
        """Run the steps. Then let time pass and clear each task on each host, with nothing going wrong."""
        CLOCK.scheduler = self.scheduler
        for step in self.plan.steps:
            self._happen(step) if isinstance(step, Event) else self._start(step)
        self._wait_for_all()
        self.scheduler.run(3600.0)
        latest = {(ended.step.task, ended.job.owner.run_id): ended for ended in self.ended}
        for (index, run_id), ended in latest.items():
            for host in (0, 1):
                self.tasks[index].run = int(run_id.removeprefix("run"))
                self._start(Run(task=index, host=host, prompt=ended.step.prompt), last=True)
                self.scheduler.run(1300.0)

    def receipt(self, key: str) -> dict[str, Any]:
        """Return the receipt as it is in S3."""
        found = self.s3.objects.get((BUCKET, f"_jojokey/{key}.json"))
        return json.loads(found.data) if found else {"attempts": []}

    def attempts(self, job: Any) -> list[dict[str, Any]]:
        """Return the attempts of a job's task in its Dag run."""
        owner = job.owner
        return [
            attempt
            for attempt in self.receipt(job.destination.key)["attempts"]
            if (attempt["owner"]["run_id"], attempt["owner"]["task_id"]) == (owner.run_id, owner.task_id)
        ]

    def sent(self, job: Any) -> list[Sent]:
        """Return the POSTs of a job's task in its Dag run."""
        owner = job.owner
        return [sent for sent in self.gateway.sent if sent.job.owner.is_task_of(owner)]

    def received(self, host: Host) -> set[str]:
        """Return the digests of the complete images in a host's spool."""
        return {ImageFile.reopen(path).sha256 for path in host.spool.rglob("*.image")}

    # Steps

    def _wait_for_all(self) -> None:
        for process in self.scheduler.processes:
            if process.ended is None:
                self.scheduler.run(2 * MAX_SECONDS, process)

    def _start(self, step: Run, last: bool = False) -> None:
        task, host = self.tasks[step.task], self.hosts[step.host]
        if step.kind == "new run" and task.number:
            task.run, task.number = task.run + 1, 0
        if step.kind == "recreated":
            task.number = 0
        if step.kind != "again" or not task.number:
            task.number, task.instances, task.ti_id = task.number + 1, task.instances + 1, ""
        task.ti_id = task.ti_id or str(uuid.UUID(int=100 * (step.task + 1) + task.instances))
        job = ImageJob(
            request=ImageRequest(f"an image, version {step.prompt}", n=self.plan.n),
            destination=Destination(BUCKET, task.key, self.plan.n),
            owner=Owner("dag", f"run{task.run}", f"task{step.task}", -1, task.number, task.ti_id),
            reuse=step.reuse,
            on_unknown_outcome=step.on_unknown_outcome,
        )
        name = f"{'last' if last else 'p'}{len(self.ended)}@{host.name}"
        process = Process(name, host, lambda: None, step.kill_at, step.term_at, step.freeze_at)
        ended = Ended(step, job, process)
        process.main = lambda: self._process(ended)
        self.ended.append(ended)
        self.scheduler.say(
            f"start {name}: {job.owner.run_id}, try {task.number}, prompt {step.prompt}, {step.reuse}"
        )
        self.scheduler.start(process)
        self.scheduler.run(
            2 * MAX_SECONDS if step.wait is None else step.wait, process if step.wait is None else None
        )

    def _process(self, ended: Ended) -> None:
        """The process of a task: what the operator does."""
        process, job = ended.process, ended.job
        rng = Random(f"{self.plan.seed}/{process.name}")
        hook, store = JojoKeyHook(), ImageStore(None)
        vars(hook)["settings"] = HOOK
        hook._log = LOG
        hook.stopping = StopEvent(self.scheduler)
        process.on_term = hook.abort
        hook.client.session.mount(
            "https://",
            Adapter(
                self.gateway, process, list(ended.step.posts), lambda outcome: self._post(ended, outcome)
            ),
        )
        vars(store)["client"] = S3Client(self.s3, rng, dict(ended.step.faults))
        try:
            settings = Settings(spool_directory=process.host.spool)
            ended.manifest = generate_images(
                job, Services(hook=hook, store=store, settings=settings)
            ).manifest
            self.scheduler.say("made")
        except JojoKeyError as error:
            ended.error = error
            self.scheduler.say(f"{type(error).__name__}, billed {error.billed}: {error}")
        finally:
            if process.killed:
                kept = self.received(process.host)
                self.held[process.host.name] |= kept if process in self.bereft else kept | process.received
            else:
                self._note(ended)

    def _note(self, ended: Ended) -> None:
        """Compare the report of a process with the facts when it ends."""
        from tests.adversary.invariants import at_end_of_process

        process = ended.process
        arrived = {digest for sent in self.gateway.sent if sent.process is process for digest in sent.arrived}
        self.held[process.host.name] |= self.received(process.host) if process in self.bereft else arrived
        ended.alone = not any(
            other is not ended
            and other.job.destination == ended.job.destination
            and (other.process.ended is None or other.process.ended > process.started)
            for other in self.ended
        )
        self.problems += at_end_of_process(self, ended)

    def _post(self, ended: Ended, outcome: str) -> Sent:
        """Record a POST, and the invariants that it breaks."""
        from tests.adversary.invariants import at_post

        process, job = ended.process, ended.job
        me = (process.pid, subject.identity(process), job.owner.ti_id, "open")
        mine = [
            attempt["id"]
            for attempt in self.receipt(job.destination.key)["attempts"]
            if (
                attempt["worker"]["pid"],
                attempt["worker"]["identity"],
                attempt["owner"]["ti_id"],
                attempt["outcome"],
            )
            == me
        ]
        sent = Sent(process, job, outcome, self.scheduler.now, mine[-1] if mine else None, [])
        sent.problems = at_post(self, ended, sent)
        return sent

    def _happen(self, event: Event) -> None:
        host, other = self.hosts[event.host], self.hosts[1 - event.host]
        self.scheduler.say(f"{event.what} {host.name if event.what != 'sleep' else event.seconds}")
        if event.what == "sleep":
            self.scheduler.run(event.seconds)
        elif event.what == "clean spool":
            for place in host.spool.glob("*/*"):
                shutil.rmtree(place, ignore_errors=True)
            self._lost_spool(host)
        elif event.what == "lose spool":
            shutil.rmtree(host.spool, ignore_errors=True)
            self._lost_spool(host)
        elif event.what == "copy spool" and host.spool.exists():
            shutil.rmtree(other.spool, ignore_errors=True)
            shutil.copytree(host.spool, other.spool)
            self._lost_spool(other)
        elif event.what == "power cut":
            self.scheduler.kill(host)
            self._lose_unsynced(host)
            host.boot, host.next_pid = host.boot + 1, 100
            self._lost_spool(host)

    def _lost_spool(self, host: Host) -> None:
        """Forget images that a host lost, also those that it later receives into deleted folders."""
        self.held[host.name] = self.received(host)
        self.bereft.update(ended.process for ended in self.ended if ended.process.host is host)

    def _lose_unsynced(self, host: Host) -> None:
        """Undo what was not flushed to the disk when the power failed, or a part of it."""
        for path in sorted(host.spool.rglob("*")):
            if path.is_file() and str(path) not in self.synced and self.rng.random() < 0.5:
                path.unlink() if self.rng.random() < 0.5 else path.write_bytes(b"")
        for folder in host.spool.glob("*/*"):
            if not any(str(path) in self.synced for path in folder.iterdir()) and self.rng.random() < 0.5:
                shutil.rmtree(folder)


@contextmanager
def simulated(verbose: bool = False) -> Iterator[None]:
    """Put the package into the simulation: clocks, identity of the machine, and yield points in the spool."""
    with ExitStack() as stack:
        stack.enter_context(subject.replacements(CLOCK))
        for name in SPOOL_STEPS:
            stack.callback(setattr, Spool, name, getattr(Spool, name))
            setattr(Spool, name, _with_yield(getattr(Spool, name), f"Spool.{name}"))
        stack.callback(setattr, ImageFile, "seal", ImageFile.seal)
        ImageFile.seal = _seal(ImageFile.seal)  # type: ignore[method-assign]
        fsync = os.fsync
        os.fsync = _fsync
        stack.callback(setattr, os, "fsync", fsync)
        level = logging.root.manager.disable
        if verbose:
            stack.callback(setattr, LOG, "propagate", LOG.propagate)
            LOG.propagate = False
            handler = _Handler()
            LOG.addHandler(handler)
            LOG.setLevel(logging.DEBUG)
            stack.callback(LOG.removeHandler, handler)
        else:
            logging.disable(logging.CRITICAL)
            stack.callback(logging.disable, level)
        yield


SPOOL_STEPS = (
    "create",
    "mark_sending",
    "mark_complete",
    "add_fact",
    "discard",
    "complete_response",
    "complete_images",
)
_synced: set[str] = set()


def _with_yield(method: Callable[..., Any], name: str) -> Callable[..., Any]:
    def stepped(*args: Any, **kwargs: Any) -> Any:
        CLOCK.scheduler.sleep(0.001, f"{name} (before)")
        found = method(*args, **kwargs)
        CLOCK.scheduler.sleep(0.001, f"{name} (after)")
        return found

    return stepped


def _seal(method: Callable[..., Any]) -> Callable[..., Any]:
    def seal(file: ImageFile, *args: Any) -> None:
        _with_yield(method, "ImageFile.seal")(file, *args)
        if (process := CLOCK.scheduler.current()) is not None and file.path is not None:
            process.received.add(file.sha256)

    return seal


def _fsync(descriptor: Any) -> None:
    number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
    _synced.add(os.readlink(f"/proc/self/fd/{number}"))


class _Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        CLOCK.scheduler.say(f"  {record.levelname} {record.getMessage()}")


def run_plan(plan: Plan, folder: Path, verbose: bool = False) -> World:
    """Run a plan from the start; its violations are in ``problems``."""
    from tests.adversary.invariants import at_end

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _synced.clear()
    random.seed(plan.seed)
    world = World(plan, folder, synced=_synced)
    if verbose:
        world.scheduler.log = []
    world.run()
    world.problems += at_end(world)
    return world
