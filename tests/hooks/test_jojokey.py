"""The hook: its connection, the requests that it repeats, and the connection test."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from airflow.providers.common.compat.sdk import AirflowFailException
from rich.pretty import pretty_repr

from airflow_provider_jojokey import exceptions as errors
from airflow_provider_jojokey.hooks.jojokey import ConnectionSettings, JojoKeyHook
from airflow_provider_jojokey.img2 import ImageRequest
from airflow_provider_jojokey.img2.images import ImageFile
from airflow_provider_jojokey.sandbox import Gateway
from tests.support.loopback import Authority, Server, proxy
from tests.support.patience import PATIENCE

TOKEN = "sk-only-for-tests-0123456789"
FOX = ImageRequest("a fox")

Connect = Callable[..., JojoKeyHook]


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Connect:
    """Make a hook for a connection, given as a URI, or as the fields of its JSON form."""

    def make(uri: str | None = None, **fields: Any) -> JojoKeyHook:
        conn = uri or json.dumps({"conn_type": "jojokey", "password": TOKEN, **fields})
        monkeypatch.setenv("AIRFLOW_CONN_JOJOKEY_TEST", conn)
        return JojoKeyHook("jojokey_test")

    return make


@pytest.fixture
def hook(gateway: Gateway, connect: Connect) -> JojoKeyHook:
    """A hook for the sandbox gateway."""
    return connect(host=gateway.url, password=gateway.token, extra={"read_timeout": 10})


@pytest.fixture
def read_logs(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    """Return a function that reads all output and log records so far."""
    output: list[str] = []

    def read() -> str:
        output.extend(capsys.readouterr())
        return "".join(output) + caplog.text

    return read


def request_for(directive: str, **fields: Any) -> ImageRequest:
    return ImageRequest(f"a fox [sandbox: {directive}]", **fields)


def error_of(call: Callable[[], Any]) -> errors.JojoKeyError:
    with pytest.raises(errors.JojoKeyError) as caught:
        call()
    return caught.value


# --- the connection ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("connection", "base_url"),
    [
        (f"jojokey://:{TOKEN}@", "https://api.jojokey.com"),
        (f"jojokey://:{TOKEN}@api.jojokey.com", "https://api.jojokey.com"),
        (f"jojokey://:{TOKEN}@api.jojokey.com/", "https://api.jojokey.com"),
        (f"jojokey://:{TOKEN}@api.jojokey.com/v1", "https://api.jojokey.com"),
        (f"jojokey://:{TOKEN}@api.jojokey.com:8443/v1", "https://api.jojokey.com:8443"),
        (f"jojokey://:{TOKEN}@127.0.0.1:8080/http", "http://127.0.0.1:8080"),
        (f"jojokey://:{TOKEN}@127.0.0.1:8080/https", "https://127.0.0.1:8080"),
        (f"jojokey://:{TOKEN}@[::1]:8080/http", "http://[::1]:8080"),
        (f"jojokey://http://:{TOKEN}@127.0.0.1:8080/v1", "http://127.0.0.1:8080"),
        (f"jojokey://:{TOKEN}@http%3A%2F%2F127.0.0.1%3A8080%2Fv1%2F", "http://127.0.0.1:8080"),
        ({}, "https://api.jojokey.com"),
        (
            {"host": None, "schema": None, "port": None, "login": None, "extra": None},
            "https://api.jojokey.com",
        ),
        ({"host": "", "schema": "", "port": 0, "extra": ""}, "https://api.jojokey.com"),
        ({"host": " https://api.jojokey.com/v1/ "}, "https://api.jojokey.com"),
        ({"host": "http://127.0.0.1", "port": 8080}, "http://127.0.0.1:8080"),
        ({"host": "http://127.0.0.1/v1", "port": 8080}, "http://127.0.0.1:8080"),
        ({"host": "http://127.0.0.1:9090/v1", "port": 8080}, "http://127.0.0.1:9090"),
        ({"host": "http://[::1]", "port": 8080}, "http://[::1]:8080"),
        ({"host": "http://[::1]:9090", "port": 8080}, "http://[::1]:9090"),
        ({"host": "localhost:8080", "schema": "http"}, "http://localhost:8080"),
        ({"host": "gateway.example.com/jojokey/v1"}, "https://gateway.example.com/jojokey"),
        ({"host": "::1", "schema": "http", "port": 80}, "http://[::1]:80"),
    ],
)
def test_base_url_is_read_from_any_form_of_connection(
    connect: Connect, connection: str | dict[str, Any], base_url: str
) -> None:
    hook = connect(connection) if isinstance(connection, str) else connect(**connection)
    assert hook.client.base_url == base_url
    assert hook.settings.token == TOKEN


@pytest.mark.parametrize("written", [TOKEN, f" {TOKEN}\n", f"Bearer {TOKEN}", f"bearer  {TOKEN}"])
def test_pasted_token_is_normalized(connect: Connect, written: str) -> None:
    assert connect(password=written).settings.token == TOKEN


def test_connection_without_extra_has_defaults(connect: Connect) -> None:
    assert connect().settings == ConnectionSettings(
        token=TOKEN,
        host=None,
        default_model="gpt-image-2",
        connect_timeout=10,
        read_timeout=300,
        max_resends=2,
        max_resend_wait=60,
        verify=True,
        proxy=None,
    )


@pytest.mark.parametrize("empty", [None, ""])
def test_empty_fields_of_a_saved_form_are_unset(connect: Connect, empty: str | None) -> None:
    names = (
        "default_model",
        "connect_timeout",
        "read_timeout",
        "max_resends",
        "max_resend_wait",
        "verify",
        "proxy",
    )
    assert connect(extra=dict.fromkeys(names, empty)).settings == connect().settings


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("default_model", " gpt-image-3 ", "gpt-image-3"),
        ("connect_timeout", 2.5, 2.5),
        ("connect_timeout", "2.5", 2.5),
        ("read_timeout", 600, 600.0),
        ("read_timeout", "600", 600.0),
        ("max_resends", 0, 0),
        ("max_resends", "3", 3),
        ("max_resends", 3.0, 3),
        ("max_resend_wait", 0, 0.0),
        ("max_resend_wait", "1.5", 1.5),
        ("verify", True, True),
        ("verify", False, False),
        ("verify", "true", True),
        ("verify", "False", False),
        ("verify", __file__, __file__),
        ("proxy", "http://proxy.example.com:3128", "http://proxy.example.com:3128"),
        ("proxy", "proxy.example.com:3128", "http://proxy.example.com:3128"),
        ("proxy", "socks5h://proxy.example.com", "socks5h://proxy.example.com"),
    ],
)
def test_extra_is_read_from_json_and_uri(connect: Connect, name: str, value: Any, read: Any) -> None:
    found = getattr(connect(extra={name: value}).settings, name)
    assert (found, type(found)) == (read, type(read))
    if isinstance(value, str):
        from urllib.parse import urlencode

        query = urlencode({name: value})
        assert getattr(connect(f"jojokey://:{TOKEN}@?{query}").settings, name) == read


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("default_model", 5),
        *[(name, value) for name in ("connect_timeout", "read_timeout")
          for value in (0, -1, "soon", True, [10], {"s": 1}, float("nan"), float("inf"), 1e9)],
        *[("max_resends", value) for value in (-1, 11, 1.5, "two", True, [1], float("inf"))],
        *[("max_resend_wait", value) for value in (-1, "long", False, [1], float("nan"))],
        *[("verify", value) for value in (0, 1, "yes", "/nowhere/ca.pem", [])],
        *[("proxy", value) for value in (5, "://", "http://", "ftp://joe:s3cret@proxy", "http://joe:s3cret@proxy:port")],
    ],
)  # fmt: skip
def test_invalid_extra_is_rejected_by_name(connect: Connect, name: str, value: Any) -> None:
    error = error_of(lambda: connect(extra={name: value}).settings)
    assert isinstance(error, errors.JojoKeyConnectionError)
    for words in (name, "jojokey_test", "Nothing was sent"):
        assert words in str(error)
    assert "s3cret" not in str(error)
    assert TOKEN not in str(error)


@pytest.mark.parametrize("extra", ["no json", "[1]", '"text"', "7", "{"])
def test_extra_that_is_not_an_object_is_rejected(connect: Connect, extra: str) -> None:
    error = error_of(lambda: connect(extra=extra).settings)
    if "did not find" in str(error):  # Airflow 3.1 itself refuses such a connection
        return
    assert isinstance(error, errors.JojoKeyConnectionError)
    assert "extra" in str(error)


@pytest.mark.parametrize("definition", [None, "{", "https://[::1"])
def test_connection_that_is_not_found_is_named(
    definition: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if (
        definition is not None
    ):  # Airflow doesn't distinguish an invalid definition, or a failed backend, from none
        monkeypatch.setenv("AIRFLOW_CONN_ABSENT", definition)
    error = error_of(lambda: JojoKeyHook("absent").client)
    text = str(error)
    assert "'absent'" in text
    assert "Nothing was sent or billed. If it doesn't exist, add it: airflow connections add absent" in text
    assert not isinstance(error, AirflowFailException)  # a retry may find it


@pytest.mark.parametrize("password", [None, "", "   ", "Bearer "])
def test_connection_without_a_token_is_rejected(connect: Connect, password: str | None) -> None:
    error = error_of(lambda: connect(password=password).get_conn())
    assert isinstance(error, errors.JojoKeyConnectionError)
    assert "password" in str(error)


@pytest.mark.parametrize("password", ["sk-令牌", "sk-a b", "sk-a\x00b", "sk-a\nb"])
def test_malformed_token_is_rejected_and_not_shown(connect: Connect, password: str) -> None:
    error = error_of(lambda: connect(password=password).get_conn())
    assert isinstance(error, errors.JojoKeyConnectionError)
    assert password not in str(error)
    assert "token" in str(error)


@pytest.mark.parametrize(
    "host", ["ftp://api.jojokey.com", "https://joe:s3cret@host", "https://host:port", "https://[::1"]
)
@pytest.mark.parametrize("port", [None, 8080])
def test_invalid_base_url_is_rejected(connect: Connect, host: str, port: int | None) -> None:
    error = error_of(lambda: connect(host=host, port=port).client)
    assert isinstance(error, errors.JojoKeyConnectionError)
    assert "base URL" in str(error)
    assert "s3cret" not in str(error)


def test_settings_hide_the_token(connect: Connect) -> None:
    settings = connect().settings
    assert settings.token == TOKEN
    assert not any(TOKEN in shown([settings]) for shown in (repr, str, pretty_repr))


def test_get_conn_is_an_authenticated_session(gateway: Gateway, hook: JojoKeyHook) -> None:
    session = hook.get_conn()
    assert isinstance(session, requests.Session)
    assert session.get(f"{gateway.url}/v1/models", timeout=PATIENCE).json()["data"][0]["id"] == "gpt-image-2"


def test_connection_settings_reach_the_client(
    connect: Connect, gateway: Gateway, authority: Authority
) -> None:
    with proxy() as proxy_server:
        hook = connect(
            host=gateway.url,
            password=gateway.token,
            extra={
                "connect_timeout": 3,
                "read_timeout": 4,
                "proxy": proxy_server.url,
                "verify": str(authority.bundle),
            },
        )
        hook.list_models()
    assert len(proxy_server.requests) == 1
    assert hook.client.timeout == (3, 4)
    assert hook.get_conn().verify == str(authority.bundle)


def test_socks_proxy_without_its_package_is_explained() -> None:
    code = """
