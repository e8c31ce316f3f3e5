"""Reconcile attempts whose response was lost.

An attempt is *orphaned* when its process died, or its connection broke, after it was claimed. This module
stores what the attempt left on this host, collects evidence about it (spool, gateway log) and records what
the evidence proves. It never treats missing data as evidence: without proof, the outcome is unknown.
"""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from airflow_provider_jojokey.exceptions import JojoKeyError, JojoKeyReceiptError, JojoKeyStoreError
from airflow_provider_jojokey.img2.errors import ADVICE, Img2Error
from airflow_provider_jojokey.payments import adopt, clock, evidence, gateway_log
from airflow_provider_jojokey.payments.attempt import Attempt, Event, Outcome, outcome_after
from airflow_provider_jojokey.payments.evidence import Facts, Verdict
from airflow_provider_jojokey.payments.receipt import Receipt
from airflow_provider_jojokey.payments.upload import close
from airflow_provider_jojokey.store import spool as spools

if TYPE_CHECKING:
    from airflow_provider_jojokey.img2.client import Generation
    from airflow_provider_jojokey.payments.context import Context

log = logging.getLogger(__name__)


def orphans(context: Context, receipt: Receipt) -> list[Attempt]:
    """Return the task's orphaned attempts that left something on this host.

    Their prompt, their position in the receipt, and the host of later attempts don't matter, because the images
    they received are paid. A store without conditional writes may have lost an attempt from the receipt, so this
    also lists the attempts in the spool.
    """
    found = [
        attempt
        for attempt in receipt.attempts_of(context.job.owner)
        if context.spool_of(attempt).exists and not context.is_alive(attempt)
    ]
    try:
        listed = spools.attempts_in(context.settings.spool_directory, context.job.uri)
    except OSError as error:
        raise context.spool_error(error) from None
    for spool, values in listed:
        try:
            attempt = Attempt.from_json(values)
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        if receipt.attempt(attempt.id) or not attempt.owner.is_task_of(context.job.owner):
            continue
        if not context.is_alive(attempt):
            found.append(attempt)
            log.debug("The spool %s belongs to an attempt that the receipt doesn't list.", spool.folder)
    return [attempt for attempt in found if attempt.id not in context.reconciled]


def reconcile(context: Context, attempt: Attempt) -> Verdict:
    """Store the received images of an orphaned attempt, and record what is proven about it.

    Its process is looked up after the receipt was read, and may have recorded how the attempt ended in between. So
    this reads the receipt again.

    :return: what is proven; a later read of the receipt shows what was recorded
    :raises JojoKeyStoreError: if S3 does not accept it in time
    """
    receipt = context.receipts.read()
    attempt = receipt.attempt(attempt.id) or attempt
    spool = context.spool_of(attempt)
    context.reconciled.add(attempt.id)
    if attempt.outcome is Outcome.COMPLETE:
        spool.discard()
        return Verdict(Event.DETAIL, "its images are in S3")
    known_keys = replaceable_keys(context, attempt, receipt)
    generation = recover_response(context, attempt)
    if generation is not None:
        log.info("The images of an earlier attempt are in the spool: storing them.")
        complete(context, attempt, generation, receipt)
        return Verdict(Event.STORED, "its images were received")
    salvaged, known = context.uploader.upload_partial(attempt, spool, known_keys), attempt
    if not salvaged["images"] and not spool.exists:
        salvaged["images"], request_id = adopt.stored_images(context, attempt)
        known = replace(attempt, request_id=request_id)
    verdict, found = examine(context, known, receipt, images=len(salvaged["images"]))
    in_receipt = receipt.attempt(attempt.id) is not None
    if in_receipt or verdict.event is not Event.PROVEN_UNBILLED:
        event = verdict.event if _is_news(attempt, verdict) else Event.DETAIL
        if attempt.requested and len(salvaged["images"]) >= attempt.requested:
            event = Event.STORED
        context.receipts.update(
            attempt,
            event,
            # Record received images even if another host has updated the attempt in between.
            expected=attempt if in_receipt and salvaged["images"] == attempt.images else None,
            ended_at=attempt.ended_at or context.now(),
            **salvaged,
            **found,
        )
    spool.discard()
    return verdict


