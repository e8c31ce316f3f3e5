"""Draw sequences, run them, and report what broke. See ``--help``."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

from tests.adversary.plan import Plan, draw, shrink
from tests.adversary.world import run_plan, simulated


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.adversary")
    parser.add_argument("--sequences", type=int, default=300)
    parser.add_argument("--seed", default="1")
    parser.add_argument("--skew", type=float, default=0.0)
    parser.add_argument("--only", help="number of one sequence, printed with its log")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="jojokey-adversary-"))
    kinds: Counter[str] = Counter()
    first: dict[str, Plan] = {}
    began = time.monotonic()
    try:
        if args.only:
            plan = draw(f"{args.seed}/{args.only}", args.skew)
            show(plan, folder)
            return 0
        posts = payments = 0
        with simulated():
            for number in range(args.sequences):
                plan = draw(f"{args.seed}/{number}", args.skew)
                world = run_plan(plan, folder)
                posts += len(world.gateway.sent)
                payments += sum(p.billed for p in world.gateway.sent)
                for problem in set(world.problems):
                    kinds[problem, "cond" if plan.conditional else "none"] += 1
                    first.setdefault(problem, plan)
        print(f"{args.sequences} sequences, {posts} posts, {payments} payments, {time.monotonic()-began:.1f} s")
        for problem, count in kinds.most_common():
            print(count, problem)
        for problem, plan in list(first.items())[:6]:
            with simulated():
                small = shrink(plan, lambda p: problem in run_plan(p, folder).problems)
            print("=====", problem, plan.seed)
            show(small, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def show(plan, folder):
    print("\n".join(plan.lines()))
    with simulated(verbose=True):
        world = run_plan(plan, folder, verbose=True)
    print("\n".join(world.scheduler.log))
    print("PROBLEMS", world.problems)


sys.exit(main())
