"""Sign uploads with the SHA-256 digest that the decoder has already computed.

An S3 signature (version 4) contains the SHA-256 of the payload, unless TLS and a checksum by boto3 make it
unnecessary. Reading the image again to compute the digest takes a sixth of the time of an image (measured). The
signature is identical.
"""

from __future__ import annotations

import base64
from typing import Any

from botocore.auth import AUTH_TYPE_MAPS, S3SigV4Auth

NAME = "s3v4-known-digest"


class KnownDigestAuth(S3SigV4Auth):  # type: ignore[misc]
    """Signature version 4 for S3 that takes the payload's digest from the checksum header, if present."""

    def payload(self, request: Any) -> str:
        """Return the payload's digest as 64 hex digits, or the marker for an unsigned payload."""
        checksum = request.headers.get("x-amz-checksum-sha256")
        if checksum and self._should_sha256_sign_payload(request):
            return base64.b64decode(checksum).hex()
        return str(super().payload(request))


def use_known_digest(client: Any) -> None:
    """Make ``client`` sign uploads with known digests if it uses S3's signature version 4."""
    AUTH_TYPE_MAPS.setdefault(NAME, KnownDigestAuth)
    client.meta.events.register("choose-signer.s3.PutObject", _choose)


def _choose(signature_version: str, signing_name: str, **_: Any) -> str | None:
    return NAME if signature_version in ("v4", "s3v4") and signing_name == "s3" else None
