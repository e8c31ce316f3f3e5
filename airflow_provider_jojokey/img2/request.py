"""What is asked for: one image request, checked before anything is sent.

The rules are those of the vendor's page and of OpenAI's API reference for ``gpt-image-2``.
They are strict where the answer is known (a bad request is refused here, with a way out) and
silent where only the gateway can know: model and quality names change faster than this package.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, fields
from typing import Any

from airflow_provider_jojokey.img2.estimate import EDGE_PATIENCE, expected_seconds

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
_NEARLY_A_SIZE = re.compile(r"\s*([1-9][0-9]{0,5})\s*[x×*X✕]\s*([1-9][0-9]{0,5})\s*(?:px)?\s*")  # noqa: RUF001


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """One request for images, valid by construction.

    :param prompt: what to draw, 1 to 32,000 characters
    :param model: the model's name at the gateway
    :param size: ``"auto"`` or ``"WIDTHxHEIGHT"`` in pixels
    :param quality: ``"low"``, ``"medium"``, ``"high"`` or ``"auto"``; other names are left to the gateway
    :param n: how many images, 1 to 10
    :param background: ``"auto"``, ``"opaque"`` or ``"transparent"`` (PNG and WebP only)
    :param output_format: ``"png"`` (the API's default), ``"jpeg"`` or ``"webp"``
    :param output_compression: 0 to 100, JPEG and WebP only
    :param moderation: ``"auto"`` or ``"low"``
    :param stream: ask for the event stream, which keeps a long generation's connection alive
    :param partial_images: previews in an event stream, 0 to 3 (by default 2); each costs some 100
        output tokens, and keeps the connection from falling silent
    :param extra_body: further fields of the request body, as the gateway understands them
    :raises ValueError: if a rule is broken; the message lists every problem and a way out
    """

    prompt: str
    _: KW_ONLY
    model: str = DEFAULT_MODEL
    size: str = "1024x1024"
    quality: str = "low"
    n: int = 1
    background: str | None = None
    output_format: str | None = None
    output_compression: int | None = None
    moderation: str | None = None
    stream: bool = False
    partial_images: int | None = None
    extra_body: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        found = list(problems({field.name: getattr(self, field.name) for field in _FIELDS}))
        if found:
            raise ValueError("; ".join(found))

    @property
    def pixels(self) -> tuple[int, int] | None:
        """Width and height in pixels, or ``None`` for ``"auto"``."""
        return parse_size(self.size)

    def body(self) -> dict[str, Any]:
        """Return the JSON body, without ``response_format``, which is the client's to negotiate."""
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": self.prompt,
            "size": self.size,
            "quality": self.quality,
            "n": self.n,
        }
        for name in ("background", "output_format", "output_compression", "moderation"):
            if (value := getattr(self, name)) is not None:
                body[name] = value
        if self.stream:
            body["stream"] = True
            body["partial_images"] = (
                DEFAULT_PARTIAL_IMAGES if self.partial_images is None else self.partial_images
            )
        return {**body, **(self.extra_body or {})}

    def fingerprint(self, host: str) -> str:
        """Return 64 hex digits that are equal for equal images asked of the same ``host``.

        All that changes the image counts. How the reply travels (``stream``, ``partial_images``,
        ``response_format``) and who pays (the token) do not.
        """
        body = self.body()
        for transport in ("stream", "partial_images", "response_format"):
            body.pop(transport, None)
        canonical = json.dumps([host, body], sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()

    def warnings(self) -> list[str]:
        """Return what is unusual about the request but left to the gateway, a sentence each."""
        unusual = []
        if not _knows(self.model):
            unusual.append(
                f"model={self.model!r} is not one this package knows ({DEFAULT_MODEL}): "
                "its limits are not checked here, the gateway decides"
            )
        if self.quality not in QUALITIES:
            unusual.append(
                f"quality={self.quality!r} is not a known quality ({', '.join(QUALITIES)}): the gateway decides"
            )
        seconds = expected_seconds(self)
        if seconds > EDGE_PATIENCE and not self.stream:
            unusual.append(
                f"{self.size} at quality {self.quality} takes about {seconds:.0f} s, and Cloudflare gives up after "
                "100 to 125 s with a 524 that is billed all the same. stream=True keeps the connection alive "
                "where the gateway knows it; lower quality or a smaller size is quicker"
            )
        return unusual


_FIELDS = fields(ImageRequest)


def problems(values: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with ``values``, the fields of an :class:`ImageRequest` known so far.

    A field that is missing is not checked, and neither is a rule that needs it: so a Dag's
    literals can be checked when it is parsed, before its templates have values.
    """
    for name in _FIELD_RULES:
        if name in values:
            yield from _FIELD_RULES[name](values[name])
    if isinstance(size := values.get("size"), str):
        yield from _size_problems(size, _knows(values.get("model", DEFAULT_MODEL)))
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
    edges = range(EDGE_STEP, MAX_EDGE + 1, EDGE_STEP)
    nearest = min(
        ((w, h) for w in edges for h in edges if not list(_pixel_problems(w, h))),
        key=lambda edge: math.log(edge[0] / width) ** 2 + math.log(edge[1] / height) ** 2,
    )
    return f"{nearest[0]}x{nearest[1]}"


def _knows(model: Any) -> bool:
    return isinstance(model, str) and model.startswith(DEFAULT_MODEL)


def _size_problems(size: str, known_model: bool) -> Iterator[str]:
    if size == "auto":
        return
    pixels = parse_size(size)
    if pixels is None:
        nearly = _NEARLY_A_SIZE.fullmatch(size)
        way_out = f"; write {nearest_size(int(nearly[1]), int(nearly[2]))!r}" if nearly else ""
        yield f"size={size[:40]!r} is neither 'auto' nor 'WIDTHxHEIGHT' in pixels with a plain x{way_out}"
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


def _prompt_problems(value: Any) -> Iterator[str]:
    if not isinstance(value, str):
        yield f"prompt must be text, not {type(value).__name__}"
    elif not value.strip():
        yield "prompt is empty: say what to draw"
    elif len(value) > MAX_PROMPT_CHARACTERS:
        yield f"prompt has {len(value):,} characters; the API takes at most {MAX_PROMPT_CHARACTERS:,}"


def _text_problems(name: str, value: Any) -> Iterator[str]:
    if not isinstance(value, str) or not value.strip():
        yield f"{name} must be text, not {value!r}"


def _choice_problems(name: str, value: Any, choices: tuple[str, ...]) -> Iterator[str]:
    if value is not None and value not in choices:
        yield f"{name} must be one of {', '.join(choices)}, not {value!r}"


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
    if own := sorted(set(value) & {field.name for field in _FIELDS}):
        yield f"extra_body repeats {', '.join(own)}: use the argument of that name, which is checked"
    try:
        json.dumps(value, allow_nan=False, sort_keys=True)  # as it is sent, and as it is fingerprinted
    except (TypeError, ValueError) as error:
        yield f"extra_body cannot be sent as JSON: {error}"


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
    "partial_images": lambda value: _whole_number_problems("partial_images", value, 0, 3, optional=True),
    "extra_body": _extra_body_problems,
}
