"""Download images that a response links to. They are already paid; the download is free.

A link is untrusted input. The downloader accepts links to the gateway's own host, and https links to public
addresses. It checks the address of the connected socket, so a DNS response that changes in between has no
effect. It never sends the token.
"""

from __future__ import annotations

import logging
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urljoin, urlsplit, urlunsplit

import requests
import tenacity

from airflow_provider_jojokey.img2 import addresses, chunks, transport
from airflow_provider_jojokey.img2.failures import NETWORK_ERRORS, causes, describe_cause
from airflow_provider_jojokey.img2.images import ImageFile, Incomplete, NotAnImage
from airflow_provider_jojokey.img2.redact import clean
from airflow_provider_jojokey.img2.splitter import ReplyError

log = logging.getLogger(__name__)

MAX_REDIRECTS = 3
TRIES = 5
WAIT = 1.0
"""Seconds before the second attempt, doubled for each further attempt, plus up to one second of jitter."""
TIMEOUT = 60.0
"""Seconds to wait for the next byte. Shorter than for a generation, because a linked image already exists."""

COMPLETE_STATUS = {200, 203, 206}
TRANSIENT_STATUS = {202, 204, 404, 408, 409, 425, 429}
"""In addition to 5xx. A link may return 404, or no content, until its object is readable in every region."""


class TransientFailure(ReplyError):
    """A linked image could not be downloaded, but another attempt may succeed."""


class Downloader:
    """Downloads the linked images of one client. Threads may share it.

    :param base_url: the gateway's URL, to which links may be relative
    :param session: the client's session, whose ``verify`` and proxies apply
    :param connect_timeout: seconds
    :param read_timeout: seconds
    """

    def __init__(
        self, base_url: str, session: requests.Session, connect_timeout: float, read_timeout: float
    ) -> None:
        self._base_url = base_url
        self._session = session
        self._timeout = (connect_timeout, min(read_timeout, TIMEOUT))
        self._active: set[requests.Session] = set()

    def abort(self) -> None:
        """Abort all downloads in flight."""
        for session in tuple(self._active):  # an atomic copy, because other threads may add sessions
            transport.abort(session)

    def resolve(self, link: str) -> str:
        """Return the absolute URL of a link.

        Replace http by https: many gateways behind a TLS proxy write their own links with plain http.
        """
        try:
            url = urljoin(f"{self._base_url}/v1/images/generations", link.strip())
            parts = urlsplit(url)
            upgradable = parts.scheme == "http" and parts.port in (None, 80)
            if upgradable and not addresses.is_own_origin(url, self._base_url):
                return urlunsplit(parts._replace(scheme="https", netloc=parts.netloc.removesuffix(":80")))
        except ValueError:
            return link
        return url

    def download(self, url: str, file: ImageFile, aborted: threading.Event, secret: str = "") -> None:
        """Download ``url`` into ``file``, and retry transient errors.

        :param aborted: ends the waits and prevents further attempts
        :param secret: a text that must not be logged, the token
        :raises ReplyError: if the image cannot be downloaded
        :raises NotAnImage: if it exceeds the size limit
        :raises OSError: if the file cannot be written
        """

        def log_failure(state: Any) -> None:
            log.warning(
                "Could not download a linked image, which is already paid: %s. Retrying at no cost in %.0f s "
                "(attempt %d of %d).",
                clean(str(state.outcome.exception()), secret),
                state.next_action.sleep,
                state.attempt_number + 1,
                TRIES,
            )

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(TransientFailure),
            wait=tenacity.wait_exponential(WAIT) + tenacity.wait_random(0, WAIT),
            stop=tenacity.stop_any(tenacity.stop_after_attempt(TRIES), tenacity.stop_when_event_set(aborted)),
            sleep=tenacity.sleep_using_event(aborted),
            before_sleep=log_failure,
            reraise=True,
        )
        retrying(self._try, url, file, aborted)

    def _try(self, url: str, file: ImageFile, aborted: threading.Event) -> None:
        if aborted.is_set():
            raise ReplyError("the request was aborted before the linked image was downloaded")
        file.clear()
        for _ in range(1 + MAX_REDIRECTS):
            own = _is_allowed(url, self._base_url)
            with self._new_session(public_only=not own) as session:
                with _download_errors():
                    response = session.get(url, timeout=self._timeout, stream=True, allow_redirects=False)
                with response:
                    if response.is_redirect:
                        url = _redirected(url, response.headers["location"])
                        continue
                    if (status := response.status_code) not in COMPLETE_STATUS:
                        kind = TransientFailure if status in TRANSIENT_STATUS or status >= 500 else ReplyError
                        raise kind(f"the linked image cannot be downloaded: HTTP {status}")
                    for chunk in _chunks(response):
                        file.write(chunk)
                    _require_complete(file)
                    return
        raise ReplyError(f"the linked image redirects more than {MAX_REDIRECTS} times")

    @contextmanager
    def _new_session(self, public_only: bool) -> Iterator[requests.Session]:
        """Open a session without the token, and let :meth:`abort` find it while it is used."""
        verify = True if self._session.verify is None else self._session.verify
        with transport.open_session(None, verify=verify, public_only=public_only) as session:
            session.proxies = dict(self._session.proxies)
            self._active.add(session)
            try:
                yield session
            finally:
                self._active.discard(session)


@contextmanager
def _download_errors() -> Iterator[None]:
    """Translate network errors into :class:`ReplyError` or :class:`TransientFailure`."""
    try:
        yield
    except (*NETWORK_ERRORS, ValueError) as error:
        # Retrying does not fix an invalid or private address or an untrusted certificate.
        permanent_types = (addresses.ForbiddenAddress, ssl.SSLCertVerificationError)
        permanent = isinstance(error, ValueError) or any(
            isinstance(c, permanent_types) for c in causes(error)
        )
        kind = ReplyError if permanent else TransientFailure
        raise kind(f"the linked image cannot be downloaded: {describe_cause(error)}") from None


def _chunks(response: requests.Response) -> Iterator[bytes]:
    """Yield the chunks of a linked image. Errors of the calling code are not translated."""
    with _download_errors():
        yield from chunks.iter_chunks(response)


def _require_complete(file: ImageFile) -> None:
    try:
        file.check()
    except Incomplete as error:
        raise TransientFailure(f"the linked image is {error}") from None
    except NotAnImage:
        return  # a retry would return the same bytes


def _is_allowed(url: str, base_url: str) -> bool:
    """Return whether ``url`` is on the gateway itself.

    :raises ReplyError: if downloads from ``url`` are not allowed
    """
    try:
        parts = urlsplit(url)
        own = addresses.is_own_origin(url, base_url)
    except ValueError:
        raise ReplyError("the response links to an image at an invalid URL") from None
    if parts.username is not None or parts.password is not None:
        raise ReplyError("the response links to an image at a URL that contains a login")
    if own:
        return True
    if parts.scheme != "https" or not parts.hostname:
        raise ReplyError("the response links to an image at a URL that is not https")
    try:
        addresses.require_public(parts.hostname)
    except addresses.ForbiddenAddress as error:
        raise ReplyError(f"the response links to an image at a forbidden address: {error}") from None
    except ValueError:
        pass  # a host name: the adapter checks its address after connecting
    return False


def _redirected(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError:
        raise ReplyError("the linked image redirects to an invalid URL") from None
