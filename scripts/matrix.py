"""Run tests on each supported Airflow and Python, with the versions that Airflow's constraints pin.

    python scripts/matrix.py --airflow 3.1 3.3 --python 3.12 -- tests/store -k spool

Each combination has a virtual environment in `.venvs`. A Python that isn't installed is skipped, and the summary
says so.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
UV = Path(sys.executable).parent / "uv"
CONSTRAINTS = {
    "lowest": "constraints-lowest.txt",
    "3.1": "constraints-3.1.txt",
    "3.2": "constraints-3.2.txt",
    "3.3": "constraints.txt",
}
"""The file for each Airflow. `lowest` has the lowest versions that pyproject.toml allows."""
PYTHONS = ("3.11", "3.12", "3.13")
VERSION = "import sys; print('%d.%d' % sys.version_info[:2])"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--airflow", nargs="+", choices=CONSTRAINTS, default=list(CONSTRAINTS))
    parser.add_argument("--python", nargs="+", default=list(PYTHONS), metavar="VERSION")
    parser.add_argument("pytest", nargs="*", help="arguments of pytest")
    options = parser.parse_args(arguments)
    results: list[tuple[str, str]] = []
    for python in options.python:
        interpreter = find_python(python)
        for airflow in options.airflow:
            name = f"Airflow {airflow}, Python {python}"
            if airflow == "lowest" and python != options.python[0]:
                continue  # its lower bounds don't depend on Python
            if interpreter is None:
                results.append((name, f"skipped: Python {python} is not installed"))
                continue
            print(f"\n=== {name}", flush=True)
            started = time.monotonic()
            result = run(airflow, python, interpreter, options.pytest)
            results.append((name, f"{result} in {time.monotonic() - started:.0f} s"))
    print("\n=== Summary")
    for name, result in results:
        print(f"{name:32} {result}")
    return any("failed" in result for _, result in results)


def run(airflow: str, python: str, interpreter: str, arguments: Sequence[str]) -> str:
    """Install one combination and run the tests there; return ``passed`` or the step that failed."""
    folder = ROOT / ".venvs" / f"airflow-{airflow}-python-{python}"
    if not (folder / "bin" / "python").exists():
        subprocess.run([UV, "venv", "--quiet", "--python", interpreter, folder], check=True)
    install = [UV, "pip", "install", "--quiet", "--python", folder / "bin" / "python"]
    install += ["--constraint", ROOT / CONSTRAINTS[airflow], "--editable", ".[sandbox]", "--group", "matrix"]
    if subprocess.run(install, cwd=ROOT).returncode:
        return "installation failed"
    versions = (
        "import importlib.metadata as m, sys; print(*(f'{n} {m.version(n)}' for n in sys.argv[1:]), sep=', ')"
    )
    shown = ("apache-airflow", "apache-airflow-providers-common-compat", "apache-airflow-providers-amazon")
    subprocess.run([folder / "bin" / "python", "-c", versions, *shown], check=True)
    command = [folder / "bin" / "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    # Tests run commands by name, such as `airflow`.
    environment = {**os.environ, "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"}
    return "tests failed" if subprocess.run(command, cwd=ROOT, env=environment).returncode else "passed"


def find_python(version: str, environ: Mapping[str, str] = os.environ) -> str | None:
    """Return an interpreter of this version, such as ``3.12``; ``None`` if none works."""
    for candidate in _candidates(version, environ):
        try:
            found = subprocess.run([candidate, "-c", VERSION], capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.TimeoutExpired):
            continue
        if found.returncode == 0 and found.stdout.strip() == version:
            return candidate
    return None


def _candidates(version: str, environ: Mapping[str, str]) -> Iterator[str]:
    find = [str(UV), "python", "find", "--no-project", "--no-python-downloads", version]
    with_uv = subprocess.run(find, capture_output=True, text=True, env=dict(environ))
    if with_uv.returncode == 0:
        yield with_uv.stdout.strip()
    if on_path := shutil.which(f"python{version}", path=environ.get("PATH")):
        yield on_path
    # pyenv's programs on PATH may only print the installed versions.
    pyenv = Path(environ.get("PYENV_ROOT") or Path(environ.get("HOME") or "/") / ".pyenv")
    yield from sorted(map(str, pyenv.glob(f"versions/{version}.*/bin/python")), reverse=True)


if __name__ == "__main__":
    sys.exit(main())
