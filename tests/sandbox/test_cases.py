"""Each case responds as its row in the table describes."""

from __future__ import annotations

import base64
import gzip
import http.client
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from airflow_provider_jojokey.sandbox import CASES, Case, Gateway
from tests.support.patience import PATIENCE
from tests.support.sandbox_client import Post

WITH_STATUS = [case for case in CASES.values() if case.status is not None]
HANGING = {"hang", "stalls", "sse_hang", "sse_open"}
BROKEN = {"truncated", "truncated_mid_image", "sse_broken", "no_last_chunk", "long_content_length"}
INTERIM = {"interim_102", "interim_103"}
"""Cases whose first response Python's own client mistakes for the final one."""
READABLE = [case for case in WITH_STATUS if case.name not in HANGING | BROKEN | INTERIM]


def named(case: Case) -> str:
    return case.name


def raw_post(gateway: Gateway, prompt: str, **body: Any) -> http.client.HTTPResponse:
    """A client without redirects and decompression."""
    address = urlsplit(gateway.url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=PATIENCE)
    connection.request(
        "POST",
        "/v1/images/generations",
        json.dumps({"model": "gpt-image-2", "prompt": prompt, **body}),
        {
            "Authorization": f"Bearer {gateway.token}",
            "Content-Type": "application/json",
            "Accept": "application/json",
        },
    )
    return connection.getresponse()


@pytest.mark.parametrize("case", READABLE, ids=named)
def test_case_has_its_status_and_billing(case: Case, gateway: Gateway, post: Post) -> None:
    reply = post(f"a fox [sandbox: {case.name}]", n=2)

    assert reply.status_code == case.status
    assert bool(gateway.charges) == case.billed
    (record,) = gateway.settlements
    assert record.case == case.name
    assert record.status == case.status
    assert record.delivered == (case.stream_fault in (None, "none"))


@pytest.mark.parametrize("case", READABLE, ids=named)
def test_only_forwarded_requests_have_a_request_id(case: Case, gateway: Gateway, post: Post) -> None:
    reply = post(f"a fox [sandbox: {case.name}]")

    from_gateway = case.origin in ("gateway", "upstream")
    assert ("X-Oneapi-Request-Id" in reply.headers) == from_gateway
    assert ("CF-RAY" in reply.headers) == (case.origin == "cloudflare")
    if from_gateway:
        assert reply.headers["X-Oneapi-Request-Id"] == gateway.settlements[0].request_id


@pytest.mark.parametrize("case", [case for case in READABLE if case.status and case.status >= 400], ids=named)
def test_error_has_no_image(case: Case, post: Post) -> None:
    assert "b64_json" not in post(f"a fox [sandbox: {case.name}]").text


@pytest.mark.parametrize(
    "case",
    [case for case in CASES.values() if case.good and not case.odd and not case.stream_fault],
    ids=named,
)
def test_successful_case_has_images(case: Case, gateway: Gateway, post: Post, image: bytes) -> None:
    reply = post(f"a fox [sandbox: {case.name}]", n=2).json()

    assert len(reply["data"]) == 2
    for item in reply["data"]:
        source = item.get("url") or item["b64_json"]
        if source.startswith("http"):
            assert requests.get(source, timeout=PATIENCE).content == image
        else:
            assert base64.b64decode(source.rpartition(",")[2], validate=True) == image


@pytest.mark.parametrize("name", ["hang", "stalls", "sse_hang"])
def test_hanging_case_is_billed_and_ends_with_the_client(name: str, gateway: Gateway, post: Post) -> None:
    with pytest.raises((requests.Timeout, requests.ConnectionError)):
        post(f"a fox [sandbox: {name}]", timeout=0.3)

    gateway.wait_until_idle(PATIENCE)
    (record,) = gateway.charges
    assert not record.delivered


@pytest.mark.parametrize(
    "prompt", ["a fox [sandbox: hang]", "a fox [sandbox: delay=60]", "a fox [sandbox: drip=60]"]
)
def test_reset_ends_the_requests_in_flight(prompt: str, gateway: Gateway, post: Post) -> None:
    with ThreadPoolExecutor(1) as pool:
        response = pool.submit(post, prompt)
        gateway.wait_for_request(timeout=PATIENCE)
        gateway.reset()

        assert gateway.in_flight == 0
        assert gateway.charges == gateway.requests == ()
        with pytest.raises(requests.RequestException):
            response.result(timeout=PATIENCE)


@pytest.mark.parametrize("name", ["reset", "close"])
def test_connection_without_a_response_is_billed(name: str, gateway: Gateway, post: Post) -> None:
    with pytest.raises(requests.ConnectionError) as caught:
        post(f"a fox [sandbox: {name}]")

    assert ("reset" in str(caught.value).lower()) == (name == "reset")
    (record,) = gateway.charges
    assert record.status is None
    assert not record.delivered