import sys
sys.modules["socks"] = None  # as if PySocks were not installed
from airflow_provider_jojokey.img2 import Client, ImageRequest, Img2Error
from airflow_provider_jojokey.exceptions import JojoKeyError
try:
    Client("sk-x", "http://127.0.0.1:9", proxy="socks5://127.0.0.1:9").generate(ImageRequest("a fox"))
except Img2Error as error:
    print(type(JojoKeyError.of(error)).__name__, error.billed, error)
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert answer.startswith("JojoKeyBaseUrlError no ")
    assert "Install requests[socks]" in answer


# --- generating ----------------------------------------------------------------------------------------------------


def test_hook_generates_an_image(gateway: Gateway, hook: JojoKeyHook, png: bytes, tmp_path: Path) -> None:
    generation = hook.generate(FOX, lambda index: ImageFile(tmp_path / f"{index}.part"))
    generation.close()
    assert (tmp_path / "0.image").read_bytes() == png
    assert generation.request_id == gateway.charges[0].request_id


GOOD_AT_LAST = ["no_channel", "overloaded_cpu", "rate_limited_retry_after", "rate_limited_empty", "upstream_500",
                "upstream_unreachable", "cloudflare_521", "cloudflare_523"]  # fmt: skip


@pytest.mark.parametrize("case", GOOD_AT_LAST)
def test_unbilled_transient_failure_is_resent(
    gateway: Gateway, hook: JojoKeyHook, case: str, read_logs: Callable[[], str]
) -> None:
    hook.generate(request_for(f"{case} times=2 retry_after=0.01 body=html")).close()
    assert len(gateway.requests) == 3
    assert len(gateway.charges) == 1
    assert read_logs().count("Resending the request") == 2
    assert gateway.token not in read_logs()


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("no_channel", errors.JojoKeyNoChannelError),
        ("overloaded_memory", errors.JojoKeyOverloadedError),
        ("rate_limited", errors.JojoKeyRateLimitError),
        ("upstream_garbled", errors.JojoKeyOverloadedError),
        ("cloudflare_521 body=html", errors.JojoKeyUnreachableError),
    ],
)
def test_request_is_sent_at_most_three_times(
    gateway: Gateway, hook: JojoKeyHook, case: str, expected: type[errors.JojoKeyError]
) -> None:
    error = error_of(lambda: hook.generate(request_for(f"{case} retry_after=0.01")))
    assert type(error) is expected
    assert len(gateway.requests) == 3
    assert gateway.charges == ()
    assert error.billed == "no"


