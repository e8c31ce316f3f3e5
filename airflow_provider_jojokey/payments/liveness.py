"""The process that makes an attempt, and whether it may still be running."""

from __future__ import annotations

import os
import threading
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from airflow_provider_jojokey.payments.attempt import Attempt, Outcome, Worker
from airflow_provider_jojokey.store import host

if TYPE_CHECKING:
    import psutil

CLOCK_TOLERANCE = timedelta(minutes=10)
"""Added to a lease if its times come from a host's own clock, because S3 sent no ``Date``."""

_in_flight: set[str] = set()
_lock = threading.Lock()


def this_worker(spool_id: str = "") -> Worker:
    """Return this process.

    :param spool_id: ID of the spool where its images wait
    """
    return replace(_worker(os.getpid()), spool=spool_id)  # by process ID, because a fork is another worker


def start(attempt: Attempt) -> None:
    """Register an attempt as in flight in this process. The process table does not show dead threads."""
    with _lock:
        _in_flight.add(attempt.id)


def end(attempt: Attempt) -> None:
    """Remove the registration of :func:`start`."""
    with _lock:
        _in_flight.discard(attempt.id)


def may_be_alive(attempt: Attempt, now: datetime, clock: str) -> bool:
    """Return whether the process that makes ``attempt`` may still be running.

    On this host, the process table decides. On another host, the attempt counts as alive until its lease ends.

    :param now: the time, see :meth:`ImageStore.now`
    :param clock: its source: ``"s3"`` or ``"host"``
    """
    if is_of_this_host(attempt.worker):
        return runs_here(attempt)
    one_clock = attempt.clock == clock == "s3"
    return now < attempt.lease_until + (timedelta() if one_clock else CLOCK_TOLERANCE)


def may_be_working(attempt: Attempt, now: datetime, clock: str) -> bool:
    """Return whether a process may still be working on an attempt, from its outcome and as in :func:`may_be_alive`.

    Another host may have recorded an attempt as lost while its process on this host still receives images. Only
    the process itself records its error, as the last step. A triggerer then goes on running for days.
    """
    if attempt.outcome is Outcome.OPEN:
        return may_be_alive(attempt, now, clock)
    return attempt.outcome is not Outcome.COMPLETE and attempt.error is None and runs_here(attempt)


def is_of_this_host(worker: Worker) -> bool:
    """Return whether a process belongs to this machine, boot and process namespace."""
    return bool(worker.identity) and worker.identity == this_worker().identity


def runs_here(attempt: Attempt) -> bool:
    """Return whether an attempt's process runs on this host and still works on it, regardless of the receipt."""
    this, worker = this_worker(), attempt.worker
    if not is_of_this_host(worker):
        return False
    if worker.pid == this.pid and _same_start(worker.started, this.started):
        return attempt.id in _in_flight
    return is_running(worker)


def is_running(worker: Worker) -> bool:
    """Return whether a process of this host is running, or ``True`` if the system denies access."""
    import psutil

    try:
        process = psutil.Process(worker.pid)
        same = _same_start(_started(process), worker.started)
        return bool(same and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True  # it exists, but we may not inspect it


def _started(process: psutil.Process) -> float:
    """Return when a process started, in seconds since boot if the system reports it.

    psutil's time depends on the wall clock. After a change of the clock, every running process would look like
    another one, and its attempts would look orphaned.
    """
    import psutil

    try:
        fields = Path(f"/proc/{process.pid}/stat").read_bytes().rpartition(b")")[2].split()
        return int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            raise psutil.NoSuchProcess(process.pid) from None
    except (OSError, ValueError, IndexError):
        pass
    return float(process.create_time())


def _same_start(first: float, second: float) -> bool:
    return abs(first - second) < 2.0


@cache
def _worker(pid: int) -> Worker:
    import psutil

    return Worker(
        host=host.host_name(),
        pid=pid,
        started=_started(psutil.Process(pid)),
        identity=host.host_identity(),
    )