@pytest.mark.parametrize("end", ["fin", "rst"])
@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("whole", [0, 1, 2, 3])
def test_truncated_response_has_complete_images(end: str, framing: str, whole: int, gateway: Gateway) -> None:
    directive = f"[sandbox: truncated truncate_after={whole} end={end} framing={framing}]"
    reply = raw_post(gateway, f"a fox {directive}", n=3)
    received = b""
    broken = http.client.IncompleteRead if end == "fin" else ConnectionResetError
    with pytest.raises(broken):  # noqa: PT012
        while True:
            part = reply.read1(8192)
            received += part
            if not part:
                # http.client accepts a connection that closes before the announced length as complete.
                raise http.client.IncompleteRead(received)

    assert received.count(b'"}') == whole
    assert gateway.charges
    assert not gateway.charges[0].delivered


def test_response_breaks_off_inside_an_image(gateway: Gateway, image: bytes) -> None:
    reply = raw_post(gateway, "a fox [sandbox: truncated_mid_image truncate_after=1]", n=2)
    with pytest.raises(http.client.IncompleteRead) as caught:
        reply.read()

    received = caught.value.partial
    assert received.count(b'"}') == 1
    assert len(received) > 1.4 * len(base64.b64encode(image))


def test_response_breaks_off_after_any_byte(gateway: Gateway) -> None:
    reply = raw_post(gateway, "a fox [sandbox: cut=17]")
    with pytest.raises(http.client.IncompleteRead) as caught:
        reply.read()

    assert len(caught.value.partial) == 17


def test_broken_stream_has_previews(gateway: Gateway, post: Post) -> None:
    with pytest.raises(requests.RequestException):
        post("a fox [sandbox: sse_broken]", stream=True, partial_images=1)
    reply = raw_post(gateway, "a fox [sandbox: sse_broken]", stream=True, partial_images=1)
    with pytest.raises(http.client.IncompleteRead) as caught:
        reply.read()

    received = caught.value.partial
    assert received.startswith(b": PING\n\n")
    assert received.count(b"event: image_generation.partial_image") == 1
    assert len(gateway.charges) == 2


def test_stream_contains_a_bare_json_error(post: Post) -> None:
    text = post("a fox [sandbox: sse_raw_error]", stream=True).text

    assert '\n{"error": {' in text
    assert "completed" not in text


def test_compressed_response_is_compressed(gateway: Gateway) -> None:
    reply = raw_post(gateway, "a fox [sandbox: gzip]")

    assert reply.headers["Content-Encoding"] == "gzip"
    assert json.loads(gzip.decompress(reply.read()))["data"]


def test_keys_have_the_requested_order(gateway: Gateway) -> None:
    first = list(json.loads(raw_post(gateway, "a fox [sandbox: usage_first]").read()))
    last = list(json.loads(raw_post(gateway, "a fox [sandbox: data_last]").read()))

    assert first[0] == "usage"
    assert last[-1] == "data"


def test_slashes_are_escaped(gateway: Gateway) -> None:
    body = raw_post(gateway, "a fox [sandbox: escaped_base64]").read()

    assert b"\\/" in body
    assert body.count(b"/") == body.count(b"\\/")


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirect_has_a_location(status: int, gateway: Gateway, post: Post) -> None:
    reply = post(f"a fox [sandbox: redirect_{status} to=http://127.0.0.1:9/x]")

    assert reply.status_code == status
    assert reply.headers["Location"] == "http://127.0.0.1:9/x"


def test_followed_redirect_records_the_token(gateway: Gateway) -> None:
    headers = {"Authorization": f"Bearer {gateway.token}"}
    body = {"model": "gpt-image-2", "prompt": "a fox [sandbox: redirect_307]"}
    requests.post(f"{gateway.url}/v1/images/generations", json=body, headers=headers, timeout=PATIENCE)

    assert [request.path for request in gateway.requests] == ["/v1/images/generations", "/sandbox/elsewhere"]
    assert gateway.requests[1].authorised


# --- errors in detail -------------------------------------------------------------------------------------------


def test_messages_are_in_both_languages(post: Post) -> None:
    english = post("a fox [sandbox: no_channel]").json()["error"]
    chinese = post("a fox [sandbox: no_channel lang=zh]").json()["error"]

    assert english["message"].startswith(
        "No available channel for model gpt-image-2 under group default (distributor)"
    )
    assert chinese["message"].startswith("分组 default 下模型 gpt-image-2 无可用渠道")
    assert english["code"] == chinese["code"] == "model_not_found"
    assert english["type"] == "new_api_error"
    assert "(request id: 20" in english["message"]


