"""Additional S3 parameters: which objects get them, and which are rejected before anything is sent."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from botocore.session import Session
from botocore.validate import ParamValidator
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_jojokey.store.extra_args import (
    EVERY_OBJECT,
    IMAGES_ONLY,
    MAX_METADATA,
    MAX_METADATA_VALUE,
    combined,
    for_documents,
    for_images,
    for_reads,
    metadata,
    parse_extra_args,
)

PUT_OBJECT = Session().get_service_model("s3").operation_model("PutObject").input_shape
KMS = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "alias/posters"}


@pytest.mark.parametrize("value", [None, "", " ", "None", {}, "{}"])
def test_no_extra_args_is_an_empty_dict(value: Any) -> None:
    assert parse_extra_args(value) == {}


def test_dict_and_json_text_are_the_same() -> None:
    text = '{"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "alias/posters"}'
    assert parse_extra_args(KMS) == parse_extra_args(text) == KMS


def test_empty_values_count_as_not_given() -> None:
    assert parse_extra_args({"ACL": None, "Tagging": "", "StorageClass": "STANDARD_IA"}) == {
        "StorageClass": "STANDARD_IA"
    }


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("{", "not a JSON object"),
        ("[]", "dict"),
        (["ACL"], "dict"),
        (3, "dict"),
        ({"Body": "x"}, "'Body'"),
        ({"Key": "x"}, "'Key'"),
        ({"IfMatch": "x"}, "'IfMatch'"),
        ({"acl": "private"}, "'acl'"),
        ({1: 2}, "'1'"),
        ({"SSECustomerKey": "secret"}, "rendered templates"),
        ({"Metadata": "text"}, "Metadata"),
        ({"Metadata": {"a": 1}}, "Metadata"),
    ],
)
def test_unusable_extra_args_are_rejected_by_name(value: Any, words: str) -> None:
    with pytest.raises(ValueError, match="s3_extra_args") as caught:
        parse_extra_args(value)
    assert words in str(caught.value)
    assert "secret" not in str(caught.value)


def test_receipts_get_encryption_but_no_storage_class() -> None:
    extra = parse_extra_args(
        {**KMS, "ACL": "bucket-owner-full-control", "StorageClass": "GLACIER", "Tagging": "a=b"}
    )
    assert for_documents(extra) == {**KMS, "ACL": "bucket-owner-full-control"}
    assert for_images(extra) == extra


def test_reads_get_requester_pays_only() -> None:
    assert for_reads({**KMS, "RequestPayer": "requester"}) == {"RequestPayer": "requester"}


def test_parameters_are_accepted_by_put_object() -> None:
    assert set(PUT_OBJECT.members) >= EVERY_OBJECT | IMAGES_ONLY


@pytest.mark.parametrize("name", sorted(IMAGES_ONLY))
@pytest.mark.parametrize(
    "value", [5, 1.5, True, ["a=b"], {"a": 1}, b"a=b", "é=1", "a=1\nb=2", "\ud800", object()]
)
def test_value_that_boto3_cannot_send_is_rejected(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"s3_extra_args has {name}, which"):
        parse_extra_args({name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Tagging", {"team": "brand"}),
        ("Tagging", "team: brand"),
        ("Tagging", '{"team": "brand"}'),
        ("Tagging", "a=b&a=c"),
        ("Tagging", "=b"),
        ("Tagging", "a=100%"),
        ("Tagging", "&".join(f"t{number}=x" for number in range(11))),
        ("CacheControl", 3600),
        ("StorageClass", "STANDARD-IA"),
        ("StorageClass", "standard_ia"),
        ("Expires", "tomorrow"),
        ("Expires", "2027-13-01"),
        ("Expires", "Mon, 01 Jan 99999999999999 00:00:00 GMT"),
        ("Expires", "9999-12-31T23:59:59-12:00"),
        ("ObjectLockRetainUntilDate", "soon"),
        ("ObjectLockMode", "governance"),
        ("ObjectLockLegalHoldStatus", "on"),
        ("BucketKeyEnabled", "yes"),
        ("BucketKeyEnabled", 1),
        ("ServerSideEncryption", 5),
        ("Metadata", {"équipe": "x"}),
        ("Metadata", {"the team": "x"}),
        ("Metadata", {"": "x"}),
        ("Metadata", {f"m{number}": "v" * 170 for number in range(12)}),
    ],
)
def test_value_that_s3_would_reject_after_payment_is_rejected(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"s3_extra_args has {name}, which"):
        parse_extra_args({name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Tagging", "team=brand&kind=poster&note=a%20b+c&empty="),
        ("StorageClass", "GLACIER_IR"),
        ("StorageClass", "COLD2"),
        ("ACL", "bucket-owner-full-control"),
        ("ServerSideEncryption", "aws:kms:dsse"),
        ("ContentDisposition", "attachment; filename*=UTF-8''%E6%B5%B7.png"),
        ("ObjectLockLegalHoldStatus", "ON"),
        ("BucketKeyEnabled", False),
        ("Metadata", {"team": "équipe"}),
    ],
)
def test_value_that_s3_accepts_is_kept(name: str, value: Any) -> None:
    assert parse_extra_args({name: value}) == {name: value}


@pytest.mark.parametrize(("rendered", "expected"), [("True", True), (" false ", False)])
def test_flag_may_be_a_rendered_template(rendered: str, expected: bool) -> None:
    assert parse_extra_args({"BucketKeyEnabled": rendered}) == {"BucketKeyEnabled": expected}


@pytest.mark.parametrize(
    "value",
    [
        "2027-01-31T08:00:00Z",
        "2027-01-31T08:00",
        "2027-01-31 09:00:00+01:00",
        "Sun, 31 Jan 2027 08:00:00 GMT",
        datetime(2027, 1, 31, 8),
        datetime(2027, 1, 31, 8, tzinfo=UTC),
    ],
)
@pytest.mark.parametrize("name", ["Expires", "ObjectLockRetainUntilDate"])
def test_time_without_zone_is_utc(name: str, value: Any) -> None:
    parsed = parse_extra_args({name: value})
    assert parsed == {name: datetime(2027, 1, 31, 8, tzinfo=UTC)}
    assert parse_extra_args(parsed) == parsed


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.datetimes(),
    st.lists(st.text(), max_size=2), st.dictionaries(st.text(), st.text() | st.integers(), max_size=2),
    st.sampled_from(["ON", "GOVERNANCE", "a=b", "GLACIER", "2027-01-31", "None"]),
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(sorted(EVERY_OBJECT | IMAGES_ONLY)), VALUES, max_size=3))
def test_parsed_parameters_are_valid_for_boto3(value: dict[str, Any]) -> None:
    try:
        parsed = parse_extra_args(value)
    except ValueError:
        return
    sent = {**parsed, "Bucket": "posters", "Key": "fox.png", "Metadata": metadata(parsed.get("Metadata", {}))}
    assert not ParamValidator().validate(sent, PUT_OBJECT).has_errors()
    texts = [text for text in (*parsed.values(), *sent["Metadata"]) if isinstance(text, str)]
    assert all(text.isascii() and text.isprintable() for text in texts)


def test_metadata_names_are_those_that_s3_returns() -> None:
    assert parse_extra_args({"Metadata": {"Team": "x", "SHA256": "y"}}) == {
        "Metadata": {"team": "x", "sha256": "y"}
    }


def test_longest_metadata_leaves_room_for_the_labels() -> None:
    longest = {"m": "v" * (MAX_METADATA_VALUE)} | {"n": "v"}
    while sum(map(len, (*longest, *longest.values()))) < MAX_METADATA:
        longest[f"m{len(longest)}"] = "v" * min(
            MAX_METADATA_VALUE, MAX_METADATA - 2 - sum(map(len, (*longest, *longest.values())))
        )
    given = parse_extra_args({"Metadata": longest})["Metadata"]
    labels = dict.fromkeys(("dag-id", "run-id", "task-id", "model", "size", "request-id"), "x" * 400)
    own = {"map-index": "123456", "attempt-id": "0" * 32, "sha256": "0" * 64, "pixels": "3840x3840"}
    total = sum(len(name) + len(text) for name, text in metadata({**given, **labels, **own}).items())
    assert total <= 2048


SOON = datetime.now(UTC) + timedelta(days=1)


@pytest.mark.parametrize(
    ("defaults", "own", "reported"),
    [
        ({}, {"ObjectLockMode": "GOVERNANCE"}, "needs both"),
        ({"ObjectLockRetainUntilDate": SOON}, {}, "needs both"),
        ({"ObjectLockMode": "GOVERNANCE"}, {"ObjectLockRetainUntilDate": SOON - timedelta(days=2)}, "past"),
    ],
)
def test_incomplete_object_lock_is_rejected(
    defaults: dict[str, Any], own: dict[str, Any], reported: str
) -> None:
    with pytest.raises(ValueError, match=reported):
        combined(defaults, own)


def test_parameters_of_a_task_override_the_settings() -> None:
    lock = {"ObjectLockMode": "GOVERNANCE"}
    assert combined({**KMS, **lock}, {"ObjectLockRetainUntilDate": SOON, "SSEKMSKeyId": "alias/own"}) == {
        **KMS,
        **lock,
        "ObjectLockRetainUntilDate": SOON,
        "SSEKMSKeyId": "alias/own",
    }
