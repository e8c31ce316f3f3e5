"""The outcome table of docs/paying-once.md: how each failure ends, what it costs, what retries do."""

from __future__ import annotations

import base64
import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_jojokey import exceptions
from airflow_provider_jojokey.exceptions import JojoKeyError
from airflow_provider_jojokey.payments import evidence, send
from airflow_provider_jojokey.payments.attempt import Outcome
from airflow_provider_jojokey.sandbox import Gateway
from airflow_provider_jojokey.store import spool as spools
from tests.support.harness import Harness, name_of
from tests.support.loopback import Exchange, Server


@dataclass(frozen=True)
class Row:
    """What happens, and what follows with ``retries=3``.

    :param case: how the gateway responds, each time
    :param error: the class of the first try's error
    :param billed: what that error says about charges
    :param posts: paid requests in all
    :param payments: requests that the gateway billed
    :param advice: what the message tells a person to do
    :param last: the class of the last try's error, if it is another one
    """

    case: str
    error: str
    billed: str
    posts: int
    payments: int
    advice: str
    last: str = ""


def _rows(cases: str, *columns: Any) -> list[Row]:
    return [Row(case.strip(), *columns) for case in cases.split("|")]


_SUPPORT = "JojoKey support"
GROUPS = [
    _rows("bad_json | invalid_request | error status=413 | error status=422 | error status=400",
          "JojoKeyRequestError", "no", 1, 0, "Change the request"),
    _rows("invalid_token | token_missing | token_disabled | token_expired | token_exhausted",
          "JojoKeyTokenError", "no", 1, 0, "JojoKey"),
    _rows("group_denied | model_denied | ip_denied | user_banned",
          "JojoKeyAccessError", "no", 1, 0, "change the token's group, models or allowed addresses"),
    _rows("cloudflare_1010 | cloudflare_1020", "JojoKeyEdgeBlockedError", "no", 1, 0, "the cf-ray"),
    _rows("wallet_empty | token_quota_short", "JojoKeyQuotaError", "no", 1, 0, "Top up the account"),
    _rows("moderation_blocked | sensitive_words", "JojoKeyContentError", "no", 1, 0, "Rephrase the prompt"),
    _rows("violation_fee", "JojoKeyContentError", "yes", 1, 1, "Rephrase the prompt"),
    _rows("error status=404 | html_in_200 | redirect_301 | redirect_302 | redirect_307 | redirect_308",
          "JojoKeyBaseUrlError", "no", 1, 0, "Check the connection's host"),
    _rows("cloudflare_525 | cloudflare_526", "JojoKeyTLSError", "no", 1, 0, "certificate"),
    _rows("rate_limited | rate_limited_retry_after | rate_limited_empty | upstream_429",
          "JojoKeyRateLimitError", "no", 4, 0, "Airflow pool"),
    _rows("no_channel", "JojoKeyNoChannelError", "no", 4, 0, "check the channel"),
    _rows("overloaded_cpu | overloaded_memory | overloaded_disk | upstream_unreachable | upstream_garbled"
          "| upstream_500", "JojoKeyOverloadedError", "no", 4, 0, "overloaded or failing"),
    _rows("cloudflare_521 | cloudflare_523", "JojoKeyUnreachableError", "no", 4, 0, "could not be reached"),
    # The response has a request ID, and the gateway log shows a charge with it.
    _rows("error_in_200 | sse_raw_error | sse_error_event",
          "JojoKeyAlreadyBilledError", "yes", 1, 1, _SUPPORT),
    # The response has no request ID, so nothing in the log can prove anything.
    _rows("cloudflare_524 | cloudflare_520 | cloudflare_504 | nginx_502 | nginx_504 | reset | close | hang",
          "JojoKeyUnknownOutcomeError", "unknown", 1, 1, _SUPPORT, "JojoKeyAlreadyBilledError"),
    _rows("cloudflare_522 | cloudflare_502 | cloudflare_502_text | reset billed=no | cloudflare_524 billed=no",
          "JojoKeyUnknownOutcomeError", "unknown", 1, 0, _SUPPORT, "JojoKeyAlreadyBilledError"),
    # The log shows a failure with the request's ID, but no charge since then: it may not list charges at all.
    _rows("error_in_200 billed=no", "JojoKeyUnknownOutcomeError", "unknown", 1, 0, _SUPPORT,
          "JojoKeyAlreadyBilledError"),
    _rows("empty_body | no_data | null_data | empty_data | fewer_images | empty_b64 | bad_base64 | not_an_image"
          "| url_missing | url_elsewhere | truncated_mid_image | stalls | sse_broken | sse_hang"
          "| sse_no_completed", "JojoKeyReplyError", "yes", 1, 1, _SUPPORT),
]  # fmt: skip
ROWS = [row for group in GROUPS for row in group]
REPRESENTATIVES = [group[0] for group in GROUPS]
CHARGES = {"no": "Nothing was billed", "yes": "You were charged", "unknown": "You may have been charged"}


