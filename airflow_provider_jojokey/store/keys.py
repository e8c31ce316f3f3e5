"""The bucket and the keys of a request's images, and their rules."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from urllib.parse import quote

from msgspec import Struct

from airflow_provider_jojokey.img2.rules import unstorable

RECEIPTS = "_jojokey/"
"""The prefix of the receipts. Images are not allowed there."""

MAX_PART = 200
MAX_KEY_BYTES = 1024  # S3's limit, in UTF-8

_EXTENSION_OF = {"jpeg": "jpg"}
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{1,254}")
_CONTROL = re.compile("[\0-\x1f\x7f]")
# These are compiled on first use, because every parse of a Dag file imports this module.
_ARN_OF_BUCKET = r"arn:aws[a-z-]*:s3:::([^/:]+)"
_ARN = (
    r"arn:(?P<partition>aws[a-z-]*):(?P<service>s3|s3-object-lambda|s3-outposts):(?P<region>[a-z0-9-]*):"
    r"(?P<account>[0-9]{12}):(?:outpost[:/](?P<outpost>[A-Za-z0-9-]{1,63})[:/])?"
    r"accesspoint[:/](?P<name>[A-Za-z0-9.-]{1,63})(?![^/])"
)


class AccessPoint(Struct, frozen=True):
    """An access point, which S3 accepts instead of a bucket.

    :param partition: ``aws``, ``aws-cn`` …
    :param service: ``s3``, ``s3-object-lambda`` or ``s3-outposts``
    :param region: empty if it spans several regions
    :param account: the account's ID
    :param name: its name
    """

    partition: str
    service: str
    region: str
    account: str
    name: str

    @classmethod
    def of(cls, bucket: str) -> AccessPoint | None:
        """Return the access point whose ARN is used as ``bucket``; ``None`` if it is not an access point's ARN."""
        found = re.fullmatch(_ARN, bucket) if bucket.startswith("arn:") else None
        if found is None or bool(found["outpost"]) != (found["service"] == "s3-outposts"):
            return None
        return cls(*found.group("partition", "service", "region", "account", "name"))


class Destination(Struct, frozen=True):
    """The bucket and keys of a request's images.

    :param bucket: the bucket's name
    :param key: the key; ``{index}`` becomes 0, 1, 2 … and ``{ext}`` the image's actual type
    :param n: the number of requested images
    :raises ValueError: if bucket or key is invalid
    """

    bucket: str
    key: str
    n: int = 1

    def __post_init__(self) -> None:
        if found := [*bucket_problems(self.bucket), *key_problems(self.key)]:
            raise ValueError("; ".join(found))

    @classmethod
    def parse(
        cls,
        s3_bucket: str | None,
        s3_key: str,
        n: int = 1,
        default_bucket: Callable[[], str | None] = lambda: None,
    ) -> Destination:
        """Return the destination for an operator's ``s3_bucket`` and ``s3_key``.

        :param default_bucket: returns the bucket to use if neither argument names one
        :raises ValueError: if no bucket is named, or two are
        """
        bucket, key = split(s3_bucket, s3_key)
        bucket = bucket or default_bucket()
        if not bucket:
            raise ValueError(NO_BUCKET)
        return cls(bucket, key, n)

    def key_for(self, index: int, extension: str) -> str:
        """Return the key of one image.

        :param index: its position in the response, from 0
        :param extension: ``png``, ``jpg`` or ``webp``, by its actual type
        """
        key = self.key
        if (self.n > 1 or index > 0) and "{index}" not in key:  # a gateway may return more than requested
            path = PurePosixPath(key)
            key = key.removesuffix(path.suffix) + "-{index}" + path.suffix
        return key.replace("{index}", str(index)).replace("{ext}", extension)

    @property
    def receipt_key(self) -> str:
        """The key of the receipt. All images of a request share it, so ``{index}`` and ``{ext}`` are not replaced."""
        return f"{RECEIPTS}{self.key}.json"

    def key_beside_receipt(self, attempt_id: str, suffix: str) -> str:
        """Return a key next to the receipt, unique for one attempt."""
        return f"{self.receipt_key.removesuffix('.json')}.{attempt_id[:12]}{suffix}"

    def uri(self, key: str) -> str:
        """Return the ``s3://`` URI of a key."""
        return f"s3://{self.bucket}/{key}"


