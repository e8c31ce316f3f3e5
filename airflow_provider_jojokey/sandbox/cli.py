"""The sandbox from the command line."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Self

from airflow_provider_jojokey.sandbox.cases import describe_cases
from airflow_provider_jojokey.sandbox.directives import OPTIONS
from airflow_provider_jojokey.sandbox.ledger import read_ledger
from airflow_provider_jojokey.sandbox.world import Sandbox

_OTHER_TERMINALS_KEY = "'\"$JOJOKEY_API_KEY\"'"
_COMMANDS = ("run", "cases", "ledger")

_DESCRIPTION = """\
Try the JojoKey provider without a token and without spending a cent.

This starts two servers on loopback: a stand-in for JojoKey, which draws a real
image from every prompt and keeps a ledger of what it billed, and an S3 server,
which keeps its objects as plain files. The command you give runs in that world,
with the Airflow connections jojokey_default and aws_default set."""

_EPILOG = """\
commands:
  run      run a command in the sandbox, or serve until Ctrl-C (the default)
  cases    list every error and oddity the stand-in can answer with
  ledger   show what it billed

examples:
  # run a Dag; the images are then in ./world/s3/posters
  python -m airflow_provider_jojokey.sandbox run --dir ./world -- airflow dags test poster_daily

  # keep both servers up, and paste the export lines into other terminals
  python -m airflow_provider_jojokey.sandbox run --dir ./world

  # what would it have cost?
  python -m airflow_provider_jojokey.sandbox ledger --dir ./world

misbehaviour:
  A prompt asks for trouble by itself, and the words in brackets are not drawn:
    "A red fox [sandbox: no_channel times=2]"     twice 503, then an image
    "A red fox [sandbox: cloudflare_524]"         too slow, and billed all the same
    "A red fox [sandbox: delay=30]"               an image, after half a minute

the real thing:
  JOJOKEY_API_KEY     if set, the real API is used in place of the stand-in: this costs money
  JOJOKEY_BASE_URL    its address, if it is not https://api.jojokey.com
  JOJOKEY_S3_BUCKET   if set, with AWS_ACCESS_KEY_ID or AWS_PROFILE, the real S3 is used"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    :param arguments: without the program's name; by default those of the process.
    :returns: the exit code: the command's own, 128 plus the number of the signal that ended it, 1 if the sandbox
        could not be started, 127 if there is no such command.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    command: list[str] = []
    if "--" in words:
        split = words.index("--")
        words, command = words[:split], words[split + 1 :]
    if words[:1] not in ([name] for name in (*_COMMANDS, "-h", "--help")):
        words.insert(0, "run")
    options = _parser().parse_args(words)
    if options.command == "cases":
        return _cases()
    if options.command == "ledger":
        return _ledger(options)
    return _run(options, command)


def _parser() -> argparse.ArgumentParser:
    program = "python -m airflow_provider_jojokey.sandbox"
    parser = argparse.ArgumentParser(
        prog=program,
        usage=f"{program} [run | cases | ledger] [options] [-- COMMAND …]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", metavar="", help=argparse.SUPPRESS)
    run = commands.add_parser(
        "run",
        usage=f"{program} [run] [options] [-- COMMAND …]",
        description="Run COMMAND in the sandbox; without one, serve until Ctrl-C.",
    )
    run.add_argument(
        "--dir",
        metavar="DIR",
        type=Path,
        help="where images and ledger are kept (default: a new temporary directory)",
    )
    run.add_argument(
        "--bucket",
        metavar="NAME",
        action="append",
        help="a bucket to make; may be repeated (default: posters)",
    )
    run.add_argument("--gateway-port", metavar="PORT", type=int, default=0, help="default: any free port")
    run.add_argument("--s3-port", metavar="PORT", type=int, default=0, help="default: any free port")
    run.add_argument(
        "--delay", metavar="SECONDS", type=float, default=0.0, help="how long each image takes (default: 0)"
    )
    commands.add_parser(
        "cases",
        usage=f"{program} cases",
        description="List every error and oddity the stand-in can answer with.",
    )
    ledger = commands.add_parser(
        "ledger",
        usage=f"{program} ledger [--dir DIR] [--json]",
        description="Show what was billed: of --dir, or of the sandbox this command runs in.",
    )
    ledger.add_argument("--dir", metavar="DIR", type=Path, help="the directory given to run")
    ledger.add_argument("--json", action="store_true", help="one JSON object for each billed request")
    return parser


# --- run ----------------------------------------------------------------------------------------------------------


def _run(options: argparse.Namespace, command: list[str]) -> int:
    directory = options.dir or Path(tempfile.mkdtemp(prefix="jojokey-sandbox-"))
    stop = _Signals()
    with stop:
        try:
            sandbox = Sandbox(
                directory,
                gateway_port=options.gateway_port,
                s3_port=options.s3_port,
                buckets=options.bucket or ("posters",),
                environ=os.environ,
                **(
                    {"delay": options.delay}
                    if options.delay and not os.environ.get("JOJOKEY_API_KEY")
                    else {}
                ),
            )
            with sandbox:
                if stop.signal is not None:
                    return 128 + stop.signal
                if command:
                    return _run_command(sandbox, command, stop)
                _welcome(sandbox)
                stop.wait()
                return 0
        except (OSError, RuntimeError) as error:
            print(f"sandbox: {error}", file=sys.stderr)
            return 1


