"""Requests whose response was lost: what the gateway log proves, and what it does not."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from msgspec import structs

from airflow_provider_jojokey import exceptions
from airflow_provider_jojokey.hooks.jojokey import JojoKeyHook
from tests.support.harness import Harness, Killed, name_of
from tests.support.loopback import Exchange
from tests.support.patience import PATIENCE
from tests.support.scripted import (
    TOKENS,
    Behavior,
    ScriptedGateway,
    billed_and_broken,
    billed_and_lost,
    failing,
    good,
    lost,
    row,
    without_usage,
)


@pytest.fixture
def scripted(harness: Harness, png: bytes) -> Iterator[ScriptedGateway]:
    with ScriptedGateway(png) as gateway:
        harness.connect(host=gateway.url)
        yield gateway


def sum_of_receipts(harness: Harness, *keys: str) -> int:
    return sum(
        (attempt.usage or {}).get("total_tokens", 0)
        for key in keys
        for attempt in harness.receipt(key).attempts
        if attempt.may_cost
    )


# --- F1: resends -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [1, 20, 40, 65, 200])
@pytest.mark.parametrize("end", [billed_and_lost, billed_and_broken], ids=lambda f: f.__name__)
def test_slow_failures_before_lost_response_do_not_pay_twice(
    harness: Harness, scripted: ScriptedGateway, seconds: float, end: Behavior
) -> None:
    """The hook resends slow failures. The last request is billed, and its response is lost."""
    harness.connect(host=scripted.url, max_resends=2, max_resend_wait=60)
    slow = failing(then=lambda: harness.time.skip(seconds))
    scripted.behaviors = [slow, slow, end]

    results = harness.run_with_retries()

    assert len(scripted.billed) == 1
    if name_of(results[-1]) != "image":
        assert results[-1].billed in ("yes", "unknown")  # type: ignore[union-attr]


def test_log_of_a_failed_send_is_no_proof_about_its_resend(
    harness: Harness, scripted: ScriptedGateway
) -> None:
    """The log shows the failure of the first send, with its ID. The resend was billed."""
    harness.connect(host=scripted.url, max_resends=2, max_resend_wait=60)
    scripted.behaviors = [failing(), billed_and_lost]

    results = harness.run_with_retries()

    assert isinstance(results[-1], exceptions.JojoKeyAlreadyBilledError)
    assert results[-1].billed == "unknown"
    assert (scripted.posts, len(scripted.billed)) == (2, 1)


def test_nothing_is_resent_after_the_send_window(harness: Harness, scripted: ScriptedGateway) -> None:
    harness.connect(host=scripted.url, max_resends=10, max_resend_wait=60)
    scripted.behaviors = [failing(then=lambda: harness.time.skip(50)) for _ in range(10)]

    harness.fail()

    assert scripted.posts == 2


def failing_in_200(gateway: ScriptedGateway, exchange: Exchange, request_id: str) -> None:
    gateway.charge(request_id)
    body = b'{"error":{"message":"busy","type":"upstream_error","code":"server_error"}}'
    exchange.answer(200, body, Content_Type="application/json", X_Oneapi_Request_Id=request_id)


def see_other(gateway: ScriptedGateway, exchange: Exchange, request_id: str) -> None:
    """Bill the request, and redirect to its result."""
    gateway.charge(request_id)
    exchange.answer(303, b"", Location="/v1/images/1", X_Oneapi_Request_Id=request_id)


def image_itself(gateway: ScriptedGateway, exchange: Exchange, request_id: str) -> None:
    """Bill the request, and send its image without JSON."""
    gateway.charge(request_id)
    exchange.answer(200, gateway.png, Content_Type="image/png", X_Oneapi_Request_Id=request_id)


def task(gateway: ScriptedGateway, exchange: Exchange, request_id: str) -> None:
    """Bill the request, and name only the address of a task."""
    gateway.charge(request_id)
    exchange.answer(202, b"", Location="/v1/tasks/t1?sig=s3cret", X_Oneapi_Request_Id=request_id)


@pytest.mark.parametrize("logs_charges", [True, False])
def test_redirect_to_the_result_is_not_paid_again(
    harness: Harness, scripted: ScriptedGateway, logs_charges: bool
) -> None:
    scripted.logs_charges = logs_charges
    scripted.behaviors = [see_other]

    results = harness.run_with_retries()

    assert (scripted.posts, len(scripted.billed)) == (1, 1)
    assert results[-1].billed == ("yes" if logs_charges else "unknown")  # type: ignore[union-attr]


def test_image_without_json_is_stored_and_reused(harness: Harness, scripted: ScriptedGateway) -> None:
    scripted.behaviors = [image_itself]

    harness.run()
    harness.run()

    assert harness.read("fox.png") == scripted.png
    assert (scripted.posts, harness.outcomes()) == (1, ["complete"])


def test_unreadable_quota_unit_does_not_hide_a_charge(harness: Harness, scripted: ScriptedGateway) -> None:
    scripted.status = b'{"data": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    scripted.behaviors = [failing_in_200]

    error = harness.fail()

    assert (error.billed, scripted.status_reads) == ("yes", 1)
    assert harness.receipt().attempts[0].charge == {"quota": 700}


def test_address_of_a_task_is_stored_beside_the_receipt(harness: Harness, scripted: ScriptedGateway) -> None:
    scripted.behaviors = [task]

    error = harness.fail()
    harness.fail()

    assert "task (ID t1)" in str(error)
    assert "s3cret" not in str(error)
    (kept,) = (key for key in harness.objects() if key.endswith(".pending"))
    pending = json.loads(harness.read(kept))
    assert (pending["task_id"], pending["link"]) == (["t1"], [f"{scripted.url}/v1/tasks/t1?sig=s3cret"])
    assert scripted.posts == 1


ENDS = [billed_and_lost, billed_and_broken, failing_in_200]


# --- F2: missing rows ------------------------------------------------------------------------------------------------


def off(gateway: ScriptedGateway) -> None:
    gateway.logs_charges = False


def only_failures(gateway: ScriptedGateway) -> None:
    """Charges are not logged, failures of channels are: one failed before another one was billed."""
    gateway.logs_charges = False
    gateway.rows.append(row("request-1", 5))


def old_rows_only(gateway: ScriptedGateway) -> None:
    gateway.logs_charges = False
    gateway.rows += [row(f"old-{number}", age=3600) for number in range(5)]


def rows_of_others(gateway: ScriptedGateway) -> None:
    gateway.logs_charges = False
    gateway.rows += [row("other-1", model="gpt-4o"), row("", 2)]


def refused(gateway: ScriptedGateway) -> None:
    gateway.log_status = 404


@pytest.mark.parametrize(
    "log", [off, only_failures, old_rows_only, rows_of_others, refused], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("end", ENDS, ids=lambda f: f.__name__)
def test_missing_row_is_not_proof(
    harness: Harness, scripted: ScriptedGateway, log: Any, end: Behavior
) -> None:
    log(scripted)
    scripted.behaviors = [end]

    results = harness.run_with_retries()

    assert isinstance(results[-1], exceptions.JojoKeyError)
    assert results[-1].billed in ("yes", "unknown")
    assert len(scripted.billed) == 1


def test_pruned_row_is_not_proof(harness: Harness, scripted: ScriptedGateway) -> None:
    harness.set(longest_generation=300.0)
    scripted.behaviors = [billed_and_lost]
    harness.fail()
    scripted.rows.clear()
    harness.time.skip(7200)

    error = harness.fail(try_number=2)

    assert error.billed == "unknown"
    assert len(scripted.billed) == 1


# --- what the log proves ---------------------------------------------------------------------------------------------


def test_charge_row_with_known_id_proves_billed(harness: Harness, scripted: ScriptedGateway) -> None:
    scripted.behaviors = [billed_and_broken]

    error = harness.fail()

    assert (error.billed, error.request_id) == ("yes", "request-1")
    assert error.usage is not None
    assert error.usage["total_tokens"] == scripted.tokens
    assert harness.receipt().attempts[0].charge == {"quota": 700}


def pruned(gateway: ScriptedGateway) -> None:
    gateway.rows.clear()


def unreadable(gateway: ScriptedGateway) -> None:
    gateway.log_status = 500


def failures_only(gateway: ScriptedGateway) -> None:
    gateway.rows[:] = [row("request-1", 5), row("later")]


@pytest.mark.parametrize("change", [pruned, unreadable, failures_only], ids=lambda f: f.__name__)
@pytest.mark.parametrize("wait", [0.0, 5_000.0])
def test_later_look_without_result_keeps_the_evidence(
    harness: Harness, scripted: ScriptedGateway, change: Callable[[ScriptedGateway], None], wait: float
) -> None:
    """The log that has shown a charge doesn't show it any more."""
    scripted.behaviors = [billed_and_broken]
    harness.fail()
    proven = harness.receipt().attempts[0]
    change(scripted)
    harness.time.skip(wait)

    error = harness.fail(try_number=2)

    assert proven.note == "the gateway log shows the charge (request ID request-1)"
    assert harness.receipt().attempts[0] == proven
    assert f"You were charged: {proven.note}. This attempt sent nothing." in error.message
    assert scripted.posts == 1


