"""Additional S3 parameters for the objects that the package writes: encryption, ACLs, storage class, tags.

A bucket policy can reject every request without a certain header, regardless of the bucket's defaults. So the
parameters apply to every object: images, receipts, manifests, budgets and previews. Parameters that describe a
finished file, such as storage class, tags and cache control, apply to images only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

READ = frozenset({"ExpectedBucketOwner", "RequestPayer"})
"""Parameters that S3 also accepts for reads."""
EVERY_OBJECT = READ | {
    "ACL",
    "BucketKeyEnabled",
    "GrantFullControl",
    "GrantRead",
    "GrantReadACP",
    "GrantWriteACP",
    "SSEKMSEncryptionContext",
    "SSEKMSKeyId",
    "ServerSideEncryption",
}
IMAGES_ONLY = frozenset(
    {
        "CacheControl",
        "ContentDisposition",
        "ContentLanguage",
        "Expires",
        "Metadata",
        "ObjectLockLegalHoldStatus",
        "ObjectLockMode",
        "ObjectLockRetainUntilDate",
        "StorageClass",
        "Tagging",
        "WebsiteRedirectLocation",
    }
)
NOT_SUPPORTED: Mapping[str, str] = {
    "SSECustomerKey": "the key would be visible in Airflow's rendered templates; use SSE-KMS",
    "SSECustomerAlgorithm": "customer-provided keys are not supported; use SSE-KMS",
    "SSECustomerKeyMD5": "customer-provided keys are not supported; use SSE-KMS",
}


def parse_extra_args(value: Any, name: str = "s3_extra_args") -> dict[str, Any]:
    """Check and return additional S3 parameters.

    :param value: a dict, its JSON text, or ``None``
    :param name: the argument's name, for errors
    :raises ValueError: if it has another type, or contains an unsupported parameter
    """
    if isinstance(value, str):
        if value.strip() in ("", "None"):
            return {}
        try:
            value = json.loads(value)
        except ValueError:
            raise ValueError(f"{name} is not a JSON object") from None
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} must be a dict of S3 parameters, not {type(value).__name__}")
    for key in value:
        if key in NOT_SUPPORTED:
            raise ValueError(f"{name} has {key}: {NOT_SUPPORTED[key]}")
        if key not in EVERY_OBJECT | IMAGES_ONLY:
            known = ", ".join(sorted(EVERY_OBJECT | IMAGES_ONLY))
            raise ValueError(
                f"{name} has the unknown parameter {str(key)[:60]!r}; the known ones are {known}"
            )
    given = {str(key): entry for key, entry in value.items() if entry not in (None, "")}
    metadata = given.get("Metadata", {})
    if not isinstance(metadata, Mapping) or not all(isinstance(text, str) for text in metadata.values()):
        raise ValueError(f"{name} has Metadata that is not a dict of strings")
    return given


def for_images(extra: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters for an image, except ``Metadata``, which is merged with the package's own."""
    return {name: value for name, value in extra.items() if name != "Metadata"}


def for_documents(extra: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters for receipts, manifests and budgets."""
    return {name: value for name, value in extra.items() if name in EVERY_OBJECT}


def for_reads(extra: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters for reads."""
    return {name: value for name, value in extra.items() if name in READ}
