"""``airflow jojokey ledger``: the receipts in S3, added up.

Receipts are read some at a time and forgotten once they are added: what stays in memory
is one line for each Dag, day, model or run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow_provider_jojokey.cli.connections import named_or_default
from airflow_provider_jojokey.cli.console import (
    FAILED,
    USAGE,
    CommandFailed,
    command,
    cost_fields,
    progress,
    say,
    show,
)
from airflow_provider_jojokey.cost import Costs, CostSum
from airflow_provider_jojokey.payments.attempt import Attempt, Outcome
from airflow_provider_jojokey.payments.receipt import Receipt, ReceiptUnreadable
from airflow_provider_jojokey.store.keys import RECEIPTS

if TYPE_CHECKING:
    import argparse

    from airflow_provider_jojokey.store.s3 import ImageStore

READERS = 8
IN_MEMORY = 32
"""Receipts that are held at a time, at most."""
SHOWN = 5
"""Receipts that cannot be read and are named; the others are counted."""
_AGO = re.compile(r"(\d{1,6})([dhm])")
_UNITS = {"d": "days", "h": "hours", "m": "minutes"}


@dataclass(slots=True)
class Sum:
    """What one Dag, day, model or run has cost.

    :param requests: paid requests
    :param images: images that are in S3, or were once
    :param unknown: requests of which nobody knows whether they were billed, or with how many tokens
    """

    requests: int = 0
    images: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0
    unknown: int = 0
    costs: CostSum = field(default_factory=CostSum)

    def add(self, attempt: Attempt) -> None:
        """Add one attempt."""
        if attempt.outcome is Outcome.NOT_BILLED:
            return
        billed = attempt.outcome in (Outcome.COMPLETE, Outcome.BILLED)
        self.requests += billed
        self.images += len(attempt.images)
        usage = attempt.usage or {}
        self.unknown += not billed or "total_tokens" not in usage
        for name in ("input_tokens", "output_tokens", "total_tokens"):
            value = usage.get(name)
            if isinstance(value, int) and not isinstance(value, bool):
                setattr(self, name, getattr(self, name) + value)
        self.costs.add(attempt.cost)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield a row. Further currencies get rows of their own, with the cost only."""
        total = self.costs.total
        counts: dict[str, Any] = {name: getattr(self, name) for name in COUNTS}
        yield {**counts, **cost_fields(total), "cost_unknown": total.unknown}
        for cost in total.amounts[1:]:
            nothing: dict[str, Any] = dict.fromkeys(COUNTS, 0)
            yield {**nothing, **cost_fields(Costs((cost,))), "cost": "", "cost_unknown": 0}


COUNTS = ("requests", "images", "input_tokens", "output_tokens", "total_tokens", "unknown")
SHOWN_COLUMNS = (*COUNTS, "cost")


BY: dict[str, Callable[[Attempt, Receipt], str]] = {
    "dag": lambda attempt, receipt: attempt.owner.dag_id,
    "day": lambda attempt, receipt: attempt.started_at.astimezone(UTC).date().isoformat(),
    "model": lambda attempt, receipt: attempt.model or str(receipt.request.get("model") or "unknown"),
    "run": lambda attempt, receipt: f"{attempt.owner.dag_id} {attempt.owner.run_id}",
}