NO_BUCKET = (
    "s3_bucket is missing: pass it, pass a full s3:// URL as s3_key, or set bucket_name in the service_config of "
    "the AWS connection"
)


def split(s3_bucket: str | None, s3_key: str) -> tuple[str | None, str]:
    """Return bucket and key for an operator's two arguments. ``s3_key`` may be a full URL.

    :raises ValueError: if both name a bucket
    """
    if not s3_key.startswith("s3://"):
        return s3_bucket or None, s3_key
    bucket, key = split_uri(s3_key)
    if s3_bucket and bucket:
        raise ValueError("s3_bucket and the s3:// URL in s3_key each name a bucket: remove one")
    return bucket or s3_bucket or None, key


def split_uri(uri: str) -> tuple[str, str]:
    """Return bucket and key of an ``s3://`` URI. The bucket may be an access point's ARN, which contains slashes."""
    path = uri.removeprefix("s3://")
    arn = re.match(_ARN, path) if path.startswith("arn:") else None
    end = arn.end() if arn and AccessPoint.of(arn[0]) else path.find("/")
    if end < 0:
        return path, ""
    return path[:end], path[end:].removeprefix("/")


def bucket_problems(bucket: str) -> Iterator[str]:
    """Yield why ``bucket`` is not a valid bucket name."""
    if AccessPoint.of(bucket):
        return
    if bucket.startswith("arn:"):
        if arn := re.fullmatch(_ARN_OF_BUCKET, bucket):
            yield f"s3_bucket={bucket[:80]!r} is the ARN of a bucket: pass its name, {arn[1]!r}"
        else:
            yield f"s3_bucket={bucket[:120]!r} is not the ARN of an access point"
    elif bucket.startswith("s3://"):
        yield f"s3_bucket={bucket[:80]!r} is a URL: pass the bucket's name alone"
    elif "/" in bucket:
        yield f"s3_bucket={bucket[:80]!r} is not a valid bucket name: put the part after the slash into s3_key"
    elif "@" in bucket:  # the form of Airflow's ObjectStoragePath
        yield f"s3_bucket={bucket[:80]!r} is not a valid bucket name: pass the connection before @ as aws_conn_id"
    elif not _BUCKET.fullmatch(bucket):
        yield f"s3_bucket={bucket[:80]!r} is not a valid bucket name"


def key_problems(key: str) -> Iterator[str]:
    """Yield why ``key`` is not a valid key for an image."""
    if not key or key.endswith("/"):
        yield f"s3_key={key[-80:]!r} does not name an object: end it with a name such as hero.png"
    elif "://" in key:
        yield f"s3_key={key[:80]!r} is not an s3:// URL: pass s3://bucket/key, or the key alone and s3_bucket"
    elif key.startswith("/") or any(part in ("", ".", "..") for part in key.split("/")):
        yield f"s3_key={key[:80]!r} has an empty, '.' or '..' part, which S3 tools cannot address"
    elif key.startswith(RECEIPTS):
        yield f"s3_key={key[:80]!r} starts with {RECEIPTS}, which is reserved for receipts"
    if _CONTROL.search(key) or unstorable(key):
        yield "s3_key contains control characters or unpaired surrogates"
    if len(key.encode(errors="replace")) > MAX_KEY_BYTES - len(RECEIPTS) - 64:
        yield f"s3_key is too long: S3 allows {MAX_KEY_BYTES:,} bytes, including the receipt's prefix and suffix"


def extension_warning(key: str, extension: str) -> str | None:
    """Return a warning if the extension of ``key`` does not match ``extension``, else ``None``."""
    written = PurePosixPath(key).suffix.lower().lstrip(".")
    if written not in ("png", "jpg", "jpeg", "webp", "gif", "avif"):
        return None
    if _EXTENSION_OF.get(written, written) == extension:
        return None
    return (
        f"{key} is a {extension.upper()} image: it keeps its name, and S3 serves it with its actual type. "
        "Use {ext} in s3_key to name images by their type."
    )


def part(text: str) -> str:
    """Return an Airflow identifier as a key part that every S3 tool can address."""
    safe = quote(text, safe=":+=@-_. ").replace("%", "_").replace(" ", "_")
    if safe == text and len(safe) <= MAX_PART and safe.strip("."):
        return safe
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{safe[:MAX_PART].strip('.') or 'x'}~{digest}"
