"""S3 operations for images, receipts and budgets, through the user's AWS connection.

Two rules protect money:

* *An object is missing only if S3 says so.* ``None`` means that S3 returned ``NoSuchKey``. Any other response,
  such as a bare 404 from a proxy, is an error: a receipt that looks missing would let a task pay again.
* *Conditional writes are tested before money depends on them.* Some stores ignore ``If-Match`` or
  ``If-None-Match``, and Ceph accepts its own ETag only without quotes, see :mod:`store.conditions`.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from datetime import datetime
from functools import cached_property
from typing import IO, TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlsplit

from airflow_provider_jojokey.exceptions import JojoKeyStoreError
from airflow_provider_jojokey.payments import clock
from airflow_provider_jojokey.store import conditions
from airflow_provider_jojokey.store.conditions import (
    Conditions,
    ConditionSupport,
    is_condition_failed,
    unquoted,
)
from airflow_provider_jojokey.store.extra_args import for_documents, for_images, for_reads
from airflow_provider_jojokey.store.s3_errors import (
    client_error,
    code_of,
    headers_of,
    is_web_page,
    redacted,
    status_of,
    translate_errors,
)
from airflow_provider_jojokey.store.server_clock import ServerClock

if TYPE_CHECKING:
    from airflow_provider_jojokey.img2.images import Image
    from airflow_provider_jojokey.results import StoredImage

T = TypeVar("T")

log = logging.getLogger(__name__)

MAX_METADATA_VALUE = 180
"""Bytes. S3 rejects more than 2 KB of metadata in total, and the package writes up to eight values."""

MAX_CONNECTIONS = 32
"""More would take memory without need: an upload takes milliseconds, a generation takes seconds."""

MAX_BODY_WITHOUT_EXPECT = 4 * 1024 * 1024
"""Bytes. For smaller bodies, ``Expect: 100-continue`` only adds a round trip.

Once a connection has broken, requests have the header: a server that rejects a request early may close the connection
before the client reads the response, which names the error.
"""

DIGEST, PIXELS, ATTEMPT = "sha256", "pixels", "attempt-id"
"""Metadata names: the image's digest, its width and height, and the attempt that paid for it."""

WRONG_ETAG = '"00000000000000000000000000000000"'


