# ruff: noqa: RUF001 - the gateway looks for the multiplication sign
"""The sandbox gateway checks tokens, paths and parameters like the real API."""

from __future__ import annotations

from typing import Any

import pytest
import requests

from airflow_provider_jojokey.sandbox import Gateway
from tests.support.patience import PATIENCE
from tests.support.sandbox_client import Post, post_to

GOOD: list[dict[str, Any]] = [
    {"size": "auto"},
    {"size": "640x1024"},
    {"size": "3840x2160"},
    {"size": "1152x3456"},
    {"n": 10},
    {"quality": "auto"},
    {"output_format": "webp", "output_compression": 0},
    {"background": "transparent", "output_format": "webp"},
    {"moderation": "low"},
    {"response_format": "url"},
    {"size": None, "n": None, "quality": None},
]
BAD: list[tuple[dict[str, Any], int, str, str]] = [
    ({"size": "1000x1000"}, 400, "invalid_value", "size"),
    ({"size": "512x512"}, 400, "invalid_value", "size"),
    ({"size": "3856x1024"}, 400, "invalid_value", "size"),
    ({"size": "3840x3840"}, 400, "invalid_value", "size"),
    ({"size": "3200x1040"}, 400, "invalid_value", "size"),
    ({"size": "large"}, 400, "invalid_value", "size"),
    ({"size": "1024×1024"}, 500, "invalid_request", ""),
    ({"n": 0}, 400, "invalid_value", "n"),
    ({"n": 11}, 400, "invalid_value", "n"),
    ({"n": 129}, 500, "invalid_request", ""),
    ({"n": "2"}, 500, "invalid_request", ""),
    ({"quality": "ultra"}, 400, "invalid_value", "quality"),
    ({"output_format": "gif"}, 400, "invalid_value", "output_format"),
    ({"output_compression": 50}, 400, "invalid_value", "output_compression"),
    ({"output_format": "jpeg", "output_compression": 101}, 400, "invalid_value", "output_compression"),
    ({"background": "transparent", "output_format": "jpeg"}, 400, "invalid_value", "background"),
    ({"stream": "yes"}, 400, "invalid_type", "stream"),
    ({"partial_images": 4}, 400, "invalid_value", "partial_images"),
    ({"prompt": ""}, 400, "missing_required_parameter", "prompt"),
    ({"prompt": "x" * 32_001}, 400, "string_above_max_length", "prompt"),
    ({"seed": 1}, 400, "unknown_parameter", "seed"),
    ({"model": ""}, 500, "invalid_request", ""),
    ({"model": "dall-e-9"}, 503, "model_not_found", ""),
]


@pytest.mark.parametrize("body", GOOD, ids=str)
def test_valid_parameters_are_accepted(body: dict[str, Any], post: Post) -> None:
    assert post(**body).status_code == 200


@pytest.mark.parametrize(("body", "status", "code", "param"), BAD)
def test_invalid_parameters_are_rejected(
    body: dict[str, Any], status: int, code: str, param: str, gateway: Gateway
) -> None:
    reply = post_to(gateway, **body)

    assert reply.status_code == status
    assert reply.json()["error"]["code"] == code
    assert reply.json()["error"]["param"] == param
    assert gateway.charges == ()


@pytest.mark.parametrize("body", [b"{", b"[]", b"", b'"text"'])
def test_body_that_is_not_an_object_is_rejected(body: bytes, gateway: Gateway) -> None:
    headers = {"Authorization": f"Bearer {gateway.token}"}
    reply = requests.post(
        f"{gateway.url}/v1/images/generations", data=body, headers=headers, timeout=PATIENCE
    )

    assert reply.status_code == 400


def test_response_format_can_be_rejected(image: bytes) -> None:
    with Gateway(image=image, response_format="rejected") as gateway:
        rejected = post_to(gateway, response_format="b64_json")
        without = post_to(gateway)

    assert rejected.status_code == 400
    assert rejected.json()["error"]["message"].startswith("Unknown parameter: 'response_format'.")
    assert rejected.json()["error"]["code"] == "unknown_parameter"
    assert without.ok


def test_wrong_token_has_the_error_of_the_gateway(gateway: Gateway) -> None:
    replies = [
        requests.post(f"{gateway.url}/v1/images/generations", json={}, headers=headers, timeout=PATIENCE)
        for headers in ({}, {"Authorization": "Bearer sk-wrong"}, {"Authorization": gateway.token})
    ]

    for reply in replies:
        assert reply.status_code == 401
        assert reply.json()["error"]["type"] == "new_api_error"
        assert reply.json()["error"]["code"] == ""
        assert "(request id: " in reply.json()["error"]["message"]


STATES = {
    "disabled": 401,
    "expired": 401,
    "exhausted": 401,
    "no_model": 403,
    "no_group": 403,
    "banned": 403,
    "ip": 403,
    "ok": 200,
}


@pytest.mark.parametrize(("state", "status"), STATES.items())
def test_token_states_are_rejected(state: str, status: int, image: bytes) -> None:
    with Gateway(image=image, tokens={"sk-other": state}) as gateway:
        reply = post_to(gateway, headers={"Authorization": "Bearer sk-other"})

    assert reply.status_code == status


