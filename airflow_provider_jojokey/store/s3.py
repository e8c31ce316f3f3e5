"""S3 as images, receipts and budgets need it, through the user's AWS connection.

Two rules protect money here:

* *An object is missing only if S3 says so.* ``None`` means that S3 answered ``NoSuchKey``. Anything else, such as
  a bare 404 of a proxy, is an error: a receipt that looks missing would let a task pay again.
* *Conditional writes are tested before money depends on them.* Some stores ignore ``If-Match`` or
  ``If-None-Match``, and Ceph rejects its own ETag unless the quotes are left out, see :class:`Conditions`.
"""

from __future__ import annotations

import base64
import email.utils
import hashlib
import logging
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import IO, TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlsplit

from airflow_provider_jojokey.exceptions import JojoKeyStoreError
from airflow_provider_jojokey.payments import clock
from airflow_provider_jojokey.store.extra_args import for_documents, for_images, for_reads

if TYPE_CHECKING:
    from airflow_provider_jojokey.img2.images import Image
    from airflow_provider_jojokey.results import StoredImage

T = TypeVar("T")

log = logging.getLogger(__name__)

MAX_METADATA_VALUE = 180
"""Bytes. S3 rejects more than 2 KB of metadata in all; at most eight values are written."""

MAX_CONNECTIONS = 32
"""Uploads take milliseconds where generations take seconds, and each one has its memory."""

MAX_BODY_WITHOUT_EXPECT = 64 * 1024
"""Bytes. For less, asking S3 first whether it wants the body (``Expect: 100-continue``) costs a round trip."""

MAX_DETAIL_CHARACTERS = 300
"""Of S3's own message in an error."""

DIGEST, PIXELS, ATTEMPT = "sha256", "pixels", "attempt-id"
"""Names of metadata entries: an image's digest, its width and height, and the attempt that paid for it."""

WRONG_ETAG = '"00000000000000000000000000000000"'


@dataclass(frozen=True, slots=True)
class Conditions:
    """The result of :meth:`ImageStore.verify_conditional_writes`.

    :param verified: whether only one of two conditional writers wins
    :param etag: the object's current ETag: the test has written the object, and may have changed it
    """

    verified: bool
    etag: str


