"""Set Latin and Chinese text: break it into balanced lines, and shorten it if it doesn't fit."""

# ruff: noqa: RUF001 - line breaks depend on Chinese punctuation
from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from PIL import ImageFont

Face = Literal["serif", "sans"]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_NOT_FIRST = frozenset("，。、；：？！）》」』】〉”’…,.;:?!)]}%")
_NOT_LAST = frozenset("（《「『【〈“‘([{")
# A line may break between these: words, wide characters, spaces.
_PARTS = re.compile(r"[^\s\u2e80-\u9fff\uf900-\ufaff\uff00-\uffef]+|\s+|.", re.DOTALL)
# Emoji and symbols that text fonts lack.
_UNDRAWABLE = re.compile(
    r"[\u200b-\u200f\u2600-\u27bf\ufe0e\ufe0f\U0001f000-\U0010ffff\x00-\x08\x0b-\x1f\x7f]"
)
_CLAUSE = re.compile(r"[,.;:!?，。；：！？、\n—–|]+\s*")


@lru_cache(maxsize=64)
def font(face: Face, size: int) -> Font:
    """Return a font for ``size`` pixels: Noto with simplified Chinese, or Pillow's Latin default."""
    try:
        import pylopdf_fonts_zh_cn as noto
    except ImportError:
        return ImageFont.load_default(size)
    path = noto.serif_path() if face == "serif" else noto.sans_path()
    return ImageFont.truetype(str(path), size)


@dataclass(frozen=True)
class Block:
    """Lines of text of one size."""

    lines: tuple[str, ...]
    face: Face
    size: int
    leading: int
    """Distance of lines in pixels."""

    @property
    def height(self) -> int:
        """Height in pixels."""
        return self.leading * len(self.lines)


def clean(text: str) -> str:
    """Return ``text`` in one line, without characters that text fonts lack."""
    return " ".join(_UNDRAWABLE.sub("", text).split())


def split_title(text: str) -> tuple[str, str]:
    """Split a prompt into its title, which is the first clause, and the rest."""
    text = clean(text)
    for found in _CLAUSE.finditer(text):
        head = text[: found.start()].strip()
        # "3.5" and "e.g." don't end a clause. A clause of one or two short words is too short for a title.
        inside_word = found[0] in ".:," and found.end() < len(text)
        if inside_word or _width_in_letters(head) < 8:
            continue
        return head, text[found.end() :].strip()
    return text, ""


def _width_in_letters(text: str) -> int:
    return sum(2 if ord(character) >= 0x2E80 else 1 for character in text)


def fit(
    text: str, face: Face, width: int, height: int, sizes: Sequence[int], *, spacing: float, max_lines: int
) -> Block:
    """Set ``text`` in the largest size that fits into ``width`` by ``height`` pixels, and balance its lines.

    If the smallest size is too large, the text is shortened with an ellipsis.

    :param sizes: sizes in pixels, from large to small
    """
    for size in sizes:
        lines = wrap(text, font(face, size), width)
        leading = round(size * spacing)
        if len(lines) <= max_lines and leading * len(lines) <= height and _unbroken(lines, text):
            return Block(_balance(text, font(face, size), width, len(lines)), face, size, leading)
    size = sizes[-1]
    leading = round(size * spacing)
    room = max(1, min(max_lines, height // leading))
    lines = wrap(text, font(face, size), width)
    if len(lines) > room:
        lines = [*lines[: room - 1], _shorten(" ".join(lines[room - 1 :]), font(face, size), width)]
    return Block(tuple(lines), face, size, leading)


def wrap(text: str, face: Font, width: int) -> list[str]:
    """Break ``text`` into lines of at most ``width`` pixels."""
    lines: list[str] = []
    line = ""
    for part in _PARTS.findall(text):
        if face.getlength((line + part).rstrip()) <= width or (line and part in _NOT_FIRST):
            line += part
            continue
        carried = ""
        while line and line[-1] in _NOT_LAST:
            line, carried = line[:-1], line[-1] + carried
        if line.strip():
            lines.append(line.strip())
        line = carried + part.lstrip()
        while face.getlength(line) > width and len(line) > 1:  # a word wider than the page
            fitting = next(
                n for n in range(len(line) - 1, 0, -1) if n == 1 or face.getlength(line[:n]) <= width
            )
            lines.append(line[:fitting])
            line = line[fitting:]
    if line.strip():
        lines.append(line.strip())
    return lines or [""]


def _unbroken(lines: Sequence[str], text: str) -> bool:
    """Return whether no word is split."""
    words = {part for part in _PARTS.findall(text) if not part.isspace()}
    return all(part in words for line in lines for part in _PARTS.findall(line) if not part.isspace())


def _balance(text: str, face: Font, width: int, count: int) -> tuple[str, ...]:
    """Break into ``count`` lines of similar length, so that no single word is left for the last line."""
    low, high = width // 3, width
    while high - low > 4:
        middle = (low + high) // 2
        if len(wrap(text, face, middle)) <= count and _unbroken(wrap(text, face, middle), text):
            high = middle
        else:
            low = middle
    return tuple(wrap(text, face, high))


def _shorten(text: str, face: Font, width: int) -> str:
    while text and face.getlength(text.rstrip(" ,，、;；:：.") + "…") > width:
        cut = text.rstrip().rfind(" ")
        text = text[:cut] if cut > len(text) // 2 else text[:-1]
    return text.rstrip(" ,，、;；:：.") + "…"
