"""Buckets whose policy rejects every request without a header, and objects that must not be replaced.

A proxy in front of moto plays the policy: it answers as S3 does to a request that lacks the header.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest

from airflow_provider_jojokey.exceptions import JojoKeyStoreError
from airflow_provider_jojokey.operators.jojokey import GenerateImageOperator
from tests.support.commands import run_in_process
from tests.support.fault_proxy import FaultProxy, Forward, Request, Response, error

KMS = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "alias/posters"}
ACL = {"ACL": "bucket-owner-full-control"}
PAYER = {"RequestPayer": "requester"}
DENIED = "User is not authorized to perform: s3:PutObject with an explicit deny in a resource-based policy"


def requires(header: str, value: str, *methods: str) -> Callable[[Request, Forward], Response]:
    """Return a policy that denies these methods unless the header has the value."""

    def policy(request: Request, forward: Forward) -> Response:
        if request.method in methods and request.headers.get(header) != value:
            return error(403, "AccessDenied", DENIED)
        return forward(request)

    return policy


POLICIES = {
    "kms": (requires("x-amz-server-side-encryption", "aws:kms", "PUT"), KMS),
    "acl": (requires("x-amz-acl", "bucket-owner-full-control", "PUT"), ACL),
    "requester pays": (requires("x-amz-request-payer", "requester", "PUT", "GET", "HEAD", "DELETE"), PAYER),
}


@pytest.fixture(params=POLICIES)
def locked(request: Any, s3: FaultProxy) -> tuple[FaultProxy, dict[str, Any]]:
    """A locked bucket, and the parameters that open it."""
    policy, extra = POLICIES[request.param]
    s3.faults = [policy]
    return s3, extra


SINGLE = """
GenerateImageOperator(
    task_id="image", prompt="a fox", s3_bucket="posters", s3_key="locked/fox.png", {more}
)
"""
BATCH = """
from airflow_provider_jojokey.operators.jojokey import GenerateImageBatchOperator

GenerateImageBatchOperator(
    task_id="image", s3_bucket="posters", max_images_per_run=5,
    requests=[{{"prompt": "a fox", "s3_key": "locked/0.png"}}, {{"prompt": "an owl", "s3_key": "locked/1.png"}}],
    {more}
)
"""


each_kind_of_task = pytest.mark.parametrize(
    ("body", "keys"),
    [
        (SINGLE, ["locked/fox.png"]),
        (SINGLE.replace("{more}", "deferrable=True, {more}"), ["locked/fox.png"]),
        (BATCH, ["locked/0.png", "locked/1.png"]),
    ],
    ids=["single", "deferred", "batch"],
)


@each_kind_of_task
def test_s3_extra_args_open_a_locked_bucket(
    airflow: Any, gateway: Any, store: Any, locked: Any, body: str, keys: list[str]
) -> None:
    _, extra = locked

    run = airflow.run("locked", body.format(more=f"s3_extra_args={extra!r}"))

    assert run.state == "success"
    assert run.xcom("keys") == keys
    assert len(gateway.charges) == len(keys)
    assert set(keys) <= set(store.objects())


def object_lock(request: Request, forward: Forward) -> Response:
    """Play a bucket with object lock in a store that does not know boto3's checksums."""
    if request.method == "PUT":
        if any("checksum" in name for name in request.headers):
            return error(400, "InvalidRequest", "The header x-amz-checksum-crc32 is not supported")
        digest = base64.b64encode(hashlib.md5(request.body).digest()).decode()
        if request.headers.get("content-md5") != digest:
            return error(400, "InvalidRequest", "Content-MD5 OR x-amz-checksum- HTTP header is required")
    for name in [name for name in request.headers if name.startswith("x-amz-object-lock-")]:
        del request.headers[name]  # moto's bucket has no lock
    return forward(request)


@each_kind_of_task
def test_object_lock_works_without_checksum_headers(
    airflow: Any, gateway: Any, store: Any, monkeypatch: pytest.MonkeyPatch, body: str, keys: list[str]
) -> None:
    with FaultProxy(store.connection["extra"]["endpoint_url"], object_lock) as proxy:
        extra = {**store.connection["extra"], "endpoint_url": proxy.url}
        extra["config_kwargs"] = {
            **extra.get("config_kwargs", {}),
            "request_checksum_calculation": "when_required",
        }
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps({**store.connection, "extra": extra}))
        lock = {"ObjectLockMode": "GOVERNANCE", "ObjectLockRetainUntilDate": "2099-01-01T00:00:00Z"}

        run = airflow.run("object_lock", body.format(more=f"s3_extra_args={lock!r}"))

    assert (run.state, run.xcom("keys")) == ("success", keys)
    assert len(gateway.charges) == len(keys)


