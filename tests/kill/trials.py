"""The accidents, and the invariants that each trial checks after its accident."""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from PIL import Image

from airflow_provider_jojokey.img2 import ImageRequest
from airflow_provider_jojokey.payments.attempt import Outcome, Owner
from airflow_provider_jojokey.payments.job import ImageJob
from airflow_provider_jojokey.payments.receipt import Receipt
from airflow_provider_jojokey.sandbox import Gateway, S3Server
from airflow_provider_jojokey.sandbox.s3 import find_rclone
from airflow_provider_jojokey.store.keys import Destination
from tests.kill.task import Act, End, Job, run
from tests.kill.wire import Wire

KEY = "daily/fox.png"
MAX_TRIES = 10
PATIENCE = 6.0
LONGEST_GENERATION = 1.0
AT_A_TIME = 6


@dataclass(frozen=True)
class Backend:
    """An S3 server that all trials share.

    :param honours: whether it lets only one of two conditional writers win
    """

    name: str
    port: int
    access_key: str
    secret_key: str
    config: dict[str, Any]
    honours: bool

    def client(self) -> Any:
        return boto3.session.Session().client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{self.port}",
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
            config=Config(**self.config, max_pool_connections=50),
        )

    def connection(self, port: int, calls: int) -> str:
        """Return the Airflow connection to it over ``port``, with ``calls`` tries for each call."""
        impatient = {"retries": {"total_max_attempts": calls}, "connect_timeout": 2, "read_timeout": 10}
        extra = {
            "endpoint_url": f"http://127.0.0.1:{port}",
            "region_name": "us-east-1",
            "config_kwargs": {**self.config, **impatient},
        }
        return json.dumps(
            {"conn_type": "aws", "login": self.access_key, "password": self.secret_key, "extra": extra}
        )


@dataclass
class Report:
    """The result of a trial."""

    number: int
    accident: str
    store: str
    n: int
    payments: int = 0
    tries: int = 0
    ended: str = ""
    wrong: list[str] = field(default_factory=list)
    doubled: int = 0
    lost: int = 0
    race: bool = False
    log: str = ""


class World:
    """The servers and the processes of all trials; a context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        out = folder / "image.png"
        Image.effect_noise((96, 64), 90).save(out, "PNG")
        self.image = out.read_bytes()
        self.backends: dict[str, Backend] = {}
        self._stack = ExitStack()
        self.context = multiprocessing.get_context("forkserver")

    def __enter__(self) -> World:
        with _environment(PYTHONPATH=str(Path(__file__).parents[2]), JOJOKEY_KILL_WARM_UP="yes"):
            self.context.set_forkserver_preload([f"{__package__}.task"])
            first = self.context.Process(target=_nothing)
            first.start()
            first.join()
        self.backends["moto"] = self._stack.enter_context(_moto())
        self.backends["rclone"] = self._stack.enter_context(_rclone(self.folder / "objects"))
        self.clients = {name: backend.client() for name, backend in self.backends.items()}
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def _nothing() -> None:
    pass


# moto checks a condition before it writes, and another thread may write in between, so sometimes both writers
# win. S3 prevents that; a lock makes moto do the same.
_MOTO = """
import functools, sys, threading
from moto.s3.responses import S3Response
from moto.server import ThreadedMotoServer
lock, put_object = threading.Lock(), S3Response.put_object
@functools.wraps(put_object)
def one_at_a_time(self):
    with lock:
        return put_object(self)
S3Response.put_object = one_at_a_time
server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


@contextmanager
def _moto() -> Iterator[Backend]:
    process = subprocess.Popen(
        [sys.executable, "-c", _MOTO],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "AWS_ACCESS_KEY_ID": "moto", "AWS_SECRET_ACCESS_KEY": "moto"},
    )
    assert process.stdin
    assert process.stdout
    try:
        port = int(process.stdout.readline())
        urllib.request.urlopen(f"http://127.0.0.1:{port}/moto-api/", timeout=10).close()
        yield Backend("moto", port, "moto", "moto-secret", {"s3": {"addressing_style": "path"}}, True)
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()


