"""The settings in an Airflow connection: read the fields and the extra, and check them."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from msgspec import Struct

from airflow_provider_jojokey.exceptions import JojoKeyConnectionError
from airflow_provider_jojokey.img2.request import DEFAULT_MODEL

if TYPE_CHECKING:
    from airflow_provider_jojokey.cost import Prices

log = logging.getLogger(__name__)

_logged: set[tuple[str, str]] = set()
"""The warnings about connections that this process has logged."""


class ConnectionSettings(Struct, frozen=True):
    """The settings in an Airflow connection of type ``jojokey``.

    :param token: the JojoKey token
    :param host: the base URL as written; ``None`` for the default
    :param default_model: the model if an operator does not name one
    :param connect_timeout: maximum seconds to wait for a connection
    :param read_timeout: maximum seconds to wait for the next byte of a response
    :param max_resends: how many times the hook resends a request that definitely wasn't billed
    :param max_resend_wait: seconds after the first send within which a resend may start, including the time that
        failing responses take
    :param verify: check TLS certificates; a path names a CA bundle
    :param proxy: the proxy's URL
    :param price_per_million: what usage costs; ``None`` for the worker's setting
    :param warnings: a sentence for each unknown key in the extra
    """

    token: str
    host: str | None
    default_model: str = DEFAULT_MODEL
    connect_timeout: float = 10.0
    read_timeout: float = 300.0
    max_resends: int = 2
    max_resend_wait: float = 60.0
    verify: bool | str = True
    proxy: str | None = None
    price_per_million: Prices | None = None
    warnings: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return object.__repr__(self)  # without the token

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return []

    @classmethod
    def of(cls, connection: Any) -> ConnectionSettings:
        """Read an Airflow connection. The UI saves an empty field as ``null``, which means unset.

        :raises JojoKeyConnectionError: if there is no token, or a setting is invalid
        """
        conn_id = connection.conn_id
        token = re.sub(r"(?i)^bearer(\s+|$)", "", _field(connection, "password"))
        if not token:
            raise JojoKeyConnectionError(
                f"The connection {conn_id!r} has no token.", "Enter the JojoKey token (sk-…) as its password."
            )
        if not (token.isascii() and token.isprintable()) or " " in token:
            raise JojoKeyConnectionError(
                f"The token in the connection {conn_id!r} contains invalid characters.",
                "Copy it again from JojoKey's console.",
            )
        extra = {name: value for name, value in _extra(connection).items() if not _is_empty(value)}
        warnings = tuple(_unknown_keys(extra))
        _log_once(conn_id, warnings)
        settings: dict[str, Any] = {}
        try:
            for name, read in _EXTRAS.items():
                if name in extra:
                    settings[name] = read(extra[name])
        except (ValueError, TypeError, OverflowError):
            # A proxy's URL may contain a password.
            value = "" if name == "proxy" else f"={str(extra[name])[:50]!r}"
            raise JojoKeyConnectionError(
                f"The connection {conn_id!r} has {name}{value} in its extra, which is {_EXPECTED[name]}.",
                "Correct it or leave it empty.",
            ) from None
        return cls(token=token, host=_host(connection), warnings=warnings, **settings)


def _extra(connection: Any) -> dict[str, Any]:
    """Return the extra. Airflow's own property returns an empty one if the JSON is invalid."""
    try:
        extra = json.loads(connection.extra or "{}")
    except ValueError:
        extra = ...
    if not isinstance(extra, dict | None):
        raise JojoKeyConnectionError(
            f"The extra of the connection {connection.conn_id!r} is not a JSON object.",
            'Write it like {"read_timeout": 300}, or leave it empty.',
        )
    return extra or {}


