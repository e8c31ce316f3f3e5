"""The benchmarks run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.patience import PATIENCE

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("command", "measured"),
    [
        (["campaign", "--quick", "100", "--only", "10-in-64"], "10-in-64"),
        (["one_image", "--rounds", "1", "--only", "1x1.5MB"], "1x1.5MB"),
        (["dag_import", "--rounds", "1"], "cpu"),
        (["task", "--rounds", "1", "--only", "ours"], "cpu"),
        (["limiter", "--quick", "60"], "ratio"),
        (["latency", "--rounds", "1", "--s3", "5", "--gateway", "5"], "this package"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_benchmark_runs(command: list[str], measured: str, tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"

    subprocess.run(
        [sys.executable, "-m", f"benchmarks.{command[0]}", *command[1:], "--json", figures],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=PATIENCE,
    )

    assert measured in json.dumps(json.loads(figures.read_text()))
