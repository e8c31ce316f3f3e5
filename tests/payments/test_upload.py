"""Uploads of paid images: keys in use, receipts damaged in flight, links that fail."""

from __future__ import annotations

import base64
import json
import logging
from typing import Any

import pytest

from airflow_provider_jojokey import exceptions
from airflow_provider_jojokey.exceptions import JojoKeyError
from airflow_provider_jojokey.payments.job import Limit
from tests.support.harness import Harness, when_asked
from tests.support.loopback import Exchange
from tests.support.scripted import TOKENS, ScriptedGateway


def put(harness: Harness, key: str, body: bytes) -> None:
    harness.bucket.client().put_object(Bucket=harness.bucket.name, Key=key, Body=body)


def test_receipt_damaged_while_in_flight_keeps_the_image(harness: Harness) -> None:
    """The image is paid for, so the error must not say otherwise, and the image must not get lost."""
    harness.gateway.behave(delay=0.3)
    helper = when_asked(harness.gateway, lambda: put(harness, "_jojokey/fox.png.json", b"not a receipt"))

    error = harness.fail()
    helper.join()

    assert (error.billed, error.sent) == ("yes", True)
    assert "Nothing was" not in error.message
    assert "0.image" in harness.spooled()
    harness.delete("_jojokey/fox.png.json")
    assert harness.run(try_number=2)["reused"] is True
    assert harness.billed == 1


def test_receipt_deleted_while_in_flight_is_written_again(harness: Harness) -> None:
    harness.gateway.behave(delay=0.3)
    helper = when_asked(harness.gateway, lambda: harness.delete("_jojokey/fox.png.json"))

    manifest = harness.run()
    helper.join()

    assert manifest["reused"] is False
    assert harness.outcomes() == ["complete"]
    assert harness.run(try_number=2)["reused"] is True
    assert harness.billed == 1


def test_lost_response_with_damaged_receipt_is_not_called_free(harness: Harness) -> None:
    harness.gateway.behave("reset", delay=0.3, times=1)
    helper = when_asked(harness.gateway, lambda: put(harness, "_jojokey/fox.png.json", b"not a receipt"))

    error = harness.fail()
    helper.join()

    assert error.billed == "unknown"
    assert isinstance(harness.fail(try_number=2), exceptions.JojoKeyReceiptError)
    assert harness.posts == 1


# --- F11 f: two keys that become one ---------------------------------------------------------------------------------


def test_object_that_no_receipt_mentions_is_not_replaced(harness: Harness) -> None:
    put(harness, "fox.png", b"a file of another team")

    error = harness.fail()

    assert isinstance(error, JojoKeyError)
    assert (error.billed, harness.posts) == ("no", 0)
    assert harness.read("fox.png") == b"a file of another team"


def test_replace_permits_to_overwrite(harness: Harness, png: bytes) -> None:
    put(harness, "fox.png", b"a file of another team")

    harness.run(replace=True)

    assert harness.read("fox.png") == png


@pytest.mark.parametrize("keys", [("hero.{ext}", "hero.png"), ("hero.png", "hero.{ext}")])
def test_key_resolving_to_another_tasks_key_is_not_overwritten(
    harness: Harness, keys: tuple[str, str]
) -> None:
    harness.run("a hero", keys[0], task="first")

    error = harness.fail("a villain", keys[1], task="second")

    assert (error.billed, harness.billed) == ("no", 1)


@pytest.mark.parametrize("n", [1, 2])
def test_object_that_appears_while_in_flight_is_not_overwritten(
    harness: Harness, n: int, caplog: pytest.LogCaptureFixture, png: bytes
) -> None:
    key = "fox.png" if n == 1 else "fox-1.png"
    harness.gateway.behave(delay=0.3)
    helper = when_asked(harness.gateway, lambda: put(harness, key, b"a file of another team"))

    with caplog.at_level(logging.WARNING):
        manifest = harness.run(n=n)
    helper.join()

    assert harness.read(key) == b"a file of another team"
    stored = manifest["images"][-1]["key"]
    assert stored.startswith("_jojokey/fox.png.")
    assert harness.read(stored) == png
    assert "was not replaced there" in caplog.text
    assert harness.run(n=n, try_number=2)["reused"] is True


# --- F11 e: links ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "where", ["http://127.0.0.1:9/image.png?signature=s3cr3t", "https://jojokey.invalid/a?k=s3cr3t"]
)
def test_link_that_fails_is_kept_in_s3_only(
    harness: Harness, png: bytes, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    def link(gateway: ScriptedGateway, exchange: Exchange, request_id: str) -> None:
        gateway.charge(request_id)
        body = json.dumps({"created": 1, "data": [{"url": where}], "usage": TOKENS}).encode()
        exchange.answer(200, body, Content_Type="application/json", X_Oneapi_Request_Id=request_id)

    with ScriptedGateway(png, link) as gateway:
        harness.connect(host=gateway.url)
        error = harness.fail()

    assert error.billed == "yes"
    (kept,) = error.kept
    assert kept.startswith(f"s3://{harness.bucket.name}/_jojokey/fox.png.")
    document = json.loads(harness.read(kept.partition(f"{harness.bucket.name}/")[2]))
    assert document["link"] == [where]
    assert "s3cr3t" not in str(error) + caplog.text
    assert kept in harness.receipt().attempts[0].kept


# --- F11 g: the run's budget -----------------------------------------------------------------------------------------


def test_damaged_run_budget_warns_against_deleting_it(harness: Harness) -> None:
    limits: dict[str, Any] = {"run_limit": Limit(images=2)}
    harness.run(key="a.png", task="a", limits=limits)
    (key,) = (key for key in harness.objects() if "budgets" in key)
    put(harness, key, b"{")

    error = harness.fail(key="b.png", task="b", limits=limits)

    assert (error.billed, harness.billed) == ("no", 1)
    assert "Do not delete it unless" in error.message


# --- other types -----------------------------------------------------------------------------------------------------

AVIF = b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + bytes(200)


def test_unknown_type_beside_an_image_is_kept_in_s3(harness: Harness, png: bytes) -> None:
    def one_of_two(gateway: ScriptedGateway, exchange: Exchange, request_id: str) -> None:
        gateway.charge(request_id)
        items = [{"b64_json": base64.b64encode(body).decode()} for body in (AVIF, png)]
        body = json.dumps({"created": 1, "data": items, "usage": TOKENS}).encode()
        exchange.answer(200, body, Content_Type="application/json", X_Oneapi_Request_Id=request_id)

    with ScriptedGateway(png, one_of_two) as gateway:
        harness.connect(host=gateway.url)
        manifest = harness.run(n=2)

    (kept,) = harness.receipt().attempts[0].kept
    assert harness.read(kept.partition(f"{harness.bucket.name}/")[2]) == AVIF
    assert len(manifest["images"]) == 1
    warnings = " ".join(manifest["warnings"])
    assert "image 1 is an AVIF image" in warnings
    assert kept in warnings
    assert str(harness.spools) not in warnings
