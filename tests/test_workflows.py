"""GitHub workflows call the project's commands, and pin their actions."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def matrix_values(job: dict[str, Any], name: str) -> list[str]:
    matrix = job["strategy"]["matrix"]
    return [*matrix.get(name, []), *(row[name] for row in matrix.get("include", []) if name in row)]


def commands(job: dict[str, Any]) -> list[str]:
    """Return the commands of a job, one for each value of a matrix variable that they use."""
    found = [step["run"] for step in job.get("steps", []) if "run" in step]
    for name in ("target", "airflow"):
        variable = f"${{{{ matrix.{name} }}}}"
        found = [
            command.replace(variable, value)
            for command in found
            for value in (matrix_values(job, name) if variable in command else [""])
        ]
    return found


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflow_calls_existing_targets(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values()
    called = {
        word
        for job in jobs
        for command in commands(job)
        for line in re.findall(r"^make (.+)$", re.sub(r"\$\{\{.*?\}\}", "", command), re.M)
        for word in line.split()
        if "=" not in word
    }
    assert called
    assert called <= targets


def test_workflows_test_what_the_matrix_supports() -> None:
    script = (ROOT / "scripts" / "matrix.py").read_text(encoding="utf-8")
    nightly = yaml.safe_load((ROOT / ".github" / "workflows" / "nightly.yml").read_text(encoding="utf-8"))
    job = nightly["jobs"]["matrix"]
    assert set(matrix_values(job, "airflow")) == set(
        re.findall(r'^    "([\w.]+)": "constraints', script, re.M)
    )
    (pythons,) = re.findall(r"^PYTHONS = \((.+)\)$", script, re.M)
    assert set(matrix_values(job, "python")) == set(re.findall(r'"([\d.]+)"', pythons))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflow_pins_actions_by_major_version(path: Path) -> None:
    used = re.findall(r"uses: (\S+)", path.read_text(encoding="utf-8"))
    assert used
    for action in used:
        assert re.fullmatch(r"\./\S+|[\w-]+/[\w-]+@(release/)?v\d+", action), action


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflow_reads_only_by_default(path: Path) -> None:
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["permissions"] == {"contents": "read"}
