"""The client of the image API: it sends one request and returns images in files.

``Client.generate`` sends one POST and decodes the response into files while it arrives, so memory never holds
the whole response. The client never resends a paid request, with one exception: a response that rejects
``response_format`` and proves that nothing was billed. A lost response may have been billed, and the transport
must not decide whether to pay again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import requests
from msgspec import Struct

from airflow_provider_jojokey.img2 import addresses, chunks, transport
from airflow_provider_jojokey.img2.classify import from_response, is_relay
from airflow_provider_jojokey.img2.download import Downloader
from airflow_provider_jojokey.img2.errors import Img2Error, Kind
from airflow_provider_jojokey.img2.estimate import expected_seconds
from airflow_provider_jojokey.img2.failures import NETWORK_ERRORS, from_network_error
from airflow_provider_jojokey.img2.images import Image, ImageFile
from airflow_provider_jojokey.img2.json_text import parse_json
from airflow_provider_jojokey.img2.receive import OnFact, OpenFile, Received, Receiver
from airflow_provider_jojokey.img2.redact import clean
from airflow_provider_jojokey.img2.request import ImageRequest

__all__ = ["Client", "Generation", "OnFact", "OpenFile"]

log = logging.getLogger(__name__)

MAX_FREE_REPLY_BYTES = 4 * 1024 * 1024
CONNECT_TIMEOUT = 10.0
READ_TIMEOUT = 300.0
FREE_CALL_TIMEOUT = 10.0

BeforeSend = Callable[[], None]


class Generation(Struct, frozen=True):
    """The result of one paid request.

    :param images: the images, complete and checked; fewer than requested if ``warnings`` says so
    :param usage: the tokens that were billed, as integers under the names of OpenAI's Images API; ``None``
        if the gateway did not report them
    :param created: time of generation, in seconds since 1970, by the gateway's clock
    :param model: the model that the gateway reported, or else the requested one
    :param size: likewise
    :param quality: likewise
    :param request_id: the gateway's request ID, for its support
    :param seconds: duration from sending the request to the last byte of the response
    :param warnings: what differs from the request (missing images, another size or format), a sentence each
    """

    images: list[Image]
    usage: dict[str, Any] | None
    created: int | None
    model: str
    size: str
    quality: str
    request_id: str | None
    seconds: float
    warnings: tuple[str, ...] = ()

    def close(self) -> None:
        """Close the images' files, which deletes those without a name."""
        for image in self.images:
            image.file.close()