@pytest.mark.parametrize(
    ("case", "expected", "billed"),
    [
        ("invalid_token", errors.JojoKeyTokenError, "no"),
        ("group_denied", errors.JojoKeyAccessError, "no"),
        ("ip_denied", errors.JojoKeyAccessError, "no"),
        ("wallet_empty", errors.JojoKeyQuotaError, "no"),
        ("token_quota_short", errors.JojoKeyQuotaError, "no"),
        ("bad_json", errors.JojoKeyRequestError, "no"),
        ("invalid_request", errors.JojoKeyRequestError, "no"),
        ("sensitive_words", errors.JojoKeyContentError, "no"),
        ("moderation_blocked", errors.JojoKeyContentError, "no"),
        ("violation_fee", errors.JojoKeyContentError, "yes"),
        ("cloudflare_502", errors.JojoKeyUnknownOutcomeError, "unknown"),
        ("cloudflare_520 retry_after=0.01", errors.JojoKeyUnknownOutcomeError, "unknown"),
        ("cloudflare_522", errors.JojoKeyUnknownOutcomeError, "unknown"),
        ("cloudflare_524 retry_after=0.01", errors.JojoKeyUnknownOutcomeError, "unknown"),
        ("cloudflare_525", errors.JojoKeyTLSError, "no"),
        ("cloudflare_1020", errors.JojoKeyEdgeBlockedError, "no"),
        ("nginx_502", errors.JojoKeyUnknownOutcomeError, "unknown"),
        ("nginx_504", errors.JojoKeyUnknownOutcomeError, "unknown"),
        ("reset", errors.JojoKeyUnknownOutcomeError, "unknown"),
        ("close", errors.JojoKeyUnknownOutcomeError, "unknown"),
        ("redirect_307", errors.JojoKeyBaseUrlError, "no"),
        ("error_in_200", errors.JojoKeyUnknownOutcomeError, "unknown"),
        ("html_in_200", errors.JojoKeyBaseUrlError, "no"),
        ("no_data", errors.JojoKeyReplyError, "yes"),
        ("bad_base64", errors.JojoKeyReplyError, "yes"),
        ("not_an_image", errors.JojoKeyReplyError, "yes"),
        ("truncated_mid_image", errors.JojoKeyReplyError, "yes"),
    ],
)
def test_billed_or_permanent_failure_is_not_resent(
    gateway: Gateway, hook: JojoKeyHook, case: str, expected: type[errors.JojoKeyError], billed: str
) -> None:
    error = error_of(lambda: hook.generate(request_for(case)))
    assert type(error) is expected
    assert error.billed == billed
    assert len(gateway.requests) == 1
    assert (gateway.charges == ()) or billed != "no" or case == "html_in_200"


