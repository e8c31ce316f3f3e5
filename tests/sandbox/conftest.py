from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image

from airflow_provider_jojokey.sandbox import Gateway, S3Server
from tests.support.sandbox_client import Post, post_to


def small_png() -> bytes:
    out = io.BytesIO()
    # Noise has all base64 characters, and is long enough to break off in the middle.
    Image.effect_noise((96, 96), 90).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="session")
def image() -> bytes:
    return small_png()


@pytest.fixture
def gateway(image: bytes) -> Iterator[Gateway]:
    """A gateway that doesn't draw: every image is the same small PNG."""
    with Gateway(image=image) as running:
        yield running


@pytest.fixture
def artist() -> Iterator[Gateway]:
    """A gateway that draws the prompt."""
    with Gateway() as running:
        yield running


@pytest.fixture
def post(gateway: Gateway) -> Post:
    def send(prompt: str = "a fox", **body: Any) -> requests.Response:
        return post_to(gateway, prompt, **body)

    return send


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    directory: Path = tmp_path_factory.mktemp("s3") / "objects"
    with S3Server(directory) as server:
        server.create_bucket("posters")
        yield server