class Client:
    """A client of one gateway with one token. Threads may share it.

    :param token: the JojoKey token (``sk-…``); not needed with ``session``
    :param base_url: the gateway, with or without ``/v1``
    :param connect_timeout: seconds to wait for a connection
    :param read_timeout: seconds to wait for the next byte of a response. The gateway sends nothing for about
        two minutes while it generates an image of high quality. A response that brings no image data for
        this time, or for twice the expected duration if that is longer, times out
    :param verify: check TLS certificates; a path names a CA bundle
    :param proxy: the proxy's URL; by default, the proxy of the environment
    :param session: an authenticated session; by default, the client opens one. Only its own sessions can prove that
        a failed request was not sent; after an error of another session, it is unknown whether you were charged
    :param decode_slots: a semaphore that limits how many threads decode at once; by default, no limit
    :raises ValueError: if ``base_url`` is not an http(s) URL
    """

    def __init__(
        self,
        token: str | None = None,
        base_url: str | None = None,
        *,
        connect_timeout: float = CONNECT_TIMEOUT,
        read_timeout: float = READ_TIMEOUT,
        verify: bool | str = True,
        proxy: str | None = None,
        session: requests.Session | None = None,
        decode_slots: AbstractContextManager[Any] | None = None,
    ) -> None:
        self.base_url = addresses.base_url_of(base_url)
        self.timeout = (connect_timeout, read_timeout)
        self.session = session or transport.open_session(token, verify=verify, proxy=proxy)
        self._takes_response_format = True
        self._downloader = Downloader(self.base_url, self.session, connect_timeout, read_timeout)
        self._aborted = threading.Event()
        self._decode_slots = decode_slots
        if addresses.sends_token_in_the_clear(self.base_url):
            log.warning(
                "The token for %s is sent unencrypted: anyone on the network path can read and use it. "
                "Give the connection an https:// host.",
                self.base_url,
            )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close idle connections."""
        self.session.close()

    def preconnect(self) -> None:
        """Start to open a connection for a request that follows within two seconds."""
        transport.preconnect(self.session, f"{self.base_url}/v1/images/generations", self.timeout[0])

    def abort(self) -> None:
        """Abort all requests in flight. Waiting threads get an error; the gateway bills the requests anyway."""
        # Replace the event, so that requests started later are unaffected.
        aborted, self._aborted = self._aborted, threading.Event()
        aborted.set()
        transport.abort(self.session)
        self._downloader.abort()

    def generate(
        self,
        request: ImageRequest,
        open_file: OpenFile | None = None,
        *,
        before_send: BeforeSend | None = None,
        on_fact: OnFact | None = None,
    ) -> Generation:
        """Generate images: one paid POST.

        :param request: the images to generate
        :param open_file: returns the file for image 0, 1, 2 …; by default an unnamed temporary file, which closing
            deletes
        :param before_send: called right before each POST, also before the one without
            ``response_format``; if it raises, nothing is sent and its exception propagates
        :param on_fact: called with a name and a value as soon as a fact about the response is known:
            ``("request_id", id)``, ``("link", url)`` before the image is downloaded or of an asynchronous task,
            ``("task_id", id)``
        :raises Img2Error: if the client cannot return the images; ``billed`` says whether you were charged, and
            ``salvaged`` holds the images that arrived before the response was interrupted
        """
        for warning in request.warnings():
            log.warning(warning)
        started = time.monotonic()
        aborted = self._aborted
        note = on_fact or (lambda name, value: None)
        received, request_id = self._pay(
            request, before_send or (lambda: None), note, open_file or (lambda _: ImageFile()), aborted
        )
        for warning in received.warnings:
            log.warning(warning)
        document = received.reply.document
        created = document.get("created") if isinstance(document, dict) else None
        return Generation(
            images=received.images,
            usage=received.reply.usage,
            created=created if type(created) is int else None,
            model=self._str_field(document, "model") or request.model,
            size=self._str_field(document, "size") or request.size,
            quality=self._str_field(document, "quality") or request.quality,
            request_id=clean(request_id or "", self._secret) or None,
            seconds=time.monotonic() - started,
            warnings=received.warnings,
        )

    def list_models(self) -> list[str]:
        """Return the names of the models that this token may use. Costs nothing.

        :raises Img2Error: if the gateway does not return a list of models within 10 s
        """
        document = self._get("/v1/models")
        rows = document.get("data") if isinstance(document, dict) else None
        if not isinstance(rows, list):
            raise Img2Error(
                Kind.BASE_URL, "The response to GET /v1/models is not a list of models", billed="no"
            )
        return [row["id"] for row in rows if isinstance(row, dict) and isinstance(row.get("id"), str)]

    def token_usage(self) -> dict[str, Any]:
        """Return the token's quota, usage and expiry as the gateway reports them.

        Costs nothing, and works for a token that is expired or exhausted.

        :raises Img2Error: if the gateway does not support ``GET /api/usage/token/``
        """
        document = self._get("/api/usage/token/")
        data = document.get("data") if isinstance(document, dict) else None
        if not isinstance(data, dict):
            raise Img2Error(Kind.BASE_URL, "This gateway does not report a token's usage", billed="no")
        return data

    def billing_log(self) -> list[dict[str, Any]]:
        """Return the rows of the gateway's log for this token.

        Costs nothing, but the gateway allows only about 20 calls in 20 minutes. The log holds the last 1,000
        rows, and lists a request only after the model behind the gateway has finished.

        :raises Img2Error: if the gateway does not support ``GET /api/log/token``, or rate-limits it
        """
        document = self._get("/api/log/token")
        rows = document.get("data") if isinstance(document, dict) else None
        if not isinstance(rows, list):
            raise Img2Error(Kind.BASE_URL, "This gateway does not report a token's log", billed="no")
        return [row for row in rows if isinstance(row, dict)]

    def status(self) -> dict[str, Any]:
        """Return the gateway's public settings, such as ``quota_per_unit``. Costs nothing.

        :raises Img2Error: if the gateway does not support ``GET /api/status``
        """
        document = self._get("/api/status")
        data = document.get("data") if isinstance(document, dict) else None
        if not isinstance(data, dict):
            raise Img2Error(Kind.BASE_URL, "This gateway does not report its settings", billed="no")
        return data

    def explain_rejected_token(self) -> str | None:
        """Return why the gateway rejects the token, in sentences, or ``None`` if it does not say.

        Costs nothing: it requests the token's usage and, if that shows no reason, the list of models.
        """
        try:
            usage = self.token_usage()
        except Img2Error as error:
            if error.kind is Kind.TOKEN:
                said = f' ("{error.detail}")' if error.detail else ""
                return (
                    f"The gateway does not know this token, or the token is disabled{said}. Find it in "
                    "JojoKey's console and copy it again."
                )
            return None
        expires = usage.get("expires_at")
        if isinstance(expires, (int, float)) and 0 < expires < time.time():
            day = time.strftime("%Y-%m-%d", time.gmtime(expires))
            return f"The token expired on {day}. Create a new one in JojoKey's console."
        available = usage.get("total_available")
        if not usage.get("unlimited_quota") and isinstance(available, (int, float)) and available <= 0:
            return "The token's quota is used up. Raise it in JojoKey's console, or create a new token."
        try:
            self.list_models()
        except Img2Error as error:
            if error.kind is not Kind.TOKEN:
                return None
            return "The gateway knows the token, but it is disabled. Enable it in JojoKey's console."
        return (
            "The token is valid, so the gateway's own key for the model behind it was rejected. "
            "Ask JojoKey support to check the channel."
        )

    @property
    def _secret(self) -> str:
        return getattr(self.session.auth, "token", "")

    def _pay(
        self,
        request: ImageRequest,
        before_send: BeforeSend,
        note: OnFact,
        open_file: OpenFile,
        aborted: threading.Event,
    ) -> tuple[Received, str | None]:
        """Send a request and receive its response. Return what it contains, and the gateway's request ID."""

        def post() -> tuple[Received, str | None]:
            with self._send(body, before_send, note) as response:
                received = Receiver(
                    response=response,
                    request=request,
                    open_file=open_file,
                    on_fact=note,
                    downloader=self._downloader,
                    progress_timeout=max(self.timeout[1], 2 * expected_seconds(request)),
                    aborted=aborted,
                    decode_slots=self._decode_slots,
                    secret=self._secret,
                ).receive()
                return received, response.headers.get("X-Oneapi-Request-Id")

        body = request.body()
        if self._takes_response_format:
            body.setdefault("response_format", "b64_json")
        if body.get("response_format", "") is None:
            del body["response_format"]
        try:
            return post()
        except Img2Error as error:
            if "response_format" not in body or not _is_about_response_format(error):
                raise
            if error.billed != "no":
                error.advice = (
                    "Set extra_body={'response_format': None} to omit the field, or let the proxy "
                    "drop it (drop_params: true in LiteLLM). The request was not resent, because it may have "
                    "been billed."
                )
                raise
        # The API behind some channels always sends base64 and rejects the field. The gateway rejected the request,
        # so nothing was billed.
        log.info("This gateway rejects 'response_format': sending the request without it")
        self._takes_response_format = False
        del body["response_format"]
        return post()

    def _send(self, body: dict[str, Any], before_send: BeforeSend, note: OnFact) -> requests.Response:
        # Cloudflare explains its errors in JSON to clients that accept JSON.
        accept = "text/event-stream, application/json" if body.get("stream") else "application/json"
        before_send()
        try:
            response = self.session.post(
                f"{self.base_url}/v1/images/generations",
                json=body,
                # Compression hardly shrinks base64. A gateway that compresses anyway still works.
                headers={"Accept": accept, "Accept-Encoding": "identity", "Connection": "close"},
                timeout=self.timeout,
                stream=True,
                allow_redirects=False,
            )
        except (*NETWORK_ERRORS, ValueError) as error:
            raise from_network_error(error, self._secret) from None
        request_id = clean(response.headers.get("X-Oneapi-Request-Id", ""), self._secret)
        # A retrying proxy returns the ID of its last request only; an earlier one may have been billed.
        if request_id and not is_relay({name.lower(): "" for name in response.headers}):
            try:
                note("request_id", request_id)
            except BaseException:
                response.close()
                raise
        return response

    def _get(self, path: str) -> Any:
        try:
            response = self.session.get(
                f"{self.base_url}{path}",
                headers={"Accept": "application/json", "Connection": "close"},
                timeout=(min(self.timeout[0], FREE_CALL_TIMEOUT), FREE_CALL_TIMEOUT),
                stream=True,
                allow_redirects=False,
            )
        except (*NETWORK_ERRORS, ValueError) as error:
            raise from_network_error(error, self._secret, paid=False) from None
        with response:
            body = chunks.read_beginning(response, MAX_FREE_REPLY_BYTES, within=FREE_CALL_TIMEOUT)
            document = parse_json(body) if response.status_code == 200 else None
            if not isinstance(document, dict) or document.get("error") or document.get("success") is False:
                rejection = from_response(response.status_code, response.headers, body, secret=self._secret)
                if rejection.kind is Kind.REPLY:
                    raise Img2Error(
                        Kind.BASE_URL, f"The response to GET {path} is not in JojoKey's format", billed="no"
                    )
                rejection.billed = "no"
                raise rejection
            return document

    def _str_field(self, document: Any, name: str) -> str | None:
        """Return a text field of the response, which may be nested in ``data``."""
        nested = document.get("data") if isinstance(document, dict) else None
        for container in (document, nested):
            value = container.get(name) if isinstance(container, dict) else None
            if isinstance(value, str) and value:
                return clean(value, self._secret)[:100]
        return None


def _is_about_response_format(error: Img2Error) -> bool:
    return error.kind is Kind.REQUEST and "response_format" in error.detail
