"""Images in S3: upload, find, check and download them.

*An object is missing only if S3 says so.* ``None`` means that S3 returned ``NoSuchKey``. Any other response, such as
a bare 404 from a proxy, is an error: a receipt that looks missing would let a task pay again.
"""

from __future__ import annotations

import base64
import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import IO, TYPE_CHECKING, Any, TypeVar

from airflow_provider_jojokey.exceptions import JojoKeyStoreError
from airflow_provider_jojokey.payments import clock
from airflow_provider_jojokey.store.conditions import is_condition_failed
from airflow_provider_jojokey.store.documents import DocumentStore
from airflow_provider_jojokey.store.extra_args import for_images, metadata
from airflow_provider_jojokey.store.s3_errors import client_error, code_of, translate_errors

if TYPE_CHECKING:
    from airflow_provider_jojokey.img2.images import Image
    from airflow_provider_jojokey.results import StoredImage

T = TypeVar("T")

DIGEST, PIXELS, ATTEMPT = "sha256", "pixels", "attempt-id"
"""Metadata names: the image's digest, its width and height, and the attempt that paid for it."""


class ImageStore(DocumentStore):
    """Stores images and documents. Threads may share it. The parameters are those of :class:`S3Client`."""

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
            if (
                only_if_absent
                and not condition
                and (same := self._holds(bucket, key, image, labels)) is not None
            ):
                return same
            try:
                self._put_image(bucket, key, image, labels, condition)
            except client_error() as error:
                if not (condition and is_condition_failed(error)):
                    if condition and self._rejects_condition(bucket, condition, error):
                        self._record_support(bucket, if_none_match=False)
                        return self.put_image(bucket, key, image, labels, only_if_absent=True)
                    raise
                found = self._holds(bucket, key, image, labels)
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
            # boto3 adds this header only to checksums of its own, and S3 documents it as required for an object lock.
            checksum["ChecksumAlgorithm"] = "SHA256"
        image.file.file.seek(0)
        facts = {DIGEST: image.file.sha256, PIXELS: f"{image.width}x{image.height}"}
        response = self._request(
            "put_object",
            Bucket=bucket,
            Key=key,
            Body=image.file.file,
            ContentLength=image.file.size,
            ContentType=image.content_type,
            **self._image_parameters({**labels, **facts}),
            **checksum,
            **condition,
        )
        self._etag(response, f"write s3://{bucket}/{key}")

    def _image_parameters(self, labels: Mapping[str, str]) -> dict[str, Any]:
        """Return the additional parameters of an image, with the package's own metadata."""
        given = self.extra_args.get("Metadata", {})
        return {**for_images(self.extra_args), "Metadata": metadata({**given, **labels})}

    def _holds(self, bucket: str, key: str, image: Image, labels: Mapping[str, str]) -> bool | None:
        """Return whether the object at ``key`` is this upload, or ``None`` if it does not exist.

        An object that S3 neither returns nor describes counts as another object.
        """
        size, digest, attempt = image.file.size, image.file.sha256, labels.get(ATTEMPT)

        def compare(response: dict[str, Any]) -> bool:
            known = _labels_of(response)
            if int(response["ContentLength"]) != size:
                return False
            if DIGEST in known:
                return known[DIGEST] == digest and known.get(ATTEMPT) == attempt
            content = hashlib.sha256()  # some stores drop metadata
            for chunk in response["Body"].iter_chunks(1024 * 1024) if "Body" in response else ():
                content.update(chunk)
            return content.hexdigest() == digest

        def read() -> bool | None:
            with translate_errors(f"read s3://{bucket}/{key}"):
                try:
                    return bool(self._request("get_object", compare, Bucket=bucket, Key=key)["Consumed"])
                except client_error() as error:
                    if code_of(error) == "NoSuchKey":
                        return None
                    raise

        def describe() -> bool | None:
            found = self._describe(bucket, key)
            return None if found is None else compare(found)

        for look in (read, describe):  # S3 describes archived objects, but does not return them
            try:
                return look()
            except JojoKeyStoreError as error:
                if error.transient or error.status_code in (None, 404):
                    raise
        return False

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
        return _labels_of(found).get(DIGEST, image.sha256) == image.sha256

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
        labels = _labels_of(response)
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
                **(self._image_parameters({}) if image else {}),
            )
            self._etag(response, doing)


def _labels_of(response: Mapping[str, Any]) -> dict[str, str]:
    """Return an object's metadata. Some stores return the names as capitalized headers."""
    return {name.lower(): value for name, value in response.get("Metadata", {}).items()}


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
