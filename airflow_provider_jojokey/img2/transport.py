"""Open, keep alive and abort connections to the gateway."""

from __future__ import annotations

import errno
import math
import socket
import ssl
import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import requests
from msgspec import Struct
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from requests.utils import select_proxy
from urllib3.connection import HTTPConnection
from urllib3.exceptions import SSLError
from urllib3.poolmanager import pool_classes_by_scheme
from urllib3.util.connection import is_connection_dropped
from urllib3.util.ssl_ import create_urllib3_context

from airflow_provider_jojokey import __version__
from airflow_provider_jojokey.img2.addresses import require_public
from airflow_provider_jojokey.img2.final_response import FinalResponse

USER_AGENT = f"airflow-provider-jojokey/{__version__} python-requests/{requests.__version__}"

MAX_IDLE = 2.0
"""Seconds for which a preconnected socket may stay idle before its request.

If a server closes an idle connection just when the request arrives, it is unknown whether the request was billed.
No known server closes a connection this early.
"""

_PROBES = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 20, "TCP_KEEPCNT": 5}
KEEP_ALIVE = [
    *HTTPConnection.default_socket_options,
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    # Not every system has all of these options.
    *((socket.IPPROTO_TCP, getattr(socket, name), n) for name, n in _PROBES.items() if hasattr(socket, name)),
]
"""Socket options: after 60 s without data, TCP sends a probe every 20 s."""


class NoAuth(AuthBase):
    """No credentials. Without an auth object, requests would send logins from ``.netrc`` to the hosts of links."""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Return the request unchanged."""
        return request


class BearerAuth(AuthBase):
    """``Authorization: Bearer …``. A plain header would lose against a ``.netrc`` entry for the same host."""

    def __init__(self, token: str) -> None:
        self.token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Add the token to a request."""
        request.headers["Authorization"] = f"Bearer {self.token}"
        return request

    def __repr__(self) -> str:
        return "BearerAuth(sk-…)"


class _Progress(Struct):
    """How far a request has come.

    :param written: whether it may have been written to a connection, at least in part
    :param answered: whether a response has arrived, so that an error comes from a hook or a redirect
    """

    written: bool = False
    answered: bool = False


_request = threading.local()
"""``progress``: that of this thread's request."""


def _progress() -> _Progress:
    return getattr(_request, "progress", None) or _Progress()


def _note_response(response: requests.Response, **_: Any) -> None:
    _progress().answered = True


class GatewaySession(requests.Session):
    """A session whose own ``verify`` and ``proxies`` take precedence over the environment.

    In plain requests, ``REQUESTS_CA_BUNDLE`` overrides ``session.verify = False`` and ``HTTPS_PROXY``
    overrides ``session.proxies``, so the connection's settings would be ignored.

    The session reads the environment once for each host. Reading it for each request took a tenth of the CPU time
    of a small image (measured).
    """

    def __init__(self) -> None:
        super().__init__()
        self._settings: dict[Any, Any] = {}
        self.hooks["response"].append(_note_response)

    def request(self, *args: Any, **kwargs: Any) -> requests.Response:
        """Send a request. An error reports whether any byte was written, see :func:`failed_before_sending`."""
        outer = getattr(_request, "progress", None)  # of a request whose hook sends this one
        _request.progress = progress = _Progress()
        try:
            return super().request(*args, **kwargs)
        except Exception as error:
            error.before_sending = None if progress.answered else not progress.written  # type: ignore[attr-defined]
            raise
        finally:
            _request.progress = outer

    def send(self, *args: Any, **kwargs: Any) -> requests.Response:
        """Send a prepared request."""
        _progress().written = True  # unless its adapter reports that nothing was written
        return super().send(*args, **kwargs)

    def merge_environment_settings(self, url: Any, proxies: Any, stream: Any, verify: Any, cert: Any) -> Any:
        """Return the settings for one request."""
        if verify is None and self.verify is not True:
            verify = self.verify
        given = {**self.proxies, **(proxies or {})}
        parts = urlsplit(url)
        key = (parts.scheme, parts.netloc, tuple(sorted(given.items())), stream, verify, cert)
        if key not in self._settings:
            self._settings[key] = super().merge_environment_settings(url, given, stream, verify, cert)
        return {**self._settings[key], "proxies": dict(self._settings[key]["proxies"])}


