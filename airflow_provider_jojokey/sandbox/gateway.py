"""The stand-in for JojoKey, on loopback.

It checks tokens and parameters like JojoKey, draws an image from the prompt, and records its charges. On
request, it simulates failures: see :mod:`airflow_provider_jojokey.sandbox.cases`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Self, TypeVar
from urllib.parse import urlsplit

from airflow_provider_jojokey.sandbox.accounts import Accounts
from airflow_provider_jojokey.sandbox.behaviors import Behaviors
from airflow_provider_jojokey.sandbox.bodies import HTML, WEB_APP, gateway_headers
from airflow_provider_jojokey.sandbox.charges import QUOTA_PER_USD, ChargeRecord, Charges
from airflow_provider_jojokey.sandbox.free_endpoints import FreeEndpoints, invalid_url_reply, json_reply
from airflow_provider_jojokey.sandbox.generation import ImageEndpoint
from airflow_provider_jojokey.sandbox.hosted_images import PREFIX, HostedImages
from airflow_provider_jojokey.sandbox.server import RequestRecord, Server, Service
from airflow_provider_jojokey.sandbox.wire import Reply, Wire

DEFAULT_TOKEN = "sk-sandbox-not-a-secret"  # only the stand-in accepts it
DEFAULT_MODELS = ("gpt-image-2",)

_Item = TypeVar("_Item")


class Gateway(Service):
    """A stand-in for JojoKey; a context manager.

    :param port: the port on 127.0.0.1; 0 means any free port.
    :param token: the valid token.
    :param tokens: further tokens with their states: ``disabled``, ``expired``, ``exhausted``, ``no_model``,
        ``no_group``, ``banned``, ``ip``, or ``ok``.
    :param charges: a file to which the charges are also written, as JSON Lines.
    :param models: the models that have a channel.
    :param image: the bytes of every image, so that load tests need no time for drawing.
    :param delay: seconds that each image takes.
    :param response_format: ``"rejected"`` rejects requests with this parameter, as OpenAI does for this model.
    :param stream: ``"ignored"`` responds to ``stream: true`` with plain JSON.
    :param stream_done: whether an event stream ends with ``data: [DONE]``.
    :param ping: seconds between the comments that keep an event stream alive.
    :param log: whether ``GET /api/log/token`` exists.
    :param log_limit: how many times a client address may read the log in 20 minutes; ``None`` means no limit.
    :param rate: number of requests allowed in a number of seconds, such as ``(30, 60)``. Further requests get a 429.
    :param drawing: number of images drawn concurrently; by default one per CPU.
    :param host: the address to listen on. Use another one than loopback only in a private network, such as a
        container's.
    :raises OSError: on start, if the port is taken.
    """

    def __init__(
        self,
        port: int = 0,
        token: str = DEFAULT_TOKEN,
        *,
        tokens: Mapping[str, str] | None = None,
        charges: Path | str | None = None,
        models: Iterable[str] = DEFAULT_MODELS,
        image: bytes | None = None,
        delay: float = 0.0,
        response_format: Literal["accepted", "rejected"] = "accepted",
        stream: Literal["supported", "ignored"] = "supported",
        stream_done: bool = True,
        ping: float = 5.0,
        log: bool = True,
        log_limit: int | None = 20,
        rate: tuple[int, float] | None = None,
        drawing: int | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        self.token = token
        self.models = tuple(models)
        self._host = host
        self._port = port
        self._draws = image is None
        accounts = Accounts(token, tokens or {})
        self._charges = Charges(None if charges is None else Path(charges))
        self._behaviors = Behaviors()
        self._hosted = HostedImages()
        self._free = FreeEndpoints(
            accounts, self._charges, models=self.models, shows_log=log, log_limit=log_limit
        )
        self._images = ImageEndpoint(
            accounts,
            self._charges,
            self._behaviors,
            self._hosted,
            models=self.models,
            image=image,
            delay=delay,
            accepts_response_format=response_format == "accepted",
            streams=stream == "supported",
            stream_done=stream_done,
            ping=ping,
            rate=rate,
            drawing=drawing or os.cpu_count() or 2,
            on_settled=self._notify,
        )
        self._changed = threading.Condition()
        self._requests: list[RequestRecord] = []
        self._fetches: list[RequestRecord] = []
        self._in_flight: set[Wire] = set()
        self._peak = 0
        self._server: Server | None = None

    # --- start and stop ------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Start listening, and return self.

        :raises OSError: if the port is taken.
        :raises ImportError: if Pillow is not installed and the gateway has to draw images.
        """
        if self._draws and find_spec("PIL") is None:
            raise ImportError(
                "The sandbox draws images with Pillow. Run pip install 'airflow-provider-jojokey[sandbox]', or pass an "
                "image."
            )
        if self._server is None:
            self._server = Server(self._port, self, self._host)
        return self

    def stop(self) -> None:
        """End all connections and threads. The charges stay readable."""
        server, self._server = self._server, None
        if server is not None:
            self._port = server.port  # a restarted gateway keeps its port
            server.stop()

    @property
    def port(self) -> int:
        """The port.

        :raises RuntimeError: if the gateway was never started.
        """
        port = self._server.port if self._server is not None else self._port
        if not port:
            raise RuntimeError(
                "The gateway is not running. Use it in a with statement, or call start() first."
            )
        return port

    @property
    def url(self) -> str:
        """The base URL, without ``/v1``."""
        return f"http://127.0.0.1:{self.port}"

    # --- observe -------------------------------------------------------------------------------------------------

    @property
    def charges(self) -> tuple[ChargeRecord, ...]:
        """The billed requests, oldest first."""
        return self._charges.billed()

    @property
    def settlements(self) -> tuple[ChargeRecord, ...]:
        """All requests with a valid token, billed or not, oldest first."""
        return self._charges.everything()

    @property
    def spent_usd(self) -> float:
        """The sum of all charges, in US dollars."""
        return sum(record.quota for record in self.charges) / QUOTA_PER_USD

    @property
    def requests(self) -> tuple[RequestRecord, ...]:
        """All POST requests, oldest first."""
        with self._changed:
            return tuple(self._requests)

    @property
    def fetches(self) -> tuple[RequestRecord, ...]:
        """All GET requests for images and for the target of redirects, oldest first."""
        with self._changed:
            return tuple(self._fetches)

    @property
    def in_flight(self) -> int:
        """Number of image requests in flight."""
        with self._changed:
            return len(self._in_flight)

    @property
    def peak_in_flight(self) -> int:
        """The largest number of image requests that were in flight at once."""
        with self._changed:
            return self._peak

    @property
    def shows_log(self) -> bool:
        """Whether ``GET /api/log/token`` exists. It can be changed while the gateway runs."""
        return self._free.shows_log

    @shows_log.setter
    def shows_log(self, value: bool) -> None:
        self._free.shows_log = value

    def wait_for_request(self, n: int = 1, timeout: float = 10.0) -> tuple[RequestRecord, ...]:
        """Block until ``n`` POST requests have arrived, and return them.

        :param timeout: seconds.
        :raises TimeoutError: if fewer arrive.
        """
        return self._wait_for(lambda: self._requests, n, timeout, "request(s)")

    def wait_for_charges(self, n: int = 1, timeout: float = 10.0) -> tuple[ChargeRecord, ...]:
        """Block until ``n`` requests are billed, and return their records.

        :param timeout: seconds.
        :raises TimeoutError: if fewer are billed.
        """
        return self._wait_for(lambda: self.charges, n, timeout, "billed request(s)")

    def wait_until_idle(self, timeout: float = 10.0) -> None:
        """Block until no image request is in flight.

        :param timeout: seconds.
        :raises TimeoutError: if a request still is in flight then.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: not self._in_flight, timeout):
                raise TimeoutError(f"{len(self._in_flight)} request(s) still in flight after {timeout} s.")

    def _wait_for(
        self, items: Callable[[], Iterable[_Item]], n: int, timeout: float, kind: str
    ) -> tuple[_Item, ...]:
        with self._changed:
            if not self._changed.wait_for(lambda: len(tuple(items())) >= n, timeout):
                raise TimeoutError(f"{len(tuple(items()))} {kind} within {timeout} s, expected {n}.")
            return tuple(items())

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    # --- control -------------------------------------------------------------------------------------------------

    @property
    def rate(self) -> tuple[int, float] | None:
        """The rate limit; see the parameter."""
        return self._images.rate

    @rate.setter
    def rate(self, rate: tuple[int, float] | None) -> None:
        self._images.rate = rate

    def behave(self, case: str = "", *, times: int | None = None, **options: Any) -> None:
        """Respond to later requests with ``case``, whatever their prompts.

        Behaviors form a queue: each one responds to as many requests as its ``times``, then the next one follows.
        Directives in a prompt take precedence.

        :param case: the name of a case; empty for a good response with options such as ``delay``.
        :param times: number of requests; ``None`` means all until :meth:`reset` or :meth:`behave_well`.
        :param options: as in a directive: ``delay=1.5``, ``billed=False``, ``retry_after=2``, …
        :raises ValueError: if the case or an option is unknown.
        """
        self._behaviors.add(case, times, options)

    def behave_well(self) -> None:
        """Empty the queue of behaviors."""
        self._behaviors.clear()

    def reset(self) -> None:
        """End the image requests in flight, and forget requests, charges, behaviors and uses of directives.

        :raises TimeoutError: if a request doesn't end within 10 seconds.
        """
        if self._server is not None:
            self._server.interrupt()
        with self._changed:
            for wire in self._in_flight:
                wire.shut_down()
        self.wait_until_idle()
        with self._changed:
            self._requests.clear()
            self._fetches.clear()
            self._peak = 0
        self._behaviors.reset()
        self._hosted.clear()
        self._free.reset()
        self._images.reset()
        self._charges.clear()

    # --- respond -------------------------------------------------------------------------------------------------

    def record(self, request: RequestRecord) -> None:
        """Record a POST, and wake threads that wait for it; called by the server."""
        with self._changed:
            self._requests.append(request)
            self._changed.notify_all()

    def respond(self, request: RequestRecord, authorization: str, client: str, wire: Wire) -> bool:
        """Respond to a request on ``wire``; called by the server.

        :returns: whether the connection can serve another request.
        :raises OSError: if the client has disconnected.
        """
        path = urlsplit(request.path).path
        if path.startswith("/v1/v1"):
            return wire.send(invalid_url_reply(request.request_id, request.method, path))
        if request.method == "POST":
            if path == "/v1/images/generations":
                with self._counted(wire):
                    return self._images.respond(request, authorization, self.url, wire)
            return wire.send(self._post(path, request))
        if path.startswith((PREFIX, "/sandbox/elsewhere")):
            with self._changed:
                self._fetches.append(request)
        return wire.send(self._get(path, request.request_id, authorization, client))

    @contextmanager
    def _counted(self, wire: Wire) -> Iterator[None]:
        with self._changed:
            self._in_flight.add(wire)
            self._peak = max(self._peak, len(self._in_flight))
        try:
            yield
        finally:
            with self._changed:
                self._in_flight.discard(wire)
                self._changed.notify_all()

    def _post(self, path: str, request: RequestRecord) -> Reply:
        if path == "/sandbox/reset":
            self.reset()
            return json_reply(request.request_id, 200, {"reset": True})
        if path == "/sandbox/behave":
            arguments = request.body if isinstance(request.body, dict) else {}
            try:
                self.behave(**{"case": "", **arguments})
            except (TypeError, ValueError) as error:
                return json_reply(request.request_id, 400, {"error": {"message": str(error)}})
            return json_reply(request.request_id, 200, {"behave": arguments})
        if path.startswith("/v1/"):
            return invalid_url_reply(request.request_id, "POST", path)
        return Reply(200, gateway_headers(request.request_id, HTML), [WEB_APP])

    def _get(self, path: str, request_id: str, authorization: str, client: str) -> Reply:
        match path.rstrip("/"):
            case "/sandbox/charges":
                billed = [record.to_json() for record in self.charges]
                return json_reply(request_id, 200, {"billed": billed, "spent_usd": self.spent_usd})
            case "/sandbox/requests":
                requests = [asdict(request) for request in self.requests]
                return json_reply(request_id, 200, {"requests": requests})
        if path.startswith(PREFIX):
            return self._hosted.get(path)
        return self._free.respond(path, request_id, authorization, client)
