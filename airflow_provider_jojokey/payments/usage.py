"""Fill in missing usage and charges from the gateway log, by request ID."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

from airflow_provider_jojokey.exceptions import JojoKeyError
from airflow_provider_jojokey.img2.errors import Img2Error
from airflow_provider_jojokey.payments import clock, gateway_log
from airflow_provider_jojokey.payments.attempt import Attempt, Event, Outcome
from airflow_provider_jojokey.payments.context import LOG_DELAY
from airflow_provider_jojokey.payments.evidence import shows_charge
from airflow_provider_jojokey.payments.receipt import Receipt
from airflow_provider_jojokey.store.s3 import retry_transient

if TYPE_CHECKING:
    from airflow_provider_jojokey.payments.context import Context

log = logging.getLogger(__name__)

OUTAGE_TIMEOUT = 10.0
"""Seconds to wait for S3 during an outage."""
USAGE_RETRY = 2.0
"""Seconds to wait before the gateway log is read again for a request that has just ended."""


def settle_usage(context: Context, receipt: Receipt) -> Receipt:
    """Fill in usage and charges that responses did not report, from the gateway log.

    This is best effort: if the log or S3 can't be reached, a later run of the task tries again.

    :return: the receipt as it is now
    """
    for again in (False, True):
        pending = receipt.missing_usage(context.job.owner)
        if not pending or (again and not _just_ended(context, pending)):
            break
        if again and clock.pause(USAGE_RETRY, context.stopping):
            break
        try:
            by_id = {
                logged.request_id: logged
                for logged in context.log.requests(clock.monotonic() - gateway_log.MAX_AGE)
            }
            for attempt in pending:
                logged = by_id.get(attempt.request_id or "")
                if logged is None or not logged.charged:
                    continue
                unknown = attempt.outcome is Outcome.UNKNOWN
                news = {"note": shows_charge(logged)} if unknown else {}
                update = partial(
                    context.receipts.update,
                    attempt,
                    Event.PROVEN_BILLED if unknown else Event.DETAIL,
                    expected=attempt,
                    usage=logged.usage or attempt.usage,
                    charge=context.valued(logged.quota, attempt.charge),
                    **news,
                )
                receipt = retry_transient(update, timeout=OUTAGE_TIMEOUT, stopping=context.stopping)
        except (Img2Error, JojoKeyError) as error:
            known = JojoKeyError.of(error) if isinstance(error, Img2Error) else error
            log.info("The usage of a request is not known yet: %s", known.what_happened)
            break
        if context.log.interval:
            break  # a batch reads the log again at its end
    return receipt


def _just_ended(context: Context, attempts: list[Attempt]) -> bool:
    now = context.now()
    return any(
        attempt.ended_at and (now - attempt.ended_at).total_seconds() < LOG_DELAY for attempt in attempts
    )
