"""A running batch reports its progress in an XCom, at a limited rate."""

from __future__ import annotations

import threading
from typing import Any

from airflow_provider_jojokey.batch.progress import is_supported, repeat
from airflow_provider_jojokey.cost import Costs
from airflow_provider_jojokey.results import PROGRESS_KEY
from tests.support.campaigns import posters


def test_calls_repeat_while_the_block_runs() -> None:
    calls: list[str] = []
    third = threading.Event()

    def call() -> None:
        calls.append(threading.current_thread().name)
        if len(calls) == 3:
            third.set()

    with repeat(call, 0.01):
        assert third.wait(60)
    count = len(calls)
    assert set(calls) == {"jojokey-progress"}
    assert not any(thread.name == "jojokey-progress" for thread in threading.enumerate())
    assert len(calls) == count


def test_batch_reports_counts_and_cost_while_it_runs(campaign: Any, gateway: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("airflow_provider_jojokey.operators.batch.PROGRESS", 0.001)
    run = campaign.run("reported", posters(6), max_in_flight=1)

    assert run.state == "success"
    if not is_supported():
        assert run.xcom(PROGRESS_KEY, "batch") is None
        return
    progress = run.xcom(PROGRESS_KEY, "batch")
    assert progress["total"] == 6
    assert 0 < progress["done"] == progress["made"] <= 6
    assert Costs.from_json(progress["cost"]).amounts
