"""Counters instead of Airflow's metrics backends."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from airflow_provider_jojokey.integrations import telemetry


class Counters:
    """Counts metrics by name, and ignores those that are not counters."""

    def __init__(self) -> None:
        self.values: Counter[str] = Counter()

    @classmethod
    def enabled(cls, monkeypatch: pytest.MonkeyPatch) -> Counters:
        """Return counters that receive the metrics from now on."""
        counters = cls()
        monkeypatch.setattr(telemetry, "_stats", lambda: counters)
        return counters

    @property
    def tokens(self) -> int:
        return self.values[telemetry.INPUT_TOKENS] + self.values[telemetry.OUTPUT_TOKENS]

    def incr(self, name: str, count: int, **_: Any) -> None:
        self.values[name] += count

    def gauge(self, *_: Any, **__: Any) -> None: ...

    def timing(self, *_: Any, **__: Any) -> None: ...
