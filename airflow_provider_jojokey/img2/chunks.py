"""Read the body of a response in chunks, as it arrives."""

from __future__ import annotations

import http.client
import re
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import requests
import urllib3

READ_BYTES = 512 * 1024
"""Measured: chunks of 16 KiB take three times the CPU; chunks of 1 MiB bring no gain."""
TLS_RECORD_BYTES = 16 * 1024
_GZIP = b"\x1f\x8b\x08"
_ZSTD = b"\x28\xb5\x2f\xfd"
_PLAIN = re.compile(
    rb"""\s* (?: \{\s*["}] | \[\s*[]["{] | data: | event: | <[!?a-zA-Z] ) | \x89PNG | \xff\xd8\xff | RIFF""",
    re.VERBOSE,
)
"""The beginning of JSON, events, a page or an image."""


def set_read_timeout(response: requests.Response, seconds: float) -> None:
    """Wait at most ``seconds`` for each further chunk of a response, if its socket is accessible."""
    fp = getattr(getattr(response.raw, "_fp", None), "fp", None)
    sock = getattr(getattr(fp, "raw", None), "_sock", None)
    if sock is not None:
        sock.settimeout(seconds)


def iter_chunks(
    response: requests.Response, decode_slots: AbstractContextManager[Any] | None = None
) -> Iterator[bytes]:
    """Yield the body as it arrives. Before an error, yield all bytes that arrived.

    When the connection breaks, ``read`` would discard the bytes it has buffered, and with them perhaps a
    complete image, so this calls ``read1``. TLS returns records of 16 KiB, which would take three times the
    CPU, so full records are joined while more are likely to follow.

    :param decode_slots: held from the first bytes of a chunk until the caller has used the chunk, so that many
        simultaneous responses need the memory of a few
    """
    failure: BaseException | None = None
    compressed = _is_compressed(response)
    while failure is None:
        # Read only one TLS record while waiting without a slot.
        limit = READ_BYTES if decode_slots is None else TLS_RECORD_BYTES
        data = response.raw.read1(limit, decode_content=compressed)
        if not data:
            return
        with decode_slots or nullcontext():
            gathered = [data]
            while len(data) == TLS_RECORD_BYTES and len(gathered) < READ_BYTES // TLS_RECORD_BYTES:
                try:
                    data = response.raw.read1(READ_BYTES, decode_content=compressed)
                except (urllib3.exceptions.HTTPError, OSError) as error:
                    failure = error
                    break
                if data:
                    gathered.append(data)
            chunk = gathered[0] if len(gathered) == 1 else b"".join(gathered)
            del gathered, data  # free the memory while waiting for the next chunk
            yield chunk
            del chunk
    raise failure


def _is_compressed(response: requests.Response) -> bool:
    """Return whether the body is compressed, and correct a header that names no or another encoding.

    The body's beginning decides, because a proxy may decompress or compress it and keep the header
    ``Content-Encoding``.
    """
    names = [name.strip().lower() for name in response.headers.get("Content-Encoding", "").split(",")]
    encodings = [name for name in names if name not in ("", "identity")]
    last = encodings[-1] if encodings else ""
    peek = getattr(getattr(response.raw, "_fp", None), "peek", None)
    if peek is None:
        return bool(encodings)
    try:
        beginning: bytes = peek(16)
    except TimeoutError as error:
        raise urllib3.exceptions.ReadTimeoutError(None, None, str(error)) from error  # type: ignore[arg-type]
    except (
        OSError,
        http.client.HTTPException,
        OverflowError,
    ) as error:  # the next read would not report all of them
        raise urllib3.exceptions.ProtocolError("Connection broken", error) from error
    if beginning and beginning[: len(_GZIP)] == _GZIP[: len(beginning)]:
        named = last in ("gzip", "x-gzip")
        response.raw.headers["Content-Encoding"] = ", ".join(encodings) if named else "gzip"
        return True
    if last in ("gzip", "x-gzip"):
        return not beginning
    if last == "zstd":
        return beginning.startswith(_ZSTD[: len(beginning)])
    return bool(encodings) and not _PLAIN.match(beginning)


def read_beginning(response: requests.Response, limit: int, within: float) -> bytes:
    """Return the first ``limit`` bytes of the body, or fewer after a read error.

    :param within: seconds after which reading stops, even if bytes still arrive
    """
    body = b""
    end = time.monotonic() + within
    try:
        for data in iter_chunks(response):
            body += data
            if len(body) >= limit or time.monotonic() > end:
                break
    except (urllib3.exceptions.HTTPError, OSError):
        pass
    return body[:limit]
