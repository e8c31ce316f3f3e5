"""The hook: the image API through an Airflow connection."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from airflow.providers.common.compat.sdk import BaseHook

from airflow_provider_jojokey.exceptions import JojoKeyConnectionError, JojoKeyError
from airflow_provider_jojokey.hooks.connection import ConnectionSettings
from airflow_provider_jojokey.img2.errors import Img2Error, Kind
from airflow_provider_jojokey.img2.request import ImageRequest
from airflow_provider_jojokey.lazy import lazy_property
from airflow_provider_jojokey.payments import clock

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
QUOTA_UNIT_PAUSE = 60.0
"""Seconds after which a gateway that failed to report its quota unit is asked again."""


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
        self._quota_unit: QuotaUnit | None = None
        self._quota_unit_until = -math.inf
        """When :attr:`quota_unit` asks the gateway again, in :func:`payments.clock.monotonic` seconds."""
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

    @lazy_property
    def settings(self) -> ConnectionSettings:
        """The connection's settings.

        :raises JojoKeyError: if Airflow doesn't find the connection
        :raises JojoKeyConnectionError: if the connection is not usable
        """
        from airflow.providers.common.compat.sdk import AirflowNotFoundException

        conn_id = self.jojokey_conn_id
        try:
            connection = self.get_connection(conn_id)
        except AirflowNotFoundException:
            # Airflow also says so if a secrets backend fails. So a retry may find the connection.
            raise JojoKeyError(
                f"Airflow did not find the connection {conn_id!r}.",
                f"If it doesn't exist, add it: airflow connections add {conn_id} --conn-type jojokey "
                "--conn-password sk-… If it does, check that its environment variable is valid, and that Airflow "
                "reaches its secrets backend.",
            ) from None
        return ConnectionSettings.of(connection)

    @lazy_property
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

    @property
    def quota_unit(self) -> QuotaUnit | None:
        """The value of one unit of the gateway's quota; ``None`` if the gateway does not report it. Costs nothing."""
        now = clock.monotonic()
        if now >= self._quota_unit_until:
            self._quota_unit, self._quota_unit_until = self._ask_quota_unit(now)
        return self._quota_unit

    def _ask_quota_unit(self, now: float) -> tuple[QuotaUnit | None, float]:
        """Return the value and until when it holds. After an error, the gateway is asked again later."""
        from airflow_provider_jojokey.cost import QuotaUnit

        try:
            return QuotaUnit.from_status(self.client.status()), math.inf
        except Img2Error as error:
            log.info("The gateway doesn't report the value of its quota unit: %s", error.summary)
            # No error proves that the gateway never reports it: a response may be truncated, or come from a proxy.
            return None, now + QUOTA_UNIT_PAUSE

    @lazy_property
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
            if resends and error.is_safe_to_resend and error.retry_after:
                log.info(
                    "The gateway requests a delay of %.0f s. The hook doesn't resend the request: max_resends is %d, "
                    "and max_resend_wait is %.0f s.",
                    error.retry_after,
                    resends,
                    settings.max_resend_wait,
                )
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
                    billed="no",
                    advice="Clear the task to try again.",
                )
            return self.client.generate(request, response.open_file, before_send=before_send, on_fact=on_fact)
        finally:
            self._in_flight.discard(response)

    def _sleep(self, seconds: float) -> None:
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

    def stop(state: Any) -> bool:
        return bool(clock.monotonic() + state.upcoming_sleep > until)

    return stop
