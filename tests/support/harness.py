"""Run the payment path the way Airflow's tasks do: one call is one try of a task.

Requests go to the sandbox gateway, images to a real S3 server. What was paid is read from the gateway's own
charges, never from what the package believes.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from msgspec import structs

from airflow_provider_jojokey.exceptions import JojoKeyError, JojoKeyUnknownOutcomeError
from airflow_provider_jojokey.hooks.jojokey import JojoKeyHook
from airflow_provider_jojokey.img2 import ImageRequest
from airflow_provider_jojokey.payments import clock, liveness
from airflow_provider_jojokey.payments.attempt import Owner
from airflow_provider_jojokey.payments.generate import ImageJob, Services, generate_images
from airflow_provider_jojokey.payments.receipt import Receipt
from airflow_provider_jojokey.sandbox import Gateway
from airflow_provider_jojokey.settings import Settings
from airflow_provider_jojokey.store import host as hosts
from airflow_provider_jojokey.store import server_clock
from airflow_provider_jojokey.store.keys import Destination
from airflow_provider_jojokey.store.s3 import ImageStore
from tests.support.buckets import Bucket
from tests.support.patience import PATIENCE

_clients: dict[str, Any] = {}
_this_host: ContextVar[Host | None] = ContextVar("_this_host", default=None)
Result = JojoKeyError | dict[str, Any]


class Killed(BaseException):
    """Stands for ``kill -9``: nothing in the package handles it."""


@dataclass(frozen=True)
class Host:
    """A worker's machine.

    :param name: its host name
    :param identity: distinguishes it from other machines with that name
    :param ahead: seconds by which its wall clock is ahead of the others
    """

    name: str
    identity: str
    ahead: float = 0.0


class Time:
    """Shifts all clocks at once."""

    def __init__(self) -> None:
        self.passed = 0.0

    def skip(self, seconds: float) -> None:
        self.passed += seconds


def simulate_hosts(patch: pytest.MonkeyPatch) -> Time:
    """Let each thread be on the host that :meth:`Harness.on` names, and let time be skipped.

    :param patch: the test's own, so that all its changes are undone in the reverse order
    """
    time = Time()
    worker, machine, now = liveness._worker, hosts.machine_id, clock.now
    date, monotonic = server_clock._parsed_date, clock.monotonic

    def worker_here(pid: int) -> Any:
        here = _this_host.get()
        if here is None:
            return worker(pid)
        own_pid = pid + 1 + crc32(here.identity.encode()) % 1000  # each machine has its own process table
        return structs.replace(worker(pid), host=here.name, identity=here.identity, pid=own_pid)

    def machine_here() -> str:
        here = _this_host.get()
        return machine() if here is None else here.identity

    def now_here() -> datetime:
        here = _this_host.get()
        return now() + timedelta(seconds=time.passed + (here.ahead if here else 0.0))

    def date_here(headers: Mapping[str, str]) -> float | None:
        sent = date(headers)
        return None if sent is None else sent + time.passed

    patch.setattr(liveness, "_worker", worker_here)
    patch.setattr(hosts, "machine_id", machine_here)
    patch.setattr(clock, "now", now_here)
    patch.setattr(clock, "monotonic", lambda: monotonic() + time.passed)
    patch.setattr(server_clock, "_parsed_date", date_here)
    return time


@dataclass
class Harness:
    """Runs jobs on one worker.

    :param connection: the extra of the connection to JojoKey
    """

    gateway: Gateway
    bucket: Bucket
    spools: Path
    environ: pytest.MonkeyPatch
    connection: dict[str, Any] = field(default_factory=dict)
    host: Host | None = None
    time: Time = field(default_factory=Time)
    settings: Settings = field(init=False)

    def __post_init__(self) -> None:
        self.settings = Settings(spool_directory=self.spools, upload_patience=20.0, longest_generation=0.3)
        self.connect()

    def connect(self, token: str | None = None, host: str | None = None, **extra: Any) -> None:
        """Write the two Airflow connections."""
        patient = {"connect_timeout": 2, "read_timeout": 30, "max_resends": 0, "max_resend_wait": 1}
        self.connection = {**patient, **self.connection, **extra}
        jojokey = {
            "conn_type": "jojokey",
            "host": host or self.gateway.url,
            "password": self.gateway.token if token is None else token,
            "extra": self.connection,
        }
        self.environ.setenv("AIRFLOW_CONN_JOJOKEY_DEFAULT", json.dumps(jojokey))
        self.environ.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(self.bucket.connection))

    def set(self, **settings: Any) -> None:
        """Change the worker's settings."""
        self.settings = structs.replace(self.settings, **settings)

    def on(self, name: str, identity: str = "", ahead: float = 0.0) -> Harness:
        """Return the harness of another worker, with a spool of its own.

        :param identity: by default its name
        :param ahead: seconds by which its clock is ahead of S3's
        """
        identity = identity or name
        other = replace(
            self, spools=self.spools.with_name(f"spool-{identity}"), host=Host(name, identity, ahead)
        )
        other.settings = structs.replace(self.settings, spool_directory=other.spools)
        return other

    def in_other_process(self) -> Harness:
        """Return the harness of another process on the real machine, while this one goes on running."""
        return replace(self, host=Host(hosts.host_name(), hosts.host_identity()))

    def store(self) -> ImageStore:
        store = ImageStore("aws_default")
        client = _clients.get(self.bucket.endpoint_url)
        if client is None:  # created from the Airflow connection, which is slow
            client = _clients[self.bucket.endpoint_url] = store.client
        vars(store)["client"] = client
        return store

    def job(
        self,
        prompt: str = "a fox",
        key: str = "fox.png",
        *,
        run: str = "monday",
        task: str = "image",
        map_index: int = -1,
        try_number: int = 1,
        reuse: str = "run",
        on_unknown_outcome: str = "fail",
        bucket: str | None = None,
        ti_id: str = "",
        limits: dict[str, Any] | None = None,
        replace: bool = False,
        **request: Any,
    ) -> ImageJob:
        ti_id = ti_id or f"{run}-{task}-{map_index}-{try_number}"
        return ImageJob(
            ImageRequest(prompt, **request),
            Destination(bucket or self.bucket.name, key, request.get("n", 1)),
            Owner("dag", run, task, map_index, try_number, ti_id),
            reuse,
            on_unknown_outcome,
            replace=replace,
            **(limits or {}),
        )

    def run(self, *job: Any, hook: JojoKeyHook | None = None, **more: Any) -> dict[str, Any]:
        """Run one try, and return its manifest."""
        token = _this_host.set(self.host)
        try:
            services = Services(hook or JojoKeyHook(), self.store(), self.settings)
            return generate_images(self.job(*job, **more), services).manifest
        finally:
            _this_host.reset(token)

    def fail(self, *job: Any, **more: Any) -> JojoKeyError:
        """Run one try that fails, and return its error."""
        result = self.end(*job, **more)
        assert isinstance(result, JojoKeyError), result
        return result

    def end(self, *job: Any, **more: Any) -> Result:
        """Run one try, and return its manifest or its error."""
        try:
            return self.run(*job, **more)
        except JojoKeyError as error:
            return error

    def kill(self, *job: Any, hook: JojoKeyHook | None = None, **more: Any) -> None:
        """Run one try that is killed: by default right after its whole response has arrived."""
        with pytest.raises(Killed):
            self.run(*job, hook=hook or DiesAfterResponse(), **more)
        for mark in self.spools.glob("*/*/ended"):  # a killed process leaves none
            mark.unlink()

    def run_with_retries(self, *job: Any, retries: int = 3, first: int = 1, **more: Any) -> list[Result]:
        """Run all tries as Airflow does, and return how each of them ended.

        Time is skipped until the retry that an error asks for.
        """
        results: list[Result] = []
        for try_number in range(first, first + retries + 1):
            results.append(self.end(*job, try_number=try_number, **more))
            error = results[-1]
            if isinstance(error, (dict, AirflowFailException)):
                break
            if isinstance(error, JojoKeyUnknownOutcomeError) and error.retry_after:
                self.time.skip(error.retry_after + 2)  # S3's clock has whole seconds
        return results

    def receipt(self, key: str = "fox.png") -> Receipt:
        response = self.bucket.client().get_object(Bucket=self.bucket.name, Key=f"_jojokey/{key}.json")
        return Receipt.from_json(response["Body"].read())

    def outcomes(self, key: str = "fox.png") -> list[str]:
        return [str(attempt.outcome) for attempt in self.receipt(key).attempts]

    def read(self, key: str) -> bytes:
        return bytes(self.bucket.client().get_object(Bucket=self.bucket.name, Key=key)["Body"].read())

    def delete(self, key: str) -> None:
        self.bucket.client().delete_object(Bucket=self.bucket.name, Key=key)

    def objects(self) -> list[str]:
        listing = self.bucket.client().list_objects_v2(Bucket=self.bucket.name)
        return [entry["Key"] for entry in listing.get("Contents", [])]

    def spooled(self) -> list[str]:
        """Return the names of all files in attempt folders."""
        return sorted(path.name for path in self.spools.glob("*/*/*"))

    def attempt_folders(self) -> list[Path]:
        return sorted(path for path in self.spools.glob("*/*") if path.is_dir())

    @property
    def posts(self) -> int:
        """Paid requests that reached the gateway."""
        return len(self.gateway.requests)

    @property
    def billed(self) -> int:
        """Requests that the gateway billed."""
        return len(self.gateway.charges)

    @property
    def tokens(self) -> int:
        """Tokens that the gateway billed."""
        return sum(record.total_tokens for record in self.gateway.charges)


class DiesAfterResponse(JojoKeyHook):
    """A hook whose process is ended once the response has arrived."""

    error: type[BaseException] = Killed

    def generate(self, *arguments: Any, **more: Any) -> Any:
        super().generate(*arguments, **more).close()
        raise self.error


class DiesAfterRequestId(JojoKeyHook):
    """A hook whose process is killed once the response has shown its request ID."""

    error: type[BaseException] = Killed

    def generate(self, *arguments: Any, on_fact: Callable[[str, str], None], **more: Any) -> Any:
        def die(name: str, value: str) -> None:
            on_fact(name, value)
            if name == "request_id":
                raise self.error

        return super().generate(*arguments, on_fact=die, **more)


def name_of(result: Result) -> str:
    """Return ``"image"``, or the name of the error's class."""
    return "image" if isinstance(result, dict) else type(result).__name__


def when_asked(gateway: Gateway, then: Callable[[], object]) -> threading.Thread:
    """Call ``then`` as soon as the gateway has received a paid request."""

    def wait() -> None:
        gateway.wait_for_request(timeout=PATIENCE)
        then()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread
