"""Virtual time, and processes that run one at a time.

Each simulated process is a thread. It runs until its next yield point (a call to S3 or the gateway, a pause, a
step of the spool), where virtual time passes and the process with the earliest wake-up time continues. The same
sequence therefore runs the same way each time.
"""

from __future__ import annotations

import heapq
import itertools
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

EPOCH = time.time() // 3600 * 3600
"""Virtual time 0. Close to real time, because files in a spool have real modification times."""
MAX_YIELDS = 6_000
MAX_SECONDS = 6 * 3600.0
"""Bounds for one process. Reaching one of them is a livelock."""


class Killed(BaseException):
    """SIGKILL: raised at a yield point and at every later one, so that no cleanup code can do I/O."""


class Livelock(BaseException):
    """A process that does not end."""


@dataclass
class Host:
    """A machine.

    :param name: differs between machines, unlike the hostname
    :param spool: the spool's root
    :param offset: seconds that its wall clock is ahead of true time
    """

    name: str
    hostname: str
    spool: Path
    offset: float
    boot: int = 0
    next_pid: int = 100


@dataclass(eq=False)
class Process:
    """One simulated process.

    :param main: what it does
    :param kill_at: number of the yield point at which it is killed
    :param term_at: number of the yield point at which it receives SIGTERM
    :param freeze_at: number of the yield point at which the machine is suspended, and for how many seconds
    """

    name: str
    host: Host
    main: Callable[[], None]
    kill_at: int | None = None
    term_at: int | None = None
    freeze_at: tuple[int, float] | None = None
    on_term: Callable[[], None] = lambda: None
    pid: int = 0
    started: float = 0.0
    ended: float | None = None
    yields: int = 0
    killed: bool = False
    terminated: float | None = None
    crash: BaseException | None = None
    received: set[str] = field(default_factory=set)
    """Digests of images that it has sealed as whole in its spool."""
    turn: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    @property
    def alive(self) -> bool:
        return self.ended is None and not self.killed


