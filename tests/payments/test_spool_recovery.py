"""Images that were received and not stored yet: S3 outages, killed processes, lost and copied spools."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, AirflowTaskTimeout
from msgspec.structs import replace

from airflow_provider_jojokey import exceptions
from airflow_provider_jojokey.hooks.jojokey import JojoKeyHook
from airflow_provider_jojokey.payments.amount import spent_on
from airflow_provider_jojokey.payments.job import Limit
from airflow_provider_jojokey.payments.receipt_store import ReceiptStore
from airflow_provider_jojokey.results import Result
from airflow_provider_jojokey.sandbox import Gateway, S3Server
from airflow_provider_jojokey.store import host as hosts
from airflow_provider_jojokey.store import spool as spools
from tests.support.commands import run_in_process
from tests.support.fault_proxy import FaultProxy, answer, error, on, times
from tests.support.harness import DiesAfterRequestId, DiesAfterResponse, Harness, Killed, name_of, when_asked
from tests.support.loopback import Exchange
from tests.support.patience import PATIENCE
from tests.support.scripted import TOKENS, Behavior, ScriptedGateway

# --- S3 outages ------------------------------------------------------------------------------------------------------


def test_upload_waits_for_the_end_of_an_outage(unconditional: Harness, s3: S3Server) -> None:
    harness, gateway = unconditional, unconditional.gateway
    harness.run(key="first.png")  # the store's conditional writes are tested

    def stop_and_start() -> None:
        s3.stop()
        gateway.wait_for_charges(2, timeout=PATIENCE)
        gateway.wait_until_idle(PATIENCE)
        threading.Event().wait(1.0)
        s3.start()

    gateway.behave(delay=0.5)
    helper = threading.Thread(
        target=lambda: (gateway.wait_for_request(2, timeout=PATIENCE), stop_and_start())
    )
    helper.start()
    manifest = harness.run(n=3)
    helper.join()

    assert harness.posts == 2
    assert [len(harness.read(image["key"])) for image in manifest["images"]] == [
        image["bytes"] for image in manifest["images"]
    ]
    assert harness.spooled() == []


def test_retry_stores_images_that_s3_did_not_accept(unconditional: Harness, s3: S3Server) -> None:
    harness = unconditional
    harness.set(upload_patience=0.1)
    harness.gateway.behave(delay=0.3)
    helper = when_asked(harness.gateway, s3.stop)

    error = harness.fail(n=2)
    helper.join()

    assert isinstance(error, exceptions.JojoKeyStoreError)
    assert not isinstance(error, AirflowFailException)
    assert error.billed == "yes"
    assert error.usage is not None
    assert error.usage["total_tokens"] == harness.tokens
    assert "The received images are safe on this host" in error.message
    assert {"0.image", "1.image", "reply.json"} <= set(harness.spooled())

    still_down = harness.fail(n=2, try_number=2)
    assert "Nothing was sent or billed" in still_down.message
    s3.start()
    manifest = harness.run(n=2, try_number=3)

    assert harness.posts == 1
    assert len(manifest["images"]) == 2
    assert manifest["usage"]["total_tokens"] == harness.tokens
    assert harness.spooled() == []
    assert harness.outcomes() == ["complete"]


def test_retry_stores_part_of_broken_response(unconditional: Harness, s3: S3Server) -> None:
    harness = unconditional
    harness.set(upload_patience=0.1)
    harness.gateway.behave("truncated", delay=0.3, times=1)
    helper = when_asked(harness.gateway, s3.stop)

    error = harness.fail(n=3)
    helper.join()

    assert isinstance(error, exceptions.JojoKeyStoreError)
    assert not isinstance(error, AirflowFailException)  # only a retry can store the image
    assert error.billed == "yes"
    assert "0.image" in harness.spooled()

    s3.start()
    final = harness.fail(n=3, try_number=2)

    assert isinstance(final, exceptions.JojoKeyAlreadyBilledError)
    assert "1 of 3 images were received and stored: s3://posters/fox-0.png" in final.message
    assert harness.read("fox-0.png")
    assert harness.posts == 1
    assert harness.spooled() == []


def test_another_process_stores_images_of_a_running_one(unconditional: Harness, s3: S3Server) -> None:
    """The first process is a triggerer: it goes on with other tasks."""
    first = unconditional
    first.set(upload_patience=0.1)
    first.gateway.behave(delay=0.3)
    helper = when_asked(first.gateway, s3.stop)
    first.fail()
    helper.join()
    s3.start()

    manifest = first.in_other_process().run(try_number=2)

    assert manifest["reused"] is True
    assert first.posts == 1
    assert first.read("fox.png")
    assert first.outcomes() == ["complete"]


def test_full_disk_does_not_prevent_upload(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("airflow_provider_jojokey.store.spool.Spool.mark_complete", full)

    assert name_of(harness.end()) == "image"
    assert harness.outcomes() == ["complete"]


def break_spool(harness: Harness) -> None:
    """Let no file in the folders of attempts be created or renamed, as on a disk that became read-only."""
    for folder in harness.attempt_folders():
        shutil.rmtree(folder.parent)
        folder.parent.write_bytes(b"")


def repair_spool(harness: Harness) -> None:
    for place in harness.spools.iterdir():
        if place.is_file() and place.name != "id":
            place.unlink()


def has_written(harness: Harness) -> bool:
    return any(path.stat().st_size for path in harness.spools.glob("*/*/*.part"))


def breaking(harness: Harness, end: Callable[[Exchange, bytes], object]) -> Behavior:
    """Bill the request, send half of its image, break the spool, and call ``end`` with the other half."""

    def behave(gateway: ScriptedGateway, exchange: Exchange, request_id: str) -> None:
        gateway.charge(request_id)
        image = base64.b64encode(gateway.png).decode()
        body = json.dumps({"data": [{"b64_json": image}], "usage": TOKENS}).encode()
        head = f"HTTP/1.1 200 OK\r\nX-Oneapi-Request-Id: {request_id}\r\nContent-Type: application/json\r\n"
        half = len(body) // 2
        exchange.send(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:half])
        give_up = time.monotonic() + PATIENCE
        while not has_written(harness) and time.monotonic() < give_up:
            threading.Event().wait(0.01)
        break_spool(harness)
        end(exchange, body[half:])

    return behave


def breaking_before_link(harness: Harness) -> Behavior:
    """Bill the request, break the spool, and send a link to the image."""

    def behave(gateway: ScriptedGateway, exchange: Exchange, request_id: str) -> None:
        gateway.charge(request_id)
        break_spool(harness)
        body = json.dumps({"data": [{"url": f"{gateway.url}/fox.png"}], "usage": TOKENS}).encode()
        exchange.answer(200, body, Content_Type="application/json", X_Oneapi_Request_Id=request_id)

    return behave


@pytest.mark.parametrize("how", ["link", "reset"])
def test_disk_that_fails_after_the_request_is_no_proof(harness: Harness, png: bytes, how: str) -> None:
    behavior = breaking_before_link(harness) if how == "link" else breaking(harness, lambda e, _: e.reset())
    with ScriptedGateway(png, behavior) as gateway:
        harness.connect(host=gateway.url)
        error = harness.fail()
        repair_spool(harness)
        retries = harness.run_with_retries(first=2)

        assert (error.billed, error.sent) == ("yes", True), error
        assert error.usage == TOKENS
        assert gateway.posts == 1
    assert name_of(retries[-1]) == "JojoKeyAlreadyBilledError"
    assert harness.outcomes() == ["billed"]


def test_image_is_stored_although_its_file_has_no_name(harness: Harness, png: bytes) -> None:
    with ScriptedGateway(png, breaking(harness, Exchange.send)) as gateway:
        harness.connect(host=gateway.url)

        assert name_of(harness.end()) == "image"
        assert gateway.posts == 1
    assert harness.read("fox.png") == png
    assert harness.outcomes() == ["complete"]


class DiskFailsAfterResponse(DiesAfterResponse):
    """A hook whose disk fails once the response has arrived, for example when a file is closed."""

    error = OSError


class DiskFailsAfterRequestId(DiesAfterRequestId):
    """A hook whose disk fails once the response has shown its request ID."""

    error = OSError


@pytest.mark.parametrize(
    ("hook", "outcome"), [(DiskFailsAfterResponse, "complete"), (DiskFailsAfterRequestId, "billed")]
)
def test_disk_error_after_the_request_is_reconciled(
    harness: Harness, hook: type[JojoKeyHook], outcome: str
) -> None:
    first = harness.end(hook=hook())
    results = [first, *harness.run_with_retries(first=2)]

    assert harness.posts == 1
    assert harness.outcomes() == [outcome]
    assert name_of(results[-1]) == ("image" if outcome == "complete" else "JojoKeyAlreadyBilledError")


def test_spool_is_empty_once_s3_has_all_images(harness: Harness) -> None:
    harness.run()
    harness.run_with_retries("an owl [sandbox: no_channel]", "owl.png")
    harness.run_with_retries("an owl [sandbox: truncated]", "owls.png", n=2)
    assert [path.name for path in harness.spools.iterdir()] == ["id"]


def test_old_spools_are_deleted(harness: Harness) -> None:
    old = harness.spools / ("0" * 32) / ("1" * 32)
    old.mkdir(parents=True)
    (old / "0.image").write_bytes(b"unclaimed image")
    os.utime(old / "0.image", (1, 1))
    os.utime(old, (1, 1))

    harness.run()

    assert not old.exists()


# --- killed processes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [Killed, AirflowTaskTimeout, KeyboardInterrupt, SystemExit])
def test_task_killed_after_response_loses_nothing(harness: Harness, error: type[BaseException]) -> None:
    hook = DiesAfterResponse()
    hook.error = error
    with pytest.raises(error):
        harness.run(hook=hook)
    assert harness.outcomes() == ["open"]

    manifest = harness.run(try_number=2)

    assert (harness.posts, manifest["reused"]) == (1, True)
    assert manifest["usage"]["total_tokens"] == harness.tokens
    assert harness.spooled() == []


def die(*_: Any, **__: Any) -> None:
    raise Killed


def killed_before_request(harness: Harness, **job: Any) -> None:
    """Kill a try between its claim and its request."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("airflow_provider_jojokey.hooks.jojokey.JojoKeyHook.generate", die)
        with pytest.raises(Killed):
            harness.run(**job)
    assert harness.outcomes()[-1] == "open"


