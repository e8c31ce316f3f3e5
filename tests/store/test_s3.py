"""S3 for images and small documents: missing objects, errors, uploads, labels and S3's clock."""

from __future__ import annotations

import base64
import email.utils
import hashlib
import io
import json
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote, unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_jojokey.exceptions import JojoKeyStoreError
from airflow_provider_jojokey.payments import clock
from airflow_provider_jojokey.sandbox import S3Server
from airflow_provider_jojokey.store.extra_args import MAX_METADATA_VALUE, metadata
from airflow_provider_jojokey.store.s3 import ImageStore, retry_transient
from airflow_provider_jojokey.store.s3_client import MAX_BODY_WITHOUT_EXPECT
from airflow_provider_jojokey.store.s3_errors import translate_errors
from airflow_provider_jojokey.store.server_clock import ServerClock
from tests.support.buckets import BUCKET, Bucket, bucket_of
from tests.support.clients import Sent, client_to, error_of, image_of, store_in, store_of
from tests.support.fault_proxy import (
    Fault,
    FaultProxy,
    Request,
    Reset,
    Response,
    answer,
    bare_404,
    clock_ahead,
    cut_body,
    date,
    delay,
    error,
    ignore,
    lose_request,
    lose_response,
    no_conditions,
    on,
    times,
    web_page,
)
from tests.support.loopback import Server
from tests.support.patience import PATIENCE

# --- missing objects -----------------------------------------------------------------------------------------------


def test_missing_object_is_none(bucket: Bucket, key: str) -> None:
    store = store_in(bucket)
    assert store.read(BUCKET, key) is None
    assert store.size_of(BUCKET, key) is None


def test_size_is_in_bytes(bucket: Bucket, key: str) -> None:
    store = store_in(bucket)
    store.write(BUCKET, key, b"12345", replacing=None)
    assert store.size_of(BUCKET, key) == 5


@pytest.mark.parametrize("exists", [True, False])
def test_bare_404_to_head_is_confirmed_by_get(
    proxy: FaultProxy, store: ImageStore, key: str, exists: bool
) -> None:
    if exists:
        store.write(BUCKET, key, b"12345", replacing=None)
    proxy.faults = [on("HEAD", "", bare_404)]
    with proxy.counting() as requests:
        assert store.size_of(BUCKET, key) == (5 if exists else None)
    assert [request.method for request in requests] == ["HEAD", "GET"]


@pytest.mark.parametrize(
    "fault",
    [
        bare_404,
        web_page(404),
        answer(error(404, "NoSuchBucket")),
        answer(error(403, "AccessDenied")),
        answer(error(500, "InternalError")),
        answer(error(503)),
        answer(error(410, "Gone")),
        lose_request,
        lose_response,
        cut_body(),
    ],
)
def test_only_nosuchkey_means_missing(proxy: FaultProxy, store: ImageStore, key: str, fault: Fault) -> None:
    proxy.faults = [fault]
    error_of(lambda: store.read(BUCKET, key))
    proxy.faults = [on("HEAD", "", bare_404), on("GET", "", fault)]
    error_of(lambda: store.size_of(BUCKET, key))


def test_bucket_that_does_not_exist_is_an_error(moto: Bucket) -> None:
    store = store_in(moto)
    for call in (
        lambda: store.read("nowhere", "a"),
        lambda: store.size_of("nowhere", "a"),
        lambda: store.write("nowhere", "a", b"", replacing=None),
    ):
        failed = error_of(call)
        assert not failed.transient
        assert "Create the bucket, or correct s3_bucket" in failed.message


def test_unread_body_does_not_block_the_next_request(
    moto: Bucket, proxy: FaultProxy, key: str, tmp_path: Path
) -> None:
    store = store_of(client_to(proxy.url, max_pool_connections=1))
    moto.client().put_object(Bucket=BUCKET, Key=key, Body=b"x" * 3_000_000)
    proxy.faults = [on("HEAD", "", bare_404)]
    for _ in range(3):
        assert store.size_of(BUCKET, key) == 3_000_000
    assert store.read(BUCKET, f"{key}.none") is None


# --- errors ----------------------------------------------------------------------------------------------------------

CHECK = "Check the AWS connection"
WAIT = "try again later"
ERRORS: list[tuple[Response, bool, str]] = [
    (error(403, "AccessDenied", "Access Denied"), False, "s3:ListBucket"),
    (error(403, "InvalidAccessKeyId"), False, "does not know the AWS connection's access key"),
    (error(403, "SignatureDoesNotMatch"), False, "secret key is wrong"),
    (error(403, "RequestTimeTooSkewed"), False, "Correct this worker's clock"),
    (error(400, "ExpiredToken"), False, "Renew the session token"),
    (error(403, "QuotaExceeded"), False, "raise its quota"),
    (error(507, "XMinioStorageFull"), False, "Free some space"),
    (error(400, "InvalidBucketName"), False, "not a valid bucket name"),
    (error(404, "NoSuchBucket"), False, "Create the bucket"),
    (error(404), False, CHECK),
    (error(400, "RequestTimeout"), True, WAIT),
    (error(429, "TooManyRequests"), True, WAIT),
    (error(500, "InternalError"), True, WAIT),
    (error(501, "NotImplemented"), False, CHECK),
    (error(503, "SlowDown"), True, WAIT),
    (error(503), True, WAIT),
    (
        error(
            403,
            "AccessDenied",
            "User: arn:aws:iam::123456789012:user/airflow is not authorized to perform: s3:PutObject on resource: "
            '"arn:aws:s3:::posters/fox.json" with an explicit deny in a resource-based policy',
        ),
        False,
        "Look for a Deny in the bucket policy",
    ),
    (
        error(
            403,
            "AccessDenied",
            "not authorized to perform: kms:GenerateDataKey with an explicit deny in a policy",
        ),
        False,
        "kms:GenerateDataKey, kms:Decrypt",
    ),
    *[
        (
            error(
                403,
                "AccessDenied",
                f"User: arn:aws:iam::123456789012:user/airflow is not authorized to perform: {action} on resource: "
                f'"arn:aws:s3:::posters/fox.json" because no identity-based policy allows the {action} action',
            ),
            False,
            advice,
        )
        for action, advice in (
            ("s3:PutObject", "(s3:GetObject, s3:PutObject)"),
            ("s3:PutObjectTagging", "Allow the AWS connection's user the action s3:PutObjectTagging"),
            ("s3:PutObjectRetention", "Allow the AWS connection's user the action s3:PutObjectRetention"),
        )
    ],
    (error(400, "KMS.DisabledException", "it is disabled"), False, "KMS key"),
    (
        error(400, "AuthorizationHeaderMalformed", "the region is wrong", Region="eu-west-3"),
        False,
        "Set region_name in the AWS connection's extra to eu-west-3.",
    ),
    (
        error(301, "PermanentRedirect", "other endpoint", Endpoint="posters.s3.eu-west-3.amazonaws.com"),
        False,
        "https://posters.s3.eu-west-3.amazonaws.com",
    ),
    (
        error(400, "InvalidArgument", "Unsupported header x-amz-sdk-checksum-algorithm"),
        False,
        '"request_checksum_calculation": "when_required"',
    ),
    (error(400, "InvalidArgument", "Invalid version id"), False, CHECK),
]