ERRORS = Path(__file__).parents[2] / "docs" / "errors.md"
DOCUMENTED = dict(re.findall(r"^\| \[`(\w+)`\]\(#\w+\) \| (.+ \| .+) \|$", ERRORS.read_text("utf-8"), re.M))
CHARGED = {"no": "no", "no, or a fee": "no yes", "unknown": "unknown", "yes or unknown": "yes unknown"}


def assert_documented(error: JojoKeyError) -> None:
    """Check an error against the table of docs/errors.md."""
    charged, retries = DOCUMENTED[name_of(error)].split(" | ")
    assert error.billed in CHARGED[charged].split()
    assert retries.startswith("no") is isinstance(error, AirflowFailException)


def case_of(row: Row) -> str:
    return row.case


@pytest.fixture(autouse=True)
def _timeouts(harness: Harness, request: pytest.FixtureRequest) -> None:
    if any(word in request.node.name for word in ("hang", "stall")):
        harness.connect(read_timeout=0.4)  # a busy gateway may take longer to respond
    harness.set(longest_generation=2.0)


@pytest.mark.parametrize("row", ROWS, ids=case_of)
def test_failure_ends_as_documented(harness: Harness, row: Row) -> None:
    results = harness.run_with_retries(f"a fox [sandbox: {row.case}]", retries=3)

    first, last = results[0], results[-1]
    assert isinstance(first, JojoKeyError)
    assert isinstance(last, JojoKeyError)
    assert (name_of(first), first.billed) == (row.error, row.billed)
    assert_documented(first)
    assert_documented(last)
    assert name_of(last) == (row.last or row.error)
    assert (harness.posts, harness.billed) == (row.posts, row.payments)
    assert row.advice in first.message
    assert CHARGES[first.billed] in first.message
    assert str(first).endswith(type(first).retry)
    assert len(results) == (1 if isinstance(first, AirflowFailException) else 2 if row.last else 4)
    assert last.usage is not None
    if last.billed != "unknown":
        assert last.usage["total_tokens"] == harness.tokens


@pytest.mark.parametrize("row", REPRESENTATIVES, ids=case_of)
def test_passing_failure_ends_in_image_or_stays_unpaid(harness: Harness, row: Row) -> None:
    results = harness.run_with_retries(f"a fox [sandbox: {row.case} times=1]")

    if issubclass(getattr(exceptions, row.last or row.error), AirflowFailException):
        assert [name_of(result) for result in results] == [row.error, *([row.last] if row.last else [])]
        assert (harness.posts, harness.billed) == (1, row.payments)
    else:
        assert [name_of(result) for result in results] == [row.error, "image"]
        assert (harness.posts, harness.billed) == (2, 1)
        assert harness.outcomes() == ["not_billed", "complete"]
        assert results[-1]["usage"]["total_tokens"] == harness.tokens  # type: ignore[index]


@pytest.mark.parametrize("row", [row for row in REPRESENTATIVES if row.billed == "no"], ids=case_of)
def test_unbilled_failure_can_be_cleared(harness: Harness, row: Row) -> None:
    harness.fail(f"a fox [sandbox: {row.case} times=1]")

    manifest = harness.run(f"a fox [sandbox: {row.case} times=1]", try_number=2)

    assert manifest["usage"]["total_tokens"] == harness.tokens
    assert harness.billed == 1


