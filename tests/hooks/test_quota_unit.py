"""The value of the gateway's quota unit."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import pytest

from airflow_provider_jojokey.cost import QuotaUnit
from airflow_provider_jojokey.hooks.jojokey import QUOTA_UNIT_PAUSE, JojoKeyHook
from airflow_provider_jojokey.img2 import client
from airflow_provider_jojokey.payments import clock
from tests.support.loopback import Exchange, Server

STATUS = json.dumps({"success": True, "data": {"quota_per_unit": 500_000}}).encode()


def connect(monkeypatch: pytest.MonkeyPatch, name: str, server: Server) -> None:
    connection = {"conn_type": "jojokey", "host": server.url, "password": "sk-test"}
    monkeypatch.setenv(f"AIRFLOW_CONN_{name.upper()}", json.dumps(connection))


def test_slow_gateway_does_not_block_hooks_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FREE_CALL_TIMEOUT", 60.0)  # longer than the wait below
    arrived, release = threading.Event(), threading.Event()

    def slow(exchange: Exchange) -> None:
        arrived.set()
        release.wait(60)
        exchange.answer(200, STATUS)

    with Server(slow) as slow_gateway, Server(lambda exchange: exchange.answer(200, STATUS)) as gateway:
        connect(monkeypatch, "slow", slow_gateway)
        connect(monkeypatch, "fast", gateway)
        waiting = threading.Thread(target=lambda: JojoKeyHook("slow").quota_unit)
        waiting.start()
        units: list[object] = []
        other = threading.Thread(target=lambda: units.append(JojoKeyHook("fast").quota_unit))
        try:
            assert arrived.wait(60)
            other.start()
            other.join(20)
            assert len(units) == 1
        finally:
            release.set()
            waiting.join()
            other.join()


@pytest.mark.parametrize(
    "failure",
    [
        *((503, b"{}"), (404, b"{}"), (200, STATUS[:-9]), (200, b"<html>"), (401, b"{}")),
        (200, b'{"data": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    ],
    ids=["outage", "not found", "truncated", "web page", "unauthorized", "nested too deeply"],
)
def test_unit_is_requested_again_after_an_error(
    monkeypatch: pytest.MonkeyPatch, failure: tuple[int, bytes]
) -> None:
    now = 1_000.0
    monkeypatch.setattr(clock, "monotonic", lambda: now)
    responses = [failure, (200, STATUS), (503, b"{}")]
    with Server(lambda exchange: exchange.answer(*responses.pop(0))) as gateway:
        connect(monkeypatch, "gateway", gateway)
        hook = JojoKeyHook("gateway")
        assert hook.quota_unit is None
        assert hook.quota_unit is None
        assert len(responses) == 2  # the second time, the gateway was not asked
        for _ in range(2):
            now += QUOTA_UNIT_PAUSE
            assert hook.quota_unit == QuotaUnit(Decimal(500_000), "USD")
        assert len(responses) == 1  # a known unit is not asked for again


def test_gateway_that_states_no_unit_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_000.0
    monkeypatch.setattr(clock, "monotonic", lambda: now)
    responses = [(200, b'{"success": true, "data": {}}'), (200, STATUS)]
    with Server(lambda exchange: exchange.answer(*responses.pop(0))) as gateway:
        connect(monkeypatch, "gateway", gateway)
        hook = JojoKeyHook("gateway")
        assert hook.quota_unit is None
        now += QUOTA_UNIT_PAUSE
        assert hook.quota_unit is None
    assert len(responses) == 1


def test_slow_secrets_backend_does_not_block_hooks_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    arrived, release = threading.Event(), threading.Event()

    class SlowHook(JojoKeyHook):
        @classmethod
        def get_connection(cls, conn_id: str) -> Any:
            if conn_id == "slow":
                arrived.set()
                release.wait(60)
            return super().get_connection(conn_id)

    with Server(lambda exchange: exchange.answer(200, STATUS)) as gateway:
        connect(monkeypatch, "slow", gateway)
        connect(monkeypatch, "fast", gateway)
        with ThreadPoolExecutor(2) as threads:
            waiting = threads.submit(lambda: SlowHook("slow").client)
            try:
                assert arrived.wait(60)
                assert threads.submit(lambda: SlowHook("fast").client).result(20)
            finally:
                release.set()
            waiting.result(20)