@pytest.mark.parametrize(
    ("response", "transient", "advice"), ERRORS, ids=[f"{row[0].status} {row[2][:20]}" for row in ERRORS]
)
def test_error_has_message_of_s3_and_advice(
    proxy: FaultProxy, store: ImageStore, response: Response, transient: bool, advice: str
) -> None:
    proxy.faults = [on("GET", "", answer(response)), on("PUT", "", answer(response))]
    for call in (
        lambda: store.read("posters", "fox.json"),
        lambda: store.put("posters", "fox.json", b"{}", "text/plain"),
    ):
        failed = error_of(call)
        assert (failed.transient, failed.status_code) == (transient, response.status)
        assert advice in failed.message
        assert "s3://posters/fox.json" in failed.message
        if response.body:
            message = response.body.decode().partition("<Message>")[2].partition("</Message>")[0]
            assert message in failed.message


@pytest.mark.parametrize("status", [403, 500, 503])
def test_error_of_head_keeps_its_status(proxy: FaultProxy, store: ImageStore, status: int) -> None:
    proxy.faults = [answer(error(status))]
    failed = error_of(lambda: store.size_of("posters", "fox.png"))
    assert (failed.transient, failed.status_code) == (status >= 500, status)
    if status == 403:
        assert "s3:ListBucket" in failed.message


def test_message_of_s3_is_redacted_and_short(proxy: FaultProxy, store: ImageStore) -> None:
    message = f"Bearer {'s' * 40} https://posters.example/?X-Amz-Signature=abcdef \x1b[31m" + "word " * 200
    proxy.faults = [answer(error(400, "Odd", message.replace("\x1b", "")))]
    failed = error_of(lambda: store.read("posters", "fox.json"))
    assert "sss" not in failed.message
    assert "abcdef" not in failed.message
    assert "word word" in failed.message
    assert len(failed.message) < 700


def test_region_header_is_used_if_the_error_names_none(proxy: FaultProxy, store: ImageStore) -> None:
    wrong = error(400, "AuthorizationHeaderMalformed")
    wrong.headers["x-amz-bucket-region"] = "ap-east-1"
    proxy.faults = [on("GET", "", answer(wrong))]
    assert "to ap-east-1." in error_of(lambda: store.read("posters", "fox.json")).message


@pytest.mark.parametrize(("status", "transient"), [(403, False), (404, False), (502, True)])
def test_web_page_of_a_proxy_is_named_as_such(
    proxy: FaultProxy, store: ImageStore, status: int, transient: bool
) -> None:
    proxy.faults = [web_page(status)]
    failed = error_of(lambda: store.read("posters", "fox.json"))
    assert (failed.transient, failed.status_code) == (transient, status)
    assert "web page" in failed.message
    assert "proxy or firewall" in failed.message


@pytest.mark.parametrize("headers", [{}, {"etag": '"5f"'}], ids=["without ETag", "with ETag"])
def test_web_page_instead_of_an_object_is_not_s3(
    proxy: FaultProxy, store: ImageStore, headers: dict[str, str]
) -> None:
    proxy.faults = [web_page(200, **headers)]
    failed = error_of(lambda: store.read("posters", "fox.json"))
    assert not failed.transient
    assert "This is not S3" in failed.message
    assert proxy.url in failed.message
    assert "endpoint_url" in failed.message


def test_web_page_in_response_to_a_write_is_named(proxy: FaultProxy, store: ImageStore) -> None:
    proxy.faults = [web_page(200)]
    failed = error_of(lambda: store.write("posters", "fox.json", b"{}", replacing=None))
    assert "web page" in failed.message
    assert "endpoint_url" in failed.message


def test_response_without_etag_is_not_s3(proxy: FaultProxy, store: ImageStore) -> None:
    proxy.faults = [answer(Response(200))]
    for call in (
        lambda: store.read("posters", "fox.json"),
        lambda: store.write("posters", "fox.json", b"{}", replacing=None),
        lambda: store.write("posters", "fox.json", b"{}", replacing='"1"'),
        lambda: store.put("posters", "fox.json", b"{}", "text/plain"),
        lambda: store.put_image("posters", "fox.png", image_of(b"x"), {}),
        lambda: store.size_of("posters", "fox.png"),
    ):
        failed = error_of(call)
        assert not failed.transient
        assert "This is not S3" in failed.message


