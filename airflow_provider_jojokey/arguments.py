"""What an operator's argument says: when the Dag is parsed, and once templates are rendered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def is_literal(value: Any) -> bool:
    """Tell whether ``value`` is known now: no template, and nothing that another task will give."""
    if value is None or isinstance(value, (int, float)):
        return True
    if isinstance(value, str):
        return "{{" not in value and "{%" not in value
    if isinstance(value, Mapping):
        return all(is_literal(one) for one in value.values())
    return isinstance(value, (list, tuple)) and all(is_literal(one) for one in value)


def filled(value: Any) -> Any:
    """Return ``value``, or ``None`` where a template rendered to nothing: ``"{{ params.background }}"``."""
    return None if isinstance(value, str) and value.strip() in ("", "None") else value


def whole_number(name: str, value: Any) -> Any:
    """Return the number that a template, or a CSV file, gave as text.

    :raises ValueError: if it is none
    """
    if not isinstance(value, str):
        return value
    try:
        return int(value)
    except ValueError:
        raise ValueError(f"{name} must be a whole number, not {value[:50]!r}") from None
