"""Random sequences of tries, kills, statements, refunds and changes of the gateway log: all accounts agree.

The other random tests (``tests/adversary``, ``tests/kill``) have no statements of people, no refunds, no budgets and no
metrics.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from airflow_provider_jojokey.cost import Costs
from airflow_provider_jojokey.exceptions import JojoKeyError
from airflow_provider_jojokey.payments.amount import spent_on
from airflow_provider_jojokey.payments.attempt import Attempt, Outcome
from airflow_provider_jojokey.payments.job import Limit
from airflow_provider_jojokey.payments.receipt import Receipt
from tests.support.commands import CommandOutput, run_in_process
from tests.support.harness import DiesAfterRequestId, Harness, name_of
from tests.support.loopback import Exchange
from tests.support.metrics import Counters
from tests.support.scripted import (
    TOKENS,
    Behavior,
    ScriptedGateway,
    billed_and_broken,
    billed_and_lost,
    failing,
    good,
    lost,
    row,
    without_usage,
)

SEQUENCES, STEPS = 6, 7
HOURS = 10_000.0
DOUBTS = ("doesn't show", "cannot be read", "proves nothing", "no such request", "may be", "may still")
"""Words of a note that proves nothing."""


def late(gateway: ScriptedGateway, exchange: Exchange, request_id: str, then: Behavior) -> None:
    """Bill the request; the charge is not in the log yet."""
    gateway.logs_charges = False
    try:
        then(gateway, exchange, request_id)
    finally:
        gateway.logs_charges = True


BEHAVIORS: list[Behavior] = [
    good,
    good,
    without_usage,
    billed_and_lost,
    billed_and_broken,
    lost,
    row,
    failing(),
    partial(late, then=without_usage),
    partial(late, then=billed_and_broken),
]


class World:
    """One task, two hosts, the gateway, and the people who state what was billed."""

    def __init__(
        self, seed: int, harness: Harness, gateway: ScriptedGateway, counters: Counters, command: Any
    ) -> None:
        self.random = random.Random(seed)
        self.gateway = gateway
        self.counters = counters
        self.command: Callable[..., CommandOutput] = command
        self.harness = harness
        self.hosts = [harness.on("first"), harness.on("second")]
        self.tries = 0
        self.refunded: set[str] = set()
        self.requests: dict[str, str] = {}
        """The request ID of each attempt."""
        self.trace: list[str] = []

    @property
    def uri(self) -> str:
        return f"s3://{self.harness.bucket.name}/fox.png"

    def receipt(self) -> Receipt:
        return (
            self.harness.receipt() if "_jojokey/fox.png.json" in self.harness.objects() else Receipt("", "")
        )

    def step(self) -> None:
        steps = (self.run, self.run, self.run, self.kill, self.state, self.state, self.change_log)
        self.random.choice(steps)()
        self.check()

    # Steps

    def job(self) -> dict[str, Any]:
        self.tries += 1
        self.harness.time.skip(self.random.choice((0.0, HOURS)))
        return {
            "try_number": self.tries,
            "reuse": self.random.choice(("run", "run", "always", "never")),
            "on_unknown_outcome": self.random.choice(("fail", "fail", "regenerate")),
            "limits": {"task_limit": Limit(tokens=self.random.choice((None, None, 500, 2_000)))},
        }

    def run(self) -> None:
        behavior, job, host = self.random.choice(BEHAVIORS), self.job(), self.random.choice(self.hosts)
        self.send(behavior, job, lambda: self.report(host.end(**job), job))

    def kill(self) -> None:
        behavior, job, host = self.random.choice(BEHAVIORS), self.job(), self.random.choice(self.hosts)
        hook = self.random.choice((None, DiesAfterRequestId()))

        def die() -> None:
            try:
                host.kill(hook=hook, **job)
            except (JojoKeyError, pytest.fail.Exception):
                self.trace.append("  survived")

        self.send(behavior, job, die)
        self.harness.time.skip(HOURS)  # other hosts wait for its lease

    def send(self, behavior: Behavior, job: dict[str, Any], call: Callable[[], None]) -> None:
        self.trace.append(f"{behavior} {job}")
        posts, before = self.gateway.posts, self.receipt()
        unpaid = [attempt for attempt in before.attempts if self.prevents_payment(attempt, job)]
        self.gateway.behaviors = [behavior]
        call()
        sent = self.gateway.posts - posts
        self.gateway.behaviors = []
        assert sent <= 1
        assert not (sent and unpaid), "paid twice"
        new = [attempt.id for attempt in self.receipt().attempts if attempt.id not in self.requests]
        for attempt_id in new[:-1] if sent else new:
            self.requests[attempt_id] = ""
        if sent and new:
            self.requests[new[-1]] = f"request-{self.gateway.posts}"

    def prevents_payment(self, attempt: Attempt, job: dict[str, Any]) -> bool:
        truly = self.requests.get(attempt.id, "") in self.owed
        allowed = job["reuse"] == "never" or job["on_unknown_outcome"] == "regenerate"
        if attempt.outcome is Outcome.COMPLETE:
            return job["reuse"] != "never"
        return truly and not allowed

    def report(self, result: Any, job: dict[str, Any]) -> None:
        self.trace.append(f"  {name_of(result)}")
        receipt, owner = self.receipt(), self.harness.job().owner
        is_error = isinstance(result, JojoKeyError)
        usage, cost = (result.usage, result.cost) if is_error else (result["usage"], result["cost"])
        if usage is not None:
            assert usage == receipt.usage_of(owner)
            assert Costs.from_json(cost) == receipt.cost_of(owner)
        if is_error:
            assert not (result.billed == "yes" and any(doubt in result.reason for doubt in DOUBTS)), result

    def state(self) -> None:
        """Record the truth about an attempt, or refund it."""
        attempts = [attempt for attempt in self.receipt().attempts if attempt.outcome is not Outcome.COMPLETE]
        if not attempts:
            return
        attempt = self.random.choice(attempts)
        request_id = self.requests.get(attempt.id, "")
        billed = request_id in self.owed
        refund = billed and attempt.outcome is Outcome.BILLED and self.random.random() < 0.5
        billed = billed and not refund
        arguments = ["--billed" if billed else "--not-billed", "--attempt", attempt.id]
        if billed and self.random.random() < 0.7:
            arguments += ["--request-id", request_id]
        output = self.command("resolve", self.uri, *arguments)
        if refund and not output.code:
            self.refunded.add(request_id)
        self.trace.append(f"resolve {arguments} {output.code} {output.err.strip()}")

    def change_log(self) -> None:
        rows = self.gateway.rows
        change = self.random.choice(("prune", "off", "on", "repeat", "complete"))
        if change == "prune":
            rows.clear()
        elif change == "complete":
            shown = {entry["request_id"] for entry in rows}
            missing = [request_id for request_id in self.gateway.billed if request_id not in shown]
            for request_id in missing:
                self.gateway.rows.append(row(request_id))
        else:
            self.gateway.log_status = 500 if change == "off" else 200
            self.gateway.repeats_rows = change == "repeat"
        self.trace.append(f"log: {change}")

    # Invariants

    @property
    def owed(self) -> set[str]:
        return set(self.gateway.billed) - self.refunded

    def check(self) -> None:
        receipt = self.receipt()
        for attempt in receipt.attempts:
            request_id = self.requests.get(attempt.id, "")
            tokens = (attempt.usage or {}).get("total_tokens")
            if attempt.billed == "no":
                assert request_id not in self.owed, "receipt says not billed, and it was"
                assert tokens is None
            if attempt.billed == "yes":
                assert request_id in self.owed, "receipt says billed, and it was not"
            assert tokens in (None, TOKENS["total_tokens"])
            assert not (attempt.usage and attempt.may_cost and attempt.cost is None)
            if attempt.billed != "unknown":
                assert not any(doubt in (attempt.note or "") for doubt in DOUBTS), attempt.note
        owner = self.harness.job().owner
        known = receipt.usage_of(owner)["total_tokens"]
        assert known <= len(self.owed) * TOKENS["total_tokens"], "receipt above the bill"
        if receipt.attempts:
            spent = spent_on(receipt, self.harness.job())
            assert spent.tokens >= known
            output = self.command("ledger", "--bucket", self.harness.bucket.name, "-o", "json")
            assert sum(row["total_tokens"] for row in output.rows) == known
        refunds = len(self.refunded) * TOKENS["total_tokens"]
        assert known <= self.counters.tokens <= known + refunds, "metrics differ from the receipt"


@pytest.mark.parametrize("seed", range(SEQUENCES))
def test_all_accounts_agree_after_random_sequence(
    harness: Harness,
    png: bytes,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    seed: int,
) -> None:
    with ScriptedGateway(png) as gateway:
        counters = Counters.enabled(monkeypatch)
        world = World(seed, harness, gateway, counters, partial(run_in_process, capfd))
        harness.connect(host=gateway.url)  # the harnesses of the hosts have changed the connection
        try:
            for _ in range(STEPS):
                world.step()
        except Exception as error:
            error.add_note("\n".join(world.trace))
            raise