class ImageStore:
    """An S3 client for images and for receipts, manifests and budgets. Threads may share it.

    :param aws_conn_id: the Airflow connection to AWS or to an S3-compatible store
    :param connections: how many threads may use S3 at once; by default there is no limit, and the AWS connection
        limits the number of open sockets
    :param extra_args: additional S3 parameters, see :mod:`store.extra_args`
    """

    def __init__(
        self,
        aws_conn_id: str | None,
        connections: int | None = None,
        extra_args: Mapping[str, Any] | None = None,
    ) -> None:
        self.aws_conn_id = aws_conn_id
        self.extra_args: dict[str, Any] = dict(extra_args or {})
        self.connections = None if connections is None else max(1, min(connections, MAX_CONNECTIONS))
        self._slots: AbstractContextManager[Any] = (
            nullcontext() if self.connections is None else threading.BoundedSemaphore(self.connections)
        )
        self._creating = threading.Lock()
        self.connection_extra: Mapping[str, Any] | None = None
        """The extra of the AWS connection, once :attr:`client` has read it."""
        self._clock = ServerClock()
        self._asks_first = False
        """Whether S3 is asked before each body is sent, because a connection has broken."""

    # --- the client ----------------------------------------------------------------------------------------------

    @cached_property
    def client(self) -> Any:
        """The boto3 client.

        :raises JojoKeyStoreError: if the connection does not exist or cannot be used
        """
        with self._creating:  # cached_property itself lets two threads create two clients
            if "client" not in vars(self):
                vars(self)["client"] = self._create_client()
            return vars(self)["client"]

    def _create_client(self) -> Any:
        # Not S3Hook: its module also imports everything that transfers need.
        from airflow.providers.amazon.aws.hooks.base_aws import AwsBaseHook
        from airflow.providers.common.compat.sdk import AirflowException
        from botocore.config import Config

        from airflow_provider_jojokey import __version__
        from airflow_provider_jojokey.store.signing import use_known_digest

        options: dict[str, Any] = {}
        if self.connections is not None:
            options["max_pool_connections"] = self.connections
        with translate_errors("use the AWS connection"):
            try:
                hook: AwsBaseHook = AwsBaseHook(self.aws_conn_id, client_type="s3")
                self.connection_extra = hook.conn_config.extra_config
                agent = f"{hook.config.user_agent_extra or ''} airflow-provider-jojokey/{__version__}".strip()
                # hook.get_conn() walks through all modules for its user agent, which takes 300 ms of CPU.
                client = hook.get_session(region_name=hook.region_name).client(
                    "s3",
                    endpoint_url=hook.conn_config.get_service_endpoint_url("s3"),
                    config=hook.config.merge(Config(user_agent_extra=agent, **options)),
                    verify=hook.verify,
                )
            except (
                AirflowException,
                AttributeError,
                KeyError,
                NotImplementedError,
                TypeError,
                ValueError,
            ) as error:
                raise JojoKeyStoreError(
                    f"The AWS connection {self.aws_conn_id!r} is not usable.",
                    "Correct the connection's fields and extra.",
                    detail=redacted(str(error)),
                ) from None
        use_known_digest(client)
        client.meta.events.register("provide-client-params.s3.PutObject", self._mark_small_body)
        client.meta.events.register("before-sign.s3.PutObject", _drop_expect_header)
        return client

    def _request(
        self, operation: str, consume: Callable[[dict[str, Any]], Any] | None = None, /, **parameters: Any
    ) -> dict[str, Any]:
        """Send one request, after waiting for a free connection slot.

        :param consume: reads the response's body in the same slot; its return value becomes ``Consumed``
        """
        from botocore.exceptions import ClientError

        method = getattr(self.client, operation)
        if operation != "put_object":
            parameters |= for_reads(self.extra_args)
        elif "Metadata" not in parameters:
            parameters |= for_documents(self.extra_args)
        with self._slots:
            began = clock.monotonic()
            try:
                response: dict[str, Any] = method(**parameters)
            except ClientError as error:
                self._clock.observe(headers_of(error.response), began)
                raise
            except Exception:
                self._asks_first = True  # perhaps S3 rejected the request before it had read the body
                raise
            self._clock.observe(headers_of(response), began)
            if consume is not None:
                with closing(response["Body"]):  # "with body" would skip botocore's own checks
                    response["Consumed"] = consume(response)
            return response

    def _mark_small_body(self, params: Mapping[str, Any], context: dict[str, Any], **_: Any) -> None:
        body = params.get("Body")
        size = len(body) if isinstance(body, bytes) else params.get("ContentLength")
        context[_SMALL] = not self._asks_first and size is not None and size <= MAX_BODY_WITHOUT_EXPECT

    # --- time ----------------------------------------------------------------------------------------------------

    def now(self) -> datetime:
        """Return the time of S3's clock, which all hosts share.

        Until S3 has sent a response with a usable ``Date``, this is the host's time, see :attr:`clock`.
        """
        return self._clock.now()

    @property
    def clock(self) -> str:
        """The clock that :meth:`now` uses: ``"s3"`` or ``"host"``."""
        return "s3" if self._clock.known else "host"

    # --- objects -------------------------------------------------------------------------------------------------

    def put_image(
        self,
        bucket: str,
        key: str,
        image: Image,
        labels: Mapping[str, str],
        *,
        only_if_absent: bool = False,
    ) -> bool:
        """Store one image, with its type and a checksum that S3 verifies.

        :param labels: the object's metadata
        :param only_if_absent: do not overwrite another object at the key. In a store without conditional writes,
            the check comes before the upload, so an object that appears in between is overwritten.
        :return: ``False`` if another object is at the key. If the object is this image, for example because the
            response to an earlier upload was lost, the image counts as stored.
        :raises JojoKeyStoreError: if S3 rejects the image or cannot be reached
        """
        doing = f"write s3://{bucket}/{key}"
        with translate_errors(doing):
            condition = self._condition(bucket, None) if only_if_absent else {}
            if only_if_absent and not condition and (same := self._holds(bucket, key, image)) is not None:
                return same
            try:
                self._put_image(bucket, key, image, labels, condition)
            except client_error() as error:
                if not (condition and is_condition_failed(error)):
                    if condition and self._rejects_condition(bucket, condition, error):
                        self._record_support(bucket, if_none_match=False)
                        return self.put_image(bucket, key, image, labels, only_if_absent=True)
                    raise
                found = self._holds(bucket, key, image)
                if found is None:
                    raise JojoKeyStoreError(
                        f"S3 rejected the request to {doing} because the object exists, but then reported it missing.",
                        transient=True,
                    ) from None
                return found
        return True

    def _put_image(
        self, bucket: str, key: str, image: Image, labels: Mapping[str, str], condition: Mapping[str, str]
    ) -> None:
        checksum = {}
        if self._sends_checksums:
            # The decoder computed this digest, so it also covers the spool, and boto3 need not compute it again.
            checksum["ChecksumSHA256"] = base64.b64encode(bytes.fromhex(image.file.sha256)).decode()
        image.file.file.seek(0)
        facts = {DIGEST: image.file.sha256, PIXELS: f"{image.width}x{image.height}"}
        response = self._request(
            "put_object",
            Bucket=bucket,
            Key=key,
            Body=image.file.file,
            ContentLength=image.file.size,
            ContentType=image.content_type,
            Metadata=metadata({**self.extra_args.get("Metadata", {}), **labels, **facts}),
            **for_images(self.extra_args),
            **checksum,
            **condition,
        )
        self._etag(response, f"write s3://{bucket}/{key}")

    def _holds(self, bucket: str, key: str, image: Image) -> bool | None:
        """Return whether the object at ``key`` is ``image``, or ``None`` if it does not exist."""

        def compare(response: dict[str, Any]) -> bool:
            if response["ContentLength"] != image.file.size:
                return False
            digest = hashlib.sha256()
            for chunk in response["Body"].iter_chunks(1024 * 1024):
                digest.update(chunk)
            return digest.hexdigest() == image.file.sha256

        try:
            return bool(self._request("get_object", compare, Bucket=bucket, Key=key)["Consumed"])
        except client_error() as error:
            if code_of(error) == "NoSuchKey":
                return None
            raise

    def size_of(self, bucket: str, key: str) -> int | None:
        """Return an object's size in bytes, or ``None`` if S3 reports that it does not exist.

        :raises JojoKeyStoreError: if S3 does not respond
        """
        found = self._describe(bucket, key)
        return None if found is None else int(found["ContentLength"])

    def holds(self, image: StoredImage) -> bool:
        """Return whether the stored image still exists, by its size and its metadata.

        :raises JojoKeyStoreError: if S3 does not respond
        """
        found = self._describe(image.bucket, image.key)
        if found is None or int(found["ContentLength"]) != image.bytes:
            return False
        # Some stores drop metadata. The size alone must then suffice.
        digest: str = found.get("Metadata", {}).get(DIGEST, image.sha256)
        return digest == image.sha256

    def find_image(self, bucket: str, key: str, attempt_id: str) -> tuple[StoredImage, str | None] | None:
        """Return the image at a key and the ID of its request, if its metadata names this attempt.

        :raises JojoKeyStoreError: if S3 does not respond
        """
        from airflow_provider_jojokey.results import StoredImage

        doing = f"look for s3://{bucket}/{key}"
        with translate_errors(doing):
            try:
                response = self._request("head_object", Bucket=bucket, Key=key)
            except client_error() as error:
                if code_of(error) in ("404", "NoSuchKey", "NotFound", "403", "AccessDenied", "Forbidden"):
                    return None
                raise
        labels = response.get("Metadata", {})
        width, _, height = labels.get(PIXELS, "").partition("x")
        if labels.get(ATTEMPT) != attempt_id or not (width.isdecimal() and height.isdecimal()):
            return None
        image = StoredImage(
            bucket=bucket,
            key=key,
            content_type=response.get("ContentType", ""),
            width=int(width),
            height=int(height),
            bytes=int(response["ContentLength"]),
            sha256=labels.get(DIGEST, ""),
        )
        return image, labels.get("request-id")

    def _describe(self, bucket: str, key: str) -> dict[str, Any] | None:
        doing = f"read the size of s3://{bucket}/{key}"
        with translate_errors(doing):
            try:
                response = self._request("head_object", Bucket=bucket, Key=key)
            except client_error() as error:
                if code_of(error) not in ("404", "NoSuchKey", "NotFound"):
                    raise
                # The response to HEAD has no body, so this may be the 404 of a proxy. GET names the cause.
                try:
                    response = self._request("get_object", lambda _: None, Bucket=bucket, Key=key)
                except client_error() as confirmed:
                    if code_of(confirmed) == "NoSuchKey":
                        return None
                    raise
            self._etag(response, doing)
            return response

    def exists(self, bucket: str, key: str) -> bool | None:
        """Return whether an object exists, or ``None`` if this user may not know.

        ``False`` is not proof: it may be the 404 of a proxy. If a payment depends on it, use :meth:`size_of`.

        :raises JojoKeyStoreError: if S3 does not respond
        """
        doing = f"look for s3://{bucket}/{key}"
        with translate_errors(doing):
            try:
                self._etag(self._request("head_object", Bucket=bucket, Key=key), doing)
            except client_error() as error:
                if code_of(error) in ("404", "NoSuchKey", "NotFound"):
                    return False
                if code_of(error) in ("403", "AccessDenied", "Forbidden"):
                    return None  # without s3:ListBucket, S3 returns this for a missing object
                raise
            return True

    def read(self, bucket: str, key: str) -> tuple[bytes, str] | None:
        """Return a small object and its ETag, or ``None`` if S3 reports that it does not exist.

        :raises JojoKeyStoreError: if S3 does not respond, so the object may exist
        """
        doing = f"read s3://{bucket}/{key}"
        with translate_errors(doing):
            try:
                response = self._request(
                    "get_object", lambda response: response["Body"].read(), Bucket=bucket, Key=key
                )
            except client_error() as error:
                if code_of(error) == "NoSuchKey":
                    return None
                raise
            if is_web_page(headers_of(response)):  # some web pages have an ETag
                raise self._not_s3(response, doing)
            return response["Consumed"], self._etag(response, doing)

    def download(self, bucket: str, key: str, file: IO[bytes]) -> bool:
        """Write an object's content to ``file``.

        :return: ``False`` if S3 reports that it does not exist
        :raises JojoKeyStoreError: if S3 does not respond
        """
        doing = f"read s3://{bucket}/{key}"

        def copy(response: dict[str, Any]) -> None:
            for chunk in response["Body"].iter_chunks(256 * 1024):
                file.write(chunk)

        with translate_errors(doing):
            try:
                response = self._request("get_object", copy, Bucket=bucket, Key=key)
            except client_error() as error:
                if code_of(error) == "NoSuchKey":
                    return False
                raise
            self._etag(response, doing)
            return True

    def list(self, bucket: str, prefix: str, pages: int) -> Iterator[dict[str, Any]]:
        """Yield the objects whose keys begin with ``prefix``, as S3 describes them.

        :param pages: maximum number of requests, each for up to 1,000 objects
        :raises JojoKeyStoreError: if S3 does not respond
        """
        more: dict[str, str] = {}
        for _ in range(pages):
            with translate_errors(f"list s3://{bucket}/{prefix}"):
                response = self._request("list_objects_v2", Bucket=bucket, Prefix=prefix, **more)
            yield from response.get("Contents", ())
            token = response.get("NextContinuationToken")
            if not response.get("IsTruncated") or not token:  # some stores omit the token
                return
            more = {"ContinuationToken": token}

    def put(
        self, bucket: str, key: str, body: bytes | IO[bytes], content_type: str, *, image: bool = False
    ) -> None:
        """Write an object, and overwrite an existing one.

        :param image: whether the additional parameters for images apply
        :raises JojoKeyStoreError: if S3 rejects it or cannot be reached
        """
        doing = f"write s3://{bucket}/{key}"
        with translate_errors(doing):
            response = self._request(
                "put_object",
                Bucket=bucket,
                Key=key,
                Body=body,
                ContentType=content_type,
                **({"Metadata": {}, **self.extra_args} if image else {}),
            )
            self._etag(response, doing)

    # --- conditional writes --------------------------------------------------------------------------------------

    def write(self, bucket: str, key: str, data: bytes, replacing: str | None) -> str | None:
        """Write a small object if it is unchanged. Stores without conditional writes always write.

        ``None`` may also mean that this write succeeded: if its response is lost, botocore resends it, and S3
        rejects the second one. Before you conclude that another process wrote the object, read and compare it.

        :param replacing: the ETag of the object to replace; ``None`` if the object must not exist
        :return: the new ETag; ``None`` if the condition failed, so that the object must be read again
        :raises JojoKeyStoreError: if S3 rejects the write for another reason or cannot be reached
        """
        with translate_errors(f"write s3://{bucket}/{key}"):
            condition = self._condition(bucket, replacing)
            try:
                etag = self._write(bucket, key, data, condition)
            except client_error() as error:
                if not (condition and self._rejects_condition(bucket, condition, error)):
                    raise
                etag = self._write(bucket, key, data, {})
                self._record_support(bucket, **{conditions.NAMES[next(iter(condition))]: False})
                return etag
            known = self._conditions(bucket)
            if etag is None and replacing is not None and known.if_match is None and known.quoted:
                return self._write_again(bucket, key, data, replacing)
            return etag

    def _write_again(self, bucket: str, key: str, data: bytes, replacing: str) -> str | None:
        """Repeat a write that an untested store rejected although ``replacing`` is the current ETag."""
        if not self._is_current(bucket, key, replacing):
            return None
        etag = self._write(bucket, key, data, {"IfMatch": unquoted(replacing)})
        if etag is not None:
            self._record_support(bucket, quoted=False)
        elif self._is_current(bucket, key, replacing):
            self._record_support(bucket, if_match=False)
            etag = self._write(bucket, key, data, {})
        return etag

    def verify_conditional_writes(self, bucket: str, key: str, data: bytes, etag: str) -> Conditions:
        """Test whether only one of two conditional writers wins in this bucket.

        The test sends up to three requests, and one or two more if the store rejects every ``If-Match``. It
        runs once per process, endpoint and bucket; AWS needs none. If S3 has a transient error, the writes
        count as unverified, and the next call tests again.

        :param key: an object that exists
        :param data: its content, which the test writes again
        :param etag: its ETag
        :raises JojoKeyStoreError: if S3 rejects the test for a reason that is not transient
        """
        if self._conditions(bucket).complete:
            return Conditions(self.conditional_writes_verified(bucket), etag)
        # The threads of a batch wait here for the first one's test.
        with conditions.testing.setdefault(self._endpoint_and_bucket(bucket), threading.Lock()):
            try:
                with translate_errors(f"test conditional writes to s3://{bucket}/{key}"):
                    etag = self._test_if_none_match(bucket, key, data, etag)
                    etag = self._test_if_match(bucket, key, data, etag)
            except JojoKeyStoreError as error:
                if not error.transient:
                    raise
                log.warning("Could not test conditional writes to s3://%s yet. %s", bucket, error.what)
        return Conditions(self.conditional_writes_verified(bucket), etag)

    def conditional_writes_verified(self, bucket: str) -> bool:
        """Return whether conditional writes to this bucket are known to work."""
        return self._conditions(bucket).verified

    @property
    def supports_conditional_writes(self) -> bool | None:
        """Whether this store has conditional writes; ``None`` if that is unknown so far."""
        endpoint = self.client.meta.endpoint_url
        if is_aws(endpoint):
            return True
        known = [found for (place, _), found in conditions.support.items() if place == endpoint]
        if any(found.complete and not found.verified for found in known):
            return False
        return True if any(found.verified for found in known) else None

    def _test_if_none_match(self, bucket: str, key: str, data: bytes, etag: str) -> str:
        if self._conditions(bucket).if_none_match is not None:
            return etag
        try:
            written = self._write(bucket, key, data, {"IfNoneMatch": "*"})
        except client_error() as error:
            if not self._rejects_condition(bucket, {"IfNoneMatch": "*"}, error):
                raise
            self._record_support(bucket, if_none_match=False)
            return etag
        self._record_support(bucket, if_none_match=written is None)
        return etag if written is None else written

    def _test_if_match(self, bucket: str, key: str, data: bytes, etag: str) -> str:
        if self._conditions(bucket).complete:
            return etag
        try:
            written = self._write(bucket, key, data, self._condition(bucket, etag))
            if written is None and self._conditions(bucket).quoted:
                written = self._write(bucket, key, data, {"IfMatch": unquoted(etag)})
                if written is not None:
                    # The store rejected the quoted form, so it checks the header and rejects wrong ETags too.
                    self._record_support(bucket, quoted=False, if_match=True)
                    return written
            if written is None:
                if self._is_current(bucket, key, etag):
                    self._record_support(bucket, if_match=False)
                return etag  # otherwise another process wrote the object, so the test proves nothing
            etag = written
            wrong = WRONG_ETAG if self._conditions(bucket).quoted else unquoted(WRONG_ETAG)
            written = self._write(bucket, key, data, {"IfMatch": wrong})
        except client_error() as error:
            if not self._rejects_condition(bucket, {"IfMatch": etag}, error):
                raise
            self._record_support(bucket, if_match=False)
            return etag
        self._record_support(bucket, if_match=written is None)
        return etag if written is None else written

    def _write(self, bucket: str, key: str, data: bytes, condition: Mapping[str, str]) -> str | None:
        """Send one conditional write; return ``None`` if the condition failed."""
        try:
            response = self._request(
                "put_object",
                Bucket=bucket,
                Key=key,
                Body=data,
                ContentType="application/json; charset=utf-8",
                **condition,
            )
        except client_error() as error:
            if condition and is_condition_failed(error):
                return None
            if "IfMatch" in condition and code_of(error) == "NoSuchKey":
                return None  # another process deleted the object
            raise
        return self._etag(response, f"write s3://{bucket}/{key}")

    def _is_current(self, bucket: str, key: str, etag: str) -> bool:
        """Return whether ``etag`` is the object's current ETag."""
        try:
            return bool(self._request("head_object", Bucket=bucket, Key=key).get("ETag") == etag)
        except client_error() as error:
            if status_of(error) == 404:
                return False
            raise

    def _condition(self, bucket: str, replacing: str | None) -> dict[str, str]:
        """Return the condition to send: one that this store supports or may support."""
        known = self._conditions(bucket)
        if replacing is None:
            return {} if known.if_none_match is False else {"IfNoneMatch": "*"}
        if known.if_match is False:
            return {}
        return {"IfMatch": replacing if known.quoted else unquoted(replacing)}

    def _rejects_condition(self, bucket: str, condition: Mapping[str, str], error: Any) -> bool:
        """Return whether the store may have rejected the request because it lacks the condition."""
        known = getattr(self._conditions(bucket), conditions.NAMES[next(iter(condition))])
        return (
            known is not True
            and status_of(error) in (400, 405, 501)
            and code_of(error) in conditions.UNSUPPORTED
        )

    def _endpoint_and_bucket(self, bucket: str) -> tuple[str, str]:
        return self.client.meta.endpoint_url, bucket

    def _conditions(self, bucket: str) -> ConditionSupport:
        place = self._endpoint_and_bucket(bucket)
        return conditions.AWS if is_aws(place[0]) else conditions.support.get(place, ConditionSupport())

    def _record_support(self, bucket: str, **facts: bool) -> None:
        conditions.record_support(self._endpoint_and_bucket(bucket), **facts)

    def _etag(self, response: Mapping[str, Any], doing: str) -> str:
        """Return a response's ETag.

        :raises JojoKeyStoreError: if there is none, which means that the server is not S3
        """
        if etag := response.get("ETag"):
            return str(etag)
        raise self._not_s3(response, doing)

    def _not_s3(self, response: Mapping[str, Any], doing: str) -> JojoKeyStoreError:
        content_type = headers_of(response).get("content-type", "")
        sent = f"sent {content_type.partition(';')[0]} in response" if content_type else "responded"
        return JojoKeyStoreError(
            f"This is not S3: the server at {self.client.meta.endpoint_url} {sent} to a request to {doing}.",
            "Set endpoint_url in the AWS connection to the URL of the S3 API. The URL of the store's web "
            "console is often similar.",
        )

    @cached_property
    def _sends_checksums(self) -> bool:
        # Stores that reject the checksum headers need "when_required" in the connection.
        return bool(self.client.meta.config.request_checksum_calculation != "when_required")