@pytest.mark.parametrize("row", [row for row in REPRESENTATIVES if row.payments], ids=case_of)
def test_cleared_task_does_not_pay_again(harness: Harness, row: Row) -> None:
    prompt = f"a fox [sandbox: {row.case} times=1]"
    harness.fail(prompt)
    harness.time.skip(60)

    error = harness.fail(prompt, try_number=2)

    assert isinstance(error, exceptions.JojoKeyAlreadyBilledError)
    assert error.billed == row.billed
    assert "This attempt sent nothing" in error.message
    assert "no image was received" in error.message
    assert (harness.posts, harness.billed) == (1, 1)


PERMISSIONS = [{"on_unknown_outcome": "regenerate"}, {"reuse": "never"}]


@pytest.mark.parametrize("row", [row for row in REPRESENTATIVES if row.payments], ids=case_of)
@pytest.mark.parametrize("options", PERMISSIONS, ids=str)
def test_cleared_task_pays_again_on_request(harness: Harness, row: Row, options: dict[str, str]) -> None:
    prompt = f"a fox [sandbox: {row.case} times=1]"
    harness.fail(prompt)

    manifest = harness.run(prompt, try_number=2, **options)

    assert (harness.posts, harness.billed) == (2, 2)
    known = manifest["usage"]["total_tokens"]
    assert known == (harness.gateway.charges[1].total_tokens if row.billed == "unknown" else harness.tokens)


@pytest.mark.parametrize("options", PERMISSIONS, ids=str)
@pytest.mark.parametrize("case", ["not_an_image", "cloudflare_524", "truncated_mid_image"])
def test_retry_pays_again_on_request(harness: Harness, case: str, options: dict[str, str]) -> None:
    results = harness.run_with_retries(f"a fox [sandbox: {case} times=1]", **options)

    assert [name_of(result) for result in results] == ["JojoKeyUnknownOutcomeError", "image"]
    assert (harness.posts, harness.billed) == (2, 2)


@pytest.mark.parametrize("case", ["cloudflare_524", "reset", "hang", "cloudflare_522", "error_in_200"])
def test_gateway_without_log_leaves_outcome_unknown(harness: Harness, png: bytes, case: str) -> None:
    with Gateway(image=png, log=False) as silent:
        harness.gateway = silent
        harness.connect()

        results = harness.run_with_retries(f"a fox [sandbox: {case} times=1]")

        error = results[-1]
        assert isinstance(error, exceptions.JojoKeyAlreadyBilledError)
        assert error.billed == "unknown"
        assert "the gateway log cannot be read" in error.message
        assert harness.posts == 1


