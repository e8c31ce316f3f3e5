"""The client of the image API: one request out, images in files back.

``Client.generate`` sends one POST and, as the reply arrives, decodes it into files; the reply is
never whole in memory. It never sends a paid request again on its own: an answer that is lost may
have been billed, and whether to pay again is not for a transport to decide.
"""

from __future__ import annotations

import http.client
import json
import logging
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
import tenacity
import urllib3

from airflow_provider_jojokey.img2 import transport
from airflow_provider_jojokey.img2.errors import Img2Error, Kind, clean, from_response
from airflow_provider_jojokey.img2.estimate import expected_seconds
from airflow_provider_jojokey.img2.images import Image, ImageFile, NotAnImage
from airflow_provider_jojokey.img2.reply import Reply, ReplyDecoder, ReplyError
from airflow_provider_jojokey.img2.request import ImageRequest
from airflow_provider_jojokey.img2.stream import EventStreamDecoder

log = logging.getLogger(__name__)

READ_BYTES = 512 * 1024
"""Measured: pieces of 16 KiB cost three times the CPU, 1 MiB gains nothing."""
TLS_RECORD_BYTES = 16 * 1024
MAX_ERROR_BYTES = 64 * 1024
MAX_REDIRECTS = 3
CONNECT_TIMEOUT = 10.0
READ_TIMEOUT = 300.0
FREE_CALL_TIMEOUT = 10.0
DOWNLOAD_TRIES = 3
"""A linked image is paid for, and fetching it is free."""
DOWNLOAD_WAIT = 1.0
"""Seconds before the second try, twice as many before the third, and up to as many more by chance."""
DOWNLOAD_TIMEOUT = 60.0
"""Seconds to wait for the next byte of a linked image: it is made already."""

OpenFile = Callable[[int], ImageFile]
BeforeSend = Callable[[], None]
OnFact = Callable[[str, str], None]


@dataclass(frozen=True, slots=True)
class Generation:
    """What one paid request gave.

    :param images: the images, whole and checked
    :param usage: the tokens that were billed, as the gateway told them; ``None`` where it did not
    :param created: when, in seconds since 1970, by the gateway's clock
    :param model: the model, as the gateway told it or else as it was asked for
    :param size: likewise
    :param quality: likewise
    :param request_id: the gateway's, for its support
    :param seconds: from sending to the last byte
    """

    images: list[Image]
    usage: dict[str, Any] | None
    created: int | None
    model: str
    size: str
    quality: str
    request_id: str | None
    seconds: float

    def close(self) -> None:
        """Close the images' files; those without a name are gone then."""
        for image in self.images:
            image.file.close()


