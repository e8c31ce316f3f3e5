"""The package under test, with its clocks and its view of the machine replaced."""

from __future__ import annotations

import importlib
import pkgutil
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

import tenacity
import tenacity.nap

from airflow_provider_jojokey.payments import clock as package_clock
from airflow_provider_jojokey.payments import liveness
from airflow_provider_jojokey.payments.attempt import Worker
from airflow_provider_jojokey.store import host as package_host
from airflow_provider_jojokey.store import s3, spool
from tests.adversary.virtual import Clock, Process, VirtualTime, replaced, virtual_datetime

PACKAGE = "airflow_provider_jojokey"
PARTS = ("hooks", "img2", "payments", "store")


def import_all() -> None:
    """Import every module of the payment path: a later import would miss the replacements."""
    for part in PARTS:
        package = importlib.import_module(f"{PACKAGE}.{part}")
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{module.name}")
    for module_name in ("exceptions", "settings", "telemetry", "results"):
        importlib.import_module(f"{PACKAGE}.{module_name}")


def identity(process: Process) -> str:
    """Return what identifies the machine of ``process``, in this boot."""
    return f"{process.host.name}/{process.host.boot}"


def forget() -> None:
    """Undo what one process leaves in the memory of the package, as if another process started."""
    spool._cleaned.clear()
    for name in ("_verified", "_probed", "_conditions"):
        getattr(s3, name, {}).clear()


@contextmanager
def replacements(clock: Clock, same_hostname: bool = False) -> Iterator[None]:
    """Replace the clocks and the identity of machine and process."""
    import_all()

    def process() -> Process:
        found = clock.scheduler.current()
        assert found is not None, "called outside of a simulated process"
        return found

    def host_name() -> str:
        return "worker" if same_hostname else process().host.name

    def this_worker(spool_id: str = "") -> Worker:
        return Worker(host_name(), process().pid, process().started, spool_id, identity(process()))

    def is_running(worker: Worker) -> bool:
        return any(
            (other.pid, other.started) == (worker.pid, worker.started) and other.host is process().host and other.alive
            for other in clock.scheduler.processes
        )

    pairs = [
        (time, VirtualTime(clock)),
        (time.monotonic, clock.monotonic),
        (datetime, virtual_datetime(clock)),
        (package_clock.now, clock.now),
        (package_clock.monotonic, clock.monotonic),
        (package_clock.pause, clock.pause),
        (package_host.boot_id, lambda: identity(process())),
        (package_host.machine_id, lambda: process().host.name),
        (package_host.host_identity, lambda: identity(process())),
        (package_host.host_name, host_name),
        (liveness.this_worker, this_worker),
        (liveness.is_running, is_running),
    ]
    random.seed(0)  # jitter
    with replaced(pairs, PACKAGE, tenacity, tenacity.nap):
        yield
