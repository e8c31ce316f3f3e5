"""The style sheet stays small, and each of its classes is used."""

from __future__ import annotations

import re
from pathlib import Path

STATIC = Path(__file__).parents[2] / "airflow_provider_jojokey" / "plugins" / "static"
STYLES = (STATIC / "images.css").read_text()
MAX_LINES = 900
VARIANTS = {"badge": "kind", "button": "variant", "notice": "kind", "mosaic": "shown.length"}
"""Classes whose name ends with a value."""


def scripts() -> str:
    return "\n".join(path.read_text() for path in sorted(STATIC.glob("*.js")))


def test_style_sheet_has_one_declaration_per_line_and_few_lines() -> None:
    lines = STYLES.splitlines()
    assert len(lines) <= MAX_LINES
    assert [line for line in lines if line.count(";") > 1] == []


def test_every_class_of_the_style_sheet_is_used() -> None:
    source = scripts()
    for name, value in VARIANTS.items():
        assert f"jojokey-{name}-${{{value}}}" in source
    names = set(re.findall(r"\.jojokey-([a-z0-9-]+)", STYLES))
    unused = {name for name in names if not re.search(rf"jojokey-{name}(?![a-z0-9-])", source)}
    assert {name for name in unused if name.rpartition("-")[0] not in VARIANTS} == set()
