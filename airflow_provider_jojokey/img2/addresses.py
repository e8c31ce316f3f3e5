"""Check the gateway's base URL and the addresses of linked images."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

DEFAULT_BASE_URL = "https://api.jojokey.com"

_API_PATH = re.compile(
    r"/v1(?:/+(?:images/+(?:generations|edits|variations)|chat/+completions|responses|models))?/*$"
)
"""The API's part of an address that was copied from a documentation page."""

_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class ForbiddenAddress(OSError):
    """The address of a linked image is not public."""


def base_url_of(address: str | None) -> str:
    """Return the gateway's base URL, without ``/v1`` and without a slash at the end.

    :param address: a host or URL; scheme (default https), ``/v1``, an endpoint of the API after it, and a trailing
        slash are optional
    :raises ValueError: if it is not an http(s) URL, or contains a user, a query or a fragment
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
        raise ValueError("the host must not contain a user, a password, a query or a fragment")
    path = _API_PATH.sub("", parts.path).rstrip("/")
    return f"{parts.scheme}://{parts.netloc}{path}"


def sends_token_in_the_clear(base_url: str) -> bool:
    """Return whether the token would be sent unencrypted: plain http to another machine."""
    parts = urlsplit(base_url)
    return parts.scheme == "http" and not _is_loopback(parts.hostname or "")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def require_public(address: str) -> None:
    """Raise unless an IP address is public.

    :raises ForbiddenAddress: for loopback, private, link-local, multicast … addresses
    """
    ip = ipaddress.ip_address(address.split("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        # IPv4-mapped, 6to4 and NAT64 addresses stand for an IPv4 address.
        nat64 = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in _NAT64 else None
        ip = ip.ipv4_mapped or ip.sixtofour or nat64 or ip
    if not ip.is_global or ip.is_multicast:
        raise ForbiddenAddress("the address is not public")


def is_own_origin(url: str, base_url: str) -> bool:
    """Return whether two URLs have the same scheme, host and port.

    :raises ValueError: if one is not valid
    """
    return _origin(url) == _origin(base_url)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"https": 443, "http": 80}.get(parts.scheme)