def is_aws(endpoint_url: str) -> bool:
    """Return whether this is AWS's own S3."""
    host = urlsplit(endpoint_url).hostname or ""
    return host.endswith((".amazonaws.com", ".amazonaws.com.cn"))


def _drop_expect_header(request: Any, **_: Any) -> None:
    if request.context.get(_SMALL) and request.context.get("retries", {}).get("attempt", 1) == 1:
        with suppress(KeyError):
            del request.headers["Expect"]


_SMALL = "jojokey_small_body"


# --- waiting -----------------------------------------------------------------------------------------------------


def retry_transient(
    call: Callable[[], T],
    *,
    timeout: float,
    stopping: threading.Event | None = None,
    before_sleep: Callable[[Any], None] | None = None,
) -> T:
    """Call ``call``, and call it again after each transient error of S3.

    :param timeout: seconds after which to give up
    :param stopping: ends the wait
    :param before_sleep: called with tenacity's state before each wait
    :raises JojoKeyStoreError: the last error
    """
    import tenacity

    stopped = stopping or threading.Event()
    end = clock.monotonic() + timeout

    def sleep(seconds: float) -> None:
        clock.pause(seconds, stopped)

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(lambda error: getattr(error, "transient", False)),
        wait=tenacity.wait_exponential_jitter(initial=1, max=30),
        stop=lambda _: stopped.is_set() or clock.monotonic() >= end,
        sleep=sleep,
        before_sleep=before_sleep,
        reraise=True,
    )
    return retrying(call)


_PARTIAL_ESCAPE = re.compile("%[0-9A-F]?$")


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
