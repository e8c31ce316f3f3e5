"""The command line of the sandbox. Results go to standard output, and errors to standard error."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_provider_jojokey.sandbox.cases import CASES
from airflow_provider_jojokey.sandbox.charges import read_charges
from airflow_provider_jojokey.sandbox.directives import OPTIONS
from airflow_provider_jojokey.sandbox.signals import SignalForwarder
from airflow_provider_jojokey.sandbox.world import Sandbox

if TYPE_CHECKING:
    from rich.console import Console

_PROGRAM = "python -m airflow_provider_jojokey.sandbox"
_COMMANDS = ("run", "cases", "charges")
_API_KEY_VARIABLE = "'\"$JOJOKEY_API_KEY\"'"
_WIDTH = 200
"""Columns of a table if the output is not a terminal, as in Airflow's commands."""

_DESCRIPTION = """\
Try the JojoKey provider without a token and at no cost.

The sandbox starts two servers on loopback: a stand-in for JojoKey, which draws
an image from each prompt and records its charges, and an S3 server,
which stores objects as plain files. It runs your command with the Airflow
connections jojokey_default and aws_default, which point to these servers."""

_EPILOG = """\
commands:
  run      run a command in the sandbox; without a command, run until Ctrl-C (default)
  cases    list the failures and unusual responses that the stand-in can simulate
  charges  show the billed requests

examples:
  # run a Dag, which stores its images in ./world/s3/posters
  python -m airflow_provider_jojokey.sandbox run --dir ./world -- airflow dags test poster_daily

  # keep both servers running, and use them in other terminals
  python -m airflow_provider_jojokey.sandbox run --dir ./world

  # show what the images would have cost
  python -m airflow_provider_jojokey.sandbox charges --dir ./world

failures:
  A directive in a prompt requests a failure. It isn't drawn.
    "A red fox [sandbox: no_channel times=2]"     503 twice, then an image
    "A red fox [sandbox: cloudflare_524]"         a timeout, although the image is billed
    "A red fox [sandbox: delay=30]"               an image after 30 seconds

real services:
  JOJOKEY_API_KEY     if set, the real API replaces the stand-in, and images cost money
  JOJOKEY_BASE_URL    the address of the real API (default: https://api.jojokey.com)
  JOJOKEY_S3_BUCKET   if set together with AWS_ACCESS_KEY_ID or AWS_PROFILE, the real S3
                      replaces the S3 server"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    :param arguments: the arguments without the program's name; by default those of the process.
    :returns: the exit code of the command, 128 plus the number of the signal that ended it, 126 if it can't be
        executed, 127 if it doesn't exist, or 1 if the sandbox fails.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    command: list[str] = []
    if "--" in words:
        split = words.index("--")
        words, command = words[:split], words[split + 1 :]
    if words[:1] not in ([name] for name in (*_COMMANDS, "-h", "--help")):
        words.insert(0, "run")
    options = _parser().parse_args(words)
    try:
        if options.command == "cases":
            return _cases(options)
        if options.command == "charges":
            return _print_charges(options)
        return _run(options, command)
    except (OSError, RuntimeError) as error:
        return _fail(str(error))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=_PROGRAM,
        usage=f"{_PROGRAM} [run | cases | charges] [options] [-- COMMAND …]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", metavar="", help=argparse.SUPPRESS)
    run = commands.add_parser(
        "run",
        usage=f"{_PROGRAM} [run] [options] [-- COMMAND …]",
        description="Run COMMAND in the sandbox. Without COMMAND, run until Ctrl-C.",
    )
    run.add_argument(
        "--dir",
        metavar="DIR",
        type=Path,
        help="the folder for images and charges (default: a new temporary folder)",
    )
    run.add_argument(
        "--bucket",
        metavar="NAME",
        action="append",
        help="a bucket to create. Repeat it for several (default: posters)",
    )
    run.add_argument(
        "--gateway-port",
        metavar="PORT",
        type=int,
        default=0,
        help="the port of the stand-in (default: any free port)",
    )
    run.add_argument(
        "--s3-port",
        metavar="PORT",
        type=int,
        default=0,
        help="the port of the S3 server (default: any free port)",
    )
    run.add_argument(
        "--delay",
        metavar="SECONDS",
        type=float,
        default=0.0,
        help="the time that an image takes (default: 0)",
    )
    cases = commands.add_parser(
        "cases",
        usage=f"{_PROGRAM} cases [--output FORMAT]",
        description="List the failures and unusual responses that the stand-in can simulate.",
    )
    charges = commands.add_parser(
        "charges",
        usage=f"{_PROGRAM} charges [--dir DIR] [--output FORMAT]",
        description="Show the billed requests.",
    )
    charges.add_argument(
        "--dir",
        metavar="DIR",
        type=Path,
        help="the folder of the sandbox (default: ask the sandbox that this command runs in)",
    )
    for printing in (cases, charges):
        printing.add_argument(
            "-o",
            "--output",
            metavar="FORMAT",
            choices=("table", "json", "plain"),
            default="table",
            help="table, json or plain (default: table)",
        )
    return parser


def _fail(message: str) -> int:
    print(f"sandbox: {message}", file=sys.stderr)
    return 1


# --- run ----------------------------------------------------------------------------------------------------------


def _run(options: argparse.Namespace, command: list[str]) -> int:
    directory = options.dir or Path(tempfile.mkdtemp(prefix="jojokey-sandbox-"))
    real_api = bool(os.environ.get("JOJOKEY_API_KEY"))
    gateway_options = {"delay": options.delay} if options.delay and not real_api else {}
    with SignalForwarder() as signals:
        sandbox = Sandbox(
            directory,
            gateway_port=options.gateway_port,
            s3_port=options.s3_port,
            buckets=options.bucket or ("posters",),
            environ=os.environ,
            **gateway_options,
        )
        with sandbox:
            if signals.signal is not None:
                return 128 + signals.signal
            if command:
                return _run_command(sandbox, command, signals)
            _welcome(sandbox)
            signals.wait()
            return 0


def _run_command(sandbox: Sandbox, command: list[str], signals: SignalForwarder) -> int:
    try:
        child = subprocess.Popen(command, env={**os.environ, **sandbox.environment()})
    except FileNotFoundError:
        _fail(f"The command {command[0]!r} doesn't exist.")
        return 127
    except PermissionError:
        _fail(f"The command {command[0]!r} can't be executed.")
        return 126
    code = signals.wait_for(child)
    return 128 - code if code < 0 else code


def _welcome(sandbox: Sandbox) -> None:
    console = _console()
    gateway = "real API, images cost money" if sandbox.uses_real_api else sandbox.gateway.url
    store = "real S3" if sandbox.uses_real_s3 else sandbox.s3.endpoint_url
    buckets = ", ".join(sandbox.buckets)
    _write(console, "\nThe JojoKey sandbox is running.\n", "bold")
    _write(console, f"  gateway   {gateway}")
    _write(console, f"  S3        {store}   bucket{'s' if len(sandbox.buckets) > 1 else ''}: {buckets}")
    _write(console, f"  files     {sandbox.directory}\n")
    _write(console, "To use it in another terminal, run:\n", "dim")
    secret = os.environ.get("JOJOKEY_API_KEY") if sandbox.uses_real_api else None
    for name, value in sandbox.environment().items():
        quoted = shlex.quote(value)
        # A real token must not appear on the screen, so the line refers to the variable of the other terminal.
        _write(console, f"export {name}={quoted.replace(secret, _API_KEY_VARIABLE) if secret else quoted}")
    _write(console, "\nCtrl-C stops the sandbox. The files stay.", "dim")
    sys.stdout.flush()


# --- cases and charges ---------------------------------------------------------------------------------------------


def _cases(options: argparse.Namespace) -> int:
    rows = [
        {
            "case": case.name,
            "status": "-" if case.status is None else case.status,
            "billed": case.billed,
            "origin": case.origin,
            "meaning": case.summary,
        }
        for case in CASES.values()
    ]
    if options.output == "json":
        return _show(rows, "json")
    console = _console()
    _write(
        console,
        "Request a case in a prompt, such as [sandbox: no_channel times=2], or with gateway.behave().\n",
    )
    _show(rows, options.output)
    _write(console, "")
    return _show([{"option": name, "meaning": meaning} for name, meaning in OPTIONS.items()], options.output)


def _print_charges(options: argparse.Namespace) -> int:
    try:
        billed = _billed(options.dir)
    except (OSError, ValueError) as error:
        return _fail(f"The charges can't be read: {error}")
    if options.output == "json":
        return _show(billed, "json")
    rows = [
        {
            "request": row["request_id"],
            "size": row["size"],
            "quality": row["quality"],
            "n": row["n"],
            "tokens": row["total_tokens"],
            "USD": f"{row['cost_usd']:.4f}",
            "delivered": row["delivered"],
            "prompt": row["prompt"][:60],
        }
        for row in billed
    ]
    _show(rows, options.output)
    cost = sum(row["cost_usd"] for row in billed)
    tokens = sum(row["total_tokens"] for row in billed)
    requests = "1 billed request" if len(billed) == 1 else f"{len(billed)} billed requests"
    _write(_console(), f"\n{requests}, {tokens:,} tokens, USD {cost:.4f}")
    return 0


def _billed(directory: Path | None) -> Sequence[Mapping[str, Any]]:
    if directory is not None:
        return [record.to_json() for record in read_charges(directory / "charges.jsonl")]
    url = os.environ.get("JOJOKEY_SANDBOX_URL")
    if not url:
        raise ValueError("pass --dir, or run this command inside a sandbox")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{url}/sandbox/charges", timeout=10) as response:
        billed: list[dict[str, Any]] = json.load(response)["billed"]
        return billed


# --- output -------------------------------------------------------------------------------------------------------


def _console() -> Console:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else _WIDTH)


def _write(console: Console, text: str, style: str | None = None) -> None:
    """Print a line without wrapping it, so that it can be copied, and without interpreting markup."""
    console.print(text, style=style, soft_wrap=True, markup=False, highlight=False, emoji=False)


def _show(rows: Sequence[Mapping[str, Any]], output: str) -> int:
    """Print rows in the formats of ``airflow jojokey``, without its import of Airflow, and return exit code 0.

    :param output: ``table``, ``json`` or ``plain``
    """
    if output == "json":
        print(json.dumps(list(rows), ensure_ascii=False))
        return 0
    from rich.box import ASCII_DOUBLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=ASCII_DOUBLE_HEAD if output == "table" else None, show_edge=False, pad_edge=False)
    for name in rows[0] if rows else ():
        numeric = all(isinstance(row[name], (int, float)) and not isinstance(row[name], bool) for row in rows)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row.values()))
    _console().print(table)
    return 0


def _cell(value: Any) -> str:
    """Return a value as text without control characters: a prompt must not control the terminal."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " ".join("".join(letter if letter.isprintable() else " " for letter in str(value)).split())