class ImageStore:
    """An S3 client for images and for the small documents beside them. Threads may share it.

    :param aws_conn_id: the Airflow connection to AWS or to an S3-compatible store
    :param connections: how many threads may use S3 at once; by default there is no limit, and the connection
        decides how many sockets are kept open
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
        self._turns: AbstractContextManager[Any] = (
            nullcontext() if self.connections is None else threading.BoundedSemaphore(self.connections)
        )
        self._creating = threading.Lock()
        self._clock = _ServerClock()

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
        from airflow.providers.amazon.aws.hooks.s3 import S3Hook
        from airflow.providers.common.compat.sdk import AirflowException
        from botocore.config import Config

        from airflow_provider_jojokey import __version__
        from airflow_provider_jojokey.store.signing import use_known_digest

        options: dict[str, Any] = {}
        if self.connections is not None:
            options["max_pool_connections"] = self.connections
        with translate_errors("use the AWS connection"):
            try:
                hook = S3Hook(aws_conn_id=self.aws_conn_id)
                agent = f"{hook.config.user_agent_extra or ''} airflow-provider-jojokey/{__version__}".strip()
                # Not hook.get_conn(): its user agent is found by a walk through all modules, 300 ms of CPU.
                client = hook.get_session(region_name=hook.region_name).client(
                    "s3",
                    endpoint_url=hook.conn_config.get_service_endpoint_url("s3"),
                    config=hook.config.merge(Config(user_agent_extra=agent, **options)),
                    verify=hook.verify,
                )
            except (AirflowException, ValueError, TypeError, KeyError, NotImplementedError) as error:
                raise JojoKeyStoreError(
                    f"The AWS connection {self.aws_conn_id!r} cannot be used.",
                    "Correct the connection's fields and extra.",
                    detail=_redacted(str(error)),
                ) from None
        use_known_digest(client)
        client.meta.events.register("provide-client-params.s3.PutObject", _note_small_bodies)
        client.meta.events.register("before-sign.s3.PutObject", _send_small_bodies_at_once)
        return client

    def _request(
        self, operation: str, consume: Callable[[dict[str, Any]], Any] | None = None, /, **parameters: Any
    ) -> dict[str, Any]:
        """Send one request. Every request goes through here, so this is where a thread waits for its turn.

        :param consume: reads the response's body, within the same turn; what it returns becomes ``Consumed``
        """
        from botocore.exceptions import ClientError

        method = getattr(self.client, operation)
        if operation != "put_object":
            parameters |= for_reads(self.extra_args)
        elif "Metadata" not in parameters:
            parameters |= for_documents(self.extra_args)
        with self._turns:
            began = clock.monotonic()
            try:
                response: dict[str, Any] = method(**parameters)
            except ClientError as error:
                self._clock.observe(_headers(error.response), began)
                raise
            self._clock.observe(_headers(response), began)
            if consume is not None:
                with closing(response["Body"]):  # not "with body": that skips botocore's own checks
                    response["Consumed"] = consume(response)
            return response

    # --- the time ------------------------------------------------------------------------------------------------

    def now(self) -> datetime:
        """Return the time by S3's clock, which all hosts share.

        It is this host's time until S3 has sent a response with a usable ``Date``, see :attr:`clock`.
        """
        return self._clock.now()

    @property
    def clock(self) -> str:
        """Whose time :meth:`now` returns: ``"s3"`` or ``"host"``."""
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
        """Store one image, with its type and a checksum that S3 compares.

        :param labels: the object's metadata
        :param only_if_absent: leave another object alone that has the key already. Stores without conditional
            writes are asked before the upload, so an object that appears meanwhile is overwritten there.
        :return: ``False`` if there is another object at the key. If the object there is this very image, for
            example because the response to an earlier upload was lost, the image counts as stored.
        :raises JojoKeyStoreError: if S3 rejects the image or cannot be reached
        """
        doing = f"write s3://{bucket}/{key}"
        with translate_errors(doing):
            condition = self._condition(bucket, None) if only_if_absent else {}
            if only_if_absent and not condition and (same := self._holds(bucket, key, image)) is not None:
                return same
            try:
                self._put_image(bucket, key, image, labels, condition)
            except _client_error() as error:
                if not (condition and _is_condition_failed(error)):
                    if condition and self._rejects_condition(bucket, condition, error):
                        self._learn(bucket, if_none_match=False)
                        return self.put_image(bucket, key, image, labels, only_if_absent=True)
                    raise
                found = self._holds(bucket, key, image)
                if found is None:
                    raise JojoKeyStoreError(
                        f"S3 rejected the request to {doing} because the object exists, and says that it does not.",
                        transient=True,
                    ) from None
                return found
        return True

    def _put_image(
        self, bucket: str, key: str, image: Image, labels: Mapping[str, str], condition: Mapping[str, str]
    ) -> None:
        checksum = {}
        if self._sends_checksums:
            # Computed when the image was decoded, so it covers the spool as well, and saves boto3 its own passes.
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
        """Return whether the object at ``key`` is ``image``; ``None`` if there is no object."""

        def compare(response: dict[str, Any]) -> bool:
            if response["ContentLength"] != image.file.size:
                return False
            digest = hashlib.sha256()
            for piece in response["Body"].iter_chunks(1024 * 1024):
                digest.update(piece)
            return digest.hexdigest() == image.file.sha256

        try:
            return bool(self._request("get_object", compare, Bucket=bucket, Key=key)["Consumed"])
        except _client_error() as error:
            if _code(error) == "NoSuchKey":
                return None
            raise

    def size_of(self, bucket: str, key: str) -> int | None:
        """Return an object's size in bytes, or ``None`` if S3 says that there is no such object.

        :raises JojoKeyStoreError: if S3 gives no answer
        """
        found = self._describe(bucket, key)
        return None if found is None else int(found["ContentLength"])

    def holds(self, image: StoredImage) -> bool:
        """Return whether an image is where it was stored, as far as its size and its metadata tell.

        :raises JojoKeyStoreError: if S3 gives no answer
        """
        found = self._describe(image.bucket, image.key)
        if found is None or int(found["ContentLength"]) != image.bytes:
            return False
        # Not every store keeps metadata. Without the digest, another image of the same size would pass.
        digest: str = found.get("Metadata", {}).get(DIGEST, image.sha256)
        return digest == image.sha256

    def find_image(self, bucket: str, key: str, attempt_id: str) -> tuple[StoredImage, str | None] | None:
        """Return the image at a key, and the ID of its request, if the metadata names this attempt.

        :raises JojoKeyStoreError: if S3 gives no answer
        """
        from airflow_provider_jojokey.results import StoredImage

        doing = f"look for s3://{bucket}/{key}"
        with translate_errors(doing):
            try:
                response = self._request("head_object", Bucket=bucket, Key=key)
            except _client_error() as error:
                if _code(error) in ("404", "NoSuchKey", "NotFound", "403", "AccessDenied", "Forbidden"):
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
            except _client_error() as error:
                if _code(error) not in ("404", "NoSuchKey", "NotFound"):
                    raise
                # The response to HEAD has no body, so this may be the 404 of a proxy. GET names the cause.
                try:
                    response = self._request("get_object", lambda _: None, Bucket=bucket, Key=key)
                except _client_error() as confirmed:
                    if _code(confirmed) == "NoSuchKey":
                        return None
                    raise
            self._etag(response, doing)
            return response

    def exists(self, bucket: str, key: str) -> bool | None:
        """Return whether there is an object; ``None`` if S3 doesn't let this user know.

        ``False`` is not proof: it may be the 404 of a proxy. Use :meth:`size_of` where a payment depends on it.

        :raises JojoKeyStoreError: if S3 gives no answer
        """
        doing = f"look for s3://{bucket}/{key}"
        with translate_errors(doing):
            try:
                self._etag(self._request("head_object", Bucket=bucket, Key=key), doing)
            except _client_error() as error:
                if _code(error) in ("404", "NoSuchKey", "NotFound"):
                    return False
                if _code(error) in ("403", "AccessDenied", "Forbidden"):
                    return None  # without s3:ListBucket, S3 answers so for a missing object
                raise
            return True

    def read(self, bucket: str, key: str) -> tuple[bytes, str] | None:
        """Return a small object and its ETag, or ``None`` if S3 says that there is no such object.

        :raises JojoKeyStoreError: if S3 gives no answer; that does not mean that there is no such object
        """
        doing = f"read s3://{bucket}/{key}"
        with translate_errors(doing):
            try:
                response = self._request(
                    "get_object", lambda response: response["Body"].read(), Bucket=bucket, Key=key
                )
            except _client_error() as error:
                if _code(error) == "NoSuchKey":
                    return None
                raise
            if _is_web_page(_headers(response)):  # some have an ETag
                raise self._not_s3(response, doing)
            return response["Consumed"], self._etag(response, doing)

    def put(
        self, bucket: str, key: str, body: bytes | IO[bytes], content_type: str, *, image: bool = False
    ) -> None:
        """Write an object, whatever is there.

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
        """Write a small object if it is unchanged, on stores with conditional writes.

        ``None`` may also mean that this very write succeeded: if its response is lost, botocore sends it again,
        and S3 rejects the second one. Read the object and compare it before you conclude that another process
        wrote it.

        :param replacing: the ETag of what it replaces; ``None`` if there must be no such object
        :return: the new ETag; ``None`` if the condition failed, so that the object must be read again
        :raises JojoKeyStoreError: if S3 rejects the write for another reason or cannot be reached
        """
        with translate_errors(f"write s3://{bucket}/{key}"):
            condition = self._condition(bucket, replacing)
            try:
                etag = self._write(bucket, key, data, condition)
            except _client_error() as error:
                if not (condition and self._rejects_condition(bucket, condition, error)):
                    raise
                etag = self._write(bucket, key, data, {})
                self._learn(bucket, **{_NAMES[next(iter(condition))]: False})
                return etag
            known = self._conditions(bucket)
            if etag is None and replacing is not None and known.if_match is None and known.quoted:
                return self._write_again(bucket, key, data, replacing)
            return etag

    def _write_again(self, bucket: str, key: str, data: bytes, replacing: str) -> str | None:
        """Write what an untested store rejected, if it did so although ``replacing`` is the current ETag."""
        if not self._is_current(bucket, key, replacing):
            return None
        etag = self._write(bucket, key, data, {"IfMatch": _unquoted(replacing)})
        if etag is not None:
            self._learn(bucket, quoted=False)
        elif self._is_current(bucket, key, replacing):
            self._learn(bucket, if_match=False)
            etag = self._write(bucket, key, data, {})
        return etag

    def verify_conditional_writes(self, bucket: str, key: str, data: bytes, etag: str) -> Conditions:
        """Test whether only one of two conditional writers wins in this bucket.

        The test sends at most three requests, and one or two more if the store rejects every ``If-Match``. It
        runs once per process, endpoint and bucket; AWS needs none. If S3 has a transient error, the writes
        count as unverified, and the next call tests again.

        :param key: an object that exists
        :param data: its content, which the test writes again
        :param etag: its ETag
        :raises JojoKeyStoreError: if S3 rejects the test for a reason that is not transient
        """
        if self._conditions(bucket).complete:
            return Conditions(self.conditional_writes_verified(bucket), etag)
        with _testing.setdefault(
            self._place(bucket), threading.Lock()
        ):  # threads of a batch wait for the first
            try:
                with translate_errors(f"test conditional writes to s3://{bucket}/{key}"):
                    etag = self._test_if_none_match(bucket, key, data, etag)
                    etag = self._test_if_match(bucket, key, data, etag)
            except JojoKeyStoreError as error:
                if not error.transient:
                    raise
                log.warning("Conditional writes to s3://%s are not tested yet. %s", bucket, error.what)
        return Conditions(self.conditional_writes_verified(bucket), etag)

    def conditional_writes_verified(self, bucket: str) -> bool:
        """Return whether conditional writes to this bucket are known to work."""
        return self._conditions(bucket).verified

    @property
    def supports_conditional_writes(self) -> bool | None:
        """Whether this store has conditional writes; ``None`` if that is not known yet."""
        endpoint = self.client.meta.endpoint_url
        if is_aws(endpoint):
            return True
        known = [conditions for (place, _), conditions in _known.items() if place == endpoint]
        if any(conditions.complete and not conditions.verified for conditions in known):
            return False
        return True if any(conditions.verified for conditions in known) else None

    def _test_if_none_match(self, bucket: str, key: str, data: bytes, etag: str) -> str:
        if self._conditions(bucket).if_none_match is not None:
            return etag
        try:
            written = self._write(bucket, key, data, {"IfNoneMatch": "*"})
        except _client_error() as error:
            if not self._rejects_condition(bucket, {"IfNoneMatch": "*"}, error):
                raise
            self._learn(bucket, if_none_match=False)
            return etag
        self._learn(bucket, if_none_match=written is None)
        return etag if written is None else written

    def _test_if_match(self, bucket: str, key: str, data: bytes, etag: str) -> str:
        if self._conditions(bucket).complete:
            return etag
        try:
            written = self._write(bucket, key, data, self._condition(bucket, etag))
            if written is None and self._conditions(bucket).quoted:
                written = self._write(bucket, key, data, {"IfMatch": _unquoted(etag)})
                if written is not None:
                    # It rejected the quoted form, so it does look at the header, and rejects wrong ones too.
                    self._learn(bucket, quoted=False, if_match=True)
                    return written
            if written is None:
                if self._is_current(bucket, key, etag):
                    self._learn(bucket, if_match=False)
                return etag  # else another process wrote the object: nothing is known
            etag = written
            wrong = WRONG_ETAG if self._conditions(bucket).quoted else _unquoted(WRONG_ETAG)
            written = self._write(bucket, key, data, {"IfMatch": wrong})
        except _client_error() as error:
            if not self._rejects_condition(bucket, {"IfMatch": etag}, error):
                raise
            self._learn(bucket, if_match=False)
            return etag
        self._learn(bucket, if_match=written is None)
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
        except _client_error() as error:
            if condition and _is_condition_failed(error):
                return None
            if "IfMatch" in condition and _code(error) == "NoSuchKey":
                return None  # another process deleted the object
            raise
        return self._etag(response, f"write s3://{bucket}/{key}")

    def _is_current(self, bucket: str, key: str, etag: str) -> bool:
        """Return whether ``etag`` is the object's current ETag."""
        try:
            return bool(self._request("head_object", Bucket=bucket, Key=key).get("ETag") == etag)
        except _client_error() as error:
            if _status(error) == 404:
                return False
            raise

    def _condition(self, bucket: str, replacing: str | None) -> dict[str, str]:
        """Return the condition that this store is known to honour, or may honour."""
        known = self._conditions(bucket)
        if replacing is None:
            return {} if known.if_none_match is False else {"IfNoneMatch": "*"}
        if known.if_match is False:
            return {}
        return {"IfMatch": replacing if known.quoted else _unquoted(replacing)}

    def _rejects_condition(self, bucket: str, condition: Mapping[str, str], error: Any) -> bool:
        """Return whether the store may have rejected the request because it has no such condition."""
        known = getattr(self._conditions(bucket), _NAMES[next(iter(condition))])
        return known is not True and _status(error) in (400, 405, 501) and _code(error) in _UNSUPPORTED

    def _place(self, bucket: str) -> tuple[str, str]:
        return self.client.meta.endpoint_url, bucket

    def _conditions(self, bucket: str) -> _Known:
        place = self._place(bucket)
        return _AWS if is_aws(place[0]) else _known.get(place, _Known())

    def _learn(self, bucket: str, **facts: bool) -> None:
        place = self._place(bucket)
        with _known_lock:
            _known[place] = replace(_known.get(place, _Known()), **facts)

    def _etag(self, response: Mapping[str, Any], doing: str) -> str:
        """Return a response's ETag.

        :raises JojoKeyStoreError: if there is none, so that the server cannot be S3
        """
        if etag := response.get("ETag"):
            return str(etag)
        raise self._not_s3(response, doing)

    def _not_s3(self, response: Mapping[str, Any], doing: str) -> JojoKeyStoreError:
        content_type = _headers(response).get("content-type", "")
        sent = f"sent {content_type.partition(';')[0]}" if content_type else "answered"
        return JojoKeyStoreError(
            f"This is not S3: the server at {self.client.meta.endpoint_url} {sent} to a request to {doing}.",
            "Set endpoint_url in the AWS connection to the address of the S3 API. The address of the store's web "
            "console is often similar.",
        )

    @cached_property
    def _sends_checksums(self) -> bool:
        # Stores that do not know the headers need "when_required" in the connection.
        return bool(self.client.meta.config.request_checksum_calculation != "when_required")