def test_late_charge_replaces_the_note_of_an_unknown_attempt(
    harness: Harness, scripted: ScriptedGateway
) -> None:
    """Another try has an image already, and only looks up the usage that is missing."""
    scripted.logs_charges = False
    scripted.behaviors = [billed_and_broken]
    harness.fail()
    harness.run(try_number=2, on_unknown_outcome="regenerate")
    assert "doesn't show" in (harness.receipt().attempts[0].note or "")
    scripted.rows.append(row("request-1"))

    harness.run(try_number=3)

    assert harness.outcomes() == ["billed", "complete"]
    assert harness.receipt().attempts[0].note == "the gateway log shows the charge (request ID request-1)"


def test_receipt_of_a_fee_names_its_evidence(harness: Harness) -> None:
    harness.fail("a fox [sandbox: violation_fee]")

    (attempt,) = harness.receipt().attempts

    assert attempt.billed == "yes"
    assert attempt.note == "the gateway's response says that it charges a fee"


def test_late_charge_row_is_found_by_later_try(harness: Harness, scripted: ScriptedGateway) -> None:
    harness.set(longest_generation=300.0)
    scripted.logs_charges = False
    scripted.behaviors = [failing_in_200]
    first = harness.fail()
    assert isinstance(first, exceptions.JojoKeyUnknownOutcomeError)
    scripted.rows.append(row("request-1"))

    error = harness.fail(try_number=2)

    assert isinstance(error, exceptions.JojoKeyAlreadyBilledError)
    assert error.billed == "yes"
    assert scripted.posts == 1


