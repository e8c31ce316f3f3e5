"""``jojokey check`` reports problems before anything is paid for."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from airflow_provider_jojokey.sandbox import Gateway
from airflow_provider_jojokey.store import conditions
from tests.support.buckets import Bucket
from tests.support.commands import CommandOutput, Run
from tests.support.fault_proxy import (
    Fault,
    FaultProxy,
    Forward,
    Request,
    Response,
    answer,
    error,
    no_conditions,
    on,
    times,
)

Connect = Callable[..., None]


def states(output: CommandOutput) -> dict[str, str]:
    return {row["check"]: row["state"] for row in output.rows}


def detail(output: CommandOutput, check: str) -> str:
    (found,) = [row["detail"] for row in output.rows if row["check"] == check]
    return str(found)


def test_check_passes(jojokey: Run, gateway: Gateway, bucket: Bucket) -> None:
    output = jojokey("check", "--bucket", "posters", "--output", "json")

    assert output.code == 0
    assert set(states(output).values()) == {"ok"}
    checks = ["connection", "token", "model", "balance", "bucket", "images", "conditional writes"]
    assert list(states(output)) == checks
    assert detail(output, "connection") == f"jojokey_default: {gateway.url}"
    # One image of low quality: 110 tokens of the prompt and 196 of the image.
    balance = "USD 100.00 left, USD 0.00 used: pays for about 15,552 images of 1024x1024 in low quality"
    assert detail(output, "balance") == f"{balance} (≈ USD 0.0064 each)"
    assert gateway.charges == ()


def test_check_estimates_the_images_that_the_balance_pays_for(
    jojokey: Run, gateway: Gateway, connect: Connect
) -> None:
    output = jojokey("check", "--size", "1024x1536", "--quality", "high", "-o", "json")
    assert "pays for about 315 images of 1024x1536 in high quality (≈ USD 0.3166 each)" in detail(
        output, "balance"
    )
    connect(price_per_million={"currency": "CNY", "text_input": 1, "image_input": 1, "image_output": 1})
    # Yuan and dollars are not compared.
    assert detail(jojokey("check", "-o", "json"), "balance") == "USD 100.00 left, USD 0.00 used"


@pytest.mark.parametrize(
    ("reported", "state"),
    [
        ("NaN", "unknown"),
        ("Infinity", "unknown"),
        ("1e30", "unknown"),
        ("1" + "0" * 400, "unknown"),
        ('"5"', "unknown"),
        ("-5", "failed"),
    ],
)
def test_check_of_an_odd_balance_does_not_fail(
    jojokey: Run, gateway: Gateway, connect: Connect, reported: str, state: str
) -> None:
    def odd(request: Request, forward: Forward) -> Response:
        response = forward(request)
        if "/api/usage/token" not in request.target:
            return response
        body = b'{"data": {"total_available": ' + reported.encode() + b', "total_used": 1}}'
        return replace(response, headers={"content-type": "application/json"}, body=body)

    with FaultProxy(gateway.url, odd) as proxy:
        connect(host=proxy.url)
        output = jojokey("check", "-o", "json")

    assert states(output)["balance"] == state


def test_check_of_an_empty_balance_fails_whatever_it_is_worth(
    jojokey: Run, gateway: Gateway, connect: Connect
) -> None:
    def without_unit(request: Request, forward: Forward) -> Response:
        response = forward(request)
        return replace(response, body=b"{}") if "/api/status" in request.target else response

    with FaultProxy(gateway.url, without_unit) as proxy:
        connect("sk-exhausted", host=proxy.url)
        output = jojokey("check", "-o", "json")

    assert states(output)["balance"] == "failed"
    assert "0 of quota left" in detail(output, "balance")
    assert "Raise the token's quota" in detail(output, "balance")


@pytest.mark.parametrize(
    ("response", "words"),
    [
        (Response(429), "this time. JojoKey rate-limits this token (HTTP 429)."),
        (Response(502), "this time. The error response lacks the header with JojoKey's request ID (HTTP 502)."),
        (Response(404), "this gateway doesn't report the balance of the token"),
    ],
)  # fmt: skip
def test_balance_that_cannot_be_read_is_not_called_unsupported(
    jojokey: Run, gateway: Gateway, connect: Connect, response: Response, words: str
) -> None:
    without_balance = on("GET", "/api/usage/token", answer(response))
    with FaultProxy(gateway.url, without_balance) as proxy:
        connect(host=proxy.url)
        output = jojokey("check", "-o", "json")

    assert states(output)["balance"] == "unknown"
    assert words in detail(output, "balance")
    assert output.code == 0


@pytest.mark.parametrize("options", [("--size", "1x1"), ("--size", "huge")])
def test_check_rejects_an_invalid_size(jojokey: Run, options: tuple[str, ...]) -> None:
    output = jojokey("check", *options)
    assert output.code == 2
    assert "size" in output.err


def test_check_leaves_no_objects(jojokey: Run, bucket: Bucket) -> None:
    jojokey("check", "--bucket", "s3://posters/spring", "-o", "json")

    assert "Contents" not in bucket.client().list_objects_v2(Bucket="posters")


@pytest.mark.parametrize("output_format", ["table", "plain", "json", "yaml"])
def test_check_prints_no_secrets(jojokey: Run, gateway: Gateway, bucket: Bucket, output_format: str) -> None:
    output = jojokey("check", "--bucket", "posters", "-o", output_format, "--verbose")

    assert "gpt-image-2" in output.out
    assert gateway.token not in output.out + output.err
    assert bucket.secret_key not in output.out + output.err


@pytest.mark.parametrize(
    ("token", "failed", "words"),
    [
        ("sk-wrong", "token", "does not know this token"),
        ("sk-expired", "balance", "expired"),
        ("sk-exhausted", "balance", "USD 0.00 left"),
        ("sk-no_model", "model", "The token has no access to gpt-image-2, but to gpt-4o-mini"),
    ],
)
def test_check_explains_a_rejected_token(
    jojokey: Run, connect: Connect, token: str, failed: str, words: str
) -> None:
    connect(token)

    output = jojokey("check", "-o", "json")

    assert output.code == 1
    assert states(output)[failed] == "failed"
    assert words in detail(output, failed)
    assert "checks failed" in output.err
    assert token not in output.out + output.err


def test_check_reports_a_missing_connection(jojokey: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AIRFLOW_CONN_JOJOKEY_DEFAULT")

    output = jojokey("check", "-o", "json")

    assert output.code == 1
    assert "airflow connections add jojokey_default" in detail(output, "connection")
    assert "Traceback" not in output.err


def test_check_reports_an_unreachable_host(jojokey: Run, connect: Connect) -> None:
    connect(host="http://127.0.0.1:9")

    output = jojokey("check", "-o", "json")

    assert output.code == 1
    assert states(output) == {"connection": "ok", "token": "failed", "balance": "unknown"}


@pytest.mark.parametrize("place", ["nonsense-bucket", "s3://", "no bucket", "s3://-/x"])
def test_check_reports_a_missing_bucket(jojokey: Run, bucket: Bucket, place: str) -> None:
    output = jojokey("check", "--bucket", place, "-o", "json")

    assert output.code == 1
    assert states(output)["bucket"] == "failed"


def test_check_reports_missing_credentials(
    jojokey: Run, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AIRFLOW_CONN_AWS_DEFAULT")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    output: Any = jojokey("check", "--bucket", "posters", "-o", "json", "--aws-conn-id", "nobody")

    assert output.code == 1
    assert states(output)["bucket"] == "failed"
    assert "Traceback" not in output.err


def test_check_tests_the_bucket_that_the_connection_names(
    jojokey: Run, gateway: Gateway, bucket: Bucket, name_bucket: Callable[[str], None]
) -> None:
    name_bucket("posters")
    output = jojokey("check", "-o", "json")
    assert output.code == 0
    assert detail(output, "bucket").startswith("s3://posters/_jojokey/ can be read and written")


def test_check_reports_an_unknown_key_of_the_extra(jojokey: Run, connect: Connect) -> None:
    connect(read_timeot="400 s3cret")
    output = jojokey("check", "-o", "json")
    assert output.code == 0
    assert any("Did you mean 'read_timeout'?" in row["detail"] for row in output.rows)
    assert "s3cret" not in output.out + output.err


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("arn:aws:s3:::posters", "pass its name, 'posters'"),
        ("posters/spring", "after the slash"),
        ("x", "not a valid"),
    ],
)
def test_check_says_how_to_correct_the_bucket(
    jojokey: Run, gateway: Gateway, bucket: Bucket, place: str, words: str
) -> None:
    output = jojokey("check", "--bucket", place, "-o", "json")
    assert output.code == 1
    assert words in detail(output, "bucket")


def only_receipts(request: Request, forward: Forward) -> Response:
    """Play a policy that allows writes below ``_jojokey/`` only."""
    if request.method == "PUT" and "/_jojokey/" not in request.target:
        return error(403, "AccessDenied", "no identity-based policy allows the s3:PutObject action")
    return forward(request)


def busy(request: Request, forward: Forward) -> Response:
    """Play a store that is unavailable for images only."""
    response = only_receipts(request, forward)
    return error(503, "SlowDown") if response.status == 403 else response


@pytest.mark.parametrize(
    ("fault", "place", "state", "rejected"),
    [
        (only_receipts, "s3://posters/spring", "failed", True),
        (only_receipts, "posters", "unknown", False),
        (busy, "s3://posters/spring", "failed", False),
        (busy, "posters", "failed", False),
    ],
)
def test_check_reports_a_bucket_that_rejects_writes(
    jojokey: Run,
    bucket: Bucket,
    monkeypatch: pytest.MonkeyPatch,
    fault: Fault,
    place: str,
    state: str,
    rejected: bool,
) -> None:
    with FaultProxy(bucket.endpoint_url, fault) as proxy:
        extra = {**bucket.connection["extra"], "endpoint_url": proxy.url}
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps({**bucket.connection, "extra": extra}))
        output = jojokey("check", "--bucket", place, "-o", "json")

    assert (states(output)["bucket"], states(output)["images"]) == ("ok", state)
    assert ("paid for and then rejected" in detail(output, "images")) is rejected
    assert output.code == (state == "failed")
    assert "Contents" not in bucket.client().list_objects_v2(Bucket="posters")


def test_check_says_if_conditional_writes_could_not_be_tested(
    jojokey: Run, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of S3 doesn't show what the store supports."""
    monkeypatch.setattr(conditions, "support", {})
    busy = on("PUT", ".check-", times(99, answer(error(503, "SlowDown")), after=1))

    def test_only(request: Request, forward: Forward) -> Response:
        return forward(request) if ".png" in request.target else busy(request, forward)

    with FaultProxy(bucket.endpoint_url, test_only) as proxy:
        connection = json.dumps(replace(bucket, endpoint_url=proxy.url).connection)
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", connection)
        output = jojokey("check", "--bucket", "posters", "-o", "json")

    assert states(output)["conditional writes"] == "unknown"
    assert detail(output, "conditional writes").startswith("not tested, because S3 had an error")


def test_check_names_a_store_without_conditional_writes(
    jojokey: Run, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conditions, "support", {})
    with FaultProxy(bucket.endpoint_url, no_conditions()) as proxy:
        connection = json.dumps(replace(bucket, endpoint_url=proxy.url).connection)
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", connection)
        output = jojokey("check", "--bucket", "posters", "-o", "json")

    assert "not supported by this store" in detail(output, "conditional writes")
