"""The image endpoint: check the request, choose a case, take the time of the upstream, charge, and respond."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from airflow_provider_jojokey.sandbox.accounts import Account, Accounts
from airflow_provider_jojokey.sandbox.behaviors import Behaviors
from airflow_provider_jojokey.sandbox.bodies import Call, stream_reply
from airflow_provider_jojokey.sandbox.cases import Case
from airflow_provider_jojokey.sandbox.charges import QUOTA_PER_USD, ChargeRecord, Charges
from airflow_provider_jojokey.sandbox.directives import Directive
from airflow_provider_jojokey.sandbox.free_endpoints import rejection_reply
from airflow_provider_jojokey.sandbox.hosted_images import HostedImages
from airflow_provider_jojokey.sandbox.limits import SlidingWindow
from airflow_provider_jojokey.sandbox.server import RequestRecord
from airflow_provider_jojokey.sandbox.validation import RejectedError, ValidRequest, validate
from airflow_provider_jojokey.sandbox.wire import Wire


@dataclass
class _Exchange:
    """A request, its response, and whether it is settled."""

    record: RequestRecord
    account: Account
    call: Call
    case: Case
    settled: bool = False


class ImageEndpoint:
    """Responds to ``POST /v1/images/generations``. The parameters are those of :class:`Gateway`.

    :param on_settled: called after each change of the charges
    """

    def __init__(
        self,
        accounts: Accounts,
        charges: Charges,
        behaviors: Behaviors,
        hosted: HostedImages,
        *,
        models: tuple[str, ...],
        image: bytes | None,
        delay: float,
        accepts_response_format: bool,
        streams: bool,
        stream_done: bool,
        ping: float,
        rate: tuple[int, float] | None,
        drawing: int,
        on_settled: Callable[[], None],
    ) -> None:
        self.rate = rate
        self._accounts = accounts
        self._charges = charges
        self._behaviors = behaviors
        self._hosted = hosted
        self._models = models
        self._image = image
        self._delay = delay
        self._accepts_response_format = accepts_response_format
        self._streams = streams
        self._stream_done = stream_done
        self._ping = ping
        self._drawing = threading.BoundedSemaphore(drawing)
        self._on_settled = on_settled
        self._window = SlidingWindow()

    def reset(self) -> None:
        """Forget the requests that count for the rate limit."""
        self._window.clear()

    def respond(self, record: RequestRecord, authorization: str, base_url: str, wire: Wire) -> bool:
        """Respond to a request on ``wire``.

        :returns: whether the connection can serve another request
        :raises OSError: if the client has disconnected
        """
        try:
            account, request = self._check(record, authorization)
            case, directive, text = self._behaviors.choose(request.prompt)
        except RejectedError as rejection:
            return wire.send(rejection_reply(record.request_id, rejection))
        call = self._call(record, request, directive, text, base_url)
        exchange = _Exchange(record, account, call, case)
        work = self._work(self._delay + directive.number("delay"), wire)

        if case.stream_fault is not None or (request.stream and self._streams and case.good):
            return self._stream(exchange, wire, work)
        for _ in work:
            pass
        reply = case.respond(call)
        self._settle(exchange)
        return wire.send(reply, before_last=lambda connected: self._deliver(exchange, connected))

    def _check(self, record: RequestRecord, authorization: str) -> tuple[Account, ValidRequest]:
        account = self._accounts.find(authorization)
        if account is None:
            raise RejectedError(401, "Invalid token", kind="new_api_error")
        model = record.body.get("model") if isinstance(record.body, dict) else ""
        account.check(model if isinstance(model, str) else "")
        if self.rate is not None and not self._window.accept(*self.rate):
            raise RejectedError(429, "Too many requests, please try again later", kind="new_api_error")
        request = validate(
            record.body, models=self._models, accepts_response_format=self._accepts_response_format
        )
        return account, request

    def _stream(self, exchange: _Exchange, wire: Wire, work: Iterator[bytes]) -> bool:
        fault = exchange.case.stream_fault or "none"

        def settle() -> None:
            self._settle(exchange)
            self._deliver(exchange, fault == "none" and not wire.is_gone())

        try:
            return wire.send(stream_reply(exchange.call, fault, work, settle, self._stream_done))
        except OSError:
            if exchange.settled:
                self._deliver(exchange, False)
            elif not wire.stopping.is_set():
                # The upstream doesn't notice that the client has disconnected. It finishes, and the request is charged.
                for _ in work:
                    pass
                self._settle(exchange)
            raise

    def _call(
        self, record: RequestRecord, request: ValidRequest, directive: Directive, text: str, base_url: str
    ) -> Call:
        def image(index: int) -> bytes:
            if self._image is not None:
                return self._image
            # Imported here because a gateway that doesn't draw works without Pillow.
            from airflow_provider_jojokey.sandbox.poster import draw_poster

            with self._drawing:
                return draw_poster(
                    text,
                    request.width,
                    request.height,
                    output_format=request.output_format,
                    compression=request.output_compression,
                    transparent=request.background == "transparent",
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
            request=request,
            usage=request.usage(),
            request_id=record.request_id,
            created=int(record.time),
            accept=record.headers.get("accept", ""),
            base_url=base_url,
            directive=directive,
            image=image,
            preview=preview,
            publish=lambda data, content_type: base_url + self._hosted.publish(data, content_type),
            publish_late=lambda data, content_type: base_url + self._hosted.publish(data, content_type, 2),
        )

    def _work(self, seconds: float, wire: Wire) -> Iterator[bytes]:
        """Take the time of the upstream, even if the client disconnects. Yield comments of an event stream."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if wire.stopping.wait(min(left, self._ping)):
                # Nobody receives the image of a request that the server ends.
                raise ConnectionAbortedError("the gateway ends this request")
            yield b": PING\n\n"

    def _settle(self, exchange: _Exchange) -> None:
        case, call = exchange.case, exchange.call
        billed = call.directive.flag("billed", case.billed)
        usage = case.charge(call.usage)
        usd = case.fee_usd if case.fee_usd is not None else usage.usd
        self._charges.put(
            ChargeRecord(
                time=time.time(),
                started=exchange.record.time,
                request_id=exchange.record.request_id,
                token_name=exchange.account.name,
                model=call.request.model,
                prompt=call.request.prompt,
                size=call.request.size,
                quality=call.request.quality,
                n=call.request.n,
                case=case.name,
                status=int(call.directive.number("status", 500)) if case.name == "error" else case.status,
                stream=call.request.stream,
                input_tokens=usage.input_tokens,
                output_tokens=usage.output_tokens,
                billed=billed,
                # The gateway reserves the price before it asks the upstream, and refunds it after an error of the
                # upstream.
                refunded=not billed and (case.origin == "upstream" or case.name.startswith("upstream_")),
                quota=round(usd * QUOTA_PER_USD) if billed else 0,
                delivered=False,
            )
        )
        exchange.settled = True
        self._on_settled()

    def _deliver(self, exchange: _Exchange, complete: bool) -> None:
        if exchange.settled:
            self._charges.delivered(exchange.record.request_id, complete)
