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

from benchmarks._report import add_options, conclude

OPERATOR = "airflow_provider_jojokey.operators.jojokey"
HEAVY = ("requests", "boto3", "botocore", "pybase64", "PIL", "airflow.providers.amazon")
LIMIT_MS = 6.0
LIMIT_MICROSECONDS = 200.0
LIMIT_BYTES = 700
OPERATORS = 200

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


_DAG = f"""
import json, logging, statistics, sys, time
logging.disable(logging.CRITICAL)
from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG
from airflow.serialization.serialized_objects import DagSerialization
from {OPERATOR} import GenerateImageOperator

def seconds(create):
    taken = []
    for number in range({OPERATORS}):
        began = time.process_time()
        create(number)
        taken.append(time.process_time() - began)
    return taken

with DAG("posters", schedule=None) as dag:
    bash = seconds(lambda number: BashOperator(task_id=f"bash{{number}}", bash_command="true"))
    ours = seconds(
        lambda number: GenerateImageOperator(
            task_id=f"image{{number}}", prompt="a fox", s3_bucket="posters", s3_key=f"{{number}}.png"
        )
    )
tasks = {{task["__var"]["task_id"]: task["__var"] for task in DagSerialization.to_dict(dag)["dag"]["tasks"]}}
print(json.dumps({{
    "bash": [1e6 * statistics.median(bash), len(json.dumps(tasks["bash0"], separators=(",", ":")))],
    "ours": [1e6 * statistics.median(ours), len(json.dumps(tasks["image0"], separators=(",", ":")))],
}}))
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


def measure_dag() -> dict[str, tuple[float, int]]:
    """Return microseconds and serialized bytes of an operator with default arguments, and of a BashOperator."""
    done = subprocess.run(
        [sys.executable, "-c", _DAG],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    return {name: (found[0], found[1]) for name, found in json.loads(done.stdout.splitlines()[-1]).items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--rounds", type=int, default=15, help="number of processes of each kind (default 15)"
    )
    add_options(parser)
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
    dags = [measure_dag() for _ in range(min(arguments.rounds, 5))]
    micros = {name: statistics.median(dag[name][0] for dag in dags) for name in dags[0]}
    size = {name: dags[0][name][1] for name in dags[0]}
    print("| operator | CPU of its construction | serialized |\n|---|---|---|")
    for name, title in (("bash", "BashOperator"), ("ours", "GenerateImageOperator")):
        print(f"| `{title}` | {micros[name]:.0f} µs | {size[name]} bytes |")
    print()
    judged = [
        (
            micros["ours"] <= LIMIT_MICROSECONDS,
            f"construction takes {micros['ours']:.0f} µs (target: at most {LIMIT_MICROSECONDS:g})",
        ),
        (size["ours"] <= LIMIT_BYTES, f"serialized, it has {size['ours']} bytes (target: {LIMIT_BYTES})"),
        (
            median["cpu"] <= LIMIT_MS,
            f"the import costs {median['cpu']:.1f} ms (target: at most {LIMIT_MS:g})",
        ),
        (not heavy, f"it adds {', '.join(heavy) or 'none'} of {', '.join(HEAVY)} (target: none)"),
    ]
    return conclude(arguments, judged, {**median, "modules": modules, "construction": micros})


if __name__ == "__main__":
    sys.exit(main())
