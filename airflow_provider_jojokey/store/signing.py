"""Sign an upload with the digest that is known already.

A signature of S3 (version 4) holds the SHA-256 of the payload wherever TLS and a checksum that
boto3 computed itself do not make it needless. Images bring that digest along, from their decoding:
reading them once more to compute it again costs a sixth of the whole way of an image (measured).
The signature is the same to the last bit.
"""

from __future__ import annotations

import base64
from typing import Any

from botocore.auth import AUTH_TYPE_MAPS, S3SigV4Auth

NAME = "s3v4-known-digest"


class KnownDigestAuth(S3SigV4Auth):  # type: ignore[misc]
    """Signature version 4 for S3; the payload's digest is taken from the checksum header, if it is there."""

    def payload(self, request: Any) -> str:
        """Return the payload's digest, 64 hex digits, or what stands for an unsigned payload."""
        checksum = request.headers.get("x-amz-checksum-sha256")
        if checksum and self._should_sha256_sign_payload(request):
            return base64.b64decode(checksum).hex()
        return str(super().payload(request))


def use_known_digest(client: Any) -> None:
    """Let ``client`` sign its uploads so, where it would have used S3's plain signature version 4."""
    AUTH_TYPE_MAPS.setdefault(NAME, KnownDigestAuth)
    client.meta.events.register("choose-signer.s3.PutObject", _choose)


def _choose(signature_version: str, signing_name: str, **_: Any) -> str | None:
    return NAME if signature_version in ("v4", "s3v4") and signing_name == "s3" else None
