"""A task's images as Markdown, for the people who decide: the body of a human-in-the-loop operator."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from airflow_provider_jojokey.links.paths import base_path, image_path, tab_path, thumbnail_path
from airflow_provider_jojokey.results import XCOM_KEY, Result

if TYPE_CHECKING:
    from airflow.sdk.types import RuntimeTaskInstanceProtocol

WIDTH = 640
"""Pixels: as wide as a picture is shown in a row of three or so."""

_SPECIAL = re.compile(r"([\\`*_{}\[\]()#+\-.!|<>~&:$^=@])")


def pictures(ti: RuntimeTaskInstanceProtocol, task_id: str, map_index: int = -1) -> str:
    """Return a row of numbered pictures that another task of this Dag run has made.

    Who may see the task's XComs sees them; others see nothing. A picture leads to itself at full size.
    It holds no presigned link, so it does not expire while a person thinks.

    Make it known to templates with ``user_defined_macros={"pictures": pictures}``, and write
    ``{{ pictures(ti, "candidates") }}``.

    :param ti: the task instance that asks
    :param task_id: who made the images
    :param map_index: which of its mapped tasks
    """
    result = Result.from_xcom(ti.xcom_pull(task_ids=task_id, key=XCOM_KEY, map_indexes=map_index))
    if result is None or not result.images:
        return f"*The task {escape(task_id)} has made no images.*"
    prefix = base_path()
    place = (ti.dag_id, ti.run_id, task_id, map_index)
    row = [
        f"[![Picture {number + 1}]({prefix}{thumbnail_path(*place, number)}?width={WIDTH})]"
        f"({prefix}{image_path(*place, number)})"
        for number in range(len(result.images))
    ]
    numbers = [f"**{number + 1}**" for number in range(len(row))]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in (numbers, [":---:"] * len(row), row))
    tokens = result.usage.get("total_tokens")
    cost = f" · {escape(result.cost)}" if result.cost else ""
    cost += f" · {tokens:,} tokens" if isinstance(tokens, int) else ""
    return f"{table}\n\n[All about them]({prefix}{tab_path(*place)}){cost}"


def escape(text: Any) -> str:
    """Return ``text`` as Markdown that shows it letter by letter: a prompt may hold anything."""
    return _SPECIAL.sub(r"\\\1", " ".join(str(text).split()))
