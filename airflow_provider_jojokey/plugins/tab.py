"""All there is to tell of one task: its result, every attempt at it, and of a batch all its items."""

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

ITEMS_A_PAGE = 60
MAX_PAGES = 1_000
PAGES_KEPT = 30.0
"""Seconds."""
MAX_PAGES_KEPT = 16
MAX_ATTEMPTS = 200
MAX_TEXT = 2_000


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which items of a batch are asked for.

    :param failed: only those that failed
    :param words: each must occur in the prompt, a key, the request ID or the error
    """

    failed: bool = False
    words: tuple[str, ...] = ()

    def matches(self, line: Any) -> bool:
        """Return whether a line of the manifest is wanted."""
        if not isinstance(line, Mapping) or (self.failed and line.get("state") != "failed"):
            return False
        images = line.get("images")
        keys = (
            [one.get("key") for one in images if isinstance(one, Mapping)] if isinstance(images, list) else []
        )
        texts = [line.get(name) for name in ("prompt", "request_id", "error", "message", "receipt")]
        text = "\n".join(str(one) for one in (*texts, *keys) if one).casefold()
        return all(word.casefold() in text for word in self.words)


def attempts(row: Row) -> tuple[list[dict[str, Any]], str | None]:
    """Return every attempt at the task's images, oldest first, and why there are none if they cannot be read.

    They are read from the receipt in S3, of which only what belongs to this task is told.
    """
    if row.result.receipt is None:
        return [], None
    try:
        data = objects.document(row.result.receipt, row.result.aws_conn_id, suffix=".json")
        receipt = Receipt.from_json(data)
    except ReceiptUnreadable as error:
        return [], f"The receipt could not be read: {error}."
    except objects.NotServed as error:
        return [], f"The receipt could not be read. {error}"
    except JojoKeyError as error:
        return [], f"The receipt could not be read. {error.message}"
    owner = Owner(row.dag_id, row.run_id, row.task_id, row.map_index)
    own = [one for one in receipt.attempts if one.owner.is_task_of(owner)]
    return [_attempt(one) for one in own[-MAX_ATTEMPTS:]], None


def items(
    row: Row, page: int, wanted: Wanted = Wanted()
) -> tuple[list[dict[str, Any]], int | None, str | None]:
    """Return a page of a batch's items, the number of the next page, and why there are none.

    :param page: from 0
    :param wanted: which items
    """
    try:
        found, more = _items(row.result, page, wanted)
    except objects.NotServed as error:
        return [], None, f"The list of all images could not be read. {error}"
    except JojoKeyError as error:
        return [], None, f"The list of all images could not be read. {error.message}"
    place = (row.dag_id, row.run_id, row.task_id, row.map_index)
    shown = []
    for line, index, result in found:
        if result is not None:
            images = [image_card(one, number, place, line) for number, one in enumerate(result.images)]
            shown.append({"index": index, **facts(result), "images": images})
    return shown, page + 1 if more and page + 1 < MAX_PAGES else None, None


def item(result: Result, line: int) -> Result | None:
    """Return one item of a batch, or ``None``.

    :param line: its line in the manifest, from 0
    :raises NotServed: if there is no such manifest
    :raises JojoKeyStoreError: if S3 does not give it
    """
    page, number = divmod(line, ITEMS_A_PAGE)
    found, _ = _items(result, page, Wanted())
    return found[number][2] if number < len(found) else None


Items = tuple[list[tuple[int, int, Result | None]], bool]
"""Lines of a manifest (number of the line, number of the item, its result), and whether there are more."""
_PAGES: TTLCache[tuple[Any, ...], Items] = TTLCache(maxsize=MAX_PAGES_KEPT, ttl=PAGES_KEPT)
_PAGES_LOCK = threading.Lock()


def _items(result: Result, page: int, wanted: Wanted) -> Items:
    """Return a page of a manifest's lines, and whether there are more.

    They are kept for a moment: each image of the page will be asked for.
    """
    if result.manifest is None:
        return [], False
    # A task that was cleared and run again writes the same manifest anew, and another result.
    key = (
        result.manifest, result.aws_conn_id, page, wanted, json.dumps(result.usage, sort_keys=True), result.count
    )  # fmt: skip
    with _PAGES_LOCK:
        known = _PAGES.get(key)
    if known is not None:
        return known
    values, more = objects.lines(
        result.manifest,
        result.aws_conn_id,
        suffix=".jsonl",
        start=page * ITEMS_A_PAGE,
        count=ITEMS_A_PAGE,
        wanted=wanted.matches if wanted != Wanted() else None,
    )
    found = [(line, *_item(value, line)) for line, value in values], more
    with _PAGES_LOCK:
        _PAGES[key] = found
    return found


def s3_console(result: Result) -> str | None:
    """Return where the images show in the AWS console, if they are on AWS."""
    if not result.images:
        return None
    try:
        return objects.console_url([one.uri for one in result.images], result.aws_conn_id)
    except JojoKeyError:
        return None  # the images themselves will say what is wrong


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
    """Return the number that one line of a manifest has given itself, and its result."""
    if not isinstance(value, Mapping):
        return line, None
    index = value.get("index")
    result = Result.from_xcom({"version": VERSION, "state": "complete", "images": (), **value})
    return index if type(index) is int and abs(index) < 2**53 else line, result


def _text(value: Any) -> str | None:
    return value[:MAX_TEXT] if isinstance(value, str) else None
