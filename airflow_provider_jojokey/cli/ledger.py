"""``airflow jojokey ledger``: add up the receipts in S3.

The command reads a few receipts at a time. Only the sums stay in memory, a row for each Dag, day, model or run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow_provider_jojokey.cli.connections import image_store, named_or_default
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
"""Maximum number of receipts in memory."""
MAX_UNREADABLE_LISTED = 5
"""Maximum number of unreadable receipts that are named. Others are counted."""
_AGO = re.compile(r"(\d{1,6})([dhm])")
_UNITS = {"d": "days", "h": "hours", "m": "minutes"}


@dataclass(slots=True)
class Sum:
    """The cost of a Dag, day, model or run.

    :param requests: paid requests
    :param images: images that were stored in S3
    :param unknown: requests of unknown cost for which it is unknown whether they were billed, or for how many tokens
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
        self.images += len(attempt.images)
        if not attempt.may_cost:
            return
        billed = attempt.outcome in (Outcome.COMPLETE, Outcome.BILLED)
        self.requests += billed
        usage = attempt.usage or {}
        # A fee has a cost, but no tokens.
        self.unknown += attempt.cost is None and not (billed and usage.get("total_tokens"))
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
_COLUMNS = (*COUNTS, "cost")


def _requested_model(attempt: Attempt, receipt: Receipt) -> str | None:
    """Return the model that an attempt requested, if the receipt has its request: it has only the latest one."""
    if attempt.fingerprint != receipt.attempts[-1].fingerprint:
        return None
    return str(receipt.request.get("model") or "") or None


BY: dict[str, Callable[[Attempt, Receipt], str]] = {
    "dag": lambda attempt, receipt: attempt.owner.dag_id,
    "day": lambda attempt, receipt: attempt.started_at.astimezone(UTC).date().isoformat(),
    "model": lambda attempt, receipt: attempt.model or _requested_model(attempt, receipt) or "unknown",
    "run": lambda attempt, receipt: f"{attempt.owner.dag_id} {attempt.owner.run_id}",
}


@command
def ledger(options: argparse.Namespace) -> int:
    """Print the sums; return 1 if a receipt can't be read."""
    now = datetime.now(UTC)
    since, until = _moment("--since", options.since, now), _moment("--until", options.until, now)
    bucket = named_or_default(options.bucket, options.aws_conn_id)
    sums: dict[tuple[str, ...], Sum] = {}
    total, unreadable, receipts = Sum(), 0, 0
    by = _groups(options.by)
    for key, found in _receipts(image_store(options, stores_images=False), bucket, options.prefix, since):
        if isinstance(found, str):
            unreadable += 1
            if unreadable <= MAX_UNREADABLE_LISTED:
                say(f"jojokey: s3://{bucket}/{key} is not included: {found}.")
            continue
        receipts += 1
        for attempt in found.attempts:
            if (since is None or attempt.started_at >= since) and (
                until is None or attempt.started_at < until
            ):
                if attempt.may_cost or attempt.images:
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
    show(rows, options.output, (*by, *_COLUMNS))
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
    counts = {
        "receipt": receipts,
        "paid request": total.requests,
        "image": total.images,
        "token": total.total_tokens,
    }
    counted = ", ".join(f"{number:,} {name}{'s' * (number != 1)}" for name, number in counts.items())
    say(f"jojokey: {counted}, cost {total.costs.total}.")
    if total.unknown:
        requests = "1 request was" if total.unknown == 1 else f"{total.unknown:,} requests were"
        say(
            f"jojokey: It is unknown whether {requests} billed, or for how many tokens. The sum leaves them out."
        )
    if unreadable:
        say(
            f"jojokey: {unreadable:,} receipt{'s' * (unreadable != 1)} can't be read, so the sum is too small."
        )


def _receipts(
    store: ImageStore, bucket: str, prefix: str, since: datetime | None
) -> Iterator[tuple[str, Receipt | str]]:
    """Yield each key with its receipt, or with the reason why the receipt can't be read.

    Receipts that were last written before ``since`` are skipped, because they list no later requests. S3 reports the
    time in whole seconds.

    :raises JojoKeyStoreError: if the bucket can't be listed
    """
    from concurrent.futures import ThreadPoolExecutor

    from rich.progress import MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn

    from airflow_provider_jojokey.store.extra_args import for_reads
    from airflow_provider_jojokey.store.s3_errors import translate_errors

    def read(key: str) -> tuple[str, Receipt | str]:
        from airflow_provider_jojokey.exceptions import JojoKeyStoreError

        try:
            found = store.read(bucket, key)
            return key, Receipt.from_json(found[0]) if found else "it was deleted while the command ran"
        except (ReceiptUnreadable, JojoKeyStoreError) as error:
            return key, str(getattr(error, "message", error)).rstrip(".")

    written_since = None if since is None else since.replace(microsecond=0)
    columns = (SpinnerColumn(), TextColumn("Reading receipts"), MofNCompleteColumn(), TimeElapsedColumn())
    with progress(*columns) as bar, ThreadPoolExecutor(READERS) as readers:
        task = bar.add_task("", total=0)
        listed = 0
        pages = iter(
            store.client.get_paginator("list_objects_v2").paginate(
                Bucket=bucket, Prefix=RECEIPTS + prefix, **for_reads(store.extra_args)
            )
        )
        while True:
            with translate_errors(f"list s3://{bucket}/{RECEIPTS}{prefix}"):
                page = next(pages, None)
            if page is None:
                return
            keys = [
                entry["Key"]
                for entry in page.get("Contents", ())
                if entry["Key"].endswith(".json")
                and (written_since is None or entry["LastModified"] >= written_since)
            ]
            listed += len(keys)
            bar.update(task, total=listed)
            for start in range(0, len(keys), IN_MEMORY):
                for found in readers.map(read, keys[start : start + IN_MEMORY]):
                    bar.advance(task)
                    yield found


def _moment(name: str, text: str | None, now: datetime) -> datetime | None:
    """Parse a date, a time or an age. The default time zone is UTC.

    :raises CommandFailed: if the text is none of them
    """
    if not text:
        return None
    try:
        if ago := _AGO.fullmatch(text):
            moment = now - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        else:
            moment = datetime.fromisoformat(text)
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise CommandFailed(
            f"{name} {text} is not a date, a time or an age such as 7d or 24h", USAGE
        ) from None