def _is_news(attempt: Attempt, verdict: Verdict) -> bool:
    """Return whether a verdict adds to the recorded outcome."""
    if attempt.outcome is Outcome.OPEN:
        return True
    return verdict.event is not Event.LOST and verdict.event in evidence_after(attempt)


def evidence_after(attempt: Attempt) -> frozenset[Event]:
    """Return the events that would change the outcome of an attempt that has ended."""
    if attempt.outcome is Outcome.UNKNOWN:
        return frozenset({Event.PROVEN_BILLED, Event.PROVEN_UNBILLED})
    if attempt.outcome is Outcome.NOT_BILLED:
        return frozenset({Event.PROVEN_BILLED})
    return frozenset()


def examine(
    context: Context, attempt: Attempt, receipt: Receipt, images: int = 0
) -> tuple[Verdict, dict[str, Any]]:
    """Collect evidence about an attempt and judge it.

    :param images: number of its images that were received
    :return: the verdict, and the fields of the attempt that it fills in
    """
    spool = context.spool_of(attempt)
    first, last = context.sent_between(attempt)
    request_id = attempt.request_id or next(iter(spool.facts().get("request_id", ())), None)
    unsent = attempt.outcome is Outcome.OPEN and spool.proves_unsent()
    logged, problem, transient = None, "", False
    if not unsent and not (images and attempt.usage):
        try:
            logged = context.log.requests(newer_than=clock.monotonic() - gateway_log.MAX_AGE)
        except Img2Error as error:
            problem, transient = error.summary, ADVICE[error.kind].transient
    # The time of the log's copy, which lacks rows that were written later.
    seen, finished_by = context.now() - timedelta(seconds=context.log.age()), context.finished_by(attempt)
    verdict = evidence.judge(
        Facts(
            model=attempt.model or context.job.request.model,
            sent_from=first.timestamp(),
            sent_until=last.timestamp(),
            finished=seen >= finished_by,
            overdue=seen >= finished_by + timedelta(seconds=evidence.CHARGE_DELAY),
            stated=(attempt.resolution or {}).get("billed"),
            refunded=attempt.is_refunded,
            images=images or len(attempt.images),
            unsent=unsent,
            request_id=request_id,
            log=logged,
            log_problem=problem,
            others=context.log.others(
                attempt.id, (other.request_id for other in receipt.attempts if other.id != attempt.id)
            ),
        )
    )
    if verdict.hint and not context.log.assign(verdict.hint["request_id"], attempt.id):
        verdict = Verdict(Event.LOST, "the gateway log shows no request that fits", verdict.final)
    if transient and verdict.event is Event.LOST:
        verdict = Verdict(verdict.event, verdict.reason, final=False)
    if not (_is_news(attempt, verdict) or outcome_after(verdict.event) is attempt.outcome):
        # Otherwise, a log that has been pruned since would replace the evidence for a charge.
        verdict = replace(verdict, reason=attempt.note or "", hint=None)
    found = {
        "note": verdict.reason or None,
        "request_id": request_id,
        "usage": attempt.usage or verdict.usage,
        "charge": context.valued(verdict.quota, attempt.charge),
        "hint": verdict.hint or attempt.hint,
        "sends": attempt.sends or tuple(send["at"] for send in spool.sends()),
    }
    return verdict, found


def recover_response(context: Context, attempt: Attempt) -> Generation | None:
    """Return the complete response in an attempt's spool, or all its images if only the end is missing."""
    spool = context.spool_of(attempt)
    requested = attempt.requested
    if requested is None and attempt.fingerprint == context.fingerprint:  # a receipt of version 1
        requested = context.job.request.n
    if (generation := spool.complete_response()) is not None:
        return generation
    images = spool.complete_images()
    if not requested or len(images) < requested:
        close(*images)
        return None
    from airflow_provider_jojokey.img2.client import Generation

    request_id = attempt.request_id or next(iter(spool.facts().get("request_id", ())), None)
    return Generation(
        images=images[:requested],
        usage=attempt.usage,
        created=None,
        model=attempt.model or "",
        size=attempt.size or "",
        quality=attempt.quality or "",
        request_id=request_id,
        seconds=0.0,
    )


