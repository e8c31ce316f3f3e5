"""Add a task's images to its asset events, so that the next Dag finds them without an XCom."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow_provider_jojokey.store.keys import split_uri

if TYPE_CHECKING:
    from airflow.sdk import Asset

MAX_URI = 1344
"""Maximum length of an asset's URI, which is also its name.

Airflow's columns hold 1,500 characters, but PostgreSQL's index over both columns holds 2,704 bytes. A longer URI
would fail a task that has succeeded.
"""

_EVENT_FIELDS = (
    "usage",
    "cost",
    "model",
    "size",
    "quality",
    "request_id",
    "fingerprint",
    "reused",
    "receipt",
)
_BATCH_EVENT_FIELDS = ("usage", "cost", "total", "made", "reused", "failed", "images", "manifest")

log = logging.getLogger(__name__)


def add_image_event_extras(context: Any, outlets: Iterable[Any], manifest: Mapping[str, Any]) -> None:
    """Add a task's images to the events of its outlets.

    :param context: the task's context
    :param outlets: the task's outlets: an ``Asset`` gets one event, an ``AssetAlias`` gets one for each image
    :param manifest: the operator's return value
    """
    uris = [image["uri"] for image in manifest["images"]]
    _add_extras(
        context, outlets, {"uris": uris, **{name: manifest.get(name) for name in _EVENT_FIELDS}}, uris
    )


def add_batch_event_extras(
    context: Any, outlets: Iterable[Any], summary: Mapping[str, Any], uris: Sequence[str] | None
) -> None:
    """Add a batch's images to the events of its outlets.

    :param context: the task's context
    :param outlets: the task's outlets
    :param summary: the operator's return value
    :param uris: the images' ``s3://`` URIs, or ``None`` if there are too many. In that case, the event names only
        the manifest, which is also the only asset of an ``AssetAlias``
    """
    extra = {name: summary.get(name) for name in _BATCH_EVENT_FIELDS}
    if uris is not None:
        _add_extras(context, outlets, {"uris": list(uris), **extra}, uris)
    else:
        _add_extras(context, outlets, extra, [summary["manifest"]] if summary.get("manifest") else [])


def asset_of(uri: str) -> Asset | None:
    """Return the asset of an object in S3, or ``None`` if its key is too long.

    The key is percent-encoded, because ``?`` and ``#`` would get lost, and MySQL accepts only ASCII.

    :param uri: its ``s3://`` URI, as in the manifest
    """
    from airflow.sdk import Asset

    bucket, key = split_uri(uri)
    encoded = f"s3://{bucket}/{quote(key)}"
    return Asset(uri=encoded) if len(encoded) <= MAX_URI else None


def _add_extras(context: Any, outlets: Iterable[Any], extra: dict[str, Any], uris: Sequence[str]) -> None:
    from airflow.sdk import Asset, AssetAlias
    from airflow.sdk.definitions.asset import AssetRef

    from airflow_provider_jojokey.results import storable

    extra = storable(extra)
    for outlet in outlets:
        if not isinstance(outlet, (Asset, AssetAlias, AssetRef)):
            continue  # an outlet of another tool
        event = context["outlet_events"][outlet]
        if not isinstance(outlet, AssetAlias):
            event.extra.update(extra)
            continue
        # Each asset is one image, so leave out what all of them have cost: it would be counted several times.
        rest = {name: value for name, value in extra.items() if name not in ("uris", "usage", "cost")}
        for uri in uris:
            try:
                asset = asset_of(uri)
            except ValueError as error:
                log.warning("No asset for %s: %s", uri, error)
                continue
            if asset is None:
                log.warning("No asset for %s: its key is too long.", uri)
                continue
            event.add(asset, extra={"uri": uri, **rest})