def test_endless_redirect_is_an_error(proxy: FaultProxy, store: ImageStore) -> None:
    proxy.faults = [answer(error(301, "PermanentRedirect"))]
    failed = error_of(lambda: store.read("posters", "fox.json"))
    assert not failed.transient, (failed.detail, failed.message)
    assert "region_name" in failed.message


@pytest.mark.parametrize(
    "fault",
    [
        lose_request,
        lose_response,
        cut_body(),
        on("", "", lambda *_: Response(500, {"content-length": "90"}, b"<Error><Code>Int", cut=16)),
        on("", "", lambda *_: Response(404, {"content-length": "90"}, b"<Error><Code>NoSuchKey", cut=22)),
    ],
)
def test_broken_connection_is_transient(
    moto: Bucket, proxy: FaultProxy, store: ImageStore, key: str, fault: Fault
) -> None:
    moto.client().put_object(Bucket=BUCKET, Key=key, Body=b"x" * 1000)
    proxy.faults = [fault]
    failed = error_of(lambda: store.read(BUCKET, key))
    assert failed.transient
    assert f"s3://{BUCKET}/{key}" in failed.message


def test_reset_within_an_error_to_a_write_is_transient(
    proxy: FaultProxy, store: ImageStore, key: str
) -> None:
    proxy.faults = [lambda *_: Response(503, {"content-length": "90"}, b"<Error><Code>Int", cut=16)]
    assert error_of(lambda: store.write(BUCKET, key, b"{}", replacing=None)).transient
    assert error_of(lambda: store.put_image(BUCKET, key, image_of(b"x"), {})).transient


def test_unparsable_response_is_transient(proxy: FaultProxy, store: ImageStore) -> None:
    proxy.faults = [on("GET", "list-type", answer(Response(200, {"content-type": "application/xml"}, b"<a")))]
    with translate_errors("list s3://posters"):
        pass
    failed = error_of(lambda: _list(store))
    assert failed.transient


def _list(store: ImageStore) -> None:
    with translate_errors("list s3://posters"):
        store.client.list_objects_v2(Bucket="posters")


def test_other_exceptions_pass_through() -> None:
    with pytest.raises(ZeroDivisionError), translate_errors("divide"):
        raise ZeroDivisionError
    with pytest.raises(FileNotFoundError), translate_errors("read the spool"):
        raise FileNotFoundError
    original = JojoKeyStoreError("It failed.")
    with pytest.raises(JojoKeyStoreError) as caught, translate_errors("read"):
        raise original
    assert caught.value is original


def test_wrong_keys_are_named(rclone: Bucket) -> None:
    for wrong, advice in (
        (replace(rclone, access_key="nobody"), "access key"),
        (replace(rclone, secret_key="wrong"), "secret key"),
    ):
        failed = error_of(lambda wrong=wrong: store_in(wrong).read(BUCKET, "fox.json"))
        assert not failed.transient
        assert advice in failed.message
        assert rclone.secret_key not in failed.message


def test_unreachable_endpoint_is_transient() -> None:
    with Server(lambda exchange: None) as server:
        gone = server.url
    failed = error_of(lambda: store_of(client_to(gone)).read("posters", "fox.json"))
    assert failed.transient
    assert "endpoint" in failed.message


def test_untrusted_certificate_is_not_transient(authority: Any) -> None:
    with Server(lambda exchange: exchange.answer(200), tls=authority.server) as server:
        failed = error_of(lambda: store_of(client_to(server.url)).read("posters", "fox.json"))
    assert not failed.transient
    assert "Set verify in the AWS connection's extra" in failed.message


def test_invalid_bucket_name_is_not_transient(moto: Bucket) -> None:
    assert not error_of(lambda: store_in(moto).read("no bucket!", "fox.json")).transient


# --- the client ------------------------------------------------------------------------------------------------------


@pytest.fixture
def _no_aws_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))


def connect(monkeypatch: pytest.MonkeyPatch, extra: dict[str, Any], **fields: Any) -> None:
    connection = {"conn_type": "aws", "login": "someone", "password": "secret-key", **fields, "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_AWS_TEST", json.dumps(connection))


@pytest.mark.usefixtures("_no_aws_at_all")
def test_missing_credentials_are_not_transient(monkeypatch: pytest.MonkeyPatch) -> None:
    connect(monkeypatch, {"region_name": "us-east-1"}, login=None, password=None)
    failed = error_of(lambda: ImageStore("aws_test").read("posters", "fox.json"))
    assert not failed.transient
    assert "NoCredentials" in failed.message
    assert CHECK in failed.message


@pytest.mark.usefixtures("_no_aws_at_all")
@pytest.mark.parametrize("name", ["aws_access_key_id", "aws_secret_access_key", "aws_session_token"])
def test_credentials_that_are_not_text_are_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    keys = {"aws_access_key_id": "someone", "aws_secret_access_key": "secret", name: 1234567890}
    connect(monkeypatch, keys, login=None, password=None)
    failed = error_of(lambda: ImageStore("aws_test").client)
    assert not failed.transient
    assert f"{name} must be text, not int" in failed.message
    assert "1234567890" not in failed.message


@pytest.mark.usefixtures("_no_aws_at_all")
@pytest.mark.parametrize(
    "extra",
    [
        {"endpoint_url": "no url at all"},
        {"aws_session_token": 5},
        {"region_name": "not a region!"},
        {"config_kwargs": {"no_such_option": 1}},
        {"config_kwargs": {"retries": {"mode": "wild"}}},
        {"role_arn": "arn:aws:iam::1:role/x", "assume_role_method": "by_magic"},
    ],
)
def test_unusable_connection_is_a_store_error(monkeypatch: pytest.MonkeyPatch, extra: dict[str, Any]) -> None:
    connect(monkeypatch, {"region_name": "us-east-1", **extra})
    failed = error_of(lambda: ImageStore("aws_test").client)
    assert not failed.transient
    assert "secret-key" not in str(failed)


