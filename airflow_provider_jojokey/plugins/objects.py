"""Images and small documents out of S3, for the API server.

An XCom is written by whoever may write XComs, and may name any object that the connection can read. So
nothing of an object leaves this module before all of it is here and is what the result says it is: an
image by its first bytes, of the size and with the SHA-256 that are told. A forged result reads nothing
that its author did not have already.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any, BinaryIO

from cachetools import TTLCache, cached

from airflow_provider_jojokey.exceptions import JojoKeyError, JojoKeyStoreError
from airflow_provider_jojokey.img2.images import content_type_of
from airflow_provider_jojokey.results import StoredImage
from airflow_provider_jojokey.store.keys import RECEIPTS, split_uri
from airflow_provider_jojokey.store.s3 import is_aws
from airflow_provider_jojokey.store.s3_errors import translate_errors

MAX_BYTES = 64 * 1024 * 1024
MAX_DOCUMENT = 4 * 1024 * 1024
"""Bytes of a receipt that are read."""
PIECE = 256 * 1024
CLIENTS_KEPT = 60.0
"""Seconds for which a client is used again: a connection that was edited counts soon."""

# Bounded, because the name comes from an XCom, which may contain any text.
_CLIENTS: TTLCache[str | None, Any] = TTLCache(maxsize=100, ttl=CLIENTS_KEPT)


class NotServed(Exception):
    """An object that is not given out; the message says why, to people."""

    reason = "not_served"
    """The same for programs."""


class Missing(NotServed):
    """An object that is not there."""

    reason = "missing"


class Replaced(Missing):
    """Another object is at the image's key."""

    reason = "replaced"


def fetch(image: StoredImage, aws_conn_id: str | None) -> tuple[BinaryIO, str]:
    """Return an image as an open file without a name, and its type.

    :param aws_conn_id: the connection that the task used
    :raises Missing: if there is no such object any more
    :raises NotServed: if it is not the image that the result tells of
    :raises JojoKeyStoreError: if S3 does not give it
    """
    if image.bytes > MAX_BYTES:
        raise NotServed(f"The image has {image.bytes:,} bytes; more than {MAX_BYTES:,} are not shown here.")
    file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  (handed on)
    try:
        digest = hashlib.sha256()
        kind = None
        for piece in _pieces(image, aws_conn_id):
            if kind is None and (kind := content_type_of(piece)) is None:
                raise NotServed("The object is not a PNG, JPEG or WebP image, so it is not shown.")
            digest.update(piece)
            file.write(piece)
        if kind is None or digest.hexdigest() != image.sha256:
            raise _replaced()
        file.seek(0)
        return file, kind
    except BaseException:
        file.close()
        raise


def document(uri: str, aws_conn_id: str | None, *, suffix: str, limit: int = MAX_DOCUMENT) -> bytes:
    """Return a small object, whole.

    :param suffix: what its key must end with
    :param limit: bytes
    :raises NotServed: if it is not there, too large, or not where such documents are
    :raises JojoKeyStoreError: if S3 does not give it
    """
    with closing(_open(*_place(uri, suffix), aws_conn_id)) as body:
        data = bytes(body.read(limit + 1))
    if len(data) > limit:
        raise NotServed(f"It is larger than {limit:,} bytes.")
    return data


def lines(
    uri: str,
    aws_conn_id: str | None,
    *,
    suffix: str,
    start: int,
    count: int,
    wanted: Callable[[Any], bool] | None = None,
    longest: int = PIECE,
) -> tuple[list[tuple[int, Any]], bool]:
    """Return some lines of a JSON Lines object, with their numbers from 0, and whether there are more.

    :param start: how many of the wanted lines to pass over
    :param count: how many to return
    :param wanted: which lines count; without it all do
    :param longest: bytes of a line; a longer one ends the reading
    :raises NotServed: if there is no such object, or it is not where such documents are
    :raises JojoKeyStoreError: if S3 does not give it
    """
    found: list[tuple[int, Any]] = []
    passed = 0
    with (
        closing(_open(*_place(uri, suffix), aws_conn_id)) as body,
        translate_errors(f"read {uri}"),
    ):
        for number, line in enumerate(body.iter_lines(PIECE)):
            if len(line) > longest:
                raise NotServed(f"Line {number + 1} is longer than {longest:,} bytes.")
            value = _json(line) if wanted is not None or passed >= start else None
            if wanted is not None and not wanted(value):
                continue
            if passed >= start + count:
                return found, True
            if passed >= start:
                found.append((number, value))
            passed += 1
    return found, False


def console_url(uris: Sequence[str], aws_conn_id: str | None) -> str | None:
    """Return where objects show in the AWS console, or ``None`` where their bucket is not on AWS.

    :raises JojoKeyStoreError: if the connection cannot be used
    """
    from airflow_provider_jojokey.links.jojokey import s3_console_url

    meta = _client(aws_conn_id).meta
    if not is_aws(meta.endpoint_url):
        return None
    return s3_console_url(uris, meta.region_name, meta.partition)


def _pieces(image: StoredImage, aws_conn_id: str | None) -> Iterator[bytes]:
    with closing(_open(image.bucket, image.key, aws_conn_id, image.bytes)) as body:
        arrived = 0
        with translate_errors(f"read {image.uri}"):
            while piece := body.read(PIECE):
                arrived += len(piece)
                if arrived > image.bytes:
                    raise _replaced()
                yield piece


def _open(bucket: str, key: str, aws_conn_id: str | None, size: int | None = None) -> Any:
    client = _client(aws_conn_id)
    with translate_errors(f"read s3://{bucket}/{key}"):
        try:
            answer = client.get_object(Bucket=bucket, Key=key)
        except client.exceptions.ClientError as error:
            if error.response.get("Error", {}).get("Code") in ("NoSuchKey", "404", "NoSuchBucket"):
                raise Missing("The object is no longer in S3: it was moved or deleted.") from None
            raise
    if size is not None and answer["ContentLength"] != size:
        answer["Body"].close()
        raise _replaced()
    return answer["Body"]


def _replaced() -> Replaced:
    return Replaced("Another object is at its key in S3 now: the image was overwritten.")


def _place(uri: str, suffix: str) -> tuple[str, str]:
    bucket, key = split_uri(uri)
    if not (uri.startswith("s3://") and bucket and key.startswith(RECEIPTS) and key.endswith(suffix)):
        raise NotServed("Its place is no place of such a document.")
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

    impatient = Config(connect_timeout=5, read_timeout=20, retries={"total_max_attempts": 2})
    try:
        with translate_errors("use the AWS connection"):
            hook = S3Hook(aws_conn_id=aws_conn_id)
            if hook.conn_config.conn_type not in (None, "aws"):
                raise JojoKeyStoreError("The connection that the task names is no AWS connection.")
            return S3Hook(aws_conn_id=aws_conn_id, config=hook.config.merge(impatient)).get_conn()
    except JojoKeyError:
        raise
    except Exception as error:  # Airflow's own, of many kinds; their texts may hold what is in the connection
        raise JojoKeyStoreError(
            f"The AWS connection of the task cannot be used here ({type(error).__name__})."
        ) from None