@pytest.mark.parametrize("status", [408, 500, 502, 503, 504])
def test_proxy_error_in_openai_format_is_not_the_gateways(connect: Connect, status: int) -> None:
    body = b'{"error":{"message":"upstream request timeout","type":"timeout","code":"timeout"}}'
    with Server(lambda exchange: exchange.answer(status, body)) as server:
        error = error_of(lambda: connect(host=server.url).generate(ImageRequest("a fox")))
        assert len(server.requests) == 1
    assert isinstance(error, errors.JojoKeyUnknownOutcomeError)
    assert error.billed == "unknown"


@pytest.mark.parametrize("resends", [0, 1, 4])
def test_connection_sets_number_of_resends(gateway: Gateway, connect: Connect, resends: int) -> None:
    hook = connect(host=gateway.url, password=gateway.token, extra={"max_resends": resends})
    error_of(lambda: hook.generate(request_for("no_channel retry_after=0.01")))
    assert len(gateway.requests) == 1 + resends


def test_resend_waits_for_retry_after(gateway: Gateway, hook: JojoKeyHook) -> None:
    hook.generate(request_for("rate_limited times=1 retry_after=0.3")).close()
    first, second = gateway.requests
    assert 0.3 <= second.time - first.time < 2


def test_wait_over_the_limit_is_left_to_airflow(gateway: Gateway, connect: Connect) -> None:
    hook = connect(host=gateway.url, password=gateway.token, extra={"max_resend_wait": 2})
    error = error_of(lambda: hook.generate(request_for("rate_limited retry_after=2.5")))
    assert len(gateway.requests) == 1
    assert error.retry_after == 2.5

    error = error_of(lambda: hook.generate(request_for("no_channel retry_after=1.2")))
    assert len(gateway.requests) == 3, "the waits count together"
    assert error.retry_after == 1.2


