"""Generate the images of one job and pay for them once.

:func:`generate_images` is the loop: read the receipt, decide, act, and start over until the images are
reused or paid for.
"""

from __future__ import annotations

import logging
import random
from typing import Any

from msgspec import Struct

from airflow_provider_jojokey.exceptions import JojoKeyError, JojoKeyStoreError
from airflow_provider_jojokey.integrations.telemetry import observe
from airflow_provider_jojokey.payments import clock, errors, targets
from airflow_provider_jojokey.payments.attempt import Attempt
from airflow_provider_jojokey.payments.budget import budget_of
from airflow_provider_jojokey.payments.context import Context, Services
from airflow_provider_jojokey.payments.decision import Conflict, Reconcile, Reuse, Wait, decide
from airflow_provider_jojokey.payments.job import ImageJob
from airflow_provider_jojokey.payments.receipt import Receipt
from airflow_provider_jojokey.payments.reconcile import orphans, reconcile
from airflow_provider_jojokey.payments.reuse import images_exist
from airflow_provider_jojokey.payments.send import claim_and_send
from airflow_provider_jojokey.payments.usage import settle_usage
from airflow_provider_jojokey.store import spool as spools

__all__ = ["Generated", "ImageJob", "Services", "generate_images"]

MANIFEST_VERSION = 1
MAX_ROUNDS = 50
"""Decisions, not counting waits, after which the receipt counts as unusable."""

CONFLICT_PAUSE = 0.05
"""Seconds by which the maximum random wait grows each time that another process was faster."""

log = logging.getLogger(__name__)


class Generated(Struct, frozen=True):
    """The generated or reused images.

    :param receipt: the receipt as it is now
    :param attempt: the attempt that paid for them
    :param manifest: what the operator returns
    :param etag: the receipt's ETag
    """

    receipt: Receipt
    attempt: Attempt
    manifest: dict[str, Any]
    etag: str | None = None


def generate_images(job: ImageJob, services: Services) -> Generated:
    """Generate images, or reuse images that are already paid.

    :raises JojoKeyError: if there are no images; its text says whether you were charged and what a retry does
    """
    with observe(job) as observer:
        context = Context(job, services, observer)
        context.budget = services.budget or budget_of(job, services.store, context.prices)
        spools.maybe_clean(services.settings.spool_directory, services.settings.spool_max_age)
        try:
            generated = _generate(context)
        except JojoKeyError as error:
            settle_usage(context, context.receipts.last)
            raise errors.with_account(error, context) from None
        finally:
            receipts = context.receipts
            context.budget.settle(job, receipts.last if receipts.is_known else None, context.claimed)
            if services.budget is None:
                context.budget.close()
        if services.budget is None and (uses := context.budget.uses()):
            generated.manifest["budget"] = uses
        return generated


def _generate(context: Context) -> Generated:
    job, rounds = context.job, 0
    # Attempts that allow another payment: their images are gone, or the user agrees to pay again. They don't
    # hide earlier attempts, which may be unresolved.
    settled: set[str] = set()
    if context.services.resend and job.owner.try_number <= 1:
        # Most first tries pay. A batch would gain nothing, because its images take much longer.
        context.services.hook.client.preconnect()
    while (rounds := rounds + 1) <= MAX_ROUNDS:
        fresh = rounds == 1 and targets.are_free(context)
        receipt = context.receipts.assume_absent() if fresh else context.receipts.read()
        if found := orphans(context, receipt):
            for orphan in found:
                reconcile(context, orphan)
            continue
        undecided = receipt.without(settled)
        match decide(undecided, job.owner, context.fingerprint, job.reuse, context.alive(undecided)):
            case Conflict(other):
                raise errors.conflict(context, other)
            case Wait(other):
                context.wait_for(other)
                rounds -= 1
                continue
            case Reuse(attempt):
                if images_exist(context, attempt, receipt):
                    return _generated(context, attempt, settle_usage(context, receipt), reused=True)
                settled.add(attempt.id)
                continue
            case Reconcile(attempt):
                verdict = reconcile(context, attempt)
                recorded = context.receipts.last.attempt(attempt.id)
                if recorded is None or not recorded.is_lost:
                    continue  # it delivered images, cost nothing, or has ended in the meantime
                error = errors.lost(context, recorded, verdict)
                if not job.permits_repayment(recorded):
                    raise error
                log.warning("%s Paying again, as on_unknown_outcome or reuse permits.", error.message)
                settled |= {
                    lost.id
                    for lost in context.receipts.last.attempts
                    if lost.is_lost and job.permits_repayment(lost)
                }
                continue
        context.permit()
        if not fresh and not targets.may_be_written(context, receipt):
            continue
        context.budget.reserve(job, receipt, context.permit)
        context.services.acquire()
        context.permit()  # again: the limiter may wait for minutes
        attempt = context.new_attempt()
        paid = claim_and_send(context, attempt)
        if paid is not None:
            return _generated(context, attempt, settle_usage(context, paid), reused=False)
        clock.pause(random.uniform(0, CONFLICT_PAUSE * rounds), context.stopping)
    raise JojoKeyStoreError(
        f"{context.receipts.uri} changed {MAX_ROUNDS} times while this task decided what to do.",
        "Run `airflow jojokey check --bucket` to see whether the store handles conditional writes.",
        transient=True,
    )


def _generated(context: Context, attempt: Attempt, receipt: Receipt, *, reused: bool) -> Generated:
    attempt = receipt.attempt(attempt.id) or attempt
    request = context.job.request
    _log_result(attempt, reused)
    if reused:
        context.observer.reused(len(attempt.images))
    manifest = {
        "version": MANIFEST_VERSION,
        "images": [image.to_json() for image in attempt.images],
        "usage": receipt.usage_of(context.job.owner),
        "cost": receipt.cost_of(context.job.owner).to_json(),
        "model": attempt.model or request.model,
        "size": attempt.size or request.size,
        "quality": attempt.quality or request.quality,
        "request_id": attempt.request_id,
        "fingerprint": attempt.fingerprint,
        "created": attempt.created,
        "seconds": attempt.seconds,
        "warnings": list(attempt.warnings),
        "reused": reused,
        "receipt": context.receipts.uri,
    }
    return Generated(receipt, attempt, manifest, context.receipts.etag)


def _log_result(attempt: Attempt, reused: bool) -> None:
    uris = ", ".join(image.uri for image in attempt.images[:3])
    more = f" and {len(attempt.images) - 3} more" if len(attempt.images) > 3 else ""
    if reused:
        log.info(
            "Reusing %s%s, paid for at %s by Dag run %s of %s. Nothing was sent.",
            uris, more, errors.started(attempt), attempt.owner.run_id, attempt.owner.dag_id,
        )  # fmt: skip
        return
    tokens = (attempt.usage or {}).get("total_tokens")
    log.info(
        "Stored %s%s: %s bytes in %.1f s for %s tokens, %s (request ID %s).",
        uris,
        more,
        f"{sum(image.bytes for image in attempt.images):,}",
        attempt.seconds or 0.0,
        "an unknown number of" if tokens is None else f"{tokens:,}",
        attempt.cost or "cost unknown",
        attempt.request_id or "unknown",
    )
