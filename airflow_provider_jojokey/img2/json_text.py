"""Parse JSON from outside this package."""

from __future__ import annotations

import json
import re
from typing import Any

MAX_DEPTH = 500
"""Maximum nesting. Python's own limit would also fail finalizers that the garbage collector runs at that depth."""
_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"?|([\[{])|[\]}]', re.DOTALL)


def without_blanks(body: bytes) -> bytes:
    """Return a body without the white space and the byte order mark at its beginning."""
    return body.lstrip(b"\xef\xbb\xbf \t\r\n")


def parse_json(text: str | bytes, default: Any = None) -> Any:
    """Return the JSON value in ``text``, or ``default`` if there is none that Python can read.

    Valid JSON may be nested too deeply for Python or contain numbers of too many digits. Bytes may be UTF-8, UTF-16 or
    UTF-32; invalid ones count as U+FFFD, because one truncated character must not make a whole document unreadable.
    """
    if isinstance(text, bytes):
        text = text.decode(json.detect_encoding(text), "replace")
    try:
        return default if _is_too_deep(text) else json.loads(text)
    except (ValueError, RecursionError):
        return default


def _is_too_deep(text: str) -> bool:
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return False
    depth = 0
    for found in _BRACKETS.finditer(text):
        if not found[0].startswith('"'):
            depth += 1 if found[1] else -1
            if depth > MAX_DEPTH:
                return True
    return False
