"""The Grafana dashboard shows existing metrics."""

from __future__ import annotations

import json
import re
from pathlib import Path

from airflow_provider_jojokey.integrations import telemetry

DOCS = Path(__file__).parents[1] / "docs"
DASHBOARD = json.loads((DOCS / "grafana-dashboard.json").read_text())
METRICS = {
    value
    for name, value in vars(telemetry).items()
    if name.isupper() and isinstance(value, str) and re.fullmatch(r"jojokey\.\w+", value)
}
TAGS = {"dag_id", "model", "quality", "error", "currency"}


def queries() -> list[str]:
    variables = [
        item["query"]["query"] for item in DASHBOARD["templating"]["list"] if item["type"] == "query"
    ]
    return variables + [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def test_dashboard_queries_exactly_the_metrics() -> None:
    asked = {name for query in queries() for name in re.findall(r"\bairflow_\w+", query)}
    shown = {re.sub(r"_(sum|count)$", "", name) for name in asked}
    assert shown == {f"airflow_{name.replace('.', '_')}" for name in METRICS}


def test_dashboard_groups_by_existing_tags() -> None:
    grouped = {
        tag.strip()
        for query in queries()
        for tags in re.findall(r"by \(([^)]*)\)", query)
        for tag in tags.split(",")
    }
    legends = {
        tag
        for panel in DASHBOARD["panels"]
        for target in panel["targets"]
        for tag in re.findall(r"{{(\w+)}}", target["legendFormat"])
    }
    assert grouped | legends <= TAGS
    assert legends <= grouped


def test_panels_do_not_overlap() -> None:
    cells = [
        (x, y)
        for panel in DASHBOARD["panels"]
        for place in [panel["gridPos"]]
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24


def test_docs_name_all_metrics() -> None:
    text = (DOCS / "observability.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`(jojokey\.\w+)` *[,|]", text)) & METRICS == METRICS