@pytest.mark.parametrize("options", [{"log": False}, {"log_limit": 0}], ids=str)
def test_unreadable_log_says_nothing_about_the_charge(
    harness: Harness, png: bytes, options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """The request for the log is free, but the log line is about one that was paid."""
    with Gateway(image=png, **options) as silent:
        harness.gateway = silent
        harness.connect()
        with caplog.at_level(logging.INFO):
            harness.run("a fox [sandbox: no_usage]")

        (line,) = (line for line in caplog.messages if "usage of a request is not known" in line)
        assert "HTTP" in line
        assert not re.search("charged|billed|Check", line)
        assert harness.billed == 1


@pytest.mark.parametrize("case", ["not_an_image", "empty_data"])
def test_unusable_response_may_be_billed_without_log(harness: Harness, png: bytes, case: str) -> None:
    with Gateway(image=png, log=False) as silent:
        harness.gateway = silent
        harness.connect()

        error = harness.fail(f"a fox [sandbox: {case}]")

        assert (name_of(error), error.billed) == ("JojoKeyReplyError", "unknown")
        assert_documented(error)


def test_rate_limited_log_is_read_again_later(harness: Harness, png: bytes) -> None:
    with Gateway(image=png, log_limit=0) as busy:
        harness.gateway = busy
        harness.connect()

        results = harness.run_with_retries("a fox [sandbox: error_in_200 times=1]", retries=2)

        assert [name_of(result) for result in results] == ["JojoKeyUnknownOutcomeError"] * 3
        assert harness.posts == 1


@pytest.mark.parametrize("host", ["http://127.0.0.1:9", "http://jojokey.invalid"])
def test_unreachable_gateway_costs_nothing(harness: Harness, host: str) -> None:
    harness.connect(host=host)

    results = harness.run_with_retries(retries=1)

    assert [name_of(result) for result in results] == ["JojoKeyUnreachableError"] * 2
    assert harness.outcomes() == ["not_billed", "not_billed"]
    assert harness.posts == 0


def test_large_image_gets_more_time_before_retry(harness: Harness) -> None:
    small = harness.fail("a fox [sandbox: reset]")
    large = harness.fail("an owl [sandbox: reset]", "owl.png", size="3840x2160", quality="high")

    assert small.retry_after is not None
    assert large.retry_after is not None
    assert large.retry_after > small.retry_after + 5


def test_logged_failure_is_retried_if_the_log_shows_charges(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence, "CHARGE_DELAY", 0.0)  # the gateway's clock can't be skipped
    harness.fail("a fox [sandbox: error_in_200 billed=no times=1]")
    harness.run("an owl", "owl.png", task="other")
    harness.time.skip(1_200)

    harness.run("a fox [sandbox: error_in_200 billed=no times=1]", try_number=2)

    assert harness.outcomes() == ["not_billed", "complete"]
    assert harness.billed == 2


def test_hook_resends_unbilled_request(harness: Harness) -> None:
    harness.connect(max_resends=2, max_resend_wait=5)

    manifest = harness.run("a fox [sandbox: rate_limited retry_after=0 times=2]")

    assert harness.posts == 3
    assert manifest["usage"]["total_tokens"] == harness.tokens
    assert harness.outcomes() == ["complete"]
    assert len(harness.receipt().attempts[0].sends) == 3


def test_content_error_in_200_is_not_billed_and_final(harness: Harness) -> None:
    def refuse(exchange: Exchange) -> None:
        log = {"success": True, "data": [{"type": 5, "request_id": "ours", "created_at": 1}]}
        refusal = {"error": {"message": "no", "code": "moderation_blocked"}}
        body = log if exchange.request.method == "GET" else refusal
        exchange.answer(200, json.dumps(body).encode(), X_Oneapi_Request_Id="ours")

    with Server(refuse) as server:
        harness.connect(host=server.url)
        results = harness.run_with_retries()
        posts = [request for request in server.requests if request.method == "POST"]

    assert name_of(results[-1]) == "JojoKeyContentError"
    assert len(posts) == len(results)


# --- before anything is paid -----------------------------------------------------------------------------------------


def test_connection_without_token_fails_first(harness: Harness) -> None:
    harness.connect(token=" ")

    assert isinstance(harness.fail(), exceptions.JojoKeyConnectionError)
    assert (harness.posts, harness.objects()) == (0, [])


def test_missing_bucket_costs_nothing(harness: Harness) -> None:
    error = harness.fail(bucket="nowhere-at-all")

    assert isinstance(error, exceptions.JojoKeyStoreError)
    assert "Create the bucket" in error.message
    assert "Nothing was sent or billed" in error.message
    assert harness.posts == 0


def test_unusable_spool_costs_nothing(harness: Harness, tmp_path: Path) -> None:
    (tmp_path / "a file").write_text("")
    harness.set(spool_directory=tmp_path / "a file" / "spool")

    error = harness.fail()

    assert isinstance(error, exceptions.JojoKeyStoreError)
    assert "spool_directory" in error.message
    assert harness.posts == 0


def test_full_disk_costs_nothing(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spools, "SPARE_BYTES", 10**18)

    error = harness.fail()

    assert isinstance(error, exceptions.JojoKeyStoreError)
    assert "almost full" in error.message
    assert "Nothing was sent or billed" in error.message
    assert harness.posts == 0
    assert harness.outcomes() == ["not_billed"]
    assert harness.spooled() == []


def test_late_claim_is_not_paid_for(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that slept between claim and request wakes up after other hosts gave up on it."""
    with monkeypatch.context() as slow:
        slow.setattr(send, "SEND_DEADLINE", -1.0)
        error = harness.fail()

    assert isinstance(error, exceptions.JojoKeyStoreError)
    assert "Nothing was sent or billed" in error.message
    assert harness.posts == 0
    assert harness.outcomes() == ["not_billed"]
    assert name_of(harness.end(try_number=2)) == "image"


def test_unreadable_receipt_stops_the_task(harness: Harness) -> None:
    harness.bucket.client().put_object(Bucket=harness.bucket.name, Key="_jojokey/fox.png.json", Body=b"{}")

    error = harness.fail(try_number=2)

    assert isinstance(error, exceptions.JojoKeyReceiptError)
    assert "delete it" in error.message
    assert harness.posts == 0


def test_receipt_keeps_few_unbilled_attempts(harness: Harness) -> None:
    for number in range(1, 15):
        harness.fail("a fox [sandbox: no_channel]", try_number=number)

    assert harness.outcomes() == ["not_billed"] * 10


# --- responses that break off ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("end", ["fin", "rst"])
def test_response_without_end_succeeds_with_all_images(harness: Harness, n: int, end: str) -> None:
    manifest = harness.run(f"a fox [sandbox: ok truncate_after={n} end={end}]", n=n)

    assert len(manifest["images"]) == n
    assert harness.outcomes() == ["complete"]
    assert manifest["usage"]["total_tokens"] == harness.tokens  # from the gateway log
    assert harness.posts == 1


def test_images_of_broken_response_are_stored(harness: Harness) -> None:
    error = harness.fail("a fox [sandbox: truncated truncate_after=2]", n=3)

    uris = [f"s3://{harness.bucket.name}/fox-{index}.png" for index in (0, 1)]
    assert f"2 of 3 images were received and stored: {', '.join(uris)}" in error.message
    (attempt,) = harness.receipt().attempts
    assert (attempt.outcome, attempt.billed) == (Outcome.BILLED, "yes")
    assert [image.uri for image in attempt.images] == uris
    assert harness.read("fox-0.png") == harness.read("fox-1.png") != b""


@pytest.mark.parametrize("case", ["sse_broken", "sse_error_event", "sse_no_completed"])
def test_preview_of_lost_image_is_kept(harness: Harness, case: str) -> None:
    error = harness.fail(f"a fox [sandbox: {case}]", stream=True, partial_images=2)

    (attempt,) = harness.receipt().attempts
    assert attempt.preview is not None
    assert attempt.preview.key.startswith("_jojokey/fox.png.")
    assert attempt.preview.uri in error.message
    assert harness.read(attempt.preview.key)
    assert harness.billed == 1


@pytest.mark.parametrize("streams", ["supported", "ignored"])
def test_stream_delivers_images(harness: Harness, png: bytes, streams: Any) -> None:
    with Gateway(image=png, stream=streams) as other:
        harness.gateway = other
        harness.connect()

        manifest = harness.run(stream=True, partial_images=1, n=2)

        assert [harness.read(image["key"]) for image in manifest["images"]] == [png, png]
        assert manifest["usage"]["total_tokens"] == harness.tokens
        assert harness.spooled() == []


@pytest.mark.parametrize("part", [1.0, 0.9])
def test_image_in_an_error_response_is_paid_once(harness: Harness, png: bytes, part: float) -> None:
    image = base64.b64encode(png).decode()
    body = {"error": {"message": "too busy"}, "data": [{"b64_json": image[: int(len(image) * part)]}]}

    def behave(exchange: Exchange) -> None:
        if exchange.request.method == "POST":
            exchange.answer(503, json.dumps(body).encode(), X_Oneapi_Request_Id="2026")
        else:
            exchange.answer(404)

    with Server(behave) as server:
        harness.connect(host=server.url, max_resends=2, max_resend_wait=30)
        if part == 1.0:
            harness.run()
            harness.run(try_number=2)
            assert harness.read("fox.png") == png
            assert harness.outcomes() == ["complete"]
        else:
            errors = [harness.fail(try_number=number) for number in (1, 2)]
            assert all(error.billed != "no" for error in errors)
        assert sum(request.method == "POST" for request in server.requests) == 1
