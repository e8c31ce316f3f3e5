"""What a task's asset events tell of its images: enough for the next Dag to find them without an XCom."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow_provider_jojokey.results import storable
from airflow_provider_jojokey.store.keys import split_uri

if TYPE_CHECKING:
    from airflow.sdk import Asset

MAX_URI = 1344
"""Characters of an asset's URI, which is its name as well.

Airflow's columns have 1,500, but PostgreSQL's index over both has 2,704 bytes. A longer URI fails the task when it
has succeeded.
"""

_TOLD = ("usage", "cost", "model", "size", "quality", "request_id", "fingerprint", "reused", "receipt")
_TOLD_OF_BATCH = ("usage", "cost", "total", "made", "reused", "failed", "images", "manifest")

log = logging.getLogger(__name__)


def tell_of_images(context: Any, outlets: Iterable[Any], manifest: Mapping[str, Any]) -> None:
    """Add to the events of a task's outlets what it has made.

    :param context: the task's
    :param outlets: what the task declares: an ``Asset`` gets one event, an ``AssetAlias`` one for each image
    :param manifest: what the operator returns
    """
    uris = [image["uri"] for image in manifest["images"]]
    _tell(context, outlets, {"uris": uris, **{name: manifest.get(name) for name in _TOLD}}, uris)


def tell_of_batch(
    context: Any, outlets: Iterable[Any], summary: Mapping[str, Any], uris: Sequence[str] | None
) -> None:
    """Add to the events of a batch's outlets what it has made.

    :param context: the task's
    :param outlets: what the task declares
    :param summary: what the operator returns
    :param uris: the images' ``s3://`` places, or ``None`` if they are too many to list: then the event names the
        manifest only, and an ``AssetAlias`` gets the manifest as its one asset
    """
    extra = {name: summary.get(name) for name in _TOLD_OF_BATCH}
    if uris is not None:
        _tell(context, outlets, {"uris": list(uris), **extra}, uris)
    else:
        _tell(context, outlets, extra, [summary["manifest"]] if summary.get("manifest") else [])


def asset_of(uri: str) -> Asset | None:
    """Return the asset of an object in S3; ``None`` if its key is too long for one.

    The key is percent-encoded: a ``?`` or ``#`` in it would otherwise be lost, and MySQL takes ASCII only.

    :param uri: its ``s3://`` place, as in the manifest
    """
    from airflow.sdk import Asset

    bucket, key = split_uri(uri)
    encoded = f"s3://{bucket}/{quote(key)}"
    return Asset(uri=encoded) if len(encoded) <= MAX_URI else None


def _tell(context: Any, outlets: Iterable[Any], extra: dict[str, Any], uris: Sequence[str]) -> None:
    from airflow.sdk import Asset, AssetAlias
    from airflow.sdk.definitions.asset import AssetRef

    extra = storable(extra)
    for outlet in outlets:
        if not isinstance(outlet, (Asset, AssetAlias, AssetRef)):
            continue  # what other tools put there is theirs
        event = context["outlet_events"][outlet]
        if not isinstance(outlet, AssetAlias):
            event.extra.update(extra)
            continue
        # An asset is one image: what was billed for all of them is not told again with each.
        rest = {name: value for name, value in extra.items() if name not in ("uris", "usage")}
        for uri in uris:
            try:
                asset = asset_of(uri)
            except ValueError as error:
                log.warning("No asset for %s: %s", uri, error)
                continue
            if asset is None:
                log.warning("No asset for %s: its key is too long for one.", uri)
                continue
            event.add(asset, extra={"uri": uri, **rest})