@contextmanager
def _rclone(folder: Path) -> Iterator[Backend]:
    """The sandbox's server, with its cache of folders: without it, concurrent requests block it."""
    folder.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [find_rclone(), "serve", "s3", str(folder), "--addr", f"127.0.0.1:{port}"]
    options = ["--auth-key", "trial,trial-secret", "--config", os.devnull]
    with (folder.with_name("rclone.log")).open("wb") as log:
        process = subprocess.Popen([*command, *options], stdout=log, stderr=log)
        try:
            for _ in range(500):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                time.sleep(0.02)
            config = dict(S3Server(folder).client_settings)
            yield Backend("rclone", port, "trial", "trial-secret", config, honours=False)
        finally:
            process.terminate()
            process.wait()


class Try:
    """One process of a trial."""

    def __init__(self, trial: Trial, job: Job) -> None:
        self._trial = trial
        self._pipe, there = trial.world.context.Pipe()
        self.process = trial.world.context.Process(target=run, args=(job, there), daemon=True)
        self.process.start()
        there.close()

    def kill(self) -> None:
        assert self.process.pid
        with contextlib.suppress(ProcessLookupError):  # the process may have ended
            os.kill(self.process.pid, signal.SIGKILL)

    def end(self, timeout: float = 60.0) -> End | None:
        """Return how it ended, or ``None`` if it was killed; perform its requests meanwhile."""
        give_up = time.monotonic() + timeout
        end = None
        try:
            while True:
                if not self._pipe.poll(max(0.0, give_up - time.monotonic())):
                    self.kill()
                    raise AssertionError("it does not end")
                what, value = self._pipe.recv()
                if what == "end":
                    end = value
                    break
                if what == "pull":
                    self._trial.wire.pull(value)
                elif what == "lose":
                    self._trial.wire.lose_replies(1)
                elif what == "meet":
                    with contextlib.suppress(threading.BrokenBarrierError):
                        self._trial.meeting.wait(5)
                self._pipe.send("done")
        except (EOFError, ConnectionResetError, BrokenPipeError):
            pass
        self._trial.meeting.abort()  # do not wait for a process that has ended
        self.process.join()
        self._pipe.close()
        self._trial.look()
        return end


