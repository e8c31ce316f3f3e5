"""Find images in S3 that an orphaned attempt stored before its process died.

Each image carries the ID of its attempt in its metadata. An image in S3 proves that it was received and billed,
even if the process died before it updated the receipt, and its spool is gone, for example with its pod.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_provider_jojokey.payments.attempt import Attempt
from airflow_provider_jojokey.results import StoredImage

if TYPE_CHECKING:
    from airflow_provider_jojokey.payments.context import Context

EXTENSIONS = ("png", "jpg", "webp")


def stored_images(context: Context, attempt: Attempt) -> tuple[tuple[StoredImage, ...], str | None]:
    """Return the images of an attempt in S3, and its request ID.

    :raises JojoKeyStoreError: if S3 does not respond
    """
    destination = context.job.destination
    found: list[StoredImage] = []
    request_id = attempt.request_id
    for index in range(attempt.requested or 1):
        keys = [destination.key_for(index, extension) for extension in EXTENSIONS]
        keys += [destination.key_beside_receipt(attempt.id, f"-{index}.{name}") for name in EXTENSIONS]
        for key in dict.fromkeys(keys):  # the first three are one key, unless it contains {ext}
            stored = context.store.find_image(destination.bucket, key, attempt.id)
            if stored is not None:
                found.append(stored[0])
                request_id = request_id or stored[1]
                break
    return tuple(found), request_id
