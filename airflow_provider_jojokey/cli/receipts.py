"""``airflow jojokey attempts`` and ``resolve``: show a receipt, and record whether an attempt was billed."""

from __future__ import annotations

import getpass
import os
from datetime import UTC
from typing import TYPE_CHECKING, Any

from airflow_provider_jojokey.cli.connections import image_store
from airflow_provider_jojokey.cli.console import USAGE, CommandFailed, OutputFailed, command, say, show
from airflow_provider_jojokey.store.keys import RECEIPTS, Destination, split

if TYPE_CHECKING:
    import argparse

    from airflow_provider_jojokey.payments.attempt import Attempt
    from airflow_provider_jojokey.payments.receipt import Receipt
    from airflow_provider_jojokey.payments.receipt_store import ReceiptStore

TABLE_COLUMNS = (
    "attempt",
    "started",
    "task",
    "try",
    "outcome",
    "billed",
    "cost",
    "tokens",
    "request_id",
    "evidence",
)


@command
def attempts(options: argparse.Namespace) -> None:
    """Print the attempts of one receipt."""
    receipts = _receipt_store(options)
    receipt = receipts.read()
    if not receipt.attempts:
        raise CommandFailed(f"{receipts.uri} doesn't exist, or lists no attempts")
    show([_row(attempt) for attempt in receipt.attempts], options.output, TABLE_COLUMNS)
    for attempt in receipt.attempts:
        for label, uris in (
            ("image", [image.uri for image in attempt.images]),
            ("preview", [attempt.preview.uri] if attempt.preview else []),
            ("kept", attempt.kept),
        ):
            for uri in uris:
                say(f"{attempt.id[:12]} {label}: {uri}")


@command
def resolve(options: argparse.Namespace) -> None:
    """Record a person's statement whether an attempt was billed."""
    from airflow_provider_jojokey.payments import liveness
    from airflow_provider_jojokey.payments.attempt import TRANSITIONS, Event

    if options.billed == options.not_billed:
        raise CommandFailed("Pass either --billed or --not-billed", USAGE)
    receipts = _receipt_store(options)
    attempt = _choose(receipts, options.attempt)
    if options.request_id:
        _check_request_id(options.request_id, attempt, receipts.last)
    if liveness.may_be_working(attempt, receipts.now(), receipts.clock):
        raise CommandFailed(
            f"Attempt {attempt.id[:12]} may still be in flight, at the latest until "
            f"{attempt.lease_until.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC. Nothing was recorded"
        )
    event = Event.STATED_BILLED if options.billed else Event.STATED_UNBILLED
    if event not in TRANSITIONS[attempt.outcome]:
        raise CommandFailed(f"Attempt {attempt.id[:12]} is {attempt.outcome}, which can't be changed")
    now = receipts.now()
    statement = {
        "by": _user(),
        "at": now.isoformat(timespec="seconds"),
        "billed": "yes" if options.billed else "no",
        "note": options.note or "",
    }
    facts: dict[str, Any] = {
        "resolution": statement,
        "ended_at": attempt.ended_at or now,
        "note": f"{statement['by']} recorded that it was {'' if options.billed else 'not '}billed",
    }
    if options.request_id and options.request_id != attempt.request_id:
        # Tokens and a charge that are known belong to the other request.
        facts |= {"request_id": options.request_id, "usage": None, "charge": None, "cost": None}
    receipt = receipts.update(attempt, event, expected=attempt, **facts)
    changed = receipt.attempt(attempt.id)
    if changed is None or not statement.items() <= (changed.resolution or {}).items():
        raise CommandFailed("Another process changed the receipt at the same time. Run the command again")
    try:
        show([_row(changed)], options.output, TABLE_COLUMNS)
    except OutputFailed as error:
        say(f"jojokey: It was recorded. {error}")
    if options.billed and not changed.usage:
        hint = "" if changed.request_id else " Pass --request-id to have its usage read from the gateway log."
        say(f"jojokey: The next run of the task adds its usage, if the gateway log shows it.{hint}")
    if not options.billed:
        say("jojokey: Clear the task to generate the image. It pays once.")


def _receipt_store(options: argparse.Namespace) -> ReceiptStore:
    """Return the receipt of an image's key, or of a receipt's own key.

    :raises CommandFailed: if the URI is neither
    """
    from airflow_provider_jojokey.payments.receipt_store import ReceiptStore
    from airflow_provider_jojokey.store.default_bucket import default_bucket

    try:
        bucket, key = split(None, options.uri)
        if key.startswith(RECEIPTS):
            key = key.removeprefix(RECEIPTS).removesuffix(".json")
        destination = Destination.parse(
            bucket, key, default_bucket=lambda: default_bucket(options.aws_conn_id)
        )
    except ValueError as error:
        raise CommandFailed(f"{options.uri}: {error}", USAGE) from None
    return ReceiptStore(image_store(options, stores_images=False), destination)


def _choose(receipts: ReceiptStore, attempt_id: str | None) -> Attempt:
    """Return the attempt with an ID, or the only one without a proven outcome.

    :raises CommandFailed: unless there is exactly one
    """
    from airflow_provider_jojokey.payments.attempt import Outcome

    receipt = receipts.read()
    if attempt_id:
        found = [attempt for attempt in receipt.attempts if attempt.id.startswith(attempt_id)]
    else:
        found = [
            attempt for attempt in receipt.attempts if attempt.outcome in (Outcome.UNKNOWN, Outcome.OPEN)
        ]
    if len(found) == 1:
        return found[0]
    listed = ", ".join(attempt.id[:12] for attempt in found) or "none"
    condition = f"start with {attempt_id}" if attempt_id else "have an unknown outcome"
    raise CommandFailed(
        f"{len(found)} attempts in {receipts.uri} {condition} ({listed}). Choose one with --attempt", USAGE
    )


def _check_request_id(request_id: str, attempt: Attempt, receipt: Receipt) -> None:
    """Check that a stated request ID can be that of an attempt. Otherwise its tokens would count twice, or wrongly.

    :raises CommandFailed: if it can't
    """
    owners = [other.id for other in receipt.attempts if other.request_id == request_id]
    if attempt.id not in owners and owners:
        raise CommandFailed(
            f"{request_id} is the request ID of attempt {owners[0][:12]}, so it can't be that of attempt "
            f"{attempt.id[:12]}. Nothing was recorded",
            USAGE,
        )
    if attempt.request_id not in (None, request_id) and not attempt.resolution:
        raise CommandFailed(
            f"The response to attempt {attempt.id[:12]} had the request ID {attempt.request_id}. Nothing was recorded",
            USAGE,
        )


def _row(attempt: Attempt) -> dict[str, Any]:
    index = f"[{attempt.owner.map_index}]" if attempt.owner.map_index >= 0 else ""
    return {
        "attempt": attempt.id[:12],
        "started": f"{attempt.started_at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC",
        "dag": attempt.owner.dag_id,
        "run": attempt.owner.run_id,
        "task": f"{attempt.owner.task_id}{index}",
        "try": attempt.owner.try_number,
        "host": attempt.worker.host,
        "sends": len(attempt.sends),
        "outcome": attempt.outcome.value,
        "billed": attempt.billed,
        "tokens": (attempt.usage or {}).get("total_tokens"),
        "cost": str(attempt.cost or "unknown") if attempt.may_cost else None,
        "charge": attempt.charge,
        "images": len(attempt.images),
        "request_id": attempt.request_id,
        "cf_ray": attempt.cf_ray,
        "evidence": attempt.note,
        "hint": attempt.hint,
        "resolution": attempt.resolution,
    }


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user ID without a name
        return str(os.getuid())