class Scheduler:
    """Virtual time and the queue of processes that wait for it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] | None = None
        self.processes: list[Process] = []
        self._queue: list[tuple[float, int, Process]] = []
        self._count = itertools.count()
        self._driver = threading.Semaphore(0)
        self._until = 0.0
        self._target: Process | None = None
        self._threads: dict[int, Process] = {}

    # For the driver

    def start(self, process: Process) -> None:
        """Make ``process`` runnable now."""
        process.pid = process.host.next_pid
        process.host.next_pid += 1
        process.started = self.now
        self.processes.append(process)
        self._push(self.now, process)
        threading.Thread(target=self._run, args=(process,), daemon=True).start()

    def run(self, seconds: float, target: Process | None = None) -> None:
        """Let time pass until ``target`` has ended, for ``seconds`` at most."""
        self._until, self._target = self.now + seconds, target
        if target is None or target.ended is None:
            self._pass_on()
            if not self._driver.acquire(timeout=60):
                raise RuntimeError("a process waits for something outside of virtual time")

    def kill(self, host: Host) -> None:
        """Kill every process of ``host``."""
        for process in self.processes:
            if process.host is host and process.ended is None:
                process.killed = True

    # For processes

    def current(self) -> Process | None:
        return self._threads.get(threading.get_ident())

    def say(self, text: str) -> None:
        if self.log is not None:
            process = self.current()
            self.log.append(f"{self.now:9.2f} {process.name if process else '-':12} {text}")

    def sleep(self, seconds: float, what: str = "", freezable: bool = True) -> None:
        """Yield: let ``seconds`` pass. Kills, suspensions and SIGTERM take effect here."""
        process = self.current()
        if process is None:
            return
        self._check(process)
        process.yields += 1
        if process.kill_at is not None and process.yields >= process.kill_at:
            self.say(f"killed at {what}")
            process.killed = True
            raise Killed
        if process.term_at is not None and process.yields >= process.term_at and process.terminated is None:
            self.say(f"SIGTERM at {what}")
            process.terminated = self.now
            process.on_term()
            seconds = 0.0  # the signal interrupts the wait
        if process.freeze_at and process.yields >= process.freeze_at[0] and freezable:
            seconds += process.freeze_at[1]
            self.say(f"suspended for {process.freeze_at[1]:.0f} s at {what}")
            process.freeze_at = None
        if process.yields > MAX_YIELDS or self.now - process.started > MAX_SECONDS:
            raise Livelock(f"at {what}")
        at = self.now + max(0.0, seconds)
        if at <= self._until and (not self._queue or at < self._queue[0][0]):
            self.now = at
        else:
            self._push(at, process)
            self._pass_on()
            process.turn.acquire()
        self._check(process)

    def _check(self, process: Process) -> None:
        if process.killed:
            raise Killed

    def _push(self, at: float, process: Process) -> None:
        heapq.heappush(self._queue, (at, next(self._count), process))

    def _pass_on(self) -> None:
        if self._target is not None and self._target.ended is not None:
            self._driver.release()
        elif self._queue and self._queue[0][0] <= self._until:
            self.now, _, process = heapq.heappop(self._queue)
            process.turn.release()
        else:
            self.now = max(self.now, self._until) if self._target is None or self._queue else self.now
            self._driver.release()

    def _run(self, process: Process) -> None:
        process.turn.acquire()
        self._threads[threading.get_ident()] = process
        try:
            process.main()
        except Killed:
            process.killed = True
        except BaseException as error:  # reported as a violation
            process.crash = error
        del self._threads[threading.get_ident()]
        process.ended = self.now
        self._pass_on()


class StopEvent(threading.Event):
    """An event whose ``wait`` takes virtual time."""

    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__()
        self._scheduler = scheduler

    def wait(self, timeout: float | None = None) -> bool:
        process = self._scheduler.current()
        if process is None or self.is_set():
            return super().wait(0 if process else timeout)
        ends = self._scheduler.now + (MAX_SECONDS if timeout is None else timeout)
        while not self.is_set() and self._scheduler.now < ends:
            self._scheduler.sleep(min(ends - self._scheduler.now, 60.0), "a pause")
        return self.is_set()


class VirtualTime(types.ModuleType):
    """Replaces the module ``time``."""

    def __init__(self, clock: Clock) -> None:
        super().__init__("time")
        self._clock = clock
        self.time, self.monotonic, self.perf_counter = clock.time, clock.monotonic, clock.monotonic
        self.sleep = clock.sleep

    def clock_gettime(self, _: int) -> float:
        return self._clock.monotonic()

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


class Clock:
    """The clocks that the package sees. The scheduler is replaced for each sequence."""

    def __init__(self) -> None:
        self.scheduler = Scheduler()

    def time(self) -> float:
        process = self.scheduler.current()
        return time.time() if process is None else EPOCH + self.scheduler.now + process.host.offset

    def monotonic(self) -> float:
        return time.monotonic() if self.scheduler.current() is None else 1000.0 + self.scheduler.now

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.time(), UTC)

    def sleep(self, seconds: float) -> None:
        self.scheduler.sleep(seconds, "a pause")

    def pause(self, seconds: float, stopping: threading.Event | None = None) -> bool:
        if self.scheduler.current() is None:
            return bool(stopping and stopping.is_set())
        if stopping is not None and not isinstance(stopping, StopEvent):
            self.sleep(seconds)
            return stopping.is_set()
        return (stopping or StopEvent(self.scheduler)).wait(seconds)


def virtual_datetime(clock: Clock) -> type[datetime]:
    """Return a subclass of ``datetime`` whose ``now`` is virtual."""

    class Meta(type):
        def __instancecheck__(cls, instance: Any) -> bool:
            return isinstance(instance, datetime)

    class VirtualDatetime(datetime, metaclass=Meta):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.fromtimestamp(clock.time(), tz)

    return VirtualDatetime


@contextmanager
def replaced(replacements: list[tuple[Any, Any]], package: str, *others: types.ModuleType) -> Iterator[None]:
    """Replace objects under every name that the package's modules have for them.

    :param replacements: pairs of an object and what replaces it
    """
    by_id = {id(old): new for old, new in replacements}
    modules = [module for name, module in sys.modules.items() if name.split(".")[0] == package]
    changed: list[tuple[Any, str, Any]] = []
    for module in (*modules, *others):
        for name, value in list(vars(module).items()):
            if id(value) in by_id:
                changed.append((module, name, value))
                setattr(module, name, by_id[id(value)])
    try:
        yield
    finally:
        for module, name, value in changed:
            setattr(module, name, value)
