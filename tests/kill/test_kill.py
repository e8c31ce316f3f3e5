"""Run each accident once on each store; ``KILL_TRIALS`` sets another number of trials."""

from __future__ import annotations

import os
import random

from tests.kill.trials import ACCIDENTS, run_trials, summary


def test_accidents_neither_pay_twice_nor_lose_images() -> None:
    trials = int(os.environ.get("KILL_TRIALS") or 2 * len(ACCIDENTS))
    seed = int(os.environ.get("KILL_SEED") or random.randrange(1_000_000))

    reports = run_trials(trials, seed)

    print(summary(reports, seed))
    wrong = [
        f"trial {report.number} ({report.accident}, {report.store}, n={report.n}): {'; '.join(report.wrong)}\n{report.log}"
        for report in reports
        if report.wrong
    ]
    assert not wrong, f"seed {seed}\n" + "\n".join(wrong)
    assert len(reports) == trials
