"""The receipt: what was asked, by whom, what came of it and what it cost, beside the images in S3.

A receipt is a small JSON document that is written before money is spent and again after the
images are safe. Each invariant here has an accident that it prevents:

* An attempt is written down as ``open`` before its request is sent. An ``open`` attempt whose
  process is gone is therefore a request that *may* have been billed; without it, a retry after a
  ``kill -9`` would pay again and nobody would know.
* Attempts are only ever added or closed, never dropped. They are the ledger: the bill of a year
  is the sum over them, and a Dag run that regenerates an image does not erase what the last one cost.
* "Could not read the receipt" is never "there is no receipt": a document that is not understood
  stops the task before it pays.

Everything in this module is pure: no S3, no clock, no process is touched.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime
from enum import StrEnum
from types import NoneType
from typing import Any

VERSION = 1
_IN_AN_IMAGE = {"uri", "bucket", "key", "bytes"}


class ReceiptUnreadable(ValueError):
    """A receipt that is there and cannot be understood."""


class Outcome(StrEnum):
    """How an attempt ended."""

    OPEN = "open"
    """It has not ended, or it died and could not say how."""
    COMPLETE = "complete"
    """Its images are in S3."""
    NOT_BILLED = "not_billed"
    """No images, no money."""
    BILLED = "billed"
    """Money, and not all the images: what had arrived is in ``images``."""
    UNKNOWN = "unknown"
    """No images, and nobody knows whether money."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose image it is, in Airflow's terms.

    :param try_number: the task's try, from 1
    :param map_index: the mapped task's index, -1 where it is not mapped
    """

    dag_id: str
    run_id: str
    task_id: str
    map_index: int = -1
    try_number: int = 1

    def is_run_of(self, other: Owner) -> bool:
        """Whether both belong to one Dag run."""
        return (self.dag_id, self.run_id) == (other.dag_id, other.run_id)

    def is_task_of(self, other: Owner) -> bool:
        """Whether both are one task of one Dag run, whatever the try."""
        return self.is_run_of(other) and (self.task_id, self.map_index) == (other.task_id, other.map_index)


@dataclass(frozen=True, slots=True)
class Worker:
    """The process that makes an attempt, so that others on its host can see whether it lives.

    :param host: the host's name and its process namespace
    :param pid: the process id
    :param started: when the process started, in seconds since 1970; process ids come round again
    :param spool: the id of the folder where its images wait
    """

    host: str
    pid: int
    started: float
    spool: str = ""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at paying for the images.

    :param id: 32 hex digits
    :param fingerprint: of the request, see :meth:`ImageRequest.fingerprint`
    :param owner: whose
    :param worker: in which process
    :param started_at: when it was written down, before its request was sent
    :param lease_until: until when it may still be under way, for those who cannot see its process
    :param outcome: how it ended
    :param ended_at: when
    :param billed: whether it cost money: ``"no"``, ``"yes"`` or ``"unknown"``
    :param usage: the tokens that were billed, where they are known
    :param images: what it stored, as in the manifest
    :param preview: what an event stream showed of an image that never came
    :param error: the exception's class
    :param note: why it is believed to have been billed, or not
    """

    id: str
    fingerprint: str
    owner: Owner
    worker: Worker
    started_at: datetime
    lease_until: datetime
    outcome: Outcome = Outcome.OPEN
    ended_at: datetime | None = None
    billed: str = "unknown"
    usage: dict[str, Any] | None = None
    images: list[dict[str, Any]] = field(default_factory=list)
    preview: dict[str, Any] | None = None
    model: str | None = None
    size: str | None = None
    quality: str | None = None
    created: int | None = None
    seconds: float | None = None
    request_id: str | None = None
    cf_ray: str | None = None
    code: str | None = None
    error: str | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Receipt:
    """All that is known of one place for images.

    :param bucket: the images' bucket
    :param key: the images' key, as the operator has it
    :param host: the gateway
    :param request: the latest request's body: prompt, model, size …
    :param attempts: all attempts, oldest first
    """

    bucket: str
    key: str
    host: str = ""
    request: dict[str, Any] = field(default_factory=dict)
    attempts: tuple[Attempt, ...] = ()

    def with_attempt(
        self, attempt: Attempt, host: str = "", request: Mapping[str, Any] | None = None
    ) -> Receipt:
        """Return a receipt with ``attempt`` added, or put in the place of the one with its id."""
        known = [one.id for one in self.attempts]
        attempts = list(self.attempts)
        if attempt.id in known:
            attempts[known.index(attempt.id)] = attempt
        else:
            attempts.append(attempt)
        changed = replace(self, attempts=tuple(attempts))
        return changed if request is None else replace(changed, host=host, request=dict(request))

    def attempt(self, attempt_id: str) -> Attempt | None:
        """Return the attempt with this id."""
        return next((one for one in self.attempts if one.id == attempt_id), None)

    def usage_of(self, owner: Owner) -> dict[str, Any]:
        """Return the tokens that were billed to ``owner``'s task in its Dag run, over all its tries."""
        return total_usage(one.usage for one in self.attempts if one.owner.is_task_of(owner))

    def to_json(self) -> bytes:
        """Return the document: the attempts, and in front of them what the latest one amounts to."""
        latest = self.attempts[-1] if self.attempts else None
        complete = latest is not None and latest.outcome is Outcome.COMPLETE
        document = {
            "version": VERSION,
            "state": "complete" if complete else "started",
            "bucket": self.bucket,
            "key": self.key,
            "host": self.host,
            "fingerprint": latest.fingerprint if latest else None,
            "dag_id": latest.owner.dag_id if latest else None,
            "run_id": latest.owner.run_id if latest else None,
            "task_id": latest.owner.task_id if latest else None,
            "request": self.request,
            "images": latest.images if latest else [],
            "usage": latest.usage if latest else None,
            "attempts": [_plain(asdict(one)) for one in self.attempts],
        }
        return json.dumps(document, indent=1, ensure_ascii=False).encode("utf-8", "surrogatepass")

    @classmethod
    def from_json(cls, data: bytes) -> Receipt:
        """Read a document.

        :raises ReceiptUnreadable: if it is not a receipt of this version
        """
        try:
            document = json.loads(data)
            if document["version"] != VERSION:
                raise ReceiptUnreadable(
                    f"it has version {document['version']!r}, and this package reads {VERSION}"
                )
            if not isinstance(document["attempts"], list) or not isinstance(document["request"], dict):
                raise ReceiptUnreadable("its attempts are no list, or its request is no object")
            return cls(
                bucket=document["bucket"],
                key=document["key"],
                host=document["host"],
                request=document["request"],
                attempts=tuple(_attempt(one) for one in document["attempts"]),
            )
        except ReceiptUnreadable:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ReceiptUnreadable(f"it is not a receipt ({type(error).__name__})") from None