# --- what is known about conditional writes, in this process ---------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Known:
    """What is known about conditional writes to one bucket.

    :param if_none_match: whether the store honours ``If-None-Match: *``; ``None`` if unknown
    :param if_match: whether it accepts the right ETag in ``If-Match`` and rejects a wrong one; ``None`` if unknown
    :param quoted: whether it accepts the ETag in quotes, as it sends it; Ceph does not
    """

    if_none_match: bool | None = None
    if_match: bool | None = None
    quoted: bool = True

    @property
    def complete(self) -> bool:
        """Whether another test would find out nothing that matters."""
        return self.verified or self.if_none_match is False or self.if_match is False

    @property
    def verified(self) -> bool:
        """Whether only one of two writers wins."""
        return bool(self.if_none_match and self.if_match)


_AWS = _Known(if_none_match=True, if_match=True)
_NAMES = {"IfNoneMatch": "if_none_match", "IfMatch": "if_match"}
_known: dict[tuple[str, str], _Known] = {}
_known_lock = threading.Lock()
_testing: dict[tuple[str, str], threading.Lock] = {}

_CONFLICTS = {"ConditionalRequestConflict", "OperationAborted", "409"}
_UNSUPPORTED = {
    "400",
    "405",
    "501",
    "BadRequest",
    "InvalidArgument",
    "InvalidRequest",
    "MethodNotAllowed",
    "NotImplemented",
    "NotSupported",
    "UnsupportedOperation",
    "XNotImplemented",
}
"""Codes of 400, 405 and 501 that say nothing else, such as "the token has expired"."""


