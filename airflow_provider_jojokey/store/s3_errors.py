"""Translate errors of S3 and boto3 into :class:`JojoKeyStoreError` with advice."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from airflow_provider_jojokey.exceptions import JojoKeyStoreError
from airflow_provider_jojokey.translatable import Translatable

MAX_DETAIL_CHARACTERS = 300
"""Maximum length of S3's own message in an error."""


@contextmanager
def translate_errors(doing: str) -> Iterator[None]:
    """Translate errors of boto3 and its HTTP stack into :class:`JojoKeyStoreError`.

    :param doing: the operation, as an infinitive: ``read s3://bucket/key``
    """
    try:
        yield
    except JojoKeyStoreError:
        raise
    except Exception as error:
        if (translated := _translated(error, doing)) is None:
            raise
        raise translated from None


def _translated(error: Exception, doing: str) -> JojoKeyStoreError | None:
    import http.client

    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError
    from urllib3.exceptions import HTTPError

    if isinstance(error, ClientError):
        return _from_response(error, doing)
    # botocore follows redirects recursively, and may wrap the RecursionError.
    wrapped = getattr(error, "kwargs", {}).get("error")
    if isinstance(error, RecursionError) or isinstance(wrapped, RecursionError):
        return JojoKeyStoreError(
            Translatable("S3 redirects every request to {doing}.", doing=doing),
            Translatable(
                "In the AWS connection's extra, set region_name and any endpoint_url to the bucket's."
            ),
        )
    if isinstance(error, BotoCoreError):
        return _from_botocore(error, doing)
    # botocore does not wrap errors while it reads the body of an error response.
    if isinstance(
        error, (HTTPError, http.client.HTTPException, ConnectionError, TimeoutError, ResponseParserError)
    ):
        return JojoKeyStoreError(
            Translatable(
                "The response of S3 to the request to {doing} was interrupted ({error}).",
                doing=doing,
                error=type(error).__name__,
            ),
            _CONNECTION,
            transient=True,
        )
    return None


def _from_response(error: Any, doing: str) -> JojoKeyStoreError:
    code, status = code_of(error), status_of(error)
    transient = code not in _PERMANENT and (
        status is None or (status >= 500 and status not in (501, 505)) or status == 429 or code in _TRANSIENT
    )
    headers = headers_of(error.response)
    message = str(error.response.get("Error", {}).get("Message") or "")
    operation = str(getattr(error, "operation_name", ""))
    if operation.startswith(("AssumeRole", "GetSessionToken", "GetFederationToken")):
        what = Translatable(
            "AWS STS rejected {operation}, which the AWS connection requires.", operation=operation
        )
        todo = Translatable("Check the role and its trust policy.")
    else:
        what = Translatable("S3 rejected the request to {doing}.", doing=doing)
        todo = _advice(code, message, error.response) or (_WAIT if transient else _DEFAULT_TODO)
    if is_web_page(headers):
        what = Translatable(
            "A web page was returned for the request to {doing}, so it did not come from S3.", doing=doing
        )
        todo = Translatable("Check the AWS connection's endpoint_url, and any proxy or firewall in between.")
    no_code = code in ("", str(status))
    return JojoKeyStoreError(
        what,
        todo,
        detail=redacted(message),
        status_code=status,
        code=None if no_code else code,
        transient=transient,
    )


