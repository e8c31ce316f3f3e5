"""Every text of the UI is translated, and no translation is left over."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

STATIC = Path(__file__).parents[2] / "airflow_provider_jojokey" / "plugins" / "static"
STRING = r'"((?:[^"\\]|\\.)*)"'
SHAPES = re.compile(r"^const SHAPES = \{.*?^\};", re.MULTILINE | re.DOTALL)
UNTRANSLATED = {"{n}"}
"""Texts without words."""


def sources() -> str:
    found = (path.read_text() for path in sorted(STATIC.glob("*.js")) if path.name != "zh.js")
    return SHAPES.sub("", "\n".join(found))


def texts(source: str) -> set[str]:
    """Return the texts that go through ``t`` or ``count``, or stand in a table of texts."""
    found = set(re.findall(rf"\bt\(\s*{STRING}", source))
    for pattern in (
        rf'\bcount\(\s*[^"]*?,\s*{STRING},\s*{STRING}',
        rf"\bt\([^()\"]*\?\s*{STRING}\s*:\s*{STRING}",
    ):
        found |= {text for pair in re.findall(pattern, source) for text in pair}
    for table in re.findall(r"^const [A-Z_]+ = [{\[](.*?)^[}\]]", source, re.MULTILINE | re.DOTALL):
        found |= {text for text in re.findall(STRING, table) if re.match("[A-Z]", text)}
    return found - UNTRANSLATED


def translations() -> dict[str, str]:
    pairs = re.findall(rf"^\s*(?:{STRING}|(\w+)):\s*{STRING},", (STATIC / "zh.js").read_text(), re.MULTILINE)
    return {quoted or bare: chinese for quoted, bare, chinese in pairs}


def test_all_ui_texts_are_translated() -> None:
    assert sorted(texts(sources()) - set(translations())) == []


def test_no_translation_is_unused() -> None:
    source = sources()
    assert [text for text in translations() if f'"{text}"' not in source] == []


@pytest.mark.parametrize("text", sorted(translations()))
def test_translation_keeps_the_placeholders(text: str) -> None:
    placeholders = re.compile(r"\{\w+\}")
    assert sorted(placeholders.findall(text)) == sorted(placeholders.findall(translations()[text]))
