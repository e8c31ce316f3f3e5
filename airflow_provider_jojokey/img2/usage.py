"""Normalize the token usage of a response.

Gateways write numbers as strings and floats, use the field names of other APIs, and report unknown values as
zero. Receipts, budgets and XComs rely on plain integers under the names of OpenAI's Images API.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from airflow_provider_jojokey.img2.json_text import parse_json

MAX_TOKENS = 10**12
"""No request uses more. Larger numbers are mistakes, and some JSON parsers cannot read them."""

_NAMES = {
    "input_tokens": ("input_tokens", "prompt_tokens", "inputTokens", "promptTokens", "promptTokenCount"),
    "output_tokens": (
        "output_tokens",
        "completion_tokens",
        "outputTokens",
        "completionTokens",
        "candidatesTokenCount",
    ),
    "total_tokens": ("total_tokens", "totalTokens", "totalTokenCount"),
}
_DETAILS = {
    "input_tokens_details": (
        "input_tokens_details",
        "prompt_tokens_details",
        "input_token_details",
        "inputTokensDetails",
        "promptTokensDetails",
    ),
    "output_tokens_details": (
        "output_tokens_details",
        "completion_tokens_details",
        "output_token_details",
        "outputTokensDetails",
        "completionTokensDetails",
    ),
}
_DETAIL_NAMES = ("text_tokens", "image_tokens", "cached_tokens", "reasoning_tokens", "audio_tokens")
_PLACES = ("usage", "usageMetadata", "usage_metadata")
_WRAPPERS = ("data", "result", "response", "output", "item", "images", "metadata")
MAX_NESTING = 5

Usage = dict[str, Any]


def find_usage(document: Any, depth: int = 0) -> Usage | None:
    """Return the normalized usage that a JSON document reports, or ``None``.

    If only the elements of a list report it, return their sum.
    """
    if depth > MAX_NESTING:
        return None
    if isinstance(document, list):
        total = latest = None
        for element in document:
            if (usage := find_usage(element, depth + 1)) is not None:
                total, latest = add_unless_repeated(total, latest, usage), usage
        return total
    if not isinstance(document, dict):
        return None
    for name in _PLACES:
        reported = _from_json(document.get(name))
        if (usage := normalize(reported) or find_usage(reported, depth + 1)) is not None:
            return usage
    inner = (find_usage(document.get(name), depth + 1) for name in _WRAPPERS)
    return next((usage for usage in inner if usage is not None), None)


def _from_json(value: Any) -> Any:
    return parse_json(value) if isinstance(value, str) and len(value) < 10_000 else value


def normalize(usage: Any) -> Usage | None:
    """Return ``usage`` as integers under canonical names, or ``None`` if it has no information.

    Zeros alone mean "unknown": every image takes tokens, and some proxies report unknown usage as zero.
    """
    if not isinstance(usage, dict):
        return None
    known = {name: _first_number(usage, names) for name, names in _NAMES.items()}
    result: Usage = {name: value for name, value in known.items() if value is not None}
    if len(result) < 2 and "total_tokens" not in result:
        return None  # the response was interrupted within the usage: a sum would be too low
    tokens = sum(value for name, value in result.items() if name != "total_tokens")
    result["total_tokens"] = max(result.get("total_tokens", 0), tokens)
    if not any(result.values()):
        return None
    for name, names in _DETAILS.items():
        reported = [_parts(usage[alias]) for alias in names if isinstance(usage.get(alias), dict)]
        if parts := next(
            (parts for parts in reported if any(parts.values())), reported[0] if reported else {}
        ):
            result[name] = parts
    return result


def _parts(details: Mapping[str, Any]) -> dict[str, int]:
    parts = {part: _whole_number(details.get(part)) for part in _DETAIL_NAMES}
    return {part: value for part, value in parts.items() if value is not None}


def add(first: Usage | None, second: Usage | None) -> Usage | None:
    """Return the sum of two normalized usages; ``None`` is unknown and adds nothing."""
    if first is None or second is None:
        return first or second
    total: Usage = dict(first)
    for name, value in second.items():
        if isinstance(value, dict):
            total[name] = add(total.get(name), value)
        else:
            total[name] = total.get(name, 0) + value
    return total


def add_unless_repeated(total: Usage | None, latest: Usage | None, usage: Usage | None) -> Usage | None:
    """Return the sum of the usage of several images.

    new-api repeats the usage of the whole request for each image, input tokens included.

    :param total: the sum so far
    :param latest: the usage that was added last
    :param usage: the usage to add
    """
    repeated = usage is not None and usage == latest and usage.get("input_tokens")
    return total if repeated else add(total, usage)


def _first_number(usage: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    """Return the first number that is not zero: some gateways write all names, and zero under those they don't use."""
    found = [number for name in names if (number := _whole_number(usage.get(name))) is not None]
    return next(filter(None, found), found[0] if found else None)


def _whole_number(value: Any) -> int | None:
    if isinstance(value, str) and len(value) <= 20:
        try:
            value = float(value.strip().replace(",", ""))
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return math.ceil(value) if 0 <= value <= MAX_TOKENS else None
