"""What a request asks for: the rules of gpt-image-2 and of the gateway in front of it, and what an image costs."""

# ruff: noqa: RUF001 - the gateway itself looks for the sign
from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

DEFAULT_SIZE = (1024, 1024)
MAX_PROMPT = 32_000
MAX_EDGE = 3840
MIN_PIXELS, MAX_PIXELS = 655_360, 8_294_400
QUALITIES = ("low", "medium", "high", "auto")
FORMATS = ("png", "jpeg", "webp")
BACKGROUNDS = ("auto", "opaque", "transparent")
MODERATION = ("auto", "low")

# Published for 1024x1024; other sizes are scaled by their area, which is an estimate: the real figures are not
# published for each size.
_OUTPUT_TOKENS = {"low": 196, "medium": 1756, "high": 7024}
_PARTIAL_IMAGE_TOKENS = 100

# US dollars for a million tokens.
_TEXT_PRICE, _IMAGE_PRICE = 5.0, 30.0

_FIELDS = frozenset(
    [
        "model",
        "prompt",
        "size",
        "quality",
        "n",
        "response_format",
        "output_format",
        "output_compression",
        "background",
        "moderation",
        "stream",
        "partial_images",
        "user",
        "style",
        "safety_identifier",
    ]
)


class RefusalError(Exception):
    """The request is turned down before any image is made, and nothing is charged.

    :param status: the HTTP status.
    :param message: for people.
    :param code: OpenAI's or the gateway's error code; may be empty.
    :param kind: the error's ``type``.
    :param param: the parameter at fault; may be empty.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str = "",
        kind: str = "invalid_request_error",
        param: str = "",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.kind = kind
        self.param = param


@dataclass(frozen=True)
class Usage:
    """What was consumed, in tokens."""

    input_tokens: int
    output_tokens: int

    @property
    def usd(self) -> float:
        """The price in US dollars."""
        return (self.input_tokens * _TEXT_PRICE + self.output_tokens * _IMAGE_PRICE) / 1_000_000

    def to_json(self) -> dict[str, Any]:
        """Return the ``usage`` object of a reply."""
        return {
            "input_tokens": self.input_tokens,
            "input_tokens_details": {"image_tokens": 0, "text_tokens": self.input_tokens},
            "output_tokens": self.output_tokens,
            "output_tokens_details": {"image_tokens": self.output_tokens, "text_tokens": 0},
            "total_tokens": self.input_tokens + self.output_tokens,
        }


@dataclass(frozen=True)
class Order:
    """A request that is valid."""

    model: str
    prompt: str
    width: int
    height: int
    quality: str
    n: int
    output_format: str
    output_compression: int
    background: str
    stream: bool
    partial_images: int

    @property
    def size(self) -> str:
        """The size in pixels, ``WIDTHxHEIGHT``."""
        return f"{self.width}x{self.height}"

    def usage(self, images: int | None = None) -> Usage:
        """Return what ``images`` of this order cost; all of them by default."""
        count = self.n if images is None else images
        each = _OUTPUT_TOKENS[self.quality] * self.width * self.height / (DEFAULT_SIZE[0] * DEFAULT_SIZE[1])
        partial = _PARTIAL_IMAGE_TOKENS * self.partial_images if self.stream else 0
        return Usage(estimate_tokens(self.prompt), (max(1, round(each)) + partial) * count)


def estimate_tokens(prompt: str) -> int:
    """Return about how many tokens ``prompt`` is: a Chinese character counts as one, four of others as one."""
    wide = sum(1 for character in prompt if ord(character) >= 0x2E80)
    return 7 + wide + math.ceil((len(prompt) - wide) / 4)


def read_order(body: object, *, models: Collection[str], accepts_response_format: bool) -> Order:
    """Check a request body as the gateway and then the model do.

    :param body: the parsed JSON.
    :param models: the models there are channels for.
    :param accepts_response_format: whether the upstream takes ``response_format``.
    :raises RefusalError: with the status and error the real ones answer.
    """
    if not isinstance(body, dict):
        raise RefusalError(400, "The request body is not a JSON object.", kind="new_api_error")
    model, n = _check_as_gateway(body, models)
    _check_names(body, accepts_response_format)
    prompt = body.get("prompt")
    if not isinstance(prompt, str) or not prompt:
        raise RefusalError(
            400, "Missing required parameter: 'prompt'.", code="missing_required_parameter", param="prompt"
        )
    if len(prompt) > MAX_PROMPT:
        raise RefusalError(
            400,
            f"Invalid 'prompt': {len(prompt)} characters, the most is {MAX_PROMPT}.",
            code="string_above_max_length",
            param="prompt",
        )
    if not 1 <= n <= 10:
        raise RefusalError(400, f"Invalid 'n': {n} is not from 1 to 10.", code="invalid_value", param="n")
    quality = _one_of(body, "quality", QUALITIES)
    output_format = _one_of(body, "output_format", FORMATS, default="png")
    background = _one_of(body, "background", BACKGROUNDS)
    _one_of(body, "moderation", MODERATION)
    compression = _integer(body, "output_compression", 0, 100, default=100)
    if output_format == "png" and compression != 100:
        raise RefusalError(
            400,
            "Invalid 'output_compression': PNG images cannot be compressed with loss.",
            code="invalid_value",
            param="output_compression",
        )
    if background == "transparent" and output_format == "jpeg":
        raise RefusalError(
            400,
            "Invalid 'background': a JPEG image cannot be transparent.",
            code="invalid_value",
            param="background",
        )
    stream = body.get("stream")
    if stream not in (None, True, False):
        raise RefusalError(400, "Invalid 'stream': a boolean is needed.", code="invalid_type", param="stream")
    width, height = _size(body)
    return Order(
        model=model,
        prompt=prompt,
        width=width,
        height=height,
        quality="medium" if quality == "auto" else quality,
        n=n,
        output_format=output_format,
        output_compression=compression,
        background=background,
        stream=bool(stream),
        partial_images=_integer(body, "partial_images", 0, 3, default=0),
    )


def _check_as_gateway(body: Mapping[str, Any], models: Collection[str]) -> tuple[str, int]:
    """Return the model and n; what fails here is the gateway's own 500 or 503, before any upstream is asked."""
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise RefusalError(500, "The model name is missing.", code="invalid_request", kind="new_api_error")
    n = 1 if body.get("n") is None else body["n"]
    if not isinstance(n, int) or isinstance(n, bool):
        raise RefusalError(
            500, "The field n is not an integer.", code="invalid_request", kind="new_api_error"
        )
    if n > 128:
        raise RefusalError(500, "n must be from 1 to 128.", code="invalid_request", kind="new_api_error")
    if "×" in str(body.get("size", "")):
        raise RefusalError(
            500,
            "The size must be written with the letter x, not ×.",
            code="invalid_request",
            kind="new_api_error",
        )
    if model not in models:
        raise RefusalError(
            503,
            f"No available channel for model {model} under group default (distributor)",
            code="model_not_found",
            kind="new_api_error",
        )
    return model, n