class Trial:
    """One job and its accident."""

    def __init__(
        self, world: World, report: Report, rng: random.Random, gateway: Gateway, wire: Wire
    ) -> None:
        self.world = world
        self.report = report
        self.rng = rng
        self.gateway = gateway
        self.wire = wire
        self.backend = world.backends[report.store]
        self.client = world.clients[report.store]
        self.bucket = f"trial-{report.number}"
        self.client.create_bucket(Bucket=self.bucket)
        self.folder = world.folder / f"trial-{report.number}"
        self.folder.mkdir()
        self.spools = self.folder / "spool"
        self.try_number = 1
        self.patience = PATIENCE
        self.allowed = 1
        self.triggers = 0
        self.options: dict[str, str] = {}
        self.arrived: dict[str, int] = {}
        self.meeting = threading.Barrier(2)
        self.calls = rng.choice((1, 1, 2))
        self.delay = rng.uniform(0.05, 0.35)
        gateway.behave(delay=self.delay)

    def start(self, *acts: Act, map_index: int = -1, **changes: Any) -> Try:
        """Start a process."""
        self.report.tries += 1
        image_job = ImageJob(
            ImageRequest("a fox", n=self.report.n),
            Destination(self.bucket, KEY, self.report.n),
            Owner("dag", "run", "image", map_index, self.try_number, f"ti-{map_index}-{self.try_number}"),
            **self.options,
        )
        connection = {
            "conn_type": "jojokey",
            "host": self.gateway.url,
            "password": self.gateway.token,
            "extra": {"connect_timeout": 1, "read_timeout": 5, "max_resends": 0, "max_resend_wait": 0},
        }
        job = Job(
            image_job.to_json(),
            {
                "AIRFLOW_CONN_JOJOKEY_DEFAULT": json.dumps(connection),
                "AIRFLOW_CONN_AWS_DEFAULT": self.backend.connection(self.wire.port, self.calls),
            },
            str(self.spools),
            str(self.folder / "log"),
            self.patience,
            LONGEST_GENERATION,
            acts,
            self.triggers,
        )
        return Try(self, replace(job, **changes))

    def look(self) -> None:
        """Record the complete images in the spool."""
        for folder in self.spools.glob("*/*/"):
            whole = len(list(folder.glob("*.image")))
            self.arrived[folder.name] = max(self.arrived.get(folder.name, 0), whole)

    def retry(self, ends: list[End | None]) -> None:
        """Run tries as Airflow does, each in a process, until an image or a final failure."""
        self.wire.mend()
        end = next((end for end in ends if end and end.manifests), ends[-1])
        while not (end and (end.manifests or end.final)):
            if self.report.tries >= MAX_TRIES:
                self.report.wrong.append("it never ends")
                return
            if end is not None or not self.triggers:
                self.try_number += 1  # after a crash, the triggerer runs its trigger again: the same try
            if end is not None and end.retry_after is not None:
                time.sleep(end.retry_after + 1)  # S3's clock has whole seconds
            end = self.start().end()
        self.check(end)

    def check(self, end: End) -> None:
        """Compare the gateway's charges and the bucket with what the package reports."""
        report, n = self.report, self.report.n
        self.gateway.wait_until_idle(20)
        report.payments = len(self.gateway.charges)
        report.ended = "image" if end.manifests else f"{end.error} ({end.billed})"
        report.doubled = max(0, report.payments - self.allowed)
        if report.doubled and not report.race:
            report.wrong.append(f"{report.payments} payments, not {self.allowed}")
        receipt = self.receipt()
        self._check_usage(end, receipt)
        if end.manifests:
            for manifest in end.manifests:
                self._check_images(manifest["images"], n)
            if all(attempt.outcome is not Outcome.COMPLETE for attempt in receipt.attempts):
                report.wrong.append("the receipt is not complete")
        else:
            self._check_failure(end)
        self._check_arrived(receipt)

    def _check_usage(self, end: End, receipt: Receipt) -> None:
        """Check that the receipt has the tokens of each request whose ID is known, and no others."""
        if self.report.race:
            return
        known = {attempt.request_id for attempt in receipt.attempts}
        expected = sum(record.total_tokens for record in self.gateway.charges if record.request_id in known)
        used = receipt.usage_of(Owner("dag", "run", "image", receipt.attempts[0].owner.map_index))[
            "total_tokens"
        ]
        if used != expected:
            self.report.wrong.append(f"usage {used} in the receipt, and {expected} by its request IDs")
        reported = {manifest["usage"]["total_tokens"] for manifest in end.manifests}
        if reported - {used}:
            self.report.wrong.append(f"usage {reported} in the manifest, {used} in the receipt")

    def _check_failure(self, end: End) -> None:
        report = self.report
        if end.error != "JojoKeyReceiptError":
            allowed = {"yes", "unknown"} if report.payments else {"unknown"}
            if end.billed not in allowed:
                report.wrong.append(
                    f"{report.payments} payments, and the error says {end.billed}: {end.message}"
                )
        if "Airflow does not retry the task" not in end.message:
            report.wrong.append(f"the message does not say what a retry does: {end.message}")

    def _check_images(self, images: list[dict[str, Any]], n: int) -> None:
        if len(images) != n:
            self.report.wrong.append(f"{len(images)} images, not {n}")
        digest = hashlib.sha256(self.world.image).hexdigest()
        for image in images:
            try:
                body = self.client.get_object(Bucket=image["bucket"], Key=image["key"])["Body"].read()
            except self.client.exceptions.NoSuchKey:
                body = b""
            if not hashlib.sha256(body).hexdigest() == digest == image["sha256"]:
                self.report.wrong.append(f"{image['key']} is not in the store as it was received")
                self.report.lost += 1

    def _check_arrived(self, receipt: Receipt) -> None:
        for name, count in self.arrived.items():
            attempt = receipt.attempt(name)
            kept = len(attempt.images) if attempt else 0
            if kept < count:
                self.report.wrong.append(f"{count} images had arrived, {kept} are in the receipt")
                self.report.lost += count - kept
            elif attempt:
                self._check_images([image.to_json() for image in attempt.images], kept)
            if count == self.report.n and attempt and attempt.outcome is not Outcome.COMPLETE:
                self.report.wrong.append(f"all images had arrived, and the attempt is {attempt.outcome}")
        if waiting := list(self.spools.rglob("*.image")):
            self.report.wrong.append(f"{len(waiting)} images still wait on disk")

    def receipt(self) -> Receipt:
        answer = self.client.get_object(Bucket=self.bucket, Key=f"_jojokey/{KEY}.json")
        return Receipt.from_json(answer["Body"].read())


