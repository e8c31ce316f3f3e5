"""Where in S3 an image goes: the bucket, and a key for each image of a request."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import quote

RECEIPTS = "_jojokey/"
"""The prefix of the receipts; no image may go there."""

MAX_PART = 200
MAX_KEY_BYTES = 1024  # S3's limit, in UTF-8

_EXTENSION_OF = {"jpeg": "jpg"}
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{1,254}")


@dataclass(frozen=True, slots=True)
class Destination:
    """The place of a request's images.

    :param bucket: the bucket's name
    :param key: the key; ``{index}`` becomes 0, 1, 2 … and ``{ext}`` the image's real type
    :param n: how many images were asked for
    :raises ValueError: if S3 or the receipts have no room for such a key
    """

    bucket: str
    key: str
    n: int = 1

    def __post_init__(self) -> None:
        if found := [*bucket_problems(self.bucket), *key_problems(self.key)]:
            raise ValueError("; ".join(found))

    @classmethod
    def parse(cls, s3_bucket: str | None, s3_key: str, n: int = 1) -> Destination:
        """Return the destination that an operator's ``s3_bucket`` and ``s3_key`` name.

        :raises ValueError: if they name none, or two
        """
        bucket, key = split(s3_bucket, s3_key)
        if not bucket:
            raise ValueError("s3_bucket is missing: give it, or a full s3:// URL as s3_key")
        return cls(bucket, key, n)

    def key_for(self, index: int, extension: str) -> str:
        """Return the key of one image.

        :param index: its place in the reply, from 0
        :param extension: ``png``, ``jpg`` or ``webp``, after its real type
        """
        key = self.key
        if (self.n > 1 or index > 0) and "{index}" not in key:  # a gateway may send more than was asked for
            path = PurePosixPath(key)
            key = key.removesuffix(path.suffix) + "-{index}" + path.suffix
        return key.replace("{index}", str(index)).replace("{ext}", extension)

    @property
    def receipt_key(self) -> str:
        """The key of the request's receipt: one for all its images, so ``{index}`` and ``{ext}`` stay as they are."""
        return f"{RECEIPTS}{self.key}.json"

    def key_beside_receipt(self, attempt_id: str, suffix: str) -> str:
        """Return a key next to the receipt that belongs to one attempt alone."""
        return f"{self.receipt_key.removesuffix('.json')}.{attempt_id[:12]}{suffix}"

    def uri(self, key: str) -> str:
        """Return the ``s3://`` URI of a key."""
        return f"s3://{self.bucket}/{key}"


def split(s3_bucket: str | None, s3_key: str) -> tuple[str | None, str]:
    """Return bucket and key of an operator's two arguments, of which ``s3_key`` may be a URL.

    :raises ValueError: if both name a bucket
    """
    if not s3_key.startswith("s3://"):
        return s3_bucket or None, s3_key
    if s3_bucket:
        raise ValueError("s3_bucket and a full s3:// URL as s3_key name two buckets: drop one")
    bucket, _, key = s3_key.removeprefix("s3://").partition("/")
    return bucket, key


def bucket_problems(bucket: str) -> Iterator[str]:
    """Yield why ``bucket`` cannot be a bucket's name."""
    if not _BUCKET.fullmatch(bucket):
        yield f"s3_bucket={bucket[:80]!r} is no bucket's name"


def key_problems(key: str) -> Iterator[str]:
    """Yield why ``key`` cannot be an image's key."""
    if not key or key.endswith("/"):
        yield f"s3_key={key[-80:]!r} names no object: end it with a name such as hero.png"
    elif key.startswith("/") or any(part in ("", ".", "..") for part in key.split("/")):
        yield f"s3_key={key[:80]!r} has an empty, '.' or '..' part, which S3 tools cannot address"
    elif key.startswith(RECEIPTS):
        yield f"s3_key={key[:80]!r} is inside {RECEIPTS}, where the receipts are"
    if any(ord(one) < 32 or ord(one) == 127 or 0xD800 <= ord(one) < 0xE000 for one in key):
        yield "s3_key holds control characters, or half characters"
    if len(key.encode(errors="replace")) > MAX_KEY_BYTES - len(RECEIPTS) - 64:
        yield f"s3_key is longer than S3 allows, {MAX_KEY_BYTES:,} bytes with its receipt's"


def extension_warning(key: str, extension: str) -> str | None:
    """Return a sentence if ``key``'s extension tells another image type than ``extension``, else ``None``."""
    written = PurePosixPath(key).suffix.lower().lstrip(".")
    if written not in ("png", "jpg", "jpeg", "webp", "gif", "avif"):
        return None
    if _EXTENSION_OF.get(written, written) == extension:
        return None
    return (
        f"{key} holds a {extension.upper()} image: it keeps its name, and S3 serves it with its real type. "
        "Write {ext} in s3_key to name images after their type."
    )


def part(text: str) -> str:
    """Return a text of Airflow's as a part of a key that every S3 tool can address."""
    safe = quote(text, safe=":+=@-_. ").replace("%", "_").replace(" ", "_")
    if safe == text and len(safe) <= MAX_PART and safe.strip("."):
        return safe
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{safe[:MAX_PART].strip('.') or 'x'}~{digest}"