@pytest.mark.parametrize("checksums", ["when_supported", "when_required"])
def test_images_are_stored_with_a_lock(
    airflow: Any, gateway: Any, store: Any, monkeypatch: pytest.MonkeyPatch, checksums: str
) -> None:
    store.client.create_bucket(Bucket="locked-posters", ObjectLockEnabledForBucket=True)
    extra = {**store.connection["extra"]}
    extra["config_kwargs"] = {**extra.get("config_kwargs", {}), "request_checksum_calculation": checksums}
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps({**store.connection, "extra": extra}))
    lock = {"ObjectLockMode": "GOVERNANCE", "ObjectLockRetainUntilDate": "2099-01-01T00:00:00Z"}
    body = SINGLE.replace('"posters"', '"locked-posters"').replace("fox.png", f"{checksums}.png")

    run = airflow.run("lock", body.format(more=f"s3_extra_args={lock!r}"))

    assert run.state == "success"
    found = store.client.head_object(Bucket="locked-posters", Key=f"locked/{checksums}.png")
    assert found["ObjectLockMode"] == "GOVERNANCE"


def test_setting_is_the_default_of_s3_extra_args(
    airflow: Any, gateway: Any, store: Any, locked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__JOJOKEY__S3_EXTRA_ARGS", json.dumps(locked[1]))

    run = airflow.run("locked", SINGLE.format(more=""))

    assert (run.state, run.xcom("keys")) == ("success", ["locked/fox.png"])


def test_locked_bucket_without_extra_args_costs_nothing(
    airflow: Any, gateway: Any, store: Any, locked: Any
) -> None:
    run = airflow.run("locked", SINGLE.format(more=""))

    assert run.state == "failed"
    assert not gateway.requests


@pytest.mark.parametrize("command", ["check", "generate"])
def test_cli_opens_a_locked_bucket(
    gateway: Any, store: Any, locked: Any, capfd: pytest.CaptureFixture[str], command: str
) -> None:
    _, extra = locked
    arguments = {
        "check": ["check", "--bucket", "posters"],
        "generate": ["generate", "a fox", "--out", "s3://posters/locked/cli.png"],
    }[command]

    refused = run_in_process(capfd, *arguments, "-o", "json")
    opened = run_in_process(capfd, *arguments, "-o", "json", "--s3-extra-args", json.dumps(extra))

    assert refused.code != 0
    assert "explicit deny" in refused.out + refused.err, "S3's own words"
    assert opened.code == 0, opened.err
    assert len(gateway.charges) == (command == "generate")


@pytest.mark.parametrize("is_setting", [True, False])
def test_receipts_in_a_locked_bucket_are_shown_and_resolved(
    gateway: Any,
    store: Any,
    locked: Any,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    is_setting: bool,
) -> None:
    uri, extra = "s3://posters/locked/cli.png", json.dumps(locked[1])
    option = [] if is_setting else ["--s3-extra-args", extra]
    if is_setting:
        monkeypatch.setenv("AIRFLOW__JOJOKEY__S3_EXTRA_ARGS", extra)
    run_in_process(capfd, "generate", "a fox [sandbox: reset times=1]", "--out", uri, *option)

    for command in (
        ["attempts", uri],
        ["ledger", "--bucket", "posters"],
        ["resolve", uri, "--billed"],
        ["check", "--bucket", "posters"],
    ):
        output = run_in_process(capfd, *command, *option, "-o", "json")
        assert output.code == 0, output.err
        assert output.rows
        assert "couldn't be deleted" not in output.out


def test_ui_reads_a_locked_bucket(
    gateway: Any, store: Any, locked: Any, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow_provider_jojokey.plugins import objects
    from airflow_provider_jojokey.results import StoredImage

    uri, extra = "s3://posters/locked/ui.png", json.dumps(locked[1])
    objects._CLIENTS.clear()
    monkeypatch.setenv("AIRFLOW__JOJOKEY__S3_EXTRA_ARGS", extra)
    assert run_in_process(capfd, "generate", "a fox", "--out", uri).code == 0
    data = store.objects()["locked/ui.png"]
    image = StoredImage("posters", "locked/ui.png", bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

    file, _ = objects.fetch(image, "aws_default")
    with file:
        assert file.read() == data
    receipt = objects.document("s3://posters/_jojokey/locked/ui.png.json", "aws_default", suffix=".json")
    assert json.loads(receipt)["attempts"]

    monkeypatch.setenv("AIRFLOW__JOJOKEY__S3_EXTRA_ARGS", "{")
    with pytest.raises(JojoKeyStoreError, match=r"\[jojokey\] s3_extra_args"):
        objects.fetch(image, "aws_default")


@pytest.mark.parametrize("extra", [{"Body": "x"}, {"Tagging": {"team": "x"}}, {"CacheControl": 3600}])
def test_unusable_parameter_is_an_import_error(extra: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(extra))):
        GenerateImageOperator(task_id="image", prompt="a fox", s3_key="s3://b/k.png", s3_extra_args=extra)


@pytest.mark.parametrize("body", [SINGLE, SINGLE.replace("{more}", "deferrable=True, {more}"), BATCH])
@pytest.mark.parametrize(
    ("setting", "extra"),
    [
        ({}, '{"StorageClass": "{{ \'standard-ia\' }}"}'),
        ({"ObjectLockMode": "GOVERNANCE"}, "{}"),
        ({"Expires": "tomorrow"}, "{}"),
    ],
)
def test_wrong_parameter_of_images_fails_before_payment(
    airflow: Any,
    gateway: Any,
    store: Any,
    monkeypatch: pytest.MonkeyPatch,
    body: str,
    setting: dict[str, Any],
    extra: str,
) -> None:
    monkeypatch.setenv("AIRFLOW__JOJOKEY__S3_EXTRA_ARGS", json.dumps(setting))

    run = airflow.run("locked", body.format(more=f"s3_extra_args={extra!r}, retries=2"))

    assert (run.state, run.tries["image", -1]) == ("failed", 1)
    assert not gateway.requests


@pytest.mark.parametrize("name", ["s3_extra_args", "replace"])
def test_unusable_rendered_argument_fails_before_payment(
    airflow: Any, gateway: Any, store: Any, name: str
) -> None:
    more = f'{name}="{{{{ params.extra }}}}"'

    run = airflow.run("locked", SINGLE.format(more=more), params={"extra": '{"Key": "x"}'})

    assert run.state == "failed"
    assert not gateway.requests


@pytest.mark.parametrize("body", [SINGLE, SINGLE.replace("{more}", "deferrable=True, {more}"), BATCH])
def test_unrelated_object_is_not_replaced_and_nothing_is_paid(
    airflow: Any, gateway: Any, store: Any, body: str
) -> None:
    for key in ("locked/fox.png", "locked/0.png", "locked/1.png"):
        store.client.put_object(Bucket="posters", Key=key, Body=b"a logo")

    run = airflow.run("unrelated", body.format(more=""))

    assert run.state == "failed"
    assert not gateway.requests
    assert store.objects()["locked/fox.png"] == b"a logo"


def test_replace_true_replaces_an_unrelated_object(airflow: Any, gateway: Any, store: Any) -> None:
    store.client.put_object(Bucket="posters", Key="locked/fox.png", Body=b"a logo")

    run = airflow.run("unrelated", SINGLE.format(more='replace="true"'))

    assert (run.state, run.xcom("keys")) == ("success", ["locked/fox.png"])
    assert store.objects()["locked/fox.png"] != b"a logo"


def test_next_run_replaces_its_own_fixed_key(airflow: Any, gateway: Any, store: Any) -> None:
    runs = [airflow.run(f"fixed_{number}", SINGLE.format(more="")) for number in range(2)]

    assert [run.state for run in runs] == ["success", "success"]
    assert len(gateway.charges) == 2


def only_receipts(request: Request, forward: Forward) -> Response:
    """Play a policy that allows writes below ``_jojokey/`` only."""
    if request.method == "PUT" and "/_jojokey/" not in request.target:
        return error(403, "AccessDenied", "no identity-based policy allows the s3:PutObject action")
    return forward(request)


@pytest.fixture
def receipts_only(s3: FaultProxy) -> FaultProxy:
    s3.faults = [only_receipts]
    return s3


def test_image_that_was_not_accepted_is_stored_by_a_retry(
    airflow: Any, gateway: Any, receipts_only: FaultProxy, store: Any
) -> None:
    denied: list[str] = []

    def once(request: Request, forward: Forward) -> Response:
        if not denied and request.method == "PUT" and "/_jojokey/" not in request.target:
            denied.append(request.target)
            return only_receipts(request, forward)
        return forward(request)

    receipts_only.faults = [once]

    run = airflow.run("receipts_only", SINGLE.format(more="retries=1, retry_delay=timedelta(0)"))

    assert (run.state, run.tries) == ("success", {("image", -1): 2})
    assert denied
    assert len(gateway.charges) == 1
    assert "locked/fox.png" in store.objects()


def test_batch_stops_paying_when_an_image_may_not_be_stored(
    airflow: Any, gateway: Any, receipts_only: FaultProxy, store: Any
) -> None:
    requests = [{"prompt": f"fox {number}", "s3_key": f"locked/{number}.png"} for number in range(20)]
    run = airflow.run(
        "receipts_only_batch",
        "from airflow_provider_jojokey.operators.jojokey import GenerateImageBatchOperator\n"
        "GenerateImageBatchOperator(\n"
        f"    task_id='image', s3_bucket='posters', max_in_flight=2, requests={requests!r},\n"
        ")",
    )

    assert run.state == "failed"
    assert 1 <= len(gateway.charges) <= 4
    assert run.xcom("usage")["total_tokens"] == sum(record.total_tokens for record in gateway.charges)
