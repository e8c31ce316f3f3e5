"""Details of one task: attempts in its receipt, and a batch's items."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cachetools import TTLCache

from airflow_provider_jojokey.cost import sum_of
from airflow_provider_jojokey.exceptions import JojoKeyError
from airflow_provider_jojokey.payments.attempt import Attempt, Owner
from airflow_provider_jojokey.payments.receipt import Receipt, ReceiptUnreadable
from airflow_provider_jojokey.plugins import objects
from airflow_provider_jojokey.plugins.cards import facts, image_card, seconds, tokens
from airflow_provider_jojokey.plugins.xcoms import Row
from airflow_provider_jojokey.results import VERSION, Result
from airflow_provider_jojokey.translatable import Translatable

ITEMS_A_PAGE = 60
MAX_PAGES = 1_000
PAGE_TTL = 30.0
"""Seconds for which a page of a manifest is cached."""
MAX_CACHED_PAGES = 16
MAX_ATTEMPTS = 200
MAX_TEXT = 2_000
"""Characters of a text from a receipt that are returned."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A filter for the items of a batch.

    :param failed: whether to select only failed items
    :param words: words that must all occur in the prompt, a key, the request ID or the error
    """

    failed: bool = False
    words: tuple[str, ...] = ()

    def matches(self, line: Any) -> bool:
        """Return whether the filter selects a line of the manifest."""
        if not isinstance(line, Mapping) or (self.failed and line.get("state") != "failed"):
            return False
        images = line.get("images")
        keys = (
            [image.get("key") for image in images if isinstance(image, Mapping)]
            if isinstance(images, list)
            else []
        )
        texts = [line.get(name) for name in ("prompt", "request_id", "error", "message", "receipt")]
        text = "\n".join(str(value) for value in (*texts, *keys) if value).casefold()
        return all(word.casefold() in text for word in self.words)


def attempts(row: Row) -> tuple[list[dict[str, Any]], Translatable | None]:
    """Return the task's attempts, oldest first, or the reason why they cannot be read.

    The receipt in S3 may also contain attempts of other tasks. They are left out.
    """
    if row.result.receipt is None:
        return [], None
    try:
        data = objects.document(row.result.receipt, row.result.aws_conn_id, suffix=".json")
        receipt = Receipt.from_json(data)
    except ReceiptUnreadable as error:
        return [], Translatable("The receipt could not be read: {why}.", why=error.message)
    except objects.NotServed as error:
        return [], Translatable("The receipt could not be read. {why}", why=error.message)
    except JojoKeyError as error:
        return [], Translatable("The receipt could not be read. {why}", why=objects.problem_of(error))
    owner = Owner(row.dag_id, row.run_id, row.task_id, row.map_index)
    own = [attempt for attempt in receipt.attempts if attempt.owner.is_task_of(owner)]
    return [_attempt(attempt) for attempt in own[-MAX_ATTEMPTS:]], None


def items(
    row: Row, page: int, wanted: Wanted = Wanted()
) -> tuple[list[dict[str, Any]], int | None, Translatable | None]:
    """Return a page of a batch's items, the next page's number, and an error message.

    :param page: number of the page, from 0
    :param wanted: filter for the items
    :return: the next page is ``None`` on the last page; the message is ``None`` unless reading failed
    """
    try:
        lines, more = _items(row.result, page, wanted)
    except objects.NotServed as error:
        return [], None, Translatable("The list of all images could not be read. {why}", why=error.message)
    except JojoKeyError as error:
        why = objects.problem_of(error)
        return [], None, Translatable("The list of all images could not be read. {why}", why=why)
    place = (row.dag_id, row.run_id, row.task_id, row.map_index)
    shown = []
    for line, index, result in lines:
        if result is not None:
            images = [image_card(image, number, place, line) for number, image in enumerate(result.images)]
            shown.append({"index": index, **facts(result), "images": images})
    return shown, page + 1 if more and page + 1 < MAX_PAGES else None, None


def item(result: Result, line: int) -> Result | None:
    """Return one item of a batch; ``None`` if the manifest has no such line.

    :param line: line of the item in the manifest, from 0
    :raises NotServed: if the manifest doesn't exist or is invalid
    :raises JojoKeyStoreError: if S3 does not return the manifest
    """
    page, number = divmod(line, ITEMS_A_PAGE)
    lines, _ = _items(result, page, Wanted())
    return lines[number][2] if number < len(lines) else None


Items = tuple[list[tuple[int, int, Result | None]], bool]
"""Lines of a manifest (line number, item number and result), and whether there are more."""
_PAGES: TTLCache[tuple[Any, ...], Items] = TTLCache(maxsize=MAX_CACHED_PAGES, ttl=PAGE_TTL)
_PAGES_LOCK = threading.Lock()


def _items(result: Result, page: int, wanted: Wanted) -> Items:
    """Return a page of a manifest's lines, and whether there are more.

    Pages are cached briefly, because the browser then requests each image on the page.
    """
    if result.manifest is None:
        return [], False
    # A cleared task overwrites its manifest, so the key contains values that then change.
    key = (
        result.manifest, result.aws_conn_id, page, wanted, json.dumps(result.usage, sort_keys=True), result.count
    )  # fmt: skip
    with _PAGES_LOCK:
        cached = _PAGES.get(key)
    if cached is not None:
        return cached
    values, more = objects.lines(
        result.manifest,
        result.aws_conn_id,
        suffix=".jsonl",
        start=page * ITEMS_A_PAGE,
        count=ITEMS_A_PAGE,
        wanted=wanted.matches if wanted != Wanted() else None,
    )
    loaded = [(line, *_item(value, line)) for line, value in values], more
    with _PAGES_LOCK:
        _PAGES[key] = loaded
    return loaded


def s3_console(result: Result) -> str | None:
    """Return the AWS console's URL for the images, or ``None`` if there is none."""
    if not result.images:
        return None
    try:
        return objects.console_url([image.uri for image in result.images], result.aws_conn_id)
    except JojoKeyError:
        return None  # requests for the images report the error


def _attempt(attempt: Attempt) -> dict[str, Any]:
    return {
        "started_at": attempt.started_at.isoformat(),
        "ended_at": attempt.ended_at.isoformat() if attempt.ended_at else None,
        "outcome": attempt.outcome.value,
        "billed": _text(attempt.billed),
        "try_number": attempt.owner.try_number if type(attempt.owner.try_number) is int else None,
        "usage": tokens(attempt.usage) if attempt.usage is not None else None,
        "cost": sum_of([attempt.cost] if attempt.may_cost else []).to_json(),
        "seconds": seconds(attempt.seconds),
        **{name: _text(getattr(attempt, name)) for name in ("request_id", "cf_ray", "error", "note")},
    }


def _item(value: Any, line: int) -> tuple[int, Result | None]:
    """Return the item number and the result of one line of a manifest."""
    if not isinstance(value, Mapping):
        return line, None
    index = value.get("index")
    result = Result.from_xcom({"version": VERSION, "state": "complete", "images": (), **value})
    return index if type(index) is int and abs(index) < 2**53 else line, result


def _text(value: Any) -> str | None:
    return value[:MAX_TEXT] if isinstance(value, str) else None
