"""A stand-in for JojoKey on loopback.

It is as strict as the real one about tokens and parameters, draws a real image from the prompt, keeps a ledger of
what it billed, and misbehaves on request: see :mod:`airflow_provider_jojokey.sandbox.cases`.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar
from urllib.parse import urlsplit

from airflow_provider_jojokey.sandbox import accounts
from airflow_provider_jojokey.sandbox.bodies import (
    HTML,
    WEB_APP,
    Call,
    error_reply,
    gateway_headers,
    stream_reply,
)
from airflow_provider_jojokey.sandbox.cases import CASES, Case
from airflow_provider_jojokey.sandbox.directives import Directive, read_directives
from airflow_provider_jojokey.sandbox.ledger import QUOTA_PER_USD, Ledger, LedgerRecord
from airflow_provider_jojokey.sandbox.orders import Order, RefusalError, read_order
from airflow_provider_jojokey.sandbox.server import RequestRecord, Server
from airflow_provider_jojokey.sandbox.wire import Reply, Wire

DEFAULT_TOKEN = "sk-sandbox-not-a-secret"  # it opens nothing but this stand-in
DEFAULT_MODELS = ("gpt-image-2",)

_KEPT_IMAGES = 256
_LOG_WINDOW = 20 * 60
_Item = TypeVar("_Item")


@dataclass
class _Behaviour:
    directive: Directive
    left: int | None


@dataclass
class _Exchange:
    """What is known of one request while it is being answered."""

    request_id: str
    started: float
    account: accounts.Account
    settled: LedgerRecord | None = field(default=None)


class Gateway:
    """A stand-in for JojoKey; a context manager.

    :param port: where to listen on 127.0.0.1; 0 takes a free port.
    :param token: the token that is accepted.
    :param tokens: further tokens and what is wrong with them: ``disabled``, ``expired``, ``exhausted``, ``no_model``,
        ``no_group``, ``banned``, ``ip``, or ``ok``.
    :param ledger: a file to which the ledger is also written, as JSON lines.
    :param models: the models there are channels for.
    :param image: bytes to send as every image, so that load tests pay for no drawing.
    :param delay: seconds that every image takes.
    :param response_format: ``"rejected"`` answers requests that have this parameter as OpenAI does for this model.
    :param stream: ``"ignored"`` answers ``stream: true`` with plain JSON.
    :param stream_done: whether an event stream ends with ``data: [DONE]``.
    :param ping: seconds between the comments that keep an event stream alive.
    :param log: whether ``GET /api/log/token`` exists.
    :param log_limit: how many calls to it are allowed in 20 minutes; ``None`` is no limit.
    :param rate: how many requests are taken in how many seconds, such as ``(30, 60)``; more get a 429.
    :param drawing: how many images are drawn at a time; by default one for each CPU.
    :param host: where to listen; anything but loopback only in a network of your own, such as a container's.
    :raises OSError: on start, if the port is taken.
    """

    def __init__(
        self,
        port: int = 0,
        token: str = DEFAULT_TOKEN,
        *,
        tokens: Mapping[str, str] | None = None,
        ledger: Path | str | None = None,
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
        self._host = host
        self.models = tuple(models)
        self._port = port
        self._accounts = accounts.Accounts(token, tokens or {})
        self._ledger = Ledger(None if ledger is None else Path(ledger))
        self._image = image
        self._delay = delay
        self._accepts_response_format = response_format == "accepted"
        self._streams = stream == "supported"
        self._stream_done = stream_done
        self._ping = ping
        self._log = log
        self._log_limit = log_limit
        self.rate = rate
        self._taken: deque[float] = deque()
        self._drawing = threading.BoundedSemaphore(drawing or os.cpu_count() or 2)
        self._changed = threading.Condition()
        self._requests: list[RequestRecord] = []
        self._fetches: list[RequestRecord] = []
        self._behaviours: list[_Behaviour] = []
        self._turns: dict[tuple[str, int], int] = {}
        self._images: OrderedDict[str, tuple[bytes, str]] = OrderedDict()
        self._misses: dict[str, int] = {}
        self._log_calls: dict[str, deque[float]] = {}
        self._answering: set[Wire] = set()
        self._peak = 0
        self._server: Server | None = None

    # --- life ----------------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Start listening, and return self.

        :raises OSError: if the port is taken.
        :raises ImportError: if images are to be drawn and Pillow is not installed.
        """
        if self._image is None and find_spec("PIL") is None:
            raise ImportError(
                "The sandbox draws with Pillow: pip install 'airflow-provider-jojokey[sandbox]', or give it an image."
            )
        if self._server is None:
            self._server = Server(self._port, self, self._host)
        return self

    def stop(self) -> None:
        """End all connections and threads. The ledger can still be read."""
        server, self._server = self._server, None
        if server is not None:
            self._port = server.port  # so that a restart comes up where its clients look for it
            server.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def port(self) -> int:
        """The port it listens on.

        :raises RuntimeError: if it was never started.
        """
        port = self._server.port if self._server is not None else self._port
        if not port:
            raise RuntimeError("The gateway is not running; use it in a with statement, or call start().")
        return port

    @property
    def url(self) -> str:
        """The base URL, without ``/v1``."""
        return f"http://127.0.0.1:{self.port}"

    # --- what happened -------------------------------------------------------------------------------------------

    @property
    def ledger(self) -> tuple[LedgerRecord, ...]:
        """What was billed, oldest first."""
        return self._ledger.billed()

    @property
    def settlements(self) -> tuple[LedgerRecord, ...]:
        """All requests that got past the token check, billed or not, oldest first."""
        return self._ledger.everything()

    @property
    def spent_usd(self) -> float:
        """All that was billed, in US dollars."""
        return sum(record.quota for record in self.ledger) / QUOTA_PER_USD

    @property
    def requests(self) -> tuple[RequestRecord, ...]:
        """Every POST, oldest first."""
        with self._changed:
            return tuple(self._requests)

    @property
    def fetches(self) -> tuple[RequestRecord, ...]:
        """Every GET of an image, and of the place redirects lead to, oldest first."""
        with self._changed:
            return tuple(self._fetches)

    @property
    def in_flight(self) -> int:
        """How many image requests are being answered."""
        with self._changed:
            return len(self._answering)

    @property
    def peak_in_flight(self) -> int:
        """The most there were at a time."""
        with self._changed:
            return self._peak

    def wait_for_request(self, n: int = 1, timeout: float = 10.0) -> tuple[RequestRecord, ...]:
        """Block until ``n`` POSTs have arrived, and return them.

        :param timeout: seconds.
        :raises TimeoutError: if they do not come.
        """
        return self._wait_for(lambda: self._requests, n, timeout, "request(s)")

    def wait_for_ledger(self, n: int = 1, timeout: float = 10.0) -> tuple[LedgerRecord, ...]:
        """Block until ``n`` requests were billed, and return their records.

        :param timeout: seconds.
        :raises TimeoutError: if they are not.
        """
        return self._wait_for(lambda: self.ledger, n, timeout, "billed request(s)")

    def wait_until_idle(self, timeout: float = 10.0) -> None:
        """Block until no image request is being answered.

        :param timeout: seconds.
        :raises TimeoutError: if one still is.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: not self._answering, timeout):
                raise TimeoutError(f"{len(self._answering)} request(s) still in flight after {timeout} s.")

    def _wait_for(
        self, items: Callable[[], Iterable[_Item]], n: int, timeout: float, what: str
    ) -> tuple[_Item, ...]:
        with self._changed:
            if not self._changed.wait_for(lambda: len(tuple(items())) >= n, timeout):
                raise TimeoutError(f"{len(tuple(items()))} {what} in {timeout} s, not {n}.")
            return tuple(items())

    # --- what shall happen ---------------------------------------------------------------------------------------

    def behave(self, case: str = "", *, times: int | None = None, **options: Any) -> None:
        """Answer coming requests, whatever their prompt, with ``case``.

        Calls add up: each serves as many requests as its ``times`` says, then the next has its turn. A directive in
        a prompt goes first.

        :param case: a name from the table; empty for a good reply, to which options such as ``delay`` apply.
        :param times: for how many requests; ``None`` is until :meth:`reset` or ``behave_well``.
        :param options: as in a directive: ``delay=1.5``, ``billed=False``, ``retry_after=2``, …
        :raises ValueError: if there is no such case or option.
        """
        _case(case)
        behaviour = _Behaviour(Directive.of(case, options), times)
        with self._changed:
            self._behaviours.append(behaviour)

    def behave_well(self) -> None:
        """Take back all that :meth:`behave` has asked for."""
        with self._changed:
            self._behaviours.clear()

    def reset(self) -> None:
        """End the image requests that are being answered, and forget requests, ledger, behaviours and directives.

        :raises TimeoutError: if a request doesn't end within 10 seconds.
        """
        if self._server is not None:
            self._server.interrupt()
        with self._changed:
            for wire in self._answering:
                wire.shut_down()
        self.wait_until_idle()
        with self._changed:
            self._requests.clear()
            self._fetches.clear()
            self._behaviours.clear()
            self._turns.clear()
            self._images.clear()
            self._misses.clear()
            self._log_calls.clear()
            self._taken.clear()
            self._peak = 0
        self._ledger.clear()

    # --- answering -----------------------------------------------------------------------------------------------

    def answer(self, request: RequestRecord, authorization: str, client: str, wire: Wire) -> bool:
        """Answer one request on ``wire``; called by the server.

        :returns: whether the connection can serve another.
        :raises OSError: if the client is gone.
        """
        path = urlsplit(request.path).path
        if path.startswith("/v1/v1"):
            text = f"Invalid URL ({request.method} {path})"
            return _send(
                wire, error_reply(request.request_id, 404, text, kind="invalid_request_error", param="")
            )
        if request.method == "POST":
            if path == "/v1/images/generations":
                return self._generate(request, authorization, wire)
            return _send(wire, self._post(path, request))
        if path.startswith(("/sandbox/images/", "/sandbox/elsewhere")):
            with self._changed:
                self._fetches.append(request)
        return _send(wire, self._get(path, request.request_id, authorization, client))

    def note(self, request: RequestRecord) -> None:
        """Remember a POST, and wake those who wait for it."""
        with self._changed:
            self._requests.append(request)
            self._changed.notify_all()

    def _post(self, path: str, request: RequestRecord) -> Reply:
        if path == "/sandbox/reset":
            self.reset()
            return _json(request.request_id, 200, {"reset": True})
        if path == "/sandbox/behave":
            wish = request.body if isinstance(request.body, dict) else {}
            try:
                self.behave(**{"case": "", **wish})
            except (TypeError, ValueError) as error:
                return _json(request.request_id, 400, {"error": {"message": str(error)}})
            return _json(request.request_id, 200, {"behave": wish})
        if path.startswith("/v1/"):
            text = f"Invalid URL (POST {path})"
            return error_reply(request.request_id, 404, text, kind="invalid_request_error", param="")
        return Reply(200, gateway_headers(request.request_id, HTML), [WEB_APP])

    def _get(self, path: str, request_id: str, authorization: str, client: str) -> Reply:
        account = self._accounts.find(authorization)
        name = account.name if account else ""
        spent = sum(record.quota for record in self.ledger if record.token_name == name)
        match path.rstrip("/"):
            case "/v1/models" | "/v1/dashboard/billing/subscription" | "/v1/dashboard/billing/usage":
                try:
                    if account is None:
                        raise RefusalError(401, "Invalid token", kind="new_api_error")
                    account.check("")
                except RefusalError as refusal:
                    return _refuse(request_id, refusal)
                body = {
                    "/v1/models": self._list_models(account),
                    "/v1/dashboard/billing/subscription": accounts.subscription(),
                }.get(path.rstrip("/"), accounts.billing_usage(spent))
                return _json(request_id, 200, body)
            case "/api/usage/token":
                return _json(request_id, *accounts.token_usage(account, spent))
            case "/api/log/token" if self._log:
                if not self._may_read_log(client):
                    return Reply(429, {"X-Oneapi-Request-Id": request_id})
                return _json(request_id, *accounts.token_log(account, self.settlements))
            case "/api/status":
                return _json(request_id, 200, accounts.status())
            case "/sandbox/ledger":
                rows = [record.to_json() for record in self.ledger]
                return _json(request_id, 200, {"billed": rows, "spent_usd": self.spent_usd})
            case "/sandbox/requests":
                return _json(request_id, 200, {"requests": [asdict(request) for request in self.requests]})
        if path.startswith("/sandbox/images/"):
            with self._changed:
                image = self._images.get(path)
                if self._misses.get(path, 0) > 0:
                    self._misses[path] -= 1
                    image = None
            if image is None:
                return Reply(404, {"Content-Type": "text/plain"}, [b"no such image"])
            return Reply(200, {"Content-Type": image[1]}, [image[0]])
        if path.startswith("/v1/"):
            text = f"Invalid URL (GET {path})"
            return error_reply(request_id, 404, text, kind="invalid_request_error", param="")
        return Reply(200, gateway_headers(request_id, HTML), [WEB_APP])

    def _list_models(self, account: accounts.Account) -> dict[str, Any]:
        names = ("gpt-4o-mini",) if account.state == "no_model" else self.models
        models = [
            {
                "id": name,
                "object": "model",
                "created": 1_626_777_600,
                "owned_by": "openai",
                "supported_endpoint_types": ["image-generation"],
            }
            for name in names
        ]
        return {"success": True, "object": "list", "data": models}

    def _may_read_log(self, client: str) -> bool:
        if self._log_limit is None:
            return True
        now = time.monotonic()
        with self._changed:
            calls = self._log_calls.setdefault(client, deque())
            while calls and now - calls[0] > _LOG_WINDOW:
                calls.popleft()
            if len(calls) >= self._log_limit:
                return False
            calls.append(now)
            return True

    def _check_rate(self) -> None:
        if self.rate is None:
            return
        limit, seconds = self.rate
        now = time.monotonic()
        with self._changed:
            while self._taken and now - self._taken[0] >= seconds:
                self._taken.popleft()
            if len(self._taken) >= limit:
                raise RefusalError(429, "Too many requests, please try again later", kind="new_api_error")
            self._taken.append(now)

    def _generate(self, request: RequestRecord, authorization: str, wire: Wire) -> bool:
        with self._changed:
            self._answering.add(wire)
            self._peak = max(self._peak, len(self._answering))
        try:
            return self._generate_counted(request, authorization, wire)
        finally:
            with self._changed:
                self._answering.discard(wire)
                self._changed.notify_all()

    def _generate_counted(self, request: RequestRecord, authorization: str, wire: Wire) -> bool:
        try:
            account = self._accounts.find(authorization)
            if account is None:
                raise RefusalError(401, "Invalid token", kind="new_api_error")
            body = request.body
            model = body.get("model") if isinstance(body, dict) else ""
            account.check(model if isinstance(model, str) else "")
            self._check_rate()
            order = read_order(
                body, models=self.models, accepts_response_format=self._accepts_response_format
            )
            case, directive, words = self._choose(order)
        except RefusalError as refusal:
            return _send(wire, _refuse(request.request_id, refusal))
        exchange = _Exchange(request.request_id, request.time, account)
        call = self._call(order, request, directive, words)
        work = self._work(self._delay + directive.number("delay"), wire)

        if case.stream_fault is not None or (order.stream and self._streams and case.good):
            return self._stream(exchange, call, case, wire, work)
        for _ in work:
            pass
        reply = case.answer(call)
        self._settle(exchange, call, case)
        return wire.send(reply, before_last=lambda there: self._deliver(exchange, there))

    def _stream(self, exchange: _Exchange, call: Call, case: Case, wire: Wire, work: Iterator[bytes]) -> bool:
        fault = case.stream_fault or "none"

        def settle() -> None:
            self._settle(exchange, call, case)
            self._deliver(exchange, fault == "none" and not wire.is_gone())

        try:
            return _send(wire, stream_reply(call, fault, work, settle, self._stream_done))
        except OSError:
            if exchange.settled is not None:
                self._deliver(exchange, False)
            elif not wire.stopping.is_set():
                # The client left, and the upstream, which does not know, finishes what will be paid for.
                for _ in work:
                    pass
                self._settle(exchange, call, case)
            raise

    def _choose(self, order: Order) -> tuple[Case, Directive, str]:
        """Return the case whose turn it is, its options, and the text to draw."""
        try:
            words, directives = read_directives(order.prompt)
            for directive in directives:
                _case(directive.case)
        except ValueError as error:
            raise RefusalError(400, str(error), code="sandbox_directive", param="prompt") from error
        with self._changed:
            for place, directive in enumerate(directives):
                turns = self._turns.get((order.prompt, place), 0)
                if directive.times is None or turns < directive.times:
                    self._turns[order.prompt, place] = turns + 1
                    return _case(directive.case), directive, words
            for behaviour in self._behaviours:
                if behaviour.left is None:
                    return _case(behaviour.directive.case), behaviour.directive, words
                if behaviour.left > 0:
                    behaviour.left -= 1
                    return _case(behaviour.directive.case), behaviour.directive, words
        return CASES["ok"], Directive(), words

    def _call(self, order: Order, request: RequestRecord, directive: Directive, words: str) -> Call:
        def image(index: int) -> bytes:
            if self._image is not None:
                return self._image
            # Drawing needs Pillow, which is only wanted by those who look at the pictures.
            from airflow_provider_jojokey.sandbox.poster import draw_poster

            with self._drawing:
                return draw_poster(
                    words,
                    order.width,
                    order.height,
                    output_format=order.output_format,
                    compression=order.output_compression,
                    transparent=order.background == "transparent",
                    index=index,
                )

        def preview(index: int, number: int) -> bytes:
            if self._image is not None:
                return self._image
            from airflow_provider_jojokey.sandbox.poster import blur_poster

            finished = image(index)
            with self._drawing:
                return blur_poster(finished, number)

        return Call(
            order=order,
            usage=order.usage(),
            request_id=request.request_id,
            created=int(request.time),
            accept=request.headers.get("accept", ""),
            base_url=self.url,
            directive=directive,
            image=image,
            preview=preview,
            publish=self._publish,
            publish_late=lambda image, content_type: self._publish(image, content_type, misses=2),
        )

    def _publish(self, image: bytes, content_type: str, misses: int = 0) -> str:
        path = f"/sandbox/images/{secrets.token_hex(12)}.{content_type.rpartition('/')[2]}"
        with self._changed:
            self._images[path] = (image, content_type)
            self._misses[path] = misses
            while len(self._images) > _KEPT_IMAGES:
                self._images.popitem(last=False)
        return self.url + path

    def _work(self, seconds: float, wire: Wire) -> Iterator[bytes]:
        """Take as long as the upstream does, whether or not the client is still there."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if wire.stopping.wait(min(left, self._ping)):
                # Nobody will see the image of a request that the server was asked to end.
                raise ConnectionAbortedError("the gateway ends this request")
            yield b": PING\n\n"

    def _settle(self, exchange: _Exchange, call: Call, case: Case) -> None:
        billed = call.directive.flag("billed", case.billed)
        usage = case.charge(call.usage)
        usd = case.fee_usd if case.fee_usd is not None else usage.usd
        status = int(call.directive.number("status", 500)) if case.name == "error" else case.status
        exchange.settled = LedgerRecord(
            time=time.time(),
            started=exchange.started,
            request_id=exchange.request_id,
            token_name=exchange.account.name,
            model=call.order.model,
            prompt=call.order.prompt,
            size=call.order.size,
            quality=call.order.quality,
            n=call.order.n,
            case=case.name,
            status=status,
            stream=call.order.stream,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            billed=billed,
            # Money is set aside when the upstream is asked; an error that comes back from there gives it back.
            refunded=not billed and (case.origin == "upstream" or case.name.startswith("upstream_")),
            quota=round(usd * QUOTA_PER_USD) if billed else 0,
            delivered=False,
        )
        self._ledger.put(exchange.settled)
        with self._changed:
            self._changed.notify_all()

    def _deliver(self, exchange: _Exchange, whole: bool) -> None:
        if exchange.settled is not None:
            self._ledger.delivered(exchange.request_id, whole)


def _case(name: str) -> Case:
    case = CASES.get(name or "ok")
    if case is None:
        raise ValueError(
            f"There is no sandbox case {name!r}; python -m airflow_provider_jojokey.sandbox cases lists them."
        )
    return case


def _send(wire: Wire, reply: Reply) -> bool:
    return wire.send(reply, before_last=lambda there: None)


def _json(request_id: str, status: int, body: Mapping[str, Any]) -> Reply:
    return Reply(status, gateway_headers(request_id), [json.dumps(body, ensure_ascii=False).encode()])


def _refuse(request_id: str, refusal: RefusalError) -> Reply:
    param = None if refusal.kind == "new_api_error" and not refusal.code else refusal.param
    return error_reply(
        request_id, refusal.status, refusal.message, code=refusal.code, kind=refusal.kind, param=param
    )