@command
def ledger(options: argparse.Namespace) -> int:
    """Run the command."""
    from airflow_provider_jojokey.store.s3 import ImageStore

    now = datetime.now(UTC)
    since, until = _moment("--since", options.since, now), _moment("--until", options.until, now)
    bucket = named_or_default(options.bucket, options.aws_conn_id)
    sums: dict[tuple[str, ...], Sum] = {}
    total, unreadable, receipts = Sum(), 0, 0
    by = _groups(options.by)
    for key, found in _receipts(ImageStore(options.aws_conn_id), bucket, options.prefix, since):
        if isinstance(found, str):
            unreadable += 1
            if unreadable <= SHOWN:
                say(f"jojokey: s3://{bucket}/{key} is left out: {found}.")
            continue
        receipts += 1
        for attempt in found.attempts:
            if (since is None or attempt.started_at >= since) and (
                until is None or attempt.started_at < until
            ):
                if attempt.outcome is not Outcome.NOT_BILLED:
                    group = tuple(BY[name](attempt, found) for name in by)
                    sums.setdefault(group, Sum()).add(attempt)
                total.add(attempt)
    rows = [
        {**dict(zip(by, group, strict=True)), **row}
        for group, part in sorted(sums.items())
        for row in part.rows()
    ]
    if options.output in ("table", "plain"):
        rows = [row for row in rows if row["cost"]]  # it names all currencies
    show(rows, options.output, (*by, *SHOWN_COLUMNS))
    _say_total(total, receipts, unreadable)
    return FAILED if unreadable else 0


def _groups(by: str) -> list[str]:
    """Return what the rows are grouped by.

    :raises CommandFailed: if that is not possible
    """
    names = list(dict.fromkeys(name.strip() for name in by.split(",")))
    for name in names:
        if name not in BY:
            raise CommandFailed(f"--by {name}: choose from {', '.join(BY)}, or several with commas", USAGE)
    return names


def _say_total(total: Sum, receipts: int, unreadable: int) -> None:
    say(
        f"jojokey: {receipts:,} receipts, {total.requests:,} paid requests, {total.images:,} images, "
        f"{total.total_tokens:,} tokens, cost {total.costs.total}."
    )
    if total.unknown:
        say(f"jojokey: what {total.unknown:,} requests have cost is not known, and not in the sum.")
    if unreadable:
        say(f"jojokey: {unreadable:,} receipts could not be read: the sum is too small.")


def _receipts(
    store: ImageStore, bucket: str, prefix: str, since: datetime | None
) -> Iterator[tuple[str, Receipt | str]]:
    """Yield each receipt with its key; where it cannot be read, the reason in its place.

    One that was written last before ``since`` holds nothing that was sent after it, and is not fetched.

    :raises JojoKeyStoreError: if the bucket cannot be listed
    """
    from concurrent.futures import ThreadPoolExecutor

    from rich.progress import MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn

    from airflow_provider_jojokey.store.s3_errors import translate_errors

    def read(key: str) -> tuple[str, Receipt | str]:
        from airflow_provider_jojokey.exceptions import JojoKeyStoreError

        try:
            found = store.read(bucket, key)
            return key, Receipt.from_json(found[0]) if found else "it was deleted meanwhile"
        except (ReceiptUnreadable, JojoKeyStoreError) as error:
            return key, str(getattr(error, "message", error)).rstrip(".")

    columns = (SpinnerColumn(), TextColumn("Reading receipts"), MofNCompleteColumn(), TimeElapsedColumn())
    with progress(*columns) as shown, ThreadPoolExecutor(READERS) as readers:
        task = shown.add_task("", total=0)
        listed = 0
        pages = iter(
            store.client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=RECEIPTS + prefix)
        )
        while True:
            with translate_errors(f"list s3://{bucket}/{RECEIPTS}{prefix}"):
                page = next(pages, None)
            if page is None:
                return
            keys = [
                one["Key"]
                for one in page.get("Contents", ())
                if one["Key"].endswith(".json") and (since is None or one["LastModified"] >= since)
            ]
            listed += len(keys)
            shown.update(task, total=listed)
            for start in range(0, len(keys), IN_MEMORY):
                for found in readers.map(read, keys[start : start + IN_MEMORY]):
                    shown.advance(task)
                    yield found


def _moment(name: str, text: str | None, now: datetime) -> datetime | None:
    """Read a date, a time, or how long ago; without a time zone it is UTC.

    :raises CommandFailed: if it is none
    """
    if not text:
        return None
    if ago := _AGO.fullmatch(text):
        return now - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise CommandFailed(f"{name} {text} is no date, no time, and not like 7d or 24h", USAGE) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
