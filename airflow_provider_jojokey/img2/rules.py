"""The API's rules for a request.

They come from the vendor's documentation and from OpenAI's API reference for ``gpt-image-2``. Names of models
and qualities are left to the gateway, because they change faster than this package. Every parse of a Dag file
imports this module, so it has no heavy imports.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

DEFAULT_MODEL = "gpt-image-2"
MAX_PROMPT_CHARACTERS = 32_000
MAX_IMAGES = 10
DEFAULT_PARTIAL_IMAGES = 2
QUALITIES = ("low", "medium", "high", "auto", "xhigh", "max")
OUTPUT_FORMATS = ("png", "jpeg", "webp")
BACKGROUNDS = ("auto", "opaque", "transparent")
MODERATIONS = ("auto", "low")

EDGE_STEP = 16
MAX_EDGE = 3_840
MAX_RATIO = 3
MIN_PIXELS = 655_360
MAX_PIXELS = 8_294_400

_SIZE = re.compile(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})")
_SIMILAR_TO_SIZE = r"\s*([1-9][0-9]{0,5})\s*[x×*X✕]\s*([1-9][0-9]{0,5})\s*(?:px)?\s*"  # noqa: RUF001

FIELDS = (
    "prompt",
    "model",
    "size",
    "quality",
    "n",
    "background",
    "output_format",
    "output_compression",
    "moderation",
    "stream",
    "partial_images",
    "extra_body",
)
"""The fields of an :class:`~airflow_provider_jojokey.img2.request.ImageRequest`."""


def problems(values: Mapping[str, Any]) -> Iterator[str]:
    """Yield the problems of ``values``, the fields of an :class:`ImageRequest` that are known so far.

    Rules that need a missing field are skipped, so that a Dag's literals are checked when it is parsed,
    before its templates are rendered.
    """
    for name in _FIELD_RULES:
        if name in values:
            yield from _FIELD_RULES[name](values[name])
    if isinstance(size := values.get("size"), str):
        yield from _size_problems(size, is_known_model(values.get("model", DEFAULT_MODEL)))
    output_format = values.get("output_format", ...)
    if values.get("output_compression") is not None and output_format in (None, "png"):
        yield "output_compression needs output_format='jpeg' or 'webp': PNG is lossless"
    if values.get("background") == "transparent" and output_format == "jpeg":
        yield "background='transparent' needs output_format='png' or 'webp': JPEG has no transparency"


def parse_size(size: str) -> tuple[int, int] | None:
    """Return width and height in pixels of a ``"WIDTHxHEIGHT"``, or ``None`` for anything else."""
    match = _SIZE.fullmatch(size)
    return (int(match[1]), int(match[2])) if match else None


def nearest_size(width: int, height: int) -> str:
    """Return the valid size closest to ``width`` by ``height`` pixels, in proportion and area."""
    below = height // EDGE_STEP * EDGE_STEP
    valid = []
    for edge in range(EDGE_STEP, MAX_EDGE + 1, EDGE_STEP):
        shortest = max(MIN_PIXELS / edge, edge / MAX_RATIO, EDGE_STEP)
        longest = min(MAX_PIXELS / edge, edge * MAX_RATIO, MAX_EDGE)
        first, last = math.ceil(shortest / EDGE_STEP) * EDGE_STEP, int(longest) // EDGE_STEP * EDGE_STEP
        if first <= last:
            valid += [(edge, min(max(candidate, first), last)) for candidate in (below, below + EDGE_STEP)]
    nearest = min(valid, key=lambda size: math.log(size[0] / width) ** 2 + math.log(size[1] / height) ** 2)
    return f"{nearest[0]}x{nearest[1]}"


def is_known_model(model: Any) -> bool:
    """Return whether this package knows the limits of ``model``."""
    return isinstance(model, str) and model.startswith(DEFAULT_MODEL)


def _size_problems(size: str, known_model: bool) -> Iterator[str]:
    if size == "auto":
        return
    pixels = parse_size(size)
    if pixels is None:
        similar = re.fullmatch(_SIMILAR_TO_SIZE, size)
        fix = f"; write {nearest_size(int(similar[1]), int(similar[2]))!r}" if similar else ""
        yield f"size={size[:40]!r} is neither 'auto' nor 'WIDTHxHEIGHT' in pixels with a plain x{fix}"
        return
    if known_model and (broken := list(_pixel_problems(*pixels))):
        yield f"size={size!r}: {', '.join(broken)}; the nearest valid size is {nearest_size(*pixels)!r}"


def _pixel_problems(width: int, height: int) -> Iterator[str]:
    if width % EDGE_STEP or height % EDGE_STEP:
        yield f"both edges must be multiples of {EDGE_STEP} pixels"
    if max(width, height) > MAX_EDGE:
        yield f"no edge may be longer than {MAX_EDGE:,} pixels"
    if max(width, height) > MAX_RATIO * min(width, height):
        yield f"the long edge may be at most {MAX_RATIO} times the short one"
    if not MIN_PIXELS <= width * height <= MAX_PIXELS:
        yield f"the area must be {MIN_PIXELS:,} to {MAX_PIXELS:,} pixels, not {width * height:,}"


def character_problems(name: str, value: Any) -> Iterator[str]:
    """Yield why a database would reject ``value`` after payment: NUL characters, unpaired surrogates.

    :param name: the name of the field
    :param value: text, or nested dicts and lists that contain text
    """
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, Mapping):
            waiting += [*item.keys(), *item.values()]
        elif isinstance(item, (list, tuple)):
            waiting += item
        elif isinstance(item, str) and (found := unstorable(item)):
            kind = "a NUL character" if found == "\0" else "an unpaired surrogate"
            yield f"{name} contains {kind} (U+{ord(found):04X}), which databases can't store: remove it"
            return


def unstorable(text: str) -> str:
    """Return a NUL character or an unpaired surrogate of a text; empty if it has none.

    Each parse of a Dag file imports this module, and compiling a regular expression with surrogates is slow.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return text[error.start]
    return "\0" if "\0" in text else ""


