"""Draw the picture of a poster: geometric motifs in the colors of a palette."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from PIL import Image, ImageDraw

Color = tuple[int, int, int]
Picture = tuple[int, int]


@dataclass(frozen=True)
class Palette:
    """A set of matching colors."""

    ground: Color
    ink: Color
    accents: tuple[Color, ...]
    words: tuple[str, ...] = ()
    """Words in a prompt that select this palette."""

    @property
    def dark(self) -> bool:
        """Whether the background is darker than the ink."""
        return sum(self.ground) < sum(self.ink)


def _palette(colors: str, words: str = "") -> Palette:
    ground, ink, *accents = (_rgb(color) for color in colors.split())
    return Palette(ground, ink, tuple(accents), tuple(words.split()))


def _rgb(color: str) -> Color:
    return int(color[0:2], 16), int(color[2:4], 16), int(color[4:6], 16)


PALETTES = (
    _palette("f6efe4 22223b e4572e f2a65a 5b8e7d 2e4057 f4d35e", "sunrise morning autumn 秋 晨 日出"),
    _palette("12172b f3efe0 f25f5c ffd166 2f7fb0 70c1b3 46428f", "night dark space star moon 夜 星 月 宇宙"),
    _palette(
        "efe9dc 26382c 7a9e7e c8553d f28f3b 4f7f7f f3cdb2", "forest green garden tea leaf plant 森 绿 茶 花"
    ),
    _palette(
        "f3eee5 1b2a49 1b4f8a 4a86bd 93b3d6 e9d8b4 f2542d",
        "sea ocean blue water river rain indigo ink 海 蓝 水 江 雨",
    ),
    _palette("fbf1e6 3a1f1b d1495b edae49 00798c 30638e f4c9a0", "summer market food fruit 夏 果"),
    _palette("1f1626 f7ede2 f28482 f6bd60 84a59d 6d597a b56576", "neon jazz music concert evening 音乐 晚"),
    _palette("e7efe9 173f3a 2a9d8f 8ab17d e9c46a f4a261 e76f51", "spring fresh summit mountain 春 山"),
    _palette("d9432a fff4e4 fff0dc 241a2b f7b538 7d1d3f f0916a", "red festival new fox year 红 节 春节 狐"),
    _palette("1e3aa8 ffffff ffd23f f4efe4 ee4266 7fb0f5 0c1a57", "electric sport launch cobalt 运动"),
    _palette(
        "fafaf7 16181d 2457d6 9fc3f2 16181d e8e6df ff6b3d",
        "white clean product tech minimal 白 干净 产品 科技",
    ),
)

_WORDS_FOR_MOTIFS = {
    "hills": "mountain hill sunrise sunset landscape valley desert dawn forest summit snow fox"
    " 山 日出 日落 森林 风景",
    "waves": "sea ocean wave river water lake fish koi rain boat cloud festival"
    " 海 水 江 河 湖 鱼 雨 浪 云 节",
    "orbits": "space moon planet star night orbit galaxy music neon 月 星 宇宙 夜 太空",
    "tiles": "product tech geometric data city modern pattern abstract clean garden market"
    " 科技 产品 城 数据 现代",
}


def choose(prompt: str, chance: random.Random) -> tuple[Palette, str]:
    """Return the palette and motif that match words of ``prompt``, or random ones."""
    text = prompt.lower()
    latin = set("".join(c if c.isalpha() and c.isascii() else " " for c in text).split())

    def score(words: Iterable[str]) -> int:
        return sum(word in latin or word + "s" in latin if word.isascii() else word in text for word in words)

    palettes = [score(palette.words) for palette in PALETTES]
    best = max(palettes)
    palette = chance.choice([p for p, points in zip(PALETTES, palettes, strict=True) if points == best])
    motifs = {name: score(words.split()) for name, words in _WORDS_FOR_MOTIFS.items()}
    most = max(motifs.values())
    return palette, chance.choice([name for name, points in motifs.items() if points == most])


def draw(
    motif: str, size: Picture, palette: Palette, chance: random.Random, *, transparent: bool
) -> Image.Image:
    """Return a picture of ``size`` pixels with smooth edges: RGBA if ``transparent``, else RGB."""
    # Pillow doesn't antialias shapes, so draw them at twice the size and shrink them.
    wide, high = size[0] * 2, size[1] * 2
    mode = "RGBA" if transparent else "RGB"
    canvas = Image.new(mode, (wide, high), (*palette.ground, 0) if transparent else palette.ground)
    _MOTIFS[motif](canvas, palette, chance)
    return canvas.reduce(2)


def mix(first: Color, second: Color, share: float) -> Color:
    """Return a color between two colors: ``share`` 0 is the first, 1 the second."""
    r, g, b = (round(a + (z - a) * share) for a, z in zip(first, second, strict=True))
    return r, g, b


def luminance(color: Color) -> float:
    """Return the perceived lightness of a color, 0 to 255."""
    return 0.3 * color[0] + 0.59 * color[1] + 0.11 * color[2]


def _disc(pen: ImageDraw.ImageDraw, x: float, y: float, radius: float, fill: Color) -> None:
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)


def _shade(canvas: Image.Image, top: Color, bottom: Color) -> None:
    """Fill ``canvas`` with a gradient."""
    steps = 64
    strip = Image.new("RGB", (1, steps))
    for row in range(steps):
        strip.putpixel((0, row), mix(top, bottom, row / (steps - 1)))
    canvas.paste(strip.resize(canvas.size, Image.Resampling.BICUBIC))


# --- hills --------------------------------------------------------------------------------------------------------


def _hills(canvas: Image.Image, palette: Palette, chance: random.Random) -> None:
    width, height = canvas.size
    unit = min(width, height)
    pen = ImageDraw.Draw(canvas)
    tones = sorted(palette.accents, key=luminance)
    sun = max(palette.accents, key=lambda color: color[0] - color[2])
    others = [color for color in tones if color != sun]
    far, near = others[-1], others[0]
    _shade(canvas, mix(palette.ground, far, 0.55), mix(palette.ground, sun, 0.28))
    x, y = width * chance.uniform(0.3, 0.7), height * chance.uniform(0.3, 0.4)
    radius = unit * chance.uniform(0.17, 0.22)
    sky = canvas.getpixel((int(width / 2), int(y)))
    for ring in range(3, 0, -1):
        assert isinstance(sky, tuple)
        _disc(pen, x, y, radius * (1 + ring * 0.32), mix((sky[0], sky[1], sky[2]), sun, 0.30 - ring * 0.075))
    _disc(pen, x, y, radius, sun)
    layers = 6
    for layer in range(layers):
        depth = layer / (layers - 1)
        base = height * (0.50 + 0.42 * depth)
        swing = height * (0.10 - 0.035 * depth)
        waves = [
            (chance.uniform(0.6, 1.3), chance.uniform(0, math.tau), 0.62),
            (chance.uniform(1.6, 2.8), chance.uniform(0, math.tau), 0.28),
            (chance.uniform(3.5, 5.5), chance.uniform(0, math.tau), 0.10),
        ]
        line = []
        for step in range(161):
            at = step / 160
            lift = sum(
                part * math.sin(math.tau * pace * at * max(1.0, width / height) + phase)
                for pace, phase, part in waves
            )
            line.append((at * width, base - swing * lift))
        haze = mix(mix(palette.ground, far, 0.75), sun, 0.15)
        pen.polygon([*line, (width, height), (0, height)], fill=mix(haze, near, depth**1.15))


# --- waves --------------------------------------------------------------------------------------------------------


def _waves(canvas: Image.Image, palette: Palette, chance: random.Random) -> None:
    width, height = canvas.size
    pen = ImageDraw.Draw(canvas)
    tones = sorted(palette.accents, key=luminance)
    warm = max(palette.accents, key=lambda color: color[0] - color[2])
    cool = [color for color in tones if color != warm]
    light = palette.ink if palette.dark else palette.ground
    _shade(canvas, mix(palette.ground, cool[-1], 0.45), mix(palette.ground, cool[-1], 0.10))
    sun = min(width, height) * chance.uniform(0.15, 0.2)
    _disc(pen, width * chance.uniform(0.28, 0.72), height * 0.27, sun, warm)
    across = chance.choice((3, 4)) * max(1.0, width / height)
    radius = width / across / 2 * 1.03
    row_height = radius * 0.52
    rows = math.ceil(height * 0.62 / row_height) + 2
    start = height * 0.47
    for row in range(rows):
        depth = min(1.0, row / max(1, rows - 3))
        deep = mix(cool[len(cool) // 2], cool[0], depth)
        y = start + row * row_height
        for column in range(-1, math.ceil(across) + 1):
            x = (column + (0.5 if row % 2 else 0.0)) * radius * 2 + radius
            bands = (
                (1.0, light),
                (0.93, deep),
                (0.74, light),
                (0.67, mix(deep, light, 0.28)),
                (0.48, light),
                (0.41, mix(deep, light, 0.55)),
                (0.22, light),
                (0.15, warm if (row * 7 + column * 3) % 11 == 0 else deep),
            )
            for share, color in bands:
                _disc(pen, x, y + radius * 0.8, radius * share, color)


# --- orbits -------------------------------------------------------------------------------------------------------


def _orbits(canvas: Image.Image, palette: Palette, chance: random.Random) -> None:
    width, height = canvas.size
    unit = min(width, height)
    pen = ImageDraw.Draw(canvas)
    deep = mix(palette.ground, palette.accents[-1], 0.35)
    _shade(canvas, deep, palette.ground)
    faint = mix(palette.ground, palette.ink, 0.30)
    for _ in range(90 if palette.dark else 36):
        _disc(
            pen,
            chance.uniform(0, width),
            chance.uniform(0, height),
            unit * chance.uniform(0.001, 0.003),
            faint,
        )
    x, y = width * chance.uniform(0.42, 0.58), height * chance.uniform(0.46, 0.56)
    colors = list(palette.accents)
    chance.shuffle(colors)
    line = max(2, round(unit * 0.003))
    for ring in range(5):
        radius = unit * (0.24 + ring * 0.115)
        pen.ellipse(
            (x - radius, y - radius, x + radius, y + radius),
            outline=mix(faint, palette.ink, 0.35),
            width=line,
        )
    _disc(pen, x, y, unit * 0.165, colors[0])
    pen.pieslice(
        (x - unit * 0.165, y - unit * 0.165, x + unit * 0.165, y + unit * 0.165),
        60,
        240,
        fill=mix(colors[0], palette.ground if palette.dark else palette.ink, 0.22),
    )
    turn = chance.uniform(0, 360)
    for ring in range(5):
        radius = unit * (0.24 + ring * 0.115)
        planet = unit * chance.uniform(0.022, 0.058)
        turn += chance.uniform(80, 160)
        for _ in range(36):  # keep it inside the picture
            px, py = x + radius * math.cos(math.radians(turn)), y + radius * math.sin(math.radians(turn))
            edge = planet * 1.6
            if edge < px < width - edge and edge < py < height - edge:
                break
            turn += 10
        color = colors[1 + ring % (len(colors) - 1)]
        _disc(pen, px, py, planet * 1.28, mix(palette.ground, deep, 0.5))
        _disc(pen, px, py, planet, color)
        pen.pieslice(
            (px - planet, py - planet, px + planet, py + planet),
            60,
            240,
            fill=mix(color, palette.ground if palette.dark else palette.ink, 0.22),
        )


# --- tiles --------------------------------------------------------------------------------------------------------


def _tiles(canvas: Image.Image, palette: Palette, chance: random.Random) -> None:
    width, height = canvas.size
    short = chance.choice((3, 4))
    cell = min(width, height) / short
    rows, columns = max(1, round(height / cell)), max(1, round(width / cell))
    before: list[int] = [-1] * columns
    shapes = (_quarter, _quarter, _half, _leaf, _leaf, _arches, _circle, _steps)
    last = -1
    pen = ImageDraw.Draw(canvas)
    paper = mix(palette.ground, palette.ink, 0.07)
    grounds = [paper, *palette.accents]
    for row in range(rows):
        for column in range(columns):
            box = (
                round(column * width / columns),
                round(row * height / rows),
                round((column + 1) * width / columns),
                round((row + 1) * height / rows),
            )
            back = chance.choice([i for i in (0, 0, *range(len(grounds))) if i not in (last, before[column])])
            front = chance.choice(
                [
                    color
                    for i, color in enumerate(grounds)
                    if i != back and abs(luminance(color) - luminance(grounds[back])) > 28
                ]
            )
            last = before[column] = back
            if not (back == 0 and canvas.mode == "RGBA"):
                pen.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=grounds[back])
            third = chance.choice(
                [color for color in palette.accents if abs(luminance(color) - luminance(grounds[back])) > 28]
            )
            chance.choice(shapes)(canvas, box, front, third, grounds[back], chance.randrange(4))


Box = tuple[int, int, int, int]
_TURNS = {1: Image.Transpose.ROTATE_90, 2: Image.Transpose.ROTATE_180, 3: Image.Transpose.ROTATE_270}


def _stamp(canvas: Image.Image, box: Box, mask: Image.Image, color: Color, turn: int) -> None:
    if turn:
        mask = mask.transpose(_TURNS[turn])
    canvas.paste(color, box, mask.resize((box[2] - box[0], box[3] - box[1])))


def _mask(box: Box) -> tuple[Image.Image, ImageDraw.ImageDraw, int, int]:
    side = max(box[2] - box[0], box[3] - box[1])  # square, so that it can be rotated
    mask = Image.new("L", (side, side))
    return mask, ImageDraw.Draw(mask), side, side


def _quarter(canvas: Image.Image, box: Box, front: Color, third: Color, back: Color, turn: int) -> None:
    mask, pen, w, h = _mask(box)
    pen.ellipse((-w, -h, w, h), fill=255)
    _stamp(canvas, box, mask, front, turn)


def _half(canvas: Image.Image, box: Box, front: Color, third: Color, back: Color, turn: int) -> None:
    mask, pen, w, h = _mask(box)
    pen.ellipse((0, -h // 2, w, h // 2), fill=255)
    _stamp(canvas, box, mask, front, turn)
    if third not in (front, back):
        mask, pen, w, h = _mask(box)
        pen.ellipse((0, h // 2, w, h + h // 2), fill=255)
        _stamp(canvas, box, mask, third, turn)


def _leaf(canvas: Image.Image, box: Box, front: Color, third: Color, back: Color, turn: int) -> None:
    mask, pen, w, h = _mask(box)
    pen.ellipse((-w, -h, w, h), fill=255)
    other, pen, w, h = _mask(box)
    pen.ellipse((0, 0, 2 * w, 2 * h), fill=255)
    both = Image.new("L", mask.size)
    both.paste(mask, (0, 0), other)
    _stamp(canvas, box, both, front, turn)


def _arches(canvas: Image.Image, box: Box, front: Color, third: Color, back: Color, turn: int) -> None:
    for share, color in ((1.0, front), (0.75, back), (0.5, third if third != back else front), (0.25, back)):
        mask, pen, w, h = _mask(box)
        pen.ellipse((-w * share, -h * share, w * share, h * share), fill=255)
        _stamp(canvas, box, mask, color, turn)


def _circle(canvas: Image.Image, box: Box, front: Color, third: Color, back: Color, turn: int) -> None:
    for share, color in ((0.78, front), (0.34, third if third != front else back)):
        mask, pen, w, h = _mask(box)
        pen.ellipse(
            (w * (1 - share) / 2, h * (1 - share) / 2, w * (1 + share) / 2, h * (1 + share) / 2), fill=255
        )
        _stamp(canvas, box, mask, color, 0)


def _steps(canvas: Image.Image, box: Box, front: Color, third: Color, back: Color, turn: int) -> None:
    mask, pen, w, h = _mask(box)
    for stripe in range(4):
        pen.rectangle((0, h * stripe / 4, w, h * stripe / 4 + h / 8), fill=255)
    _stamp(canvas, box, mask, front, turn)


_MOTIFS: dict[str, Callable[[Image.Image, Palette, random.Random], None]] = {
    "hills": _hills,
    "waves": _waves,
    "orbits": _orbits,
    "tiles": _tiles,
}
