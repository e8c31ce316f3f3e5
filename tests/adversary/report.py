"""Count what happened in many sequences."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from tests.adversary.plan import Plan
from tests.adversary.s3 import STORES
from tests.adversary.world import World

COLUMNS = (
    "sequences",
    "processes",
    "POSTs",
    "payments",
    "doubled",
    "lost",
    "above bill",
    "differ",
    "wrong words",
    "other",
)
KINDS = {
    "paid": "doubled",
    "sent": "doubled",
    "a received": "lost",
    "a stored": "lost",
    "refuses": "other",
    "returns": "lost",
    "stored an": "lost",
    "receipt above": "above bill",
    "receipts above": "above bill",
    "an attempt's usage": "above bill",
    "settled": "differ",
    "XCom": "differ",
}


@dataclass
class Report:
    """Counts by store and by accident. Without conditional writes, two writers may win; that is counted separately."""

    seed: str
    skew: float
    seconds: float = 0.0
    stores: dict[str, Counter[str]] = field(default_factory=dict)
    accidents: dict[str, Counter[str]] = field(default_factory=dict)
    problems: Counter[tuple[str, bool]] = field(default_factory=Counter)
    first: dict[str, Plan] = field(default_factory=dict)

    def add(self, world: World) -> None:
        plan, sent = world.plan, world.gateway.sent
        counts = Counter(
            {
                "sequences": 1,
                "processes": len(world.ended),
                "POSTs": len(sent),
                "payments": sum(post.billed for post in sent),
            }
        )
        for problem in world.problems:
            counts[column_of(problem)] += 1
        for problem in set(world.problems):
            self.problems[problem, plan.conditional] += 1
            if plan.conditional or problem not in self.first:
                self.first.setdefault(problem, plan)
        self.stores.setdefault(plan.store, Counter()).update(counts)
        if plan.conditional:
            outcomes = {f"POST {post.outcome}" for post in sent if post.outcome != "ok"}
            for accident in outcomes.union(plan.accidents()):
                self.accidents.setdefault(accident, Counter()).update(counts)

    @property
    def violations(self) -> int:
        """Sequences with a violation on a store with conditional writes."""
        return sum(count for (_, conditional), count in self.problems.items() if conditional)

    def table(self) -> str:
        """Return the counts as text."""
        lines = [f"{'':22}" + "".join(f"{column:>12}" for column in COLUMNS)]
        for rows, names in ((self.stores, list(STORES)), (self.accidents, sorted(self.accidents))):
            lines += [
                f"{name:22}" + "".join(f"{rows[name][column]:12}" for column in COLUMNS)
                for name in names
                if name in rows
            ]
            lines.append("")
        total = sum(self.stores.values(), Counter())
        lines.append(
            f"seed {self.seed}, clocks apart up to {self.skew:.0f} s: {total['sequences']} sequences, "
            f"{total['processes']} processes, {total['POSTs']} POSTs, {total['payments']} payments in {self.seconds:.0f} s"
        )
        for (problem, conditional), count in self.problems.most_common():
            where = "" if conditional else " (store without conditional writes)"
            lines.append(f"{count:5} {problem}{where}")
        return "\n".join(lines)


def column_of(problem: str) -> str:
    """Return the column that counts a violation."""
    if "says" in problem:
        return "wrong words"
    return next((column for start, column in KINDS.items() if problem.startswith(start)), "other")
