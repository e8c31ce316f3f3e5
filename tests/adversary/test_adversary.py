"""The adversary itself, for a short while, and the sequences that once broke something."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from airflow_provider_jojokey.payments import decision, generate, receipt_store
from tests.adversary.__main__ import run, story
from tests.adversary.gateway import Post
from tests.adversary.plan import Event, Plan, Run, draw
from tests.adversary.world import run_plan, simulated

SEQUENCES = 60

CASES = {
    "a resend is lost after a rejected request": Plan(
        "1", (Run(posts=(Post("refused"), Post("reset"))), Event("sleep", seconds=900.0), Run())
    ),
    "a failed channel while charges are not logged": Plan(
        "2", (Run(posts=(Post("after headers", failed_channels=1),)), Event("sleep", seconds=900.0), Run()), log="disabled"
    ),
    "a proxy quotes the ID of a failed request": Plan(
        "3", (Run(posts=(Post("proxy"),)), Event("sleep", seconds=900.0), Run())
    ),
    "an orphan's image after another host has paid again": Plan(
        "4", (Run(kill_at=32), Run(host=1, on_unknown_outcome="regenerate"), Run())
    ),
    "a machine is suspended while it marks the send": Plan("5", (Run(freeze_at=(10, 700.0)), Run(host=1)), store="aws"),
    "a machine is suspended during its first S3 request": Plan("6", (Run(freeze_at=(2, 700.0)), Run(host=1))),
    "a killed upload and a changed prompt": Plan("7", (Run(prompt=1, kill_at=32), Run()), n=2),
    "two tasks at once, one of them never arrives": Plan(
        "8", (Run(wait=0.1), Run(task=1, posts=(Post("never arrived"),)), Event("sleep", seconds=900.0)), foreign=True
    ),
    "a response broke off within its usage": Plan("9", (Run(posts=(Post("mid body", cut=0.94),)),)),
    "the spool is copied to another host": Plan(
        "10", (Run(kill_at=20), Event("copy spool"), Run(host=1), Run()), log="disabled"
    ),
}  # fmt: skip


@pytest.fixture
def simulation() -> Iterator[None]:
    with simulated():
        yield


@pytest.mark.parametrize("store", ["conforming", "aws", "ceph"])
@pytest.mark.parametrize("case", CASES)
def test_known_accident_costs_nothing(case: str, store: str, tmp_path: Path, simulation: None) -> None:
    world = run_plan(replace(CASES[case], store=store), tmp_path / "world")
    assert world.problems == []
    assert any(post.billed for post in world.gateway.sent)


def races(store: str, folder: Path) -> list[str]:
    """Let two processes start a moment apart, and return what went wrong."""
    problems = []
    for moment in range(12):
        steps = (Run(wait=0.01 + 0.02 * moment), Run(host=moment % 2))
        problems += run_plan(Plan(f"race/{moment}", steps, store=store), folder).problems
    return problems


@pytest.mark.parametrize("store", ["no conditions", "501"])
def test_claim_waits_on_store_without_conditional_writes(
    store: str, tmp_path: Path, simulation: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert races(store, tmp_path / "world") == []

    monkeypatch.setattr(receipt_store, "CLAIM_RECHECK", 0.0)
    assert "paid twice" in races(store, tmp_path / "world")


@pytest.mark.parametrize("skew", [0.0, 600.0])
def test_random_sequences_break_no_promise(skew: float, tmp_path: Path) -> None:
    report = run(SEQUENCES, "test", skew, tmp_path / "world")
    assert not report.first, "\n\n".join(story(plan, tmp_path / "world") for plan in report.first.values())
    assert report.stores["conforming"]["payments"] > 20


def test_adversary_notices_a_double_payment(
    tmp_path: Path, simulation: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "decide", lambda *_: decision.Pay())
    world = run_plan(Plan("1", (Run(), Run())), tmp_path / "world")
    assert "paid twice" in world.problems


def test_sequences_run_the_same_way_each_time(tmp_path: Path) -> None:
    plan = draw("same/1")
    first, second = (re.sub("[0-9a-f]{12,}", "…", story(plan, tmp_path / "world")) for _ in range(2))
    assert first == second
