"""Additional S3 parameters for the objects that the package writes: encryption, ACLs, storage class, tags.

A bucket policy can reject every request without a certain header, regardless of the bucket's defaults. So the
parameters apply to every object: images, receipts, manifests, budgets and previews. Parameters that describe a
finished file, such as storage class, tags and cache control, apply to images only.

S3 receives the parameters of images after payment. So their values are checked before anything is sent: types, what an
HTTP header can contain, and values that no S3 store accepts. Stores have their own ACLs, kinds of encryption and
storage classes. S3 itself checks the first two before payment, when it stores the receipt.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import parse_qsl, quote

READ = frozenset({"ExpectedBucketOwner", "RequestPayer"})
"""Parameters that S3 also accepts for reads, lists and deletions."""
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

LOCK, LOCK_END = "ObjectLockMode", "ObjectLockRetainUntilDate"
"""S3 accepts neither without the other."""

MAX_METADATA = 700
"""Maximum bytes of the names and values in ``Metadata``. S3 accepts 2 KB, which includes the package's own metadata."""
MAX_METADATA_VALUE = 180
"""Bytes. S3 rejects more than 2 KB of metadata in total, and the package writes up to eight values."""
MAX_TAGS = 10

_METADATA_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_PARTIAL_ESCAPE = re.compile("%[0-9A-F]?$")


def parse_extra_args(value: Any, name: str = "s3_extra_args") -> dict[str, Any]:
    """Check and return additional S3 parameters.

    :param value: a dict, its JSON text, or ``None``
    :param name: the argument's name, for errors
    :raises ValueError: if it has another type, or contains an unsupported parameter
    """
    if isinstance(value, str):
        if _is_empty(value):
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
    found: dict[str, Any] = {}
    for key, entry in value.items():
        if _is_empty(entry):
            continue
        check: Callable[[Any], Any] = _CHECKS.get(key, _text)
        try:
            found[str(key)] = check(entry)
        except ValueError as error:
            raise ValueError(f"{name} has {key}, which {error}") from None
    return found


def combined(defaults: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of a task: its own, and those of the settings that it does not override.

    :raises ValueError: if S3 would reject the combination after payment
    """
    extra = {**defaults, **own}
    if (LOCK in extra) != (LOCK_END in extra):
        raise ValueError(f"s3_extra_args needs both {LOCK} and {LOCK_END}, or neither")
    if LOCK_END in extra and extra[LOCK_END] <= datetime.now(UTC):
        raise ValueError(
            f"s3_extra_args has {LOCK_END}={extra[LOCK_END].isoformat()!r}, which is in the past"
        )
    return extra


def metadata(labels: Mapping[str, str]) -> dict[str, str]:
    """Return ``labels`` as S3 metadata: percent-encoded as ASCII and truncated if too long."""
    kept = {}
    for name, value in labels.items():
        encoded = quote(value, safe=" !#$&'()*+,/:;=?@[]-._~|{}<>^`\"", errors="replace").strip()
        if len(encoded) > MAX_METADATA_VALUE:
            encoded = _PARTIAL_ESCAPE.sub("", encoded[: MAX_METADATA_VALUE - 3]) + "..."
        if encoded:
            kept[name] = encoded
    return kept


def for_images(extra: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters for an image, except ``Metadata``, which is merged with the package's own."""
    return {name: value for name, value in extra.items() if name != "Metadata"}


def for_documents(extra: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters for receipts, manifests and budgets."""
    return {name: value for name, value in extra.items() if name in EVERY_OBJECT}


def for_reads(extra: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters for reads."""
    return {name: value for name, value in extra.items() if name in READ}


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value.strip() in ("", "None"))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"must be text, not {type(value).__name__}")
    if not (value.isascii() and value.isprintable()):
        raise ValueError("contains characters other than printable ASCII: encode them, for example as %C3%A9")
    return value.strip()


def _flag(value: Any) -> bool:
    """Return whether a flag is set. A template in a dict renders to text."""
    written = str(value).strip().lower()
    if not isinstance(value, (bool, str)) or written not in ("true", "false"):
        raise ValueError(f"must be true or false, not {str(value)[:40]!r}")
    return written == "true"


def _one_of(*choices: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        found = _text(value)
        if found not in choices:
            raise ValueError(f"must be {' or '.join(choices)}, not {found[:40]!r}")
        return found

    return check


def _storage_class(value: Any) -> str:
    if not re.fullmatch("[A-Z0-9_]+", found := _text(value)):
        raise ValueError(f"must be a name such as STANDARD_IA, not {found[:40]!r}")
    return found


def _time(value: Any) -> datetime:
    """Return a time with a time zone. The default is UTC, as in Airflow; boto3 would use the host's."""
    found = value
    if isinstance(value, str):
        for parse in (datetime.fromisoformat, parsedate_to_datetime):
            try:
                found = parse(value.strip())
                break
            except (ValueError, OverflowError):
                continue
    if not isinstance(found, datetime):
        raise ValueError(f"must be a time such as 2027-01-31T08:00:00Z, not {str(value)[:40]!r}")
    try:
        return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)
    except OverflowError:  # S3's client writes it in UTC, which would fail after payment
        raise ValueError(f"must be a time before the year 10000 in UTC, not {str(value)[:40]!r}") from None


def _tags(value: Any) -> str:
    text = _text(value)
    try:
        if re.search("%(?![0-9A-Fa-f]{2})", text):
            raise ValueError
        names = [tag for tag, _ in parse_qsl(text, True, strict_parsing=True, errors="strict")]
    except ValueError:
        raise ValueError("must be the query of a URL, such as team=brand&kind=poster") from None
    if len(names) > MAX_TAGS or len(set(names)) < len(names) or "" in names:
        raise ValueError(f"must contain up to {MAX_TAGS} tags with different names")
    return text


def _metadata(value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping) or not all(isinstance(text, str) for text in value.values()):
        raise ValueError("is not a dict of strings")
    for name in value:
        if not (isinstance(name, str) and _METADATA_NAME.fullmatch(name)):
            raise ValueError(f"contains {str(name)[:40]!r}: names may contain ASCII letters, digits, - and _")
    # S3 returns the names in lower case. So "Sha256" would be another value of the package's own "sha256".
    found = {name.lower(): text for name, text in value.items()}
    size = sum(len(name) + len(text) for name, text in metadata(found).items())
    if size > MAX_METADATA:
        raise ValueError(f"has {size} bytes; at most {MAX_METADATA} are possible")
    return found


_CHECKS: Mapping[str, Callable[[Any], Any]] = {
    "BucketKeyEnabled": _flag,
    "Expires": _time,
    "Metadata": _metadata,
    LOCK: _one_of("GOVERNANCE", "COMPLIANCE"),
    "ObjectLockLegalHoldStatus": _one_of("ON", "OFF"),
    LOCK_END: _time,
    "StorageClass": _storage_class,
    "Tagging": _tags,
}
