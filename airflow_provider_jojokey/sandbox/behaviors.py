"""Decide which case responds to a request: directives in the prompt first, then the queue of behaviors."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from airflow_provider_jojokey.sandbox.cases import CASES, Case, find_case
from airflow_provider_jojokey.sandbox.directives import Directive, read_directives
from airflow_provider_jojokey.sandbox.validation import RejectedError


@dataclass
class _Behavior:
    directive: Directive
    remaining: int | None
    """Number of further requests; ``None`` means all."""


class Behaviors:
    """The cases that later requests get. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queue: list[_Behavior] = []
        self._uses: dict[tuple[str, int], int] = {}
        """How many requests each directive has responded to, by prompt and position in it."""

    def add(self, case: str, times: int | None, options: Mapping[str, Any]) -> None:
        """Append a behavior to the queue.

        :param times: number of requests that it responds to; ``None`` means all
        :raises ValueError: if the case or an option is unknown
        """
        find_case(case)
        behavior = _Behavior(Directive.of(case, options), times)
        with self._lock:
            self._queue.append(behavior)

    def clear(self) -> None:
        """Empty the queue."""
        with self._lock:
            self._queue.clear()

    def reset(self) -> None:
        """Empty the queue, and let directives count from zero."""
        with self._lock:
            self._queue.clear()
            self._uses.clear()

    def choose(self, prompt: str) -> tuple[Case, Directive, str]:
        """Return the case for a request with this prompt, its options, and the text to draw.

        :raises RejectedError: if a directive can't be read
        """
        try:
            text, directives = read_directives(prompt)
            for directive in directives:
                find_case(directive.case)
        except ValueError as error:
            raise RejectedError(400, str(error), code="sandbox_directive", param="prompt") from error
        with self._lock:
            for position, directive in enumerate(directives):
                uses = self._uses.get((prompt, position), 0)
                if directive.times is None or uses < directive.times:
                    self._uses[prompt, position] = uses + 1
                    return find_case(directive.case), directive, text
            for behavior in self._queue:
                if behavior.remaining is None:
                    return find_case(behavior.directive.case), behavior.directive, text
                if behavior.remaining > 0:
                    behavior.remaining -= 1
                    return find_case(behavior.directive.case), behavior.directive, text
        return CASES["ok"], Directive(), text
