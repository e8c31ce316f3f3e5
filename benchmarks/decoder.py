"""Compare the response decoder of two checkouts: CPU per megabyte, and memory.

    python -m benchmarks.decoder /path/to/other/checkout

Each round decodes the same response with both versions, in separate processes. The ratio is computed per round, so
that a busy machine affects both.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys

CHILD = """
import base64, json, os, resource, sys, time, tracemalloc
from airflow_provider_jojokey.img2.images import ImageFile
from airflow_provider_jojokey.img2 import reply
try:
    from airflow_provider_jojokey.img2.stream import EventStreamDecoder
except ImportError:
    EventStreamDecoder = reply.ReplyDecoder

class Nothing:
    size = 0
    def write(self, data): self.size += len(data)
    def close(self): pass

form, piece, repeat = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
image = base64.b64encode(os.urandom(6_000_000)).decode()
if form == "stream":
    event = json.dumps({"type": "image_generation.completed", "b64_json": image, "usage": {"total_tokens": 1}})
    body = f"event: image_generation.completed\\ndata: {event}\\n\\n".encode()
elif form == "escaped":
    body = json.dumps({"data": [{"b64_json": image}]}).replace("/", "\\\\/").encode()
else:
    body = json.dumps({"created": 1, "data": [{"b64_json": image}], "usage": {"total_tokens": 1}}).encode()
pieces = [body[at:at + piece] for at in range(0, len(body), piece)]

def decode():
    decoder = (EventStreamDecoder if form == "stream" else reply.ReplyDecoder)(lambda index: Nothing())
    for data in pieces:
        decoder.feed(data)
    return decoder.finish().images[0].sink.size

assert decode() == 6_000_000
started = time.process_time()
for _ in range(repeat):
    decode()
cpu = (time.process_time() - started) / repeat / 6
tracemalloc.start()
decode()
print(json.dumps([cpu * 1000, tracemalloc.get_traced_memory()[1] / 1024]))
"""


def measure(checkout: str, form: str, piece: int, repeat: int) -> tuple[float, float]:
    out = subprocess.run(
        [sys.executable, "-c", CHILD, form, str(piece), str(repeat)],
        env={**os.environ, "PYTHONPATH": checkout},
        cwd=checkout,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    cpu, memory = json.loads(out)
    return cpu, memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("other", help="the checkout to compare with")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    print("response, piece      ms/MB here   other   ratio (median of rounds)   peak KiB here   other")
    for form, piece in (
        ("plain", 512 * 1024),
        ("plain", 16 * 1024),
        ("plain", 1400),
        ("stream", 512 * 1024),
        ("stream", 16 * 1024),
        ("escaped", 512 * 1024),
    ):
        repeat = 20 if piece > 2000 else 4
        pairs = [
            (measure(os.getcwd(), form, piece, repeat), measure(options.other, form, piece, repeat))
            for _ in range(options.rounds)
        ]
        ratio = statistics.median(here[0] / there[0] for here, there in pairs)
        here, there = (
            tuple(statistics.median(values) for values in zip(*side, strict=True))
            for side in zip(*pairs, strict=True)
        )
        print(
            f"{form:8} {piece:>8,}   {here[0]:10.3f} {there[0]:7.3f}   {ratio:5.2f}   {here[1]:30.0f} {there[1]:7.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
