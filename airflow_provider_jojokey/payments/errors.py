"""The errors that several steps of the payment path share."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC
from typing import TYPE_CHECKING, Any

from airflow_provider_jojokey.exceptions import (
    JojoKeyAlreadyBilledError,
    JojoKeyError,
    JojoKeyReceiptError,
    JojoKeyStoreError,
    JojoKeyUnknownOutcomeError,
)
from airflow_provider_jojokey.payments.attempt import Attempt, Event, Outcome

if TYPE_CHECKING:
    from pathlib import Path

    from airflow_provider_jojokey.payments.context import Context
    from airflow_provider_jojokey.payments.evidence import Verdict
    from airflow_provider_jojokey.payments.job import ImageJob


def conflict(context: Context, other: Attempt) -> JojoKeyError:
    """Return the error for another task of the same Dag run that writes to the same key."""
    index = f"[{other.owner.map_index}]" if other.owner.map_index >= 0 else ""
    return JojoKeyReceiptError(
        f"The task {other.owner.task_id}{index} of the same Dag run also writes to {context.job.uri}, so you would "
        "pay for two images and lose one.",
        "Give each task its own key, for example with {{ task.task_id }} or {{ ti.map_index }} in s3_key.",
    )


def missing_image(problem: str, uris: list[str]) -> JojoKeyError:
    """Return the error for an image that this Dag run has paid for but that is no longer in S3.

    :param problem: what happened to it, without a full stop
    :param uris: the images that are known to be lost
    """
    error = JojoKeyReceiptError(
        f"This Dag run has paid for its image, but {problem}.",
        "Restore the object, or clear the task with reuse='never' to pay for a new image. A date or run ID in "
        "s3_key keeps runs from overwriting each other.",
    )
    error.missing = uris
    return error


def unusable_spool(directory: Path, error: OSError) -> JojoKeyError:
    """Return the error for a spool directory that cannot be used."""
    return JojoKeyStoreError(
        f"The spool directory {directory} is not usable: {error.strerror}.",
        "Set [jojokey] spool_directory to a directory that this worker may write to.",
    )


def lost(context: Context, attempt: Attempt, verdict: Verdict) -> JojoKeyError:
    """Return the error for an earlier attempt that was, or may have been, billed and produced too little."""
    billed = attempt.outcome is Outcome.BILLED or verdict.event in (Event.PROVEN_BILLED, Event.STATED_BILLED)
    received = (
        f"{len(attempt.images)} of {attempt.requested} images were" if attempt.images else "no image was"
    )
    final = billed or verdict.final
    todo = "To check the charge, send JojoKey support this time and the request ID or cf-ray."
    if not context.job.pays_again:
        todo += ' To generate the image again, set on_unknown_outcome="regenerate".'
    # With the permission to pay again, a retry is useful.
    kind = JojoKeyAlreadyBilledError if final and not context.job.pays_again else JojoKeyUnknownOutcomeError
    error = kind(
        f"The response to an earlier request ({started(attempt)}) was lost, so {received} received.",
        todo,
        billed="yes" if billed else "unknown",
        reason=verdict.reason or attempt.note or "",
        request_id=attempt.request_id,
        cf_ray=attempt.cf_ray,
    )
    if not final:
        error.retry_after, error.awaits_log = context.seconds_to_finish(attempt), True
    error.kept = ([attempt.preview.uri] if attempt.preview else []) + list(attempt.kept)
    return error


def stopped() -> JojoKeyError:
    """Return the error for a task that Airflow stopped before it sent a request."""
    return JojoKeyError("Airflow stopped the task before it sent its request.")


def unrecorded() -> JojoKeyError:
    """Return the error for a request that was sent, and whose outcome could not be recorded in time."""
    return JojoKeyUnknownOutcomeError(
        "S3 did not respond in time to record its request.",
        "Clear the task: it first stores the images that were received on this host.",
        billed="unknown",
        sent=True,
    )


def proven_billed(error: JojoKeyError, job: ImageJob) -> JojoKeyError:
    """Return an error of unknown charge for a request whose receipt shows by now that it was billed."""
    kind = type(error)
    if isinstance(error, JojoKeyUnknownOutcomeError) and not job.pays_again:
        kind = JojoKeyAlreadyBilledError  # a retry would find the charge
    return error.changed(kind, billed="yes", reason="", retry_after=None, awaits_log=False)


def with_account(error: JojoKeyError, context: Context) -> JojoKeyError:
    """Return ``error`` with the task's usage and images, if the receipt is known."""
    if not context.receipts.is_known and not isinstance(error, (JojoKeyStoreError, JojoKeyReceiptError)):
        with suppress(JojoKeyError):
            context.receipts.read()
    receipt, job = context.receipts.last, context.job
    if error.billed == "unknown" and context.receipts.is_known and receipt.billed_to(job.owner) == "yes":
        error = proven_billed(error, job)  # the gateway log shows the charge by now
    images = [
        image.to_json()
        for attempt in receipt.attempts_of(job.owner)
        if attempt.fingerprint == context.fingerprint
        for image in attempt.images
        if image.uri not in error.missing
    ]
    usage = receipt.usage_of(job.owner) if context.receipts.is_known else None
    cost = receipt.cost_of(job.owner).to_json() if context.receipts.is_known else None
    if error.spool:  # these include a response that the receipt doesn't list yet
        usage, cost = error.usage, error.cost
    facts: dict[str, Any] = {
        "usage": usage,
        "cost": cost,
        "images": images or None,
        "requested": error.requested or job.request.n,
        "receipt": context.receipts.uri,
        "pays_again": job.pays_again,
    }
    return error.changed(**facts)


def started(attempt: Attempt) -> str:
    """Return when an attempt was claimed, formatted for display."""
    return f"{attempt.started_at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
