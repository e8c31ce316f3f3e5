"""The package's client handles undocumented responses."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_jojokey.img2 import Client, ImageRequest, Img2Error, Kind, download
from airflow_provider_jojokey.img2.images import ImageFile
from airflow_provider_jojokey.sandbox import CASES, Gateway


@pytest.fixture
def client(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setattr(download, "WAIT", 0.0)
    with Client(gateway.token, gateway.url, read_timeout=5) as client:
        yield client


def request_for(case: str, n: int = 1) -> ImageRequest:
    return ImageRequest(f"a fox [sandbox: {case}]", n=n)


@pytest.mark.parametrize("case", [case.name for case in CASES.values() if case.odd])
@pytest.mark.parametrize("n", [1, 2])
def test_odd_response_has_its_images_and_usage(
    client: Client, gateway: Gateway, image: bytes, case: str, n: int
) -> None:
    generation = client.generate(request_for(case, n))
    for found in generation.images:
        found.file.file.seek(0)
        assert found.file.file.read() == image
    assert len(generation.images) == n
    (record,) = gateway.charges
    if generation.usage is not None:
        assert generation.usage["total_tokens"] == record.total_tokens
    generation.close()


@pytest.mark.parametrize(
    ("case", "words"),
    [("wrong_size", "The image is 80x80"), ("one_flagged", "1 of 2 requested images arrived: image 2")],
)
def test_difference_from_the_request_is_a_warning(client: Client, case: str, words: str) -> None:
    generation = client.generate(request_for(case, 2))
    assert words in " ".join(generation.warnings)
    generation.close()


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("avif", "an AVIF image"),
        ("cut_image", "truncated"),
        ("not_an_image", "not a PNG, JPEG or WebP image"),
    ],
)
def test_unusable_response_is_kept_as_a_file(client: Client, tmp_path: Path, case: str, words: str) -> None:
    with pytest.raises(Img2Error) as caught:
        client.generate(request_for(case), lambda index: ImageFile(tmp_path / f"{index}.part"))
    assert (caught.value.kind, caught.value.billed) == (Kind.REPLY, "yes")
    assert words in str(caught.value)
    assert str(tmp_path / "0.bin") in str(caught.value)
    assert (tmp_path / "0.bin").stat().st_size > 0


def test_task_response_is_reported_with_its_id(client: Client, gateway: Gateway) -> None:
    for case in ("task", "task_202"):
        gateway.reset()
        with pytest.raises(Img2Error) as caught:
            client.generate(request_for(case))
        assert caught.value.task_id == f"task_{gateway.requests[0].request_id}"


@pytest.mark.parametrize(
    ("case", "kind", "billed"),
    [
        ("relay_429", Kind.UNKNOWN_OUTCOME, "unknown"),
        ("relay_503", Kind.UNKNOWN_OUTCOME, "unknown"),
        ("relay_budget", Kind.QUOTA, "unknown"),
        ("relay_response_format", Kind.REQUEST, "unknown"),
        ("quoted_id", Kind.UNKNOWN_OUTCOME, "unknown"),
        ("unmarked_424", Kind.UNKNOWN_OUTCOME, "unknown"),
        ("unmarked_425", Kind.UNKNOWN_OUTCOME, "unknown"),
        ("unmarked_499", Kind.UNKNOWN_OUTCOME, "unknown"),
        ("fastapi_422", Kind.REQUEST, "no"),
        ("policy_403", Kind.EDGE_BLOCKED, "no"),
        ("content_filter", Kind.CONTENT, "no"),
        ("content_filter_azure", Kind.CONTENT, "no"),
        ("inspection_failed", Kind.CONTENT, "no"),
        ("entitlement", Kind.QUOTA, "no"),
        ("model_price_error", Kind.ACCESS, "no"),
        ("channel_invalid_key", Kind.NO_CHANNEL, "no"),
        ("channel_no_key", Kind.NO_CHANNEL, "no"),
        ("deployment_missing", Kind.NO_CHANNEL, "no"),
        ("retry_after_two", Kind.RATE_LIMIT, "no"),
        ("retry_after_ms", Kind.RATE_LIMIT, "no"),
        ("sse_flat_error", Kind.UNKNOWN_OUTCOME, "unknown"),
        ("sse_edit_only", Kind.REPLY, "yes"),
    ],
)
def test_odd_error_is_classified_and_sent_once(
    client: Client, gateway: Gateway, case: str, kind: Kind, billed: str
) -> None:
    with pytest.raises(Img2Error) as caught:
        client.generate(request_for(case))
    error = caught.value
    assert (error.kind, error.billed) == (kind, billed), str(error)
    assert len(gateway.requests) == 1
    if case.startswith("retry_after"):
        assert error.retry_after == (2 if case.endswith("two") else 1.5)
    assert base64.b64encode(b"x" * 40).decode() not in str(error)


def test_valid_token_is_not_blamed_for_the_channel_key(client: Client) -> None:
    assert "channel" in (client.explain_rejected_token() or "")
