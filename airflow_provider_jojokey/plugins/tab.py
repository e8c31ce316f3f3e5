"""All there is to tell of one task: its result, every attempt at it, and of a batch all its items."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow_provider_jojokey.exceptions import JojoKeyError
from airflow_provider_jojokey.plugins import objects
from airflow_provider_jojokey.plugins.cards import facts, seconds, tokens
from airflow_provider_jojokey.plugins.xcoms import Row
from airflow_provider_jojokey.results import VERSION, Result
from airflow_provider_jojokey.store.receipts import Attempt, Owner, Receipt, ReceiptUnreadable

ITEMS_A_PAGE = 60
MAX_PAGES = 1_000
MAX_ATTEMPTS = 200
MAX_TEXT = 2_000


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


def items(result: Result, page: int) -> tuple[list[dict[str, Any]], int | None, str | None]:
    """Return a page of a batch's items, the number of the next page, and why there are none.

    :param page: from 0
    """
    assert result.manifest is not None
    try:
        found, more = objects.lines(
            result.manifest,
            result.aws_conn_id,
            suffix=".jsonl",
            start=page * ITEMS_A_PAGE,
            count=ITEMS_A_PAGE,
        )
    except objects.NotServed as error:
        return [], None, f"The list of all images could not be read. {error}"
    except JojoKeyError as error:
        return [], None, f"The list of all images could not be read. {error.message}"
    told = [_item(one, page * ITEMS_A_PAGE + number) for number, one in enumerate(found)]
    return [one for one in told if one], page + 1 if more and page + 1 < MAX_PAGES else None, None


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
        "seconds": seconds(attempt.seconds),
        **{name: _text(getattr(attempt, name)) for name in ("request_id", "cf_ray", "error", "note")},
    }


def _item(value: Any, number: int) -> dict[str, Any] | None:
    """Return one line of a batch's list, told as a card is; ``None`` where it is no result."""
    if not isinstance(value, Mapping):
        return None
    result = Result.of_xcom({"version": VERSION, "state": "complete", "images": (), **value})
    if result is None:
        return None
    images = [
        {
            "width": one.width,
            "height": one.height,
            "bytes": one.bytes,
            "content_type": one.content_type,
            "uri": one.uri,
            "name": one.name,
        }
        for one in result.images
    ]
    index = value.get("index")
    return {"index": index if type(index) is int else number, **facts(result), "images": images}


def _text(value: Any) -> str | None:
    return value[:MAX_TEXT] if isinstance(value, str) else None
