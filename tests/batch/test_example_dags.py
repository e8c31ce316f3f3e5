"""The example Dags run on the sandbox."""

from __future__ import annotations

import codecs
import csv
import io
import json
import runpy
import shutil
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from airflow_provider_jojokey.cost import NANOS, PUBLISHED, Cost, Costs, sum_of
from airflow_provider_jojokey.results import Result
from tests.support.airflow import dags_of

DAGS = Path(__file__).parents[2] / "dags"


@pytest.fixture
def shipped(airflow: Any) -> Any:
    """Run a Dag of the checkout."""

    def run(name: str, **conf: Any) -> Any:
        for path in DAGS.glob(f"{name}.*"):
            shutil.copy(path, airflow.folder)
        return airflow.run_file(name, airflow.folder / f"{name}.py", conf or None)

    return run


def test_campaign_ends_with_contact_sheet_and_bill(shipped: Any, gateway: Any, store: Any) -> None:
    run = shipped("poster_campaign")

    assert run.state == "success"
    assert len(gateway.charges) == 8
    bill = run.xcom("return_value", "report")
    tokens = sum(record.total_tokens for record in gateway.charges)
    assert (bill["items"], bill["missing"], bill["tokens"]) == (8, 0, tokens)
    costs = [
        PUBLISHED.cost_of({"input_tokens": record.input_tokens, "output_tokens": record.output_tokens})
        for record in gateway.charges
    ]
    assert bill["cost"] == str(sum_of(costs))
    objects = store.objects("campaign/")
    rows = list(
        csv.DictReader(io.StringIO(objects[bill["csv"].removeprefix("s3://posters/")].decode("utf-8-sig")))
    )
    assert sum(int(row["tokens"]) for row in rows) == tokens
    assert sum(Decimal(row["amount"]) for row in rows) == sum_of(costs).amounts[0].amount
    assert {row["currency"] for row in rows} == {"USD"}
    assert {row["keys"] for row in rows} < set(objects)
    (sheet,) = bill["sheets"]
    drawn = Image.open(io.BytesIO(objects[sheet.removeprefix("s3://posters/")]))
    assert drawn.format == "JPEG"
    assert drawn.width > 1_000


@pytest.mark.parametrize(("mode", "options"), [("RGBA", {}), ("LA", {}), ("P", {"transparency": 0})])
def test_contact_sheet_is_white_behind_transparent_posters(mode: str, options: Any, store: Any) -> None:
    out = io.BytesIO()
    Image.new("RGBA", (96, 64), (0, 0, 0, 0)).convert(mode).save(out, "PNG", **options)
    store.client.put_object(Bucket="posters", Key="a.png", Body=out.getvalue())
    manifest = [json.dumps({"images": [{"bucket": "posters", "key": "a.png"}]})]
    write_sheets = runpy.run_path(str(DAGS / "poster_campaign.py"))["write_sheets"]

    (sheet,) = write_sheets(manifest, store.client, "posters", "campaign")

    stored = store.objects("campaign/")[sheet.removeprefix("s3://posters/")]
    assert min(Image.open(io.BytesIO(stored)).convert("L").tobytes()) > 240


