"""Estimate the tokens and seconds of a request before it is sent.

Tokens are the published ones for 1024x1024, scaled by area; seconds were measured with such images. Both are
estimates for warnings and budgets, never for bills.
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
# The model chooses for "auto"; the middle is the least wrong.
OUTPUT_TOKENS = {"low": 196, "medium": 1_756, "auto": 1_756, "high": 7_024}
SECONDS = {"low": 10.0, "medium": 48.0, "auto": 48.0, "high": 126.0}
PARTIAL_IMAGE_TOKENS = 100
"""Output tokens that each preview of an event stream costs on top (API reference)."""

EDGE_PATIENCE = 100.0
"""Seconds of silence after which Cloudflare answers 524 in the gateway's place (100 to 125)."""


def expected_output_tokens(request: Estimable) -> int:
    """Return about how many output tokens a request will be billed."""
    each = OUTPUT_TOKENS.get(request.quality, OUTPUT_TOKENS["high"]) * _area(request)
    if request.stream:
        previews = DEFAULT_PARTIAL_IMAGES if request.partial_images is None else request.partial_images
        each += PARTIAL_IMAGE_TOKENS * previews
    return round(each * request.n)


def expected_seconds(request: Estimable) -> float:
    """Return about how many seconds a request will take."""
    return SECONDS.get(request.quality, SECONDS["high"]) * max(1.0, _area(request))


def duration_factor(request: Estimable) -> float:
    """Return how many times longer a request may take than 1024x1024 in high quality, at least 1."""
    return max(1.0, expected_seconds(request) / SECONDS["high"])


def _area(request: Estimable) -> float:
    width, height = request.pixels or (1024, 1024)
    return width * height / SQUARE_PIXELS


def expected_usage(request: Estimable) -> dict[str, int]:
    """Return about what a request will be billed, as in the ``usage`` of a response."""
    # Three bytes a token: a little more than English takes, and what Chinese takes.
    tokens = len(request.prompt.encode("utf-8", "replace")) // 3 + 10
    output = expected_output_tokens(request)
    return {"input_tokens": tokens, "output_tokens": output, "total_tokens": tokens + output}


def expected_tokens(request: Estimable) -> int:
    """Return about how many tokens a request will be billed, prompt and images together."""
    return expected_usage(request)["total_tokens"]