# --- accidents ---------------------------------------------------------------------------------------------------

Accident = Callable[[Trial], None]
ACCIDENTS: dict[str, Accident] = {}
RACES: set[str] = set()
"""Races that a store without conditional writes may lose: these are counted, not errors."""


def _accident(name: str, race: bool = False) -> Callable[[Accident], Accident]:
    def add(accident: Accident) -> Accident:
        ACCIDENTS[name] = accident
        if race:
            RACES.add(name)
        return accident

    return add


def _killed_at(name: str, *acts: Act, n: int | None = None) -> None:
    @_accident(name)
    def accident(trial: Trial) -> None:
        if n:
            trial.report.n = n
        trial.triggers = trial.rng.choice((0, 0, 1))
        trial.retry([trial.start(trial.rng.choice(acts)).end()])


_killed_at("killed before the claim", Act("create", "before"), Act("claim", "before"))
_killed_at("killed while claiming", Act("write", "before"), Act("write", "after"), Act("write", "after", 2))
_killed_at("killed between claim and request", Act("claim", "after"), Act("generate", "before"))
_killed_at("killed just before the request", Act("mark", "before"), Act("mark", "after"))
_killed_at("killed after image 1 of 3 had arrived", Act("seal", "after"), Act("seal", "before", 2), n=3)
_killed_at("killed between the last image and the reply's end", Act("seal", "after", 3), n=3)
_killed_at("killed between reply and reply.json", Act("generate", "after"), Act("keep", "before"))
_killed_at("killed between reply.json and upload", Act("keep", "after"), Act("put", "before"))
_killed_at(
    "killed between image 1 and 2 of 3 in the upload", Act("put", "after"), Act("put", "before", 2), n=3
)
_killed_at("killed before the receipt is complete", Act("update", "before"))
_killed_at("killed right after the receipt is complete", Act("update", "after"), Act("discard", "before"))
_killed_at("killed at the very end", Act("discard", "after"))


@_accident("killed in flight")
def _in_flight(trial: Trial) -> None:
    trial.triggers = trial.rng.choice((0, 0, 1))
    trial.retry([_killed_in_flight(trial, trial.delay)])


def _killed_in_flight(trial: Trial, seconds: float) -> End | None:
    """Start a process and kill it within ``seconds`` after its request was sent."""
    running = trial.start()
    asked = threading.Thread(target=trial.gateway.wait_for_request, args=(1, 60))
    asked.start()
    while asked.is_alive() and running.process.is_alive():
        asked.join(0.02)
    time.sleep(trial.rng.uniform(0, seconds))
    running.kill()
    return running.end()


@_accident("killed while the reply drips in")
def _dripping(trial: Trial) -> None:
    drip = trial.rng.uniform(0.2, 0.5)
    trial.gateway.behave_well()
    trial.gateway.behave(drip=drip)
    trial.retry([_killed_in_flight(trial, drip)])


@_accident("killed at a random time")
def _at_random(trial: Trial) -> None:
    trial.triggers = trial.rng.choice((0, 0, 1))
    running = trial.start()
    time.sleep(trial.rng.uniform(0.05, 1.0 if trial.backend.honours else 2.0))
    running.kill()
    trial.retry([running.end()])


@_accident("killed again and again at random times")
def _killed_repeatedly(trial: Trial) -> None:
    end: End | None = None
    for _ in range(trial.rng.randint(2, 4)):
        running = trial.start()
        time.sleep(trial.rng.uniform(0.05, 1.0 if trial.backend.honours else 2.0))
        running.kill()
        end = running.end()
        if end:
            break
        trial.try_number += 1
    trial.retry([end])


_ANYWHERE = [
    (step, when, nth)
    for step, nths in {
        "claim": 1,
        "write": 2,
        "generate": 1,
        "mark": 1,
        "seal": 1,
        "keep": 1,
        "put": 3,
        "update": 1,
    }.items()
    for when in ("before", "after")
    for nth in range(1, nths + 1)
]


@_accident("S3 is down for a while")
def _down_for_a_while(trial: Trial) -> None:
    step, when, nth = trial.rng.choice(_ANYWHERE)
    trial.retry([trial.start(Act(step, when, nth, "pull", trial.rng.uniform(0.1, 1.5))).end()])


