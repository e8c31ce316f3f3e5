"""Read how long a server asks clients to wait, from ``Retry-After`` and its variants."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from itertools import islice
from typing import Any

MAX_SECONDS = 1e6
"""Ignore longer waits, which are mistakes."""
MAX_NESTING = 4
MAX_FIELDS = 100

_FIRST_TIMESTAMP = 1e9
"""Larger numbers of seconds are times since 1970: 1e9 s are 32 years."""

# A date contains a comma, and commas also join the values of repeated headers.
_VALUES = re.compile(r"[A-Za-z]{3,9},[^,]+|[^,]+")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)")
_PART = rf"({_NUMBER.pattern})\s*(ns|us|µs|ms|s|secs?|seconds?|m|mins?|minutes?|h|hrs?|hours?|d|days?)"
_DURATION = re.compile(rf"(?:{_PART}(?:\s+|(?=[0-9.])|$))+", re.IGNORECASE)
_PARTS = re.compile(_PART, re.IGNORECASE)
_ISO_DURATION = re.compile(
    r"P(?:([0-9]+)D)?(?:T(?:([0-9]+)H)?(?:([0-9]+)M)?(?:([0-9]+(?:\.[0-9]*)?)S)?)?", re.IGNORECASE
)
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}

_BODY_NAMES = {
    "retryafter": 1.0,
    "retryafterseconds": 1.0,
    "retryafterms": 0.001,
    "retrydelay": 1.0,
    "resetsinseconds": 1.0,
}
"""Unit of a number under a name, which is compared without case and punctuation."""
_RESET = re.compile(r"\b(?:x-)?rate-?limit\b.*\breset\b")


def read_retry_after(
    headers: Mapping[str, str], document: Any = None, *, limited: bool = False
) -> float | None:
    """Return the seconds to wait before another request, or ``None`` if the response does not say.

    If there are several values, return the longest, which satisfies all of them.

    :param headers: the response's headers, with lower-case names
    :param document: the response's body as JSON
    :param limited: whether the response reports a rate limit, so that the times at which limits reset count
    """
    # Prefer the server's clock for dates, because the local clock may differ.
    server_time = _date(headers.get("date", ""))
    now = time.time() if server_time is None else server_time
    sources = [_from_headers(headers, now), _from_body(document, now)]
    if limited:
        sources.append(_from_resets(headers, now))
    for source in sources:
        if found := list(source):
            return max(found)
    return None


def _from_headers(headers: Mapping[str, str], now: float) -> Iterator[float]:
    # The first is the same wait as Retry-After, which has only whole seconds.
    for names, unit in (
        (("retry-after-ms", "x-ms-retry-after-ms"), 0.001),
        (("retry-after", "x-retry-after"), 1.0),
    ):
        values = [value for name in names for value in _split(headers.get(name))]
        if found := [seconds for value in values if (seconds := _seconds(value, now, unit)) is not None]:
            yield from found
            return


def _from_resets(headers: Mapping[str, str], now: float) -> Iterator[float]:
    """Yield the times until exhausted limits reset: ``x-ratelimit-reset-requests: 6m0s``, ``ratelimit-reset: 30``."""
    for name, text in headers.items():
        remaining = headers.get(name.replace("reset", "remaining"), "0").strip()
        if _RESET.search(name) and remaining in ("0", "0.0"):
            for value in _split(text):
                if seconds := _seconds(value, now):
                    yield seconds


def _from_body(value: Any, now: float, depth: int = 0) -> Iterator[float]:
    if depth > MAX_NESTING:
        return
    if isinstance(value, list):
        for element in value[:MAX_FIELDS]:
            yield from _from_body(element, now, depth + 1)
    if not isinstance(value, Mapping):
        return
    for name, inner in islice(value.items(), MAX_FIELDS):
        unit = _BODY_NAMES.get(re.sub("[^a-z]", "", name[:100].lower()))
        if unit is None:
            yield from _from_body(inner, now, depth + 1)
        elif (
            isinstance(inner, (str, int, float))
            and not isinstance(inner, bool)
            and (seconds := _seconds(str(inner), now, unit)) is not None
        ):
            yield seconds


def _split(value: str | None) -> list[str]:
    return [part.strip() for part in _VALUES.findall((value or "")[:500])]


def _seconds(text: str, now: float, unit: float = 1.0) -> float | None:
    """Return the seconds to wait: a number, a duration, or the time until a date.

    :param now: the time to compare dates with, in seconds since 1970
    :param unit: the unit of a plain number, in seconds
    """
    text = text.strip()[:100]
    seconds: float | None
    if _NUMBER.fullmatch(text):
        seconds = float(text) * unit
        if seconds >= _FIRST_TIMESTAMP:
            milliseconds = seconds >= 1000 * _FIRST_TIMESTAMP
            seconds = seconds * (0.001 if milliseconds else 1.0) - now
    elif _DURATION.fullmatch(text):
        seconds = sum(float(number) * _unit(name) for number, name in _PARTS.findall(text))
    elif (parts := _ISO_DURATION.fullmatch(text)) and any(parts.groups()):
        seconds = sum(
            float(part or 0) * _UNITS[name] for part, name in zip(parts.groups(), "dhms", strict=True)
        )
    else:
        at = _date(text)
        seconds = None if at is None else at - now
    return max(0.0, seconds) if seconds is not None and seconds < MAX_SECONDS else None


def _unit(name: str) -> float:
    name = name.lower()
    return _UNITS[name] if name in _UNITS else _UNITS[name[0]]


def _date(text: str) -> float | None:
    """Return the time of an HTTP or ISO 8601 date, in seconds since 1970."""
    for parse in (parsedate_to_datetime, datetime.fromisoformat):
        try:
            at = parse(text[:100])
            return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
        except (TypeError, ValueError, OverflowError):
            continue
    return None
