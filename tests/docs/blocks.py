"""Read the fenced blocks of the documentation."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md", ROOT / "README.zh.md"]

_FENCE = re.compile(
    r"(?P<mark><!-- fragment\b[^\n]*-->\n\n?)?"
    r"^(?P<indent> *)```(?P<language>\w*)(?P<rest>[^\n]*)\n(?P<body>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """One fenced block.

    :param language: ``python``, ``console`` (commands that a reader types, after ``$``), ``shell``, ``json`` …
    :param title: the file that the reader saves it as, if any
    :param is_fragment: whether a comment before it, ``<!-- fragment -->``, says that it doesn't run by itself
    """

    page: Path
    line: int
    language: str
    title: str
    text: str
    is_fragment: bool = False

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """The commands in a block of ``console`` or ``shell``, without comments."""
        lines = self.text.replace("\\\n", " ").splitlines()
        if self.language == "console":
            lines = [line[2:] for line in lines if line.startswith("$ ")]
        return [command for line in lines if (command := re.sub(r"\s+# .*", "", line).strip())]


def blocks(page: Path) -> Iterator[Block]:
    """Yield the blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    for found in _FENCE.finditer(text):
        indent, body = found["indent"], found["body"]
        title = re.search(r'title="([^"]+)"', found["rest"])
        yield Block(
            page,
            text.count("\n", 0, found.start("indent")) + 1,
            found["language"],
            title[1] if title else "",
            re.sub(f"^{indent}", "", body, flags=re.MULTILINE),
            bool(found["mark"]),
        )


BLOCKS = [block for page in PAGES for block in blocks(page)]
PYTHON = [block for block in BLOCKS if block.language == "python"]
WHOLE = [block for block in PYTHON if not block.is_fragment]
DAGS = [block for block in WHOLE if "DAG(" in block.text]
PROGRAMS = [block for block in WHOLE if block not in DAGS]


def example(block: Block) -> Any:
    return pytest.param(block, id=block.name)