@_accident("S3 is down for good")
def _down_for_good(trial: Trial) -> None:
    step, when, nth = trial.rng.choice(_ANYWHERE)
    trial.patience = 0.3
    end = trial.start(Act(step, when, nth, "pull")).end()
    if not (end and end.manifests) and trial.rng.random() < 0.5:  # it stays broken for the next try
        trial.try_number += 1
        end = trial.start().end()
    trial.patience = PATIENCE
    trial.retry([end])


@_accident("S3 is down for good and the reply breaks off")
def _down_and_broken(trial: Trial) -> None:
    trial.report.n = 3
    trial.patience = 0.3
    trial.gateway.behave_well()
    trial.gateway.behave("truncated", truncate_after=trial.rng.randint(1, 3), times=1)
    end = trial.start(Act("seal", "after", 1, "pull")).end()
    trial.patience = PATIENCE
    trial.retry([end])


@_accident("S3 is down for a while and the task is killed")
def _down_and_killed(trial: Trial) -> None:
    step, when, nth = trial.rng.choice(_ANYWHERE)
    running = trial.start(Act(step, when, nth, "pull", trial.rng.uniform(0.2, 1.0)))
    timer = threading.Timer(trial.rng.uniform(0.3, 1.5), running.kill)
    timer.start()
    end = running.end()
    timer.cancel()
    trial.retry([end])


@_accident("S3's reply to a write is lost")
def _reply_lost(trial: Trial) -> None:
    step, nth = trial.rng.choice([("write", 1), ("write", 2), ("put", 1), ("put", 2), ("update", 1)])
    acts = [Act(step, "before", nth, "lose")]
    if trial.rng.random() < 0.3:
        acts.append(Act(step, "after", nth))
    trial.retry([trial.start(*acts).end()])


def _concurrently(
    trial: Trial, *steps: str, kill_after: float | None = None, **each: Any
) -> list[End | None]:
    """Start two processes that meet just before one of ``steps``, and return how they ended."""
    step = trial.rng.choice((*steps, ""))
    acts = [Act(step, "before", 1, "meet")] if step else []
    trial.meeting = threading.Barrier(2)
    running = [trial.start(*acts, **{name: values[i] for name, values in each.items()}) for i in (0, 1)]
    with ThreadPoolExecutor(2) as threads:
        ends = [threads.submit(process.end) for process in running]
        if kill_after is not None:
            time.sleep(kill_after)
            running[0].kill()
        return [end.result() for end in ends]


@_accident("one trigger in two processes", race=True)
def _trigger_in_two(trial: Trial) -> None:
    trial.triggers = 1
    trial.retry(_concurrently(trial, "claim", "write"))


@_accident("one trigger in two processes, one of them killed", race=True)
def _trigger_in_two_one_killed(trial: Trial) -> None:
    trial.triggers = 1
    trial.retry(_concurrently(trial, "claim", "write", kill_after=trial.rng.uniform(0.05, 1.0)))


@_accident("one trigger twice in one process")
def _trigger_twice(trial: Trial) -> None:
    trial.triggers = 2
    trial.retry([trial.start().end()])


@_accident("one trigger twice in one process, which is killed")
def _trigger_twice_killed(trial: Trial) -> None:
    trial.triggers = 2
    running = trial.start()
    time.sleep(trial.rng.uniform(0.1, 1.0 if trial.backend.honours else 2.0))
    running.kill()
    trial.retry([running.end()])


@_accident("two come back for a dead attempt at once", race=True)
def _two_retries_at_once(trial: Trial) -> None:
    step, when, nth = trial.rng.choice([point for point in _ANYWHERE if point[0] not in ("claim", "write")])
    first = trial.start(Act(step, when, nth)).end()
    if first is not None:  # that step does not occur n times
        return trial.retry([first])
    trial.try_number += 1
    return trial.retry(_concurrently(trial, "reconcile", "update", "write"))


@_accident("two mapped tasks with one key", race=True)
def _two_tasks(trial: Trial) -> None:
    ends = _concurrently(trial, "claim", "write", map_index=(0, 1))
    made = [end for end in ends if end and end.manifests]
    refused = [end for end in ends if end and end.error == "JojoKeyReceiptError" and end.final]
    if (len(made), len(refused)) != (1, 1) and trial.backend.honours:
        trial.report.wrong.append(f"{[end and (end.error or 'made') for end in ends]}")
    trial.check(made[0] if made else refused[0])


