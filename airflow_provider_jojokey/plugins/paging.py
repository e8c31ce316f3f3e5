"""Pages of results: sort orders and cursors."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow.models.xcom import XComModel
from sqlalchemy import Float, Numeric, Text, and_, case, cast, func, inspect, or_, tuple_

if TYPE_CHECKING:
    from sqlalchemy.orm import Session
    from sqlalchemy.sql import ColumnElement

_PRIMARY_KEY = tuple(XComModel.__mapper__.attrs[column.key] for column in inspect(XComModel).primary_key)
KEYS = tuple(attribute.class_attribute for attribute in _PRIMARY_KEY)
_AMOUNT = ("cost", "amounts", 0, "amount")
_CURRENCY = ("cost", "amounts", 0, "currency")


class BadCursor(ValueError):
    """A cursor that no page had."""


def inside(session: Session, expression: Any) -> Any:
    """Return an expression that is NULL on SQLite if the value is not valid JSON.

    Python writes NaN, on which SQLite's JSON functions fail.
    """
    if session.get_bind().dialect.name != "sqlite":
        return expression
    return case((func.json_valid(XComModel.value) == 1, expression))


def _most_tokens(session: Session) -> list[ColumnElement[Any]]:
    value: Any = XComModel.value
    if session.get_bind().dialect.name == "sqlite":
        path = "$.usage.total_tokens"
        is_whole = inside(session, func.json_type(value, path)) == "integer"
        return [case((is_whole, inside(session, func.json_extract(value, path))), else_=0).desc()]
    text = func.coalesce(cast(value["usage"]["total_tokens"], Text), "null")
    return [case((text.regexp_match("^[0-9]{1,15}$"), cast(text, Numeric(20))), else_=0).desc()]


def _highest_cost(session: Session) -> list[ColumnElement[Any]]:
    """Sort by currency, because amounts in different currencies can't be compared; unknown costs are last.

    Amounts are text, not numbers: digits with an optional fraction, see :meth:`Cost.to_json`.
    """
    amount = inside(session, XComModel.value[_AMOUNT].as_string())
    quoted = inside(session, cast(XComModel.value[_AMOUNT], Text))
    currency = inside(session, XComModel.value[_CURRENCY].as_string())
    number: ColumnElement[Any]
    if session.get_bind().dialect.name == "sqlite":
        # Its casts never fail, and its regular expressions are slow.
        is_amount = and_(
            quoted.op("GLOB")('"[0-9]*'),
            quoted.op("GLOB")('*[0-9]"'),
            func.trim(quoted, '"0123456789').in_(("", ".")),
        )
        number = cast(amount, Float)
    else:
        is_amount = quoted.regexp_match(r'^"[0-9]{1,12}(\.[0-9]{1,100})?"$')
        number = cast(amount, Numeric(30, 9))
    return [
        case((and_(is_amount, currency.is_not(None)), 0), else_=1),
        case((is_amount, currency)),
        case((is_amount, number)).desc(),
    ]


SORTS: dict[str, Callable[[Session], list[ColumnElement[Any]]]] = {
    "tokens": _most_tokens,
    "cost": _highest_cost,
}
"""Sort orders besides the newest first. Each returns the expressions to sort by."""


def offset(cursor: str | None) -> int:
    """Return the number of rows before a page that is not sorted by time.

    :raises BadCursor: if the cursor is not a number
    """
    if cursor is not None and not (cursor.isascii() and cursor.isdecimal() and len(cursor) < 10):
        raise BadCursor
    return int(cursor or 0)


def before(cursor: str) -> ColumnElement[bool]:
    """Return a condition for the rows after a page that is sorted by time.

    :raises BadCursor: if the cursor is not valid
    """
    timestamp, key = _decoded(cursor)
    return or_(
        XComModel.timestamp < timestamp,
        and_(XComModel.timestamp == timestamp, tuple_(*KEYS) < key),
    )


def cursor_of(xcom: XComModel) -> str:
    """Return the cursor of the page after this row, for pages that are sorted by time."""
    key = [getattr(xcom, column.key) for column in KEYS]
    text = json.dumps([xcom.timestamp.isoformat(), *key], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _decoded(cursor: str) -> tuple[datetime, tuple[Any, ...]]:
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        timestamp, *key = json.loads(text)
        kinds = [column.type.python_type for column in KEYS]
        if len(key) != len(kinds) or any(
            type(part) is not kind for part, kind in zip(key, kinds, strict=True)
        ):
            raise BadCursor
        if any(abs(part) >= 2**63 if isinstance(part, int) else "\0" in part for part in key):
            raise BadCursor
        return datetime.fromisoformat(timestamp).astimezone(UTC), tuple(key)
    except (ValueError, TypeError, OverflowError, RecursionError, binascii.Error):
        raise BadCursor from None
