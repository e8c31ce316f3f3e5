"""Read images and small documents from S3 for the API server.

Any user who may write XComs can forge a result that names any object the connection can read. The module
therefore downloads an image completely and verifies it before it returns any of it: the object must start like
an image and have the size and the SHA-256 in the result. A forged result thus reveals only content that its
author already had.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, BinaryIO, TypeVar

import anyio
from cachetools import TTLCache, cached

from airflow_provider_jojokey.exceptions import JojoKeyError, JojoKeyStoreError
from airflow_provider_jojokey.img2.images import content_type_of
from airflow_provider_jojokey.results import StoredImage
from airflow_provider_jojokey.settings import configured_s3_extra_args
from airflow_provider_jojokey.store.extra_args import for_reads
from airflow_provider_jojokey.store.keys import RECEIPTS, split_uri
from airflow_provider_jojokey.store.s3_client import is_aws
from airflow_provider_jojokey.store.s3_errors import translate_errors
from airflow_provider_jojokey.translatable import Translatable

MAX_BYTES = 64 * 1024 * 1024
"""Maximum size of an image."""
MAX_DOCUMENT = 4 * 1024 * 1024
"""Maximum size of a receipt."""
CHUNK = 256 * 1024
S3_THREADS = 8
"""Maximum threads that wait for S3. They are separate, so that a slow S3 doesn't block Airflow's own routes."""
CLIENT_TTL = 60.0
"""Seconds for which a client is reused, so that changes to a connection take effect soon."""
CONNECT_TIMEOUT, READ_TIMEOUT = 5.0, 20.0
SLOW = 5.0
"""Seconds without data after which a failed request has kept a thread, and one of the browser's connections, for too
long."""
SKIPPED_FOR = 15.0
"""Seconds for which a bucket is not asked again after such a request."""

# Bounded, because the name comes from an XCom, which may contain any text.
_CLIENTS: TTLCache[str | None, Any] = TTLCache(maxsize=100, ttl=CLIENT_TTL)
_SILENT: TTLCache[tuple[str, str | None], bool] = TTLCache(maxsize=1_000, ttl=SKIPPED_FOR)
_SILENT_LOCK = threading.Lock()
_threads = anyio.CapacityLimiter(S3_THREADS)
T = TypeVar("T")


class NotServed(Exception):
    """An object that must not be served. The message is displayed to the user."""

    reason = "not_served"
    """Machine-readable reason in the response."""

    def __init__(self, message: Translatable) -> None:
        super().__init__(message)
        self.message = message


class Missing(NotServed):
    """The object does not exist."""

    reason = "missing"


class Replaced(Missing):
    """The object at the image's key is not the image."""

    reason = "replaced"


def fetch(image: StoredImage, aws_conn_id: str | None) -> tuple[BinaryIO, str]:
    """Return an image as an open temporary file, and its content type.

    :param aws_conn_id: the AWS connection of the task
    :raises Missing: if the object no longer exists
    :raises NotServed: if the object is too large or is not the image in the result
    :raises JojoKeyStoreError: if S3 does not return the object
    """
    if image.bytes > MAX_BYTES:
        raise NotServed(
            Translatable(
                "The image has {bytes} bytes; more than {limit} can't be shown here.",
                bytes=image.bytes,
                limit=MAX_BYTES,
            )
        )
    file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  (returned to the caller)
    try:
        digest = hashlib.sha256()
        kind = None
        with _reading(image.bucket, image.key, aws_conn_id) as heard:
            for chunk in _chunks(image, aws_conn_id):
                heard()
                if kind is None and (kind := content_type_of(chunk)) is None:
                    raise NotServed(
                        Translatable("The object is not a PNG, JPEG or WebP image, so it is not shown.")
                    )
                digest.update(chunk)
                file.write(chunk)
        if kind is None or digest.hexdigest() != image.sha256:
            raise _replaced()
        file.seek(0)
        return file, kind
    except BaseException:
        file.close()
        raise


def document(uri: str, aws_conn_id: str | None, *, suffix: str, limit: int = MAX_DOCUMENT) -> bytes:
    """Return the content of a small object.

    :param suffix: required end of the key
    :param limit: maximum size in bytes
    :raises NotServed: if the object doesn't exist or is too large, or if the URI is not one of a receipt
    :raises JojoKeyStoreError: if S3 does not return the object
    """
    bucket, key = _place(uri, suffix)
    with _reading(bucket, key, aws_conn_id) as heard, closing(_open(bucket, key, aws_conn_id)) as body:
        data = b""
        # Only the empty read at the end notices a response that has broken off.
        while len(data) <= limit and (chunk := body.read(CHUNK)):
            heard()
            data += chunk
    if len(data) > limit:
        raise NotServed(Translatable("The object is larger than {limit} bytes.", limit=limit))
    return data


def lines(
    uri: str,
    aws_conn_id: str | None,
    *,
    suffix: str,
    start: int,
    count: int,
    wanted: Callable[[Any], bool] | None = None,
    longest: int = CHUNK,
) -> tuple[list[tuple[int, Any]], bool]:
    """Return some numbered lines of a JSON Lines object, and whether there are more.

    :param start: number of matching lines to skip
    :param count: maximum number of lines to return
    :param wanted: predicate that selects the lines; by default all lines match
    :param longest: maximum size of a line in bytes
    :return: pairs of a line number, from 0, and the line's JSON value; and whether more lines match
    :raises NotServed: if the object doesn't exist, a line is too long, or the URI is not one of a manifest
    :raises JojoKeyStoreError: if S3 does not return the object
    """
    bucket, key = _place(uri, suffix)
    selected: list[tuple[int, Any]] = []
    matches = 0
    with (
        _reading(bucket, key, aws_conn_id) as heard,
        closing(_open(bucket, key, aws_conn_id)) as body,
    ):
        for number, line in enumerate(body.iter_lines(CHUNK)):
            heard()
            if len(line) > longest:
                raise NotServed(
                    Translatable(
                        "Line {number} is longer than {limit} bytes.", number=number + 1, limit=longest
                    )
                )
            value = _json(line) if wanted is not None or matches >= start else None
            if wanted is not None and not wanted(value):
                continue
            if matches >= start + count:
                return selected, True
            if matches >= start:
                selected.append((number, value))
            matches += 1
    return selected, False


