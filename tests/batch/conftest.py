"""A real Airflow, a gateway that always sends the same image, and real S3 servers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from airflow_provider_jojokey.sandbox import Gateway
from tests.support.airflow import Airflow, Store, gateway
from tests.support.campaigns import Campaign

__all__ = ["gateway"]


@pytest.fixture(scope="session")
def _gateway(png: bytes) -> Iterator[Gateway]:
    """A sandbox gateway that always sends the same image."""
    with Gateway(image=png) as running:
        yield running


@pytest.fixture
def campaign(airflow: Airflow, gateway: Any, store: Store) -> Campaign:
    """Batches on a store with conditional writes."""
    return Campaign(airflow, store)


@pytest.fixture
def any_campaign(airflow: Airflow, gateway: Any, any_store: Store) -> Campaign:
    """Batches on each kind of store in turn."""
    return Campaign(airflow, any_store)
