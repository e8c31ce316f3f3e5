"""The adversary for a short while, the sequences that once broke something, and whether it would notice."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_jojokey.payments import decision, generate, receipt_store
from tests.adversary.__main__ import run, trace
from tests.adversary.cases import KILLS, plans, sweeps
from tests.adversary.mutants import MUTANTS, PACKAGE, ROOT
from tests.adversary.plan import Plan, Run, draw
from tests.adversary.world import run_plan, simulated

SEQUENCES = 25
STEP = 5
"""``make kill`` kills at each yield point; here, every fifth has to do."""


@pytest.fixture
def simulation() -> Iterator[None]:
    with simulated():
        yield


@pytest.mark.parametrize("plan", plans(), ids=lambda plan: f"{plan.seed}-{plan.store}")
def test_known_accident_costs_nothing(plan: Plan, tmp_path: Path, simulation: None) -> None:
    world = run_plan(plan, tmp_path / "world")
    assert world.problems == []
    assert any(post.billed for post in world.gateway.sent)


@pytest.mark.parametrize("name", KILLS)
def test_accident_at_any_point_costs_nothing(name: str, tmp_path: Path, simulation: None) -> None:
    for plan in sweeps(STEP):
        if plan.seed.startswith(f"{name} at"):
            assert run_plan(plan, tmp_path / "world").problems == [], f"{plan.seed}, {plan.store}"


@pytest.mark.parametrize("skew", [0.0, 600.0])
def test_random_sequences_break_no_invariant(skew: float, tmp_path: Path) -> None:
    report = run(SEQUENCES, "test", skew, tmp_path / "world")
    assert not report.first, "\n\n".join(trace(plan, tmp_path / "world") for plan in report.first.values())
    assert report.stores["conforming"]["payments"] > 10


@pytest.mark.parametrize("store", ["no conditions", "501"])
def test_claim_waits_on_store_without_conditional_writes(
    store: str, tmp_path: Path, simulation: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receipt_store, "CLAIM_RECHECK", 0.0)
    races = [plan for plan in plans() if plan.store == store]
    assert any("paid twice" in run_plan(plan, tmp_path / "world").problems for plan in races)


def test_adversary_notices_a_double_payment(
    tmp_path: Path, simulation: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "decide", lambda *_: decision.Pay())
    world = run_plan(Plan("1", (Run(), Run())), tmp_path / "world")
    assert "paid twice" in world.problems


def test_sequences_are_deterministic(tmp_path: Path) -> None:
    plan = draw("same/1")
    first, second = (re.sub("[0-9a-f]{12,}", "…", trace(plan, tmp_path / "world")) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("name", [name for name, *_ in MUTANTS])
def test_mutant_applies_to_the_source(name: str) -> None:
    module, source = next((module, source) for known, module, source, _ in MUTANTS if known == name)

    assert (ROOT / PACKAGE / module).read_text(encoding="utf-8").count(source) == 1
