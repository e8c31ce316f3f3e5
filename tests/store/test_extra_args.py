"""Additional S3 parameters: which objects get them, and which are rejected before anything is sent."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_jojokey.store.extra_args import (
    EVERY_OBJECT,
    IMAGES_ONLY,
    for_documents,
    for_images,
    for_reads,
    parse_extra_args,
)

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
    from botocore.session import Session

    shape = Session().get_service_model("s3").operation_model("PutObject").input_shape
    assert set(shape.members) >= EVERY_OBJECT | IMAGES_ONLY
