"""JSON representation of results for the routes.

Values are untrusted text: never render them as HTML.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

from airflow_provider_jojokey.cost import Cost, Costs
from airflow_provider_jojokey.links.paths import URL_PREFIX, base_path, image_path, tab_path
from airflow_provider_jojokey.plugins.sums import costs_of, whole_number
from airflow_provider_jojokey.plugins.xcoms import Row
from airflow_provider_jojokey.results import Result, StoredImage

Place = tuple[str, str, str, int]

TOKENS = ("input_tokens", "output_tokens", "total_tokens")


def card(row: Row) -> dict[str, Any]:
    """Return one task's result as JSON values."""
    place = (row.dag_id, row.run_id, row.task_id, row.map_index)
    return {
        "dag_id": row.dag_id,
        "run_id": row.run_id,
        "task_id": row.task_id,
        "map_index": row.map_index,
        "label": row.label,
        "made_at": row.made_at.isoformat(),
        "href": base_path() + tab_path(*place),
        **facts(row.result),
        "images": [image_card(image, number, place) for number, image in enumerate(row.result.images)],
    }


def facts(result: Result) -> dict[str, Any]:
    """Return a result as JSON values, without its images and its task."""
    return {
        "state": result.state,
        "count": result.count,
        "prompt": result.prompt,
        "model": result.model,
        "size": result.size,
        "quality": result.quality,
        "usage": tokens(result.usage),
        "cost": costs_of(result).to_json(),
        "seconds": seconds(result.seconds),
        "request_id": result.request_id,
        "created": result.created,
        "reused": result.reused,
        "derived_from": result.derived_from,
        "receipt": result.receipt,
        "error": result.error,
        "message": result.message,
        "billed": result.billed,
        "paid": result.paid,
        "batch": result.batch,
        "budget": [_use(use) for use in result.budget],
    }


def _use(use: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was used of a limit as JSON values, with amounts of money as costs."""
    used, limit = use["used"], use["limit"]
    if use["unit"] != "cost":
        used, limit = whole_number(used), whole_number(limit)
    else:
        used, limit = (
            Costs((Cost(nanos, str(use.get("currency", "")), approximate),)).to_json()
            for nanos, approximate in ((used, True), (limit, False))
        )
    return {"scope": use["scope"], "unit": use["unit"], "used": used, "limit": limit}


def progress_card(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return the progress of a running batch as JSON values.

    :param value: an XCom, see :meth:`Tally.progress`; any task may write it
    """
    counts = {name: whole_number(value.get(name)) for name in ("total", "done", "failed", "images", "tokens")}
    try:
        cost = Costs.from_json(value.get("cost"))
    except ValueError:
        cost = Costs()
    return {"at": value["at"], **counts, "cost": cost.to_json()}


def tokens(usage: Mapping[str, Any]) -> dict[str, Any]:
    """Return the three totals and the numeric details of a usage."""
    counts: dict[str, Any] = {name: whole_number(usage.get(name)) for name in TOKENS}
    for name, value in usage.items():
        if isinstance(value, Mapping) and name.endswith("_details"):
            counts[name] = {str(kind): whole_number(count) for kind, count in value.items()}
    return counts


def seconds(value: Any) -> float | None:
    """Return ``value`` rounded to milliseconds; ``None`` if it is not a finite number."""
    return round(value, 3) if isinstance(value, (int, float)) and isfinite(value) else None


def image_card(image: StoredImage, number: int, place: Place, item: int | None = None) -> dict[str, Any]:
    """Return one image as JSON values, including its URLs.

    :param number: position of the image in the result, from 0
    :param place: Dag ID, run ID, task ID and map index
    :param item: for a batch, the line of the item in the manifest, from 0
    """
    source = _url("images", image, number, place, item)
    return {
        "number": number,
        "width": image.width,
        "height": image.height,
        "bytes": image.bytes,
        "content_type": image.content_type,
        "uri": image.uri,
        "key": image.key,
        "name": image.name,
        "src": source,
        "thumbnail": _url("thumbnails", image, number, place, item),
        "download": f"{source}&download=1",
    }


def _url(kind: str, image: StoredImage, number: int, place: Place, item: int | None) -> str:
    path = image_path(*place, number)
    if kind != "images":
        path = path.replace(f"{URL_PREFIX}/images/", f"{URL_PREFIX}/{kind}/", 1)
    # A cleared task overwrites its key. URLs are cached, so a new image needs a new URL.
    return f"{base_path()}{path}?v={image.sha256[:16]}" + ("" if item is None else f"&item={item}")
