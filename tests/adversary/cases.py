"""Sequences that once broke something, or that random ones rarely hit."""

from __future__ import annotations

from tests.adversary.gateway import Post
from tests.adversary.plan import Event, Plan, Run

LATER = Event("sleep", seconds=900.0)
SLOW = (Post(seconds=130.0),)

CASES = {
    "a resend is lost after a rejected request": (Run(posts=(Post("refused"), Post("reset"))), LATER, Run()),
    "a proxy quotes the ID of a failed request": (
        Run(posts=(Post("proxy"),)), LATER, Run(task=1), Event("sleep", seconds=1000.0), Run()
    ),
    "a response broke off within its usage": (Run(posts=(Post("mid body", cut=0.94),)),),
    "a claim's response is lost and boto3 repeats it": (Run(faults=((3, "resent"),)), Run()),
    "the host that waits has a clock ahead": (
        Run(posts=SLOW, wait=20.0), Run(host=1, on_unknown_outcome="regenerate")
    ),
    "try again with the same task instance": (
        Run(reuse="never", posts=(Post("reset"),)), LATER, Run(kind="again", reuse="never")
    ),
    "a Dag run is created again": (Run(reuse="never"), Run(kind="recreated", reuse="never")),
}  # fmt: skip
RACES = {
    f"two processes start {moment:.2f} s apart": (*before, Run(wait=moment), Run(host=number % 2))
    for number, moment in enumerate(0.01 + 0.02 * step for step in range(15))
    for before in ((Run(prompt=1),) if number % 3 == 0 else (),)
}
KILLS = {
    "a kill": lambda at: (Run(kill_at=at), Run()),
    "a kill and a changed prompt": lambda at: (Run(prompt=1, kill_at=at), Run()),
    "a kill, and another host pays again": lambda at: (
        Run(kill_at=at), Run(host=1, on_unknown_outcome="regenerate"), Run()
    ),
    "a kill and a lost spool": lambda at: (Run(kill_at=at), Event("lose spool"), Run()),
    "a kill and a copied spool": lambda at: (Run(kill_at=at), Event("copy spool"), Run(host=1), Run()),
    "a suspended machine": lambda at: (Run(freeze_at=(at, 700.0)), Run(host=1)),
}  # fmt: skip
"""Sequences that are run for each yield point of a process."""


def sweeps(step: int = 1) -> list[Plan]:
    """Return sequences in which a process is killed or suspended at each of its yield points.

    :param step: take each of so many points only
    """
    return [
        Plan(f"{name} at {at}", steps(at), store)
        for name, steps in KILLS.items()
        for at in range(1, 46, step)
        for store in ("aws", "conforming")
    ]


def plans() -> list[Plan]:
    """Return all cases and races, on the stores and with the clocks where they are hardest."""
    clocks = {"the host that waits has a clock ahead": (0.0, 600.0, 0.0, 0.0, 0.0)}
    cases = [
        Plan(name, steps, store, log, same_hostname=True, offsets=clocks.get(name, (0.0,) * 5))  # type: ignore[arg-type]
        for name, steps in CASES.items()
        for store, log in (("conforming", "honest"), ("aws", "honest"), ("ceph", "disabled"))
    ]
    stores = ("no conditions", "no If-Match", "501", "conforming")
    races = [Plan(f"{name}, {store}", steps, store) for name, steps in RACES.items() for store in stores]
    shared = Plan(
        "two tasks at once, one of them never arrives",
        (Run(wait=0.1), Run(task=1, posts=(Post("never arrived"),)), LATER),
        foreign=True,
    )
    late = Plan(
        "a failed channel is logged earlier than the charge",
        (
            Run(posts=(Post("after headers", failed_channels=2),)),
            Run(task=1),
            Event("sleep", seconds=400.0),
            Run(),
        ),
        log="late",
    )
    absent = Plan(
        "a proxy says that there is no receipt", (Run(), Run(faults=((1, "bare 404"),))), "no conditions"
    )
    return [*cases, *races, shared, late, absent]
