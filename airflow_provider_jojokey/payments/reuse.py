"""Check that paid images are still in S3."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_provider_jojokey.payments import errors
from airflow_provider_jojokey.payments.attempt import Attempt
from airflow_provider_jojokey.payments.receipt import Receipt

if TYPE_CHECKING:
    from airflow_provider_jojokey.payments.context import Context
    from airflow_provider_jojokey.results import StoredImage


def images_exist(context: Context, attempt: Attempt, receipt: Receipt) -> bool:
    """Return whether a complete attempt's images are in S3 as they were stored.

    :raises JojoKeyReceiptError: if they are not and this Dag run has paid for them, perhaps under another map index, so
        a person must decide whether to pay again
    :raises JojoKeyStoreError: if S3 does not respond
    """
    problem, lost = _problem(context, attempt, receipt)
    if problem and attempt.owner.is_run_of(context.job.owner):
        raise errors.missing_image(problem, [image.uri for image in lost])
    return not problem


def _problem(context: Context, attempt: Attempt, receipt: Receipt) -> tuple[str, list[StoredImage]]:
    """Return why an attempt's images are not usable, without a full stop, and lost images; nothing if they are."""
    position = [other.id for other in receipt.attempts].index(attempt.id)
    keys = {image.key for image in attempt.images}
    for later in receipt.attempts[position + 1 :]:
        if overwritten := keys & {image.key for image in later.images}:
            same = later.owner.is_task_of(attempt.owner)
            lost = [image for image in attempt.images if image.key in overwritten]
            return f"{'a later attempt' if same else 'another Dag run'} has overwritten it", lost
    for image in attempt.images:
        if not context.store.holds(image):
            return f"{image.uri} is missing or has changed", [image]
    return "", []
