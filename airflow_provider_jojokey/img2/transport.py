"""Connections to the gateway: how they are made, kept alive and aborted."""

from __future__ import annotations

import errno
import http.client
import math
import socket
import ssl
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3
from requests.auth import AuthBase
from requests.utils import select_proxy
from requests_toolbelt.adapters.socket_options import TCPKeepAliveAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import SSLError
from urllib3.util.connection import is_connection_dropped
from urllib3.util.ssl_ import create_urllib3_context

from airflow_provider_jojokey import __version__
from airflow_provider_jojokey.img2.addresses import require_public

USER_AGENT = f"airflow-provider-jojokey/{__version__} python-requests/{requests.__version__}"

MAX_INTERIM_RESPONSES = 10_000
MAX_INTERIM_BYTES = 1024 * 1024
"""Of all headers of the interim responses before one response."""

MAX_IDLE = 2.0
"""Seconds for which a connection that was opened ahead may wait for its request.

A server that closes an idle connection just when the request arrives leaves it unknown whether that was billed. No
server is known to do so this early.
"""

READ_BYTES = 512 * 1024
"""Measured: pieces of 16 KiB cost three times the CPU, 1 MiB gains nothing."""
TLS_RECORD_BYTES = 16 * 1024


class NoAuth(AuthBase):
    """No credentials. As an auth object it keeps ``.netrc`` from sending its logins to the hosts of links."""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Leave the request as it is."""
        return request


class BearerAuth(AuthBase):
    """``Authorization: Bearer …``. As an auth object it beats a ``.netrc`` entry for the same host."""

    def __init__(self, token: str) -> None:
        self.token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Sign one request."""
        request.headers["Authorization"] = f"Bearer {self.token}"
        return request

    def __repr__(self) -> str:
        return "BearerAuth(sk-…)"


class GatewaySession(requests.Session):
    """A session whose own ``verify`` and ``proxies`` take precedence over the environment.

    In plain requests, ``REQUESTS_CA_BUNDLE`` overrides ``session.verify = False`` and ``HTTPS_PROXY``
    overrides ``session.proxies``, so the connection's settings would be ignored.

    The environment is read once for each host: reading it walks through all variables, which
    for a small image was a tenth of all work (measured).
    """

    def __init__(self) -> None:
        super().__init__()
        self._settings: dict[Any, Any] = {}

    def merge_environment_settings(self, url: Any, proxies: Any, stream: Any, verify: Any, cert: Any) -> Any:
        """Return the settings of one request."""
        if verify is None and self.verify is not True:
            verify = self.verify
        given = {**self.proxies, **(proxies or {})}
        parts = urlsplit(url)
        key = (parts.scheme, parts.netloc, tuple(sorted(given.items())), stream, verify, cert)
        if key not in self._settings:
            self._settings[key] = super().merge_environment_settings(url, given, stream, verify, cert)
        return {**self._settings[key], "proxies": dict(self._settings[key]["proxies"])}


