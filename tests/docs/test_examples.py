"""Examples in the documentation work: Dags load, commands parse, settings exist."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from airflow_provider_jojokey.__main__ import _parser
from airflow_provider_jojokey.sandbox import Gateway
from tests.docs.blocks import BLOCKS, DAGS, PAGES, PROGRAMS, PYTHON, ROOT, Block, blocks, example


def of(*languages: str) -> Any:
    return pytest.mark.parametrize(
        "block", [example(block) for block in BLOCKS if block.language in languages]
    )


@pytest.mark.parametrize("block", [example(block) for block in PYTHON])
def test_example_is_valid_python(block: Block) -> None:
    ast.parse(block.text)


@pytest.mark.parametrize("block", [example(block) for block in DAGS])
def test_example_is_a_dag(block: Block, tmp_path: Path) -> None:
    try:
        from airflow.dag_processing.dagbag import DagBag
    except ImportError:  # Airflow 3.1
        from airflow.models.dagbag import DagBag
    (tmp_path / "example.py").write_text(block.text, encoding="utf-8")

    bag = DagBag(tmp_path / "example.py")

    assert bag.import_errors == {}
    assert bag.dags
    assert all(dag.tasks for dag in bag.dags.values())


@pytest.mark.parametrize("block", [example(block) for block in PROGRAMS])
def test_example_program_runs(
    block: Block, gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    text = block.text.replace('Client("sk-…")', f"Client({gateway.token!r}, {gateway.url!r})")

    exec(compile(text, block.name, "exec"), {"__name__": "example"})


def test_only_the_comment_marks_a_fragment(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```python\nx\n```\n<!-- fragment -->\n```python\ny\n```\n\n<!-- fragment: why -->\n\n```python\nz\n```\n"
        "<!-- fragment -->\n\nText.\n\n```python\nx\n```\n"
    )
    assert [(block.text, block.is_fragment) for block in blocks(page)] == [
        ("x\n", False), ("y\n", True), ("z\n", True), ("x\n", False)
    ]  # fmt: skip


def test_few_examples_are_fragments() -> None:
    assert [block.name.partition(":")[0] for block in PYTHON if block.is_fragment] == [
        "docs/how-to/kubernetes.md"
    ]


@of("yaml")
def test_example_is_valid_yaml(block: Block) -> None:
    assert list(yaml.safe_load_all(block.text))


@of("json")
def test_example_is_valid_json(block: Block) -> None:
    json.loads(block.text)


@of("console", "shell")
def test_example_is_a_shell_command(block: Block) -> None:
    assert block.commands
    for command in block.commands:
        shlex.split(command)


def airflow_commands() -> list[Any]:
    """Return each `airflow …` and `python -m airflow_provider_jojokey …` with its page."""
    found = []
    for block in BLOCKS:
        for command in block.commands if block.language in ("console", "shell") else ():
            for part in re.split(r" && | \|\| | \| | < | > | -- ", command):
                words = shlex.split(part)
                if words[:1] == ["airflow"]:
                    found.append(pytest.param(words[1:], id=f"{block.name} {part}"))
    return found


@pytest.mark.parametrize("words", airflow_commands())
def test_airflow_command_exists(words: list[str]) -> None:
    from airflow.cli.cli_parser import get_parser

    if words[0] == "jojokey":
        _parser().parse_args(words[1:])  # Airflow 3.1 has only this command
    else:
        get_parser().parse_args(words)


def test_named_settings_exist() -> None:
    from airflow.configuration import conf

    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    names = set(re.findall(r"AIRFLOW__[A-Z0-9_]+?__[A-Z0-9_]+", text))
    assert names
    for name in names:
        _, section, option = name.lower().split("__")
        assert conf.has_option(section, option), name


def test_named_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    pages = [*PAGES, ROOT / "CONTRIBUTING.md"]
    named = {
        target
        for page in pages
        for target in re.findall(r"(?:`|\$ )make ([a-z-]+)", page.read_text(encoding="utf-8"))
    }
    assert named
    assert named <= targets
