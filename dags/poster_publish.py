"""Copy each new poster of `poster_daily` to the public prefix.

The Dag runs whenever `poster_daily` stores a poster. A run that starts before the first poster waits for it.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from airflow.sdk import DAG, Asset, task

DAILY_POSTER = Asset("daily_poster")


@task.sensor(
    inlets=[DAILY_POSTER],
    mode="reschedule",
    poke_interval=timedelta(seconds=15),
    timeout=timedelta(days=7),
    soft_fail=True,
)
def wait_for_poster(*, inlet_events: Any = None) -> bool:
    """Return whether `poster_daily` has stored a poster. A run that you trigger may start before that."""
    return len(inlet_events[DAILY_POSTER]) > 0


@task(inlets=[DAILY_POSTER])
def publish(bucket: str, *, inlet_events: Any = None) -> list[str]:
    """Copy the newest poster to the public prefix; return its new URIs."""
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook

    published = []
    for uri in inlet_events[DAILY_POSTER][-1].extra.get("uris", ()):
        # Anyone who can create asset events can write any URI into them: copy daily posters only.
        key = uri.removeprefix(f"s3://{bucket}/")
        if not key.startswith("daily/"):
            raise ValueError(f"Not a daily poster: {uri!r}")
        public = "public/" + key
        S3Hook().copy_object(key, public, source_bucket_name=bucket, dest_bucket_name=bucket)
        published.append(f"s3://{bucket}/{public}")
    if not published:
        raise ValueError("The newest asset event lists no images. Was it created by hand?")
    return published


with DAG(
    dag_id="poster_publish",
    description="Copy the poster of the day to the public prefix as soon as it is stored.",
    schedule=[DAILY_POSTER],
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    doc_md=__doc__,
    tags=["jojokey", "poster"],
):
    wait_for_poster() >> publish("{{ var.value.get('posters_bucket', 'posters') }}")
