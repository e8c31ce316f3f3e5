"""The way of one image, from a checked request to objects in S3.

Operators, and whatever else pays for images, go this way and no other.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow_provider_jojokey.img2.request import ImageRequest
from airflow_provider_jojokey.store.keys import Destination, extension_warning

if TYPE_CHECKING:
    from airflow_provider_jojokey.hooks.jojokey import JojoKeyHook
    from airflow_provider_jojokey.img2.client import Generation
    from airflow_provider_jojokey.img2.images import Image
    from airflow_provider_jojokey.store.s3 import ImageStore

MANIFEST_VERSION = 1

log = logging.getLogger(__name__)


def generate_images(
    request: ImageRequest,
    destination: Destination,
    *,
    jojokey: JojoKeyHook,
    store: ImageStore,
    labels: Mapping[str, str],
) -> dict[str, Any]:
    """Generate images and store them.

    :param request: what to draw
    :param destination: where to put it
    :param jojokey: who draws
    :param store: who keeps
    :param labels: whose images they are (Dag, run, task), for the objects' metadata
    :return: the manifest: what the images are, where they lie and what they cost
    :raises JojoKeyError: if there are no images
    """
    store.client  # noqa: B018 - credentials that do not resolve must fail before money is spent
    generation = jojokey.generate(request)
    try:
        labels = {**labels, **_labels(generation)}
        images = [_store(image, destination, store, labels) for image in generation.images]
    finally:
        generation.close()
    _log_result(images, generation)
    return _manifest(images, generation)


def _store(
    image: Image, destination: Destination, store: ImageStore, labels: Mapping[str, str]
) -> dict[str, Any]:
    key = destination.key_for(image.index, image.extension)
    if warning := extension_warning(key, image.extension):
        log.warning(warning)
    store.put_image(destination, key, image, labels)
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


def _labels(generation: Generation) -> dict[str, str]:
    return {
        "model": generation.model,
        "size": generation.size,
        "request-id": generation.request_id or "",
    }


def _manifest(images: list[dict[str, Any]], generation: Generation) -> dict[str, Any]:
    return {
        "version": MANIFEST_VERSION,
        "images": images,
        "usage": generation.usage or {},
        "model": generation.model,
        "size": generation.size,
        "quality": generation.quality,
        "request_id": generation.request_id,
        "created": generation.created,
        "reused": False,
        "receipt": None,
    }


def _log_result(images: list[dict[str, Any]], generation: Generation) -> None:
    first = images[0]
    more = f" and {len(images) - 1} more" if len(images) > 1 else ""
    tokens = (generation.usage or {}).get("total_tokens")
    log.info(
        "%d image%s, %dx%d %s, %s bytes, in %.1f s for %s tokens (request id %s): %s%s",
        len(images),
        "" if len(images) == 1 else "s",
        first["width"],
        first["height"],
        first["content_type"],
        f"{sum(image['bytes'] for image in images):,}",
        generation.seconds,
        "untold" if tokens is None else f"{tokens:,}",
        generation.request_id or "unknown",
        first["uri"],
        more,
    )
