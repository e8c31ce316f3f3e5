"""Rules for the tests: shared code is in tests/support, and names of tests are short."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "tests").rglob("*.py"))
MAX_NAME = 60
"""Characters of a test's name, with ``test_``."""


def imported(path: Path) -> Iterator[str]:
    """Yield the full names of the modules that a file imports, and of what it imports from them."""
    package = path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (start, node.module)))
            yield from (f"{module}.{alias.name}" for alias in node.names)


def is_test_file(name: str) -> bool:
    return name == "conftest" or name.startswith("test_")


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.with_suffix(".py").is_file() or path.is_dir()


def own_modules(path: Path) -> set[str]:
    """Return the modules of tests/ that a file imports."""
    found = {name if is_module(name) else name.rpartition(".")[0] for name in imported(path)}
    return {name for name in found if name.startswith("tests.")}


def names_of_tests(path: Path) -> list[str]:
    """Return the names of the test functions in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [function.name for function in functions if function.name.startswith("test_")]


def test_no_module_imports_a_test_file() -> None:
    imports = {(str(path), name) for path in MODULES for name in own_modules(path)}
    assert {(path, name) for path, name in imports if is_test_file(name.rpartition(".")[2])} == set()


def test_shared_modules_are_in_tests_support() -> None:
    elsewhere = set()
    for path in MODULES:
        allowed = ("tests.support", ".".join(path.relative_to(ROOT).parts[:-1]) + ".")
        elsewhere |= {(str(path), name) for name in own_modules(path) if not name.startswith(allowed)}
    assert elsewhere == set()


def test_modules_are_imported_by_their_full_names() -> None:
    short = {module.relative_to(ROOT / "tests").parts[0].removesuffix(".py") for module in MODULES}
    imports = {(str(path), name.partition(".")[0]) for path in MODULES for name in imported(path)}
    assert {(path, name) for path, name in imports if name in short} == set()


def test_names_of_tests_are_short() -> None:
    names = {(str(path), name) for path in MODULES for name in names_of_tests(path)}
    assert {(path, name) for path, name in names if len(name) > MAX_NAME} == set()


def test_file_names_do_not_repeat_their_folder() -> None:
    assert [path for path in MODULES if path.stem.startswith(f"test_{path.parent.name}_")] == []
