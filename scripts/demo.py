"""From nothing to a poster: the sandbox, one run of poster_daily, and where its picture lies.

With JOJOKEY_API_KEY in the environment the real API is used, and that costs money; with AWS
credentials and JOJOKEY_S3_BUCKET, the real S3.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime

from world import HOME, airflow_environment, open_sandbox

AIRFLOW = [sys.executable, "-m", "airflow"]
LOG = HOME / "demo.log"
OF_THE_PROVIDER = re.compile(
    r"\S+ \[\w+ *\] (?P<said>.+?)\s+\[[\w.]*airflow_provider_jojokey[\w.]*\]"
    r"|airflow_provider_jojokey\.exceptions\.(?P<error>\w+: .+)"
)


def main() -> int:
    HOME.mkdir(exist_ok=True)
    today = datetime.now(UTC).strftime("%Y-%m-%d")
    sandbox = open_sandbox()
    real = (
        "the real API: this costs money"
        if sandbox.uses_real_api
        else "a stand-in for JojoKey, on this machine"
    )
    print(f"Gateway   {real}")
    with sandbox, LOG.open("w", encoding="utf-8") as log:
        environment = airflow_environment(sandbox)
        print("Airflow   preparing its database …", flush=True)
        subprocess.run([*AIRFLOW, "db", "migrate"], env=environment, stdout=log, stderr=log, check=True)
        print(f"Dag       airflow dags test poster_daily {today}", flush=True)
        # The same day again is the same order: it is not paid for twice.
        conf = {"reuse": "always"} | ({"theme": theme} if (theme := os.environ.get("THEME")) else {})
        code = run_dag(today, conf, environment, log)
        if code == 0:
            show_result(sandbox, environment, today)
        else:
            print(f"\nThe run failed; all that Airflow said is in {LOG}", file=sys.stderr)
        return code


def run_dag(day: str, conf: dict[str, str], environment: dict[str, str], log: object) -> int:
    """Run the Dag once; show of Airflow's log what the provider says, keep the rest in a file."""
    command = [*AIRFLOW, "dags", "test", "poster_daily", day, "--conf", json.dumps(conf)]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", file=log)  # type: ignore[call-overload]
        if told := OF_THE_PROVIDER.match(line):
            print(f"          {(told['said'] or told['error'])[:1000]}", flush=True)
    return process.wait()


def show_result(sandbox: object, environment: dict[str, str], day: str) -> None:
    """Print where the image is and what it cost, from its receipt."""
    os.environ.update(environment, AIRFLOW__LOGGING__LOGGING_LEVEL="ERROR")
    from airflow_provider_jojokey.payments.receipt_store import ReceiptStore
    from airflow_provider_jojokey.store.keys import Destination
    from airflow_provider_jojokey.store.s3 import ImageStore

    bucket = environment["AIRFLOW_VAR_POSTERS_BUCKET"]
    receipt = ReceiptStore(ImageStore("aws_default"), Destination(bucket, f"daily/{day}.{{ext}}")).read()
    paid = next(attempt for attempt in reversed(receipt.attempts) if attempt.images)
    image = paid.images[0]
    print(f"\nImage     {image.uri}, {image.width}x{image.height} {image.content_type}")
    if not sandbox.uses_real_s3:  # type: ignore[attr-defined]
        print(f"On disk   {HOME / 'world' / 's3' / image.bucket / image.key}")
    usage = paid.usage or {}
    print(
        f"Usage     {usage.get('input_tokens')} tokens in, {usage.get('output_tokens')} out, "
        f"paid for at {paid.started_at:%H:%M:%S} UTC"
    )
    print("Next      make demo (again: nothing is paid twice)   THEME='a red fox' make demo   make ui")


if __name__ == "__main__":
    sys.exit(main())
