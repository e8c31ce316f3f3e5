"""Days in the browser: the filters of the charts' bars and of the date presets. They need no Airflow."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from playwright.sync_api import Page

# The modules take React from these globals when they are loaded, and these functions don't use it.
WITHOUT_REACT = "for (const name of ['React', 'ReactDOM', 'ReactRouterDOM']) globalThis[name] ??= {};"
BARS = f"""async ([byDay, filter]) => {{
    {WITHOUT_REACT}
    const {{ barsOf, daysOf }} = await import("./charts.js");
    return barsOf(byDay, filter.day_to).bars.map((bar) => [bar, daysOf(bar, filter)]);
}}"""
AGO = f"""async ([days, now, zone]) => {{
    {WITHOUT_REACT}
    localStorage.setItem("timezone", JSON.stringify(zone));
    const {{ ago }} = await import("./filters.js");
    const found = ago(days, now);
    localStorage.removeItem("timezone");
    return found;
}}"""
days = st.dates(date(2020, 1, 1), date(2026, 6, 30))


@given(st.lists(days, min_size=1, max_size=5, unique=True), days | st.none(), days | st.none())
def test_bar_selects_no_day_outside_of_the_filter(
    scripts: Page, made: list[date], first: date | None, last: date | None
) -> None:
    wanted = {"day_from": (first and first.isoformat()) or "", "day_to": (last and last.isoformat()) or ""}
    shown = [day for day in made if (first or day) <= day <= (last or day)]
    rows = [
        {
            "day": f"{day}",
            "tokens": 1,
            "unknown_tokens": 0,
            "images": 1,
            "cost": {"amounts": [], "unknown": 1},
        }
        for day in shown
    ]

    bars = scripts.evaluate(BARS, [rows, wanted])

    # The bars select each day exactly once, as their heights count them.
    for bar, selected in bars:
        inside = [day for day in made if selected["day_from"] <= day.isoformat() <= selected["day_to"]]
        assert bar["images"] == len(inside)
        assert bar["images"] == 0 or set(inside) <= set(shown)


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "America/Santiago", "Pacific/Auckland"])
@pytest.mark.parametrize("hour", [0, 12, 23])
def test_preset_counts_days_of_23_and_25_hours(scripts: Page, zone: str, hour: int) -> None:
    for month in (3, 4, 9, 10, 11):
        for day in (2, 9, 30):
            now = datetime(2026, month, day, hour, 30, tzinfo=ZoneInfo(zone))
            milliseconds = now.astimezone(UTC).timestamp() * 1000

            found = scripts.evaluate(AGO, [29, milliseconds, zone])

            assert found == (now.date() - timedelta(29)).isoformat()
