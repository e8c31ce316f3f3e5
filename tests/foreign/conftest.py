"""The sandbox behind third-party proxies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_jojokey.sandbox import Gateway


@pytest.fixture(scope="module")
def log_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("foreign")


@pytest.fixture(scope="module")
def module_gateway(png: bytes) -> Iterator[Gateway]:
    with Gateway(image=png, log_limit=None) as gateway:
        yield gateway


@pytest.fixture
def behind(module_gateway: Gateway) -> Gateway:
    """The sandbox gateway behind a third-party proxy, in its initial state."""
    module_gateway.reset()
    return module_gateway