def complete(
    context: Context,
    attempt: Attempt,
    generation: Generation,
    receipt: Receipt,
) -> Receipt:
    """Upload the images of a complete response, then record it in the receipt.

    :param receipt: the receipt as it was read last
    :return: the receipt as it is now
    :raises JojoKeyStoreError: if S3 does not accept the images in time; they stay in the spool
    """
    spool, job = context.spool_of(attempt), context.job
    sends = attempt.sends or tuple(send["at"] for send in spool.sends())
    try:
        images = context.uploader.images(
            generation.images, attempt, generation, known_keys=replaceable_keys(context, attempt, receipt)
        )
        kept = context.uploader.unusable(attempt, spool)
        warnings = (f"What is not a usable image was kept as {', '.join(kept)}.",) if kept else ()
        wanted = attempt.fingerprint == context.fingerprint
        receipt = context.uploader.retry(
            lambda: context.receipts.update(
                attempt,
                Event.STORED,
                ended_at=context.now(),
                usage=generation.usage or attempt.usage,
                images=images,
                model=generation.model or attempt.model or (job.request.model if wanted else None),
                size=generation.size or attempt.size or (job.request.size if wanted else None),
                quality=generation.quality or attempt.quality or (job.request.quality if wanted else None),
                created=generation.created,
                seconds=round(generation.seconds, 3),
                request_id=generation.request_id,
                sends=sends,
                kept=kept or attempt.kept,
                warnings=(*generation.warnings, *warnings),
                error=None,
                note=None,  # its images prove more than what another host has recorded
            )
        )
    except (JojoKeyStoreError, JojoKeyReceiptError) as error:
        raise in_spool(context, attempt, generation.usage, receipt, error) from None
    finally:
        generation.close()
    spool.discard()
    return receipt


def in_spool(
    context: Context, attempt: Attempt, usage: dict[str, Any] | None, receipt: Receipt, error: JojoKeyError
) -> JojoKeyError:
    """Return an error for received images that are not in S3 yet, with what the task was billed so far.

    :param usage: of their response, if it is known
    :param receipt: the receipt, which doesn't list the response
    """
    before, owner = receipt.attempt(attempt.id) or attempt, context.job.owner
    billed = replace(before, outcome=Outcome.BILLED, usage=usage or before.usage)
    receipt = receipt.with_attempt(billed.priced(context.prices, before))
    facts: dict[str, Any] = {"usage": receipt.usage_of(owner), "cost": receipt.cost_of(owner).to_json()}
    return error.changed(billed="yes", sent=True, spool=str(context.spool_of(attempt).folder), **facts)


def replaceable_keys(context: Context, attempt: Attempt, receipt: Receipt) -> frozenset[str] | None:
    """Return the keys that an attempt's images may replace, or ``None`` if they must go next to the receipt.

    They go next to the receipt if the job wants another image at its key (with another prompt, or with
    ``reuse="never"``), or if a later attempt has stored its image there. Otherwise images that waited on this host, or
    whose request took longer, would overwrite images that have been paid for since.

    :raises JojoKeyStoreError: if S3 does not respond in time
    """
    keys = _replaceable_keys(context, attempt, receipt)
    if keys or (keys is not None and context.job.replace):  # otherwise, the upload overwrites nothing
        keys = _replaceable_keys(context, attempt, context.uploader.retry(context.receipts.read))
    return keys


def _replaceable_keys(context: Context, attempt: Attempt, receipt: Receipt) -> frozenset[str] | None:
    job = context.job
    wanted = attempt.fingerprint == context.fingerprint
    if not wanted or (job.reuse == "never" and not attempt.owner.is_try_of(job.owner)):
        return None
    ids = [other.id for other in receipt.attempts]
    position = ids.index(attempt.id) if attempt.id in ids else -1
    if any(later.images for later in receipt.attempts[position + 1 :]):
        return None
    return frozenset(image.key for other in receipt.attempts for image in other.images)