def _check_names(body: Mapping[str, Any], accepts_response_format: bool) -> None:
    known = _FIELDS if accepts_response_format else _FIELDS - {"response_format"}
    for name in body:
        if name not in known:
            raise RefusalError(400, f"Unknown parameter: '{name}'.", code="unknown_parameter", param=name)
    if body.get("response_format") not in (None, "b64_json", "url"):
        raise RefusalError(400, "Invalid 'response_format'.", code="invalid_value", param="response_format")


def _one_of(body: Mapping[str, Any], name: str, allowed: Collection[str], default: str = "auto") -> str:
    value = body.get(name)
    if value is None:
        return default
    if value not in allowed:
        options = ", ".join(f"'{option}'" for option in allowed)
        raise RefusalError(
            400,
            f"Invalid value: {value!r}. Supported values are: {options}.",
            code="invalid_value",
            param=name,
        )
    return str(value)


def _integer(body: Mapping[str, Any], name: str, low: int, high: int, default: int) -> int:
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise RefusalError(
            400,
            f"Invalid '{name}': an integer from {low} to {high} is needed.",
            code="invalid_value",
            param=name,
        )
    return value


def _size(body: Mapping[str, Any]) -> tuple[int, int]:
    value = body.get("size")
    if value is None or value == "auto":
        return DEFAULT_SIZE
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", value) if isinstance(value, str) else None
    if found is None:
        raise RefusalError(400, f"Invalid size {value!r}.", code="invalid_value", param="size")
    width, height = int(found[1]), int(found[2])
    wrong = ""
    if width % 16 or height % 16:
        wrong = "width and height must be multiples of 16"
    elif max(width, height) > MAX_EDGE:
        wrong = f"no edge may be longer than {MAX_EDGE} pixels"
    elif not MIN_PIXELS <= width * height <= MAX_PIXELS:
        wrong = f"the area must be from {MIN_PIXELS} to {MAX_PIXELS} pixels"
    elif max(width, height) > 3 * min(width, height):
        wrong = "the long edge may be at most three times the short one"
    if wrong:
        raise RefusalError(400, f"Invalid size '{value}': {wrong}.", code="invalid_value", param="size")
    return width, height