def _prompt_problems(value: Any) -> Iterator[str]:
    if not isinstance(value, str):
        yield f"prompt must be text, not {type(value).__name__}"
    elif not value.strip():
        yield "prompt is empty: describe the image"
    elif len(value) > MAX_PROMPT_CHARACTERS:
        yield f"prompt has {len(value):,} characters; the API allows at most {MAX_PROMPT_CHARACTERS:,}"
    else:
        yield from character_problems("prompt", value)


def _text_problems(name: str, value: Any) -> Iterator[str]:
    if not isinstance(value, str) or not value.strip():
        yield f"{name} must be text, not {value!r}"
    else:
        yield from character_problems(name, value)


def _choice_problems(name: str, value: Any, choices: tuple[str, ...]) -> Iterator[str]:
    if value is not None and value not in choices:
        yield f"{name} must be one of {', '.join(choices)}, not {value!r}"


def _flag_problems(name: str, value: Any) -> Iterator[str]:
    if not isinstance(value, bool):
        yield f"{name} must be True or False, not {value!r}"  # the text "False" would be true


def _whole_number_problems(name: str, value: Any, low: int, high: int, optional: bool) -> Iterator[str]:
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        yield f"{name} must be a whole number from {low} to {high}, not {value!r}"


def _extra_body_problems(value: Any) -> Iterator[str]:
    if value is None:
        return
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        yield f"extra_body must be a dict with text keys, not {type(value).__name__}"
        return
    if repeated := sorted(set(value) & set(FIELDS)):
        yield f"extra_body repeats {', '.join(repeated)}: use the argument of that name, which is checked"
    try:
        json.dumps(value, allow_nan=False, sort_keys=True)  # as in the request and in the fingerprint
    except (TypeError, ValueError, RecursionError) as error:
        yield f"extra_body cannot be sent as JSON: {error}"
        return
    yield from character_problems("extra_body", value)


_FIELD_RULES = {
    "prompt": _prompt_problems,
    "model": lambda value: _text_problems("model", value),
    "size": lambda value: _text_problems("size", value),
    "quality": lambda value: _text_problems("quality", value),
    "n": lambda value: _whole_number_problems("n", value, 1, MAX_IMAGES, optional=False),
    "background": lambda value: _choice_problems("background", value, BACKGROUNDS),
    "output_format": lambda value: _choice_problems("output_format", value, OUTPUT_FORMATS),
    "output_compression": lambda value: _whole_number_problems(
        "output_compression", value, 0, 100, optional=True
    ),
    "moderation": lambda value: _choice_problems("moderation", value, MODERATIONS),
    "stream": lambda value: _flag_problems("stream", value),
    "partial_images": lambda value: _whole_number_problems("partial_images", value, 0, 3, optional=True),
    "extra_body": _extra_body_problems,
}
