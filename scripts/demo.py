"""Run `make demo`: start the sandbox, run `poster_daily` once, and print the location of its image.

If JOJOKEY_API_KEY is set, the demo uses the real API, which costs money. With JOJOKEY_S3_BUCKET and AWS credentials,
it uses the real S3.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from world import HOME, airflow_environment, locked, start_sandbox

from airflow_provider_jojokey.sandbox import Sandbox

AIRFLOW = [sys.executable, "-m", "airflow"]
LOG_LINE = re.compile(r"\d{4}-\d\d-\d\dT\S+ \[")
MESSAGE = re.compile(r"\S+ \[\w+ *\] (?P<message>.+?)\s+\[[\w.]*airflow_provider_jojokey[\w.]*\]")
TRACEBACK_TEXT = ("Traceback ", "During handling of ", "The above exception ")


def main() -> int:
    with locked(HOME, "make demo") as holder:
        home = HOME
        if holder:
            # Two Airflows that share a database would run each other's tasks.
            home = HOME / "beside"
            print(f"{holder} is running, so this demo keeps its files in {home}.", flush=True)
            home.mkdir(parents=True, exist_ok=True)
        try:
            sandbox = start_sandbox(home)
        except (OSError, RuntimeError) as error:
            print(f"The sandbox can't start. {error}", file=sys.stderr)
            return 1
        with sandbox:
            return run(sandbox, home)


def run(sandbox: Sandbox, home: Path) -> int:
    """Run `poster_daily` once and print its image; return the exit code."""
    today = datetime.now(UTC).strftime("%Y-%m-%d")
    real = "the real API, which costs money"
    print(f"Gateway   {real if sandbox.uses_real_api else 'a stand-in for JojoKey, on this machine'}")
    path = home / "demo.log"
    printed = 0
    environment = airflow_environment(sandbox, home)
    with path.open("w", encoding="utf-8") as log:
        print("Airflow   preparing its database (ten seconds or more) …", flush=True)
        code = subprocess.run([*AIRFLOW, "db", "migrate"], env=environment, stdout=log, stderr=log).returncode
        if code == 0:
            print(f"Dag       airflow dags test poster_daily {today}", flush=True)
            # A second demo on the same day requests the same image, so it isn't paid for twice.
            conf = {"reuse": "always"} | ({"theme": theme} if (theme := os.environ.get("THEME")) else {})
            code, printed = run_dag(today, conf, environment, log)
    if code == 0:
        show_result(sandbox, environment, today)
    else:
        print(f"\nThe demo failed. Airflow's log is in {path}", file=sys.stderr)
        if not printed:
            print(*path.read_text(encoding="utf-8").splitlines()[-15:], sep="\n", file=sys.stderr)
    return code


def run_dag(day: str, conf: dict[str, str], environment: dict[str, str], log: IO[str]) -> tuple[int, int]:
    """Run the Dag once; return its exit code and the number of printed messages.

    Print the provider's messages and all exceptions, and write everything to a file.
    """
    command = [*AIRFLOW, "dags", "test", "poster_daily", day, "--conf", json.dumps(conf)]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    printed = 0
    for message in messages(_copied(process.stdout, log)):
        printed += 1
        print(f"          {message[:1000]}", flush=True)
    return process.wait(), printed


def messages(lines: Iterable[str]) -> Iterator[str]:
    """Yield the provider's messages and the exceptions of all tasks from Airflow's log."""
    exception: list[str] | None = None
    for line in lines:
        if line.startswith("Traceback "):
            exception = []
        elif LOG_LINE.match(line):
            if exception:
                yield " ".join(exception)
            exception = None
            if found := MESSAGE.match(line):
                yield found["message"]
        elif exception is not None and line.strip() and not line.startswith((" ", *TRACEBACK_TEXT)):
            exception.append(line.strip().removeprefix("airflow_provider_jojokey.exceptions."))
    if exception:
        yield " ".join(exception)


def _copied(lines: Iterable[str], log: IO[str]) -> Iterator[str]:
    for line in lines:
        log.write(line)
        log.flush()
        yield line


def show_result(sandbox: Sandbox, environment: dict[str, str], day: str) -> None:
    """Print the location and the cost of the image, from its receipt in S3."""
    os.environ.update(environment, AIRFLOW__LOGGING__LOGGING_LEVEL="ERROR")
    from airflow_provider_jojokey.payments.receipt_store import ReceiptStore
    from airflow_provider_jojokey.store.keys import Destination
    from airflow_provider_jojokey.store.s3 import ImageStore

    bucket = environment["AIRFLOW_VAR_POSTERS_BUCKET"]
    receipt = ReceiptStore(ImageStore("aws_default"), Destination(bucket, f"daily/{day}.{{ext}}")).read()
    paid = next(attempt for attempt in reversed(receipt.attempts) if attempt.images)
    image = paid.images[0]
    print(f"\nImage     {image.uri}, {image.width}x{image.height} {image.content_type}")
    if not sandbox.uses_real_s3:
        print(f"On disk   {sandbox.directory / 's3' / image.bucket / image.key}")
    usage = paid.usage or {}
    print(
        f"Usage     {usage.get('input_tokens')} tokens in, {usage.get('output_tokens')} out, "
        f"paid for at {paid.started_at:%H:%M:%S} UTC"
    )
    print("Next      make demo (reuses the image)   THEME='a red fox' make demo   make ui")


if __name__ == "__main__":
    sys.exit(main())
