"""Measure campaigns: wall time compared with the ideal, CPU and memory.

    python -m benchmarks.campaign [--quick 10] [--json FILE] [--check]

The benchmark runs ``GenerateImageBatchOperator`` with receipts, spool and manifest. Another process runs a gateway
and an S3 server on loopback. See README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import certifi

from benchmarks._report import add_options, conclude
from benchmarks.one_image import MIB, Child, make_certificate

IMAGE_BYTES = 2_000_000
DELAYS = (5.0, 20.0)
SHORT_DELAYS, SMALL = (0.5, 1.0), 20_000
IN_FLIGHT_DELAYS = (40.0, 55.0)
"""Delays at which all requests are sent before the first response arrives."""


METHODS = {"ours": "this package", "requests": "`requests` in threads", "openai": "`openai` SDK in threads"}


@dataclass(frozen=True)
class Case:
    """A campaign."""

    images: int
    in_flight: int
    delays: tuple[float, float] = DELAYS
    method: str = "ours"
    tls: bool = False
    """Whether the gateway uses HTTPS."""
    limit: int = 0
    """Requests that the gateway accepts per minute; 0 means no limit."""
    trips: tuple[float, float] = (0.0, 0.0)
    """Seconds of a round trip to S3 and to the gateway."""
    image_bytes: int = IMAGE_BYTES
    done: int = 0
    """Items that an earlier try completed before the measurement."""
    budget: bool = False
    """Whether the Dag run has a token budget."""

    @property
    def name(self) -> str:
        """The name in files and paths."""
        method = "" if self.method == "ours" else f"-{self.method}"
        limited = f"-{self.limit}-a-minute" if self.limit else ""
        more = f"{limited}{f'-{self.done}-done' if self.done else ''}{'-budget' if self.budget else ''}"
        return f"{self.images}-in-{self.in_flight}{method}{'-tls' if self.tls else ''}{more}"

    @property
    def ideal(self) -> float | None:
        """The shortest possible time in seconds if there is a limit."""
        return 60.0 * ((self.images - 1) // self.limit) if self.limit else None


CASES = [
    Case(10, 64),
    Case(100, 64),
    Case(1_000, 64),
    Case(1_000, 64, tls=True),
    Case(200, 8, (0.5, 2.0)),
    Case(200, 64),
    Case(200, 64, method="requests"),
    Case(200, 64, method="openai"),
    Case(512, 256),
    Case(200, 200),
    Case(200, 200, method="requests"),
    Case(200, 200, method="openai"),
    Case(200, 200, limit=120, trips=(0.03, 0.05)),
    Case(600, 64, SHORT_DELAYS, trips=(0.03, 0.05), image_bytes=SMALL),
    Case(600, 64, SHORT_DELAYS, trips=(0.03, 0.05), image_bytes=SMALL, budget=True),
    Case(1_010, 64, SHORT_DELAYS, trips=(0.03, 0.05), image_bytes=SMALL, done=1_000),
    Case(10_010, 64, SHORT_DELAYS, trips=(0.03, 0.05), image_bytes=SMALL, done=10_000),
    Case(50_000, 64, SHORT_DELAYS, image_bytes=SMALL),
    Case(1_000, 1_000, IN_FLIGHT_DELAYS),
    Case(1_000, 1_000, IN_FLIGHT_DELAYS, method="requests"),
    Case(1_000, 1_000, IN_FLIGHT_DELAYS, tls=True),
]


def measure(case: Case, quick: float) -> dict[str, Any]:
    """Run a campaign in fresh processes; return its figures."""
    with tempfile.TemporaryDirectory() as home, ExitStack() as stack:
        arguments, trust = ["--image-bytes", str(case.image_bytes)], {}
        if case.tls:
            certificate, key = make_certificate(Path(home))
            arguments += ["--certificate", str(certificate), "--key", str(key)]
            # The usual authorities as well: loading the bundle takes CPU and memory.
            bundle = Path(home, "bundle.pem")
            bundle.write_bytes(Path(certifi.where()).read_bytes() + certificate.read_bytes())
            trust = dict.fromkeys(("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"), str(bundle))
        servers = stack.enter_context(Child("_campaign_servers", *arguments, "--limit", str(case.limit)))
        ports = {"s3": servers.first["s3"], "api": servers.first["api"]}
        for name, seconds in zip(ports, case.trips, strict=True):
            if seconds:
                delays = ("--port", str(ports[name]), "--round-trip", str(seconds))
                ports[name] = stack.enter_context(Child("_delays", *delays)).first["port"]
        api = f"{'https' if case.tls else 'http'}://127.0.0.1:{ports['api']}"
        s3 = f"http://127.0.0.1:{ports['s3']}"
        environment = {
            **trust,
            "AIRFLOW_HOME": home,
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__JOJOKEY__SPOOL_DIRECTORY": f"{home}/spool",
            "AIRFLOW_CONN_JOJOKEY_DEFAULT": json.dumps(
                {"conn_type": "jojokey", "host": api, "password": "sk-benchmark"}
            ),
            "AIRFLOW_CONN_AWS_DEFAULT": json.dumps(
                {
                    "conn_type": "aws",
                    "login": "benchmark",
                    "password": "benchmark",
                    "extra": {
                        "endpoint_url": s3,
                        "region_name": "us-east-1",
                        "config_kwargs": {"s3": {"addressing_style": "path"}},
                    },
                }
            ),
            "NO_PROXY": "127.0.0.1",
        }
        with Child("_campaign_client", environment=environment) as client:
            job = {
                "run": case.name,
                "method": case.method,
                "images": case.images,
                "in_flight": case.in_flight,
                "delays": [delay / quick for delay in case.delays],
                "done": case.done,
                "budget": case.budget,
            }
            result: dict[str, Any] = client.ask(json.dumps(job))
        counted = servers.ask("stats")
    if not result["made"] + case.done == counted["posts"] == counted["images"] == case.images:
        raise SystemExit(f"not every image was generated and stored once: {result} {counted}")
    if counted["image_bytes"] < case.images * case.image_bytes:
        raise SystemExit(f"bytes are missing: {counted}")
    return {
        **result,
        "peak_in_flight": counted["peak"],
        "s3_writes": counted["writes"],
        "s3_reads": counted["reads"],
        "refused": counted["refused"],
    }


def table(found: dict[str, dict[str, Any]]) -> str:
    """Return the Markdown table."""
    lines = [
        "| method | images | in flight (observed) | wall time | of the ideal "
        "| images per minute | CPU per image | memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case in CASES:
        if (figures := found.get(case.name)) is None:
            continue
        lines.append(
            f"| {METHODS[case.method]}{', HTTPS' if case.tls else ''} "
            f"| {case.images:,} | {case.in_flight:,} ({figures['peak_in_flight']:,}) "
            f"| {figures['wall']:.0f} s "
            f"| {figures['wall'] / figures['ideal']:.2f} | {60 * case.images / figures['wall']:.0f} "
            f"| {figures['cpu_ms_per_image']:.1f} ms | +{figures['grown'] / MIB:.0f} MiB |"
        )
    return "\n".join(lines)


def checks(found: dict[str, dict[str, Any]]) -> list[tuple[bool, str]]:
    """Return for each measured target whether it is met, and a sentence."""
    judged = []
    if many := found.get("1000-in-64"):
        ratio, grown = many["wall"] / many["ideal"], many["grown"] / MIB
        judged.append(
            (ratio <= 1.15, f"1,000 images take {ratio:.2f} of the ideal time (target: at most 1.15)")
        )
        judged.append((grown <= 60, f"memory grows by {grown:.0f} MiB (target: at most 60)"))
        if few := found.get("100-in-64"):
            more = grown - few["grown"] / MIB
            judged.append(
                (more <= 10, f"from 100 to 1,000 images it grows by {more:+.0f} MiB (target: at most 10)")
            )
    if wide := found.get("1000-in-1000"):
        grown = wide["grown"] / MIB
        judged.append(
            (grown <= 120, f"{wide['peak_in_flight']:,} in flight take {grown:.0f} MiB (at most 120)")
        )
    return judged


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--quick", type=float, default=1.0, metavar="N", help="divide the time of images by N"
    )
    parser.add_argument("--only", nargs="*", help="names of cases, such as 1000-in-64")
    add_options(parser)
    arguments = parser.parse_args()
    found = {}
    for case in CASES:
        if not arguments.only or case.name in arguments.only:
            print(f"… {case.name}", file=sys.stderr, flush=True)
            found[case.name] = measure(case, arguments.quick)
    print(table(found), end="\n\n")
    judged = checks(found)
    return conclude(arguments, judged, {"quick": arguments.quick, "cases": found})


if __name__ == "__main__":
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    sys.exit(main())
