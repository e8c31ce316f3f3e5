"""Publish each day's poster: runs when `poster_daily` has made one, and copies it to the public prefix."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from airflow.sdk import DAG, Asset, task

DAILY_POSTER = Asset("daily_poster")


@task(inlets=[DAILY_POSTER])
def publish(bucket: str, *, inlet_events: Any = None) -> list[str]:
    """Copy the newest poster to the public prefix and return its places."""
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook

    events = inlet_events[DAILY_POSTER]
    if not len(events):
        raise ValueError("poster_daily has made no poster yet.")
    published = []
    for uri in events[-1].extra.get("uris", ()):
        # Whoever may create asset events may write anything into them: nothing else is made public.
        key = uri.removeprefix(f"s3://{bucket}/")
        if not key.startswith("daily/"):
            raise ValueError(f"Not a daily poster: {uri!r}")
        public = "public/" + key
        S3Hook().copy_object(key, public, source_bucket_name=bucket, dest_bucket_name=bucket)
        published.append(f"s3://{bucket}/{public}")
    if not published:
        raise ValueError("The newest event names no poster. Was it made by hand?")
    return published


with DAG(
    dag_id="poster_publish",
    description="Copies the poster of the day to the public prefix, as soon as it is there.",
    schedule=[DAILY_POSTER],
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    doc_md=__doc__,
    tags=["jojokey", "poster"],
):
    publish("{{ var.value.get('posters_bucket', 'posters') }}")
