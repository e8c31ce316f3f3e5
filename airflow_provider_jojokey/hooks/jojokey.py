"""The hook: the image API through an Airflow connection."""

from __future__ import annotations

import difflib
import json
import logging
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlsplit

from airflow.providers.common.compat.sdk import BaseHook

from airflow_provider_jojokey.exceptions import JojoKeyConnectionError, JojoKeyError
from airflow_provider_jojokey.img2.errors import Img2Error, Kind
from airflow_provider_jojokey.img2.request import DEFAULT_MODEL, ImageRequest

if TYPE_CHECKING:
    import requests

    from airflow_provider_jojokey.cost import Prices, QuotaUnit
    from airflow_provider_jojokey.img2.client import Client, Generation, OpenFile
    from airflow_provider_jojokey.img2.images import ImageFile


T = TypeVar("T")

log = logging.getLogger(__name__)

STOP_GRACE = 15.0
"""Seconds within which a response must begin to arrive after Airflow has stopped the task."""
STALLED = 5.0
"""Seconds without image data after which a response no longer counts as arriving."""
STOP_POLL = 0.1
STOP_LATENCY = 0.1

_logged: set[tuple[str, str]] = set()
"""The warnings about connections that this process has logged."""


@dataclass(frozen=True, slots=True, repr=False)
class ConnectionSettings:
    """The settings in an Airflow connection of type ``jojokey``.

    :param token: the JojoKey token
    :param host: the base URL as written; ``None`` for the default
    :param default_model: the model if an operator does not name one
    :param connect_timeout: timeout in seconds
    :param read_timeout: timeout in seconds
    :param max_resends: how many times the hook resends a request that definitely wasn't billed
    :param max_resend_wait: maximum total seconds of waiting between resends
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


class JojoKeyHook(BaseHook):
    """Generate images with JojoKey's IMG2 API.

    :param jojokey_conn_id: the Airflow connection: the token in its password, the base URL in its
        host (default ``https://api.jojokey.com``)
    """

    conn_name_attr = "jojokey_conn_id"
    default_conn_name = "jojokey_default"
    conn_type = "jojokey"
    hook_name = "JojoKey"

    def __init__(self, jojokey_conn_id: str = default_conn_name, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.jojokey_conn_id = jojokey_conn_id
        self.stopping = threading.Event()
        """Set when Airflow stops the task. The hook then sends nothing and does not wait for resends."""
        self.stopped = threading.Event()
        """Set after :meth:`stop`, when no response is in flight any more."""
        self._stopper: threading.Thread | None = None
        self._in_flight: set[_Response] = set()
        self.decode_slots: int | None = None
        """Maximum number of responses to decode at once, if many threads share the hook."""

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """Return the form's field behavior. Airflow before 3.2 reads it here."""
        return {
            "hidden_fields": ["schema", "port", "login"],
            "relabeling": {"host": "Base URL", "password": "Token"},
            "placeholders": {"host": "https://api.jojokey.com", "password": "sk-…"},
        }

    @cached_property
    def settings(self) -> ConnectionSettings:
        """The connection's settings.

        :raises JojoKeyConnectionError: if the connection is not usable
        """
        return ConnectionSettings.of(self.get_connection(self.jojokey_conn_id))

    @cached_property
    def prices(self) -> Prices:
        """What usage costs: the connection's prices, or else the worker's.

        :raises JojoKeyConnectionError: if the connection is not usable
        :raises JojoKeyRequestError: if the worker's setting cannot be understood
        """
        from airflow_provider_jojokey.exceptions import JojoKeyRequestError
        from airflow_provider_jojokey.settings import configured_prices

        try:
            return self.settings.price_per_million or configured_prices()
        except ValueError as error:
            raise JojoKeyRequestError(f"{error}.") from None

    @cached_property
    def quota_unit(self) -> QuotaUnit | None:
        """The value of one unit of the gateway's quota; ``None`` if the gateway does not report it. Costs nothing."""
        from airflow_provider_jojokey.cost import QuotaUnit

        try:
            return QuotaUnit.from_status(self.client.status())
        except Img2Error as error:
            log.info("The gateway doesn't report the value of its quota unit: %s", error.summary)
            return None

    @cached_property
    def client(self) -> Client:
        """The API client for this connection. Threads may share it.

        :raises JojoKeyConnectionError: if the connection is not usable
        """
        from airflow_provider_jojokey.img2.client import Client

        settings = self.settings
        try:
            return Client(
                settings.token,
                settings.host,
                connect_timeout=settings.connect_timeout,
                read_timeout=settings.read_timeout,
                verify=settings.verify,
                proxy=settings.proxy,
                decode_slots=threading.BoundedSemaphore(self.decode_slots) if self.decode_slots else None,
            )
        except ValueError as error:
            raise JojoKeyConnectionError(
                f"The connection {self.jojokey_conn_id!r} has an invalid base URL: {error}."
            ) from None

    def get_conn(self) -> requests.Session:
        """Return an authenticated session, for calls without a method here.

        :raises JojoKeyConnectionError: if the connection is not usable
        """
        return self.client.session

    def generate(
        self,
        request: ImageRequest,
        open_file: OpenFile | None = None,
        *,
        before_send: Callable[[], None] | None = None,
        on_fact: Callable[[str, str], None] | None = None,
        max_resends: int | None = None,
        resend_until: float | None = None,
    ) -> Generation:
        """Generate images. For a short while, the hook resends requests that definitely weren't billed.

        :param request: the images
        :param open_file: returns the file for image 0, 1, 2 …; by default an unnamed temporary file
        :param before_send: called before each send; an exception prevents it
        :param on_fact: receives facts about the response as soon as they are known, see :meth:`Client.generate`
        :param max_resends: overrides the connection's setting
        :param resend_until: no resend after this time (:func:`payments.clock.monotonic` seconds), nor after the
            connection's ``max_resend_wait`` seconds, including the time that failing responses take
        :raises JojoKeyError: if there are no images; ``billed`` says whether you were charged
        """
        import tenacity

        from airflow_provider_jojokey.payments import clock

        settings = self.settings
        until = clock.monotonic() + settings.max_resend_wait
        until = until if resend_until is None else min(until, resend_until)
        resends = settings.max_resends if max_resends is None else max_resends
        resending = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_resend_may_help),
            wait=_wait_before_resending,
            stop=tenacity.stop_any(
                tenacity.stop_when_event_set(self.stopping),
                tenacity.stop_after_attempt(1 + resends),
                _stop_before(until),
            ),
            before_sleep=self._log_resend,
            sleep=self._sleep,
            reraise=True,
        )
        try:
            return resending(self._generate_once, request, open_file, before_send, on_fact)
        except Img2Error as error:
            for image in error.salvaged:  # the named files of open_file remain
                image.file.close()
            self._explain(error)
            raise JojoKeyError.of(error) from None

    def _generate_once(
        self,
        request: ImageRequest,
        open_file: OpenFile | None,
        before_send: Callable[[], None] | None,
        on_fact: Callable[[str, str], None] | None,
    ) -> Generation:
        response = _Response(open_file)
        self._in_flight.add(response)  # before the check, so that stop() sees every request that passes it
        try:
            if self.stopping.is_set():
                raise Img2Error(
                    Kind.UNREACHABLE,
                    "Airflow stopped the task before it sent its request",
                    advice="Clear the task to try again.",
                )
            return self.client.generate(request, response.open_file, before_send=before_send, on_fact=on_fact)
        finally:
            self._in_flight.discard(response)

    def _sleep(self, seconds: float) -> None:
        from airflow_provider_jojokey.payments import clock

        clock.pause(seconds, self.stopping)

    def test_connection(self) -> tuple[bool, str]:
        """Return whether this connection can generate images. Costs nothing.

        Waits up to 10 s for the response to ``GET /v1/models``. If the gateway rejects the token, waits up to 10 s
        more for the reason.

        :return: whether the check succeeded, and a sentence to display
        """
        try:
            models = self.list_models()
        except JojoKeyError as error:
            return False, error.message
        model = self.settings.default_model
        if model not in models:
            others = f" It may use {', '.join(sorted(models)[:10])}." if models else " It may use no model."
            return False, (
                f"The token is valid, but it may not use the model {model}.{others} "
                "Create a token in the image group that has the model."
            )
        good = f"Success: {self.client.base_url} accepts the token, and it may use {model}."
        return True, " ".join((good, *self.settings.warnings))

    def list_models(self) -> list[str]:
        """Return the names of the models that the token may use. Costs nothing.

        :raises JojoKeyError: if the gateway rejects the request or cannot be reached
        """
        return self._call_unbilled(self.client.list_models)

    def get_token_usage(self) -> dict[str, Any]:
        """Return the token's quota, usage and expiry as the gateway reports them.

        Costs nothing, and works for a token that is expired or exhausted.

        :raises JojoKeyError: if the gateway rejects the request or cannot be reached
        """
        return self._call_unbilled(self.client.token_usage)

    def stop(self, grace: float = STOP_GRACE, *, abort: bool = True) -> None:
        """Send nothing more, and give paid responses time to arrive. Returns at once.

        A response must begin to arrive within ``grace`` seconds, and may then finish. The hook closes the
        connections of all others, although they are billed. At the end it sets :attr:`stopped`.

        This is safe in a signal handler. Another thread sets the event, because the interrupted thread may hold
        the event's lock, and would deadlock.

        :param grace: time in seconds
        :param abort: whether to close the connections of late responses
        """
        if self._stopper is None:
            self._stopper = threading.Thread(
                target=self._stop, args=(grace, abort), name="jojokey-stop", daemon=True
            )
            try:
                self._stopper.start()
            except RuntimeError:  # the thread limit is reached
                self._stop(0.0, abort)
        end = time.monotonic() + STOP_LATENCY
        while not self.stopping.is_set() and time.monotonic() < end:
            time.sleep(0.001)

    def _stop(self, grace: float, abort: bool) -> None:
        self.stopping.set()
        end = time.monotonic() + grace
        while self._in_flight and time.monotonic() < end:
            for response in tuple(self._in_flight):
                response.observe()
            time.sleep(STOP_POLL)
        arriving = {response for response in tuple(self._in_flight) if response.is_arriving}
        while any(response.observe() for response in arriving & self._in_flight):
            time.sleep(STOP_POLL)
        if abort and self._in_flight:
            self.log.warning(
                "%d responses did not arrive in time. You are still billed.", len(self._in_flight)
            )
            self.abort()
        self.stopped.set()

    def abort(self) -> None:
        """Send nothing more, and close the connections of requests in flight, which are billed anyway."""
        self.stopping.set()
        if "client" in vars(self):
            self.client.abort()

    def _call_unbilled(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except Img2Error as error:
            self._explain(error)
            raise JojoKeyError.of(error) from None

    def _explain(self, error: Img2Error) -> None:
        """Request the reason for a rejected token: invalid, expired or exhausted."""
        if error.kind is Kind.TOKEN and (reason := self.client.explain_rejected_token()):
            error.advice = reason

    def _log_resend(self, state: Any) -> None:
        self.log.warning(
            "%s Resending the request in %.0f s (attempt %d of %d).",
            state.outcome.exception(),
            state.next_action.sleep,
            state.attempt_number + 1,
            1 + self.settings.max_resends,
        )


class _Response:
    """A response in flight.

    :param open_file: returns the file for image 0, 1, 2 …
    """

    def __init__(self, open_file: OpenFile | None) -> None:
        self._open_file = open_file
        self._files: list[ImageFile] = []
        self._bytes = 0
        self._grew_at = -math.inf

    def open_file(self, index: int) -> ImageFile:
        """Return the file for an image that starts to arrive."""
        from airflow_provider_jojokey.img2.images import ImageFile

        file = ImageFile() if self._open_file is None else self._open_file(index)
        self._files.append(file)
        return file

    def observe(self) -> bool:
        """Check for new data since the last call, and return whether the response is arriving."""
        received = sum(file.size for file in tuple(self._files))
        if received != self._bytes:
            self._bytes, self._grew_at = received, time.monotonic()
        return self.is_arriving

    @property
    def is_arriving(self) -> bool:
        """Whether image data has arrived in the last few seconds."""
        return time.monotonic() - self._grew_at < STALLED


def _resend_may_help(error: BaseException) -> bool:
    return isinstance(error, Img2Error) and error.is_safe_to_resend


def _wait_before_resending(state: Any) -> float:
    """Return the seconds to wait: what the server requests, or else 2, 4, 8 … with jitter."""
    import random

    error = state.outcome.exception()
    if error.retry_after is not None:
        return float(error.retry_after)
    return float(2**state.attempt_number) * random.uniform(0.75, 1.25)


def _stop_before(until: float) -> Any:
    """Return a tenacity condition that prevents a resend after ``until``."""
    from airflow_provider_jojokey.payments import clock

    def stop(state: Any) -> bool:
        return bool(clock.monotonic() + state.upcoming_sleep > until)

    return stop


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