class FinalResponse(http.client.HTTPResponse):
    """A response whose interim (1xx) responses are skipped, apart from 101.

    ``http.client`` skips only ``100 Continue`` and takes any other for the final response. Gateways send
    ``102 Processing`` and ``103 Early Hints`` while an image is generated, and the image behind them is paid for.

    Their number, bytes and time are bounded: a server that sends nothing else must not be waited for forever.
    """

    def __init__(self, sock: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self._interim_timeout: float | None = sock.gettimeout()

    def _read_status(self) -> tuple[str, int, str]:
        size, started = 0, time.monotonic()
        for _ in range(MAX_INTERIM_RESPONSES):
            version, status, reason = super()._read_status()  # type: ignore[misc]
            if status == http.client.SWITCHING_PROTOCOLS or not 100 <= status < 200:
                return version, status, reason
            while (line := self.fp.readline(MAX_INTERIM_BYTES + 1)) not in (b"\r\n", b"\n"):
                size += len(line)
                if not line:
                    raise http.client.RemoteDisconnected("Remote end closed connection without response")
                if size > MAX_INTERIM_BYTES:
                    raise http.client.HTTPException("the interim responses are too large")
            waited = time.monotonic() - started
            if self._interim_timeout is not None and waited > 2 * self._interim_timeout:
                raise TimeoutError(f"only interim responses arrived for {waited:.0f} s")
        raise http.client.HTTPException(f"more than {MAX_INTERIM_RESPONSES:,} interim responses")


class _Ahead:
    """A connection that is opened before it is needed.

    :param connection: not open yet
    """

    def __init__(self, connection: Any, connect_timeout: float) -> None:
        self._connection = connection
        self._connection.timeout = connect_timeout
        self._opened_at = -math.inf
        self._done = threading.Event()

    def open(self) -> None:
        """Open it."""
        try:
            self._connection.connect()
            self._opened_at = time.monotonic()
        except Exception:  # the request opens another one, and reports what is wrong
            self._connection.close()
        finally:
            self._done.set()

    def take(self) -> Any:
        """Return the open connection, or ``None`` if it can't be used."""
        self._done.wait()
        if time.monotonic() - self._opened_at < MAX_IDLE and not is_connection_dropped(self._connection):
            return self._connection
        self._connection.close()
        return None


class GatewayAdapter(TCPKeepAliveAdapter):
    """Keep idle connections alive, and track them so that they can be aborted while they wait.

    TCP keep-alive starts after 60 s of silence: a NAT drops a connection that is silent for
    the two minutes that a generation takes.

    Each request has a connection of its own. On a reused one, a reset may mean that the server
    had closed it before the request arrived, and it would be unknown whether that was billed.

    All connections share one TLS context. By default each reads the CA bundle again and keeps it for as
    long as it lives: 20 ms of CPU and 1 MB for a connection that does little but wait (measured).

    :param public_only: refuse to talk to an address that is not public, checked on the connected
        socket, so that no DNS answer can change in between
    """

    def __init__(self, public_only: bool = False) -> None:
        # Sockets, because a connection hands its own over to a response after which it closes.
        self._live: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
        self._aborts = 0
        self._public_only = public_only
        self._trust: dict[tuple[str | None, str | None], ssl.SSLContext] = {}
        self._trust_lock = threading.Lock()
        super().__init__()  # type: ignore[no-untyped-call]

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Make the pool manager with connections that this adapter tracks."""
        super().init_poolmanager(*args, **kwargs)  # type: ignore[no-untyped-call]
        self.poolmanager.pool_classes_by_scheme = self._pool_classes()

    def proxy_manager_for(self, proxy: Any, **kwargs: Any) -> Any:
        """Make the proxy's pool manager with connections that this adapter tracks."""
        manager = super().proxy_manager_for(proxy, **kwargs)
        manager.pool_classes_by_scheme = self._pool_classes()
        return manager

    def open_ahead(self, session: requests.Session, url: str, connect_timeout: float) -> None:
        """Open a connection in another thread, which the next request uses if it comes soon.

        A failure is not reported: the request opens its own connection then, and reports its failure.
        """
        request = session.prepare_request(requests.Request("POST", url))
        settings = session.merge_environment_settings(request.url, {}, True, None, None)
        if select_proxy(url, settings["proxies"]):
            return  # the proxy connects when it gets the request
        pool: Any = self.get_connection_with_tls_context(request, settings["verify"], None, settings["cert"])
        self.cert_verify(pool, request.url, settings["verify"], settings["cert"])  # type: ignore[no-untyped-call]
        ahead = _Ahead(pool._new_conn(), connect_timeout)
        with suppress(RuntimeError):  # the system starts no more threads
            threading.Thread(target=ahead.open, name="jojokey-connect", daemon=True).start()
            pool.ahead.append(ahead)

    def abort(self) -> None:
        """Shut down every open connection; threads that wait on one get an error now, or once they are connected."""
        self._aborts += 1
        for reference in self._live.valuerefs():  # an atomic copy: other threads may connect meanwhile
            if (sock := reference()) is not None:
                try:
                    # A closed descriptor would not wake a waiting recv; a shut-down one does.
                    # SSLSocket.shutdown() is not thread-safe here, so the plain one is called.
                    socket.socket.shutdown(getattr(sock, "socket", sock), socket.SHUT_RDWR)
                except (OSError, TypeError):
                    continue

    def _trusting(self, bundle: str | None, folder: str | None) -> ssl.SSLContext:
        """Return the TLS context that trusts a bundle or folder of certificates, read once.

        :raises SSLError: if it cannot be read
        """
        with self._trust_lock:
            if (bundle, folder) not in self._trust:
                context = create_urllib3_context(cert_reqs=ssl.CERT_REQUIRED)
                try:
                    context.load_verify_locations(bundle, folder)
                except OSError as error:
                    raise SSLError(error) from error
                self._trust[bundle, folder] = context
            return self._trust[bundle, folder]

    def _pool_classes(self) -> dict[str, Any]:
        adapter = self

        class Known:
            sock: Any
            response_class: Any = FinalResponse

            def connect(self) -> None:
                aborts = adapter._aborts
                try:
                    self.share_trust()
                    super().connect()  # type: ignore[misc]
                    adapter._live[id(self.sock)] = self.sock
                    if adapter._aborts != aborts:
                        raise ConnectionAbortedError(errno.ECONNABORTED, "aborted while it was connecting")
                    # Through a proxy, the peer is the proxy, and the proxy decides which hosts it reaches.
                    if adapter._public_only and not getattr(self, "proxy", None):
                        require_public(self.sock.getpeername()[0])
                except Exception as error:
                    error.before_sending = True  # type: ignore[attr-defined]
                    raise

            def share_trust(self) -> None:
                pass

        class KnownHTTP(Known, HTTPConnection):
            pass

        class KnownHTTPS(Known, HTTPSConnection):
            def share_trust(self) -> None:
                # A TLS proxy is verified with the connection's own bundle, and a client certificate
                # must not be shared.
                alone = self.cert_file or (self.proxy is not None and self.proxy.scheme == "https")
                if (self.ca_certs or self.ca_cert_dir) and not alone:
                    self.ssl_context = adapter._trusting(self.ca_certs, self.ca_cert_dir)
                    self.ca_certs = self.ca_cert_dir = None  # or they would be read into it again

        class OpenAhead:
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                self.ahead: deque[_Ahead] = deque()
                super().__init__(*args, **kwargs)

            def _get_conn(self, timeout: float | None = None) -> Any:
                while self.ahead:
                    if (connection := self.ahead.popleft().take()) is not None:
                        return connection
                return super()._get_conn(timeout)  # type: ignore[misc]

            _put_conn = _close_connection

        class HTTPPool(OpenAhead, HTTPConnectionPool):
            ConnectionCls = KnownHTTP

        class HTTPSPool(OpenAhead, HTTPSConnectionPool):
            ConnectionCls = KnownHTTPS

        return {"http": HTTPPool, "https": HTTPSPool}


def _close_connection(self: Any, conn: Any) -> None:  # as a pool's method
    """Close a connection instead of putting it back."""
    if conn is not None:
        conn.close()


def open_session(
    token: str | None, *, verify: bool | str = True, proxy: str | None = None, public_only: bool = False
) -> requests.Session:
    """Return a session, authenticated if there is a token.

    :param token: the JojoKey token, without ``Bearer``
    :param verify: check TLS certificates; a path names a CA bundle
    :param proxy: a proxy's URL for all requests; without it, the environment's, as requests knows them
    :param public_only: see :class:`GatewayAdapter`
    """
    session = GatewaySession()
    session.headers["User-Agent"] = USER_AGENT
    session.auth = BearerAuth(token) if token else NoAuth()
    session.verify = verify
    if proxy:
        session.proxies = {"http": proxy, "https": proxy}
    adapter = GatewayAdapter(public_only)
    session.mount("https://", adapter)
    session.mount("http://", adapter)
    return session


def open_ahead(session: requests.Session, url: str, connect_timeout: float) -> None:
    """Open a connection for the next request to ``url`` in another thread. It is a mere attempt: nothing is raised."""
    adapter = session.get_adapter(url)
    if isinstance(adapter, GatewayAdapter):
        with suppress(Exception):  # the request itself reports it
            adapter.open_ahead(session, url, connect_timeout)


def abort(session: requests.Session) -> None:
    """Abort everything that ``session`` waits for."""
    for adapter in session.adapters.values():
        if isinstance(adapter, GatewayAdapter):
            adapter.abort()


def limit_wait(response: requests.Response, seconds: float) -> None:
    """Wait at most ``seconds`` for each further piece of a response, where its socket can be reached."""
    fp = getattr(getattr(response.raw, "_fp", None), "fp", None)
    sock = getattr(getattr(fp, "raw", None), "_sock", None)
    if sock is not None:
        sock.settimeout(seconds)


def iter_chunks(
    response: requests.Response, decode_slots: AbstractContextManager[Any] | None = None
) -> Iterator[bytes]:
    """Yield the body as it arrives; before an error, yield what had arrived.

    ``read`` would lose the bytes it had gathered when the connection breaks, and with them perhaps
    a whole image; so each receive is taken as it comes. TLS hands out records of 16 KiB, which
    would cost three times the CPU: whole records are gathered while more are likely to follow.

    :param decode_slots: held from a piece's first bytes until it has been used, so that many
        simultaneous replies take the memory of a few
    """
    failure: BaseException | None = None
    while failure is None:
        # Not holding a slot: read only one TLS record while waiting.
        limit = READ_BYTES if decode_slots is None else TLS_RECORD_BYTES
        piece = response.raw.read1(limit, decode_content=True)
        if not piece:
            return
        with decode_slots or nullcontext():
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
            del gathered, piece  # used memory is not held while waiting for the next piece
            yield whole
            del whole
    raise failure


def read_beginning(response: requests.Response, limit: int, within: float = 60.0) -> bytes:
    """Return the body's first ``limit`` bytes; read errors end it early.

    :param within: seconds after which reading stops, however steadily bytes drip in
    """
    body = b""
    end = time.monotonic() + within
    try:
        for piece in iter_chunks(response):
            body += piece
            if len(body) >= limit or time.monotonic() > end:
                break
    except (urllib3.exceptions.HTTPError, OSError):
        pass
    return body[:limit]


def failed_before_sending(error: BaseException) -> bool:
    """Return whether ``error`` arose while connecting, so that no request was sent."""
    return getattr(error, "before_sending", False)
