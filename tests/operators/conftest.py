"""The gateway of these tests, and a check that no task leaves threads behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tests.support.airflow import _gateway, gateway

__all__ = ["_gateway", "gateway"]


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() <= before + 60  # pools may stay, a thread for each image must not
