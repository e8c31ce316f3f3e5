"""Uploads are signed with a known digest: the signature is that of botocore, other calls are unchanged."""

from __future__ import annotations

import base64
import datetime
import hashlib
import io
from types import SimpleNamespace
from typing import Any

import boto3
import botocore.auth
import pytest
from botocore.auth import S3SigV4Auth
from botocore.config import Config

from airflow_provider_jojokey.store import signing
from airflow_provider_jojokey.store.s3 import ImageStore
from tests.support.buckets import BUCKET, IMPATIENT, Bucket
from tests.support.clients import client_to, image_of, store_of
from tests.support.loopback import Server

NOON = datetime.datetime(2026, 7, 30, 12, 0, 0)


@pytest.fixture
def noon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sign all requests at the same time."""
    if hasattr(botocore.auth, "get_current_datetime"):
        monkeypatch.setattr("botocore.auth.get_current_datetime", lambda *_, **__: NOON)
    else:  # the lowest supported botocore
        noon = SimpleNamespace(utcnow=lambda: NOON)
        monkeypatch.setattr("botocore.auth.datetime", SimpleNamespace(datetime=noon))


class SignerLog:
    """Records the signers that a client chose, and how often a body was hashed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.signers: list[str] = []
        self.digests = 0

        def note(auth: Any, request: Any) -> str:
            self.signers.append(type(auth).__name__)
            return str(add_auth(auth, request))

        add_auth = S3SigV4Auth.add_auth
        monkeypatch.setattr(S3SigV4Auth, "add_auth", note)
        plain = S3SigV4Auth.payload

        def payload(auth: Any, request: Any) -> str:
            self.digests += 1
            return str(plain(auth, request))

        monkeypatch.setattr(S3SigV4Auth, "payload", payload)


@pytest.fixture
def signer_log(monkeypatch: pytest.MonkeyPatch) -> SignerLog:
    return SignerLog(monkeypatch)


def put(client: Any, data: bytes, **more: Any) -> None:
    store_of(client).put_image(BUCKET, "fox.png", image_of(data), more)


@pytest.mark.usefixtures("noon")
def test_signature_equals_that_of_botocore(png: bytes, signer_log: SignerLog) -> None:
    with Server(lambda exchange: exchange.answer(200, ETag='"1"')) as server:
        known, plain = client_to(server.url), client_to(server.url)
        signing.use_known_digest(known)
        for client in (known, plain):
            put(client, png, model="gpt-image-2")
    by_known, by_plain = (request.headers for request in server.requests)
    assert signer_log.signers == ["KnownDigestAuth", "S3SigV4Auth"]
    assert signer_log.digests == 1
    assert by_known["x-amz-content-sha256"] == hashlib.sha256(png).hexdigest()
    ours = {name: value for name, value in by_known.items() if name not in ("amz-sdk-invocation-id",)}
    theirs = {name: value for name, value in by_plain.items() if name not in ("amz-sdk-invocation-id",)}
    assert "Signature=" in ours["authorization"]
    # The invocation ID is signed too: equal signatures need equal IDs.
    if "amz-sdk-invocation-id" not in ours["authorization"]:
        assert ours == theirs
    assert [request.body for request in server.requests] == [png, png]


@pytest.mark.usefixtures("noon")
@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "https://127.0.0.1:9"])
@pytest.mark.parametrize("checksum", ["known", "boto3's own", "none"])
def test_signature_equals_botocores_with_and_without_tls(
    url: str, checksum: str, signer_log: SignerLog
) -> None:
    signed: dict[str, Any] = {}
    more = {
        "known": {"ChecksumSHA256": base64.b64encode(hashlib.sha256(b"fox").digest()).decode()},
        "boto3's own": {"ChecksumAlgorithm": "SHA256"},
        "none": {},
    }[checksum]
    for name in ("ours", "plain"):
        client = client_to(url)
        if name == "ours":
            signing.use_known_digest(client)
        client.meta.events.register(
            "before-send.s3.PutObject", lambda request, name=name, **_: _keep(signed, name, request)
        )
        client.put_object(Bucket=BUCKET, Key="fox.png", Body=io.BytesIO(b"fox"), **more)
    assert signer_log.signers == ["KnownDigestAuth", "S3SigV4Auth"]
    assert signed["ours"] == signed["plain"]
    payload, authorization = signed["ours"]
    assert authorization.startswith("AWS4-HMAC-SHA256 Credential=someone/20260730/")
    if checksum == "known":
        assert payload == hashlib.sha256(b"fox").hexdigest()
        assert signer_log.digests == 1
    elif url.startswith("https"):
        assert "UNSIGNED-PAYLOAD" in payload


