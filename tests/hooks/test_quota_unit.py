"""The value of the gateway's quota unit."""

from __future__ import annotations

import json
import threading

import pytest

from airflow_provider_jojokey.hooks.jojokey import JojoKeyHook
from airflow_provider_jojokey.img2 import client
from tests.support.loopback import Exchange, Server


def test_slow_gateway_does_not_block_hooks_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FREE_CALL_TIMEOUT", 60.0)  # longer than the wait below
    arrived, release = threading.Event(), threading.Event()
    status = json.dumps({"success": True, "data": {"quota_per_unit": 500_000}}).encode()

    def slow(exchange: Exchange) -> None:
        arrived.set()
        release.wait(60)
        exchange.answer(200, status)

    with Server(slow) as slow_gateway, Server(lambda exchange: exchange.answer(200, status)) as gateway:
        for name, server in (("slow", slow_gateway), ("fast", gateway)):
            connection = {"conn_type": "jojokey", "host": server.url, "password": "sk-test"}
            monkeypatch.setenv(f"AIRFLOW_CONN_{name.upper()}", json.dumps(connection))
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
