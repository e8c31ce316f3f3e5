"""Directives in a prompt that request a case: ``[sandbox: no_channel times=2]``."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_DIRECTIVE = re.compile(r"\[sandbox:([^\]]*)\]", re.IGNORECASE)

OPTIONS = {
    "times": "number of requests with this prompt that get the case; later ones succeed",
    "delay": "seconds that the upstream takes before the response",
    "drip": "seconds over which the body is sent",
    "billed": "yes or no, to override the default of the case",
    "lang": "en or zh: the language of the gateway's message",
    "retry_after": "seconds in the Retry-After header",
    "truncate_after": "number of complete images before the response breaks off",
    "cut": "number of bytes before the body breaks off",
    "end": "fin or rst: how an incomplete response ends",
    "framing": "length, chunked or close: how the end of the body is marked",
    "body": "json, html or text: the type of a Cloudflare page, whatever the Accept header",
    "to": "an address, for redirects and for images on another host",
    "status": "an HTTP status, for the case error",
    "code": "an error code, for the case error",
    "message": "an error message, for the case error",
    "type": "an error type, for the case error",
}


@dataclass(frozen=True)
class Directive:
    """A case with its options as strings. An empty ``case`` means a good response."""

    case: str = ""
    options: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, case: str, options: Mapping[str, Any]) -> Directive:
        """Return a directive from Python values: ``True`` becomes ``yes``, ``False`` ``no``.

        :raises ValueError: if an option does not exist.
        """
        directive = cls(case, {name: _as_text(value) for name, value in options.items() if value is not None})
        directive.check()
        return directive

    @property
    def times(self) -> int | None:
        """Number of requests it applies to; ``None`` means all."""
        return int(self.options["times"]) if "times" in self.options else None

    def check(self) -> None:
        """Check the names and values of the options.

        :raises ValueError: if an option does not exist or its value has the wrong type.
        """
        for name, value in self.options.items():
            if name not in OPTIONS:
                raise ValueError(f"Unknown sandbox option {name!r}. Known options: {', '.join(OPTIONS)}.")
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
        """Return an option that is yes or no."""
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
                raise ValueError(f"A sandbox directive can name only one case, not {case!r} and {word!r}.")
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