class Client:
    """A client of one gateway with one token. It may be used by many threads at once.

    :param token: the JojoKey token (``sk-…``); not needed with ``session``
    :param base_url: the gateway, with or without ``/v1``
    :param connect_timeout: seconds to wait for a connection
    :param read_timeout: seconds to wait for the next byte of an answer; a generation of high
        quality is silent for about two minutes. An event stream that brings nothing of an image is
        given up after as long, or after twice what such an image takes if that is longer
    :param verify: check TLS certificates; a path names a CA bundle
    :param proxy: a proxy's URL; without it, the environment's
    :param session: an authenticated session to use instead of making one
    :param decode_slots: a semaphore that bounds how many threads decode at once; without it, all may
    :raises ValueError: if ``base_url`` is no http(s) address
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
        self.base_url = transport.base_url_of(base_url)
        self.timeout = (connect_timeout, read_timeout)
        self.session = session or transport.open_session(token, verify=verify, proxy=proxy)
        self._takes_response_format = True
        self._downloads: set[requests.Session] = set()
        self._cut = threading.Event()
        self._decode_slots = decode_slots
        if transport.sends_token_in_the_clear(self.base_url):
            log.warning(
                "The token for %s travels unencrypted: anyone on the way can read and use it. "
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

    def abort(self) -> None:
        """Break off what is in flight: waiting threads get an error now. It is billed anyway."""
        cut, self._cut = self._cut, threading.Event()  # what is begun from now on is not meant
        cut.set()
        transport.cut(self.session)
        for session in tuple(self._downloads):  # a copy at one go: others may begin meanwhile
            transport.cut(session)

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
        :param open_file: makes the file for image 0, 1, 2 …; by default a file without a name, gone
            when it is closed
        :param before_send: called right before each POST, also before the one without
            ``response_format``; if it raises, nothing is sent and its exception propagates
        :param on_fact: called with a name and a value as soon as a fact about the response is known:
            ``("request_id", id)``, ``("link", url)`` before the image is downloaded, ``("task_id", id)``
        :raises Img2Error: if there are no images; its ``billed`` says whether it cost money, and
            its ``salvaged`` holds the images that had arrived before a reply broke off
        """
        for warning in request.warnings():
            log.warning(warning)
        started = time.monotonic()
        cut = self._cut
        note = on_fact or (lambda name, value: None)
        with self._post(request, before_send or (lambda: None), note) as response:
            request_id = response.headers.get("X-Oneapi-Request-Id")
            patience = max(self.timeout[1], 2 * expected_seconds(request))
            reply, images = self._receive(response, open_file or (lambda _: ImageFile()), patience, cut, note)
        document = reply.document
        usage = document.get("usage")
        return Generation(
            images=images,
            usage=usage if isinstance(usage, dict) else None,
            created=document.get("created") if isinstance(document.get("created"), int) else None,
            model=_told(document, "model") or request.model,
            size=_told(document, "size") or request.size,
            quality=_told(document, "quality") or request.quality,
            request_id=clean(request_id or "", self._secret) or None,
            seconds=time.monotonic() - started,
        )

    def list_models(self) -> list[str]:
        """Return the names of the models that this token may use. Costs nothing.

        :raises Img2Error: if the gateway does not answer with a list of models within 10 s
        """
        document = self._get("/v1/models")
        rows = document.get("data") if isinstance(document, dict) else None
        if not isinstance(rows, list):
            raise Img2Error(Kind.BASE_URL, "The answer to GET /v1/models is not a list of models")
        return [row["id"] for row in rows if isinstance(row, dict) and isinstance(row.get("id"), str)]

    def token_usage(self) -> dict[str, Any]:
        """Return what the gateway tells of the token: its quota, what was used, when it expires.

        Costs nothing, and works for a token that is expired or used up.

        :raises Img2Error: if the gateway does not know ``GET /api/usage/token/``
        """
        document = self._get("/api/usage/token/")
        data = document.get("data") if isinstance(document, dict) else None
        if not isinstance(data, dict):
            raise Img2Error(Kind.BASE_URL, "This gateway does not tell a token's usage")
        return data

    def billing_log(self) -> list[dict[str, Any]]:
        """Return the rows of the gateway's log of this token.

        Costs nothing, but the gateway allows some 20 calls in 20 minutes. It holds the last 1,000
        rows, and a request appears in it only when the model behind the gateway has finished.

        :raises Img2Error: if the gateway does not know ``GET /api/log/token``, or not now
        """
        document = self._get("/api/log/token")
        rows = document.get("data") if isinstance(document, dict) else None
        if not isinstance(rows, list):
            raise Img2Error(Kind.BASE_URL, "This gateway does not show a token's log")
        return [row for row in rows if isinstance(row, dict)]

    def explain_rejected_token(self) -> str | None:
        """Return why the gateway refuses the token, a sentence, or ``None`` where it does not tell."""
        try:
            told = self.token_usage()
        except Img2Error as error:
            if error.kind is Kind.TOKEN:
                said = f' ("{error.detail}")' if error.detail else ""
                return (
                    f"The gateway does not know this token, or it is disabled{said}: look it up in "
                    "JojoKey's console, and copy it again."
                )
            return None
        expires = told.get("expires_at")
        if isinstance(expires, (int, float)) and 0 < expires < time.time():
            day = time.strftime("%Y-%m-%d", time.gmtime(expires))
            return f"The token expired on {day}: make a new one in JojoKey's console."
        available = told.get("total_available")
        if not told.get("unlimited_quota") and isinstance(available, (int, float)) and available <= 0:
            return "The token's quota is used up: raise it in JojoKey's console, or make a new token."
        return "The gateway knows the token, but it is disabled: enable it in JojoKey's console."

    # The names of the first edition.
    why_refused = explain_rejected_token
    cut = abort

    @property
    def _secret(self) -> str:
        return getattr(self.session.auth, "token", "")

    @contextmanager
    def _post(
        self, request: ImageRequest, before_send: BeforeSend, note: OnFact
    ) -> Iterator[requests.Response]:
        body = request.body()
        if self._takes_response_format:
            body.setdefault("response_format", "b64_json")
        response = self._send(body, before_send, note)
        try:
            if response.status_code != 200:
                error = self._error(response)
                if "response_format" in body and _is_about_response_format(error):
                    # The API behind some channels always sends base64 and refuses to be asked for it.
                    # It was refused, so nothing was billed.
                    log.info("This gateway refuses 'response_format': sending the request without it")
                    self._takes_response_format = False
                    response.close()
                    del body["response_format"]
                    response = self._send(body, before_send, note)
                    if response.status_code != 200:
                        raise self._error(response)
                else:
                    raise error
            yield response
        finally:
            response.close()

    def _send(self, body: dict[str, Any], before_send: BeforeSend, note: OnFact) -> requests.Response:
        # Cloudflare explains its errors in JSON to who accepts JSON.
        accept = "text/event-stream, application/json" if body.get("stream") else "application/json"
        before_send()
        try:
            response = self.session.post(
                f"{self.base_url}/v1/images/generations",
                json=body,
                # base64 hardly shrinks, so identity; a gateway that compresses anyway is understood.
                headers={"Accept": accept, "Accept-Encoding": "identity", "Connection": "close"},
                timeout=self.timeout,
                stream=True,
                allow_redirects=False,
            )
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise _not_answered(error, self._secret) from None
        if request_id := clean(response.headers.get("X-Oneapi-Request-Id", ""), self._secret):
            try:
                note("request_id", request_id)
            except BaseException:
                response.close()
                raise
        return response

    def _receive(
        self,
        response: requests.Response,
        open_file: OpenFile,
        patience: float,
        cut: threading.Event,
        note: OnFact,
    ) -> tuple[Reply, list[Image]]:
        """Decode the reply of a 200 as it arrives; where that fails, only what is whole stays open.

        :param patience: seconds to wait for an event stream's next byte of an image, whatever else comes
        :param cut: ends the waits between the tries of a download
        :raises Img2Error: if it cannot be used
        """
        files: list[ImageFile] = []

        def open_and_keep(index: int) -> ImageFile:
            files.append(open_file(index))
            return files[-1]

        try:
            return self._decode(response, open_and_keep, files, patience, cut, note)
        except BaseException as error:
            whole = [image.file for image in getattr(error, "salvaged", ())]
            for file in files:
                if file not in whole:
                    file.close()
            raise

    def _decode(
        self,
        response: requests.Response,
        open_and_keep: OpenFile,
        files: list[ImageFile],
        patience: float,
        cut: threading.Event,
        note: OnFact,
    ) -> tuple[Reply, list[Image]]:
        links: list[str] = []
        decoder: ReplyDecoder | EventStreamDecoder = ReplyDecoder(open_and_keep, on_whole=ImageFile.seal)
        beginning = b""
        images: list[Image] = []
        arrived, deadline = 0, time.monotonic() + patience
        try:
            for piece in pieces(response, self._decode_slots):
                if not beginning and _begins_an_event_stream(response, piece):
                    decoder = EventStreamDecoder(open_and_keep, ImageFile.seal, ImageFile.seal_preview)
                if len(beginning) < MAX_ERROR_BYTES:
                    beginning += piece[:MAX_ERROR_BYTES]
                decoder.feed(piece)
                if (size := sum(file.size for file in files)) != arrived:
                    arrived, deadline = size, time.monotonic() + patience
                elif isinstance(decoder, EventStreamDecoder) and time.monotonic() > deadline:
                    # Pings say that the gateway is there, not that the model behind it is at work.
                    reason = f"the event stream has brought nothing of an image for {patience:.0f} s"
                    raise self._unusable(response, reason, decoder, images, Kind.UNKNOWN_OUTCOME)
                del piece  # nothing of it is held while the next is waited for
            reply = decoder.finish()
            document = reply.document
            if not isinstance(document, dict) or document.get("error"):
                raise from_response(200, response.headers, beginning, secret=self._secret, document=document)
            missing: ReplyError | NotAnImage | None = None
            for element in reply.images:
                try:
                    if element.sink is None and element.url:
                        note("link", element.url)
                    images.append(self._image(element, open_and_keep, cut))
                except (ReplyError, NotAnImage) as error:
                    if element.sink is None and element.url:
                        links.append(element.url)
                    missing = missing or error  # those behind it are paid for as well
            if missing is not None:
                raise missing
            if not images:
                raise from_response(200, response.headers, b"", secret=self._secret, document=document)
            return reply, images
        except (ReplyError, NotAnImage) as error:
            if not files and type(decoder) is ReplyDecoder and beginning.lstrip()[:1] not in (b"{", b"["):
                raise from_response(200, response.headers, beginning, secret=self._secret) from None
            unusable = self._unusable(response, str(error), decoder, images)
            unusable.links += links
            raise unusable from None
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            if _is_disk(error):
                reason = f"it could not be kept on this machine's disk: {_reason(error)}"
                raise self._unusable(response, reason, decoder, images) from None
            raise self._unusable(response, f"it broke off: {_reason(error)}", decoder, images) from None

    def _unusable(
        self,
        response: requests.Response,
        reason: str,
        decoder: ReplyDecoder | EventStreamDecoder,
        images: list[Image],
        kind: Kind = Kind.REPLY,
    ) -> Img2Error:
        lost = kind is Kind.UNKNOWN_OUTCOME
        what = "The answer of JojoKey was lost" if lost else "JojoKey's reply cannot be used"
        error = Img2Error(
            kind,
            f"{what}: {clean(reason, self._secret)}",
            billed="unknown" if lost else "yes",
            status_code=response.status_code,
            request_id=clean(response.headers.get("X-Oneapi-Request-Id", ""), self._secret) or None,
            cf_ray=clean(response.headers.get("cf-ray", ""), self._secret) or None,
        )
        error.salvaged += images
        known = [image.file for image in images]
        for index, file in enumerate(decoder.whole_sinks):
            if file in known or file.file.closed:
                continue
            try:
                header = file.header()
                error.salvaged.append(Image(index, file, header.content_type, header.width, header.height))
            except NotAnImage:
                continue
        return error

    def _image(self, element: Any, open_and_keep: OpenFile, cut: threading.Event) -> Image:
        file = element.sink
        if file is None and element.url:
            file = open_and_keep(element.index)
            self._download(element.url, file, cut)
            file.seal()
        if file is None:
            raise ReplyError(f"image {element.index + 1} of the reply is missing")
        try:
            header = file.header()
        except NotAnImage as error:
            raise NotAnImage(f"image {element.index + 1} is {error}, not PNG, JPEG or WebP") from None
        return Image(
            element.index, file, header.content_type, header.width, header.height, element.revised_prompt
        )

    def _download(self, url: str, file: ImageFile, cut: threading.Event) -> None:
        """Fetch an image that the reply only links to, in a few tries.

        :param cut: ends the waits, and with them the tries
        :raises ReplyError: if it cannot be had
        :raises NotAnImage: past the size limit
        :raises OSError: if it cannot be written
        """
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_PassingFailure),
            wait=tenacity.wait_exponential(DOWNLOAD_WAIT) + tenacity.wait_random(0, DOWNLOAD_WAIT),
            stop=tenacity.stop_any(
                tenacity.stop_after_attempt(DOWNLOAD_TRIES), tenacity.stop_when_event_set(cut)
            ),
            sleep=tenacity.sleep_using_event(cut),
            before_sleep=self._log_download,
            reraise=True,
        )
        retrying(self._try_download, url, file, cut)

    def _try_download(self, url: str, file: ImageFile, cut: threading.Event) -> None:
        """Fetch a linked image once, without the token.

        A link is hostile input: https to a public address, or the gateway's own host and port.

        :raises ReplyError: if it cannot be had; as a ``_PassingFailure`` where another try may help
        """
        if cut.is_set():
            raise ReplyError("it was cut before the linked image was fetched")
        file.clear()
        for _ in range(1 + MAX_REDIRECTS):
            own = _is_own_link(url, self.base_url)
            with self._download_session(public_only=not own) as session:
                with _download_errors():
                    response = session.get(
                        url,
                        timeout=(self.timeout[0], min(self.timeout[1], DOWNLOAD_TIMEOUT)),
                        stream=True,
                        allow_redirects=False,
                    )
                with response:
                    if response.is_redirect:
                        url = _redirected(url, response.headers["location"])
                        continue
                    if (status := response.status_code) != 200:
                        kind = _PassingFailure if status in (408, 429) or status >= 500 else ReplyError
                        raise kind(f"the linked image cannot be fetched: HTTP {status}")
                    for piece in _downloaded(response):
                        file.write(piece)
                    return
        raise ReplyError(f"the linked image redirects more than {MAX_REDIRECTS} times")

    @contextmanager
    def _download_session(self, public_only: bool) -> Iterator[requests.Session]:
        """Make a session without the token, known to :meth:`cut` while it is used."""
        verify = True if self.session.verify is None else self.session.verify
        with transport.open_session(None, verify=verify, public_only=public_only) as session:
            session.proxies = dict(self.session.proxies)
            self._downloads.add(session)
            try:
                yield session
            finally:
                self._downloads.discard(session)

    def _log_download(self, state: Any) -> None:
        log.warning(
            "A paid image has not arrived: %s. Fetching it again, which is free, in %.0f s (try %d of %d).",
            clean(str(state.outcome.exception()), self._secret),
            state.next_action.sleep,
            state.attempt_number + 1,
            DOWNLOAD_TRIES,
        )

    def _get(self, path: str) -> Any:
        try:
            response = self.session.get(
                f"{self.base_url}{path}",
                headers={"Accept": "application/json", "Connection": "close"},
                timeout=(min(self.timeout[0], FREE_CALL_TIMEOUT), FREE_CALL_TIMEOUT),
                stream=True,
                allow_redirects=False,
            )
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise _not_answered(error, self._secret, paid=False) from None
        with response:
            body = _beginning(response, 4 * 1024 * 1024, within=FREE_CALL_TIMEOUT)
            document = None
            if response.status_code == 200:
                try:
                    document = json.loads(body)
                except ValueError:
                    document = None
            if not isinstance(document, dict) or document.get("error") or document.get("success") is False:
                refusal = from_response(response.status_code, response.headers, body, secret=self._secret)
                if refusal.kind is Kind.REPLY:
                    raise Img2Error(Kind.BASE_URL, f"The answer to GET {path} is not what JojoKey answers")
                refusal.billed = "no"
                raise refusal
            return document

    def _error(self, response: requests.Response) -> Img2Error:
        return from_response(
            response.status_code,
            response.headers,
            _beginning(response, MAX_ERROR_BYTES),
            secret=self._secret,
        )


