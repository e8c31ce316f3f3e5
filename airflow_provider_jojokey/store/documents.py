"""Small documents in S3, such as receipts and budgets: read, and write by compare-and-set.

*Conditional writes are tested before money depends on them.* Some stores ignore ``If-Match`` or ``If-None-Match``,
and Ceph accepts its own ETag only without quotes, see :mod:`store.conditions`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from typing import Any

from airflow_provider_jojokey.exceptions import JojoKeyStoreError
from airflow_provider_jojokey.store import conditions
from airflow_provider_jojokey.store.conditions import (
    Conditions,
    ConditionSupport,
    is_condition_failed,
    unquoted,
)
from airflow_provider_jojokey.store.s3_client import S3Client, is_aws
from airflow_provider_jojokey.store.s3_errors import (
    client_error,
    code_of,
    headers_of,
    is_web_page,
    status_of,
    translate_errors,
)

log = logging.getLogger(__name__)

WRONG_ETAG = '"00000000000000000000000000000000"'


class DocumentStore(S3Client):
    """Reads and writes documents. Threads may share it. The parameters are those of :class:`S3Client`."""

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
