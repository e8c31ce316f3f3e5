"""A task's result as a message: plain text, HTML, Slack's mrkdwn and blocks.

Prompts and keys may contain any characters, so they are escaped for each format. Messages contain no presigned
links, only links to Airflow's UI, which requires a login.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from airflow_provider_jojokey.links.paths import image_path, tab_path, thumbnail_path
from airflow_provider_jojokey.results import XCOM_KEY, Result, shortened

MAX_PROMPT = 300
MAX_IMAGES = 10
THUMBNAIL_WIDTH = 320
MAX_SLACK_TEXT = 3000
"""Maximum number of characters in one Slack block."""


class Message(Struct, frozen=True):
    """A task's result, formatted for mail and chat.

    :param title: one line with the task and its outcome
    :param result: the task's result, or ``None`` if it has not reported one
    :param base_url: the URL of Airflow's UI, without a trailing slash
    :param place: Dag ID, run ID, task ID and map index
    """

    title: str
    result: Result | None
    base_url: str
    place: tuple[str, str, str, int]

    @classmethod
    def of(cls, context: Mapping[str, Any]) -> Message:
        """Return the message of a task, in a callback's context."""
        from airflow.providers.common.compat.sdk import conf

        ti = context["ti"]
        map_index = getattr(ti, "map_index", -1)
        map_index = -1 if map_index is None else map_index
        result = Result.from_xcom(ti.xcom_pull(task_ids=ti.task_id, key=XCOM_KEY, map_indexes=map_index))
        mapped = f"[{map_index}]" if map_index >= 0 else ""
        name = f"{ti.dag_id}.{ti.task_id}{mapped}"
        if result is None:
            title = f"{name} reported no images"
        elif result.state == "failed":
            title = f"{name} failed: {result.error}"
        else:
            images = "1 image" if result.count == 1 else f"{result.count:,} images"
            title = f"{name}: {images}{', reused' if result.reused else ''}"
        base_url = (conf.get("api", "base_url", fallback="") or "").rstrip("/")
        return cls(title, result, base_url, (ti.dag_id, ti.run_id, ti.task_id, map_index))

    @property
    def facts(self) -> list[tuple[str, str]]:
        """The facts about the result, as names and values, unescaped."""
        result = self.result
        if result is None:
            return []
        found = [
            (
                "Prompt of the first item" if result.batch else "Prompt",
                shortened(" ".join(result.prompt.split()), MAX_PROMPT),
            ),
            ("Model", " ".join(filter(None, (result.model, result.size, result.quality)))),
            ("Cost", str(result.cost or "")),
            ("Tokens billed", "unknown" if result.tokens is None else f"{result.tokens:,}"),
            ("Request ID", result.request_id or ""),
            ("Receipt", result.receipt or result.manifest or ""),
            ("Error", result.message or ""),
        ]
        return [(name, value) for name, value in found if value]

    @property
    def link(self) -> str:
        """The URL of the images in Airflow's UI."""
        return self.base_url + tab_path(*self.place)

    def text(self) -> str:
        """Return plain text."""
        lines = [self.title, *(f"{name}: {value}" for name, value in self.facts)]
        lines += [image.uri for image in self._images]
        return "\n".join([*lines, *self._more, self.link])

    def html(self) -> str:
        """Return HTML. Its thumbnails are visible if the reader is logged in to Airflow."""
        rows = "".join(
            f"<tr><th align='left' valign='top'>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
            for name, value in self.facts
        )
        pictures = "".join(
            f"<p><a href='{html.escape(self.base_url + image_path(*self.place, number))}'>"
            f"<img src='{html.escape(self._thumbnail(number))}' width='{THUMBNAIL_WIDTH}' "
            f"alt='{html.escape(one.name)}'>"
            f"</a><br>{html.escape(one.uri)}</p>"
            for number, one in enumerate(self._images)
        )
        more = "".join(f"<p>{html.escape(line)}</p>" for line in self._more)
        return (
            f"<h3>{html.escape(self.title)}</h3>{pictures}{more}<table>{rows}</table>"
            f"<p><a href='{html.escape(self.link)}'>Details in Airflow</a></p>"
        )

    def slack_blocks(self) -> list[dict[str, Any]]:
        """Return Slack's blocks. Slack cannot log in to Airflow, so they contain links instead of images."""
        lines = [f"*{slack_escape(self.title)}*"]
        lines += [f"*{name}:* {slack_escape(value)}" for name, value in self.facts]
        lines += [
            f"• <{self.base_url}{image_path(*self.place, number)}|{slack_escape(one.name)}>"
            for number, one in enumerate(self._images)
        ]
        lines += map(slack_escape, self._more)
        blocks: list[str] = []
        for line in lines:
            if blocks and len(blocks[-1]) + len(line) < MAX_SLACK_TEXT:
                blocks[-1] += "\n" + line
            else:
                blocks.append(shortened(line, MAX_SLACK_TEXT))
        blocks.append(f"<{self.link}|Details in Airflow>")
        return [{"type": "section", "text": {"type": "mrkdwn", "text": text}} for text in blocks]

    @property
    def _images(self) -> list[Any]:
        return list(self.result.images[:MAX_IMAGES]) if self.result else []

    @property
    def _more(self) -> list[str]:
        rest = (self.result.count if self.result else 0) - len(self._images)
        return [f"and {rest:,} more"] if rest > 0 else []

    def _thumbnail(self, number: int) -> str:
        return f"{self.base_url}{thumbnail_path(*self.place, number)}?width={THUMBNAIL_WIDTH}"


def slack_escape(text: str) -> str:
    """Return ``text`` so that Slack displays it literally, without links, mentions or formatting.

    Slack's three special characters become entities. A zero-width space before each formatting character disables
    it.
    """
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(character, entity)
    for mark in "*_~`":
        text = text.replace(mark, f"\u200b{mark}")
    return text.replace("://", ":\u200b//").replace("@", "@\u200b")