class _PassingFailure(ReplyError):
    """A linked image that could not be fetched, and may be another time."""


@contextmanager
def _download_errors() -> Iterator[None]:
    """Turn what the network does inside into a :class:`ReplyError`, one that passes where it may."""
    try:
        yield
    except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
        # An address that is not valid or not public, or a certificate that is not trusted, stays so.
        lasting = (transport.ForbiddenAddress, ssl.SSLCertVerificationError)
        lasts = isinstance(error, ValueError) or any(isinstance(one, lasting) for one in _causes(error))
        kind = ReplyError if lasts else _PassingFailure
        raise kind(f"the linked image cannot be fetched: {_reason(error)}") from None


def _downloaded(response: requests.Response) -> Iterator[bytes]:
    """Yield a linked image as it arrives; an error of who takes the pieces is not turned into another."""
    with _download_errors():
        yield from pieces(response)


def pieces(response: requests.Response, turns: AbstractContextManager[Any] | None = None) -> Iterator[bytes]:
    """Yield the body as it arrives, and what has come before an error before the error.

    ``read`` would lose the bytes it had gathered when the connection breaks, and with them perhaps
    a whole image; so each receive is taken as it comes. TLS hands out records of 16 KiB, which
    would cost three times the CPU: whole records are gathered while more are likely to follow.

    :param turns: held from a piece's first bytes until it has been used: many replies that come at once
        take the memory of a few
    """
    failure: BaseException | None = None
    while failure is None:
        # Without a turn it is only waited, for something small.
        piece = response.raw.read1(READ_BYTES if turns is None else TLS_RECORD_BYTES, decode_content=True)
        if not piece:
            return
        with turns or nullcontext():
            gathered = [piece]
            while len(piece) == TLS_RECORD_BYTES and len(gathered) < READ_BYTES // TLS_RECORD_BYTES:
                try:
                    piece = response.raw.read1(READ_BYTES, decode_content=True)
                except (urllib3.exceptions.HTTPError, OSError) as error:
                    failure = error
                    break
                if piece:
                    gathered.append(piece)
            whole = gathered[0] if len(gathered) == 1 else b"".join(gathered)
            del gathered, piece  # what was used is not held while the next is waited for
            yield whole
            del whole
    raise failure


