"""The client with aimock, a mock of model APIs from npm."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from airflow_provider_jojokey.img2 import Client, ImageRequest, Img2Error, Kind
from tests.support.patience import PATIENCE
from tests.support.programs import free_port, program, running

TOKEN = "sk-aimock-0123456789"


@pytest.fixture(scope="module")
def aimock(log_folder: Path, png: bytes) -> Iterator[str]:
    fixtures = log_folder / "fixtures"
    fixtures.mkdir()
    image = {"image": {"b64Json": base64.b64encode(png).decode()}}
    rows = [
        ("a good fox", image),
        (
            "a busy fox",
            {"error": {"message": "busy", "type": "server_error", "code": "server_error"}, "status": 503},
        ),
        (
            "a wrong fox",
            {"error": {"message": "no such size", "type": "invalid_request_error"}, "status": 400},
        ),
    ]
    (fixtures / "images.json").write_text(
        json.dumps(
            {
                "fixtures": [
                    {"match": {"endpoint": "image", "userMessage": text}, "response": reply}
                    for text, reply in rows
                ]
            }
        )
    )
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [program("node/node_modules/.bin/llmock"), "-p", str(port), "-f", str(fixtures), "--strict"]
    with running(command, url, log_folder / "aimock.log", AIMOCK_API_KEYS=TOKEN):
        yield url


@pytest.fixture
def client(aimock: str) -> Iterator[Client]:
    with Client(TOKEN, aimock, read_timeout=30) as client:
        yield client


def test_image_of_aimock_arrives(client: Client, png: bytes) -> None:
    generation = client.generate(ImageRequest("a good fox"))
    generation.images[0].file.file.seek(0)
    assert generation.images[0].file.file.read() == png
    generation.close()


def test_503_of_unknown_server_proves_nothing(client: Client, aimock: str) -> None:
    with pytest.raises(Img2Error) as caught:
        client.generate(ImageRequest("a busy fox"))
    assert (caught.value.kind, caught.value.billed) == (Kind.UNKNOWN_OUTCOME, "unknown"), str(caught.value)
    assert "busy" in str(caught.value)


def test_400_of_unknown_server_is_a_rejection(client: Client) -> None:
    with pytest.raises(Img2Error) as caught:
        client.generate(ImageRequest("a wrong fox"))
    assert caught.value.kind is Kind.REQUEST, str(caught.value)
    assert "no such size" in str(caught.value)


def test_wrong_token_is_a_token_error(aimock: str) -> None:
    if (
        requests.post(
            f"{aimock}/v1/images/generations", json={"prompt": "a good fox"}, timeout=PATIENCE
        ).status_code
        != 401
    ):
        pytest.skip("this aimock checks no tokens")
    with Client("sk-another-0123456789", aimock) as other, pytest.raises(Img2Error) as caught:
        other.generate(ImageRequest("a good fox"))
    assert caught.value.kind is Kind.TOKEN, str(caught.value)
