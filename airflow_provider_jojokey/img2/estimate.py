"""Estimate the tokens and seconds of a request before it is sent.

The token counts are the published ones for 1024x1024, scaled by area. The durations were measured at that size.
Both are estimates for warnings and budgets, never the basis of a bill.
"""

from __future__ import annotations

from typing import Protocol

from airflow_provider_jojokey.img2.rules import DEFAULT_PARTIAL_IMAGES


class Estimable(Protocol):
    """The fields of a request that an estimate needs."""

    @property
    def prompt(self) -> str: ...  # noqa: D102
    @property
    def quality(self) -> str: ...  # noqa: D102
    @property
    def n(self) -> int: ...  # noqa: D102
    @property
    def stream(self) -> bool: ...  # noqa: D102
    @property
    def partial_images(self) -> int | None: ...  # noqa: D102
    @property
    def pixels(self) -> tuple[int, int] | None: ...  # noqa: D102


SQUARE_PIXELS = 1024 * 1024
# With "auto", the model chooses the quality. "medium" is the closest guess.
OUTPUT_TOKENS = {"low": 196, "medium": 1_756, "auto": 1_756, "high": 7_024}
SECONDS = {"low": 10.0, "medium": 48.0, "auto": 48.0, "high": 126.0}
PARTIAL_IMAGE_TOKENS = 100
"""Additional output tokens for each preview of an event stream (API reference)."""

EDGE_TIMEOUT = 100.0
"""Seconds without data after which Cloudflare returns 524 instead of the gateway's response (100 to 125)."""


def expected_output_tokens(request: Estimable) -> int:
    """Return the estimated number of output tokens of a request."""
    each = OUTPUT_TOKENS.get(request.quality, OUTPUT_TOKENS["high"]) * _area(request.pixels)
    if request.stream:
        previews = DEFAULT_PARTIAL_IMAGES if request.partial_images is None else request.partial_images
        each += PARTIAL_IMAGE_TOKENS * previews
    return round(each * request.n)


def expected_seconds(request: Estimable) -> float:
    """Return the estimated duration of a request in seconds."""
    return _seconds(request.quality, request.pixels)


def duration_factor(quality: str, pixels: tuple[int, int] | None) -> float:
    """Return the duration relative to 1024x1024 in high quality, at least 1.

    :param pixels: width and height; ``None`` for ``"auto"``
    """
    return max(1.0, _seconds(quality, pixels) / SECONDS["high"])


def _seconds(quality: str, pixels: tuple[int, int] | None) -> float:
    return SECONDS.get(quality, SECONDS["high"]) * max(1.0, _area(pixels))


def _area(pixels: tuple[int, int] | None) -> float:
    width, height = pixels or (1024, 1024)
    return width * height / SQUARE_PIXELS


def expected_usage(request: Estimable) -> dict[str, int]:
    """Return the estimated ``usage`` of a request, as in a response."""
    # Three bytes per token: right for Chinese, slightly too many tokens for English.
    tokens = len(request.prompt.encode("utf-8", "replace")) // 3 + 10
    output = expected_output_tokens(request)
    return {"input_tokens": tokens, "output_tokens": output, "total_tokens": tokens + output}
