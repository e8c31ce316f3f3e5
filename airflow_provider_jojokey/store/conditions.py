"""What is known about conditional writes: which stores honour which conditions, in this process."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from typing import Any

from airflow_provider_jojokey.store.s3_errors import code_of, status_of


@dataclass(frozen=True, slots=True)
class Conditions:
    """The result of :meth:`ImageStore.verify_conditional_writes`.

    :param verified: whether only one of two conditional writers wins
    :param etag: the object's current ETag: the test has written the object, and may have changed it
    """

    verified: bool
    etag: str


@dataclass(frozen=True, slots=True)
class Known:
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


AWS = Known(if_none_match=True, if_match=True)
NAMES = {"IfNoneMatch": "if_none_match", "IfMatch": "if_match"}
known: dict[tuple[str, str], Known] = {}
"""By endpoint and bucket, for this process."""
_lock = threading.Lock()
testing: dict[tuple[str, str], threading.Lock] = {}
"""Threads of a batch wait here for the first one's test."""

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
"""Codes of 400, 405 and 501 that say nothing else, such as "the token has expired"."""


def is_condition_failed(error: Any) -> bool:
    """Return whether S3 rejected a write because its condition was not met."""
    return status_of(error) == 412 or (status_of(error) == 409 and code_of(error) in CONFLICTS)


def unquoted(etag: str) -> str:
    """Return an ETag without quotes, which is the only form that Ceph accepts."""
    return etag.removeprefix("W/").strip('"')


def learn(place: tuple[str, str], **facts: bool) -> None:
    """Record what a store's response has shown about its conditional writes.

    :param place: endpoint and bucket
    :param facts: fields of :class:`Known`
    """
    with _lock:
        known[place] = replace(known.get(place, Known()), **facts)