def test_rate_limit_has_optional_retry_after_and_body(post: Post) -> None:
    plain = post("a fox [sandbox: rate_limited]")
    delayed = post("a fox [sandbox: rate_limited_retry_after retry_after=7]")
    empty = post("a fox [sandbox: rate_limited_empty]")

    assert plain.json()["error"]["code"] == ""
    assert "Retry-After" not in plain.headers
    assert delayed.headers["Retry-After"] == "7"
    assert empty.content == b""
    assert "Retry-After" not in empty.headers


@pytest.mark.parametrize("number", [502, 504, 520, 521, 522, 523, 524, 525, 526, 1010, 1020])
def test_cloudflare_error_follows_the_accept_header(number: int, post: Post) -> None:
    problem = post(f"a fox [sandbox: cloudflare_{number}]", headers={"Accept": "application/json"})
    page = post(f"a fox [sandbox: cloudflare_{number}]", headers={"Accept": "*/*"})
    text = post(f"a fox [sandbox: cloudflare_{number} body=text]")

    assert problem.json()["cloudflare_error"] is True
    assert problem.json()["error_code"] == number
    assert page.text.startswith("<!DOCTYPE html>")
    assert text.text == f"error code: {number}"
    assert problem.status_code == page.status_code == text.status_code == (403 if number > 1000 else number)


def test_error_is_configurable(post: Post) -> None:
    reply = post('a fox [sandbox: error status=418 code=teapot message="no coffee" retry_after=3]')

    assert reply.status_code == 418
    assert reply.json()["error"]["code"] == "teapot"
    assert reply.json()["error"]["message"].startswith("no coffee")
    assert reply.headers["Retry-After"] == "3"


# --- directives in prompts -----------------------------------------------------------------------------------------


def test_directive_with_times_expires(post: Post) -> None:
    statuses = [post("a fox [sandbox: no_channel times=2]").status_code for _ in range(4)]

    assert statuses == [503, 503, 200, 200]


def test_times_are_counted_for_each_prompt(post: Post) -> None:
    assert post("a fox [sandbox: no_channel times=1]").status_code == 503
    assert post("a cat [sandbox: no_channel times=1]").status_code == 503
    assert post("a fox [sandbox: no_channel times=1]").status_code == 200


def test_directives_follow_one_another(post: Post) -> None:
    prompt = "a fox [sandbox: no_channel times=1] [sandbox: cloudflare_524 times=1]"

    assert [post(prompt).status_code for _ in range(3)] == [503, 524, 200]


def test_behaviors_are_queued_and_can_be_reset(gateway: Gateway, post: Post) -> None:
    gateway.behave("no_channel", times=1)
    gateway.behave("cloudflare_524", times=1, billed=False)
    gateway.behave("upstream_500")

    assert [post().status_code for _ in range(4)] == [503, 524, 500, 500]
    gateway.behave_well()
    assert post().status_code == 200
    assert len(gateway.charges) == 1


def test_behavior_is_set_over_http(gateway: Gateway, post: Post) -> None:
    arguments = {"case": "no_channel", "times": 1}
    assert requests.post(f"{gateway.url}/sandbox/behave", json=arguments, timeout=PATIENCE).ok

    assert [post().status_code for _ in range(2)] == [503, 200]
    assert (
        requests.post(f"{gateway.url}/sandbox/behave", json={"case": "typo"}, timeout=PATIENCE).status_code
        == 400
    )


@pytest.mark.parametrize("directive", ["no_chanel", "ok dealy=1", "ok delay=soon", "ok twice", "ok 'open"])
def test_invalid_directive_is_rejected(directive: str, post: Post) -> None:
    reply = post(f"a fox [sandbox: {directive}]")

    assert reply.status_code == 400
    assert reply.json()["error"]["code"] == "sandbox_directive"


def test_unknown_behavior_is_rejected(gateway: Gateway) -> None:
    with pytest.raises(ValueError, match="Unknown sandbox case 'typo'"):
        gateway.behave("typo")
    with pytest.raises(ValueError, match="Unknown sandbox option 'dealy'"):
        gateway.behave("ok", dealy=1)


def test_body_is_sent_slowly(gateway: Gateway) -> None:
    reply = raw_post(gateway, "a fox [sandbox: drip=0.3]")
    started = reply.read1(100)
    record = gateway.charges[0]

    assert started
    assert not record.delivered
    assert len(json.loads(started + reply.read())["data"]) == 1
    assert gateway.charges[0].delivered