class _Preconnection:
    """A connection that is opened before its request is ready.

    :param connection: not open yet
    """

    def __init__(self, connection: Any, connect_timeout: float) -> None:
        self._connection = connection
        self._connection.timeout = connect_timeout
        self._opened_at = -math.inf
        self._done = threading.Event()

    def open(self) -> None:
        """Connect, or leave the connection closed."""
        try:
            self._connection.connect()
            self._opened_at = time.monotonic()
        except Exception:  # the request opens its own connection and reports the error
            self._connection.close()
        finally:
            self._done.set()

    def take(self) -> Any:
        """Return the open connection, or ``None`` if it is not usable."""
        self._done.wait()
        if time.monotonic() - self._opened_at < MAX_IDLE and not is_connection_dropped(self._connection):
            return self._connection
        self._connection.close()
        return None


class GatewayAdapter(HTTPAdapter):
    """Keep waiting connections alive, and track them so that other threads can abort them.

    TCP keep-alive starts after 60 s without data. Without it, a NAT would drop the connection during the
    two minutes that a generation takes.

    Each request has its own connection. If a reused connection is reset, the server may have closed it before
    or after it read the request, so the outcome would be unknown.

    All connections share one TLS context. Otherwise each would load the CA bundle again, which takes 20 ms of
    CPU and 1 MB for a connection that mostly waits (measured).

    :param public_only: reject addresses that are not public. The adapter checks the connected socket, so a
        DNS response that changes in between has no effect
    """

    def __init__(self, public_only: bool = False) -> None:
        # Track sockets instead of connections: a connection hands its socket over to the response.
        self._live: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
        self._aborts = 0
        self._public_only = public_only
        self._tls_contexts: dict[tuple[str | None, str | None], ssl.SSLContext] = {}
        self._tls_lock = threading.Lock()
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Create a pool manager whose connections this adapter tracks."""
        super().init_poolmanager(*args, socket_options=KEEP_ALIVE, **kwargs)
        self._track(self.poolmanager)

    def proxy_manager_for(self, proxy: Any, **kwargs: Any) -> Any:
        """Create a pool manager for a proxy whose connections this adapter tracks."""
        manager = super().proxy_manager_for(proxy, socket_options=KEEP_ALIVE, **kwargs)
        self._track(manager, proxied=True)
        return manager

    def send(self, *args: Any, **kwargs: Any) -> requests.Response:
        """Send a prepared request. Its connection reports when it writes the first bytes."""
        _progress().written = False
        return super().send(*args, **kwargs)

    def preconnect(self, session: requests.Session, url: str, connect_timeout: float) -> None:
        """Open a connection in another thread, for the next request to use if it follows soon.

        Errors are ignored: the request then opens its own connection and reports its own error.
        """
        request = session.prepare_request(requests.Request("POST", url))
        settings = session.merge_environment_settings(request.url, {}, True, None, None)
        if select_proxy(url, settings["proxies"]):
            return  # a proxy connects only when it receives the request
        pool: Any = self.get_connection_with_tls_context(request, settings["verify"], None, settings["cert"])
        self.cert_verify(pool, request.url, settings["verify"], settings["cert"])  # type: ignore[no-untyped-call]
        preconnection = _Preconnection(pool._new_conn(), connect_timeout)
        with suppress(RuntimeError):  # the thread limit is reached
            threading.Thread(target=preconnection.open, name="jojokey-connect", daemon=True).start()
            pool.preconnections.append(preconnection)

    def abort(self) -> None:
        """Shut down all connections. Waiting threads get an error at once, other threads after they have connected."""
        self._aborts += 1
        for reference in self._live.valuerefs():  # an atomic copy, because other threads may connect
            if (sock := reference()) is not None:
                try:
                    # shutdown() wakes a waiting recv(), close() does not. SSLSocket.shutdown() is not
                    # thread-safe here, so call the method of the plain socket.
                    socket.socket.shutdown(getattr(sock, "socket", sock), socket.SHUT_RDWR)
                except (OSError, TypeError):
                    continue

    def _shared_tls_context(self, bundle: str | None, folder: str | None) -> ssl.SSLContext:
        """Return the TLS context for a CA bundle or folder, which is read once.

        :raises SSLError: if the certificates cannot be read
        """
        with self._tls_lock:
            if (bundle, folder) not in self._tls_contexts:
                context = create_urllib3_context(cert_reqs=ssl.CERT_REQUIRED)
                try:
                    context.load_verify_locations(bundle, folder)
                except OSError as error:
                    raise SSLError(error) from error
                self._tls_contexts[bundle, folder] = context
            return self._tls_contexts[bundle, folder]

    def _track(self, manager: Any, proxied: bool = False) -> None:
        """Make a pool manager use connections that this adapter tracks."""
        adapter = self
        # A SOCKS proxy has classes of its own.
        pools: Mapping[str, Any] = getattr(type(manager), "pool_classes_by_scheme", pool_classes_by_scheme)

        class Tracked:
            sock: Any
            response_class: Any = FinalResponse
            connecting = False

            def send(self, data: Any) -> None:
                if self.sock is None:
                    self.connect()
                if not self.connecting:  # opening a proxy's tunnel sends none of the request
                    _progress().written = True
                super().send(data)  # type: ignore[misc]

            def connect(self) -> None:
                aborts = adapter._aborts
                self.connecting = True
                try:
                    self.share_tls_context()
                    super().connect()  # type: ignore[misc]
                    adapter._live[id(self.sock)] = self.sock
                    if adapter._aborts != aborts:
                        raise ConnectionAbortedError(errno.ECONNABORTED, "aborted while it was connecting")
                    # With a proxy, the peer is the proxy, which decides which hosts it reaches.
                    if adapter._public_only and not proxied:
                        require_public(self.sock.getpeername()[0])
                finally:
                    self.connecting = False

            def share_tls_context(self) -> None:
                pass

        class TrackedTLS(Tracked):
            proxy: Any
            cert_file: Any
            ca_certs: Any
            ca_cert_dir: Any

            def share_tls_context(self) -> None:
                # urllib3 verifies a TLS proxy with the connection's own bundle, and a client certificate
                # must not be shared.
                private = self.cert_file or (self.proxy is not None and self.proxy.scheme == "https")
                if (self.ca_certs or self.ca_cert_dir) and not private:
                    self.ssl_context = adapter._shared_tls_context(self.ca_certs, self.ca_cert_dir)
                    self.ca_certs = self.ca_cert_dir = None  # otherwise urllib3 loads them again

        class PreconnectingPool:
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                self.preconnections: deque[_Preconnection] = deque()
                super().__init__(*args, **kwargs)

            def _get_conn(self, timeout: float | None = None) -> Any:
                while self.preconnections:
                    if (connection := self.preconnections.popleft().take()) is not None:
                        return connection
                return super()._get_conn(timeout)  # type: ignore[misc]

            _put_conn = _close_connection

        def tracked(pool: Any, mixin: type) -> Any:
            connection = type(f"Tracked{pool.ConnectionCls.__name__}", (mixin, pool.ConnectionCls), {})
            return type(pool.__name__, (PreconnectingPool, pool), {"ConnectionCls": connection})

        manager.pool_classes_by_scheme = {
            "http": tracked(pools["http"], Tracked),
            "https": tracked(pools["https"], TrackedTLS),
        }


def _close_connection(self: Any, conn: Any) -> None:  # a method of the pools
    """Close a connection instead of returning it to the pool."""
    if conn is not None:
        conn.close()


def open_session(
    token: str | None, *, verify: bool | str = True, proxy: str | None = None, public_only: bool = False
) -> requests.Session:
    """Return a session, authenticated if ``token`` is given.

    :param token: the JojoKey token, without ``Bearer``
    :param verify: check TLS certificates; a path names a CA bundle
    :param proxy: the proxy's URL for all requests; by default, the proxies of the environment
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


def preconnect(session: requests.Session, url: str, connect_timeout: float) -> None:
    """Try to open a connection for the next request to ``url`` in another thread. Never raises."""
    adapter = session.get_adapter(url)
    if isinstance(adapter, GatewayAdapter):
        with suppress(Exception):  # the request itself reports the error
            adapter.preconnect(session, url, connect_timeout)


def abort(session: requests.Session) -> None:
    """Abort all requests of ``session`` in flight."""
    for adapter in session.adapters.values():
        if isinstance(adapter, GatewayAdapter):
            adapter.abort()


def failed_before_sending(error: BaseException) -> bool | None:
    """Return whether the transport reports that it wrote no byte of the request that failed with ``error``.

    ``None`` means that the transport knows nothing about it: another session raised it, which may have retried, or it
    was raised after a response had arrived.

    The type of an error proves nothing: a malformed response and an invalid token both raise ``InvalidHeader``.
    """
    return getattr(error, "before_sending", None)
