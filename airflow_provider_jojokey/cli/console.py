"""Shared code of the commands: output, error messages and exit codes.

Results go to standard output in Airflow's formats. Everything else goes to standard error.
"""

from __future__ import annotations

import functools
import io
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import argparse

    from rich.progress import Progress

    from airflow_provider_jojokey.cost import Costs

FAILED, USAGE, RETRYABLE, BILLED = 1, 2, 3, 4
"""Exit codes: see the help of ``airflow jojokey generate``."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


class OutputFailed(Exception):
    """Standard output doesn't accept the result, for example because the disk is full."""


class CommandFailed(Exception):
    """End the command with a message on standard error.

    :param message: what happened, and what to do
    :param code: the exit code
    """

    def __init__(self, message: str, code: int = FAILED) -> None:
        super().__init__(message)
        self.code = code


def command(function: Callable[[argparse.Namespace], int | None]) -> Callable[[argparse.Namespace], None]:
    """Turn a function into a command: only its results go to standard output, and its errors become messages."""

    @functools.wraps(function)
    def run(options: argparse.Namespace) -> None:
        from airflow_provider_jojokey.exceptions import JojoKeyError

        try:
            with _only_results_on_stdout(), _quiet(options.verbose), _connections_from_database():
                code = function(options)
        except CommandFailed as error:
            fail(str(error), error.code)
        except OutputFailed as error:
            fail(str(error), FAILED)
        except JojoKeyError as error:
            fail(error.message, code_of(error))
        except KeyboardInterrupt:
            fail("Interrupted.", 130)
        except BrokenPipeError:  # the reader, such as head, has closed the pipe
            raise SystemExit(0) from None
        if code:
            raise SystemExit(code)

    return run


def code_of(error: Any) -> int:
    """Return the exit code for a :class:`~airflow_provider_jojokey.exceptions.JojoKeyError`."""
    from airflow.providers.common.compat.sdk import AirflowFailException

    if error.billed != "no":
        return BILLED
    if isinstance(error, AirflowFailException) or getattr(error, "transient", True) is False:
        return FAILED
    return RETRYABLE


def fail(message: str, code: int) -> NoReturn:
    """Print a message on standard error, and exit.

    :raises SystemExit: always
    """
    print(f"jojokey: {strip_control_chars(message)}", file=sys.stderr)
    raise SystemExit(code)


def say(message: str) -> None:
    """Print a message on standard error."""
    print(strip_control_chars(message), file=sys.stderr)


def show(rows: Sequence[Mapping[str, Any]], output: str, columns: Sequence[str] | None = None) -> None:
    """Print rows in Airflow's formats.

    :param output: ``table``, ``json``, ``yaml``, ``plain`` or ``csv``
    :param columns: the columns of ``table`` and ``plain``; other formats contain all. JSON and YAML keep the types
        of numbers
    :raises OutputFailed: if standard output doesn't accept them
    :raises BrokenPipeError: if the reader has closed the pipe
    """
    from airflow.cli.simple_table import AirflowConsole
    from rich.markup import escape

    class ResultConsole(AirflowConsole):
        def on_broken_pipe(self) -> None:  # by default, rich exits with code 1, which means "not billed"
            raise BrokenPipeError

    with _results():
        console = ResultConsole()
        if output in ("json", "yaml"):
            data: Any = [dict(row) for row in rows]
            (console.print_as_json if output == "json" else console.print_as_yaml)(data)
            return
        if output == "csv":
            _print_csv(rows)
            return
        # Keys and Dag IDs are untrusted: they must not be read as markup or as escape sequences.
        clean = escape if output == "table" else str
        cells = [
            {
                name: clean(strip_control_chars("" if value is None else str(value)))
                for name, value in row.items()
                if columns is None or name in columns
            }
            for row in rows
        ]
        console.print_as(cells, output)


def _print_csv(rows: Sequence[Mapping[str, Any]]) -> None:
    import csv

    from airflow_provider_jojokey.spreadsheets import safe_cell

    table = csv.writer(sys.stdout, lineterminator="\n")
    if rows:
        table.writerow(rows[0])
    for row in rows:
        table.writerow([safe_cell("" if value is None else value) for value in row.values()])


def cost_fields(costs: Costs) -> dict[str, Any]:
    """Return the columns of a cost: as text, and as an exact amount in its first currency."""
    first = costs.amounts[0] if costs.amounts else None
    return {
        "cost": str(costs),
        "amount": first.to_json()["amount"] if first else None,
        "currency": first.currency if first else None,
        "approximate": first.approximate if first else None,
    }


@contextmanager
def progress(*columns: Any) -> Iterator[Progress]:
    """Show progress on standard error, if it is a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    # Older versions of rich print an empty line at the end, also if the bar is disabled.
    with bar if console.is_terminal else nullcontext():
        yield bar


def strip_control_chars(text: str) -> str:
    """Return ``text`` in one line, without control characters and escape sequences."""
    return _CONTROL.sub(" ", text)


@contextmanager
def _only_results_on_stdout() -> Iterator[None]:
    """Redirect standard output to standard error, except for :func:`show`.

    Several of Airflow's libraries log to standard output. Only redirecting the file descriptor affects all of them.
    """
    global _stdout, _messages
    # A stream that the shell has closed, as with >&-, is None. Its descriptor may belong to another file by now.
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        _messages = sys.stderr.fileno()
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        yield
        return
    sys.stdout.flush()
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal may not have the characters of a key
        sys.stdout.reconfigure(errors="backslashreplace")
    _stdout = os.dup(1)
    os.dup2(_messages, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(_stdout, 1)
        os.close(_stdout)
        _stdout = None


_stdout: int | None = None
_messages = 2


@contextmanager
def _results() -> Iterator[None]:
    if _stdout is None:
        yield
        return
    sys.stdout.flush()
    os.dup2(_stdout, 1)
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        _discard_output()
        if isinstance(error, BrokenPipeError):
            raise
        raise OutputFailed(f"The result can't be written to standard output: {error.strerror}.") from None
    finally:
        os.dup2(_messages, 1)


def _discard_output() -> None:
    """Drop output that could not be written. Otherwise it would be written to standard error later."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)
    sys.stdout.flush()


@contextmanager
def _quiet(verbose: bool) -> Iterator[None]:
    """Log only errors and this package's warnings, unless ``--verbose`` is set."""
    if verbose:
        yield
        return
    import structlog

    def only_errors(_: Any, method: str, event: Any) -> Any:  # this package uses logging, not structlog
        if method in ("debug", "info", "warning"):
            raise structlog.DropEvent
        return event

    levels = {logging.getLogger(): logging.ERROR, logging.getLogger("airflow"): logging.ERROR}
    levels[logging.getLogger("airflow_provider_jojokey")] = logging.WARNING
    before = {logger: logger.level for logger in levels}
    processors = structlog.get_config()["processors"]
    processors.insert(0, only_errors)  # existing loggers hold a reference to this list
    for logger, level in levels.items():
        logger.setLevel(level)
    try:
        yield
    finally:
        processors.remove(only_errors)
        for logger, level in before.items():
            logger.setLevel(level)


@contextmanager
def _connections_from_database() -> Iterator[None]:
    """Also look up connections in Airflow's database, like ``airflow connections``."""
    name = "_AIRFLOW_PROCESS_CONTEXT"
    before = os.environ.get(name)
    os.environ[name] = "server"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