def test_client_uses_all_settings_of_the_connection(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.write_text("")
    extra = {
        "region_name": "eu-west-3",
        "endpoint_url": "http://127.0.0.1:9",
        "verify": str(bundle),
        "config_kwargs": {"read_timeout": 7, "user_agent_extra": "mine/1", "max_pool_connections": 3},
    }
    connect(monkeypatch, extra)
    client = ImageStore("aws_test").client
    config = client.meta.config
    assert client.meta.endpoint_url == "http://127.0.0.1:9"
    assert client.meta.region_name == "eu-west-3"
    assert (config.read_timeout, config.max_pool_connections) == (7, 3)
    assert "mine/1" in config.user_agent
    assert "airflow-provider-jojokey/" in config.user_agent
    assert client._endpoint.http_session._verify == str(bundle)
    assert client._request_signer._credentials.secret_key == "secret-key"


def test_service_endpoint_of_the_connection_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    services = {"s3": {"endpoint_url": "http://127.0.0.1:7"}}
    connect(
        monkeypatch,
        {"region_name": "eu-west-3", "endpoint_url": "http://127.0.0.1:9", "service_config": services},
    )
    assert ImageStore("aws_test").client.meta.endpoint_url == "http://127.0.0.1:7"


def test_role_of_the_connection_is_assumed(monkeypatch: pytest.MonkeyPatch) -> None:
    reply = """<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult><Credentials>
      <AccessKeyId>ASIA1</AccessKeyId><SecretAccessKey>assumed</SecretAccessKey><SessionToken>t</SessionToken>
      <Expiration>2099-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>"""
    extra = {"region_name": "eu-west-3", "role_arn": "arn:aws:iam::123456789012:role/images"}

    def sts(request: Request, forward: Any) -> Response:
        return Response(200, {"content-type": "text/xml"}, reply.encode())

    with FaultProxy("http://127.0.0.1:9", sts) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", server.url)
        connect(monkeypatch, extra)
        client = ImageStore("aws_test").client
        assert client._request_signer._credentials.get_frozen_credentials().secret_key == "assumed"
        denied = "<ErrorResponse><Error><Code>AccessDenied</Code><Message>not you</Message></Error></ErrorResponse>"
        server.faults = [answer(Response(403, {"content-type": "text/xml"}, denied.encode()))]
        failed = error_of(lambda: ImageStore("aws_test").client)
        assert "AssumeRole" in failed.message
        assert "not you" in failed.message
        assert "trust policy" in failed.message


def test_client_is_created_without_scanning_modules(monkeypatch: pytest.MonkeyPatch, moto: Bucket) -> None:
    import inspect

    def stack(*_: Any) -> Any:
        raise AssertionError("inspect.stack() takes 300 ms in a task process")

    monkeypatch.setattr(inspect, "stack", stack)
    connect(monkeypatch, moto.connection["extra"])
    assert ImageStore("aws_test").read(BUCKET, "nothing") is None


def test_threads_share_one_client(monkeypatch: pytest.MonkeyPatch, moto: Bucket) -> None:
    connect(monkeypatch, moto.connection["extra"])
    store, start = ImageStore("aws_test", connections=4), threading.Barrier(4)
    clients: list[Any] = []

    def run() -> None:
        start.wait(PATIENCE)
        clients.append(store.client)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(clients) == 4
    assert len({id(client) for client in clients}) == 1
    assert store.client.meta.config.max_pool_connections == 4


@pytest.mark.parametrize(("configured", "used"), [(1, 1), (7, 7), (1000, 32), (0, 1)])
def test_connections_have_limits(configured: int, used: int) -> None:
    assert ImageStore("aws_test", connections=configured).connections == used


def test_concurrent_requests_do_not_exceed_connections(proxy: FaultProxy, png: bytes) -> None:
    store = ImageStore("aws_test", connections=2)
    vars(store)["client"] = client_to(proxy.url)
    lock, now, most = threading.Lock(), [0], [0]

    def count(request: Request, forward: Any) -> Response:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.02)
        try:
            return forward(request)  # type: ignore[no-any-return]
        finally:
            with lock:
                now[0] -= 1

    proxy.faults = [count]

    def run(number: int) -> None:
        key = f"many/{number}.png"
        etag = store.write(BUCKET, key, b"{}", replacing=None) or ""
        store.verify_conditional_writes(BUCKET, key, b"{}", etag)
        assert store.put_image(BUCKET, key, image_of(png), {}, only_if_absent=True) is False
        assert store.put_image(BUCKET, key, image_of(png), {})
        assert store.size_of(BUCKET, key) == len(png)
        store.put(BUCKET, key, b"x", "text/plain")
        with suppress(JojoKeyStoreError):
            store.read("nowhere", key)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert most[0] == 2
    assert not any(thread.is_alive() for thread in threads)


# --- Expect: 100-continue --------------------------------------------------------------------------------------------


def test_small_objects_are_sent_without_100_continue(
    monkeypatch: pytest.MonkeyPatch, proxy: FaultProxy, key: str
) -> None:
    connect(monkeypatch, {"endpoint_url": proxy.url, "region_name": "us-east-1"})
    store = ImageStore("aws_test")
    store.write(BUCKET, key, b"{}", replacing=None)
    store.put(BUCKET, key, b"x" * (MAX_BODY_WITHOUT_EXPECT + 1), "text/plain")
    store.put_image(BUCKET, key, image_of(b"x"), {})
    store.put_image(BUCKET, key, image_of(b"x" * (MAX_BODY_WITHOUT_EXPECT + 1)), {})
    assert ["expect" in request.headers for request in proxy.seen("PUT")] == [False, True, False, True]


