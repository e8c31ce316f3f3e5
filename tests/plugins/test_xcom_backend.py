"""A custom XCom backend keeps results outside of Airflow's database: they are shown, or counted as missing."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.airflow import BUCKET, Airflow, Store
from tests.support.api_server import Book, Server, api_server, aws, png_image, result, stored_image

BACKEND = "airflow.providers.common.io.xcom.backend.XComObjectStorageBackend"
Keep = Callable[..., Path]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("xcoms")


@pytest.fixture(scope="module")
def settings(folder: Path) -> dict[str, str]:
    return {
        "AIRFLOW__CORE__XCOM_BACKEND": BACKEND,
        "AIRFLOW__COMMON_IO__XCOM_OBJECTSTORAGE_PATH": f"file://{folder}",
        "AIRFLOW__COMMON_IO__XCOM_OBJECTSTORAGE_THRESHOLD": "0",
    }


@pytest.fixture(scope="module")
def elsewhere(
    airflow: Airflow, _stores: dict[str, Store], settings: dict[str, str], tmp_path_factory: Any
) -> Iterator[Server]:
    """An API server whose XCom backend keeps everything in files."""
    environment = {"AIRFLOW_CONN_AWS_DEFAULT": aws(_stores["moto"]), **settings}
    with api_server(tmp_path_factory.mktemp("server"), environment) as running:
        yield running


@pytest.fixture
def keep(book: Book, store: Store, folder: Path, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Keep:
    """Write a result as the backend does; return its file."""
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    module = importlib.import_module(BACKEND.rpartition(".")[0])
    for cached in ("_get_base_path", "_get_compression", "_get_threshold"):
        getattr(module, cached).cache_clear()

    def keep(dag_id: str, prompt: str = "a fox in the snow", map_index: int = -1) -> Path:
        data, key = png_image(), f"{dag_id}-{map_index}.png"
        store.client.put_object(Bucket=BUCKET, Key=key, Body=data)
        reference = module.XComObjectStorageBackend.serialize_value(
            result(stored_image(data, key), prompt=prompt),
            key="jojokey_images",
            dag_id=dag_id,
            task_id="image",
        )
        book.write(dag_id, reference, map_index=map_index)
        return Path(reference.strip('"').removeprefix("file://"))

    return keep


def test_task_and_its_image_are_read_through_the_backend(elsewhere: Server, keep: Keep, dag_id: str) -> None:
    keep(dag_id)

    answer = elsewhere.get(f"/jojokey/api/dags/{dag_id}/runs/manual__1/tasks/image/-1").json()

    assert answer["result"]["prompt"] == "a fox in the snow"
    image = elsewhere.get(answer["result"]["images"][0]["src"])
    assert (image.status_code, image.content) == (200, png_image())


def test_gallery_and_totals_are_read_through_the_backend(
    elsewhere: Server, keep: Keep, book: Book, dag_id: str
) -> None:
    keep(dag_id)
    book.write(dag_id, result(prompt="in the database"), run_id="manual__2")

    page, totals = elsewhere.results(dag_id=dag_id), elsewhere.totals(dag_id=dag_id)

    assert {card["prompt"] for card in page["results"]} == {"a fox in the snow", "in the database"}
    assert (page["unread"], page["unsearched"]) == (0, 0)
    assert (totals["results"], totals["unread"]) == (2, 0)
    assert totals["usage"]["total_tokens"] == 420


def test_search_reports_what_it_leaves_out(elsewhere: Server, keep: Keep, book: Book, dag_id: str) -> None:
    keep(dag_id, prompt="an owl")
    book.write(dag_id, result(prompt="an owl too"), run_id="manual__2")

    page = elsewhere.results(dag_id=dag_id, q="owl")

    assert [card["prompt"] for card in page["results"]] == ["an owl too"]
    assert page["unsearched"] == 1


def test_unreadable_result_is_reported_everywhere(elsewhere: Server, keep: Keep, dag_id: str) -> None:
    keep(dag_id).unlink()
    keep(dag_id, map_index=0).unlink()
    keep(dag_id, map_index=1)
    task = f"/jojokey/api/dags/{dag_id}/runs/manual__1/tasks/image"

    alone, mapped = elsewhere.get(f"{task}/-1"), elsewhere.get(f"{task}/1").json()
    page, totals = elsewhere.results(dag_id=dag_id), elsewhere.totals(dag_id=dag_id)

    assert alone.status_code == 502
    assert "XComObjectStorageBackend" in alone.json()["detail"]
    assert mapped["result"] is not None
    assert (len(page["results"]), page["unread"], totals["unread"]) == (1, 2, 2)
    assert "XComObjectStorageBackend" in page["unread_why"]["detail"]


def test_reference_to_a_file_elsewhere_is_not_followed(
    elsewhere: Server, keep: Keep, book: Book, dag_id: str, tmp_path: Path
) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text("{}")
    book.write(dag_id, f'"file://{secret}"')

    page = elsewhere.results(dag_id=dag_id)

    assert (page["results"], page["unread"]) == ([], 1)


def test_unreadable_results_of_other_dags_are_not_counted(elsewhere: Server, keep: Keep) -> None:
    keep("secret").unlink()

    assert elsewhere.results("painter")["unread"] == 0
    assert elsewhere.get("/jojokey/api/results?dag_id=secret", "painter").status_code == 403


def test_server_without_the_backend_reports_its_results(server: Server, keep: Keep, dag_id: str) -> None:
    keep(dag_id)

    page, totals = server.results(dag_id=dag_id), server.totals(dag_id=dag_id)

    assert (page["results"], page["unread"], totals["unread"]) == ([], 1, 1)
    assert "xcom_backend" in page["unread_why"]["detail"]
