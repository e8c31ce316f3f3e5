"""Connections to the gateway: how they are made, kept alive, cut, and where they may lead."""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
import weakref
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.auth import AuthBase
from requests_toolbelt.adapters.socket_options import TCPKeepAliveAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import SSLError
from urllib3.util.ssl_ import create_urllib3_context

from airflow_provider_jojokey import __version__

USER_AGENT = f"airflow-provider-jojokey/{__version__} python-requests/{requests.__version__}"

DEFAULT_BASE_URL = "https://api.jojokey.com"

_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class NoAuth(AuthBase):
    """Nothing. As an auth object it keeps ``.netrc`` from sending its logins to whoever is linked to."""

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


class ForbiddenAddress(OSError):
    """An image URL that leads to an address which is not public."""


class GatewaySession(requests.Session):
    """A session whose own ``verify`` and ``proxies`` beat the environment's.

    In plain requests, ``REQUESTS_CA_BUNDLE`` undoes ``session.verify = False`` and ``HTTPS_PROXY``
    undoes ``session.proxies``: what a person wrote into the connection would be ignored.

    The environment is read once for each host: each time is a walk through all its variables, which
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


class GatewayAdapter(TCPKeepAliveAdapter):
    """Keep quiet connections alive, and know them, so that they can be cut while they wait.

    TCP keep-alive starts after 60 s of silence: a NAT forgets a connection that says nothing for
    the two minutes that a generation takes.

    Each request has a connection of its own. On one that was kept, a reset may mean that the server
    had closed it before the request came, and nobody could tell whether that was billed.

    All connections share what they trust. By default each reads the CA bundle anew and keeps it for as
    long as it lives: 20 ms of CPU and 1 MB for a connection that does little but wait (measured).

    :param public_only: refuse to talk to an address that is not public, checked on the connected
        socket, so that no DNS answer can change in between
    """

    def __init__(self, public_only: bool = False) -> None:
        # Sockets, because a connection gives its own away with a response after which it closes.
        self._live: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
        self._public_only = public_only
        self._trust: dict[tuple[str | None, str | None], ssl.SSLContext] = {}
        self._trust_lock = threading.Lock()
        super().__init__()  # type: ignore[no-untyped-call]

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Make the pool manager with connections that this adapter knows."""
        super().init_poolmanager(*args, **kwargs)  # type: ignore[no-untyped-call]
        self.poolmanager.pool_classes_by_scheme = self._pool_classes()

    def proxy_manager_for(self, proxy: Any, **kwargs: Any) -> Any:
        """Make the proxy's pool manager with connections that this adapter knows."""
        manager = super().proxy_manager_for(proxy, **kwargs)
        manager.pool_classes_by_scheme = self._pool_classes()
        return manager

    def cut(self) -> None:
        """Break off every connection that is open; whoever waits on one gets an error now."""
        for reference in self._live.valuerefs():  # a copy at one go: others may connect meanwhile
            if (sock := reference()) is not None:
                try:
                    # A closed descriptor would not wake a waiting recv; a shut-down one does. TLS
                    # must not be asked: it would change under the feet of the thread that reads.
                    socket.socket.shutdown(getattr(sock, "socket", sock), socket.SHUT_RDWR)
                except (OSError, TypeError):
                    continue

    def _trusting(self, bundle: str | None, folder: str | None) -> ssl.SSLContext:
        """Return the TLS settings that trust a bundle or folder of certificates, read once.

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

            def connect(self) -> None:
                try:
                    self.share_trust()
                    super().connect()  # type: ignore[misc]
                    # Through a proxy the peer is the proxy, and what it may reach is the proxy's to say.
                    if adapter._public_only and not getattr(self, "proxy", None):
                        require_public(self.sock.getpeername()[0])
                except Exception as error:
                    error.before_sending = True  # type: ignore[attr-defined]
                    raise
                adapter._live[id(self.sock)] = self.sock

            def share_trust(self) -> None:
                pass

        class KnownHTTP(Known, HTTPConnection):
            pass

        class KnownHTTPS(Known, HTTPSConnection):
            def share_trust(self) -> None:
                # A proxy that speaks TLS is checked by the connection's own bundle, and somebody's
                # own certificate is nothing to share.
                alone = self.cert_file or (self.proxy is not None and self.proxy.scheme == "https")
                if (self.ca_certs or self.ca_cert_dir) and not alone:
                    self.ssl_context = adapter._trusting(self.ca_certs, self.ca_cert_dir)
                    self.ca_certs = self.ca_cert_dir = None  # or they would be read into it again

        class HTTPPool(HTTPConnectionPool):
            ConnectionCls = KnownHTTP
            _put_conn = _close_connection

        class HTTPSPool(HTTPSConnectionPool):
            ConnectionCls = KnownHTTPS
            _put_conn = _close_connection

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


def cut(session: requests.Session) -> None:
    """Break off all that ``session`` waits for."""
    for adapter in session.adapters.values():
        if isinstance(adapter, GatewayAdapter):
            adapter.cut()


def failed_before_sending(error: BaseException) -> bool:
    """Tell whether ``error`` arose while a connection was being made, so that no request was sent on it."""
    return getattr(error, "before_sending", False)


def base_url_of(address: str | None) -> str:
    """Return the gateway's base URL, without ``/v1`` and without a slash at the end.

    :param address: a host or URL, with or without scheme (then https), ``/v1`` or a slash
    :raises ValueError: if it is no http(s) address, or has a user, a query or a fragment in it
    """
    text = (address or "").strip() or DEFAULT_BASE_URL
    if "://" not in text:
        text = f"https://{text}"
    parts = urlsplit(text)
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
        raise ValueError(f"the host must be an http(s) address such as {DEFAULT_BASE_URL}")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("the host must not hold a user, a password, a query or a fragment")
    path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    return f"{parts.scheme}://{parts.netloc}{path}"


def sends_token_in_the_clear(base_url: str) -> bool:
    """Tell whether the token would cross a network unencrypted: plain http, not to this machine."""
    parts = urlsplit(base_url)
    return parts.scheme == "http" and not _is_loopback(parts.hostname or "")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def require_public(address: str) -> None:
    """Let the IP address of a public host pass.

    :raises ForbiddenAddress: for any other: loopback, private, link-local, multicast …
    """
    ip = ipaddress.ip_address(address.split("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        # An IPv4 address in IPv6 clothes leads where the IPv4 address leads.
        nat64 = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in _NAT64 else None
        ip = ip.ipv4_mapped or ip.sixtofour or nat64 or ip
    if not ip.is_global or ip.is_multicast:
        raise ForbiddenAddress("the address is not public")
