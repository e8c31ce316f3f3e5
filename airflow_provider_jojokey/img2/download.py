"""Download images that a reply only links to. They are paid for, and downloading them is free.

A link is hostile input. It may lead to the gateway's own host, or by https to a public address, which is
checked on the connected socket, so that no DNS response can change in between. The token is never sent.
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

from airflow_provider_jojokey.img2 import addresses, transport
from airflow_provider_jojokey.img2.failures import NETWORK_ERRORS, causes, reason_of
from airflow_provider_jojokey.img2.images import ImageFile, Incomplete, NotAnImage
from airflow_provider_jojokey.img2.redact import clean
from airflow_provider_jojokey.img2.splitter import ReplyError

log = logging.getLogger(__name__)

MAX_REDIRECTS = 3
TRIES = 5
WAIT = 1.0
"""Seconds before the second try, doubled for each further one, and up to as many more by chance."""
TIMEOUT = 60.0
"""Seconds to wait for the next byte of a linked image: it exists already."""

TRANSIENT_STATUS = {404, 408, 409, 425, 429}
"""Apart from 5xx. A link may be signed before its object can be read everywhere, which gives 404."""


class TransientFailure(ReplyError):
    """A linked image could not be downloaded, and another try may help."""


class Downloader:
    """Downloads the linked images of one client. Threads may share it.

    :param base_url: the gateway; links may be relative to it
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
        for session in tuple(self._active):  # an atomic copy: other threads may begin meanwhile
            transport.abort(session)

    def resolve(self, link: str) -> str:
        """Return the absolute URL of a link: relative ones are the gateway's.

        A plain http link is tried by https: many gateways behind a TLS proxy write their own links so.
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
        """Download ``url`` into ``file``, in a few tries.

        :param aborted: ends the waits, and with them the tries
        :param secret: a text that must not be logged, the token
        :raises ReplyError: if it cannot be downloaded
        :raises NotAnImage: past the size limit
        :raises OSError: if it cannot be written
        """

        def log_failure(state: Any) -> None:
            log.warning(
                "A linked image, which is paid for, could not be downloaded: %s. Trying again at no cost in "
                "%.0f s (try %d of %d).",
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
            raise ReplyError("it was aborted before the linked image was downloaded")
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
                    if (status := response.status_code) != 200:
                        kind = TransientFailure if status in TRANSIENT_STATUS or status >= 500 else ReplyError
                        raise kind(f"the linked image cannot be downloaded: HTTP {status}")
                    for piece in _chunks(response):
                        file.write(piece)
                    _require_complete(file)
                    return
        raise ReplyError(f"the linked image redirects more than {MAX_REDIRECTS} times")

    @contextmanager
    def _new_session(self, public_only: bool) -> Iterator[requests.Session]:
        """Make a session without the token, known to :meth:`abort` while it is used."""
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
    """Turn network errors inside into a :class:`ReplyError`, transient where another try may help."""
    try:
        yield
    except (*NETWORK_ERRORS, ValueError) as error:
        # An address that is not valid or not public, or a certificate that is not trusted, stays so.
        lasting = (addresses.ForbiddenAddress, ssl.SSLCertVerificationError)
        lasts = isinstance(error, ValueError) or any(isinstance(cause, lasting) for cause in causes(error))
        kind = ReplyError if lasts else TransientFailure
        raise kind(f"the linked image cannot be downloaded: {reason_of(error)}") from None


def _chunks(response: requests.Response) -> Iterator[bytes]:
    """Yield a linked image as it arrives; errors of the code that uses the pieces are not translated."""
    with _download_errors():
        yield from transport.iter_chunks(response)


def _require_complete(file: ImageFile) -> None:
    try:
        file.check()
    except Incomplete as error:
        raise TransientFailure(f"the linked image is {error}") from None
    except NotAnImage:
        return  # another try would bring the same


def _is_allowed(url: str, base_url: str) -> bool:
    """Return whether ``url`` is on the gateway itself.

    :raises ReplyError: if no image may be downloaded from there
    """
    try:
        parts = urlsplit(url)
        own = addresses.is_own_origin(url, base_url)
    except ValueError:
        raise ReplyError("the reply links to an image at an invalid URL") from None
    if parts.username is not None or parts.password is not None:
        raise ReplyError("the reply links to an image at a URL with a login in it")
    if own:
        return True
    if parts.scheme != "https" or not parts.hostname:
        raise ReplyError("the reply links to an image at a URL that is not https")
    try:
        addresses.require_public(parts.hostname)
    except addresses.ForbiddenAddress as error:
        raise ReplyError(f"the reply links to an image where {error}") from None
    except ValueError:
        pass  # a name: its address is checked once connected
    return False


def _redirected(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError:
        raise ReplyError("the linked image redirects to an invalid URL") from None
