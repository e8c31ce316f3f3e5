"""Asking for a case from within a prompt: ``[sandbox: no_channel times=2]``."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_DIRECTIVE = re.compile(r"\[sandbox:([^\]]*)\]", re.IGNORECASE)

OPTIONS = {
    "times": "only the first so many requests with this prompt get it, later ones are answered well",
    "delay": "seconds before the answer, in which the upstream works",
    "drip": "seconds over which the body is spread",
    "billed": "yes or no, where it is not the case's own default",
    "lang": "en or zh: the language of the gateway's message",
    "retry_after": "seconds, for the Retry-After header",
    "truncate_after": "images that arrive whole before the reply breaks off",
    "cut": "bytes of the body that arrive before it breaks off",
    "end": "fin or rst: how a broken reply ends",
    "framing": "length, chunked or close: how the body's end is marked",
    "body": "json, html or text: what a Cloudflare page is made of, whatever Accept says",
    "to": "an address, for redirects and for images elsewhere",
    "status": "an HTTP status, for the case error",
    "code": "an error code, for the case error",
    "message": "an error message, for the case error",
    "type": "an error type, for the case error",
}


@dataclass(frozen=True)
class Directive:
    """A case with its options, as text; an empty ``case`` is a plain good reply."""

    case: str = ""
    options: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, case: str, options: Mapping[str, Any]) -> Directive:
        """Build one from Python values: ``True`` is written ``yes``, ``False`` ``no``.

        :raises ValueError: if an option does not exist.
        """
        directive = cls(case, {name: _as_text(value) for name, value in options.items() if value is not None})
        directive.check()
        return directive

    @property
    def times(self) -> int | None:
        """How often it applies; ``None`` is always."""
        return int(self.options["times"]) if "times" in self.options else None

    def check(self) -> None:
        """Check the options' names and numbers.

        :raises ValueError: if an option does not exist or its value is not of its kind.
        """
        for name, value in self.options.items():
            if name not in OPTIONS:
                raise ValueError(f"There is no sandbox option {name!r}; there are: {', '.join(OPTIONS)}.")
            if name in {"times", "truncate_after", "cut", "status"}:
                int(value)
            elif name in {"delay", "drip"}:
                float(value)

    def text(self, name: str, default: str = "") -> str:
        """Return an option, or ``default``."""
        return self.options.get(name, default)

    def number(self, name: str, default: float = 0.0) -> float:
        """Return an option as a number."""
        return float(self.options.get(name, default))

    def flag(self, name: str, default: bool) -> bool:
        """Return an option that says yes or no."""
        value = self.options.get(name)
        return default if value is None else value.lower() in {"yes", "true", "1", "on"}


def read_directives(prompt: str) -> tuple[str, list[Directive]]:
    """Split a prompt into the text to draw and the directives in it.

    :raises ValueError: if a directive cannot be read.
    """
    found = []
    for match in _DIRECTIVE.finditer(prompt):
        case = ""
        options: dict[str, str] = {}
        for word in shlex.split(match[1]):
            name, equals, value = word.partition("=")
            if equals:
                options[name] = value
            elif case:
                raise ValueError(f"A sandbox directive names one case, not {case!r} and {word!r}.")
            else:
                case = word
        directive = Directive(case, options)
        directive.check()
        found.append(directive)
    return " ".join(_DIRECTIVE.sub(" ", prompt).split()) if found else prompt, found


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
