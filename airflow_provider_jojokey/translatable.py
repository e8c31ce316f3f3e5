"""Messages that the UI shows in the user's language.

The server doesn't know the language, the browser does. A route therefore sends a message as English text together with
its template and its values. The template is the key of the translation.
"""

from __future__ import annotations

import re
from typing import Any

_PLACEHOLDER = re.compile(r"\{(\w+)\}")


class Translatable(str):
    """English text that remembers its template and its values.

    :param text: the template, with placeholders such as ``{name}``; other braces are text
    :param values: texts, whole numbers, or other translatable messages
    """

    text: str
    values: dict[str, str | int]

    def __new__(cls, text: str, **values: str | int) -> Translatable:  # noqa: D102  (see the class)
        filled = _PLACEHOLDER.sub(
            lambda found: _shown(values[found[1]]) if found[1] in values else found[0], text
        )
        self = super().__new__(cls, filled)
        self.text, self.values = text, values
        return self

    def to_json(self) -> dict[str, Any]:
        """Return the English text as ``detail``, and the template and its values."""
        values = {
            name: value.to_json() if isinstance(value, Translatable) else value
            for name, value in self.values.items()
        }
        return {"detail": str(self), "text": self.text, "values": values}


def _shown(value: str | int) -> str:
    return f"{value:,}" if isinstance(value, int) else value
