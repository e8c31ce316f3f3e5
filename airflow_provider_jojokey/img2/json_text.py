"""Parse JSON from outside this package."""

from __future__ import annotations

import json
from typing import Any


def parse_json(text: str | bytes, default: Any = None) -> Any:
    """Return the JSON value in ``text``, or ``default`` if there is none that Python can read.

    Valid JSON may be nested too deeply for Python or contain numbers of too many digits. Bytes may be UTF-8, UTF-16 or
    UTF-32; invalid ones count as U+FFFD, because one truncated character must not make a whole document unreadable.
    """
    if isinstance(text, bytes):
        text = text.decode(json.detect_encoding(text), "replace")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return default
