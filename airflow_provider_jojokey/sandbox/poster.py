"""Draw a poster from a prompt. The stand-in sends it instead of a model's image.

The same prompt always produces the same bytes. Images of one request differ in their arrangement.
"""

# ruff: noqa: RUF001 - the imprint has a multiplication sign
from __future__ import annotations

import hashlib
import io
import random

from PIL import Image, ImageDraw, ImageFilter

from airflow_provider_jojokey.sandbox.motifs import Color, Palette, choose, draw, luminance, mix
from airflow_provider_jojokey.sandbox.typography import Block, Font, clean, fit, font, split_title

_FORMATS = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}


def draw_poster(
    prompt: str,
    width: int,
    height: int,
    *,
    output_format: str = "png",
    compression: int = 100,
    transparent: bool = False,
    index: int = 0,
) -> bytes:
    """Draw a poster from ``prompt``.

    :param width: in pixels.
    :param height: in pixels.
    :param output_format: ``png``, ``jpeg`` or ``webp``.
    :param compression: the quality of a JPEG or WebP, 0 to 100.
    :param transparent: make the background transparent.
    :param index: the number of the image within its request.
    :returns: the image file.
    :raises KeyError: if the format is unknown.
    """
    kind = _FORMATS[output_format]
    text = clean(prompt) or "Untitled"
    # Python's hash() differs between processes.
    seed = hashlib.sha256(text.encode()).digest()
    palette, motif = choose(text, random.Random(seed))
    chance = random.Random(seed + bytes([index % 256]))
    page = Image.new(
        "RGBA" if transparent else "RGB", (width, height), (0, 0, 0, 0) if transparent else palette.ground
    )
    _compose(page, text, palette, motif, chance, number=int.from_bytes(seed[:2], "big"), index=index)
    out = io.BytesIO()
    if kind == "PNG":
        page.save(out, kind, compress_level=3)
    elif kind == "JPEG":
        page.save(out, kind, quality=max(1, min(95, compression)))
    else:
        page.save(out, kind, quality=max(1, min(95, compression)), method=1)
    return out.getvalue()


def blur_poster(image: bytes, number: int) -> bytes:
    """Return a blurred copy of ``image``, as a preview.

    :param number: the number of the preview. Later ones are less blurred.
    """
    with Image.open(io.BytesIO(image)) as finished:
        kind = finished.format or "PNG"
        radius = max(finished.size) / (16 * 2 ** (number + 1))
        out = io.BytesIO()
        finished.filter(ImageFilter.BoxBlur(radius)).save(out, kind)
        return out.getvalue()


def _compose(
    page: Image.Image,
    text: str,
    palette: Palette,
    motif: str,
    chance: random.Random,
    *,
    number: int,
    index: int,
) -> None:
    """Draw the picture, the title, the rest of the prompt and the imprint."""
    width, height = page.size
    unit = min(width, height)
    margin = round(unit * 0.065)
    small = max(11, round(unit * 0.0185))
    gap = round(unit * 0.022)
    transparent = page.mode == "RGBA"
    ink = _mid(palette) if transparent else palette.ink
    soft = ink if transparent else mix(palette.ground, palette.ink, 0.62)
    title, rest = split_title(text)
    # More text would be too small to read, and measuring it takes time.
    title, rest = title[:160], rest[:600]
    beside = width / height > 1.2  # text next to the picture, not below it
    left, right, foot = margin, width - margin, height - margin - small * 3
    if beside:
        right = round(width * 0.42) - margin
        title_room = round(height * 0.55)
    else:
        title_room = round(height * (0.25 if height / width > 1.2 else 0.235))
    sizes = [round(unit * 0.155 * 0.93**step) for step in range(19)]
    heading = fit(title, "serif", right - left, title_room, sizes, spacing=1.2, max_lines=5 if beside else 3)
    details = _details(rest, right - left, round(height * (0.25 if beside else 0.11)), unit)
    # The text is at the bottom of the page. The picture gets the rest.
    top = foot - heading.height - (details.height + gap if details else 0)
    box = (width - round(width * 0.58), margin, width - margin, height - margin)
    if not beside:
        box = (margin, margin, width - margin, top - round(unit * 0.035))
    page.paste(
        draw(motif, (box[2] - box[0], box[3] - box[1]), palette, chance, transparent=transparent), box[:2]
    )
    pen = ImageDraw.Draw(page)
    if beside:
        rule = top - round(unit * 0.04)
        thick = max(2, round(unit * 0.006))
        pen.rectangle((left, rule, left + round(unit * 0.07), rule + thick), fill=palette.accents[0])
    bottom = _set(pen, heading, left, top, ink)
    if details:
        _set(pen, details, left, bottom + gap, soft)
    _imprint(pen, page.size, left, right, margin, small, ink, soft, number=number, index=index, beside=beside)


def _details(rest: str, width: int, height: int, unit: int) -> Block | None:
    if not rest:
        return None
    size = round(unit * 0.029)
    return fit(rest, "sans", width, height, [size, round(size * 0.86)], spacing=1.5, max_lines=7)


def _set(pen: ImageDraw.ImageDraw, block: Block, x: int, y: int, ink: Color) -> int:
    """Draw ``block`` with its top at ``y``, and return its bottom."""
    face = font(block.face, block.size)
    for line in block.lines:
        # Anchor at the baseline, so that the distance of lines doesn't depend on their letters.
        pen.text((x, y + round(block.size * 0.98)), line, font=face, fill=ink, anchor="ls")
        y += block.leading
    return y


def _imprint(
    pen: ImageDraw.ImageDraw,
    size: tuple[int, int],
    left: int,
    right: int,
    margin: int,
    small: int,
    ink: Color,
    soft: Color,
    *,
    number: int,
    index: int,
    beside: bool,
) -> None:
    """Draw the imprint, which shows that the image doesn't come from a model."""
    face = font("sans", small)
    base = size[1] - margin
    _spaced(pen, left, base, "JOJOKEY SANDBOX", face, ink, small * 0.16)
    name = f"No. {number:05d}" + (f" / {index + 1}" if index else "")
    if beside:
        _spaced(pen, left, margin + small, f"{size[0]} × {size[1]}", face, soft, small * 0.08)
    else:
        name = f"{size[0]} × {size[1]}    {name}"
    pen.text((right, base), name, font=face, fill=soft, anchor="rs")


def _spaced(
    pen: ImageDraw.ImageDraw, x: float, y: float, text: str, face: Font, ink: Color, gap: float
) -> None:
    """Draw ``text`` with letter spacing."""
    for letter in text:
        pen.text((x, y), letter, font=face, fill=ink, anchor="ls")
        x += face.getlength(letter) + gap


def _mid(palette: Palette) -> Color:
    """Return a color that is readable on white and on black."""
    return max(palette.accents, key=lambda color: -abs(luminance(color) - 118))