def _is_condition_failed(error: Any) -> bool:
    return _status(error) == 412 or (_status(error) == 409 and _code(error) in _CONFLICTS)


def _unquoted(etag: str) -> str:
    return etag.removeprefix("W/").strip('"')


def is_aws(endpoint_url: str) -> bool:
    """Return whether this is AWS's own S3."""
    host = urlsplit(endpoint_url).hostname or ""
    return host.endswith((".amazonaws.com", ".amazonaws.com.cn"))


def _send_small_bodies_at_once(request: Any, **_: Any) -> None:
    if request.context.get(_SMALL):
        with suppress(KeyError):
            del request.headers["Expect"]


def _note_small_bodies(params: Mapping[str, Any], context: dict[str, Any], **_: Any) -> None:
    body = params.get("Body")
    context[_SMALL] = isinstance(body, bytes) and len(body) <= MAX_BODY_WITHOUT_EXPECT


_SMALL = "jojokey_small_body"


# --- S3's clock --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Sample:
    """What S3's clock said at one moment.

    :param date: seconds since 1970
    :param seen: the same moment on this host's monotonic clock
    """

    date: float
    seen: float

    def at(self, moment: float) -> float:
        return self.date + moment - self.seen


class _ServerClock:
    """S3's clock, as far as its responses tell.

    A ``Date`` is never ahead of the truth, but may be behind it, by the time that the response took. So of
    several samples the one that is furthest ahead is the best. A ``Date`` that is far away from what was known
    before counts only if the next response agrees: proxies and caches send absurd ones.
    """

    MAX_DURATION = 10.0
    """Seconds that a request may take; the ``Date`` of a slower one is too old."""
    MAX_STEP = 60.0
    """Seconds by which two samples may differ."""
    MAX_HOST_ERROR = 24 * 3600.0
    """Seconds by which this host's clock may be wrong, for the first sample. S3 itself tolerates 900."""
    MAX_AGE = 600.0
    """Seconds after which a newer sample is better than one that was further ahead: clocks drift."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sample: _Sample | None = None
        self._doubtful: _Sample | None = None

    @property
    def known(self) -> bool:
        """Whether S3 has told its time."""
        return self._sample is not None

    def now(self) -> datetime:
        """Return S3's time, or this host's while S3's is unknown."""
        sample = self._sample
        return clock.now() if sample is None else datetime.fromtimestamp(sample.at(clock.monotonic()), UTC)

    def observe(self, headers: Mapping[str, str], began: float | None = None) -> None:
        """Take the time from a response's headers, if it tells.

        :param began: when its request began, :func:`clock.monotonic` seconds. A machine that is suspended while it
            waits reads an old ``Date``: a claim made by it would look expired to other hosts at once
        """
        date = _parsed_date(headers)
        new = _Sample(date or 0.0, clock.monotonic())
        if date is None or (began is not None and new.seen - began > self.MAX_DURATION):
            return
        with self._lock:
            known = self._sample
            if known is None:
                agrees = abs(date - clock.now().timestamp()) <= self.MAX_HOST_ERROR
            else:
                agrees = abs(date - known.at(new.seen)) <= self.MAX_STEP
            if not agrees:
                if self._doubtful is None or abs(date - self._doubtful.at(new.seen)) > self.MAX_STEP:
                    self._doubtful = new
                    return
                known = None
            self._doubtful = None
            if known is None or date >= known.at(new.seen) or new.seen - known.seen > self.MAX_AGE:
                self._sample = new