def test_failure_row_proves_nothing_while_model_may_work(harness: Harness, scripted: ScriptedGateway) -> None:
    """One channel failed, and another one is still generating."""
    harness.set(longest_generation=300.0)

    def error_in_200(gateway: ScriptedGateway, exchange: Exchange, request_id: str) -> None:
        gateway.rows += [row("other", 2), row(request_id, 5)]
        body = b'{"error":{"message":"busy","code":"server_error"}}'
        exchange.answer(200, body, Content_Type="application/json", X_Oneapi_Request_Id=request_id)

    scripted.behaviors = [error_in_200]
    harness.fail()

    early = harness.fail(try_number=2)
    assert (early.billed, scripted.posts) == ("unknown", 1)
    scripted.charge("request-1")
    harness.time.skip(600)
    late = harness.fail(try_number=3)

    assert (late.billed, scripted.posts) == ("yes", 1)


@pytest.mark.parametrize("recorded", [True, False])
def test_large_image_may_still_be_generated_for_changed_task(
    harness: Harness, scripted: ScriptedGateway, recorded: bool
) -> None:
    """The process that requested the large image was killed, and the cleared task wants a small one."""
    harness.set(longest_generation=300.0)

    class Dies(JojoKeyHook):
        def generate(self, *arguments: Any, **more: Any) -> Any:
            try:
                return super().generate(*arguments, **more)
            except exceptions.JojoKeyError:
                raise Killed from None

    def failed_channel(gateway: ScriptedGateway, exchange: Exchange, request_id: str) -> None:
        gateway.rows += [row("other", 2), row(request_id, 5)]
        body = b'{"error":{"message":"busy","code":"server_error"}}'
        exchange.answer(200, body, Content_Type="application/json", X_Oneapi_Request_Id=request_id)

    scripted.behaviors = [failed_channel]
    with pytest.raises(Killed):
        harness.run(hook=Dies(), size="3840x2160", quality="high")
    for mark in harness.spools.glob("*/*/ended"):
        mark.unlink()
    if not recorded:  # as older versions wrote it
        receipt = harness.receipt()
        older = receipt.with_attempt(structs.replace(receipt.attempts[0], size=None, quality=None))
        harness.bucket.client().put_object(
            Bucket=harness.bucket.name, Key="_jojokey/fox.png.json", Body=older.to_json()
        )

    harness.time.skip(1_000)
    harness.run(try_number=2)

    assert harness.outcomes() == ["unknown", "complete"]


