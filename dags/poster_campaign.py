"""Generate a poster for each row of a CSV file, and store contact sheets and a report of the costs.

The CSV file is `poster_campaign.csv` next to this Dag, or an `s3://` URL in the trigger form, as Excel or another
spreadsheet saves it. Its columns are the options of an item: `prompt`, `s3_key`, and optionally `size`, `quality` and
others. Retries and cleared tasks generate and pay for only the missing posters.
"""

from __future__ import annotations

import csv
import io
import json
import tempfile
from collections.abc import Iterator
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, Param, task

from airflow_provider_jojokey.operators.jojokey import GenerateImageBatchOperator

BUCKET = "{{ var.value.get('posters_bucket', 'posters') }}"
FOLDER = "campaign/{{ run_id | replace(':', '-') }}"
COLUMNS, ROWS, THUMBNAIL, GAP = 8, 24, 180, 12
"""Layout of a contact sheet. More posters need more sheets, which limits the memory."""


@task
def rows(csv_file: str, folder: str) -> list[dict[str, str]]:
    """Return a request for each row of the CSV file. Empty cells use the defaults of the batch."""
    from airflow_provider_jojokey.spreadsheets import read_requests

    if csv_file.startswith("s3://"):
        from airflow.providers.amazon.aws.hooks.s3 import S3Hook

        content = S3Hook("aws_default").get_key(csv_file).get()["Body"].read()
    else:
        content = (Path(__file__).parent / Path(csv_file).name).read_bytes()
    return [
        row if row["s3_key"].startswith("s3://") else {**row, "s3_key": f"{folder}/{row['s3_key']}"}
        for row in read_requests(content, name=csv_file)
    ]


@task(trigger_rule="all_done")
def report(manifest: str, folder: str) -> dict[str, Any]:
    """Store contact sheets and a report next to the posters, and fail if posters are missing."""
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook
    from airflow.providers.common.compat.sdk import AirflowFailException

    from airflow_provider_jojokey.store.keys import split_uri

    if not manifest:
        raise AirflowFailException(
            "The batch has no manifest, because it ended before it generated anything."
        )
    s3 = S3Hook("aws_default").get_conn()
    bucket, key = split_uri(manifest)
    with tempfile.TemporaryFile() as file:
        s3.download_fileobj(bucket, key, file)
        file.seek(0)
        summary = write_report(file, s3, bucket, f"{folder}/report.csv")
        file.seek(0)
        summary["sheets"] = write_sheets(file, s3, bucket, folder)
    if summary["missing"]:
        raise AirflowFailException(
            f"{summary['missing']} of {summary['items']} posters are missing: {summary}"
        )
    return summary


def write_report(manifest: Any, s3: Any, bucket: str, key: str) -> dict[str, Any]:
    """Write a CSV file with the keys and the cost of each item; return the totals.

    If an item has costs in several currencies, each further one gets a row of its own, with the amount only. The file
    starts with a byte order mark: without it, Excel doesn't read it as UTF-8.
    """
    from airflow_provider_jojokey.cost import Costs, CostSum
    from airflow_provider_jojokey.spreadsheets import safe_cell

    items = missing = tokens = 0
    total = CostSum()
    with tempfile.TemporaryFile() as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as text:
        table = csv.writer(text)
        table.writerow(["item", "state", "keys", "tokens", "cost", "amount", "currency", "error", "prompt"])
        for line in manifest:
            item = json.loads(line)
            usage = item.get("usage") or {}
            cost = Costs.from_json(item["cost"]) if item.get("cost") else Costs()
            amount = cost.amounts[0] if cost.amounts else None
            keys = " ".join(image["key"] for image in item["images"])
            cells = [
                item["index"],
                item["state"],
                keys,
                usage.get("total_tokens") or ("" if cost.unknown else 0),
                str(cost),
                str(amount.amount) if amount else "",
                amount.currency if amount else "",
                item["error"],
                item["prompt"],
            ]
            table.writerow([safe_cell(cell) for cell in cells])
            for other in cost.amounts[1:]:
                table.writerow([item["index"], "", "", "", "", str(other.amount), other.currency, "", ""])
            items, missing = items + 1, missing + (item["state"] != "complete")
            tokens += usage.get("total_tokens", 0)
            total.add_all(cost)
        text.flush()
        raw.seek(0)
        s3.put_object(Bucket=bucket, Key=key, Body=raw, ContentType="text/csv; charset=utf-8")
    return {
        "csv": f"s3://{bucket}/{key}",
        "items": items,
        "missing": missing,
        "tokens": tokens,
        "cost": str(total.total),
    }


def write_sheets(manifest: Any, s3: Any, bucket: str, folder: str) -> list[str]:
    """Store contact sheets of all posters; return their locations."""
    from PIL import Image, ImageOps

    images: Iterator[dict[str, Any]] = (image for line in manifest for image in json.loads(line)["images"])
    step, sheets = THUMBNAIL + GAP, []
    while batch := list(islice(images, COLUMNS * ROWS)):
        size = (COLUMNS * step + GAP, -(-len(batch) // COLUMNS) * step + GAP)
        sheet = Image.new("RGB", size, "white")
        for position, image in enumerate(batch):
            with tempfile.TemporaryFile() as file:
                s3.download_fileobj(image["bucket"], image["key"], file)
                with Image.open(file) as poster:
                    poster.draft("RGB", (THUMBNAIL, THUMBNAIL))
                    small = ImageOps.contain(poster.convert("RGBA"), (THUMBNAIL, THUMBNAIL))
            row, column = divmod(position, COLUMNS)
            corner = (
                GAP + column * step + (THUMBNAIL - small.width) // 2,
                GAP + row * step + (THUMBNAIL - small.height) // 2,
            )
            sheet.paste(small, corner, small)  # white shows where the poster is transparent
        key = f"{folder}/contact-sheet-{len(sheets) + 1}.jpg"
        out = io.BytesIO()
        sheet.save(out, "JPEG", quality=85)
        s3.put_object(Bucket=bucket, Key=key, Body=out.getvalue(), ContentType="image/jpeg")
        sheets.append(f"s3://{bucket}/{key}")
    return sheets


with DAG(
    dag_id="poster_campaign",
    description="Generate a poster for each row of a CSV file, with contact sheets and a report of the costs.",
    schedule=None,
    start_date=datetime(2026, 1, 1),
    catchup=False,
    doc_md=__doc__,
    tags=["jojokey", "poster", "batch"],
    params={
        "csv": Param(
            "poster_campaign.csv",
            type="string",
            title="CSV file",
            description="A file next to the Dag, or an s3:// URL.",
        ),
        "max_in_flight": Param(8, type="integer", minimum=1, maximum=1000, title="Images in flight"),
        "max_cost": Param(
            15,
            type="number",
            minimum=0,
            title="Budget",
            description="The most that the campaign may cost, in the currency of the prices. At list prices, a "
            "poster of 1024x1536 costs about USD 0.01 (low), 0.08 (medium) or 0.32 (high).",
        ),
    },
):
    posters = GenerateImageBatchOperator(
        task_id="posters",
        requests=rows("{{ params.csv }}", FOLDER),
        s3_bucket=BUCKET,
        max_in_flight="{{ params.max_in_flight }}",
        max_cost="{{ params.max_cost }}",
        retries=3,
    )
    posters >> report(
        "{{ (ti.xcom_pull(task_ids='posters', key='jojokey_images') or {}).get('manifest') or '' }}", FOLDER
    )
