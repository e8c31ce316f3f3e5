"""Measure CPU and memory for one image from the API to S3.

    python -m benchmarks.one_image [--tls] [--rounds 15] [--json FILE] [--check]

Four contenders take turns, with the same two servers on loopback. See README.md.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks._report import add_options, conclude
from benchmarks._servers import make_image

CONTENDERS = {
    "floor": "floor",
    "requests": "requests + json + base64 + put_object",
    "openai": "openai SDK + base64 + put_object",
    "ours": "this package",
}
MIB = 1024 * 1024
TIMES = "\N{MULTIPLICATION SIGN}"
MEMORY_RUNS = 3


@dataclass(frozen=True)
class Case:
    """A response with ``count`` images of ``megabytes`` (10**6 bytes) each."""

    megabytes: float
    count: int = 1

    @property
    def name(self) -> str:
        """The name in files and paths."""
        return f"{self.count}x{self.megabytes:g}MB"

    @property
    def title(self) -> str:
        """The name in tables."""
        return f"{self.count} {TIMES} {self.megabytes:g} MB"


CASES = [Case(1.5), Case(6), Case(24), Case(6, count=4)]
SMALL = Case(0.016)
"""A first image before the memory is measured, so that lazy imports are loaded."""


class Child:
    """A process that reads commands and prints results as lines of JSON."""

    def __init__(self, module: str, *arguments: str, environment: dict[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"benchmarks.{module}", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
            cwd=Path(__file__).parents[1],
        )
        self.first = self._result()

    def ask(self, line: str) -> Any:
        """Send a line, and return the result."""
        assert self._process.stdin
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._result()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(timeout=30)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _result(self) -> Any:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._process.args!r} ended with {self._process.wait()}")
        return json.loads(line)


class Bench:
    """The servers and the measurements."""

    def __init__(self, servers: Child, setup: dict[str, Any], environment: dict[str, str]) -> None:
        self._servers = servers
        self._setup = setup
        self._environment = environment
        self._digests = {
            case.name: [
                hashlib.sha256(Path(setup["folder"], f"{case.name}-{index}.png").read_bytes()).hexdigest()
                for index in range(case.count)
            ]
            for case in [*CASES, SMALL]
        }

    def child(self, contender: str, case: Case) -> Child:
        """Start a process of a contender, and wait until it is ready."""
        cases = [{"name": each.name, "count": each.count} for each in (SMALL, case)]
        return Child(
            "_contenders",
            contender,
            json.dumps({**self._setup, "cases": cases}),
            environment=self._environment,
        )

    def check(self, child: Child, case: Case) -> None:
        """Run a contender once, and fail unless the S3 server received the correct images."""
        child.ask(json.dumps({"do": "run", "case": case.name, "prefix": "check", "repeat": 1}))
        got = self._servers.ask("stats")
        if got["digests"] != self._digests[case.name] or got["generations"] != 1:
            raise SystemExit(f"{child.first} sent the wrong requests or bytes: {got}")

    def run(self, child: Child, case: Case, repeat: int) -> list[float]:
        """Return the CPU seconds of each repetition."""
        result = child.ask(json.dumps({"do": "run", "case": case.name, "prefix": "timed", "repeat": repeat}))
        self._count(child, case, repeat)
        return list(result["cpu"])

    def memory(self, child: Child, case: Case) -> int:
        """Return the growth of the peak in bytes during one large response."""
        result = child.ask(json.dumps({"do": "memory", "case": case.name, "prefix": "timed"}))
        self._count(child, case, 1)
        return int(result["grown"])

    def _count(self, child: Child, case: Case, repeat: int) -> None:
        got = self._servers.ask("stats")
        least = repeat * case.count * image_bytes(case)
        if (
            got["generations"] != repeat
            or got["puts"] != repeat * case.count
            or not least <= got["received"] <= least * 1.05
        ):
            raise SystemExit(f"{child.first} sent the wrong requests or bytes: {got}")


def image_bytes(case: Case) -> int:
    return int(case.megabytes * 1_000_000)


def make_reply(images: list[bytes]) -> bytes:
    """Return the API's response, head and body."""
    body = json.dumps(
        {
            "created": 1780915729,
            "data": [{"b64_json": base64.b64encode(image).decode()} for image in images],
            "usage": {"input_tokens": 24, "output_tokens": 229, "total_tokens": 253},
        }
    ).encode()
    head = (
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Oneapi-Request-Id: 20260101000000benchmark\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Return a self-signed certificate for 127.0.0.1, and its key."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-nodes", "-days", "2", "-subj", "/CN=127.0.0.1", "-keyout", str(key)),
            *("-out", str(certificate), "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-addext", "keyUsage=critical,digitalSignature,keyCertSign"),
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key


