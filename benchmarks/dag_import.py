"""Measure the import of the operator, which each parse of a Dag file repeats.

    python -m benchmarks.dag_import [--rounds 15] [--json FILE] [--check]

A child process imports ``airflow.sdk`` and the ``BaseOperator`` of ``airflow.providers.common.compat.sdk``. Then it
imports the operator, and prints the CPU time and the modules of this step. The time of processes that import nothing
in this step is subtracted. Byte code comes from a cache, as for installed packages. The cache is in a temporary
folder, so the checkout doesn't change.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

OPERATOR = "airflow_provider_jojokey.operators.jojokey"
HEAVY = ("requests", "boto3", "botocore", "pybase64", "PIL", "airflow.providers.amazon")
LIMIT_MS = 15.0

_CHILD = """
import importlib, json, sys, time
import airflow.sdk
from airflow.providers.common.compat.sdk import BaseOperator
before = set(sys.modules)
cpu, wall = time.process_time(), time.perf_counter()
if sys.argv[1]:
    importlib.import_module(sys.argv[1])
cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
print(json.dumps({"cpu": 1000 * cpu, "wall": 1000 * wall, "modules": sorted(set(sys.modules) - before)}))
"""


def child(module: str, cache: str) -> dict[str, Any]:
    """Import ``module`` in a fresh process, after Airflow's own imports.

    :param cache: the folder for byte code
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, module],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
        env={**environment, "PYTHONPYCACHEPREFIX": cache},
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--rounds", type=int, default=15, help="number of processes of each kind (default 15)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures to this file")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    arguments = parser.parse_args()
    children: dict[str, list[dict[str, Any]]] = {OPERATOR: [], "": []}
    with tempfile.TemporaryDirectory() as cache:
        child(OPERATOR, cache)  # writes the byte code
        for _ in range(arguments.rounds):
            for module, found in children.items():
                found.append(child(module, cache))
    median = {
        unit: statistics.median(figures[unit] for figures in children[OPERATOR])
        - statistics.median(figures[unit] for figures in children[""])
        for unit in ("cpu", "wall")
    }
    modules = children[OPERATOR][-1]["modules"]
    own = [name for name in modules if name.startswith("airflow_provider_jojokey")]
    heavy = [name for name in modules if any(f"{name}.".startswith(f"{package}.") for package in HEAVY)]
    print(f"Importing {OPERATOR} after Airflow's own imports, medians of {arguments.rounds} processes\n")
    print("| CPU | wall | modules of this package | other modules | heavy modules |\n|---|---|---|---|---|")
    print(
        f"| {median['cpu']:.1f} ms | {median['wall']:.1f} ms | {len(own)} | {len(modules) - len(own)} "
        f"| {', '.join(heavy) or 'none'} |\n"
    )
    others = sorted({name.split(".")[0] for name in modules} - {"airflow_provider_jojokey"})
    print(f"Other modules come from: {', '.join(others) or 'none'}\n")
    judged = [
        (
            median["cpu"] <= LIMIT_MS,
            f"the import costs {median['cpu']:.1f} ms (target: at most {LIMIT_MS:g})",
        ),
        (not heavy, f"it adds {', '.join(heavy) or 'none'} of {', '.join(HEAVY)} (target: none)"),
    ]
    for met, sentence in judged:
        print(f"- {'met' if met else 'MISSED'}: {sentence}")
    if arguments.json:
        arguments.json.write_text(json.dumps({**median, "modules": modules}, indent=2) + "\n")
    return 1 if arguments.check and not all(met for met, _ in judged) else 0


if __name__ == "__main__":
    sys.exit(main())