def test_resend_expects_100_continue_before_the_body(
    monkeypatch: pytest.MonkeyPatch, proxy: FaultProxy, key: str
) -> None:
    def reject_early(request: Request, forward: Any) -> Response:
        if "expect" not in request.headers:
            raise Reset  # as a server that closes the connection without reading the body
        return error(403, "AccessDenied")

    connect(monkeypatch, {"endpoint_url": proxy.url, "region_name": "us-east-1"})
    store = ImageStore("aws_test")
    proxy.faults = [on("PUT", "", reject_early)]
    for _ in range(2):
        failed = error_of(lambda: store.put_image(BUCKET, key, image_of(b"x"), {}))
        assert "AccessDenied" in str(failed.message)
        assert not failed.transient
    assert ["expect" in request.headers for request in proxy.seen("PUT")] == [False, True, False, True]


def test_body_waits_for_100_continue_after_broken_connection(
    monkeypatch: pytest.MonkeyPatch, proxy: FaultProxy, key: str
) -> None:
    extra = {"endpoint_url": proxy.url, "region_name": "us-east-1"}
    connect(monkeypatch, {**extra, "config_kwargs": {"retries": {"total_max_attempts": 1}}})
    store = ImageStore("aws_test")
    proxy.faults = [times(1, lose_request)]
    assert error_of(lambda: store.put_image(BUCKET, key, image_of(b"x"), {})).transient
    assert store.put_image(BUCKET, key, image_of(b"x"), {})
    assert ["expect" in request.headers for request in proxy.seen("PUT")] == [False, True]


