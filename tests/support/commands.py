"""The output of ``airflow jojokey`` commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import airflow  # noqa: F401  # now: its log handler keeps the standard output of this moment, not that of a test
import pytest

from airflow_provider_jojokey.__main__ import main


@dataclass(frozen=True)
class CommandOutput:
    """Standard output, standard error and exit code of a command."""

    code: int
    out: str
    err: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        rows = json.loads(self.out)
        assert isinstance(rows, list)
        return rows


Run = Callable[..., CommandOutput]


def run_in_process(capfd: pytest.CaptureFixture[str], *arguments: str) -> CommandOutput:
    """Run a command like ``python -m airflow_provider_jojokey``, without the seconds that a new process imports."""
    capfd.readouterr()
    try:
        code = main(arguments)
    except SystemExit as end:
        code = int(end.code or 0)
    out, err = capfd.readouterr()
    return CommandOutput(code, out, err)