def test_campaign_from_s3_reports_missing_images_and_fails(
    shipped: Any, gateway: Any, store: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    text = "prompt;s3_key;quality\r\n=1+1;a.png;medium\r\n;;\r\n[sandbox: moderation_blocked] 雨夜;b.png;\r\n"
    store.client.put_object(Bucket="posters", Key="rows.csv", Body=text.encode("gb18030"))

    run = shipped("poster_campaign", csv="s3://posters/rows.csv", max_in_flight=2)

    assert run.state == "failed"
    assert run.states["report", -1] == "failed"
    assert "1 of 2 posters are missing" in capfd.readouterr().out
    (report,) = [key for key in store.objects("campaign/") if key.endswith("report.csv")]
    written = store.objects(report)[report]
    assert written.startswith(codecs.BOM_UTF8)
    assert written.count(b"\r\n") == written.count(b"\n") == 3
    rows = list(csv.DictReader(io.StringIO(written.decode("utf-8-sig"))))
    assert [row["state"] for row in rows] == ["complete", "failed"]
    assert rows[0]["prompt"] == "'=1+1"
    assert rows[1]["error"] == "JojoKeyContentError"
    assert "雨夜" in rows[1]["prompt"]


def test_campaign_report_lists_the_amounts_of_all_currencies(store: Any) -> None:
    """A gateway that displays yuan charges a fee in yuan; the tokens of the next attempt have a price in dollars."""
    costs = Costs((Cost(7 * NANOS, "CNY", approximate=False), Cost(NANOS // 50, "USD")))
    line = Result("complete", cost=costs, usage={"total_tokens": 210}).to_xcom()
    manifest = io.BytesIO(b"\n".join(json.dumps({"index": index, **line}).encode() for index in range(2)))
    write_report = runpy.run_path(str(DAGS / "poster_campaign.py"))["write_report"]

    summary = write_report(manifest, store.client, "posters", "report.csv")

    rows = list(csv.DictReader(io.StringIO(store.objects("report.csv")["report.csv"].decode("utf-8-sig"))))
    amounts = [(row["item"], row["currency"], row["amount"], row["tokens"]) for row in rows]
    assert amounts == [
        ("0", "CNY", "7", "210"),
        ("0", "USD", "0.02", ""),
        ("1", "CNY", "7", "210"),
        ("1", "USD", "0.02", ""),
    ]
    assert (summary["items"], summary["missing"], summary["tokens"]) == (2, 0, 420)
    assert summary["cost"] == str(costs + costs)


def test_campaign_with_misspelled_column_fails_before_sending(
    shipped: Any, gateway: Any, store: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    store.client.put_object(Bucket="posters", Key="rows.csv", Body=b"prompr,s3_key\na fox,a.png\n")

    run = shipped("poster_campaign", csv="s3://posters/rows.csv")

    assert run.states["rows", -1] == "failed"
    assert gateway.requests == ()
    assert "did you mean 'prompt'?" in "".join(capfd.readouterr())


def test_mapped_sizes_are_labeled_in_the_grid(shipped: Any, gateway: Any, store: Any) -> None:
    run = shipped("poster_sizes", prompt="a lighthouse")

    assert run.state == "success"
    assert sorted(record.size for record in gateway.charges) == sorted(
        ["1024x1024", "1024x1536", "1536x1024", "864x1536", "1536x512"]
    )
    labels = {label for (task, _), label in run.labels.items() if task == "poster"}
    assert "portrait, 1024x1536" in labels
    assert len(labels) == 5


@pytest.mark.parametrize(("redraw", "expected"), [("", "run"), ("this", "never"), ("another", "run")])
def test_variable_names_the_run_to_pay_for_again(redraw: str, expected: str) -> None:
    dag = dags_of(DAGS / "poster_daily.py")["poster_daily"]
    reuse = dag.get_template_env().from_string(dag.get_task("poster").reuse)

    variables = SimpleNamespace(value={"poster_redraw": redraw})
    assert reuse.render(var=variables, run_id="this", params={"reuse": "run"}) == expected


def test_renditions_are_made_from_one_paid_poster(shipped: Any, gateway: Any, store: Any) -> None:
    logo = io.BytesIO()
    Image.new("RGBA", (50, 50), (255, 0, 0, 255)).save(logo, "PNG")
    store.client.put_object(Bucket="posters", Key="logo.png", Body=logo.getvalue())
    run = shipped(
        "poster_renditions",
        channels=["story", "newsletter"],
        headline="Sale",
        logo="s3://posters/logo.png",
        focal_x=1,
    )

    assert run.state == "success"
    assert len(gateway.charges) == 1
    uris = run.xcom("return_value", "render")
    story, newsletter = [store.objects()[uri.removeprefix("s3://posters/")] for uri in uris]
    for data, kind, size in ((story, "WEBP", (1080, 1920)), (newsletter, "JPEG", (600, 400))):
        with Image.open(io.BytesIO(data)) as image:
            assert (image.format, image.size) == (kind, size)
            red, green, blue = image.convert("RGB").getpixel((size[0] - 60, size[1] - 60))
            assert (red > 200, green < 60, blue < 60) == (True, True, True)
    result = run.xcom("jojokey_images", "render")
    poster = run.xcom("return_value", "poster")["images"][0]
    assert (result["derived_from"], result["usage"], result["cost"]) == (poster["uri"], {}, None)
    assert Result.from_xcom(result).paid == "no"
    assert [image["uri"] for image in result["images"]] == uris
    # The gallery reads images with the connection that stored them.
    assert result["aws_conn_id"] == run.xcom("jojokey_images", "poster")["aws_conn_id"] == "aws_default"


@pytest.mark.parametrize("headline", ["Spring\nis here", "\n", "\N{FOX FACE}", "x" * 500, None])
def test_any_headline_of_the_form_is_drawn(headline: str | None) -> None:
    module = runpy.run_path(str(DAGS / "poster_renditions.py"))
    params = {"focal_x": 0.5, "focal_y": 0.5, "headline": headline}

    drawn = module["rendered"](Image.new("RGB", (96, 64)), "newsletter", params, None)

    assert Image.open(io.BytesIO(drawn)).size == module["CHANNELS"]["newsletter"][:2]


@pytest.mark.parametrize(
    ("target", "focus", "box"),
    [
        ((100, 100), (0.5, 0.5), (50, 0, 150, 100)),
        ((100, 100), (0.0, 0.5), (0, 0, 100, 100)),
        ((100, 100), (1.0, 1.0), (100, 0, 200, 100)),
        ((400, 100), (0.5, 0.9), (0, 50, 200, 100)),
        ((50, 100), (0.3, 0.5), (35, 0, 85, 100)),
    ],
)
def test_rendition_is_cropped_around_the_focal_point(target: Any, focus: Any, box: Any) -> None:
    module = runpy.run_path(str(DAGS / "poster_renditions.py"))
    assert module["cropped"]((200, 100), target, focus) == pytest.approx(box)
