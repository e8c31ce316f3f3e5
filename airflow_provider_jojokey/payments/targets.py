"""Check the images' keys in S3 before payment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_provider_jojokey.exceptions import JojoKeyRequestError

if TYPE_CHECKING:
    from airflow_provider_jojokey.payments.context import Context
    from airflow_provider_jojokey.payments.receipt import Receipt


def are_free(context: Context) -> bool:
    """Return whether no image is at the keys, so that reading the receipt can be skipped.

    This saves a request. There may be a receipt without images, but then the claim fails, if conditional writes are
    verified. Without them, and in retries, the receipt is always read.
    """
    job = context.job
    if job.replace or job.reuse == "always" or job.owner.try_number > 1:
        return False
    if not context.receipts.verified or context.has_spools():
        return False
    return all(context.store.exists(job.destination.bucket, key) is False for key in _keys(context))


def may_be_written(context: Context, receipt: Receipt) -> bool:
    """Return whether the images overwrite only objects that the receipt mentions.

    :return: ``False`` if the receipt has changed since it was read, so the caller must decide again
    :raises JojoKeyRequestError: if they would overwrite another object
    :raises JojoKeyStoreError: if S3 does not respond
    """
    job = context.job
    if job.replace:
        return True
    mentioned = {image.key for attempt in receipt.attempts for image in attempt.images}
    for key in _keys(context):
        if key not in mentioned and context.store.exists(job.destination.bucket, key):
            if context.receipts.read() != receipt:
                return False
            if any(
                context.store.find_image(job.destination.bucket, key, attempt.id)
                for attempt in receipt.attempts
            ):
                continue  # stored by an attempt whose process died before it could record that
            raise JojoKeyRequestError(
                f"{job.destination.uri(key)} exists and no receipt mentions it, so the provider does not overwrite it.",
                "Choose another s3_key, delete the object, or set replace=True.",
            )
    return True


def _keys(context: Context) -> list[str]:
    """Return the images' keys, with the extension of the requested type: the actual type is still unknown."""
    request, destination = context.job.request, context.job.destination
    extension = "jpg" if request.output_format == "jpeg" else request.output_format or "png"
    return [destination.key_for(index, extension) for index in range(request.n)]
