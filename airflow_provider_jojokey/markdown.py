"""A task's images as Markdown, for the body of a human-in-the-loop operator."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from airflow_provider_jojokey.links.paths import base_path, image_path, tab_path, thumbnail_path
from airflow_provider_jojokey.results import XCOM_KEY, Result

if TYPE_CHECKING:
    from airflow.sdk.types import RuntimeTaskInstanceProtocol

WIDTH = 640
"""Width in pixels: enough for a row of about three images."""

_SPECIAL = re.compile(r"([\\`*_{}\[\]()#+\-.!|<>~&:$^=@])")


def pictures(ti: RuntimeTaskInstanceProtocol, task_id: str, map_index: int = -1) -> str:
    """Return a row of numbered images that another task of this Dag run has generated.

    Users without XCom permission for the Dag don't see the images. Each image links to its full size. The text
    contains no presigned links, so it does not expire while someone decides.

    Pass ``user_defined_macros={"pictures": pictures}`` to the Dag, and write ``{{ pictures(ti, "candidates") }}``.

    :param ti: the task instance that renders the text
    :param task_id: the task that generated the images
    :param map_index: the map index of that task
    """
    result = Result.from_xcom(ti.xcom_pull(task_ids=task_id, key=XCOM_KEY, map_indexes=map_index))
    if result is None:
        return f"*The task {escape(task_id)} reported no images.*"
    if not result.images:
        return f"*The task {escape(task_id)} has no images.*"
    prefix = base_path()
    place = (ti.dag_id, ti.run_id, task_id, map_index)
    row = [
        f"[![Image {number + 1}]({prefix}{thumbnail_path(*place, number)}?width={WIDTH})]"
        f"({prefix}{image_path(*place, number)})"
        for number in range(len(result.images))
    ]
    numbers = [f"**{number + 1}**" for number in range(len(row))]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in (numbers, [":---:"] * len(row), row))
    cost = f" · {result.cost}" if result.cost else ""
    cost += " · tokens unknown" if result.tokens is None else f" · {result.tokens:,} tokens"
    return f"{table}\n\n[Details]({prefix}{tab_path(*place)}){cost}"


def escape(text: Any) -> str:
    """Return ``text`` as Markdown that displays it literally, because a prompt may contain any characters."""
    return _SPECIAL.sub(r"\\\1", " ".join(str(text).split()))
