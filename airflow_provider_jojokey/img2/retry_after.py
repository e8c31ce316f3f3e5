"""Read how long a server asks clients to wait, from ``Retry-After`` and its variants."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime
from typing import Any

MAX_SECONDS = 1e6
"""Ignore longer waits, which are mistakes."""

# A date contains a comma, and commas also join the values of repeated headers.
_VALUES = re.compile(r"[A-Za-z]{3,9},[^,]+|[^,]+")
_DURATION = re.compile(r"(-?[0-9]+(?:\.[0-9]*)?|-?\.[0-9]+)\s*(ms|s|sec|seconds|m|min)?", re.IGNORECASE)
_UNITS = {"ms": 0.001, "m": 60.0, "min": 60.0}


def read_retry_after(headers: Mapping[str, str], document: Any = None) -> float | None:
    """Return the seconds to wait before another request, or ``None`` if the response does not say.

    If there are several values, return the longest, which satisfies all of them.

    :param headers: the response's headers, with lower-case names
    :param document: the response's body as JSON
    """
    found = list(_from_headers(headers))
    if not found:
        found = list(_from_body(document))
    return max(found, default=None)


def _from_headers(headers: Mapping[str, str]) -> Iterator[float]:
    exact = [
        seconds
        for value in _split(headers.get("retry-after-ms"))
        if (seconds := _number(value, 0.001)) is not None
    ]
    if exact:  # the same wait as Retry-After, which has only whole seconds
        yield from exact
        return
    now = _date(headers.get("date", ""))
    for name in ("retry-after", "x-retry-after"):
        for value in _split(headers.get(name)):
            seconds = _number(value)
            if seconds is None and (at := _date(value)) is not None:
                # Prefer the server's clock, because the local clock may differ.
                seconds = max(0.0, at - (time.time() if now is None else now))
            if seconds is not None and seconds < MAX_SECONDS:
                yield seconds


def _from_body(document: Any) -> Iterator[float]:
    places = [document, document.get("error")] if isinstance(document, Mapping) else []
    for place in places:
        if not isinstance(place, Mapping):
            continue
        for name, unit in (("retry_after", 1.0), ("retryAfter", 1.0), ("retry_after_ms", 0.001)):
            value = place.get(name)
            usable = isinstance(value, (str, int, float)) and not isinstance(value, bool)
            if usable and (seconds := _number(str(value), unit)) is not None:
                yield seconds


def _split(value: str | None) -> list[str]:
    return [part.strip() for part in _VALUES.findall((value or "")[:500])]


def _number(text: str, unit: float = 1.0) -> float | None:
    found = _DURATION.fullmatch(text.strip()[:100])
    if not found:
        return None
    seconds = max(0.0, float(found[1])) * _UNITS.get((found[2] or "").lower(), unit)
    return seconds if seconds < MAX_SECONDS else None


def _date(text: str) -> float | None:
    try:
        return parsedate_to_datetime(text[:100]).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None