def _from_botocore(error: Any, doing: str) -> JojoKeyStoreError:
    from botocore import exceptions

    name = type(error).__name__.removesuffix("Error")
    network = isinstance(error, (exceptions.HTTPClientError, exceptions.ConnectionError))
    transient = (
        exceptions.IncompleteReadError,
        exceptions.CredentialRetrievalError,
        exceptions.MetadataRetrievalError,
        exceptions.FlexibleChecksumError,
    )
    if isinstance(error, exceptions.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
        return JojoKeyStoreError(
            Translatable(
                "This host does not trust S3's certificate, so the request to {doing} was not sent.",
                doing=doing,
            ),
            Translatable(
                "Set verify in the AWS connection's extra to the file of the CA that signed the certificate."
            ),
            detail=redacted(str(error)),
        )
    return JojoKeyStoreError(
        Translatable("S3 did not respond to the request to {doing} ({error}).", doing=doing, error=name)
        if network
        else Translatable("The request to {doing} failed ({error}).", doing=doing, error=name),
        _CONNECTION,
        detail=redacted(str(error)),
        transient=network or isinstance(error, transient),
    )


def _advice(code: str, message: str, response: Mapping[str, Any]) -> Translatable | None:
    """Return the advice for an error response of S3, or ``None`` if there is none for its code."""
    lower = message.lower()
    if "kms" in lower or code.startswith("KMS."):
        return Translatable(
            "Let the AWS connection's user use the bucket's KMS key (kms:GenerateDataKey, kms:Decrypt), in the key "
            "policy as well if the key belongs to another account."
        )
    if code in ("AccessDenied", "403") and "explicit deny" in lower:
        return Translatable(
            "A policy denies this explicitly, so another permission does not help. Look for a Deny in the bucket "
            "policy, the user's policies and the organization's policies. Some policies require an encryption "
            "header, an ACL or a network."
        )
    missing = re.search(r"not authorized to perform: (s3:[A-Za-z]+)", message)
    if missing and missing[1] not in ("s3:GetObject", "s3:PutObject", "s3:ListBucket"):
        return Translatable(
            "Allow the AWS connection's user the action {action}, or leave out the parameter of s3_extra_args that "
            "needs it.",
            action=missing[1],
        )
    if code in (
        "PermanentRedirect",
        "AuthorizationHeaderMalformed",
        "IllegalLocationConstraintException",
        "301",
    ):
        error = response.get("Error", {})
        region = error.get("Region") or headers_of(response).get("x-amz-bucket-region")
        if region:
            return Translatable(
                "Set region_name in the AWS connection's extra to {region}.", region=redacted(str(region))
            )
        if endpoint := error.get("Endpoint"):
            return Translatable(
                "Set endpoint_url in the AWS connection's extra to https://{endpoint}.",
                endpoint=redacted(str(endpoint)),
            )
        return Translatable("Set region_name in the AWS connection's extra to the bucket's region.")
    if code in ("InvalidArgument", "InvalidRequest", "NotImplemented", "XNotImplemented", "501") and any(
        word in lower for word in ("checksum", "trailer", "aws-chunked", "content-sha256")
    ):
        return Translatable(
            "This store does not support boto3's checksums. Add to the AWS connection's extra: "
            '{"config_kwargs": {"request_checksum_calculation": "when_required", '
            '"response_checksum_validation": "when_required"}}.'
        )
    return _TODO.get(code)


_CONNECTION = Translatable(
    "Check the AWS connection's endpoint, region and credentials, and whether this host can reach S3."
)
_TRANSIENT = {
    "SlowDown",
    "RequestTimeout",
    "InternalError",
    "ServiceUnavailable",
    "IncompleteBody",
    "BadDigest",
}
_PERMANENT = {"QuotaExceeded", "RequestTimeTooSkewed", "XMinioStorageFull"}
_DEFAULT_TODO = Translatable("Check the AWS connection and its user's permissions for this bucket.")
_WAIT = Translatable("S3 is overloaded or has failed. This is usually temporary, so try again later.")
_PERMISSIONS = Translatable(
    "Let the AWS connection's user read and write objects (s3:GetObject, s3:PutObject) and list the bucket "
    "(s3:ListBucket). Without s3:ListBucket, S3 does not distinguish a missing object from a forbidden one."
)
_TODO = {
    "403": _PERMISSIONS,
    "AccessDenied": _PERMISSIONS,
    "AllAccessDisabled": Translatable("The owner or AWS has disabled access to this bucket."),
    "ExpiredToken": Translatable(
        "The credentials have expired. Renew the session token in the AWS connection, or use a role."
    ),
    "InvalidAccessKeyId": Translatable("This store does not know the AWS connection's access key."),
    "InvalidBucketName": Translatable("Correct s3_bucket: the name is not a valid bucket name."),
    "InvalidToken": Translatable(
        "Renew the session token in the AWS connection, or remove it if the keys are not temporary."
    ),
    "NoSuchBucket": Translatable("Create the bucket, or correct s3_bucket."),
    "QuotaExceeded": Translatable("Free some space in the store, or raise its quota."),
    "RequestTimeTooSkewed": Translatable(
        "Correct this worker's clock: it differs from S3's by more than 15 minutes."
    ),
    "SignatureDoesNotMatch": Translatable(
        "The AWS connection's secret key is wrong, or its endpoint or region does not match."
    ),
    "XMinioStorageFull": Translatable("Free some space in the store."),
}


def client_error() -> Any:
    """Return botocore's ``ClientError``, imported here to keep Dag parsing fast."""
    from botocore.exceptions import ClientError

    return ClientError


def code_of(error: Any) -> str:
    """Return S3's error code, such as ``NoSuchKey``; empty if there is none."""
    return str(error.response.get("Error", {}).get("Code") or "")


def status_of(error: Any) -> int | None:
    """Return the HTTP status of an error response."""
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status if isinstance(status, int) else None


def headers_of(response: Mapping[str, Any]) -> Mapping[str, str]:
    """Return a response's HTTP headers, with names in lower case."""
    headers: Mapping[str, str] = response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return headers


def is_web_page(headers: Mapping[str, str]) -> bool:
    """Return whether a response is a web page: HTML without any of S3's headers."""
    return "html" in headers.get("content-type", "") and not any(
        name.startswith("x-amz-") for name in headers
    )


def redacted(text: str) -> str:
    """Return S3's text, redacted and shortened for an error."""
    from airflow_provider_jojokey.img2.redact import clean

    text = clean(text)
    return text if len(text) <= MAX_DETAIL_CHARACTERS else text[: MAX_DETAIL_CHARACTERS - 1] + "…"