def _parsed_date(headers: Mapping[str, str]) -> float | None:
    if headers.get("age", "0").strip() not in ("", "0"):
        return None  # from a cache
    try:
        date = email.utils.parsedate_to_datetime(headers["date"])
        return date.replace(tzinfo=date.tzinfo or UTC).timestamp()
    except (KeyError, ValueError, TypeError, OverflowError, IndexError):
        return None


# --- waiting -----------------------------------------------------------------------------------------------------


def retry_transient(
    call: Callable[[], T],
    *,
    patience: float,
    stopping: threading.Event | None = None,
    before_sleep: Callable[[Any], None] | None = None,
) -> T:
    """Call ``call`` again while S3 has a transient error.

    :param patience: seconds after which to give up
    :param stopping: ends the wait
    :param before_sleep: called with tenacity's state before each wait
    :raises JojoKeyStoreError: the last error
    """
    import tenacity

    stopped = stopping or threading.Event()
    end = clock.monotonic() + patience

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


# --- errors ------------------------------------------------------------------------------------------------------


@contextmanager
def translate_errors(doing: str) -> Iterator[None]:
    """Turn errors of boto3, and of what lies below it, into :class:`JojoKeyStoreError`.

    :param doing: what was tried, as an infinitive: ``read s3://bucket/key``
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
        return _of_response(error, doing)
    # botocore follows redirects by calling itself, and may wrap what comes of that.
    wrapped = getattr(error, "kwargs", {}).get("error")
    if isinstance(error, RecursionError) or isinstance(wrapped, RecursionError):
        return JojoKeyStoreError(
            f"S3 redirects every request to {doing}.",
            "Set region_name, and endpoint_url if there is one, in the AWS connection's extra to those of the bucket.",
        )
    if isinstance(error, BotoCoreError):
        return _of_botocore(error, doing)
    # botocore reads the body of an error response without translating what breaks there.
    if isinstance(
        error, (HTTPError, http.client.HTTPException, ConnectionError, TimeoutError, ResponseParserError)
    ):
        return JojoKeyStoreError(
            f"The response of S3 to the request to {doing} broke off ({type(error).__name__}).",
            _CONNECTION,
            transient=True,
        )
    return None


def _of_response(error: Any, doing: str) -> JojoKeyStoreError:
    code, status = _code(error), _status(error)
    headers = _headers(error.response)
    said = str(error.response.get("Error", {}).get("Message") or "")
    operation = str(getattr(error, "operation_name", ""))
    if operation.startswith(("AssumeRole", "GetSessionToken", "GetFederationToken")):
        what = f"AWS STS rejected {operation}, which the AWS connection asks for."
        todo = "Check the role and its trust policy."
    else:
        what = f"S3 rejected the request to {doing}."
        todo = _advice(code, said, error.response)
    if _is_web_page(headers):
        what = f"A web page was the answer to the request to {doing}: something between here and S3 sent it."
        todo = "Check the AWS connection's endpoint_url, and the proxy or firewall on the way."
    no_code = code in ("", str(status))
    return JojoKeyStoreError(
        what,
        todo,
        detail=_redacted(said),
        status_code=status,
        code=None if no_code else code,
        transient=code not in _LASTING
        and (
            status is None
            or (status >= 500 and status not in (501, 505))
            or status == 429
            or code in _PASSING
        ),
    )


def _of_botocore(error: Any, doing: str) -> JojoKeyStoreError:
    from botocore import exceptions

    name = type(error).__name__.removesuffix("Error")
    network = isinstance(error, (exceptions.HTTPClientError, exceptions.ConnectionError))
    passing = (
        exceptions.IncompleteReadError,
        exceptions.CredentialRetrievalError,
        exceptions.MetadataRetrievalError,
        exceptions.FlexibleChecksumError,
    )
    if isinstance(error, exceptions.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
        return JojoKeyStoreError(
            f"This host does not trust the certificate of S3, so the request to {doing} was not sent.",
            "Set verify in the AWS connection's extra to the file of the CA that signed the certificate.",
            detail=_redacted(str(error)),
        )
    return JojoKeyStoreError(
        f"S3 did not answer the request to {doing} ({name})."
        if network
        else f"The request to {doing} failed ({name}).",
        _CONNECTION,
        detail=_redacted(str(error)),
        transient=network or isinstance(error, passing),
    )


def _advice(code: str, said: str, response: Mapping[str, Any]) -> str:
    """Return what to do about an error response of S3."""
    lower = said.lower()
    if "kms" in lower or code.startswith("KMS."):
        return (
            "Let the AWS connection's user use the bucket's KMS key (kms:GenerateDataKey, kms:Decrypt), in the key "
            "policy as well if the key belongs to another account."
        )
    if code in ("AccessDenied", "403") and "explicit deny" in lower:
        return (
            "A policy denies this explicitly, so another permission does not help: look for a Deny in the bucket "
            "policy, the user's policies and the organization's. Some policies ask for an encryption header, an "
            "ACL or a network."
        )
    if code in (
        "PermanentRedirect",
        "AuthorizationHeaderMalformed",
        "IllegalLocationConstraintException",
        "301",
    ):
        error = response.get("Error", {})
        region = error.get("Region") or _headers(response).get("x-amz-bucket-region")
        if region:
            return f"Set region_name in the AWS connection's extra to {_redacted(str(region))}."
        if endpoint := error.get("Endpoint"):
            return f"Set endpoint_url in the AWS connection's extra to https://{_redacted(str(endpoint))}."
        return "Set region_name in the AWS connection's extra to the bucket's region."
    if code in ("InvalidArgument", "InvalidRequest", "NotImplemented", "XNotImplemented", "501") and any(
        word in lower for word in ("checksum", "trailer", "aws-chunked", "content-sha256")
    ):
        return (
            "This store does not know boto3's checksums. Add to the AWS connection's extra: "
            '{"config_kwargs": {"request_checksum_calculation": "when_required", '
            '"response_checksum_validation": "when_required"}}.'
        )
    return _TODO.get(code, _TODO_ELSE)


_CONNECTION = (
    "Check the AWS connection's endpoint, region and credentials, and whether this host can reach S3."
)
_PASSING = {
    "SlowDown",
    "RequestTimeout",
    "InternalError",
    "ServiceUnavailable",
    "IncompleteBody",
    "BadDigest",
}
_LASTING = {"QuotaExceeded", "RequestTimeTooSkewed", "XMinioStorageFull"}
_TODO_ELSE = "Check the AWS connection, and what its user may do in this bucket."
_PERMISSIONS = (
    "Let the AWS connection's user read and write objects (s3:GetObject, s3:PutObject) and list the bucket "
    "(s3:ListBucket): without that, S3 does not distinguish a missing object from a forbidden one."
)
_TODO = {
    "403": _PERMISSIONS,
    "AccessDenied": _PERMISSIONS,
    "AllAccessDisabled": "The owner or AWS has disabled access to this bucket.",
    "ExpiredToken": "The credentials have expired. Renew the session token in the AWS connection, or use a role.",
    "InvalidAccessKeyId": "This store does not know the AWS connection's access key.",
    "InvalidBucketName": "Correct s3_bucket: the name is not a valid bucket name.",
    "InvalidToken": "Renew the session token in the AWS connection, or remove it if the keys are not temporary.",
    "NoSuchBucket": "Create the bucket, or correct s3_bucket.",
    "QuotaExceeded": "Free some space in the store, or raise its quota.",
    "RequestTimeTooSkewed": "Set this worker's clock: it is more than 15 minutes away from S3's.",
    "SignatureDoesNotMatch": "The AWS connection's secret key is wrong, or its endpoint or region is another's.",
    "XMinioStorageFull": "Free some space in the store.",
}


def _client_error() -> Any:
    from botocore.exceptions import ClientError

    return ClientError


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code") or "")


def _status(error: Any) -> int | None:
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status if isinstance(status, int) else None


def _headers(response: Mapping[str, Any]) -> Mapping[str, str]:
    headers: Mapping[str, str] = response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return headers


def _is_web_page(headers: Mapping[str, str]) -> bool:
    """Return whether a response with a body is a web page, which nothing but S3's headers shows to be an object."""
    return "html" in headers.get("content-type", "") and not any(
        name.startswith("x-amz-") for name in headers
    )


def _redacted(text: str) -> str:
    from airflow_provider_jojokey.img2.redact import clean

    text = clean(text)
    return text if len(text) <= MAX_DETAIL_CHARACTERS else text[: MAX_DETAIL_CHARACTERS - 1] + "…"


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
