"""The fenced blocks of the documentation."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md", ROOT / "README.zh.md"]

_FENCE = re.compile(r"^( *)```(\w*)([^\n]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One fenced block.

    :param language: ``python``, ``console`` (commands that a reader types, after ``$``), ``shell``, ``json`` …
    :param title: the file that the reader saves it as, if any
    """

    page: Path
    line: int
    language: str
    title: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """The commands in a block of ``console`` or ``shell``, without comments."""
        lines = self.text.replace("\\\n", " ").splitlines()
        if self.language == "console":
            lines = [line[2:] for line in lines if line.startswith("$ ")]
        return [line for one in lines if (line := re.sub(r"\s+# .*", "", one).strip())]


def blocks(page: Path) -> Iterator[Block]:
    """Yield the blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    for found in _FENCE.finditer(text):
        indent, language, rest, body = found.groups()
        title = re.search(r'title="([^"]+)"', rest)
        yield Block(
            page,
            text.count("\n", 0, found.start()) + 1,
            language,
            title[1] if title else "",
            re.sub(f"^{indent}", "", body, flags=re.MULTILINE),
        )


BLOCKS = [block for page in PAGES for block in blocks(page)]
