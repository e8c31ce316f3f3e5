"""Run the full count: ``python -m tests.kill --trials 240 --seed 1``."""

from __future__ import annotations

import argparse
import random
import sys

from tests.kill.trials import Report, run_trials, summary


def main() -> int:
    parser = argparse.ArgumentParser(description="Randomised kill trials.")
    parser.add_argument("--trials", type=int, default=240)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    parser.add_argument("--only", default="", help="a part of the accidents' names")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)

    def show(report: Report) -> None:
        if report.wrong:
            print(
                f"\n--- trial {report.number}: {report.accident} on {report.store}, n={report.n}", flush=True
            )
            print("\n".join(report.wrong), report.log, sep="\n", flush=True)

    reports = run_trials(arguments.trials, arguments.seed, show, arguments.only)
    print(summary(reports, arguments.seed))
    return 1 if any(report.wrong for report in reports) else 0


if __name__ == "__main__":
    sys.exit(main())