def _run_command(sandbox: Sandbox, command: list[str], stop: _Signals) -> int:
    try:
        child = subprocess.Popen(command, env={**os.environ, **sandbox.environment()})
    except FileNotFoundError:
        print(f"sandbox: there is no command {command[0]!r}", file=sys.stderr)
        return 127
    except PermissionError:
        print(f"sandbox: {command[0]!r} cannot be run", file=sys.stderr)
        return 126
    code = stop.wait_for(child)
    return 128 - code if code < 0 else code


class _Signals:
    """Catches the signals that ask us to end, and hands them to the command while there is one."""

    _NAMES = ("SIGINT", "SIGTERM", "SIGHUP")

    def __init__(self) -> None:
        self.signal: int | None = None
        # What is waited for is a pipe to which the interpreter itself writes a byte at each signal. A signal that
        # arrives just before a lock or a child is waited for would otherwise be noticed only when that wait is over.
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._child: subprocess.Popen[bytes] | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for name in self._NAMES:
            number = getattr(signal, name, None)
            if number is not None:
                self._before[number] = signal.signal(number, self._caught)
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(-1)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._reader)
        os.close(self._writer)

    def wait(self) -> None:
        """Block until a signal has come."""
        while self.signal is None:
            os.read(self._reader, 1)

    def wait_for(self, child: subprocess.Popen[bytes]) -> int:
        """Block until ``child`` has ended, hand it the signals that come meanwhile, and return its return code."""

        def watch() -> None:
            child.wait()
            os.write(self._writer, b".")

        self._child = child
        if self.signal is not None:  # it came while the command was being started
            child.send_signal(self.signal)
        watcher = threading.Thread(target=watch, name="jojokey-sandbox-child", daemon=True)
        watcher.start()
        while child.returncode is None:
            os.read(self._reader, 1)
        self._child = None
        watcher.join()
        return child.returncode

    def _caught(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        # Ctrl-C goes to all of a terminal's foreground, so the command has had it already: a second one would make
        # programs that end gently on the first end at once.
        if self._child is not None and not (number == signal.SIGINT and _in_foreground()):
            self._child.send_signal(number)


def _in_foreground() -> bool:
    for stream in (0, 1, 2):
        with contextlib.suppress(OSError, AttributeError):
            if os.isatty(stream):
                return os.tcgetpgrp(stream) == os.getpgrp()
    return False


def _welcome(sandbox: Sandbox) -> None:
    bold, dim, end = ("\033[1m", "\033[2m", "\033[0m") if sys.stdout.isatty() else ("", "", "")
    gateway = "the real API: this costs money" if sandbox.uses_real_api else sandbox.gateway.url
    store = "the real S3" if sandbox.uses_real_s3 else sandbox.s3.endpoint_url
    print(f"\n{bold}The JojoKey sandbox is up.{end}\n")
    print(f"  gateway   {gateway}")
    print(
        f"  S3        {store}   {dim}bucket{'s' if len(sandbox.buckets) > 1 else ''}{end} {', '.join(sandbox.buckets)}"
    )
    print(f"  files     {sandbox.directory}\n")
    print(f"{dim}In another terminal:{end}\n")
    secret = os.environ.get("JOJOKEY_API_KEY") if sandbox.uses_real_api else None
    for name, value in sandbox.environment().items():
        line = shlex.quote(value)
        # A real token is not for the screen: the other terminal's own variable is put in its place.
        print(f"export {name}={line.replace(secret, _OTHER_TERMINALS_KEY) if secret else line}")
    print(f"\n{dim}Ctrl-C ends it; the files stay.{end}", flush=True)


# --- cases and ledger ---------------------------------------------------------------------------------------------


def _cases() -> int:
    print("Ask for a case in a prompt, as in [sandbox: no_channel times=2], or with gateway.behave().\n")
    print(describe_cases())
    print("\noptions:")
    width = max(map(len, OPTIONS))
    for name, meaning in OPTIONS.items():
        print(f"  {name:{width}}  {meaning}")
    return 0


def _ledger(options: argparse.Namespace) -> int:
    try:
        rows = list(_rows(options.dir))
    except (OSError, ValueError) as error:
        print(f"sandbox: no ledger: {error}", file=sys.stderr)
        return 1
    if options.json:
        for row in rows:
            print(json.dumps(row, ensure_ascii=False))
        return 0
    print(
        f"{'request':31}  {'size':>9}  {'quality':7}  {'n':>2}  {'tokens':>7}  {'US$':>8}  {'arrived':7}  prompt"
    )
    for row in rows:
        prompt = " ".join(row["prompt"].split())
        print(
            f"{row['request_id']:31}  {row['size']:>9}  {row['quality']:7}  {row['n']:>2}  {row['total_tokens']:>7}  "
            f"{row['cost_usd']:>8.4f}  {'yes' if row['delivered'] else 'no':7}  {prompt[:60]}"
        )
    total = sum(row["cost_usd"] for row in rows)
    tokens = sum(row["total_tokens"] for row in rows)
    print(f"\n{len(rows)} billed, {tokens} tokens, US$ {total:.4f}")
    return 0


def _rows(directory: Path | None) -> Iterable[Mapping[str, Any]]:
    if directory is not None:
        return [record.to_json() for record in read_ledger(directory / "ledger.jsonl")]
    url = os.environ.get("JOJOKEY_SANDBOX_URL")
    if not url:
        raise ValueError("give --dir, or run this inside a sandbox")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{url}/sandbox/ledger", timeout=10) as reply:
        rows: list[dict[str, Any]] = json.load(reply)["billed"]
        return rows
