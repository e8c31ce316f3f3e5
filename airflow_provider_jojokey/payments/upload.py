"""Upload from the spool to S3. The images are already paid, so uploads are retried during an S3 outage."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from msgspec import Struct

from airflow_provider_jojokey.payments import clock
from airflow_provider_jojokey.payments.attempt import Attempt
from airflow_provider_jojokey.results import StoredImage
from airflow_provider_jojokey.store.keys import extension_warning
from airflow_provider_jojokey.store.s3 import retry_transient

if TYPE_CHECKING:
    import threading

    from airflow_provider_jojokey.img2.client import Generation
    from airflow_provider_jojokey.img2.images import Image
    from airflow_provider_jojokey.integrations.telemetry import Observer
    from airflow_provider_jojokey.payments.job import ImageJob
    from airflow_provider_jojokey.settings import Settings
    from airflow_provider_jojokey.store.s3 import ImageStore
    from airflow_provider_jojokey.store.spool import Spool

T = TypeVar("T")

log = logging.getLogger(__name__)


class Uploader(Struct, frozen=True):
    """Uploads the images of one job.

    :param job: the job
    :param store: S3
    :param settings: the worker's settings
    :param stopping: ends the wait for S3 when the task is killed
    :param observer: receives metrics and spans
    """

    job: ImageJob
    store: ImageStore
    settings: Settings
    stopping: threading.Event
    observer: Observer

    def images(
        self,
        images: Iterable[Image],
        attempt: Attempt,
        generation: Generation | None = None,
        *,
        known_keys: frozenset[str] | None = None,
    ) -> tuple[StoredImage, ...]:
        """Upload images to the job's key.

        :param generation: the complete response they came with
        :param known_keys: keys that the receipt mentions, and that may be replaced; ``None`` stores the images
            next to the receipt instead, because the job's key belongs to another image
        :return: the stored images
        :raises JojoKeyStoreError: if S3 does not accept them within ``[jojokey] upload_patience``
        """
        return tuple(self._image(image, attempt, generation, known_keys) for image in images)

    def upload_partial(
        self, attempt: Attempt, spool: Spool, known_keys: frozenset[str] | None
    ) -> dict[str, Any]:
        """Upload everything that arrived before a response was interrupted.

        :param known_keys: as in :meth:`images`
        :return: the fields of the attempt that name it: ``images``, ``preview`` and ``kept``
        :raises JojoKeyStoreError: if S3 does not accept the data in time
        """
        images, preview = spool.complete_images(), spool.preview()
        try:
            facts: dict[str, Any] = {"kept": self._pending(attempt, spool) + self.unusable(attempt, spool)}
            facts["kept"] = facts["kept"] or attempt.kept
            facts["images"] = self.images(images, attempt, known_keys=known_keys) or attempt.images
            facts["preview"] = attempt.preview
            if preview is not None:
                key = self._key_beside_receipt(attempt, f".preview.{preview.extension}")
                facts["preview"] = self._put(key, preview, attempt, None)
        finally:
            close(*images, preview)
        return facts

    def retry(self, call: Callable[[], T]) -> T:
        """Call an S3 operation after payment, waiting out an outage.

        :raises JojoKeyStoreError: if the outage outlasts ``[jojokey] upload_patience``
        """
        began = clock.monotonic()

        def warn(state: Any) -> None:
            log.warning(
                "%s The images are safe in %s. Waiting for S3 (%d of %d s).",
                state.outcome.exception().what,
                self.settings.spool_directory,
                clock.monotonic() - began,
                self.settings.upload_patience,
            )

        return retry_transient(
            call, timeout=self.settings.upload_patience, stopping=self.stopping, before_sleep=warn
        )

    def _image(
        self, image: Image, attempt: Attempt, generation: Generation | None, known_keys: frozenset[str] | None
    ) -> StoredImage:
        key = self.job.destination.key_for(image.index, image.extension)
        separate_key = self._key_beside_receipt(attempt, f"-{image.index}.{image.extension}")
        if known_keys is None:
            stored = self._put(separate_key, image, attempt, generation)
        else:
            if warning := extension_warning(key, image.extension):
                log.warning(warning)
            absent = not self.job.replace and key not in known_keys
            found = self._put(key, image, attempt, generation, only_if_absent=absent)
            if found is None:
                log.warning(
                    "Another program has written to %s. The paid image was not replaced there, but stored as %s. "
                    "Give each task its own key.",
                    self.job.destination.uri(key),
                    self.job.destination.uri(separate_key),
                )
                found = self._put(separate_key, image, attempt, generation)
            stored = found
        assert stored is not None
        self.observer.stored()
        return stored

    def _put(
        self,
        key: str,
        image: Image,
        attempt: Attempt,
        generation: Generation | None,
        *,
        only_if_absent: bool = False,
    ) -> StoredImage | None:
        destination = self.job.destination
        labels = self._labels(attempt, generation)

        def put() -> bool:
            with self.observer.upload(destination.bucket, key, image.file.size):
                return self.store.put_image(
                    destination.bucket, key, image, labels, only_if_absent=only_if_absent
                )

        if not self.retry(put):
            return None
        return StoredImage(
            bucket=destination.bucket,
            key=key,
            content_type=image.content_type,
            width=image.width,
            height=image.height,
            bytes=image.file.size,
            sha256=image.file.sha256,
        )

    def _pending(self, attempt: Attempt, spool: Spool) -> tuple[str, ...]:
        """Store links and task IDs next to the receipt; return its URI.

        A link may carry a signature, so it is stored only in the bucket.
        """
        facts = spool.facts()
        pending = {name: facts[name] for name in ("link", "task_id") if facts.get(name)}
        if not pending:
            return ()
        text = json.dumps({"request_id": facts.get("request_id"), **pending}, indent=1)
        return (self._put_beside_receipt(attempt, ".pending", text.encode(), "application/json"),)

    def unusable(self, attempt: Attempt, spool: Spool) -> tuple[str, ...]:
        """Store the files of unknown type next to the receipt; return their URIs.

        :raises JojoKeyStoreError: if S3 does not accept them in time
        """
        return tuple(
            self._put_beside_receipt(attempt, f"-{number}.bin", path.read_bytes(), "application/octet-stream")
            for number, path in enumerate(spool.unusable_files())
        )

    def _put_beside_receipt(self, attempt: Attempt, suffix: str, body: bytes, content_type: str) -> str:
        destination, key = self.job.destination, self._key_beside_receipt(attempt, suffix)
        self.retry(lambda: self.store.put(destination.bucket, key, body, content_type))
        return destination.uri(key)

    def _key_beside_receipt(self, attempt: Attempt, suffix: str) -> str:
        return self.job.destination.key_beside_receipt(attempt.id, suffix)

    def _labels(self, attempt: Attempt, generation: Generation | None) -> dict[str, str]:
        owner, request = attempt.owner, self.job.request
        labels = {
            "dag-id": owner.dag_id,
            "run-id": owner.run_id,
            "task-id": owner.task_id,
            "model": generation.model if generation else request.model,
            "size": generation.size if generation else request.size,
            "request-id": (generation.request_id if generation else attempt.request_id) or "",
            "attempt-id": attempt.id,
        }
        return {**labels, "map-index": str(owner.map_index)} if owner.map_index >= 0 else labels


def close(*images: Image | None) -> None:
    """Close the images' files."""
    for image in images:
        if image is not None:
            image.file.close()