def _keep(signed: dict[str, Any], name: str, request: Any) -> Any:
    from botocore.awsrequest import AWSResponse

    def text(header: str) -> str:
        value = request.headers[header]
        return value.decode() if isinstance(value, bytes) else str(value)

    signed[name] = (text("x-amz-content-sha256"), text("Authorization"))
    raw = io.BytesIO()
    raw.stream = lambda *_: iter(())  # type: ignore[attr-defined]
    return AWSResponse(request.url, 200, {"ETag": '"1"'}, raw)


def client_of(bucket: Bucket) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=bucket.endpoint_url,
        aws_access_key_id=bucket.access_key,
        aws_secret_access_key=bucket.secret_key,
        region_name="us-east-1",
        config=Config(**{**bucket.config, **IMPATIENT}),
    )


@pytest.mark.parametrize("kind", ["moto", "rclone"])
def test_stores_accept_the_signature(
    kind: str, request: pytest.FixtureRequest, png: bytes, signer_log: SignerLog
) -> None:
    bucket: Bucket = request.getfixturevalue(kind)
    signer_log.signers.clear()
    client = client_of(bucket)
    signing.use_known_digest(client)
    store = store_of(client)
    put(client, png)
    store.write(BUCKET, "receipt.json", b"{}", replacing=None)
    assert store.read(BUCKET, "receipt.json")[0] == b"{}"  # type: ignore[index]
    assert client.get_object(Bucket=BUCKET, Key="fox.png")["Body"].read() == png
    assert signer_log.signers == ["KnownDigestAuth", "KnownDigestAuth", "S3SigV4Auth", "S3SigV4Auth"]


@pytest.mark.parametrize(
    ("version", "name", "chosen"),
    [
        ("v4", "s3", True),
        ("s3v4", "s3", True),
        ("s3", "s3", False),
        ("v4a", "s3", False),
        ("s3v4a", "s3", False),
        ("s3v4-query", "s3", False),
        ("s3v4-presign-post", "s3", False),
        ("v4-s3express", "s3express", False),
        ("v4", "s3express", False),
        ("v4", "s3-object-lambda", False),
    ],
)
def test_only_plain_signatures_of_version_4_are_replaced(version: Any, name: str, chosen: bool) -> None:
    client = client_to("http://127.0.0.1:9")
    signing.use_known_digest(client)
    _, answer = client.meta.events.emit_until_response(
        "choose-signer.s3.PutObject",
        signing_name=name,
        region_name="us-east-1",
        signature_version=version,
        context={},
    )
    assert (answer == signing.NAME) is chosen


def test_presigned_urls_and_other_calls_use_botocores_signer(moto: Bucket, signer_log: SignerLog) -> None:
    client = client_of(moto)
    signing.use_known_digest(client)
    client.list_objects_v2(Bucket=BUCKET)
    assert signer_log.signers == ["S3SigV4Auth"]
    signer_log.signers.clear()
    client.generate_presigned_url("put_object", Params={"Bucket": BUCKET, "Key": "fox.png"})
    assert "KnownDigestAuth" not in signer_log.signers


def test_client_of_the_store_reuses_the_digest(
    moto: Bucket, signer_log: SignerLog, monkeypatch: pytest.MonkeyPatch, png: bytes
) -> None:
    import json

    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(moto.connection))
    image = image_of(png)
    ImageStore("aws_default").put_image(BUCKET, "fox.png", image, {})
    assert signer_log.signers == ["KnownDigestAuth"]
    assert signer_log.digests == 0
