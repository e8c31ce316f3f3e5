"""Which conditional writes a store supports, as this process has observed."""

from __future__ import annotations

import threading
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from airflow_provider_jojokey.store.s3_errors import code_of, status_of


class Conditions(Struct, frozen=True):
    """The result of :meth:`ImageStore.verify_conditional_writes`.

    :param verified: whether only one of two conditional writers wins
    :param etag: the object's current ETag, which the test may have changed by writing the object
    """

    verified: bool
    etag: str


class ConditionSupport(Struct, frozen=True):
    """The conditional writes that one bucket supports, as far as known.

    :param if_none_match: whether the store obeys ``If-None-Match: *``; ``None`` if unknown
    :param if_match: whether it accepts the right ETag in ``If-Match`` and rejects a wrong one; ``None`` if unknown
    :param quoted: whether it accepts an ETag in quotes; Ceph does not
    """

    if_none_match: bool | None = None
    if_match: bool | None = None
    quoted: bool = True

    @property
    def complete(self) -> bool:
        """Whether another test is unnecessary."""
        return self.verified or self.if_none_match is False or self.if_match is False

    @property
    def verified(self) -> bool:
        """Whether only one of two writers wins."""
        return bool(self.if_none_match and self.if_match)


AWS = ConditionSupport(if_none_match=True, if_match=True)
NAMES = {"IfNoneMatch": "if_none_match", "IfMatch": "if_match"}
support: dict[tuple[str, str], ConditionSupport] = {}
"""By endpoint and bucket, for this process."""
_lock = threading.Lock()
testing: dict[tuple[str, str], threading.Lock] = {}
"""The threads of a batch wait here for the first one's test."""

CONFLICTS = {"ConditionalRequestConflict", "OperationAborted", "409"}
UNSUPPORTED = {
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
"""Codes of 400, 405 and 501 that do not name another reason, such as an expired token."""


def is_condition_failed(error: Any) -> bool:
    """Return whether S3 rejected a write because its condition was not met."""
    return status_of(error) == 412 or (status_of(error) == 409 and code_of(error) in CONFLICTS)


def unquoted(etag: str) -> str:
    """Return an ETag without quotes, which is the only form that Ceph accepts."""
    return etag.removeprefix("W/").strip('"')


def record_support(target: tuple[str, str], **facts: bool) -> None:
    """Record which conditional writes a store supports, as its response has shown.

    :param target: endpoint and bucket
    :param facts: fields of :class:`ConditionSupport`
    """
    with _lock:
        support[target] = replace(support.get(target, ConditionSupport()), **facts)
