"""Convert an operator's rendered arguments to the types they need.

Templates render to text, or to any Python object with ``render_template_as_native_obj=True``. Values from upstream
tasks keep their types.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import date, time
from decimal import Decimal
from numbers import Number
from pathlib import PurePath
from typing import Any
from uuid import UUID

from airflow_provider_jojokey.img2.rules import character_problems
from airflow_provider_jojokey.payments.options import (
    COST_LIMITS,
    COUNT_LIMITS,
    LIMITS,
    ON_UNKNOWN_OUTCOME,
    REUSE,
)
from airflow_provider_jojokey.store.extra_args import parse_extra_args

TEXTS = (
    "prompt",
    "s3_key",
    "s3_bucket",
    "model",
    "size",
    "quality",
    "background",
    "output_format",
    "moderation",
    "reuse",
    "on_unknown_outcome",
    "jojokey_conn_id",
    "aws_conn_id",
)
"""Arguments that are text."""

DEFAULTS: Mapping[str, Any] = {
    "size": "1024x1024",
    "quality": "low",
    "n": 1,
    "stream": False,
    "reuse": "run",
    "on_unknown_outcome": "fail",
    "max_in_flight": 8,
    "replace": False,
    "jojokey_conn_id": "jojokey_default",
}
"""Values for arguments that rendered to nothing."""

_REQUIRED = {
    "prompt": "describe the image",
    "s3_key": "end it with a name such as hero.png",
    "requests": "pass a list of dicts. If it comes from another task, that task has returned nothing",
}
_SCALARS = (int, float, Decimal, date, time, UUID, PurePath)
_WHOLE = re.compile(r"[+-]?[0-9]+(\.0*)?")
_FLAGS = {"true": True, "1": True, "false": False, "0": False}


def is_literal(value: Any) -> bool:
    """Return whether ``value`` is known when the Dag is parsed: neither a template nor another task's result."""
    if value is None or isinstance(value, (int, float, Decimal)):
        return True
    if isinstance(value, str):
        return not has_template(value)
    if isinstance(value, Mapping):
        return all(is_literal(entry) for entry in value.values())
    return isinstance(value, (list, tuple)) and all(is_literal(entry) for entry in value)


def is_default(name: str, value: Any) -> bool:
    """Return whether the argument ``name`` has its default, which needs no check."""
    if value is None:
        return True
    return (
        isinstance(value, (str, int)) and type(value) is type(DEFAULTS.get(name)) and value == DEFAULTS[name]
    )


def has_template(value: Any) -> bool:
    """Return whether ``value`` is text that contains Jinja syntax."""
    return isinstance(value, str) and ("{{" in value or "{%" in value)


def filled(value: Any) -> Any:
    """Return ``value``, or ``None`` if it is nothing.

    A template renders to nothing as ``""`` or ``"None"``. Tables of pandas have NaN in their empty cells.
    """
    if (isinstance(value, str) and value.strip() in ("", "None")) or is_nan(value):
        return None
    return None if type(value).__module__ == "jinja2.runtime" else value  # undefined, from a native template


def is_nan(value: Any) -> bool:
    """Return whether ``value`` is a number that is not a number."""
    return isinstance(value, Number) and str(value).lower().lstrip("-") in ("nan", "snan")


def converted(name: str, value: Any) -> Any:
    """Return the value of the argument ``name``, converted to its type.

    :param value: the rendered value; ``None``, ``""`` and ``"None"`` become the default
    :raises ValueError: if it can't be converted, or the argument has no default
    """
    convert = _CONVERTERS[name]
    if name in LIMITS and is_nan(value):  # a limit that was computed wrongly must not be no limit
        raise ValueError(f"{name} is not a number: {value}")
    value = filled(value)
    if value is None and name in _REQUIRED:
        raise ValueError(f"{name} is empty: {_REQUIRED[name]}")
    return DEFAULTS.get(name) if value is None else convert(name, value)