def test_log_says_how_long_a_delay_the_gateway_requests(
    gateway: Gateway, connect: Connect, read_logs: Callable[[], str]
) -> None:
    hook = connect(host=gateway.url, password=gateway.token, extra={"max_resend_wait": 1})
    error = error_of(lambda: hook.generate(request_for("rate_limited retry_after=604800")))
    assert (len(gateway.requests), error.retry_after) == (1, 604_800)
    assert "requests a delay of 604800 s. The hook doesn't resend" in read_logs()
    assert "max_resend_wait is 1 s" in read_logs()


def test_wait_grows_and_counts_without_retry_after(gateway: Gateway, connect: Connect) -> None:
    hook = connect(host=gateway.url, password=gateway.token, extra={"max_resend_wait": 1})
    error_of(lambda: hook.generate(request_for("no_channel")))
    assert len(gateway.requests) == 1, "the first wait alone is about two seconds"


def test_unreachable_gateway_is_retried(connect: Connect, read_logs: Callable[[], str]) -> None:
    hook = connect(host="http://127.0.0.1:9", extra={"max_resend_wait": 2.6, "max_resends": 1})
    error = error_of(lambda: hook.generate(FOX))
    assert type(error) is errors.JojoKeyUnreachableError
    assert read_logs().count("Resending the request") == 1


def test_rejected_token_is_explained(gateway: Gateway, connect: Connect) -> None:
    for token, words in (
        ("sk-expired", "expired on"),
        ("sk-exhausted", "used up"),
        ("sk-unknown", "does not know"),
    ):
        error = error_of(lambda t=token: connect(host=gateway.url, password=t).generate(FOX))
        assert type(error) is errors.JojoKeyTokenError
        assert words in str(error)
        assert token not in str(error)
    assert gateway.charges == ()


def test_abort_ends_requests_in_flight_and_waits(
    gateway: Gateway, hook: JojoKeyHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_rest = threading.Event()
    monkeypatch.setattr(hook, "_log_resend", lambda state: at_rest.set())
    with ThreadPoolExecutor() as pool:
        flying = pool.submit(error_of, lambda: hook.generate(request_for("hang")))
        resting = pool.submit(error_of, lambda: hook.generate(request_for("no_channel retry_after=50")))
        gateway.wait_for_request(2, timeout=PATIENCE)
        assert at_rest.wait(PATIENCE)
        started = time.monotonic()
        hook.abort()
        assert flying.result(5).billed == "unknown"
        assert resting.result(5).billed == "no"
        assert time.monotonic() - started < 5
    error_of(lambda: hook.generate(FOX))
    assert len(gateway.requests) == 2, "nothing is sent after abort"


def test_abort_before_any_request_needs_no_connection() -> None:
    JojoKeyHook("there_is_no_such_connection").abort()


def test_threads_share_a_hook(gateway: Gateway, hook: JojoKeyHook) -> None:
    barrier = threading.Barrier(8)

    def generate(_: int) -> None:
        barrier.wait(PATIENCE)
        hook.generate(FOX).close()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(generate, range(8)))
    assert len(gateway.charges) == 8


# --- testing the connection ---------------------------------------------------------------------------------------


