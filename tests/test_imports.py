"""Modules that an import loads: Airflow imports the operator at each parse of a Dag file."""

from __future__ import annotations

from pathlib import Path

import pytest

import airflow_provider_jojokey
from tests.support.modules import AIRFLOW_ITSELF, HEAVY, modules_after, within


@pytest.fixture(scope="module")
def airflows_own() -> set[str]:
    return modules_after(AIRFLOW_ITSELF)


@pytest.mark.parametrize(
    "module",
    [
        "airflow_provider_jojokey.operators.jojokey",
        "airflow_provider_jojokey.operators.batch",
        "airflow_provider_jojokey.triggers.jojokey",
        "airflow_provider_jojokey.hooks.jojokey",
        "airflow_provider_jojokey.exceptions",
    ],
)
def test_dag_file_imports_nothing_heavy(module: str, airflows_own: set[str]) -> None:
    added = modules_after(f"{AIRFLOW_ITSELF}\nimport {module}") - airflows_own
    assert within(added, HEAVY) == []
    assert module in added


def test_operator_construction_imports_nothing_heavy(airflows_own: set[str]) -> None:
    code = (
        f"{AIRFLOW_ITSELF}\nfrom airflow_provider_jojokey.operators.jojokey import GenerateImageOperator\n"
        "with DAG('d') as dag: GenerateImageOperator(task_id='t', prompt='a fox', s3_bucket='b-b', s3_key='k.png')"
    )
    assert within(modules_after(code) - airflows_own, HEAVY) == []


def test_dag_file_imports_little_of_this_package(airflows_own: set[str]) -> None:
    added = (
        modules_after(f"{AIRFLOW_ITSELF}\nimport airflow_provider_jojokey.operators.jojokey") - airflows_own
    )
    own = within(added, ("airflow_provider_jojokey",))
    for part in ("sandbox", "plugins", "img2.client", "img2.reply", "img2.transport", "store.s3"):
        assert not any(name.startswith(f"airflow_provider_jojokey.{part}") for name in own)


def test_classes_that_tasks_import_are_no_dataclasses() -> None:
    folder = Path(airflow_provider_jojokey.__file__).parent
    found = {
        str(file.relative_to(folder)) for file in folder.rglob("*.py") if "@dataclass" in file.read_text()
    }
    assert {name for name in found if name.split("/")[0] not in ("sandbox", "plugins", "cli")} == {
        "img2/request.py"  # users may vary a request with dataclasses.replace()
    }


def test_api_client_works_without_airflow() -> None:
    code = (
        "from airflow_provider_jojokey import img2\n"
        "for name in img2.__all__: getattr(img2, name)\n"
        "img2.Client('sk-x').close()\n"
        "decoder = img2.ReplyDecoder(); decoder.feed(b'{\"data\":[]}'); decoder.finish()\n"
        "img2.ImageRequest('a fox').warnings()"
    )
    assert within(modules_after(code), ("airflow",)) == []


def test_api_package_imports_lazily() -> None:
    assert (
        within(modules_after("from airflow_provider_jojokey.img2 import ImageRequest"), (*HEAVY, "airflow"))
        == []
    )


def test_unknown_api_name_is_an_attribute_error() -> None:
    from airflow_provider_jojokey import img2

    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = img2.Nonsense