def text(name: str, value: Any) -> str:
    """Return text. Numbers and dates are formatted as in a template.

    :raises ValueError: if it is anything else, or Airflow's database can't store it
    """
    if not isinstance(value, (str, *_SCALARS)) or isinstance(value, bool):
        raise ValueError(f"{name} must be text, not {type(value).__name__}")
    written = str.__str__(value) if isinstance(value, str) else str(value)
    for problem in character_problems(name, written):
        raise ValueError(problem)
    return written


def whole_number(name: str, value: Any) -> Any:
    """Return a whole number, which a template or a CSV file may provide as text.

    :raises ValueError: if it is not a whole number
    """
    if type(value) is int or value is None:
        return value
    if isinstance(value, (str, int, float, Decimal)) and not isinstance(value, bool):
        written = str(value).strip()
        if _WHOLE.fullmatch(written):
            return int(written.partition(".")[0])
    raise ValueError(f"{name} must be a whole number, not {str(value)[:50]!r}")


def count(name: str, value: Any) -> int:
    """Return a whole number from 0.

    :raises ValueError: if it is anything else
    """
    number: int = whole_number(name, value)
    if number < 0:
        raise ValueError(f"{name} must be a whole number from 0, not {str(number)[:40]!r}")
    return number


def money(name: str, value: Any) -> Decimal:
    """Return an amount of money.

    :raises ValueError: if it is not a number from 0
    """
    from airflow_provider_jojokey.cost import Cost, to_nanos

    return Cost(to_nanos(name, value), "").amount


def flag(name: str, value: Any) -> bool:
    """Return whether a flag is set.

    :raises ValueError: if it is neither true nor false
    """
    found = _FLAGS.get(str(value).strip().lower())
    if found is None:
        raise ValueError(f"{name} must be true or false, not {str(value)[:40]!r}")
    return found


def mapping(name: str, value: Any) -> Mapping[str, Any]:
    """Return a dict, which may be text: JSON, or the Python literal that a plain template renders.

    :raises ValueError: if it is not a dict
    """
    found = _read(value)
    if not isinstance(found, Mapping):
        raise ValueError(f"{name} must be a dict, not {type(found).__name__}")
    return found


def s3_parameters(name: str, value: Any) -> Mapping[str, Any]:
    """Return additional S3 parameters, see :mod:`store.extra_args`.

    :raises ValueError: if they can't be used
    """
    found = parse_extra_args(_read(value), name)
    for problem in character_problems(name, found):
        raise ValueError(problem)
    return found


def rows(name: str, value: Any) -> Sequence[Any]:
    """Return a list, which may be text: JSON, or the Python literal that a plain template renders.

    :raises ValueError: if it is not a list
    """
    found = _read(value)
    if isinstance(found, (str, bytes, Mapping)) or not isinstance(found, Sequence):
        raise ValueError(f"{name} must be a list of dicts, not {type(found).__name__}")
    return found


def choice(choices: tuple[str, ...]) -> Callable[[str, Any], str]:
    """Return a converter that accepts only these values."""

    def convert(name: str, value: Any) -> str:
        if value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, not {str(value)[:40]!r}")
        return str(value)

    return convert


def _read(value: Any) -> Any:
    """Return the list or dict in a text. Return other values unchanged."""
    if not isinstance(value, str):
        return value
    for read in (json.loads, ast.literal_eval):
        try:
            return read(value)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
    return value


_CONVERTERS: dict[str, Callable[[str, Any], Any]] = {
    **dict.fromkeys(TEXTS, text),
    **dict.fromkeys(("n", "output_compression", "partial_images", "max_in_flight"), whole_number),
    **dict.fromkeys(COUNT_LIMITS, count),
    **dict.fromkeys(COST_LIMITS, money),
    "reuse": choice(REUSE),
    "on_unknown_outcome": choice(ON_UNKNOWN_OUTCOME),
    "stream": flag,
    "replace": flag,
    "deferrable": flag,
    "extra_body": mapping,
    "requests": rows,
    "s3_extra_args": s3_parameters,
}
