"""The receipt: the attempts to pay for the images at one key, and their costs.

A receipt is a small JSON object next to the images in S3. Its invariants, and what each one prevents:

* An attempt that was or may have been billed is never removed. Otherwise, generating an
  image again would erase the earlier cost, and the sum over all receipts would be too low.
* An unreadable receipt is never treated as missing: the task stops before it pays.
* Unbilled attempts do not accumulate: only the latest few are kept. Without this limit, a gateway that
  rejects requests for a week would grow a receipt until it no longer fits into memory.

This module does no I/O.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from msgspec import Struct, field
from msgspec.structs import replace

from airflow_provider_jojokey.cost import Costs, sum_of
from airflow_provider_jojokey.img2.errors import Billed
from airflow_provider_jojokey.payments.attempt import Attempt, Outcome, Owner
from airflow_provider_jojokey.translatable import Translatable

VERSION = 2
READABLE_VERSIONS = (1, 2)
MAX_UNBILLED = 10
"""Maximum number of unbilled attempts in a receipt."""


class ReceiptUnreadable(ValueError):
    """A receipt that exists but is unreadable."""

    def __init__(self, message: Translatable) -> None:
        super().__init__(message)
        self.message = message


class Receipt(Struct, frozen=True):
    """The requests and payments for the images at one key.

    :param bucket: the images' bucket
    :param key: the images' key, as given to the operator
    :param host: the gateway
    :param request: the body of the latest request: prompt, model, size …
    :param attempts: the attempts, oldest first
    """

    bucket: str
    key: str
    host: str = ""
    request: dict[str, Any] = field(default_factory=dict)
    attempts: tuple[Attempt, ...] = ()

    def with_attempt(self, attempt: Attempt) -> Receipt:
        """Return a receipt with ``attempt``, which replaces an attempt with the same ID."""
        attempts = list(self.attempts)
        index = next((i for i, known in enumerate(attempts) if known.id == attempt.id), None)
        if index is None:
            attempts.append(attempt)
        else:
            attempts[index] = attempt
        return replace(self, attempts=_without_old_unbilled(attempts))

    def with_request(self, host: str, request: Mapping[str, Any]) -> Receipt:
        """Return a receipt that names ``request`` as the latest one."""
        return replace(self, host=host, request=dict(request))

    def without(self, attempt_ids: Collection[str]) -> Receipt:
        """Return a receipt without these attempts, for :func:`decide`. Never write it."""
        return replace(self, attempts=tuple(a for a in self.attempts if a.id not in attempt_ids))

    def attempt(self, attempt_id: str) -> Attempt | None:
        """Return the attempt with this ID."""
        return next((attempt for attempt in self.attempts if attempt.id == attempt_id), None)

    def attempts_of(self, owner: Owner) -> list[Attempt]:
        """Return the attempts of ``owner``'s task in its Dag run, over all tries."""
        return [attempt for attempt in self.attempts if attempt.owner.is_task_of(owner)]

    def usage_of(self, owner: Owner) -> dict[str, Any]:
        """Return the tokens billed to ``owner``'s task in its Dag run, over all tries."""
        return total_usage(attempt.usage for attempt in self.attempts_of(owner) if attempt.may_cost)

    def cost_of(self, owner: Owner) -> Costs:
        """Return what ``owner``'s task has cost in its Dag run, over all tries."""
        return sum_of(attempt.cost for attempt in self.attempts_of(owner) if attempt.may_cost)

    def billed_to(self, owner: Owner) -> Billed:
        """Return whether ``owner``'s task was billed in its Dag run, over all tries."""
        known = {attempt.billed for attempt in self.attempts_of(owner)}
        return "unknown" if "unknown" in known else "yes" if "yes" in known else "no"

    def missing_usage(self, owner: Owner) -> list[Attempt]:
        """Return the attempts of ``owner``'s task that may have cost money and whose usage can be looked up."""
        return [
            attempt
            for attempt in self.attempts_of(owner)
            if attempt.may_cost
            and attempt.outcome is not Outcome.OPEN
            and not (attempt.usage or {}).get("total_tokens")
            and attempt.request_id
        ]

    def to_json(self) -> bytes:
        """Return the JSON document: the attempts, preceded by a summary of the latest one."""
        latest = self.attempts[-1] if self.attempts else None
        complete = latest is not None and latest.outcome is Outcome.COMPLETE
        attempts = [attempt.to_json() for attempt in self.attempts]
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
            "images": attempts[-1]["images"] if attempts else [],
            "usage": latest.usage if latest else None,
            "cost": attempts[-1]["cost"] if attempts else None,
            "attempts": attempts,
        }
        return json.dumps(document, indent=1, ensure_ascii=False).encode("utf-8", "surrogatepass")

    @classmethod
    def from_json(cls, data: bytes) -> Receipt:
        """Parse a receipt.

        :raises ReceiptUnreadable: if it is not a receipt of a known version
        """
        try:
            document = json.loads(data)
            if document["version"] not in READABLE_VERSIONS:
                raise ReceiptUnreadable(
                    Translatable(
                        "it has version {version}; this package reads versions 1 and 2",
                        version=repr(document["version"])[:40],
                    )
                )
            if not isinstance(document["attempts"], list) or not isinstance(document["request"], dict):
                raise ReceiptUnreadable(
                    Translatable("its attempts are not a list, or its request is not an object")
                )
            return cls(
                bucket=document["bucket"],
                key=document["key"],
                host=document["host"],
                request=document["request"],
                attempts=tuple(Attempt.from_json(values) for values in document["attempts"]),
            )
        except ReceiptUnreadable:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ReceiptUnreadable(
                Translatable("it is not a receipt ({error})", error=type(error).__name__)
            ) from None


def _without_old_unbilled(attempts: list[Attempt]) -> tuple[Attempt, ...]:
    """Return the attempts without old unbilled ones. Attempts that a person resolved stay."""
    unbilled = [attempt.id for attempt in attempts if not attempt.may_cost and not attempt.resolution]
    old = set(unbilled[:-MAX_UNBILLED])
    return tuple(attempt for attempt in attempts if attempt.id not in old)


def total_usage(usages: Iterable[Mapping[str, Any] | None]) -> dict[str, Any]:
    """Return the sum of several ``usage`` objects; the three totals are always present.

    Details, such as the number of text tokens, are added up only if all of the tokens have them, because their sum
    would be too low otherwise: the gateway log has none.
    """
    given = [usage for usage in usages if usage]
    total: dict[str, Any] = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
    for usage in given:
        _add(total, usage)
    with_tokens = [usage for usage in given if usage.get("total_tokens")]
    for name in with_tokens[0] if with_tokens else ():
        details = [usage.get(name) for usage in with_tokens]
        parts = [part for part in details if isinstance(part, Mapping)]
        if len(parts) == len(details):
            sums: dict[str, Any] = {}
            for part in parts:
                _add(sums, part)
            total[name] = {kind: count for kind, count in sums.items() if all(kind in part for part in parts)}
    return total


def _add(total: dict[str, Any], counts: Mapping[str, Any]) -> None:
    for name, value in counts.items():
        if type(value) is int and value >= 0 and isinstance(total.get(name, 0), int):
            total[name] = total.get(name, 0) + value
