"""Images on their way from the spool to S3: an outage is waited out, for they are paid for."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from airflow_provider_jojokey.store.keys import extension_warning
from airflow_provider_jojokey.store.receipts import Attempt, Outcome
from airflow_provider_jojokey.store.s3 import patiently

if TYPE_CHECKING:
    from airflow_provider_jojokey.img2.client import Generation
    from airflow_provider_jojokey.img2.images import Image
    from airflow_provider_jojokey.order import Order
    from airflow_provider_jojokey.settings import Settings
    from airflow_provider_jojokey.store.s3 import ImageStore
    from airflow_provider_jojokey.store.spool import Spool
    from airflow_provider_jojokey.telemetry import Observer

T = TypeVar("T")

log = logging.getLogger(__name__)


class Delivery:
    """Puts the images of one order to S3.

    :param order: what is wanted, where, and by whom
    :param store: S3
    :param settings: the worker's
    :param stopping: ends the wait for S3
    :param observer: is told of each image
    """

    def __init__(
        self,
        order: Order,
        store: ImageStore,
        settings: Settings,
        stopping: threading.Event,
        observer: Observer,
    ) -> None:
        self._order = order
        self._store = store
        self._settings = settings
        self._stopping = stopping
        self._observer = observer

    def images(
        self, images: Iterable[Image], attempt: Attempt, generation: Generation | None = None
    ) -> list[dict[str, Any]]:
        """Store images, and return where they are and what they are, as the manifest has it.

        :param generation: the whole reply that they came with, if it was whole
        :raises JojoKeyStoreError: if S3 does not take them in time
        """
        return [
            self.patiently(lambda image=image: self._image(image, attempt, generation))  # type: ignore[misc]
            for image in images
        ]

    def salvage(self, attempt: Attempt, spool: Spool) -> Attempt:
        """Return the attempt with what is stored now of a reply that broke off: whole images, a preview.

        :raises JojoKeyStoreError: if S3 does not take them in time
        """
        images, preview = spool.whole_images(), spool.preview()
        try:
            if images:
                attempt = replace(
                    attempt,
                    outcome=Outcome.BILLED,
                    billed="yes",
                    images=self.images(images, attempt),
                    ended_at=attempt.ended_at or datetime.now(UTC),
                )
            if preview is not None:
                kept = self.patiently(lambda: self._preview(preview, attempt))
                attempt = replace(attempt, preview=kept)
        finally:
            close(*images, preview)
        return attempt

    def patiently(self, call: Callable[[], T]) -> T:
        """Do what S3 must not refuse any more, waiting out an outage.

        :raises JojoKeyStoreError: if it outlasts ``[jojokey] upload_patience``
        """
        return patiently(
            call,
            patience=self._settings.upload_patience,
            stopping=self._stopping,
            before_sleep=lambda state: log.warning(
                "%s The images are paid for and safe in %s: waiting for S3 (%d of %d s).",
                state.outcome.exception().message,
                self._settings.spool_directory,
                state.seconds_since_start or 0,
                self._settings.upload_patience,
            ),
        )

    def _image(self, image: Image, attempt: Attempt, generation: Generation | None) -> dict[str, Any]:
        destination = self._order.destination
        key = destination.key_for(image.index, image.extension)
        if warning := extension_warning(key, image.extension):
            log.warning(warning)
        stored = self._put(key, image, attempt, generation)
        self._observer.stored()
        return stored

    def _preview(self, image: Image, attempt: Attempt) -> dict[str, Any]:
        """Store what was painted so far of an image that never came: it was paid for, and can be looked at."""
        key = self._order.destination.receipt_key.removesuffix(".json") + f".preview.{image.extension}"
        return self._put(key, image, attempt, None)

    def _put(self, key: str, image: Image, attempt: Attempt, generation: Generation | None) -> dict[str, Any]:
        destination = self._order.destination
        with self._observer.upload(destination.bucket, key, image.file.size):
            self._store.put_image(destination, key, image, self._labels(attempt, generation))
        return {
            "uri": destination.uri(key),
            "bucket": destination.bucket,
            "key": key,
            "content_type": image.content_type,
            "width": image.width,
            "height": image.height,
            "bytes": image.file.size,
            "sha256": image.file.sha256,
        }

    def _labels(self, attempt: Attempt, generation: Generation | None) -> dict[str, str]:
        owner, request = attempt.owner, self._order.request
        labels = {
            "dag-id": owner.dag_id,
            "run-id": owner.run_id,
            "task-id": owner.task_id,
            "model": generation.model if generation else request.model,
            "size": generation.size if generation else request.size,
            "request-id": (generation.request_id if generation else attempt.request_id) or "",
        }
        return {**labels, "map-index": str(owner.map_index)} if owner.map_index >= 0 else labels


def close(*images: Image | None) -> None:
    """Close the images' files."""
    for image in images:
        if image is not None:
            image.file.close()