@contextmanager
def bench(tls: bool) -> Iterator[Bench]:
    """Run the servers while the context lasts."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for case in [*CASES, SMALL]:
            images = [make_image(image_bytes(case)) for _ in range(case.count)]
            for index, image in enumerate(images):
                (folder / f"{case.name}-{index}.png").write_bytes(image)
            (folder / f"{case.name}.reply").write_bytes(make_reply(images))
        arguments, environment, scheme = [str(folder)], {"NO_PROXY": "127.0.0.1"}, "http"
        if tls:
            certificate, key = make_certificate(folder)
            arguments += ["--certificate", str(certificate), "--key", str(key)]
            trust = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE")
            environment |= dict.fromkeys(trust, str(certificate))
            scheme = "https"
        with Child("_servers", *arguments) as servers:
            setup = {
                "api": f"{scheme}://127.0.0.1:{servers.first['api']}",
                "s3": f"{scheme}://127.0.0.1:{servers.first['s3']}",
                "folder": str(folder),
            }
            yield Bench(servers, setup, environment)


def measure(tls: bool, rounds: int, cases: list[Case], progress: bool = True) -> dict[str, Any]:
    """Return the CPU seconds per image and the growth of the peak, by case and contender."""
    result: dict[str, Any] = {}
    with bench(tls) as running:
        for case in cases:
            if progress:
                print(f"… {case.title}", file=sys.stderr, flush=True)
            cpu: dict[str, list[float]] = {name: [] for name in CONTENDERS}
            grown: dict[str, list[int]] = {name: [] for name in CONTENDERS}
            # Repeat small responses in a round: otherwise, waking up would dominate it.
            repeat = max(1, round(12 / (case.megabytes * case.count)))
            with ExitStack() as stack:
                children = {name: stack.enter_context(running.child(name, case)) for name in CONTENDERS}
                for child in children.values():
                    running.check(child, case)
                for turn in range(rounds):
                    names = list(children)
                    for name in names[turn % len(names) :] + names[: turn % len(names)]:
                        cpu[name] += running.run(children[name], case, repeat)
            for _ in range(MEMORY_RUNS):
                for name in CONTENDERS:
                    with running.child(name, case) as child:
                        running.check(child, SMALL)
                        grown[name].append(running.memory(child, case))
            floor = statistics.median(cpu["floor"])
            result[case.name] = {
                name: {
                    "cpu_ms_per_image": 1000 * statistics.median(cpu[name]) / case.count,
                    "cpu_times_floor": statistics.median(cpu[name]) / floor,
                    "cpu_times_floor_spread": [q / floor for q in _quartiles(cpu[name])],
                    "peak_mib": statistics.median(grown[name]) / MIB,
                }
                for name in CONTENDERS
            }
    return result


def _quartiles(values: list[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4)
    return low, high


def table(result: dict[str, Any], cases: list[Case]) -> str:
    """Return the Markdown table."""
    lines = [
        "| images | " + " | ".join(CONTENDERS.values()) + " | this package ÷ requests | ÷ openai SDK |",
        "|---|" + "---|" * (len(CONTENDERS) + 2),
    ]
    for case in cases:
        row = result[case.name]
        cells = [f"{row['floor']['cpu_ms_per_image']:.2f} ms per image"]
        for name in list(CONTENDERS)[1:]:
            text = f"{row[name]['cpu_times_floor']:.1f} {TIMES}, {row[name]['peak_mib']:+.1f} MiB"
            cells.append(f"**{text}**" if name == "ours" else text)
        for other in ("requests", "openai"):
            cells.append(f"{row['ours']['cpu_times_floor'] / row[other]['cpu_times_floor']:.2f}")
        lines.append(f"| {case.title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def checks(result: dict[str, Any], tls: bool) -> list[tuple[bool, str]]:
    """Return for each measured target whether it is met, and a sentence."""
    found = []
    if not tls and "1x6MB" in result:
        ratio = result["1x6MB"]["ours"]["cpu_times_floor"]
        found.append((ratio <= 3.5, f"CPU at 6 MB is {ratio:.2f} {TIMES} the floor's (target: at most 3.5)"))
    if not tls:
        for case, row in result.items():
            for other in ("requests", "openai"):
                share = row["ours"]["cpu_times_floor"] / row[other]["cpu_times_floor"]
                name = CONTENDERS[other].split(" +")[0]
                found.append(
                    (share <= 1 / 3, f"CPU at {case} is {share:.2f} of {name}'s (target: at most 0.33)")
                )
    if {"1x1.5MB", "1x24MB"} <= result.keys():
        grown = result["1x24MB"]["ours"]["peak_mib"] - result["1x1.5MB"]["ours"]["peak_mib"]
        found.append(
            (grown <= 2, f"peak memory grows by {grown:+.1f} MiB from 1.5 to 24 MB (target: at most 2)")
        )
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tls", action="store_true", help="use HTTPS for both servers")
    parser.add_argument("--rounds", type=int, default=15, help="turns per contender (default 15)")
    parser.add_argument("--only", nargs="*", help="names of cases, such as 1x6MB")
    add_options(parser)
    arguments = parser.parse_args()
    cases = [case for case in CASES if not arguments.only or case.name in arguments.only]
    result = measure(arguments.tls, arguments.rounds, cases)
    print(f"\n{'HTTPS' if arguments.tls else 'Plain HTTP'}, medians of {arguments.rounds} rounds\n")
    print(table(result, cases), end="\n\n")
    judged = checks(result, arguments.tls)
    return conclude(arguments, judged, {"tls": arguments.tls, "cases": result})


if __name__ == "__main__":
    sys.exit(main())
