"""Conditional writes: which of two writers wins, by kind of store, and how a store is tested."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Any

import pytest

from airflow_provider_jojokey.store.conditions import Conditions
from airflow_provider_jojokey.store.s3 import ImageStore
from tests.support.buckets import BUCKET, Bucket
from tests.support.clients import Sent, client_to, error_of, store_in, store_of
from tests.support.fault_proxy import (
    Fault,
    FaultProxy,
    answer,
    ceph,
    error,
    ignore,
    lose_request,
    lose_response,
    no_conditions,
    on,
    refuse_if_match,
    times,
)
from tests.support.patience import PATIENCE


def written(store: ImageStore, key: str, data: bytes = b"{}") -> str:
    etag = store.write(BUCKET, key, data, replacing=None)
    assert etag is not None
    return etag


def content(moto: Bucket, key: str) -> bytes:
    return bytes(moto.client().get_object(Bucket=BUCKET, Key=key)["Body"].read())


def write_behind_the_back(moto: Bucket, key: str, data: bytes) -> Fault:
    """Write the object right before the request arrives, as another process could."""

    def fault(request: Any, forward: Any) -> Any:
        moto.client().put_object(Bucket=BUCKET, Key=key, Body=data)
        return forward(request)

    return fault


# --- writing ---------------------------------------------------------------------------------------------------------


def test_write_returns_the_etag_that_read_returns(bucket: Bucket, key: str) -> None:
    store = store_in(bucket)
    assert store.read(BUCKET, key) is None
    etag = store.write(BUCKET, key, b'{"a": 1}', replacing=None)
    assert store.read(BUCKET, key) == (b'{"a": 1}', etag)
    newer = store.write(BUCKET, key, b'{"a": 2}', replacing=etag)
    assert newer not in (None, etag)
    assert store.read(BUCKET, key) == (b'{"a": 2}', newer)


def test_second_writer_fails(moto: Bucket, key: str) -> None:
    store = store_in(moto)
    etag = written(store, key, b"1")
    assert store.write(BUCKET, key, b"2", replacing=None) is None
    assert store.write(BUCKET, key, b"3", replacing=etag)
    assert store.write(BUCKET, key, b"4", replacing=etag) is None
    assert content(moto, key) == b"3"


def test_deleted_object_is_not_replaced(moto: Bucket, key: str) -> None:
    store = store_in(moto)
    etag = written(store, key, b"1")
    moto.client().delete_object(Bucket=BUCKET, Key=key)
    assert store.write(BUCKET, key, b"2", replacing=etag) is None
    assert store.read(BUCKET, key) is None


def test_receipt_is_stored_as_json(bucket: Bucket, key: str) -> None:
    written(store_in(bucket), key)
    assert bucket.client().head_object(Bucket=BUCKET, Key=key)["ContentType"].startswith("application/json")


@pytest.mark.parametrize("code", ["ConditionalRequestConflict", "OperationAborted"])
def test_conflict_of_two_writers_asks_to_read_again(
    proxy: FaultProxy, store: ImageStore, key: str, code: str
) -> None:
    proxy.faults = [answer(error(409, code))]
    assert store.write(BUCKET, key, b"{}", replacing=None) is None


def test_other_conflicts_are_errors(proxy: FaultProxy, store: ImageStore, key: str) -> None:
    proxy.faults = [answer(error(409, "InvalidBucketState"))]
    assert error_of(lambda: store.write(BUCKET, key, b"{}", replacing=None)).code == "InvalidBucketState"


def test_bare_404_to_a_write_is_an_error(proxy: FaultProxy, store: ImageStore, key: str) -> None:
    etag = written(store, key)
    proxy.faults = [answer(error(404))]
    assert error_of(lambda: store.write(BUCKET, key, b"{}", replacing=etag)).status_code == 404


def test_lost_response_leaves_the_write_in_place(
    moto: Bucket, proxy: FaultProxy, store: ImageStore, key: str
) -> None:
    proxy.faults = [times(1, lose_response)]
    assert error_of(lambda: store.write(BUCKET, key, b"mine", replacing=None)).transient
    assert store.write(BUCKET, key, b"mine", replacing=None) is None
    assert store.read(BUCKET, key)[0] == b"mine"  # type: ignore[index]


def test_lost_write_resent_by_botocore_returns_no_etag(proxy: FaultProxy, key: str) -> None:
    # So write() cannot report that another process was faster: this call may have written the object.
    store = store_of(client_to(proxy.url, retries={"total_max_attempts": 2}))
    proxy.faults = [times(1, lose_response)]
    assert store.write(BUCKET, key, b"mine", replacing=None) is None
    assert store.read(BUCKET, key)[0] == b"mine"  # type: ignore[index]


# --- stores that reject or misread conditions ------------------------------------------------------------------------

REJECTIONS = [
    (501, "NotImplemented"),
    (501, ""),
    (400, "InvalidArgument"),
    (400, "BadRequest"),
    (405, "MethodNotAllowed"),
    (405, ""),
]


@pytest.mark.parametrize(("status", "code"), REJECTIONS)
def test_store_that_rejects_conditions_gets_no_conditions(
    proxy: FaultProxy, store: ImageStore, key: str, status: int, code: str
) -> None:
    proxy.faults = [no_conditions(status, code)]
    etag = written(store, key)
    etag = store.write(BUCKET, key, b"2", replacing=etag) or ""
    assert etag
    with proxy.counting() as requests:
        assert written(store, key, b"3")
        assert store.write(BUCKET, key, b"4", replacing=etag)
        assert store.verify_conditional_writes(BUCKET, key, b"4", etag) == Conditions(False, etag)
    assert [request.conditions for request in requests] == [{}, {}]
    assert store.supports_conditional_writes is False
    assert not store.conditional_writes_verified(BUCKET)


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "ExpiredToken"),
        (400, "RequestTimeout"),
        (400, "BadDigest"),
        (400, "InvalidBucketName"),
        (403, "AccessDenied"),
        (500, "InternalError"),
    ],
)
def test_other_rejections_never_drop_the_condition(
    proxy: FaultProxy, store: ImageStore, key: str, status: int, code: str
) -> None:
    proxy.faults = [no_conditions(status, code)]
    assert error_of(lambda: store.write(BUCKET, key, b"{}", replacing=None)).code == code
    assert len(proxy.seen("PUT")) == 1
    assert store.supports_conditional_writes is None


def test_condition_is_kept_if_unconditional_write_fails_too(
    proxy: FaultProxy, store: ImageStore, key: str
) -> None:
    proxy.faults = [on("PUT", "", answer(error(400, "InvalidRequest")))]
    assert error_of(lambda: store.write(BUCKET, key, b"{}", replacing=None)).code == "InvalidRequest"
    proxy.faults = []
    written(store, key)
    assert store.write(BUCKET, key, b"2", replacing=None) is None


def test_verified_store_never_gets_a_write_without_condition(
    proxy: FaultProxy, store: ImageStore, key: str
) -> None:
    etag = written(store, key)
    assert store.verify_conditional_writes(BUCKET, key, b"{}", etag).verified
    proxy.faults = [no_conditions(501)]
    with proxy.counting() as requests:
        assert error_of(lambda: store.write(BUCKET, key, b"2", replacing=etag)).status_code == 501
        assert error_of(lambda: store.write(BUCKET, key, b"2", replacing=None)).status_code == 501
    assert all(request.conditions for request in requests)


def test_existing_receipt_on_untested_ceph_can_be_replaced(
    moto: Bucket, proxy: FaultProxy, store: ImageStore, key: str
) -> None:
    moto.client().put_object(Bucket=BUCKET, Key=key, Body=b"1")
    proxy.faults = [ceph]
    _, etag = store.read(BUCKET, key)  # type: ignore[misc]
    newer = store.write(BUCKET, key, b"2", replacing=etag)
    assert newer is not None
    with proxy.counting() as requests:
        assert store.write(BUCKET, key, b"3", replacing=newer)
    assert len(requests) == 1
    assert store.write(BUCKET, key, b"4", replacing=newer) is None
    assert content(moto, key) == b"3"


def test_stale_etag_on_untested_ceph_fails(
    moto: Bucket, proxy: FaultProxy, store: ImageStore, key: str
) -> None:
    proxy.faults = [ceph]
    stale = written(store, key, b"1")
    moto.client().put_object(Bucket=BUCKET, Key=key, Body=b"2")
    assert store.write(BUCKET, key, b"3", replacing=stale) is None
    assert content(moto, key) == b"2"


def test_stale_etag_is_never_sent_in_another_form(
    moto: Bucket, proxy: FaultProxy, store: ImageStore, key: str
) -> None:
    def ignores_unquoted(request: Any, forward: Any) -> Any:
        if not request.headers.get("if-match", '"').startswith('"'):
            del request.headers["if-match"]
        return forward(request)

    proxy.faults = [ignores_unquoted]
    stale = written(store, key, b"1")
    moto.client().put_object(Bucket=BUCKET, Key=key, Body=b"2")
    assert store.write(BUCKET, key, b"3", replacing=stale) is None
    assert content(moto, key) == b"2"


def test_writer_between_two_forms_of_the_etag_wins(
    moto: Bucket, proxy: FaultProxy, store: ImageStore, key: str
) -> None:
    etag = written(store, key, b"1")
    proxy.faults = [on("PUT", "", times(1, write_behind_the_back(moto, key, b"2"), after=1)), ceph]
    assert store.write(BUCKET, key, b"3", replacing=etag) is None
    assert content(moto, key) == b"2"
    assert store.supports_conditional_writes is None


def test_store_that_rejects_every_if_match_is_written_without_it(
    proxy: FaultProxy, store: ImageStore, key: str
) -> None:
    proxy.faults = [refuse_if_match]
    etag = written(store, key, b"1")
    newer = store.write(BUCKET, key, b"2", replacing=etag)
    assert newer is not None
    with proxy.counting() as requests:
        assert store.write(BUCKET, key, b"3", replacing=newer)
    assert [request.conditions for request in requests] == [{}]
    assert not store.conditional_writes_verified(BUCKET)
    # If-None-Match still works there, so it is still sent.
    assert store.write(BUCKET, key, b"4", replacing=None) is None


# --- the test of a store ---------------------------------------------------------------------------------------------

STORES: list[tuple[str, list[Fault], bool, list[str]]] = [
    ("conforming", [], True, ["PUT", "PUT", "PUT"]),
    ("Ceph", [ceph], True, ["PUT", "PUT", "PUT"]),
    ("ignores If-Match", [ignore("if-match")], False, ["PUT", "PUT", "PUT"]),
    ("ignores If-None-Match", [ignore("if-none-match")], False, ["PUT"]),
    ("ignores both", [ignore("if-match"), ignore("if-none-match")], False, ["PUT"]),
    ("rejects If-Match", [refuse_if_match], False, ["PUT", "PUT", "PUT", "HEAD"]),
    ("has no conditions", [no_conditions(501)], False, []),
]


@pytest.mark.parametrize(
    ("faults", "verified", "methods"), [row[1:] for row in STORES], ids=[row[0] for row in STORES]
)
def test_store_is_tested_once_with_few_requests(
    proxy: FaultProxy, store: ImageStore, key: str, faults: list[Fault], verified: bool, methods: list[str]
) -> None:
    proxy.faults = faults
    etag = written(store, key)
    assert not store.conditional_writes_verified(BUCKET)
    with proxy.counting() as requests:
        found = store.verify_conditional_writes(BUCKET, key, b"{}", etag)
    assert [request.method for request in requests] == methods
    assert found == Conditions(verified, store.read(BUCKET, key)[1])  # type: ignore[index]
    assert store.conditional_writes_verified(BUCKET) is verified
    assert store.supports_conditional_writes is verified
    with proxy.counting() as requests:
        another = store_of(client_to(proxy.url))
        assert another.verify_conditional_writes(BUCKET, key, b"{}", found.etag) == found
    assert requests == []
    # Whatever the store does with conditions, the current ETag replaces the object.
    assert store.write(BUCKET, key, b"2", replacing=found.etag)
    assert store.read(BUCKET, key)[0] == b"2"  # type: ignore[index]


@pytest.mark.parametrize("faults", [[], [ceph]], ids=["conforming", "Ceph"])
def test_verified_store_lets_one_of_two_writers_win(
    proxy: FaultProxy, store: ImageStore, key: str, faults: list[Fault]
) -> None:
    proxy.faults = faults
    etag = store.verify_conditional_writes(BUCKET, key, b"{}", written(store, key)).etag
    stores = [store_of(client_to(proxy.url)) for _ in range(4)]
    start = threading.Barrier(len(stores))
    results: list[str | None] = []

    def run(store: ImageStore, number: int) -> None:
        start.wait(PATIENCE)
        results.append(store.write(BUCKET, key, str(number).encode(), replacing=etag))

    threads = [threading.Thread(target=run, args=(store, number)) for number, store in enumerate(stores)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(result is None for result in results) == [False, True, True, True]


def test_each_bucket_is_tested(moto: Bucket, store: ImageStore, key: str) -> None:
    moto.client().create_bucket(Bucket="another")
    etag = store.write("another", key, b"{}", replacing=None)
    assert etag
    assert store.verify_conditional_writes(BUCKET, key, b"{}", written(store, key)).verified
    assert not store.conditional_writes_verified("another")


def test_threads_wait_for_a_single_test(proxy: FaultProxy, store: ImageStore) -> None:
    keys = [f"concurrent/{number}/receipt.json" for number in range(6)]
    etags = {key: written(store, key) for key in keys}
    results = []

    def run(key: str) -> None:
        results.append(store.verify_conditional_writes(BUCKET, key, b"{}", etags[key]))

    with proxy.counting() as requests:
        threads = [threading.Thread(target=run, args=(key,)) for key in keys]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert [result.verified for result in results] == [True] * 6
    assert len(requests) == 3


def test_aws_needs_no_test() -> None:
    for endpoint in ("https://s3.eu-central-1.amazonaws.com", "https://s3.cn-north-1.amazonaws.com.cn"):
        store = store_of(client_to(endpoint))
        with Sent(store.client) as sent:
            assert store.verify_conditional_writes("posters", "fox", b"{}", '"1"') == Conditions(True, '"1"')
        assert sent.headers == []
        assert store.conditional_writes_verified("posters")
        assert store.supports_conditional_writes


def test_name_that_only_looks_like_aws_is_tested() -> None:
    store = store_of(client_to("http://amazonaws.com.localhost:9"))
    with Sent(store.client) as sent:
        assert store.verify_conditional_writes("posters", "fox", b"{}", '"1"') == Conditions(False, '"1"')
    assert sent.headers != []


@pytest.mark.parametrize("position", [0, 1, 2])
@pytest.mark.parametrize("fault", [lose_request, lose_response, answer(error(503, "SlowDown"))])
def test_transient_error_leaves_the_test_open(
    proxy: FaultProxy, store: ImageStore, key: str, position: int, fault: Fault
) -> None:
    etag = written(store, key)
    proxy.faults = [times(1, fault, after=position)]
    found = store.verify_conditional_writes(BUCKET, key, b"{}", etag)
    assert found == Conditions(False, etag)
    assert store.supports_conditional_writes is None
    assert store.verify_conditional_writes(BUCKET, key, b"{}", found.etag).verified


def test_rejected_test_is_an_error(proxy: FaultProxy, store: ImageStore, key: str) -> None:
    etag = written(store, key)
    proxy.faults = [answer(error(403, "AccessDenied"))]
    failed = error_of(lambda: store.verify_conditional_writes(BUCKET, key, b"{}", etag))
    assert failed.code == "AccessDenied"
    assert "test conditional writes" in failed.message


@pytest.mark.parametrize("position", [1, 2])
def test_writer_during_the_test_is_not_overwritten(
    moto: Bucket, proxy: FaultProxy, store: ImageStore, key: str, position: int
) -> None:
    etag = written(store, key)
    proxy.faults = [on("PUT", "", times(1, write_behind_the_back(moto, key, b"2"), after=position))]
    found = store.verify_conditional_writes(BUCKET, key, b"{}", etag)
    assert content(moto, key) == b"2"
    assert store.write(BUCKET, key, b"3", replacing=found.etag) is None
    # A rejected stale ETag proves nothing about the store.
    assert store.supports_conditional_writes is not False


@pytest.mark.parametrize(
    ("change", "verified"),
    [(lambda etag: etag, True), (lambda etag: f"W/{etag}", True)],
    ids=["strong", "weak"],
)
def test_etag_that_changes_with_every_write_is_followed(
    key: str, change: Callable[[str], str], verified: bool
) -> None:
    # Stores with versions or encryption send other ETags than MD5: the same data gets a new one each time.
    current, versions = [""], itertools.count()

    def versioned(request: Any, forward: Any) -> Any:
        headers = request.headers
        exists = bool(current[0])
        if request.method == "PUT":
            if headers.get("if-none-match") == "*" and exists:
                return error(412, "PreconditionFailed")
            if "if-match" in headers and headers["if-match"] != current[0]:
                return error(412, "PreconditionFailed")
            current[0] = change(f'"{next(versions)}"')
        response = error(200)
        response.headers["etag"] = current[0]
        return response

    with FaultProxy("http://127.0.0.1:9", versioned) as proxy:
        store = store_of(client_to(proxy.url))
        found = store.verify_conditional_writes(BUCKET, key, b"{}", written(store, key))
        assert found == Conditions(verified, current[0])
        assert store.write(BUCKET, key, b"2", replacing=found.etag)


def test_rclone_is_found_to_ignore_conditions(rclone: Bucket, key: str) -> None:
    store = store_in(rclone)
    etag = written(store, key)
    with Sent(store.client) as sent:
        assert not store.verify_conditional_writes(BUCKET, key, b"{}", etag).verified
        assert not store.verify_conditional_writes(BUCKET, key, b"{}", etag).verified
    assert [headers.get("if-none-match") for headers in sent.headers] == ["*"]
    assert store.read(BUCKET, key)[0] == b"{}"  # type: ignore[index]
