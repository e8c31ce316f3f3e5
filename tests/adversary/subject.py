"""The package under test, with its clocks and its view of the machine replaced."""

from __future__ import annotations

import importlib
import pkgutil
import time
import weakref
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import tenacity
import tenacity.nap

from airflow_provider_jojokey.payments import clock as package_clock
from airflow_provider_jojokey.payments import liveness
from airflow_provider_jojokey.payments.attempt import Worker
from airflow_provider_jojokey.store import conditions, spool
from airflow_provider_jojokey.store import host as package_host
from tests.adversary.virtual import Clock, Process, VirtualTime, replaced, virtual_datetime

PACKAGE = "airflow_provider_jojokey"
PARTS = ("hooks", "img2", "payments", "store")


def import_all() -> None:
    """Import every module of the payment path: a later import would miss the replacements."""
    for part in PARTS:
        package = importlib.import_module(f"{PACKAGE}.{part}")
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{module.name}")
    for module_name in ("exceptions", "settings", "integrations.telemetry", "results"):
        importlib.import_module(f"{PACKAGE}.{module_name}")


def identity(process: Process) -> str:
    """Return the identity of the machine of ``process``, in this boot."""
    return f"{process.host.name}/{process.host.boot}"


class PerProcess(MutableMapping[Any, Any]):
    """Replaces a dictionary of a module with one for each simulated process."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._of_all: weakref.WeakKeyDictionary[Any, dict[Any, Any]] = weakref.WeakKeyDictionary()

    def _mine(self) -> dict[Any, Any]:
        return self._of_all.setdefault(self._clock.scheduler.current() or self._clock, {})

    def __getitem__(self, key: Any) -> Any:
        return self._mine()[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        self._mine()[key] = value

    def __delitem__(self, key: Any) -> None:
        del self._mine()[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._mine())

    def __len__(self) -> int:
        return len(self._mine())


@contextmanager
def replacements(clock: Clock) -> Iterator[None]:
    """Replace the clocks and the identity of machine and process."""
    import_all()

    def process() -> Process:
        found = clock.scheduler.current()
        assert found is not None, "called outside of a simulated process"
        return found

    def host_name() -> str:
        return process().host.hostname

    def this_worker(spool_id: str = "") -> Worker:
        return Worker(host_name(), process().pid, process().started, spool_id, identity(process()))

    def is_running(worker: Worker) -> bool:
        return any(
            (other.pid, other.started) == (worker.pid, worker.started)
            and other.host is process().host
            and other.alive
            for other in clock.scheduler.processes
        )

    pairs: list[tuple[Any, Any]] = [
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
    memories = (conditions.support, conditions.testing, spool._cleaned)
    pairs += [(memory, PerProcess(clock)) for memory in memories]
    with replaced(pairs, PACKAGE, tenacity, tenacity.nap):
        yield