def test_spool_proves_that_nothing_was_sent(harness: Harness) -> None:
    killed_before_request(harness)

    harness.run(try_number=2)

    first, second = harness.receipt().attempts
    assert first.note == "the process ended before it sent the request"
    assert (str(first.outcome), str(second.outcome)) == ("not_billed", "complete")
    assert harness.billed == 1


def test_try_killed_while_claiming_sent_nothing(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """The claim reached S3, and the process died before it learned that."""
    claim = ReceiptStore.claim

    def claim_and_die(self: Any, *arguments: Any) -> None:
        claim(self, *arguments)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(ReceiptStore, "claim", claim_and_die)
        with pytest.raises(Killed):
            harness.run()

    harness.run(try_number=2)

    assert harness.outcomes() == ["not_billed", "complete"]


# --- F4: what proves nothing -----------------------------------------------------------------------------------------


def lose_folder(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in harness.attempt_folders():
        shutil.rmtree(folder)


def lose_spool(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(harness.spools)


def lose_intent(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in harness.attempt_folders():
        for name in ("intent.json", "sending.json"):
            (folder / name).unlink(missing_ok=True)


def lose_marks_of_sending(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in harness.attempt_folders():
        for path in folder.iterdir():
            if path.name != "stamp":
                path.unlink()


def damage_intent(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in harness.attempt_folders():
        for name in ("intent.json", "sending.json"):
            if (folder / name).exists():
                (folder / name).write_text("{")


@pytest.mark.parametrize(
    "loss",
    [lose_folder, lose_spool, lose_intent, lose_marks_of_sending, damage_intent],
    ids=lambda f: f.__name__,
)
@pytest.mark.parametrize("log", [True, False], ids=["log", "no log"])
def test_lost_spool_is_not_proof(
    harness: Harness, png: bytes, monkeypatch: pytest.MonkeyPatch, loss: Any, log: bool
) -> None:
    with Gateway(image=png, log=log) as gateway:
        harness.gateway = gateway
        harness.connect()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("airflow_provider_jojokey.store.spool.Spool.add_fact", lambda *_: None)
            harness.kill()
        for path in harness.spools.rglob("*.image"):
            path.unlink()
        loss(harness, monkeypatch)

        results = harness.run_with_retries(first=2)

        assert isinstance(results[-1], exceptions.JojoKeyAlreadyBilledError)
        assert results[-1].billed == "unknown"
        assert harness.posts == 1


def from_another_boot(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "boot_id", lambda: "another boot")


def from_unknown_boot(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "boot_id", lambda: "")


def from_another_machine(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "machine_id", lambda: "another machine")


def from_a_backup(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    backup = harness.spools.with_name("backup")
    shutil.copytree(harness.spools, backup, copy_function=shutil.copy2)
    shutil.rmtree(harness.spools)
    shutil.copytree(backup, harness.spools, copy_function=shutil.copy2)


@pytest.mark.parametrize(
    "origin",
    [from_another_boot, from_unknown_boot, from_another_machine, from_a_backup, lose_folder, lose_spool],
    ids=lambda f: f.__name__,
)
def test_spool_of_another_origin_is_no_proof(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, origin: Any
) -> None:
    """A backup of the spool from before the request looks like an attempt that sent nothing."""
    killed_before_request(harness)
    origin(harness, monkeypatch)

    results = harness.run_with_retries(first=2)

    assert [name_of(result) for result in results][-1] == "JojoKeyAlreadyBilledError"
    assert harness.posts == 0


def test_deleted_spool_is_no_proof_that_nothing_was_sent(harness: Harness, png: bytes) -> None:
    with Gateway(image=png, log=False) as silent:
        harness.gateway = silent
        harness.connect()
        harness.kill()
        receipt = harness.receipt()
        (attempt,) = receipt.attempts
        old = replace(attempt, started_at=attempt.started_at - timedelta(days=8))
        document = replace(receipt, attempts=(old,)).to_json()
        harness.bucket.client().put_object(
            Bucket=harness.bucket.name, Key="_jojokey/fox.png.json", Body=document
        )
        (folder,) = harness.attempt_folders()
        for path in (*folder.iterdir(), folder):
            os.utime(path, (1, 1))
        spools.clean(harness.spools)
        assert not folder.exists()

        error = harness.fail(try_number=2)

        assert isinstance(error, exceptions.JojoKeyAlreadyBilledError)
        assert error.billed == "unknown"
        assert harness.posts == 1


def test_copied_spool_gets_images_but_proves_nothing(harness: Harness) -> None:
    """Images in a copied spool are images that were received; marks in it are no evidence."""
    harness.kill()
    other = harness.on("clone")
    shutil.copytree(harness.spools, other.spools)
    harness.time.skip(1000)

    manifest = other.run(try_number=2)

    assert (manifest["reused"], harness.posts) == (True, 1)


# --- F8: images of this host's spool are stored whatever came later --------------------------------------------------


def test_image_in_spool_is_stored_after_another_hosts_attempt(harness: Harness) -> None:
    """This host received an image; another host paid again on request, and its response was lost."""
    harness.kill()
    harness.time.skip(1000)
    other = harness.on("other")
    other.fail("a fox", try_number=2)
    options = {"on_unknown_outcome": "regenerate"}
    harness.gateway.behave("reset", times=1)
    other.fail("a fox", try_number=3, **options)
    harness.time.skip(1000)

    manifest = harness.run("a fox", try_number=4)

    assert (manifest["reused"], harness.posts) == (True, 2)
    assert sorted(harness.outcomes()) == ["complete", "unknown"]
    assert harness.spooled() == []


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("change", [{"prompt": "an owl"}, {"quality": "high"}, {"reuse": "never"}], ids=str)
def test_image_in_spool_is_stored_after_change(harness: Harness, change: dict[str, Any], n: int) -> None:
    harness.kill(n=n)

    manifest = harness.run(**{"try_number": 2, "n": n, **change})

    first, second = harness.receipt().attempts
    assert [str(attempt.outcome) for attempt in (first, second)] == ["complete", "complete"]
    assert len(first.images) == n
    assert all(image.key.startswith("_jojokey/fox.png.") for image in first.images)
    assert all(harness.read(image.key) for image in first.images)
    assert [image["key"] for image in manifest["images"]] == (
        ["fox.png"] if n == 1 else ["fox-0.png", "fox-1.png"]
    )
    assert manifest["usage"]["total_tokens"] == harness.tokens
    assert harness.spooled() == []


@pytest.mark.parametrize(
    ("options", "sentence", "payments"),
    [
        ({}, "A retry on another host can't reach them, but doesn't pay again either.", 1),
        ({"on_unknown_outcome": "regenerate"}, "A retry on another host can't reach them, and pays for new ones", 2),
    ],
)  # fmt: skip
def test_error_says_what_another_host_does(
    harness: Harness, options: dict[str, str], sentence: str, payments: int
) -> None:
    harness.set(upload_patience=0.0)
    bucket = harness.bucket
    rejected = on("PUT", f"/{bucket.name}/fox.png", answer(error(403, "AccessDenied")))
    with FaultProxy(bucket.endpoint_url, rejected) as proxy:
        harness.bucket = dataclasses.replace(bucket, endpoint_url=proxy.url)
        harness.connect()
        failure = harness.fail(**options)
    harness.bucket = bucket
    harness.connect()
    assert sentence in failure.message

    other = harness.on("other")
    harness.time.skip(1000)
    other.run_with_retries(first=2, **options)

    assert harness.billed == payments


def test_image_in_spool_is_stored_even_if_the_task_then_fails(harness: Harness) -> None:
    harness.kill("an owl")

    harness.fail("a fox [sandbox: invalid_request]", try_number=2)

    assert harness.outcomes() == ["complete", "not_billed"]
    assert harness.spooled() == []


def test_part_of_broken_response_in_spool_is_stored(harness: Harness) -> None:
    """The process was killed while the second of three images arrived."""
    harness.kill(n=3)
    (folder,) = harness.attempt_folders()
    for name in ("1.image", "2.image", "reply.json"):
        (folder / name).unlink(missing_ok=True)

    error = harness.fail(n=3, try_number=2)

    assert (error.billed, harness.posts) == ("yes", 1)
    assert "1 of 3 images were received and stored" in error.message
    assert harness.spooled() == []


def test_usage_includes_a_killed_try_with_reuse_never(harness: Harness) -> None:
    harness.kill(reuse="never")

    manifest = harness.run(reuse="never", try_number=2)

    assert (manifest["reused"], harness.billed) == (False, 2)
    assert manifest["usage"]["total_tokens"] == harness.tokens
    assert harness.outcomes() == ["complete", "complete"]


def test_stored_image_replaces_the_note_of_another_host(harness: Harness) -> None:
    harness.kill()
    harness.time.skip(10_000)
    harness.on("other").fail(try_number=2)
    assert harness.outcomes() == ["unknown"]
    assert harness.receipt().attempts[0].note

    harness.run(try_number=3)

    (attempt,) = harness.receipt().attempts
    assert (attempt.outcome, attempt.billed, attempt.note) == ("complete", "yes", None)


# --- refunds ---------------------------------------------------------------------------------------------------------


def test_old_charge_in_the_spool_does_not_undo_a_refund(
    harness: Harness, capfd: pytest.CaptureFixture[str]
) -> None:
    """Support refunds a request whose host comes back later, with its ID in the spool."""
    harness.kill(hook=DiesAfterRequestId())
    (charge,) = harness.gateway.charges
    harness.time.skip(10_000)
    harness.on("other").fail(try_number=2)
    uri, attempt_id = f"s3://{harness.bucket.name}/fox.png", harness.receipt().attempts[0].id
    billed = run_in_process(capfd, "resolve", uri, "--billed", "--request-id", charge.request_id)
    harness.on("other").fail(try_number=3)
    assert harness.receipt().attempts[0].usage is not None
    refunded = run_in_process(capfd, "resolve", uri, "--not-billed", "--attempt", attempt_id)
    assert (billed.code, refunded.code) == (0, 0)

    manifest = harness.run(try_number=4)

    assert harness.outcomes() == ["not_billed", "complete"]
    assert harness.posts == 2
    assert manifest["usage"]["total_tokens"] == harness.gateway.charges[1].total_tokens
    assert harness.spooled() == []


@pytest.mark.parametrize(
    ("statements", "refunded"), [(("--billed", "--not-billed"), True), (("--not-billed",), False)]
)
def test_image_that_turns_up_does_not_undo_a_refund(
    harness: Harness, capfd: pytest.CaptureFixture[str], statements: tuple[str, ...], refunded: bool
) -> None:
    """A refund may follow a charge. That nothing was charged at all is a mistake, which the image proves."""
    harness.kill()
    (charge,) = harness.gateway.charges
    harness.time.skip(10_000)
    uri, attempt_id = f"s3://{harness.bucket.name}/fox.png", harness.receipt().attempts[0].id
    for statement in statements:
        request_id = ("--request-id", charge.request_id) if statement == "--billed" else ()
        assert (
            run_in_process(capfd, "resolve", uri, statement, "--attempt", attempt_id, *request_id).code == 0
        )
        harness.on("other").end(
            try_number=2, limits={"task_limit": Limit(images=0)}
        )  # reads the log at no cost

    stored = harness.run(try_number=3)
    reused = harness.run(try_number=4)
    (row,) = run_in_process(capfd, "ledger", "--bucket", harness.bucket.name, "-o", "json").rows

    tokens = 0 if refunded else charge.total_tokens
    assert harness.posts == 1
    assert harness.outcomes() == ["complete"]
    assert harness.read("fox.png")
    for manifest in (stored, reused):
        result = Result.from_manifest(manifest, prompt="a fox", aws_conn_id=None)
        assert manifest["usage"]["total_tokens"] == tokens
        assert (result.paid, result.tokens) == ("no" if refunded else "yes", tokens)
        assert manifest["cost"]["unknown"] == 0
        assert bool(manifest["cost"]["amounts"]) == (not refunded)
    assert (row["requests"], row["images"], row["total_tokens"], row["unknown"]) == (
        not refunded,
        1,
        tokens,
        0,
    )
    assert spent_on(harness.receipt(), harness.job()).tokens == tokens


@pytest.mark.parametrize("statement", ["", "--billed"])
def test_stored_image_of_a_lost_spool_is_found(
    harness: Harness, proxy: FaultProxy, capfd: pytest.CaptureFixture[str], statement: str
) -> None:
    """The image is in S3, whatever was recorded before anything looked for it."""
    harness.run(key="first.png")  # the store's conditional writes are tested
    harness.set(upload_patience=0.1)
    proxy.faults = [on("PUT", "fox.png.json", times(9, answer(error(503, "SlowDown")), after=1))]
    harness.fail()
    proxy.faults = []
    shutil.rmtree(harness.spools)
    if statement:
        assert run_in_process(capfd, "resolve", f"s3://{harness.bucket.name}/fox.png", statement).code == 0

    manifest = harness.run(try_number=2)

    assert harness.posts == 2
    assert manifest["reused"]
    assert harness.outcomes() == ["complete"]
