"""Classify network errors: whether the request was sent, and what to do."""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Iterator
from typing import Any

import requests
import urllib3

from airflow_provider_jojokey.img2 import transport
from airflow_provider_jojokey.img2.errors import Img2Error, Kind
from airflow_provider_jojokey.img2.redact import clean

NETWORK_ERRORS = (requests.RequestException, urllib3.exceptions.HTTPError, http.client.HTTPException, OSError)
"""The errors of requests and reads. The disk also raises :class:`OSError`: see :func:`is_disk_error`."""


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield ``error`` and all errors it wraps as cause, reason or argument.

    Not its context: if the caller handles an error of another request meanwhile, that error is the context of this one.
    """
    seen: set[int] = set()
    todo: list[Any] = [error]
    while todo:
        cause = todo.pop(0)
        if isinstance(cause, BaseException) and id(cause) not in seen:
            seen.add(id(cause))
            yield cause
            todo += [cause.__cause__, getattr(cause, "reason", None), *cause.args]


def describe_cause(error: BaseException) -> str:
    """Return a short description of the innermost cause, without object addresses."""
    found = list(causes(error))
    if any(
        isinstance(cause, (urllib3.exceptions.InvalidChunkLength, http.client.IncompleteRead))
        for cause in found
    ):
        return "the connection closed in the middle of the response"  # the error's own text is unreadable
    if any(type(cause) is http.client.BadStatusLine for cause in found):
        return "the response is not HTTP"  # the error's own text is its first line, which may be part of an image
    innermost = found[-1]
    if isinstance(innermost, OSError) and innermost.strerror:
        return innermost.strerror
    return clean(str(innermost), limit=200) or type(innermost).__name__


def is_disk_error(error: BaseException) -> bool:
    """Return whether ``error`` comes from the local disk rather than the network."""
    network = (ConnectionError, TimeoutError, requests.RequestException, ssl.SSLError)
    return isinstance(error, OSError) and not isinstance(error, network)


def from_network_error(error: BaseException, secret: str, paid: bool = True) -> Img2Error:
    """Return the error for a request that received no response.

    :param error: the error of the transport
    :param secret: a text that must not appear in the error, the token
    :param paid: whether the request would have been billed
    """
    found = list(causes(error))
    reason = clean(describe_cause(error), secret)

    def caused_by(*types: type[BaseException]) -> bool:
        return any(isinstance(cause, types) for cause in found)

    unsent = transport.failed_before_sending(error)
    if unsent is False:
        # urllib3 raises these two only while it connects, and our sessions don't retry. Other types prove nothing.
        unsent = caused_by(urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError)
    if not unsent:
        if paid:
            return Img2Error(
                Kind.UNKNOWN_OUTCOME, f"The response of JojoKey was lost after sending: {reason}"
            )
        return Img2Error(Kind.UNREACHABLE, f"JojoKey did not respond: {reason}", billed="no")
    if caused_by(requests.exceptions.InvalidHeader, UnicodeEncodeError) or (
        type(error) is ValueError and "header" in reason
    ):
        return Img2Error(Kind.TOKEN, "The token contains invalid characters", billed="no")
    if caused_by(
        requests.exceptions.InvalidURL,
        requests.exceptions.MissingSchema,
        requests.exceptions.InvalidSchema,
        urllib3.exceptions.LocationParseError,
    ):
        if "SOCKS" in reason:  # requests reports a missing package like an invalid address
            return Img2Error(
                Kind.BASE_URL,
                "A SOCKS proxy is set, but PySocks is not installed",
                billed="no",
                advice="Install requests[socks] on the workers, or use an HTTP proxy.",
            )
        return Img2Error(Kind.BASE_URL, f"The address of the image API is not valid: {reason}", billed="no")
    if caused_by(requests.exceptions.ProxyError):
        return Img2Error(
            Kind.UNREACHABLE, f"The proxy did not let the request through: {reason}", billed="no"
        )
    if isinstance(error, OSError) and not isinstance(error, requests.RequestException):
        # requests does not wrap errors of the CA bundle, which it reads before it connects.
        return Img2Error(Kind.TLS, f"The CA bundle cannot be read: {reason}", billed="no")
    if caused_by(ssl.SSLError):
        return Img2Error(Kind.TLS, f"The TLS connection to JojoKey is not trusted: {reason}", billed="no")
    return Img2Error(Kind.UNREACHABLE, f"JojoKey could not be reached: {reason}", billed="no")