def _beginning(response: requests.Response, limit: int, within: float = 60.0) -> bytes:
    """Return the body's first ``limit`` bytes; what breaks off on the way is no further matter.

    :param within: seconds after which no more is waited for, however busily it drips
    """
    body = b""
    end = time.monotonic() + within
    try:
        for piece in pieces(response):
            body += piece
            if len(body) >= limit or time.monotonic() > end:
                break
    except (urllib3.exceptions.HTTPError, OSError):
        pass
    return body[:limit]


def _begins_an_event_stream(response: requests.Response, beginning: bytes) -> bool:
    """Tell from the reply itself: a gateway may ignore ``stream``, or name the type wrongly."""
    if beginning.lstrip()[:1] in (b"{", b"[", b"<"):
        return False
    named = response.headers.get("Content-Type", "").startswith("text/event-stream")
    return named or beginning.lstrip().startswith((b"data:", b"event:", b":"))


def _told(document: dict[str, Any], name: str) -> str | None:
    value = document.get(name)
    return clean(value)[:100] if isinstance(value, str) and value else None


def _is_about_response_format(error: Img2Error) -> bool:
    return error.kind is Kind.REQUEST and "response_format" in error.detail


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"https": 443, "http": 80}.get(parts.scheme)


def _is_own_link(url: str, base_url: str) -> bool:
    """Tell whether ``url`` leads to the gateway itself.

    :raises ReplyError: if it leads where no image may be fetched from
    """
    try:
        parts = urlsplit(url)
        own = _origin(url) == _origin(base_url)
    except ValueError:
        raise ReplyError("the reply links to an image at an address that is none") from None
    if parts.username is not None or parts.password is not None:
        raise ReplyError("the reply links to an image at an address with a login in it")
    if own:
        return True
    if parts.scheme != "https" or not parts.hostname:
        raise ReplyError("the reply links to an image at an address that is not https")
    try:
        transport.require_public(parts.hostname)
    except transport.ForbiddenAddress as error:
        raise ReplyError(f"the reply links to an image where {error}") from None
    except ValueError:
        pass  # a name: where it leads is checked once connected
    return False


