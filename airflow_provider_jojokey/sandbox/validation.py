"""Check requests by the rules of gpt-image-2 and of the gateway, and compute their price."""

# ruff: noqa: RUF001 - the gateway rejects this sign
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

# Published for 1024x1024. Other sizes are scaled by their area, which is an estimate.
_OUTPUT_TOKENS = {"low": 196, "medium": 1756, "high": 7024}
_PARTIAL_IMAGE_TOKENS = 100

# US dollars per million tokens.
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


class RejectedError(Exception):
    """The gateway rejects the request before it generates an image, and charges nothing.

    :param status: the HTTP status.
    :param message: the message of the error.
    :param code: OpenAI's or the gateway's error code; may be empty.
    :param kind: the error's ``type``.
    :param param: the invalid parameter; may be empty.
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
    """The tokens of a request."""

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
class ValidRequest:
    """A request that passed all checks, with defaults filled in."""

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
        """Return the usage of ``images`` images; by default of all."""
        count = self.n if images is None else images
        each = _OUTPUT_TOKENS[self.quality] * self.width * self.height / (DEFAULT_SIZE[0] * DEFAULT_SIZE[1])
        partial = _PARTIAL_IMAGE_TOKENS * self.partial_images if self.stream else 0
        return Usage(estimate_tokens(self.prompt), (max(1, round(each)) + partial) * count)


def estimate_tokens(prompt: str) -> int:
    """Estimate the tokens of ``prompt``: one per Chinese character, one per four other characters."""
    wide = sum(1 for character in prompt if ord(character) >= 0x2E80)
    return 7 + wide + math.ceil((len(prompt) - wide) / 4)


def validate(body: object, *, models: Collection[str], accepts_response_format: bool) -> ValidRequest:
    """Check a request body like the gateway, and then like the model.

    :param body: the parsed JSON.
    :param models: the models that have a channel.
    :param accepts_response_format: whether the upstream takes ``response_format``.
    :raises RejectedError: with the status and error of the real gateway or model.
    """
    if not isinstance(body, dict):
        raise RejectedError(400, "The request body is not a JSON object.", kind="new_api_error")
    model, n = _check_as_gateway(body, models)
    _check_names(body, accepts_response_format)
    prompt = body.get("prompt")
    if not isinstance(prompt, str) or not prompt:
        raise RejectedError(
            400, "Missing required parameter: 'prompt'.", code="missing_required_parameter", param="prompt"
        )
    if len(prompt) > MAX_PROMPT:
        raise RejectedError(
            400,
            f"Invalid 'prompt': {len(prompt)} characters, the maximum is {MAX_PROMPT}.",
            code="string_above_max_length",
            param="prompt",
        )
    if not 1 <= n <= 10:
        raise RejectedError(
            400, f"Invalid 'n': {n} is not between 1 and 10.", code="invalid_value", param="n"
        )
    quality = _choice(body, "quality", QUALITIES)
    output_format = _choice(body, "output_format", FORMATS, default="png")
    background = _choice(body, "background", BACKGROUNDS)
    _choice(body, "moderation", MODERATION)
    compression = _integer(body, "output_compression", 0, 100, default=100)
    if output_format == "png" and compression != 100:
        raise RejectedError(
            400,
            "Invalid 'output_compression': PNG has no lossy compression.",
            code="invalid_value",
            param="output_compression",
        )
    if background == "transparent" and output_format == "jpeg":
        raise RejectedError(
            400,
            "Invalid 'background': a JPEG image cannot be transparent.",
            code="invalid_value",
            param="background",
        )
    stream = body.get("stream")
    if stream not in (None, True, False):
        raise RejectedError(400, "Invalid 'stream': not a boolean.", code="invalid_type", param="stream")
    width, height = _size(body)
    return ValidRequest(
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
    """Return the model and n, or raise the 500 or 503 that the gateway reports before it asks the upstream."""
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise RejectedError(500, "The model name is missing.", code="invalid_request", kind="new_api_error")
    n = 1 if body.get("n") is None else body["n"]
    if not isinstance(n, int) or isinstance(n, bool):
        raise RejectedError(
            500, "The field n is not an integer.", code="invalid_request", kind="new_api_error"
        )
    if n > 128:
        raise RejectedError(500, "n must be from 1 to 128.", code="invalid_request", kind="new_api_error")
    if "×" in str(body.get("size", "")):
        raise RejectedError(
            500,
            "The size must be written with the letter x, not ×.",
            code="invalid_request",
            kind="new_api_error",
        )
    if model not in models:
        raise RejectedError(
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
            raise RejectedError(400, f"Unknown parameter: '{name}'.", code="unknown_parameter", param=name)
    if body.get("response_format") not in (None, "b64_json", "url"):
        raise RejectedError(400, "Invalid 'response_format'.", code="invalid_value", param="response_format")


def _choice(body: Mapping[str, Any], name: str, allowed: Collection[str], default: str = "auto") -> str:
    value = body.get(name)
    if value is None:
        return default
    if value not in allowed:
        options = ", ".join(f"'{option}'" for option in allowed)
        raise RejectedError(
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
        raise RejectedError(
            400,
            f"Invalid '{name}': not an integer from {low} to {high}.",
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
        raise RejectedError(400, f"Invalid size {value!r}.", code="invalid_value", param="size")
    width, height = int(found[1]), int(found[2])
    problem = ""
    if width % 16 or height % 16:
        problem = "width and height must be multiples of 16"
    elif max(width, height) > MAX_EDGE:
        problem = f"no edge may be longer than {MAX_EDGE} pixels"
    elif not MIN_PIXELS <= width * height <= MAX_PIXELS:
        problem = f"the area must be from {MIN_PIXELS} to {MAX_PIXELS} pixels"
    elif max(width, height) > 3 * min(width, height):
        problem = "the long edge may be at most three times the short one"
    if problem:
        raise RejectedError(400, f"Invalid size '{value}': {problem}.", code="invalid_value", param="size")
    return width, height