@_accident("asked to pay again: reuse='never'")
def _reuse_never(trial: Trial) -> None:
    trial.options = {"reuse": "never"}
    trial.allowed = 2
    trial.retry([_killed_in_flight(trial, trial.delay)])
    if trial.report.payments != len(trial.gateway.requests):
        trial.report.wrong.append("what was asked for was not paid")


@_accident("asked to pay again: on_unknown_outcome='regenerate'")
def _regenerate(trial: Trial) -> None:
    trial.options = {"on_unknown_outcome": "regenerate"}
    first = _killed_in_flight(trial, trial.delay + 0.1)
    trial.allowed = 2 if first is None and max(trial.arrived.values(), default=0) < trial.report.n else 1
    trial.retry([first])
    if trial.report.ended != "image":
        trial.report.wrong.append(f"another image was asked for and not made: {trial.report.ended}")


# --- all of them -------------------------------------------------------------------------------------------------


def run_trial(world: World, number: int, seed: int, accident: str, store: str) -> Report:
    """Run a trial; ``seed``, ``number`` and the machine determine its random choices."""
    rng = random.Random(f"{seed}/{number}")
    report = Report(number, accident, store, rng.choice((1, 3)))
    report.race = accident in RACES and not world.backends[store].honours
    with (
        Gateway(image=world.image, log_limit=None) as gateway,
        Wire(world.backends[store].port) as wire,
    ):
        trial = Trial(world, report, rng, gateway, wire)
        try:
            ACCIDENTS[accident](trial)
        except Exception as error:
            report.wrong.append(f"the trial itself failed: {type(error).__name__}: {error}")
        report.payments = len(gateway.charges)
        if report.wrong:
            log = trial.folder / "log"
            report.log = log.read_text() if log.exists() else ""
    if not report.wrong:
        shutil.rmtree(trial.folder)
    return report


def run_trials(
    trials: int, seed: int, on_end: Callable[[Report], object] = lambda _: None, only: str = ""
) -> list[Report]:
    """Run ``trials`` trials, each accident about as often on each of the two stores."""
    plan = [(accident, store) for accident in ACCIDENTS if only in accident for store in ("moto", "rclone")]
    random.Random(seed).shuffle(plan)
    folder = Path(tempfile.mkdtemp(prefix="jojokey-kill-"))
    try:
        with World(folder) as world, ThreadPoolExecutor(AT_A_TIME) as threads:

            def run_number(number: int) -> Report:
                report = run_trial(world, number, seed, *plan[number % len(plan)])
                on_end(report)
                return report

            return list(threads.map(run_number, range(trials)))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def summary(reports: list[Report], seed: int) -> str:
    """Return a table by accident, and a line with the totals."""
    lines = [f"{'accident':57} trials payments doubled lost failed"]
    for accident in ACCIDENTS:
        for race in (False, True):
            these = [report for report in reports if report.accident == accident and report.race is race]
            if these:
                name = f"{accident} (rclone)" if race else accident
                lines.append(f"{name:57} {_counts(these)}")
    demanded = [report for report in reports if not report.race]
    raced = [report for report in reports if report.race]
    unrequested = sum(report.doubled for report in demanded)
    ends = Counter(report.ended for report in reports)
    lines.append(
        f"seed {seed}: {len(reports)} trials, {sum(report.tries for report in reports)} processes, "
        f"{sum(report.payments for report in reports)} payments, {unrequested} double payments, "
        f"{sum(report.lost for report in reports)} lost images, "
        f"{sum(1 for report in reports if report.wrong)} trials with anything wrong; "
        f"races on a store without conditional writes: {len(raced)} trials, "
        f"{sum(report.doubled for report in raced)} double payments; "
        f"ends: {', '.join(f'{name} {count}' for name, count in ends.most_common())}"
    )
    return "\n".join(lines)


def _counts(reports: list[Report]) -> str:
    return (
        f"{len(reports):6} {sum(report.payments for report in reports):8} {sum(report.doubled for report in reports):7} "
        f"{sum(report.lost for report in reports):4} {sum(1 for report in reports if report.wrong):6}"
    )