class Step(StrEnum):
    """What to do next, see :func:`decide`."""

    PAY = "pay"
    REUSE = "reuse"
    """The attempt's images are what is wanted."""
    WAIT = "wait"
    """The attempt may be under way in another process."""
    SETTLE = "settle"
    """The attempt may have been billed: find out before anything else."""
    CONFLICT = "conflict"
    """Another task of the same Dag run has the same key."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do next, and because of which attempt."""

    step: Step
    attempt: Attempt | None = None


def decide(
    receipt: Receipt, owner: Owner, fingerprint: str, reuse: str, is_alive: Mapping[str, bool]
) -> Decision:
    """Decide, before money is spent, from what was written down so far.

    :param receipt: what was written down
    :param owner: who wants images
    :param fingerprint: which images
    :param reuse: ``"run"``, ``"always"`` or ``"never"``
    :param is_alive: for each open attempt's id, whether its process may still be at work
    """

    def has_moved(attempt: Attempt) -> bool:
        """Tell whether it is this mapped task's, under another index: an item was taken out of the list before it.

        Only the very same images, once they have ended, and only for a task that was cleared: at its first try, two
        items that share a key do so by mistake.
        """
        if owner.try_number == 1:
            return False
        ended = attempt.outcome is not Outcome.OPEN or not is_alive.get(attempt.id, False)
        of_this_task = attempt.owner.is_run_of(owner) and attempt.owner.task_id == owner.task_id
        return ended and of_this_task and attempt.fingerprint == fingerprint

    def has_left_something(attempt: Attempt) -> bool:
        """Tell whether it is an earlier try that died: what it has paid for may wait in the spool."""
        dead = attempt.outcome is Outcome.OPEN and not is_alive.get(attempt.id, False)
        return dead and attempt.owner.is_task_of(owner)

    for attempt in receipt.attempts:
        other_task = attempt.owner.is_run_of(owner) and not attempt.owner.is_task_of(owner)
        if other_task and attempt.outcome is not Outcome.NOT_BILLED and not has_moved(attempt):
            return Decision(Step.CONFLICT, attempt)

    def counts(attempt: Attempt) -> bool:
        if reuse == "always":
            return attempt.owner.is_task_of(owner) or attempt.fingerprint == fingerprint
        if reuse == "never":  # a trigger that is run twice is one attempt, not two
            return attempt.owner == owner or has_left_something(attempt)
        return attempt.owner.is_task_of(owner) or has_moved(attempt)

    # What surely cost nothing and gave nothing hides nothing that came before it.
    latest = next(
        (one for one in reversed(receipt.attempts) if counts(one) and one.outcome is not Outcome.NOT_BILLED),
        None,
    )
    if latest is None:
        return Decision(Step.PAY)
    if latest.outcome is Outcome.OPEN and is_alive.get(latest.id, False):
        return Decision(Step.WAIT, latest)
    if latest.fingerprint != fingerprint:
        return Decision(Step.PAY)  # another image is wanted now
    if latest.outcome is Outcome.COMPLETE:
        return Decision(Step.REUSE, latest)
    return Decision(Step.SETTLE, latest)