def _field(connection: Any, name: str) -> str:
    """Return a field of the connection, without whitespace around it.

    :raises JojoKeyConnectionError: if it is not text, which a connection written as JSON can contain
    """
    value = getattr(connection, name) or ""
    if not isinstance(value, str):
        raise JojoKeyConnectionError(
            f"The {name} of the connection {connection.conn_id!r} is a {type(value).__name__}, not text.",
            "Write it in quotes.",
        )
    return value.strip()


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _unknown_keys(extra: Iterable[str]) -> Iterator[str]:
    """Yield a sentence for each unknown key. The value is omitted, because it may be secret."""
    for name in extra:
        if name in _EXTRAS:
            continue
        import difflib

        written = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).replace("-", "_").lower()
        nearest = difflib.get_close_matches(written, _EXTRAS, n=1)
        advice = f"Did you mean {nearest[0]!r}?" if nearest else f"Known keys: {', '.join(_EXTRAS)}."
        yield f"The key {name[:50]!r} in the extra is unknown and has no effect. {advice}"


def _log_once(conn_id: str, warnings: Iterable[str]) -> None:
    for warning in warnings:
        if (conn_id, warning) not in _logged:
            _logged.add((conn_id, warning))
            log.warning("Connection %r: %s", conn_id, warning)


def _host(connection: Any) -> str | None:
    """Return the base URL, from the host, schema and port of a connection; ``None`` for the default.

    Airflow puts the path of a URI into the schema, decoded. In other connections the schema is the URL's scheme.
    """
    from airflow_provider_jojokey.img2.addresses import DEFAULT_BASE_URL

    host, path = _field(connection, "host"), _field(connection, "schema")
    own_scheme = None
    if path.lower().rstrip(":/") in ("http", "https"):
        own_scheme, path = path.lower().rstrip(":/"), ""
    if not (host or path.strip("/") or connection.port):
        return None
    scheme, _, place = (host or DEFAULT_BASE_URL).rpartition("://")
    authority, _, first = place.partition("/")
    if authority.count(":") > 1 and not authority.startswith("[") and "@" not in authority:
        authority = f"[{authority}]"  # an IPv6 address, which loses its brackets in a connection's URI
    if connection.port and not re.search(r":[^:\]]*$", authority):
        authority = f"{authority}:{connection.port}"
    whole = "/".join(part for part in (first.strip("/"), path.strip("/")) if part)
    # "?" and "#" stay as they are, so that the client rejects them.
    return f"{scheme or own_scheme or 'https'}://{authority}/" + quote(whole, safe="/%:@!$&'()*+,;=~?#")


def _number(value: Any) -> float:
    if isinstance(value, bool):
        raise ValueError
    return float(value)


def _positive(value: Any) -> float:
    number = _number(value)
    if not 0 < number < 86_400:
        raise ValueError
    return number


def _not_negative(value: Any) -> float:
    return 0.0 if _number(value) == 0 else _positive(value)


def _count(value: Any) -> int:
    number = _number(value)
    if not (0 <= number <= 10 and number.is_integer()):
        raise ValueError
    return int(number)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip().isprintable():
        raise ValueError
    return value.strip()


def _verify(value: Any) -> bool | str:
    if isinstance(value, bool):
        return value
    text = _text(value)
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if not os.path.exists(text):
        raise ValueError
    return text


def _prices(value: Any) -> Prices | None:
    from airflow_provider_jojokey.cost import parse_prices

    return parse_prices(value, "price_per_million")


def _proxy(value: Any) -> str:
    text = _text(value)
    if "://" not in text:
        text = f"http://{text}"
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https", "socks4", "socks4a", "socks5", "socks5h") or not parts.hostname:
        raise ValueError
    parts.port  # noqa: B018 - raises ValueError if it is not a number
    return text


_EXTRAS: dict[str, Callable[[Any], Any]] = {
    "default_model": _text,
    "connect_timeout": _positive,
    "read_timeout": _positive,
    "max_resends": _count,
    "max_resend_wait": _not_negative,
    "verify": _verify,
    "proxy": _proxy,
    "price_per_million": _prices,
}
_EXPECTED = {
    "default_model": "not a name",
    "connect_timeout": "not a number of seconds above 0 and below 86,400",
    "read_timeout": "not a number of seconds above 0 and below 86,400",
    "max_resends": "not a whole number from 0 to 10",
    "max_resend_wait": "not a number of seconds from 0 to 86,400",
    "verify": "not true, false or the path of an existing file",
    "proxy": "not the URL of a proxy",
    "price_per_million": "not a JSON object with currency (such as USD) and the prices text_input, image_input and "
    "image_output (numbers from 0)",
}
