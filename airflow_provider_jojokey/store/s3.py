"""Images into S3, through the user's own AWS connection."""

from __future__ import annotations

import base64
import re
import threading
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlsplit

from airflow_provider_jojokey.exceptions import JojoKeyStoreError
from airflow_provider_jojokey.store.keys import Destination

if TYPE_CHECKING:
    from airflow_provider_jojokey.img2.images import Image

T = TypeVar("T")

MAX_METADATA_VALUE = 180
"""Bytes. S3 refuses more than 2 KB of metadata in all; at most eight values are written."""


class ImageStore:
    """S3, as far as images need it. Threads may share it.

    :param aws_conn_id: the Airflow connection to AWS or to an S3-compatible store
    """

    def __init__(self, aws_conn_id: str | None) -> None:
        self.aws_conn_id = aws_conn_id
        self._knows_conditions = True
        self._conditions_proven: bool | None = None

    @cached_property
    def client(self) -> Any:
        """The boto3 client.

        :raises JojoKeyStoreError: if the connection does not exist or cannot be used
        """
        from airflow.providers.amazon.aws.hooks.s3 import S3Hook

        from airflow_provider_jojokey.store.signing import use_known_digest

        with store_errors("use the AWS connection"):
            client = S3Hook(aws_conn_id=self.aws_conn_id).get_conn()
            use_known_digest(client)
            return client

    def put_image(self, destination: Destination, key: str, image: Image, labels: Mapping[str, str]) -> None:
        """Store one image, with its type and a checksum that S3 compares.

        :param destination: the bucket
        :param key: the object's key
        :param image: the image
        :param labels: what to keep as the object's metadata
        :raises JojoKeyStoreError: if S3 does not take it
        """
        checksum = {}
        if self._sends_checksums:
            # Known since the image was decoded: it covers the spool as well, and saves boto3 its own passes.
            checksum["ChecksumSHA256"] = base64.b64encode(bytes.fromhex(image.file.sha256)).decode()
        image.file.file.seek(0)
        with store_errors(f"write {destination.uri(key)}"):
            self.client.put_object(
                Bucket=destination.bucket,
                Key=key,
                Body=image.file.file,
                ContentLength=image.file.size,
                ContentType=image.content_type,
                Metadata=metadata(labels),
                **checksum,
            )

    def size_of(self, bucket: str, key: str) -> int | None:
        """Return an object's size in bytes, or ``None`` if there is none.

        :raises JojoKeyStoreError: if S3 does not tell
        """
        with store_errors(f"look at s3://{bucket}/{key}"):
            try:
                return int(self.client.head_object(Bucket=bucket, Key=key)["ContentLength"])
            except self.client.exceptions.ClientError as error:
                if _code(error) in ("404", "NoSuchKey", "NotFound"):
                    return None
                raise

    def read(self, bucket: str, key: str) -> tuple[bytes, str] | None:
        """Return a small object and its ETag, or ``None`` if surely there is none.

        :raises JojoKeyStoreError: if S3 does not tell; that is not the same as "there is none"
        """
        with store_errors(f"read s3://{bucket}/{key}"):
            try:
                answer = self.client.get_object(Bucket=bucket, Key=key)
                with closing(
                    answer["Body"]
                ) as body:  # not "with" alone: that gives the stream without its checks
                    return body.read(), answer["ETag"]
            except self.client.exceptions.ClientError as error:
                if _code(error) == "NoSuchKey":  # a bare 404 may come from anything on the way
                    return None
                raise

    def write(self, bucket: str, key: str, data: bytes, replacing: str | None) -> str | None:
        """Write a small object if nobody else has written it meanwhile, where the store knows such conditions.

        :param replacing: the ETag of what it replaces; ``None`` where nothing was there
        :return: the new ETag, or ``None`` if somebody else was faster
        :raises JojoKeyStoreError: if S3 does not take it
        """
        condition = {}
        if self._knows_conditions:
            condition = {"IfNoneMatch": "*"} if replacing is None else {"IfMatch": replacing}
        with store_errors(f"write s3://{bucket}/{key}"):
            try:
                answer = self.client.put_object(
                    Bucket=bucket,
                    Key=key,
                    Body=data,
                    ContentType="application/json; charset=utf-8",
                    **condition,
                )
            except self.client.exceptions.ClientError as error:
                if condition and _code(error) in (
                    "PreconditionFailed",
                    "412",
                    "ConditionalRequestConflict",
                    "409",
                ):
                    return None
                if "IfMatch" in condition and _code(error) in ("NoSuchKey", "404"):
                    return None  # deleted meanwhile
                if condition and _code(error) in ("NotImplemented", "501"):
                    self._knows_conditions = False
                    return self.write(bucket, key, data, replacing)
                raise
        return str(answer["ETag"])

    def honours_conditions(self, bucket: str, key: str, data: bytes) -> bool:
        """Tell whether this store lets only one of two writers win. Asked once, then known.

        :param key: an object that is there
        :param data: what it holds: written over itself where the store does not honour the condition
        :raises JojoKeyStoreError: if S3 does not tell
        """
        if self._conditions_proven is None and is_aws(self.client.meta.endpoint_url):
            self._conditions_proven = True
        if self._conditions_proven is None:
            self._conditions_proven = (
                self._knows_conditions and self.write(bucket, key, data, replacing=None) is None
            )
        return self._conditions_proven

    @property
    def proven(self) -> bool:
        """Whether this store is known to let only one of two writers win."""
        return bool(self._conditions_proven)

    @cached_property
    def _sends_checksums(self) -> bool:
        # Who sets "when_required" has a store that does not know them.
        return bool(self.client.meta.config.request_checksum_calculation != "when_required")


