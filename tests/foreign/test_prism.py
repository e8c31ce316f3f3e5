"""Prism checks each request against OpenAI's specification, trimmed to the image endpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from airflow_provider_jojokey.img2 import Client, ImageRequest, Img2Error, Kind
from tests.support.patience import PATIENCE
from tests.support.programs import free_port, program, running

SCHEMA = Path(__file__).with_name("openai-images.json")


@pytest.fixture(scope="module")
def prism(log_folder: Path) -> Iterator[str]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [
        program("node/node_modules/.bin/prism"),
        "mock",
        "--errors",
        "-h",
        "127.0.0.1",
        "-p",
        str(port),
        str(SCHEMA),
    ]
    with running(command, url, log_folder / "prism.log"):
        yield url


@pytest.fixture
def client(prism: str) -> Iterator[Client]:
    with Client("sk-prism-0123456789", prism, read_timeout=30) as client:
        yield client


@pytest.mark.parametrize(
    "request_fields",
    [
        {},
        {"n": 3, "size": "1536x1024", "quality": "high"},
        {"output_format": "webp", "output_compression": 80, "background": "transparent"},
        {"moderation": "low", "extra_body": {"user": "me"}},
        {"size": "auto", "quality": "auto"},
    ],
)
def test_request_follows_the_openapi_document(client: Client, request_fields: dict[str, Any]) -> None:
    generation = client.generate(ImageRequest("a fox", **request_fields))
    assert generation.images[0].content_type == "image/png"
    assert generation.usage == {
        "input_tokens": 10,
        "output_tokens": 196,
        "total_tokens": 206,
        "input_tokens_details": {"text_tokens": 10, "image_tokens": 0},
    }
    generation.close()


def test_prism_rejects_an_invalid_body_with_its_message(client: Client) -> None:
    with pytest.raises(Img2Error) as caught:
        client.generate(ImageRequest("a fox", quality="ultra"))
    error = caught.value
    assert error.kind in (Kind.REQUEST, Kind.UNKNOWN_OUTCOME)
    assert "validation" in str(error).lower() or "invalid" in str(error).lower()


def test_prism_rejects_a_request_that_breaks_the_document(prism: str) -> None:
    """A mock that accepts everything would make the other tests worthless."""
    headers = {"Authorization": "Bearer sk-x"}
    wrong = requests.post(f"{prism}/v1/images/generations", json={"n": 11}, headers=headers, timeout=PATIENCE)
    assert wrong.status_code == 422
    assert "prompt" in json.dumps(wrong.json())
