"""The reference in ``site/``, which ``make docs`` builds: `make test-docs`."""

from __future__ import annotations

import re
from html import unescape
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct

from tests.docs.blocks import ROOT


def structs() -> list[tuple[Path, type[Struct]]]:
    """Return the structs that the reference describes, and their pages."""
    found = []
    for page in sorted((ROOT / "docs" / "reference").glob("*.md")):
        for name in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE):
            module, _, member = name.rpartition(".")
            try:
                described: Any = getattr(import_module(module), member, None)
            except ImportError:  # a package is described by its own page
                continue
            if isinstance(described, type) and issubclass(described, Struct):
                found.append((ROOT / "site" / "reference" / f"{page.stem}.html", described))
    return found


@pytest.mark.parametrize(("page", "struct"), structs())
def test_reference_shows_types_and_defaults_of_structs(page: Path, struct: type[Struct]) -> None:
    text = unescape(re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8")))
    shown = re.search(rf"^{struct.__name__}\((.*?)^\)", text, re.MULTILINE | re.DOTALL)
    assert shown, f"{page.name} shows no constructor of {struct.__name__}"
    written = "".join(shown[1].split())
    defaults = len(struct.__struct_fields__) - len(struct.__struct_defaults__)
    for index, name in enumerate(struct.__struct_fields__):
        kind = struct.__annotations__[name].replace(" ", "")
        assert f"{name}:{kind}{'=' if index >= defaults else ','}" in written + ","