def test_small_objects_are_signed_correctly(
    monkeypatch: pytest.MonkeyPatch, rclone: Bucket, key: str
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_AWS_TEST", json.dumps(rclone.connection))
    store = ImageStore("aws_test")
    assert store.write(BUCKET, key, b"{}", replacing=None)
    assert store.read(BUCKET, key)[0] == b"{}"  # type: ignore[index]


# --- images ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content_type", ["image/png", "image/jpeg", "image/webp"])
def test_image_is_stored_with_type_and_labels(
    bucket: Bucket, key: str, png: bytes, content_type: str, tmp_path: Path
) -> None:
    labels = {
        "dag-id": "posters",
        "run-id": "manual__2026-07-30T12:00:00+00:00",
        "task-id": "海报",
        "model": "",
    }
    image = image_of(png, content_type, tmp_path / "0.part")
    assert store_in(bucket).put_image(BUCKET, key, image, labels) is True
    image.file.close()
    stored = bucket.client().get_object(Bucket=BUCKET, Key=key)
    assert stored["Body"].read() == png
    assert stored["ContentType"] == content_type
    kept = {name.lower(): value for name, value in stored["Metadata"].items() if name.lower() in labels}
    assert {name: unquote(value) for name, value in kept.items()} == {
        name: value for name, value in labels.items() if value
    }


def test_checksum_is_sent_for_s3_to_compare(moto: Bucket, key: str, png: bytes) -> None:
    store = store_in(moto)
    with Sent(store.client) as sent:
        store.put_image(BUCKET, key, image_of(png), {})
    digest = base64.b64encode(hashlib.sha256(png).digest()).decode()
    assert [headers.get("x-amz-checksum-sha256") for headers in sent.headers] == [digest]


def test_store_without_checksums_gets_none(rclone: Bucket, key: str, png: bytes) -> None:
    assert rclone.config["request_checksum_calculation"] == "when_required"
    store = store_in(rclone)
    with Sent(store.client) as sent:
        store.put_image(BUCKET, key, image_of(png), {})
        store.write(BUCKET, f"{key}.json", b"{}", replacing=None)
    assert len(sent.headers) == 2
    names = [name for headers in sent.headers for name in headers]
    assert not [name for name in names if "checksum" in name or "trailer" in name]


def test_store_without_checksums_gets_content_md5(rclone: Bucket, key: str, png: bytes) -> None:
    """A bucket with object lock requires it: without it, S3 would reject an image that is already paid."""
    store = store_in(rclone)
    file = io.BytesIO(b"skipped" + png)
    file.seek(len(b"skipped"))
    with Sent(store.client) as sent:
        store.put_image(BUCKET, key, image_of(png), {})
        store.write(BUCKET, f"{key}.json", b"{}", replacing=None)
        store.put(BUCKET, f"{key}.jsonl", file, "text/plain")

    expected = [base64.b64encode(hashlib.md5(body).digest()).decode() for body in (png, b"{}", png)]
    assert [headers.get("content-md5") for headers in sent.headers] == expected
    assert rclone.client().get_object(Bucket=BUCKET, Key=f"{key}.jsonl")["Body"].read() == png


def test_image_can_be_stored_twice(moto: Bucket, key: str, png: bytes) -> None:
    store, image = store_in(moto), image_of(png)
    for _ in range(2):
        assert store.put_image(BUCKET, key, image, {})
        assert store.size_of(BUCKET, key) == len(png)


@pytest.mark.parametrize("same_size", [True, False])
def test_existing_object_is_kept_on_request(bucket: Bucket, key: str, png: bytes, same_size: bool) -> None:
    if not bucket.honours:  # as after a claim, which tests the store
        store_in(bucket).verify_conditional_writes(BUCKET, "probe", b"{}", '"1"')
    other = b"y" * (len(png) if same_size else 3)
    bucket.client().put_object(Bucket=BUCKET, Key=key, Body=other)
    store, image = store_in(bucket), image_of(png)
    assert store.put_image(BUCKET, key, image, {}, only_if_absent=True) is False
    assert bucket.client().get_object(Bucket=BUCKET, Key=key)["Body"].read() == other
    assert store.put_image(BUCKET, f"{key}.new", image, {}, only_if_absent=True) is True
    assert store.put_image(BUCKET, f"{key}.new", image, {}, only_if_absent=True) is True
    assert store.put_image(BUCKET, key, image, {}) is True
    assert bucket.client().get_object(Bucket=BUCKET, Key=key)["Body"].read() == png


def test_image_whose_upload_response_was_lost_counts_as_stored(
    moto: Bucket, proxy: FaultProxy, key: str, png: bytes
) -> None:
    store = store_of(client_to(proxy.url, retries={"total_max_attempts": 2}))
    proxy.faults = [times(1, lose_response)]
    assert store.put_image(BUCKET, key, image_of(png), {}, only_if_absent=True) is True
    assert [request.method for request in proxy.requests] == ["PUT", "PUT", "GET"]
    assert moto.client().get_object(Bucket=BUCKET, Key=key)["Body"].read() == png


@pytest.mark.parametrize("faults", [[no_conditions(501)], [no_conditions(400, "InvalidArgument")]])
def test_store_without_conditions_is_checked_before_upload(
    moto: Bucket, proxy: FaultProxy, store: ImageStore, key: str, png: bytes, faults: list[Fault]
) -> None:
    proxy.faults = faults
    moto.client().put_object(Bucket=BUCKET, Key=key, Body=b"other")
    assert store.put_image(BUCKET, key, image_of(png), {}, only_if_absent=True) is False
    assert store.put_image(BUCKET, f"{key}.new", image_of(png), {}, only_if_absent=True) is True
    assert moto.client().get_object(Bucket=BUCKET, Key=key)["Body"].read() == b"other"
    assert moto.client().get_object(Bucket=BUCKET, Key=f"{key}.new")["Body"].read() == png


def test_store_ignoring_conditions_is_checked_before_upload(
    moto: Bucket, proxy: FaultProxy, store: ImageStore, key: str, png: bytes
) -> None:
    proxy.faults = [ignore("if-none-match")]
    etag = store.write(BUCKET, f"{key}.json", b"{}", replacing=None) or ""
    store.verify_conditional_writes(BUCKET, f"{key}.json", b"{}", etag)
    moto.client().put_object(Bucket=BUCKET, Key=key, Body=b"other")
    assert store.put_image(BUCKET, key, image_of(png), {}, only_if_absent=True) is False
    assert moto.client().get_object(Bucket=BUCKET, Key=key)["Body"].read() == b"other"


def test_contradiction_of_s3_is_transient(proxy: FaultProxy, store: ImageStore, key: str, png: bytes) -> None:
    proxy.faults = [on("PUT", "", answer(error(412, "PreconditionFailed")))]
    failed = error_of(lambda: store.put_image(BUCKET, key, image_of(png), {}, only_if_absent=True))
    assert failed.transient


UNREADABLE = [error(403, "AccessDenied"), error(403, "InvalidObjectState"), error(400, "InvalidRequest")]


@pytest.mark.parametrize("response", UNREADABLE)
@pytest.mark.parametrize("conditions", [True, False])
def test_existing_object_that_cannot_be_read_is_kept(
    moto: Bucket,
    proxy: FaultProxy,
    store: ImageStore,
    key: str,
    png: bytes,
    response: Response,
    conditions: bool,
) -> None:
    moto.client().put_object(Bucket=BUCKET, Key=key, Body=b"other")
    refused = [on("HEAD", "", answer(error(response.status))), on("GET", "", answer(response))]
    proxy.faults = refused if conditions else [no_conditions(501), *refused]
    assert store.put_image(BUCKET, key, image_of(png), {}, only_if_absent=True) is False
    assert moto.client().get_object(Bucket=BUCKET, Key=key)["Body"].read() == b"other"


@pytest.mark.parametrize("response", UNREADABLE)
def test_stored_image_is_recognized_without_reading_it(
    proxy: FaultProxy, key: str, png: bytes, response: Response
) -> None:
    store = store_of(client_to(proxy.url, retries={"total_max_attempts": 2}))
    labels = {"attempt-id": "1"}
    proxy.faults = [on("GET", "", answer(response)), times(1, lose_response)]
    assert store.put_image(BUCKET, key, image_of(png), labels, only_if_absent=True) is True
    assert store.put_image(BUCKET, key, image_of(png), {"attempt-id": "2"}, only_if_absent=True) is False
    assert store.put_image(BUCKET, key, image_of(png[:-1] + b"x"), labels, only_if_absent=True) is False


@pytest.mark.parametrize("metadata", [{}, {"team": "x"}])
def test_stored_image_without_metadata_is_compared(
    moto: Bucket, store: ImageStore, key: str, png: bytes, metadata: dict[str, str]
) -> None:
    moto.client().put_object(Bucket=BUCKET, Key=key, Body=png, Metadata=metadata)
    assert store.put_image(BUCKET, key, image_of(png), {}, only_if_absent=True) is True
    assert store.put_image(BUCKET, key, image_of(png[:-1] + b"x"), {}, only_if_absent=True) is False


@pytest.mark.parametrize("refused", [[], ["GET"]], ids=["GET", "HEAD"])
def test_outage_while_comparing_is_transient(
    moto: Bucket, proxy: FaultProxy, store: ImageStore, key: str, png: bytes, refused: list[str]
) -> None:
    moto.client().put_object(Bucket=BUCKET, Key=key, Body=png)
    proxy.faults = [on(method, "", answer(error(403, "AccessDenied"))) for method in refused]
    proxy.faults += [on(method, "", answer(error(503))) for method in ("GET", "HEAD")]
    assert error_of(lambda: store.put_image(BUCKET, key, image_of(png), {}, only_if_absent=True)).transient


def test_capitalized_metadata_is_recognized(bucket: Bucket, key: str, png: bytes) -> None:
    store = store_in(bucket)
    store.put_image(BUCKET, key, image_of(png), {"attempt-id": "1", "request-id": "r"})
    found = store.find_image(BUCKET, key, "1")
    assert found is not None
    assert (found[0].sha256, found[1]) == (hashlib.sha256(png).hexdigest(), "r")


def test_test_object_has_the_parameters_of_an_image(moto: Bucket, key: str, png: bytes) -> None:
    store = store_in(moto)
    store.extra_args = {"Metadata": {"team": "équipe 海"}, "CacheControl": "no-cache"}
    store.put(BUCKET, f"{key}.test", b"", "image/png", image=True)
    store.put_image(BUCKET, key, image_of(png), {})
    for name in (f"{key}.test", key):
        stored = moto.client().head_object(Bucket=BUCKET, Key=name)
        assert unquote(stored["Metadata"]["team"]) == "équipe 海"
        assert stored["CacheControl"] == "no-cache"


def test_put_overwrites(bucket: Bucket, key: str, tmp_path: Path) -> None:
    store = store_in(bucket)
    store.put(BUCKET, key, b"1", "text/plain")
    (tmp_path / "manifest").write_bytes(b"22")
    with open(tmp_path / "manifest", "rb") as file:
        store.put(BUCKET, key, file, "application/x-ndjson")
    stored = bucket.client().get_object(Bucket=BUCKET, Key=key)
    assert (stored["Body"].read(), stored["ContentType"]) == (b"22", "application/x-ndjson")


# --- labels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["two  blanks", " around ", "tab\tand\nline", "50 % off", "a,b;c=d", "é"])
def test_unusual_labels_pass_a_signature_check(rclone: Bucket, key: str, value: str) -> None:
    store_in(rclone).put_image(BUCKET, key, image_of(b"x"), {"task-id": value})
    stored = rclone.client().head_object(Bucket=BUCKET, Key=key)["Metadata"]
    found = {name.lower(): unquote(kept) for name, kept in stored.items()}["task-id"]
    assert found.split() == value.split()


EIGHT = ("dag-id", "run-id", "task-id", "map-index", "model", "size", "request-id", "another")


@given(st.fixed_dictionaries({name: st.text(st.characters(), max_size=400) for name in EIGHT}))
def test_labels_are_ascii_and_fit_into_s3(labels: dict[str, str]) -> None:
    kept = metadata(labels)
    assert sum(len(name) + len(value) for name, value in kept.items()) < 2048
    for name, value in kept.items():
        assert value.isascii()
        assert value.isprintable()
        assert value == value.strip() != ""
        assert len(value) <= MAX_METADATA_VALUE
        whole = labels[name].encode(errors="replace").decode()
        if value.endswith("...") and not whole.endswith("..."):
            assert whole.strip(" ").encode().startswith(unquote_to_bytes(value[:-3]))
        elif len(value) < MAX_METADATA_VALUE:
            assert unquote(value) == whole.strip(" ")


def test_longest_labels_are_accepted(moto: Bucket, key: str) -> None:
    labels = dict.fromkeys(EIGHT, "狐" * 400)
    store_in(moto).put_image(BUCKET, key, image_of(b"x"), labels)
    stored = moto.client().head_object(Bucket=BUCKET, Key=key)["Metadata"]
    assert set(EIGHT) < stored.keys()
    assert all(
        unquote(stored[name].removesuffix("...").rpartition("%E7")[0]).strip("狐") == "" for name in EIGHT
    )


# --- S3's clock ------------------------------------------------------------------------------------------------------


class Time:
    """Clocks of this host that a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wall = datetime(2026, 7, 30, 12, tzinfo=UTC)
        self.seconds = 1000.0
        monkeypatch.setattr(clock, "now", lambda: self.wall)
        monkeypatch.setattr(clock, "monotonic", lambda: self.seconds)

    def pass_by(self, seconds: float) -> None:
        self.seconds += seconds
        self.wall += timedelta(seconds=seconds)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Time:
    return Time(monkeypatch)


def server_says(clock: ServerClock, moment: datetime | str, **headers: str) -> None:
    value = moment if isinstance(moment, str) else email.utils.format_datetime(moment, usegmt=True)
    clock.observe({"date": value, **headers})


@pytest.mark.parametrize("skew", [0, -3600, 3600])
def test_time_is_that_of_s3(proxy: FaultProxy, store: ImageStore, key: str, skew: float) -> None:
    assert store.clock == "host"
    assert abs(store.now() - datetime.now(UTC)) < timedelta(seconds=5)
    proxy.faults = [clock_ahead(skew)]
    assert store.read(BUCKET, key) is None  # an error response has a Date too
    assert store.clock == "s3"
    assert abs(store.now() - datetime.now(UTC) - timedelta(seconds=skew)) < timedelta(seconds=5)


@pytest.mark.parametrize("value", [None, "", "yesterday", "Thu, 99 Jul 2026 12:00:00 GMT", "0"])
def test_response_without_usable_date_sets_no_time(
    proxy: FaultProxy, store: ImageStore, key: str, value: str | None
) -> None:
    proxy.faults = [date(value)]
    store.write(BUCKET, key, b"{}", replacing=None)
    assert store.clock == "host"
    proxy.faults = []
    store.read(BUCKET, key)
    assert store.clock == "s3"
    before = store.now()
    proxy.faults = [date(value)]
    store.read(BUCKET, key)
    assert before <= store.now() < before + timedelta(seconds=5)


def test_time_advances_between_responses(host: Time) -> None:
    clock = ServerClock()
    server_says(clock, host.wall + timedelta(hours=1))
    started = clock.now()
    host.pass_by(90)
    host.wall -= timedelta(hours=7)  # this host's clock is set: S3's is not
    assert clock.now() - started == timedelta(seconds=90)


@pytest.mark.parametrize("wrong", [timedelta(days=-400), timedelta(days=9000), timedelta(hours=-2)])
def test_single_absurd_date_is_ignored(host: Time, wrong: timedelta) -> None:
    clock = ServerClock()
    server_says(clock, host.wall)
    host.pass_by(1)
    server_says(clock, host.wall + wrong)
    assert clock.now() == host.wall
    server_says(clock, host.wall)
    server_says(clock, host.wall + wrong)  # not in a row
    assert clock.now() == host.wall


def test_absurd_first_date_is_ignored(host: Time) -> None:
    clock = ServerClock()
    server_says(clock, "Thu, 01 Jan 1970 00:00:00 GMT")
    assert not clock.known
    assert clock.now() == host.wall
    server_says(clock, host.wall + timedelta(minutes=30))
    assert clock.now() == host.wall + timedelta(minutes=30)


def test_clock_of_s3_that_was_set_is_followed(host: Time) -> None:
    clock = ServerClock()
    server_says(clock, host.wall)
    for _ in range(2):
        host.pass_by(3)
        server_says(clock, host.wall - timedelta(hours=3))
    assert clock.now() == host.wall - timedelta(hours=3)


def test_slow_response_does_not_turn_the_clock_back(host: Time) -> None:
    clock = ServerClock()
    server_says(clock, host.wall)
    host.pass_by(40)
    server_says(clock, host.wall - timedelta(seconds=30))  # it was on its way for 30 s
    assert clock.now() == host.wall
    host.pass_by(ServerClock.MAX_AGE)
    server_says(clock, host.wall - timedelta(seconds=2))  # clocks drift: an old sample counts no longer
    assert clock.now() == host.wall - timedelta(seconds=2)


def test_quicker_response_sets_the_clock_forward(host: Time) -> None:
    clock = ServerClock()
    server_says(clock, host.wall - timedelta(seconds=20))
    host.pass_by(1)
    server_says(clock, host.wall)
    assert clock.now() == host.wall


def test_cached_response_sets_no_time(host: Time) -> None:
    clock = ServerClock()
    server_says(clock, host.wall, age="30")
    assert not clock.known
    server_says(clock, host.wall, age="0")
    assert clock.known


def test_delayed_response_is_behind_by_no_more_than_the_delay(
    proxy: FaultProxy, store: ImageStore, key: str
) -> None:
    proxy.faults = [delay(2.5)]
    store.read(BUCKET, key)
    behind = datetime.now(UTC) - store.now()
    assert timedelta(seconds=1) < behind < timedelta(seconds=5)
    proxy.faults = []
    store.read(BUCKET, key)
    assert datetime.now(UTC) - store.now() < timedelta(seconds=1.2)


# --- an outage -------------------------------------------------------------------------------------------------------


@pytest.fixture
def stopped(tmp_path: Path) -> Iterator[S3Server]:
    with S3Server(tmp_path / "objects") as server:
        server.create_bucket(BUCKET)
        server.kill()
        yield server


def test_image_is_stored_once_s3_is_back(stopped: S3Server, png: bytes) -> None:
    store, image = store_in(bucket_of(stopped)), image_of(png)
    assert error_of(lambda: store.put_image(BUCKET, "fox.png", image, {})).transient
    stopped.start()
    store.put_image(BUCKET, "fox.png", image, {})
    assert (stopped.directory / BUCKET / "fox.png").read_bytes() == png


class Flaky:
    """A call that fails a few times."""

    def __init__(self, failures: int, *, transient: bool = True) -> None:
        self.calls = 0
        self.failures, self.transient = failures, transient

    def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.failures:
            raise JojoKeyStoreError("It failed.", transient=self.transient)
        return "stored"


@pytest.fixture
def pauses(host: Time, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the pauses so far; each advances the clock."""
    waited: list[float] = []

    def pause(seconds: float, stopping: threading.Event | None = None) -> bool:
        waited.append(seconds)
        host.pass_by(seconds)
        return stopping is not None and stopping.is_set()

    monkeypatch.setattr(clock, "pause", pause)
    return waited


def test_transient_errors_are_retried(pauses: list[float]) -> None:
    call, attempts = Flaky(4), []
    assert retry_transient(call, timeout=600, before_sleep=attempts.append) == "stored"
    assert call.calls == 5
    assert len(attempts) == len(pauses) == 4
    assert pauses == sorted(pauses)


def test_retries_end_after_the_timeout(pauses: list[float]) -> None:
    call = Flaky(1000)
    assert error_of(lambda: retry_transient(call, timeout=100)).transient
    assert 100 <= sum(pauses) < 100 + 31
    assert max(pauses) <= 31


def test_lasting_errors_are_not_retried(pauses: list[float]) -> None:
    call = Flaky(1000, transient=False)
    error_of(lambda: retry_transient(call, timeout=100))
    assert (call.calls, pauses) == (1, [])


def test_wait_ends_when_stopping(pauses: list[float]) -> None:
    call, stopping = Flaky(1000), threading.Event()
    error_of(
        lambda: retry_transient(call, timeout=1e9, stopping=stopping, before_sleep=lambda _: stopping.set())
    )
    assert call.calls == 2


def test_real_wait_ends_when_stopping() -> None:
    call, stopping = Flaky(1000), threading.Event()
    threading.Timer(0.1, stopping.set).start()
    started = time.monotonic()
    error_of(lambda: retry_transient(call, timeout=PATIENCE, stopping=stopping))
    assert time.monotonic() - started < 1