# --- F7: rows of other requests --------------------------------------------------------------------------------------


@pytest.mark.parametrize("first_is_billed", [True, False])
def test_row_of_concurrent_task_is_not_claimed(
    harness: Harness, scripted: ScriptedGateway, first_is_billed: bool
) -> None:
    """Two tasks send at once. One request never arrives, the other one is billed and lost."""
    both = threading.Barrier(2)

    def meet(behave: Behavior) -> Behavior:
        def behave_together(gateway: ScriptedGateway, exchange: Exchange, request_id: str) -> None:
            both.wait(PATIENCE)
            behave(gateway, exchange, request_id)

        return behave_together

    ends = [billed_and_lost, lost] if first_is_billed else [lost, billed_and_lost]
    scripted.behaviors = [meet(end) for end in ends]
    harness.store()
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda name: harness.fail(key=f"{name}.png", task=name), ("a", "b")))
    harness.time.skip(600)

    errors = [harness.fail(key=f"{name}.png", task=name, try_number=2) for name in ("a", "b")]

    assert [error.billed for error in errors] == ["unknown", "unknown"]
    assert sum_of_receipts(harness, "a.png", "b.png") <= scripted.tokens
    assert scripted.posts == 2


def test_row_of_task_with_response_is_not_claimed(harness: Harness, scripted: ScriptedGateway) -> None:
    scripted.behaviors = [lost]
    harness.fail(key="a.png", task="a")
    harness.run(key="b.png", task="b")
    harness.time.skip(600)

    error = harness.fail(key="a.png", task="a", try_number=2)

    assert error.billed == "unknown"
    assert error.usage == {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
    assert sum_of_receipts(harness, "a.png", "b.png") == scripted.tokens


def test_rows_of_one_request_count_once(harness: Harness, scripted: ScriptedGateway) -> None:
    """Two channels failed before the charge: three rows with one ID, in any order."""
    scripted.rows += [row("request-1", 5), row("request-1", 5)]
    scripted.behaviors = [billed_and_broken]

    error = harness.fail()

    assert error.billed == "yes"
    assert error.usage is not None
    assert error.usage["total_tokens"] == TOKENS["total_tokens"]


def test_charge_that_is_listed_twice_counts_once(harness: Harness, scripted: ScriptedGateway) -> None:
    scripted.behaviors = [without_usage]
    scripted.repeats_rows = True

    manifest = harness.run()

    assert manifest["usage"]["total_tokens"] == scripted.tokens
    assert harness.receipt().attempts[0].charge == {"quota": 700}


def test_fitting_row_is_reported_as_hint_only(harness: Harness, scripted: ScriptedGateway) -> None:
    scripted.behaviors = [billed_and_lost]

    harness.run_with_retries()

    (attempt,) = harness.receipt().attempts
    assert attempt.hint is not None
    assert attempt.hint["request_id"] == "request-1"
    assert (str(attempt.outcome), attempt.usage, attempt.request_id) == ("unknown", None, None)


# --- F9: usage -------------------------------------------------------------------------------------------------------


def test_usage_missing_in_response_comes_from_log(harness: Harness, scripted: ScriptedGateway) -> None:
    scripted.behaviors = [without_usage]

    manifest = harness.run()

    assert manifest["usage"]["total_tokens"] == scripted.tokens
    assert harness.receipt().attempts[0].usage == TOKENS


@pytest.mark.parametrize("end", [without_usage, billed_and_broken], ids=lambda f: f.__name__)
def test_usage_from_late_log_is_filled_in_when_cleared(
    harness: Harness, scripted: ScriptedGateway, end: Behavior
) -> None:
    scripted.logs_charges = False
    scripted.behaviors = [end]
    first = harness.end()
    usage = first["usage"] if isinstance(first, dict) else first.usage
    assert usage is not None
    assert usage["total_tokens"] == 0
    scripted.rows.append(row("request-1"))

    second = harness.end(try_number=2)

    usage = second["usage"] if isinstance(second, dict) else second.usage
    assert usage is not None
    assert usage["total_tokens"] == scripted.tokens == sum_of_receipts(harness, "fox.png")
    assert scripted.posts == 1


def test_usage_of_deleted_image_stays_in_error(harness: Harness, scripted: ScriptedGateway) -> None:
    scripted.behaviors = [without_usage]
    harness.run()
    harness.delete("fox.png")

    error = harness.fail(try_number=2)

    assert error.usage is not None
    assert error.usage["total_tokens"] == scripted.tokens


@pytest.mark.parametrize(
    "end",
    [lost, failing(), failing(401, ""), billed_and_broken],
    ids=["lost", "failed", "rejected", "broken"],
)
def test_every_error_has_usage(harness: Harness, scripted: ScriptedGateway, end: Behavior) -> None:
    scripted.behaviors = [good, end]
    harness.run()

    error = harness.fail("an owl", try_number=2)

    assert error.usage is not None
    assert error.usage["total_tokens"] == scripted.tokens


# --- F12: a proxy that retries ---------------------------------------------------------------------------------------

LITELLM = {"x_litellm_call_id": "call-1", "x_litellm_version": "1.106.2"}


@pytest.mark.parametrize(
    ("status", "code"), [(500, "do_request_failed"), (503, "503"), (429, "429"), (400, "400"), (403, "403")]
)
@pytest.mark.parametrize("also", [{}, {"X_Oneapi_Request_Id": "upstream"}], ids=["no ID", "upstream ID"])
def test_error_of_retrying_proxy_proves_nothing(
    harness: Harness, scripted: ScriptedGateway, status: int, code: str, also: dict[str, str]
) -> None:
    harness.connect(host=scripted.url, max_resends=2, max_resend_wait=5)
    message = "litellm.InternalServerError: upstream failed (request id: 20261128)"
    scripted.behaviors = [
        failing(status, code, billed=True, message=message, **LITELLM, **also) for _ in range(10)
    ]

    results = harness.run_with_retries()

    assert isinstance(results[-1], exceptions.JojoKeyError)
    assert results[-1].billed == "unknown"
    assert "Nothing was billed" not in results[-1].message
    assert (scripted.posts, len(scripted.billed)) == (1, 1)


def test_id_quoted_in_a_message_identifies_nothing(harness: Harness, scripted: ScriptedGateway) -> None:
    """A proxy without marks copies the gateway's message. Its row is one failed try of several."""
    scripted.rows.append(row("20261128", 5))
    message = "upstream failed (request id: 20261128)"
    scripted.behaviors = [failing(502, "", billed=True, message=message, Server="proxy")]

    results = harness.run_with_retries()

    assert isinstance(results[-1], exceptions.JojoKeyAlreadyBilledError)
    assert (scripted.posts, len(scripted.billed)) == (1, 1)
