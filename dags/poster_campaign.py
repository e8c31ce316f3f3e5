"""A campaign: the rows of a CSV become posters, and then a contact sheet and a bill.

The CSV is `poster_campaign.csv` beside this file, or an `s3://` URL given in the trigger form, as Excel or another
spreadsheet saves it. Its columns are the options of an item: `prompt` and `s3_key`, and `size`, `quality`, … where a
row needs its own.
A retry, or the run's cleared tasks, make and pay for only what is missing.
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
USD_PER_MILLION = {"input_tokens": 5.0, "output_tokens": 30.0}
"""OpenAI's list prices of gpt-image-2; write those of your own contract here."""
COLUMNS, ROWS, THUMBNAIL, GAP = 8, 24, 180, 12
"""Of one contact sheet; more posters make more sheets, so that memory stays small."""


@task
def rows(csv_file: str, folder: str) -> list[dict[str, str]]:
    """Read the CSV: a request for each row. What a cell leaves empty is the batch's default."""
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
    """Put contact sheets and a CSV of keys, tokens and cost beside the posters; then fail if some are missing."""
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook
    from airflow.providers.common.compat.sdk import AirflowFailException

    from airflow_provider_jojokey.store.keys import split_uri

    if not manifest:
        raise AirflowFailException("There is no manifest: the batch ended before it made anything.")
    s3 = S3Hook("aws_default").get_conn()
    bucket, key = split_uri(manifest)
    with tempfile.TemporaryFile() as file:
        s3.download_fileobj(bucket, key, file)
        file.seek(0)
        bill = write_bill(file, s3, bucket, f"{folder}/report.csv")
        file.seek(0)
        bill["sheets"] = write_sheets(file, s3, bucket, folder)
    if bill["missing"]:
        raise AirflowFailException(f"{bill['missing']} of {bill['items']} posters are missing: {bill}")
    return bill


def write_bill(manifest: Any, s3: Any, bucket: str, key: str) -> dict[str, Any]:
    """Write a line for each item: where it is and what it cost. Excel needs the mark at the file's beginning."""
    from airflow_provider_jojokey.spreadsheets import safe_cell

    items = missing = tokens = 0
    cost = 0.0
    with tempfile.TemporaryFile() as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as text:
        table = csv.writer(text)
        table.writerow(["item", "state", "keys", "tokens", "usd", "error", "prompt"])
        for line in manifest:
            one = json.loads(line)
            usage = one.get("usage") or {}
            usd = sum(usage.get(name, 0) * price / 1e6 for name, price in USD_PER_MILLION.items())
            keys = " ".join(image["key"] for image in one["images"])
            cells = [
                one["index"],
                one["state"],
                keys,
                usage.get("total_tokens", 0),
                f"{usd:.5f}",
                one["error"],
                one["prompt"],
            ]
            table.writerow([safe_cell(cell) for cell in cells])
            items, missing = items + 1, missing + (one["state"] != "complete")
            tokens, cost = tokens + usage.get("total_tokens", 0), cost + usd
        text.flush()
        raw.seek(0)
        s3.put_object(Bucket=bucket, Key=key, Body=raw, ContentType="text/csv; charset=utf-8")
    return {
        "csv": f"s3://{bucket}/{key}",
        "items": items,
        "missing": missing,
        "tokens": tokens,
        "usd": round(cost, 4),
    }


def write_sheets(manifest: Any, s3: Any, bucket: str, folder: str) -> list[str]:
    """Draw all posters small, one after the other, and return where the sheets are."""
    from PIL import Image, ImageOps

    images: Iterator[dict[str, Any]] = (image for line in manifest for image in json.loads(line)["images"])
    step, sheets = THUMBNAIL + GAP, []
    while some := list(islice(images, COLUMNS * ROWS)):
        size = (COLUMNS * step + GAP, -(-len(some) // COLUMNS) * step + GAP)
        sheet = Image.new("RGB", size, "white")
        for place, image in enumerate(some):
            with tempfile.TemporaryFile() as file:
                s3.download_fileobj(image["bucket"], image["key"], file)
                with Image.open(file) as poster:
                    poster.draft("RGB", (THUMBNAIL, THUMBNAIL))
                    small = ImageOps.contain(poster.convert("RGB"), (THUMBNAIL, THUMBNAIL))
            row, column = divmod(place, COLUMNS)
            corner = (
                GAP + column * step + (THUMBNAIL - small.width) // 2,
                GAP + row * step + (THUMBNAIL - small.height) // 2,
            )
            sheet.paste(small, corner)
        key = f"{folder}/contact-sheet-{len(sheets) + 1}.jpg"
        out = io.BytesIO()
        sheet.save(out, "JPEG", quality=85)
        s3.put_object(Bucket=bucket, Key=key, Body=out.getvalue(), ContentType="image/jpeg")
        sheets.append(f"s3://{bucket}/{key}")
    return sheets


with DAG(
    dag_id="poster_campaign",
    description="Rows of a CSV to posters in S3, each paid for once; then a contact sheet and what it cost.",
    schedule=None,
    start_date=datetime(2026, 1, 1),
    catchup=False,
    doc_md=__doc__,
    tags=["jojokey", "poster", "batch"],
    params={
        "csv": Param(
            "poster_campaign.csv", type="string", title="CSV", description="Beside the Dag, or an s3:// URL."
        ),
        "max_in_flight": Param(8, type="integer", minimum=1, maximum=1000, title="In flight"),
        "max_tokens": Param(
            500_000, type="integer", minimum=0, title="Budget", description="Tokens the campaign may cost."
        ),
    },
):
    posters = GenerateImageBatchOperator(
        task_id="posters",
        requests=rows("{{ params.csv }}", FOLDER),
        s3_bucket=BUCKET,
        max_in_flight="{{ params.max_in_flight }}",
        max_tokens="{{ params.max_tokens }}",
        retries=3,
    )
    posters >> report(
        "{{ (ti.xcom_pull(task_ids='posters', key='jojokey_images') or {}).get('manifest') or '' }}", FOLDER
    )