def _redirected(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError:
        raise ReplyError("the linked image redirects to an address that is none") from None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield ``error`` and what it wraps: requests and urllib3 wrap by cause, context, reason and args."""
    seen: set[int] = set()
    todo: list[Any] = [error]
    while todo:
        one = todo.pop(0)
        if isinstance(one, BaseException) and id(one) not in seen:
            seen.add(id(one))
            yield one
            todo += [one.__cause__, one.__context__, getattr(one, "reason", None), *one.args]


def _reason(error: BaseException) -> str:
    """Return the innermost cause, in a few words and without addresses of objects."""
    causes = list(_causes(error))
    if any(
        isinstance(one, (urllib3.exceptions.InvalidChunkLength, http.client.IncompleteRead)) for one in causes
    ):
        return "the connection was closed in the middle"  # its own words are of hexadecimal numbers
    innermost = causes[-1]
    if isinstance(innermost, OSError) and innermost.strerror:
        return innermost.strerror
    text = clean(str(innermost))[:200]
    return text or type(innermost).__name__


def _is_disk(error: BaseException) -> bool:
    network = (ConnectionError, TimeoutError, requests.RequestException, ssl.SSLError)
    return isinstance(error, OSError) and not isinstance(error, network)


def _not_answered(error: BaseException, secret: str, paid: bool = True) -> Img2Error:
    """Return what it means that no answer's head arrived."""
    causes = list(_causes(error))
    reason = clean(_reason(error), secret)

    def caused_by(*types: type[BaseException]) -> bool:
        return any(isinstance(cause, types) for cause in causes)

    if caused_by(requests.exceptions.InvalidHeader, UnicodeEncodeError) or (
        type(error) is ValueError and "header" in reason
    ):
        return Img2Error(Kind.TOKEN, "The token holds characters that no token has")
    if caused_by(
        requests.exceptions.InvalidURL,
        requests.exceptions.MissingSchema,
        requests.exceptions.InvalidSchema,
        urllib3.exceptions.LocationParseError,
    ):
        return Img2Error(Kind.BASE_URL, f"The address of the image API is not valid: {reason}")
    # A ProxyError alone proves nothing: urllib3 says so too when an answer through a proxy is lost.
    unsent = any(map(transport.failed_before_sending, causes))
    if unsent and caused_by(requests.exceptions.ProxyError):
        return Img2Error(Kind.UNREACHABLE, f"The proxy did not let the request through: {reason}")
    if isinstance(error, OSError) and not isinstance(error, requests.RequestException):
        # Only what requests reads before it connects comes through as it is: the CA bundle.
        return Img2Error(Kind.TLS, f"The CA bundle cannot be read: {reason}")
    if caused_by(ssl.SSLCertVerificationError) or (unsent and caused_by(ssl.SSLError)):
        return Img2Error(Kind.TLS, f"No trusted connection to JojoKey could be made: {reason}")
    if unsent or caused_by(
        urllib3.exceptions.NewConnectionError,
        urllib3.exceptions.ConnectTimeoutError,
        requests.exceptions.ConnectTimeout,
    ):
        return Img2Error(Kind.UNREACHABLE, f"JojoKey could not be reached: {reason}")
    if not paid:
        return Img2Error(Kind.UNREACHABLE, f"JojoKey did not answer: {reason}")
    return Img2Error(
        Kind.UNKNOWN_OUTCOME, f"The answer of JojoKey was lost after sending: {reason}", billed="unknown"
    )