def problem_of(error: JojoKeyError) -> Translatable:
    """Return what the UI shows of an error. It is not ``error.message``, because S3's own text can name endpoints."""
    if not error.todo:
        return Translatable("{what}", what=error.what)
    return Translatable("{what} {todo}", what=error.what, todo=error.todo)


def console_url(uris: Sequence[str], aws_conn_id: str | None) -> str | None:
    """Return the AWS console's URL for objects; ``None`` if they are not on AWS.

    :raises JojoKeyStoreError: if the connection cannot be used
    """
    from airflow_provider_jojokey.links.jojokey import s3_console_url

    meta = _client(aws_conn_id).meta
    if not is_aws(meta.endpoint_url):
        return None
    return s3_console_url(uris, meta.region_name, meta.partition)


@contextmanager
def _reading(bucket: str, key: str, aws_conn_id: str | None) -> Iterator[Callable[[], None]]:
    """Translate errors of reading an object, and don't ask a bucket that did not respond shortly before.

    The thumbnails of one page would keep all threads and the browser's connections busy for minutes, and neither other
    pages of these routes nor Airflow's own would load. A slow download that breaks off hides no other objects.

    :return: a function to call when a part of the object has arrived
    :raises JojoKeyStoreError: if S3 does not return the object, or is not asked
    """
    place, uri = (bucket, aws_conn_id), f"s3://{bucket}/{key}"
    with _SILENT_LOCK:
        is_silent = place in _SILENT
    if is_silent:
        raise JojoKeyStoreError(
            Translatable("S3 did not respond to earlier requests, so {uri} was not requested.", uri=uri),
            Translatable("S3 is overloaded or has failed. This is usually temporary, so try again later."),
            transient=True,
        )
    last = time.monotonic()

    def heard() -> None:
        nonlocal last
        last = time.monotonic()

    try:
        with translate_errors(Translatable("read {uri}", uri=uri)):
            yield heard
    except JojoKeyStoreError as error:
        if error.transient and time.monotonic() - last >= SLOW:
            with _SILENT_LOCK:
                _SILENT[place] = True
        raise


def _chunks(image: StoredImage, aws_conn_id: str | None) -> Iterator[bytes]:
    with closing(_open(image.bucket, image.key, aws_conn_id, image.bytes)) as body:
        received = 0
        while chunk := body.read(CHUNK):
            received += len(chunk)
            if received > image.bytes:
                raise _replaced()
            yield chunk


def _open(bucket: str, key: str, aws_conn_id: str | None, size: int | None = None) -> Any:
    client, more = _client(aws_conn_id), _read_parameters()
    try:
        response = client.get_object(Bucket=bucket, Key=key, **more)
    except client.exceptions.ClientError as error:
        if error.response.get("Error", {}).get("Code") in ("NoSuchKey", "404", "NoSuchBucket"):
            raise Missing(Translatable("The object is no longer in S3: it was moved or deleted.")) from None
        raise
    if size is not None and response["ContentLength"] != size:
        response["Body"].close()
        raise _replaced()
    return response["Body"]


def _read_parameters() -> dict[str, Any]:
    """Return the S3 parameters of the settings that reads need. Those of the task are not in its result.

    :raises JojoKeyStoreError: if the setting can't be used
    """
    try:
        return for_reads(configured_s3_extra_args())
    except ValueError:
        raise JojoKeyStoreError(
            Translatable(
                "The task's AWS connection cannot be used here ({error}).", error="[jojokey] s3_extra_args"
            )
        ) from None


def _replaced() -> Replaced:
    return Replaced(Translatable("The image was overwritten: another object is at its key in S3 now."))


def _place(uri: str, suffix: str) -> tuple[str, str]:
    bucket, key = split_uri(uri)
    if not (uri.startswith("s3://") and bucket and key.startswith(RECEIPTS) and key.endswith(suffix)):
        raise NotServed(Translatable("Its URI is not that of a receipt or manifest."))
    return bucket, key


def _json(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


@cached(_CLIENTS, lock=threading.Lock())
def _client(aws_conn_id: str | None) -> Any:
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook
    from botocore.config import Config

    short_timeouts = Config(
        connect_timeout=CONNECT_TIMEOUT, read_timeout=READ_TIMEOUT, retries={"total_max_attempts": 2}
    )
    try:
        with translate_errors(Translatable("use the AWS connection")):
            hook = S3Hook(aws_conn_id=aws_conn_id)
            if hook.conn_config.conn_type not in (None, "aws"):
                raise JojoKeyStoreError(Translatable("The task's connection is not an AWS connection."))
            return S3Hook(aws_conn_id=aws_conn_id, config=hook.config.merge(short_timeouts)).get_conn()
    except JojoKeyError:
        raise
    except Exception as error:  # Airflow raises many types; their messages can contain secrets
        raise JojoKeyStoreError(
            Translatable(
                "The task's AWS connection cannot be used here ({error}).", error=type(error).__name__
            )
        ) from None


async def in_thread(call: Callable[[], T]) -> T:
    """Call a function that may wait for S3, in one of :data:`S3_THREADS` threads."""
    return await anyio.to_thread.run_sync(call, limiter=_threads)