def test_usage_endpoint_distinguishes_token_states(image: bytes) -> None:
    tokens = {f"sk-{state}": state for state in ("disabled", "expired", "exhausted", "no_model")}
    with Gateway(image=image, tokens=tokens) as gateway:
        usage = {
            token: requests.get(
                f"{gateway.url}/api/usage/token/",
                headers={"Authorization": f"Bearer {token}"},
                timeout=PATIENCE,
            )
            for token in (gateway.token, "sk-unknown", *tokens)
        }
        good = usage[gateway.token].json()["data"]
    expired, exhausted, limited = (
        usage[f"sk-{name}"].json()["data"] for name in ("expired", "exhausted", "no_model")
    )

    assert good["total_available"] > 0
    assert good["expires_at"] == 0
    assert usage["sk-unknown"].status_code == usage["sk-disabled"].status_code == 401
    assert usage["sk-unknown"].json()["message"] != usage["sk-disabled"].json()["message"]
    assert 0 < expired["expires_at"] < 2e9
    assert exhausted["total_available"] == 0
    assert limited["model_limits_enabled"]
    assert "gpt-image-2" not in limited["model_limits"]


def test_unknown_token_state_is_an_error() -> None:
    with pytest.raises(ValueError, match="Unknown token state 'tired'"):
        Gateway(tokens={"sk-x": "tired"})


# --- paths ------------------------------------------------------------------------------------------------------


def get(gateway: Gateway, path: str) -> requests.Response:
    return requests.get(
        gateway.url + path, headers={"Authorization": f"Bearer {gateway.token}"}, timeout=PATIENCE
    )


def test_doubled_v1_is_not_found(gateway: Gateway) -> None:
    reply = requests.post(f"{gateway.url}/v1/v1/images/generations", json={}, timeout=PATIENCE)

    assert reply.status_code == 404
    assert reply.json()["error"]["message"].startswith("Invalid URL (POST /v1/v1/images/generations)")


@pytest.mark.parametrize("path", ["/images/generations", "/", "/pricing", "/api/nothing"])
def test_unknown_path_is_the_web_app(path: str, gateway: Gateway) -> None:
    for reply in (requests.post(gateway.url + path, json={}, timeout=PATIENCE), get(gateway, path)):
        assert reply.status_code == 200
        assert reply.headers["Content-Type"].startswith("text/html")


def test_models_are_listed(image: bytes) -> None:
    with Gateway(image=image, models=("gpt-image-2", "gpt-image-9")) as gateway:
        listed = get(gateway, "/v1/models").json()
        stranger = requests.get(f"{gateway.url}/v1/models", timeout=PATIENCE)

    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["gpt-image-2", "gpt-image-9"]
    assert stranger.status_code == 401


def test_log_lists_charges_and_failures(gateway: Gateway, post: Post) -> None:
    post("a fox", quality="low")
    post("a fox [sandbox: upstream_500]")

    failed, billed = get(gateway, "/api/log/token").json()["data"]
    assert (billed["type"], failed["type"]) == (2, 5)
    assert billed["quota"] == gateway.charges[0].quota
    assert billed["completion_tokens"] == 196
    assert billed["request_id"] == gateway.charges[0].request_id
    assert failed["quota"] == 0


def test_log_is_limited(gateway: Gateway) -> None:
    statuses = [get(gateway, "/api/log/token").status_code for _ in range(21)]

    assert statuses == [200] * 20 + [429]


def test_log_may_be_unlimited_or_missing(image: bytes) -> None:
    with Gateway(image=image, log_limit=None) as gateway:
        assert {get(gateway, "/api/log/token").status_code for _ in range(25)} == {200}
    with Gateway(image=image, log=False) as gateway:
        assert get(gateway, "/api/log/token").headers["Content-Type"].startswith("text/html")


def test_free_endpoints_respond(gateway: Gateway, post: Post) -> None:
    post("a fox")

    assert get(gateway, "/api/status").json()["data"]["quota_per_unit"] == 500_000
    assert get(gateway, "/v1/dashboard/billing/subscription").json()["hard_limit_usd"] == 100
    usage = get(gateway, "/v1/dashboard/billing/usage").json()["total_usage"]
    assert usage == pytest.approx(gateway.spent_usd * 100)
    used = get(gateway, "/api/usage/token/").json()["data"]["total_used"]
    assert used == gateway.charges[0].quota


# --- the sandbox's own routes -----------------------------------------------------------------------------------


def test_charges_and_requests_are_served_and_reset(gateway: Gateway, post: Post) -> None:
    post("a fox", quality="low")

    charges = get(gateway, "/sandbox/charges").json()
    requested = get(gateway, "/sandbox/requests").json()
    assert charges["billed"][0]["prompt"] == "a fox"
    assert requested["requests"][0]["body"]["quality"] == "low"
    requests.post(f"{gateway.url}/sandbox/reset", timeout=PATIENCE)
    assert not gateway.charges
    assert not gateway.requests


def test_token_is_never_recorded(gateway: Gateway, post: Post) -> None:
    post("a fox")
    post("a fox [sandbox: cloudflare_524]")

    everything = get(gateway, "/sandbox/requests").text + get(gateway, "/sandbox/charges").text
    everything += repr(gateway.requests) + repr(gateway.settlements)
    assert gateway.token not in everything
    assert "authorization" not in gateway.requests[0].headers
    assert gateway.requests[0].authorised


def test_wait_for_request_times_out(gateway: Gateway) -> None:
    with pytest.raises(TimeoutError, match="0 request"):
        gateway.wait_for_request(1, timeout=0.05)
