"""Send the one paid request of a claimed attempt, and record how it ends."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from airflow_provider_jojokey.exceptions import (
    JojoKeyAlreadyBilledError,
    JojoKeyError,
    JojoKeyReceiptError,
    JojoKeyReplyError,
    JojoKeyStoreError,
    JojoKeyUnknownOutcomeError,
)
from airflow_provider_jojokey.payments import clock, liveness
from airflow_provider_jojokey.payments.attempt import Attempt, Event
from airflow_provider_jojokey.payments.context import SEND_DEADLINE
from airflow_provider_jojokey.payments.evidence import Verdict
from airflow_provider_jojokey.payments.receipt import Receipt
from airflow_provider_jojokey.payments.reconcile import (
    complete,
    examine,
    in_spool,
    recover_response,
    replaceable_keys,
)
from airflow_provider_jojokey.payments.upload import close

if TYPE_CHECKING:
    from airflow_provider_jojokey.payments.context import Context

log = logging.getLogger(__name__)


def claim_and_send(context: Context, attempt: Attempt) -> Receipt | None:
    """Claim an attempt in S3, send its request, store its images, and return the receipt.

    The spool's mark is written first. It proves that an attempt whose claim failed halfway sent nothing.

    :return: ``None`` if another process was faster
    :raises JojoKeyError: if there are no images
    """
    spool, claimed_at = context.spool_of(attempt), clock.monotonic()
    liveness.start(attempt)
    try:
        try:
            spool.create(attempt.to_json())
        except OSError as error:
            raise context.spool_error(error) from None
        context.claimed = True
        if context.receipts.claim(attempt, context.host, context.job.request.body()):
            return _send(context, attempt, context.receipts.last, claimed_at)
        spool.discard()
        return None
    finally:
        liveness.end(attempt)
        spool.mark_ended()


def _send(context: Context, attempt: Attempt, receipt: Receipt, claimed_at: float) -> Receipt:
    """Send the request of a claimed attempt, store its images, and return the receipt.

    :param receipt: with the claim
    :param claimed_at: :func:`clock.monotonic` seconds of the claim
    :raises JojoKeyError: if there are no images
    """
    spool = context.spool_of(attempt)
    sends: list[str] = []
    known: dict[str, str] = {}  # about the latest request's response

    def check_time() -> None:
        """Check that other workers still wait for this attempt.

        :raises JojoKeyError: if it must not be sent (any more)
        """
        context.permit()
        elapsed = clock.monotonic() - claimed_at
        if elapsed > (context.send_window if sends else SEND_DEADLINE):
            raise JojoKeyStoreError(
                f"{elapsed:.0f} s have passed since this attempt was recorded in {context.receipts.uri}, so other "
                "workers may soon assume that it has ended.",
                transient=True,
            )

    def before_send() -> None:
        """Check the time, then mark in the spool that the request is about to be sent.

        :raises JojoKeyError: if it must not be sent (any more)
        """
        check_time()
        at = context.now().isoformat()
        try:
            spool.mark_sending(at, context.store.clock)
        except OSError as error:
            raise context.spool_error(error) from None
        # First, so that what stops the task either knows of the request or prevents it, wherever a thread is suspended.
        context.services.on_send()
        check_time()  # again: a slow disk or a suspended machine may delay the mark by minutes
        sends.append(at)
        known.clear()

    def on_fact(name: str, value: str) -> None:
        known[name] = value
        try:
            spool.add_fact(name, value)
        except OSError as error:
            log.warning("Cannot write to the spool %s: %s.", spool.folder, error.strerror)

    try:
        shortage = spool.check_free_space(context.job.request)
        if shortage is not None:
            raise JojoKeyStoreError(
                f"The disk of the spool {context.settings.spool_directory} is almost full: {shortage}.",
                "Free some space, or set [jojokey] spool_directory to a larger disk.",
                transient=True,
            )
        generation = context.observer.generate(
            context.services.hook,
            context.job,
            spool.open,
            before_send=before_send,
            on_fact=on_fact,
            max_resends=None if context.services.resend else 0,
            resend_until=claimed_at + context.send_window,
        )
    except (OSError, JojoKeyError) as failure:
        error = failure if isinstance(failure, JojoKeyError) else context.spool_error(failure)
        if sends and isinstance(failure, OSError):
            # A disk that fails after the request was sent proves nothing about its charge.
            error = error.changed(billed="unknown", sent=True)
        context.services.on_failure(error)
        # Not error.request_id: a message or a proxy may quote the ID of another request.
        attempt = replace(attempt, request_id=known.get("request_id"), usage=error.usage)
        arrived = recover_response(context, attempt) if error.billed != "no" else None
        if arrived is None:
            raise _failed(context, attempt, receipt, error, sends) from None
        generation = arrived
        log.warning("%s However, all requested images were received.", error.what)
    else:
        try:
            spool.mark_complete(generation)
        except OSError as error:
            log.warning("Cannot write to the spool %s: %s.", spool.folder, error.strerror)
    if generation.request_id:
        context.log.known.add(generation.request_id)
    if (missing := context.job.request.n - len(generation.images)) > 0:
        log.warning("%d of %d requested images are missing in the response.", missing, context.job.request.n)
    return complete(context, replace(attempt, request_id=generation.request_id), generation, receipt)


def _failed(
    context: Context, attempt: Attempt, receipt: Receipt, error: JojoKeyError, sends: list[str]
) -> JojoKeyError:
    """Record that the request failed, and return the error to raise, with the proven charge."""
    spool = context.spool_of(attempt)
    facts: dict[str, Any] = {
        "ended_at": context.now(),
        "cf_ray": error.cf_ray,
        "code": error.code,
        "sends": tuple(sends),
        "error": type(error).__name__,
        "request_id": attempt.request_id,
        "usage": error.usage,
    }
    ended = replace(attempt, ended_at=facts["ended_at"], sends=facts["sends"])
    try:
        if error.billed == "no":
            verdict = Verdict(Event.PROVEN_UNBILLED, "")
        else:
            facts |= context.uploader.upload_partial(
                ended, spool, replaceable_keys(context, attempt, receipt)
            )
            verdict, found = examine(context, ended, receipt, images=len(facts["images"]))
            facts |= found
            if error.billed == "yes" and not isinstance(error, JojoKeyReplyError):
                verdict = Verdict(Event.PROVEN_BILLED, "")  # the gateway charges a violation fee
                facts["note"] = "the gateway's response says that it charges a fee"
            error = _reclassified(context, attempt, error, verdict)
        receipt = context.uploader.retry(
            lambda: context.receipts.update(attempt, verdict.event, **facts | {"error": type(error).__name__})
        )
        spool.discard()
    except (JojoKeyStoreError, JojoKeyReceiptError) as failure:
        if arrived := spool.complete_images():
            close(*arrived)
            return in_spool(context, attempt, error.usage, receipt, failure).changed(
                what=f"{error.what} {failure.what}"
            )
        log.error("Could not update the receipt: %s", failure.what_happened)
    stored = receipt.attempt(attempt.id)
    if stored is not None:
        kept = ([stored.preview.uri] if stored.preview else []) + list(stored.kept)
        error = error.changed(kept=kept, requested=attempt.requested)
    return error


def _reclassified(context: Context, attempt: Attempt, error: JojoKeyError, verdict: Verdict) -> JojoKeyError:
    """Return ``error`` with the proven charge, and with the class that follows from it."""
    billed = {Event.PROVEN_BILLED: "yes", Event.PROVEN_UNBILLED: "no"}.get(verdict.event, "unknown")
    kind = type(error)
    lost = isinstance(error, (JojoKeyUnknownOutcomeError, JojoKeyReplyError)) and billed != "no"
    if lost and context.job.pays_again:
        kind = JojoKeyUnknownOutcomeError  # the user's setting makes a retry useful
    elif isinstance(error, JojoKeyUnknownOutcomeError) and (
        billed == "yes" or (billed != "no" and verdict.final)
    ):
        kind = JojoKeyAlreadyBilledError
    waits = billed == "unknown" and not verdict.final
    wait = context.seconds_to_finish(attempt) if waits else None
    # Replace Cloudflare's Retry-After, which says nothing about billing.
    return error.changed(kind, billed=billed, reason=verdict.reason, retry_after=wait, awaits_log=waits)
