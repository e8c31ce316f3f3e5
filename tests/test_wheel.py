"""The wheel in a new environment, as ``pip install`` creates it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.support.patience import PATIENCE

PROJECT = Path(__file__).parents[1]


def run(*command: str | Path, **more: Any) -> str:
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=PATIENCE, check=False, **more
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "uv", "build", "--quiet", "--wheel", "--out-dir", folder, PROJECT)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return Airflow's command in an environment that has the wheel and what it asks for, and nothing else."""
    home = tmp_path_factory.mktemp("user")
    python = home / "venv" / "bin" / "python"
    run(sys.executable, "-m", "uv", "venv", "--quiet", "--python", sys.executable, home / "venv")
    run(
        *(sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", python),
        *("--constraint", PROJECT / "constraints.txt", wheel),
    )
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "PYTHON"))},
        "AIRFLOW_HOME": str(home / "airflow"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "COLUMNS": "300",
    }
    return lambda *arguments: run(python, "-m", *arguments, env=environment, cwd=home)


def test_wheel_contains_only_the_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()

    assert {name.split("/")[0].split("-")[0] for name in names} == {"airflow_provider_jojokey"}
    assert "airflow_provider_jojokey/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if "test" in name or name.endswith((".pyc", ".map"))]


def test_long_description_has_no_relative_link(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        description = archive.read(metadata).decode().partition("\n\n")[2]

    assert description.startswith("# airflow-provider-jojokey\n")
    targets = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", description, flags=re.DOTALL))
    assert targets
    assert [target for target in targets if not target.startswith("https://")] == []


def test_wheel_contains_the_ui(wheel: Path) -> None:
    static = PROJECT / "airflow_provider_jojokey" / "plugins" / "static"
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if "/plugins/static/" in name}

    assert held == {str(path.relative_to(PROJECT)) for path in static.rglob("*") if path.is_file()}
    assert {Path(name).suffix for name in held} >= {".js", ".css", ".svg"}


def test_airflow_shows_the_provider_and_its_connection_type(installed: Any) -> None:
    providers = installed("airflow", "providers", "list", "--output", "plain")
    hooks = installed("airflow", "providers", "hooks", "--output", "plain")
    provider = installed("airflow", "providers", "get", "airflow-provider-jojokey", "--full")

    assert "airflow-provider-jojokey" in providers
    (hook,) = [line.split() for line in hooks.splitlines() if "JojoKeyHook" in line]
    assert hook[:2] == ["jojokey", "airflow_provider_jojokey.hooks.jojokey.JojoKeyHook"]
    assert "JojoKey" in provider
