"""Draw sequences, run them, and report what broke. See ``--help``."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from itertools import chain
from pathlib import Path

from tests.adversary.cases import plans, sweeps
from tests.adversary.plan import Plan, draw, shrink
from tests.adversary.report import Report
from tests.adversary.world import run_plan, simulated

MAX_LINES = 120


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.adversary", description=__doc__)
    parser.add_argument("--sequences", type=int, default=300)
    parser.add_argument("--seed", default="1")
    parser.add_argument("--skew", type=float, default=0.0, help="seconds by which clocks may differ")
    parser.add_argument(
        "--known", action="store_true", help="begin with the known sequences and a kill at each yield point"
    )
    parser.add_argument("--only", help="number of one sequence; prints its steps and log")
    parser.add_argument(
        "--show", type=int, default=3, help="violations to minimize and print, one of each kind"
    )
    parser.add_argument("--mutants", action="store_true", help="run against mutants of the package instead")
    parser.add_argument("--first", action="store_true", help="stop at the first violation, on any store")
    args = parser.parse_args()
    if args.mutants:
        from tests.adversary.mutants import run_mutants

        return run_mutants(args.sequences, args.seed, args.only or "")
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="jojokey-adversary-", dir=memory))
    try:
        if args.only:
            print(trace(draw(f"{args.seed}/{args.only}", args.skew), folder))
            return 0
        report = run(args.sequences, args.seed, args.skew, folder, args.first, args.known)
        if args.first:
            print(*report.first)
            return bool(report.first)
        print(report.table())
        for problem, plan in list(report.first.items())[: args.show]:
            with simulated():
                small = shrink(plan, lambda plan, problem=problem: problem in run_plan(plan, folder).problems)
            print(f"\n{problem}: sequence {plan.seed}, minimized\n{trace(small, folder)}")
        return 1 if report.violations else 0
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run(
    sequences: int,
    seed: str,
    skew: float,
    folder: Path,
    until_violation: bool = False,
    known: bool = False,
) -> Report:
    """Run sequences, each named by the seed and its number."""
    report = Report(seed, skew)
    began = time.monotonic()
    drawn = (draw(f"{seed}/{number}", skew) for number in range(sequences))
    with simulated():
        for plan in chain([*plans(), *sweeps()] if until_violation or known else (), drawn):
            report.add(run_plan(plan, folder))
            if until_violation and report.first:
                break
    report.seconds = time.monotonic() - began
    return report


def trace(plan: Plan, folder: Path) -> str:
    """Return a plan's steps, the log of running it, and its violations."""
    with simulated(verbose=True):
        world = run_plan(plan, folder, verbose=True)
    log = world.scheduler.log or []
    if len(log) > MAX_LINES:
        log = [*log[: MAX_LINES // 3], f"… {len(log) - MAX_LINES} lines …", *log[-2 * MAX_LINES // 3 :]]
    lines = [*plan.lines(), *log, *(f"VIOLATION {problem}" for problem in world.problems)]
    return "\n".join(line[:220] for line in lines)


if __name__ == "__main__":
    sys.exit(main())