def total_usage(usages: Iterable[Mapping[str, Any] | None]) -> dict[str, Any]:
    """Return the sum of several ``usage`` objects, details included, the three totals always among them."""
    total: dict[str, Any] = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
    for usage in usages:
        _add(total, usage or {})
    return total


def _add(total: dict[str, Any], usage: Mapping[str, Any]) -> None:
    for name, value in usage.items():
        if isinstance(value, Mapping):
            if isinstance(details := total.setdefault(name, {}), dict):
                _add(details, value)
        elif isinstance(value, int) and not isinstance(value, bool) and isinstance(total.get(name, 0), int):
            total[name] = total.get(name, 0) + value


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.isoformat() if isinstance(value, datetime) else value for name, value in values.items()
    }


def _attempt(values: Mapping[str, Any]) -> Attempt:
    known = {one.name for one in fields(Attempt)}
    told = {name: value for name, value in values.items() if name in known}
    told["owner"] = Owner(**told["owner"])
    told["worker"] = Worker(**told["worker"])
    told["outcome"] = Outcome(told["outcome"])
    for name in ("started_at", "lease_until", "ended_at"):
        if name != "ended_at" or told.get(name) is not None:
            told[name] = datetime.fromisoformat(told[name])
            if told[name].tzinfo is None:
                raise ReceiptUnreadable(f"{name} has no time zone")
    if not isinstance(told.get("usage"), (dict, NoneType)):
        raise ReceiptUnreadable("the usage of an attempt is no object")
    if not all(_IN_AN_IMAGE.issubset(image) for image in told.get("images", ())):
        raise ReceiptUnreadable("an image of an attempt has no place")
    return Attempt(**told)