def test_connection_test_succeeds(gateway: Gateway, hook: JojoKeyHook) -> None:
    ok, message = hook.test_connection()
    assert ok
    assert gateway.url in message
    assert "gpt-image-2" in message


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"password": "sk-unknown"}, ["does not know this token", "console"]),
        ({"password": "sk-disabled"}, ["disabled"]),
        ({"password": "sk-expired"}, ["expired on", "Create a new one"]),
        ({"password": "sk-exhausted"}, ["quota is used up"]),
        ({"password": "sk-no_model"}, ["may not use the model gpt-image-2", "gpt-4o-mini", "image group"]),
        ({"password": "sk-no_group"}, ["group"]),
        ({"password": "sk-ip"}, ["addresses"]),
        ({"password": None}, ["has no token"]),
        ({"extra": {"default_model": "gpt-image-9"}}, ["may not use the model gpt-image-9", "gpt-image-2"]),
        ({"extra": {"read_timeout": "soon"}}, ["read_timeout"]),
        ({"host": "http://127.0.0.1:9"}, ["could not be reached", "refused"]),
        ({"host": "https://jojokey.invalid"}, ["could not be reached"]),
        ({"host": "ftp://127.0.0.1"}, ["base URL"]),
        ({"extra": {"proxy": "http://127.0.0.1:9"}}, ["proxy"]),
    ],
)
def test_connection_test_names_the_cause(
    gateway: Gateway, connect: Connect, fields: dict[str, Any], words: list[str]
) -> None:
    ok, message = connect(**{"host": gateway.url, "password": gateway.token, **fields}).test_connection()
    assert not ok
    for word in words:
        assert word in message
    assert "charged" not in message
    assert gateway.token not in message
    assert gateway.requests == ()


@pytest.mark.parametrize(
    ("status", "headers", "body", "words"),
    [
        (404, {"Content_Type": "text/html"}, b"<title>Not Found</title>", ["HTTP 404", "base URL"]),
        (200, {"Content_Type": "text/html"}, b"<!doctype html><title>Shop</title>", ["web page", "base URL"]),
        (403, {"CF_RAY": "8f2c", "Server": "cloudflare", "Content_Type": "text/plain"}, b"error code: 1010",
         ["blocked", "cf-ray 8f2c"]),
        (403, {"CF_RAY": "8f2c", "Server": "cloudflare", "Content_Type": "text/html", "cf_mitigated": "challenge"},
         b"<title>Just a moment...</title>", ["blocked", "cf-ray 8f2c"]),
        (502, {"Server": "nginx"}, b"<title>502 Bad Gateway</title>", ["HTTP 502"]),
        (301, {"Location": "https://example.com/"}, b"", ["redirects"]),
        (200, {}, b"[]", ["not in JojoKey's format"]),
    ],
)  # fmt: skip
def test_other_servers_are_recognised(
    connect: Connect, status: int, headers: dict[str, str], body: bytes, words: list[str]
) -> None:
    with Server(lambda exchange: exchange.answer(status, body, **headers)) as server:
        ok, message = connect(host=server.url).test_connection()
        assert {request.method for request in server.requests} == {"GET"}
    assert not ok
    for word in words:
        assert word in message
    assert "Nothing was billed" in message


def test_connection_test_reports_untrusted_certificate(connect: Connect, authority: Authority) -> None:
    with Server(lambda exchange: exchange.answer(200), tls=authority.server) as server:
        ok, message = connect(host=server.url).test_connection()
        assert not ok
        assert "trusted" in message
        assert "verify" in message
        assert server.requests == []


def test_connection_test_reports_wrong_path(gateway: Gateway, connect: Connect) -> None:
    ok, message = connect(host=f"{gateway.url}/app", password=gateway.token).test_connection()
    assert not ok
    assert "base URL" in message


def test_connection_test_reports_usage(gateway: Gateway, hook: JojoKeyHook) -> None:
    assert hook.get_token_usage()["total_used"] == 0
    assert gateway.requests == ()


def test_free_calls_raise_the_same_exceptions(gateway: Gateway, connect: Connect) -> None:
    hook = connect(host=gateway.url, password="sk-unknown")
    for call in (hook.list_models, hook.get_token_usage):
        error = error_of(call)
        assert isinstance(error, errors.JojoKeyTokenError)
        assert isinstance(error, AirflowFailException)


def test_token_over_plain_http_logs_a_warning(connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    connect(host="http://jojokey.example.com").get_conn()
    assert "unencrypted" in caplog.text


def test_request_after_a_stop_is_neither_sent_nor_billed(hook: JojoKeyHook, gateway: Gateway) -> None:
    hook.stopping.set()

    error = error_of(lambda: hook.generate(FOX))

    assert error.billed == "no"
    assert gateway.requests == ()
