"""Asset events in Airflow's tables, and the Dag that they trigger."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from airflow_provider_jojokey.integrations.assets import add_batch_event_extras, asset_of

DAGS = Path(__file__).parents[2] / "dags"

DAG_FILE = """
from airflow.sdk import DAG, Asset, AssetAlias
from airflow_provider_jojokey.operators.jojokey import GenerateImageBatchOperator, GenerateImageOperator

with DAG("asset_events", schedule=None):
    made = GenerateImageOperator(
        task_id="image", prompt="a fox", s3_bucket="posters", s3_key="été #1?.png", n=2, size="1024x640",
        outlets=[Asset("foxes"), AssetAlias("each_fox")],
    )
    GenerateImageBatchOperator(
        task_id="batch",
        requests=[{"prompt": f"owl {n}", "s3_key": f"owls/{n}.png"} for n in range(3)],
        s3_bucket="posters", size="1024x640", outlets=[Asset("owls"), AssetAlias("each_owl")],
    )
    GenerateImageOperator(
        task_id="failing", prompt="[sandbox: wallet_empty] x", s3_bucket="posters", s3_key="x.png",
        outlets=[Asset("never")],
    )
"""


def events(dag_id: str, run_id: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the asset events of a run: each asset's URI and the event's extra."""
    from airflow.models.asset import AssetEvent
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        rows = session.scalars(
            select(AssetEvent).filter_by(source_dag_id=dag_id, source_run_id=run_id).order_by(AssetEvent.id)
        )
        return [(row.asset.uri, row.extra) for row in rows]


def run_example(airflow: Any, dag_id: str) -> Any:
    source = (DAGS / f"{dag_id}.py").read_text(encoding="utf-8")
    return airflow.run_file(dag_id, airflow.write(f"{dag_id}.py", source))


def test_asset_events_list_images_and_alias_gets_each(airflow: Any, gateway: Any, store: Any) -> None:
    run = airflow.run_file("asset_events", airflow.write("asset_events.py", DAG_FILE))

    all_events = events("asset_events", run.run_id)
    by_uri = dict(all_events)
    assert run.states["failing", -1] == "failed"
    assert len(all_events) == len(by_uri) == 2 + 2 + 3  # two assets, two foxes, three owls
    manifest = run.xcom()
    foxes = by_uri["foxes"]
    assert foxes["uris"] == [image["uri"] for image in manifest["images"]]
    assert foxes["uris"] == ["s3://posters/été #1?-0.png", "s3://posters/été #1?-1.png"]
    for name in ("usage", "cost", "model", "request_id", "fingerprint", "receipt"):
        assert foxes[name] == manifest[name]
        assert foxes[name]
    fox = by_uri["s3://posters/%C3%A9t%C3%A9%20%231%3F-1.png"]
    assert fox["uri"] == foxes["uris"][1]
    assert fox["fingerprint"] == foxes["fingerprint"]
    assert not {"usage", "cost"} & fox.keys()  # they would be counted once for each image

    assert by_uri["owls"]["uris"] == [f"s3://posters/owls/{n}.png" for n in range(3)]
    assert by_uri["owls"]["usage"] == run.xcom("usage", "batch")
    assert all(f"s3://posters/owls/{n}.png" in by_uri for n in range(3))


def test_alias_of_a_large_batch_gets_the_manifest() -> None:
    from airflow.sdk import Asset, AssetAlias
    from airflow.sdk.execution_time.context import OutletEventAccessors

    asset, alias, foreign = Asset("many"), AssetAlias("each"), object()
    context = {"outlet_events": OutletEventAccessors()}
    place = "s3://posters/_jojokey/batches/campaign/run/posters.jsonl"
    summary = {"manifest": place, "images": 5000, "usage": {"total_tokens": 7}}

    add_batch_event_extras(context, [asset, alias, foreign], summary, None)

    extra = context["outlet_events"][asset].extra
    assert (extra["images"], extra["manifest"]) == (5000, place)
    assert "uris" not in extra
    (event,) = context["outlet_events"][alias].asset_alias_events
    assert event.dest_asset_key.uri == event.extra["uri"] == place


def test_daily_poster_is_published_on_its_event(airflow: Any, gateway: Any, store: Any) -> None:
    daily = run_example(airflow, "poster_daily")
    publish = run_example(airflow, "poster_publish")

    ((asset, extra),) = events("poster_daily", daily.run_id)
    (uri,) = extra["uris"]
    assert (asset, publish.state) == ("daily_poster", "success")
    public = uri.replace("/daily/", "/public/daily/")
    assert publish.xcom("return_value", "publish") == [public]
    objects = store.objects()
    assert objects[public.removeprefix("s3://posters/")] == objects[uri.removeprefix("s3://posters/")]


def test_forged_event_publishes_nothing_else(airflow: Any, gateway: Any, store: Any) -> None:
    airflow.write(
        "by_hand.py",
        """
        from airflow.sdk import DAG, Asset, task
        with DAG("by_hand", schedule=None):
            @task(outlets=[Asset("daily_poster")])
            def forge(outlet_events):
                outlet_events[Asset("daily_poster")].extra = {"uris": ["s3://posters/private/salaries.png"]}
            forge()
        """,
    )
    store.client.put_object(Bucket="posters", Key="private/salaries.png", Body=b"secret")

    airflow.run_file("by_hand", airflow.folder / "by_hand.py")
    publish = run_example(airflow, "poster_publish")

    assert publish.state == "failed"
    assert store.objects("public/") == {}


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("s3://b/a b/ü?#.png", "s3://b/a%20b/%C3%BC%3F%23.png"),
        ("s3://b/plain/2026-01-01.png", "s3://b/plain/2026-01-01.png"),
        ("s3://b/100%.png", "s3://b/100%25.png"),
    ],
)
def test_asset_uri_keeps_the_whole_key(uri: str, expected: str) -> None:
    asset = asset_of(uri)
    assert asset is not None
    assert asset.uri == expected


def test_overlong_key_has_no_asset() -> None:
    assert asset_of("s3://b/" + "海" * 300) is None
