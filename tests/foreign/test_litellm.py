"""The client behind LiteLLM, a retrying proxy whose errors prove nothing about charges."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_jojokey.img2 import Client, ImageRequest, Img2Error, Kind
from airflow_provider_jojokey.sandbox import Gateway
from tests.support.programs import free_port, program, running

KEY = "sk-litellm-master-9f8e7d6c5b4a"


@pytest.fixture(scope="module")
def proxy(module_gateway: Gateway, log_folder: Path) -> Iterator[str]:
    config = log_folder / "litellm.json"  # JSON is YAML
    deployment = {
        "model": "openai/gpt-image-2",
        "api_base": f"{module_gateway.url}/v1",
        "api_key": module_gateway.token,
    }
    models = [
        {"model_name": "gpt-image-2", "litellm_params": deployment},
        {"model_name": "strict", "litellm_params": {**deployment, "drop_params": False}},
    ]
    settings = {"drop_params": True, "num_retries": 2}
    config.write_text(
        json.dumps(
            {"model_list": models, "litellm_settings": settings, "general_settings": {"master_key": KEY}}
        )
    )
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [
        program("litellm/bin/litellm"),
        "--config",
        str(config),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    with running(
        command, f"{url}/health/liveliness", log_folder / "litellm.log", LITELLM_LOCAL_MODEL_COST_MAP="True"
    ):
        yield url


@pytest.fixture
def client(proxy: str) -> Iterator[Client]:
    with Client(KEY, proxy, read_timeout=60) as client:
        yield client


def error_of(client: Client, request: ImageRequest) -> Img2Error:
    with pytest.raises(Img2Error) as caught:
        client.generate(request)
    return caught.value


def test_image_arrives_through_litellm(client: Client, behind: Gateway, png: bytes) -> None:
    generation = client.generate(ImageRequest("a fox"))
    generation.images[0].file.file.seek(0)
    assert generation.images[0].file.file.read() == png
    assert generation.usage is None or generation.usage["total_tokens"] == behind.charges[0].total_tokens
    generation.close()
    assert len(behind.charges) == 1


@pytest.mark.parametrize(
    "case", ["no_channel", "overloaded_cpu", "upstream_500", "rate_limited", "upstream_unreachable"]
)
def test_failure_through_litellm_proves_nothing(client: Client, behind: Gateway, case: str) -> None:
    error = error_of(client, ImageRequest(f"a fox [sandbox: {case}]"))
    assert (error.kind, error.billed) == (Kind.UNKNOWN_OUTCOME, "unknown"), str(error)
    assert not error.is_safe_to_resend
    assert behind.requests


def test_billed_try_after_rejected_try_is_not_called_free(client: Client, behind: Gateway) -> None:
    # The first try is billed and its response is lost; LiteLLM's retry is rejected, and LiteLLM reports only the rejection.
    error = error_of(client, ImageRequest("a fox [sandbox: nginx_502 times=1] [sandbox: no_channel]"))
    assert len(behind.charges) == 1, "the first try was billed"
    assert error.billed == "unknown", str(error)


@pytest.mark.parametrize(
    ("case", "kind"), [("moderation_blocked", Kind.CONTENT), ("wallet_empty", None), ("model_denied", None)]
)
def test_rejection_through_litellm_keeps_its_kind(
    client: Client, behind: Gateway, case: str, kind: Kind | None
) -> None:
    error = error_of(client, ImageRequest(f"a fox [sandbox: {case}]"))
    assert error.billed == "unknown", str(error)
    assert not error.is_safe_to_resend
    if kind is not None:
        assert error.kind in (kind, Kind.REQUEST), str(error)


def test_response_format_is_explained_and_not_resent(client: Client, behind: Gateway) -> None:
    behind.behave("response_format_rejected")
    error = error_of(client, ImageRequest("a fox"))
    assert error.billed == "unknown", str(error)


def test_stream_through_litellm_pays_once_per_post(client: Client, behind: Gateway) -> None:
    error = None
    try:
        client.generate(ImageRequest("a fox", stream=True)).close()
    except Img2Error as failure:
        error = failure
    assert error is None or error.billed != "no", str(error)


def test_wrong_key_is_a_token_error_with_unknown_billing(proxy: str, behind: Gateway) -> None:
    with Client("sk-wrong-0123456789", proxy, read_timeout=60) as wrong:
        error = error_of(wrong, ImageRequest("a fox"))
    assert error.kind in (Kind.TOKEN, Kind.REQUEST), str(error)
    assert not error.is_safe_to_resend
    assert not behind.requests
