"""Sequences of steps, drawn from a seed, and smaller ones that fail in the same way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from random import Random

from tests.adversary.gateway import LOGS, OUTCOMES, Post
from tests.adversary.s3 import CONDITIONAL, FAULTS, STORES


@dataclass(frozen=True)
class Run:
    """Start a process of a task.

    :param kind: ``"try"`` (a retry or a clear: new try and task instance), ``"again"`` (the same task instance once
        more, as a trigger that runs twice), ``"recreated"`` (``dag.test()``: the same run again with new IDs) or
        ``"new run"``
    :param wait: seconds until the next step; ``None`` waits for the end of the process
    """

    task: int = 0
    kind: str = "try"
    host: int = 0
    prompt: int = 0
    reuse: str = "run"
    on_unknown_outcome: str = "fail"
    posts: tuple[Post, ...] = ()
    faults: tuple[tuple[int, str], ...] = ()
    kill_at: int | None = None
    term_at: int | None = None
    freeze_at: tuple[int, float] | None = None
    wait: float | None = None


@dataclass(frozen=True)
class Event:
    """Something that happens to a machine, or that time passes.

    :param what: ``"sleep"``, ``"clean spool"``, ``"lose spool"``, ``"copy spool"`` (to the other host), ``"power cut"``
    """

    what: str
    host: int = 0
    seconds: float = 0.0


Step = Run | Event


@dataclass(frozen=True)
class Plan:
    """A sequence: the world, and what happens in it.

    :param offsets: seconds that the clocks of the two hosts, S3, the gateway and its CDN are ahead
    """

    seed: str
    steps: tuple[Step, ...]
    store: str = "conforming"
    log: str = "honest"
    foreign: bool = False
    error_rows: bool = True
    same_hostname: bool = False
    offsets: tuple[float, float, float, float, float] = (0.0, 0.0, 0.0, 0.0, 0.0)
    n: int = 1

    @property
    def conditional(self) -> bool:
        return self.store in CONDITIONAL

    def accidents(self) -> list[str]:
        """Return the names of all accidents in this sequence."""
        found = {f"log {self.log}"} if self.log != "honest" else set()
        found |= {"shared token"} if self.foreign else set()
        found |= {"clocks apart"} if any(self.offsets) else set()
        for step in self.steps:
            if isinstance(step, Event):
                found |= {step.what} - {"sleep"}
                continue
            found |= {f"S3 {fault}" for _, fault in step.faults}
            for name, happens in (
                ("killed", step.kill_at),
                ("SIGTERM", step.term_at),
                ("suspended", step.freeze_at),
                ("prompt changed", step.prompt),
                ("two at once", step.wait is not None),
                (f"run {step.kind}", step.kind != "try"),
                (f"reuse {step.reuse}", step.reuse != "run"),
                ("regenerate", step.on_unknown_outcome == "regenerate"),
            ):
                found |= {name} if happens else set()
        return sorted(found)

    def lines(self) -> Iterator[str]:
        """Yield the sequence as readable lines, without default values."""
        usual: object
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in ("seed", "steps") and value != field.default:
                yield f"{field.name}: {value}"
        for step in self.steps:
            usual = Run() if isinstance(step, Run) else Event("")
            facts = [(field.name, getattr(step, field.name)) for field in fields(step)]
            different = [f"{name}={value}" for name, value in facts if value != getattr(usual, name)]
            yield f"  {type(step).__name__} {', '.join(different)}"


def draw(seed: str, skew: float = 0.0) -> Plan:
    """Return the sequence of a seed.

    :param skew: seconds by which clocks may be ahead or behind
    """
    rng = Random(seed)
    store = rng.choice(("aws", "conforming", "conforming", "ceph", *STORES))
    calm = rng.random() < 0.3
    accident = 0.15 if calm else 0.35
    small = rng.choice((0.0, 0.0, 2.0, 8.0))
    offsets = [round(rng.uniform(-1, 1) * (skew or small), 1) for _ in range(5)]
    return Plan(
        seed,
        tuple(_step(rng, accident) for _ in range(rng.choice((2, 3, 3, 4, 4, 5, 6)))),
        store=store,
        log=rng.choice(("honest", *LOGS)) if rng.random() < 0.7 else "honest",
        foreign=rng.random() < 0.4,
        error_rows=rng.random() < 0.7,
        same_hostname=rng.random() < 0.3,
        offsets=(offsets[0], offsets[1], offsets[2], offsets[3], offsets[4]),
        n=rng.choice((1, 1, 1, 2)),
    )


def _step(rng: Random, accident: float) -> Step:
    if rng.random() < 0.2:
        what = rng.choice(("sleep", "sleep", "clean spool", "lose spool", "copy spool", "power cut"))
        return Event(what, rng.randrange(2), round(rng.choice((5, 60, 500, 500, 1500)) * rng.random(), 1))

    def maybe(chance: float, value: Callable[[], object]) -> object:
        return value() if rng.random() < chance else None

    posts = [_post(rng) if rng.random() < 1.6 * accident else Post(seconds=_seconds(rng)) for _ in range(3)]
    faults = {rng.randint(1, 12): rng.choice(FAULTS) for _ in range(rng.choice((1, 1, 2)))}
    run = Run(
        task=rng.choice((0, 0, 0, 1)),
        kind=rng.choice(("try", "try", "try", "try", "again", "recreated", "new run")),
        host=rng.choice((0, 0, 1)),
        prompt=rng.choice((0, 0, 0, 1)),
        reuse=rng.choice(("run", "run", "run", "always", "never")),
        on_unknown_outcome=rng.choice(("fail", "fail", "fail", "regenerate")),
        posts=tuple(posts),
        faults=tuple(sorted(faults.items())) if rng.random() < accident else (),
    )
    return replace(
        run,
        kill_at=maybe(accident, lambda: rng.randint(1, 32)),
        term_at=maybe(accident / 4, lambda: rng.randint(1, 32)),
        freeze_at=maybe(accident / 4, lambda: (rng.randint(1, 25), rng.choice((20.0, 45.0, 100.0, 700.0)))),
        wait=maybe(accident, lambda: round(rng.choice((0.2, 2, 15, 60, 200)) * rng.random(), 2)),
    )


def _post(rng: Random) -> Post:
    outcome = rng.choice([name for name in OUTCOMES if name != "ok"])
    failed = rng.choice((0, 0, 1, 2))
    return Post(outcome, rng.random() < 0.6, _seconds(rng), failed, round(rng.random(), 2))


def _seconds(rng: Random) -> float:
    return round(rng.choice((3, 12, 12, 48, 130)) * rng.uniform(0.7, 1.2), 1)


def shrink(plan: Plan, fails: Callable[[Plan], bool], tries: int = 400) -> Plan:
    """Return a smaller plan for which ``fails`` still holds."""
    while True:
        for smaller in _smaller(plan):
            tries -= 1
            if tries < 0:
                return plan
            if fails(smaller):
                plan = smaller
                break
        else:
            return plan


def _smaller(plan: Plan) -> Iterator[Plan]:
    for index in range(len(plan.steps)):
        yield replace(plan, steps=plan.steps[:index] + plan.steps[index + 1 :])
    for field in fields(plan):
        if field.name not in ("seed", "steps") and getattr(plan, field.name) != field.default:
            yield replace(plan, **{field.name: field.default})
    for index, offset in enumerate(plan.offsets):
        if offset:
            yield replace(plan, offsets=(*plan.offsets[:index], 0.0, *plan.offsets[index + 1 :]))  # type: ignore[arg-type]
    for index, step in enumerate(plan.steps):
        for simpler in _simpler(step):
            yield replace(plan, steps=(*plan.steps[:index], simpler, *plan.steps[index + 1 :]))


def _simpler(step: Step) -> Iterator[Step]:
    if isinstance(step, Event):
        return
    for field in fields(step):
        if getattr(step, field.name) != field.default:
            yield replace(step, **{field.name: field.default})
    if step.posts:
        yield replace(step, posts=step.posts[:-1])
    for index, post in enumerate(step.posts):
        for simpler in (Post(), replace(post, failed_channels=0), replace(post, seconds=12.0)):
            if simpler != post:
                yield replace(step, posts=(*step.posts[:index], simpler, *step.posts[index + 1 :]))
    for index in range(len(step.faults)):
        yield replace(step, faults=step.faults[:index] + step.faults[index + 1 :])
