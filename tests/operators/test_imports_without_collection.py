"""Imports in a task run without the garbage collector, which is on again afterwards."""

from __future__ import annotations

import gc
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_jojokey.operators.base import imports_without_collection


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Yield the name of a module that is not loaded yet."""
    (tmp_path / "module_of_a_test.py").write_text("import gc\nenabled = gc.isenabled()\nobjects = [[]]\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    frozen = gc.get_freeze_count()
    yield "module_of_a_test"
    if not frozen:
        gc.unfreeze()


def test_collector_skips_the_objects_of_imports(module: str) -> None:
    with imports_without_collection():
        loaded = importlib.import_module(module)

    assert not loaded.enabled
    assert gc.isenabled()
    assert not any(found is loaded.objects for found in gc.get_objects())


def test_collector_still_sees_objects_if_nothing_was_imported() -> None:
    with imports_without_collection():
        created = [[]]

    assert any(found is created for found in gc.get_objects())


def test_collector_is_on_after_a_failed_import() -> None:
    with pytest.raises(ImportError), imports_without_collection():
        importlib.import_module("there_is_no_such_module")

    assert gc.isenabled()


def test_collector_that_was_off_stays_off(module: str) -> None:
    gc.disable()
    try:
        with imports_without_collection():
            importlib.import_module(module)
        assert not gc.isenabled()
    finally:
        gc.enable()