def is_aws(endpoint_url: str) -> bool:
    """Tell whether this is AWS's own S3."""
    host = urlsplit(endpoint_url).hostname or ""
    return host.endswith((".amazonaws.com", ".amazonaws.com.cn"))


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def patiently(
    call: Callable[[], T],
    *,
    patience: float,
    stopping: threading.Event,
    before_sleep: Callable[[Any], None] | None = None,
) -> T:
    """Do what S3 must not refuse any more, waiting out an outage.

    :param patience: seconds after which it is given up
    :param stopping: ends the wait
    :param before_sleep: told of each wait, see ``tenacity``
    :raises JojoKeyStoreError: what S3 still said in the end
    """
    import tenacity

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(lambda error: getattr(error, "passing", False)),
        wait=tenacity.wait_exponential_jitter(initial=1, max=30),
        stop=tenacity.stop_any(tenacity.stop_after_delay(patience), tenacity.stop_when_event_set(stopping)),
        sleep=tenacity.sleep_using_event(stopping),
        before_sleep=before_sleep,
        reraise=True,
    )
    return retrying(call)


class store_errors:
    """Turn what boto3 raises inside into a :class:`JojoKeyStoreError` that says what could not be done."""

    def __init__(self, doing: str) -> None:
        self.doing = doing

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
        if error is None:
            return
        from botocore.exceptions import (
            BotoCoreError,
            ClientError,
            NoCredentialsError,
            ParamValidationError,
            PartialCredentialsError,
        )

        if isinstance(error, ClientError):
            code = _code(error)
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            raise JojoKeyStoreError(
                f"S3 refused to {self.doing} ({code}, HTTP {status}). {_TODO.get(code, _TODO_ELSE)}",
                status_code=status,
                code=code,
                passing=status is None or status >= 500 or status == 429 or code in _PASSING,
            ) from None
        if isinstance(error, BotoCoreError):
            reason = type(error).__name__.removesuffix("Error")
            raise JojoKeyStoreError(
                f"Could not {self.doing}: {reason}. Check the AWS connection's endpoint, region and credentials.",
                passing=not isinstance(
                    error, (NoCredentialsError, PartialCredentialsError, ParamValidationError)
                ),
            ) from None


_PASSING = {"SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable", "RequestTimeTooSkewed"}
_TODO_ELSE = "Check the AWS connection and what it may do in this bucket."
_TODO = {
    "NoSuchBucket": "Create the bucket, or correct s3_bucket.",
    "AccessDenied": "Let the AWS connection's user read and write objects (s3:GetObject, s3:PutObject) and list "
    "the bucket (s3:ListBucket): without that, S3 does not tell a missing object from a forbidden one.",
    "InvalidAccessKeyId": "The AWS connection's access key is not known to this store.",
    "SignatureDoesNotMatch": "The AWS connection's secret key is wrong, or its endpoint or region is another's.",
}


_HALF_AN_ESCAPE = re.compile("%[0-9A-F]?$")


def metadata(labels: Mapping[str, str]) -> dict[str, str]:
    """Return ``labels`` as S3 metadata: ASCII, percent-encoded where it is not, and never too long."""
    kept = {}
    for name, value in labels.items():
        encoded = quote(value, safe=" !#$&'()*+,/:;=?@[]-._~|{}<>^`\"", errors="replace").strip()
        if len(encoded) > MAX_METADATA_VALUE:
            encoded = _HALF_AN_ESCAPE.sub("", encoded[: MAX_METADATA_VALUE - 3]) + "..."
        if encoded:
            kept[name] = encoded
    return kept
