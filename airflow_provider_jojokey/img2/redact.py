"""Redact the gateway's text for logs and messages.

Gateways quote tokens, signed links and image data in their errors. All text from a response that this package
displays or stores passes through :func:`clean` or :func:`public_link`.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

MAX_DETAIL_CHARACTERS = 500
MAX_LINK_CHARACTERS = 300

# No \b before these: a Chinese character is a word character too, and may stand right before a token.
_TOKEN = re.compile(
    r"(?<![A-Za-z0-9])(?:(sk)-[A-Za-z0-9_*.-]{6,}|(Bearer)\s+[A-Za-z0-9_*.~+/=-]{16,})", re.IGNORECASE
)
_BASE64 = re.compile(r"(?:data:[a-z/+.-]{1,60};base64,)?[A-Za-z0-9+/_=-]{48,}")
_URL_LOGIN = re.compile(r"(://)[^\s/@\"'<>]*@")
# Bounded, because a hostile response would make an unbounded search take seconds.
_URL_QUERY = re.compile(r"(://[^\s?\"'<>]{1,2000})\?[^\s\"'<>]+")
_SIGNATURE = re.compile(
    r"((?:X-(?:Amz|Goog)-[A-Za-z-]+|signature|sig|token|secret|password|api[_-]?key)=)[^\s&\"'<>]+",
    re.IGNORECASE,
)
# Control characters, line separators, bidirectional and invisible characters, and lone surrogates.
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ud800-\udfff\ufeff\ufff9-\ufffb]+"
)
_LONG_SEGMENT = re.compile(r"[^/]{65,}")
# A broken image in the place of a link is base64, which contains slashes.
_LONG_RUN = re.compile(r"[A-Za-z0-9+/=_-]{65,}")


def clean(text: str, secret: str = "", limit: int = MAX_DETAIL_CHARACTERS) -> str:
    """Return ``text`` as one short line without secrets, image data or URL queries.

    :param text: text from outside this package
    :param secret: the token, which must not appear in the result
    :param limit: maximum length in characters
    """
    # JSON may escape the slashes of links.
    text = _without_secret(text, secret)[:20_000].replace("\\/", "/")
    text = _SIGNATURE.sub(r"\1…", _URL_LOGIN.sub(r"\1", _URL_QUERY.sub(r"\1", text)))
    text = _BASE64.sub("…", _without_tokens(text))
    text = " ".join(_UNPRINTABLE.sub(" ", text).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def public_link(url: str, secret: str = "") -> str:
    """Return ``url`` without login, query and fragment, so that a signed link can be displayed.

    :param url: an absolute URL
    :param secret: the token, which must not appear in the result
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    place = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{_LONG_SEGMENT.sub('…', parts.path)}"
    place = "".join(_UNPRINTABLE.sub("", _without_tokens(_without_secret(place, secret))).split())
    place = _LONG_RUN.sub("…", place)
    return place if len(place) <= MAX_LINK_CHARACTERS else place[: MAX_LINK_CHARACTERS - 1] + "…"


def _without_secret(text: str, secret: str) -> str:
    if secret:
        text = text.replace(secret, "sk-…")
        if len(bare := secret.removeprefix("sk-")) >= 8:  # the gateway quotes tokens without "sk-"
            text = text.replace(bare, "…")
    return text


def _without_tokens(text: str) -> str:
    return _TOKEN.sub(lambda found: f"{found[1] or found[2]}-…", text)
