"""Permissions: which users may read which results and images."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.airflow import BUCKET
from tests.support.api_server import Book, Server, png_image, result, stored_image
from tests.support.patience import PATIENCE

PLACE = "open/manual__1/image/-1"
TASK = "/jojokey/api/dags/{dag}/runs/manual__1/tasks/image/-1"
IMAGE = "/jojokey/images/{dag}/manual__1/image/-1/0"
THUMBNAIL = "/jojokey/thumbnails/{dag}/manual__1/image/-1/0"
OF_A_DAG = (TASK, IMAGE, THUMBNAIL, "/jojokey/api/results?dag_id={dag}", "/jojokey/api/totals?dag_id={dag}")


@pytest.fixture(autouse=True)
def images(book: Book, store: Any) -> None:
    """An image of a Dag that all users may read, and one of a Dag that few may read."""
    for number, dag_id in enumerate(("open", "secret")):
        data = png_image(("teal", "red")[number])
        store.client.put_object(Bucket=BUCKET, Key=f"{dag_id}.png", Body=data)
        book.write(dag_id, result(stored_image(data, f"{dag_id}.png"), prompt=f"the {dag_id} one"))


@pytest.mark.parametrize("path", [*OF_A_DAG, "/jojokey/api/results", "/jojokey/api/totals"])
@pytest.mark.parametrize("header", [{}, {"Cookie": "_token=nonsense"}, {"Authorization": "Basic YTpi"}])
def test_anonymous_request_is_rejected(server: Server, path: str, header: dict[str, str]) -> None:
    answer = server.get(path.format(dag="open"), user=None, headers=header)
    assert answer.status_code == (403 if "nonsense" in str(header) else 401)  # as on Airflow's own routes
    assert answer.json()["detail"]
    assert set(answer.json()) == {"detail"}


@pytest.mark.parametrize("path", OF_A_DAG)
@pytest.mark.parametrize("user", ["painter", "halfblind", "blind", "nobody"])
def test_dag_without_xcom_permission_is_forbidden(server: Server, path: str, user: str) -> None:
    answer = server.get(path.format(dag="secret"), user=user)
    assert (answer.status_code, answer.json()) == (403, {"detail": "Forbidden"})
    assert server.get(path.format(dag="secret"), user="admin").status_code == 200


@pytest.mark.parametrize(
    ("user", "seen"),
    [
        ("admin", {"open", "secret"}),
        ("painter", {"open"}),
        ("halfblind", {"open"}),
        ("blind", set()),
        ("nobody", set()),
    ],
)
def test_lists_hold_only_dags_with_xcom_permission(server: Server, user: str, seen: set[str]) -> None:
    assert {entry["dag_id"] for entry in server.results(user)["results"]} == seen
    assert {entry["dag_id"] for entry in server.totals(user)["by_dag"]} == seen
    assert server.totals(user)["results"] == len(seen)
    assert {entry["dag_id"] for entry in server.results(user, q="one")["results"]} == seen


@pytest.mark.parametrize("user", ["painter", "halfblind"])
def test_reader_of_a_dag_gets_its_images(server: Server, user: str) -> None:
    for path in OF_A_DAG:
        assert server.get(path.format(dag="open"), user=user).status_code == 200


@pytest.mark.parametrize("path", [TASK, IMAGE, THUMBNAIL])
def test_wildcard_is_not_a_dag_id(server: Server, path: str) -> None:
    answer = server.get(path.format(dag="~"))
    assert answer.status_code == 404 or answer.json()["result"] is None


@pytest.mark.parametrize(
    "place",
    [
        "open/manual__1/image/-1/1",
        "open/manual__1/image/0/0",
        "open/manual__2/image/-1/0",
        "open/manual__1/other/-1/0",
        "open/manual__1/image/-1/9999",
        "open/../secret/image/-1/0",
        "nonesuch/manual__1/image/-1/0",
    ],
)
def test_guessed_paths_return_404(server: Server, place: str) -> None:
    for kind in ("images", "thumbnails"):
        answer = server.get(f"/jojokey/{kind}/{place}")
        assert answer.status_code == 404
        assert answer.json()["detail"]


@pytest.mark.parametrize("place", ["open/manual__1/image/-1/-1", "open/manual__1/image/x/0"])
def test_invalid_numbers_are_rejected(server: Server, place: str) -> None:
    assert server.get(f"/jojokey/images/{place}").status_code == 422


def test_bucket_and_key_never_come_from_the_url(server: Server, store: Any) -> None:
    data = server.get(f"/jojokey/images/{PLACE}/0").content
    guess = {"bucket": BUCKET, "key": "secret.png", "uri": f"s3://{BUCKET}/secret.png", "aws_conn_id": "x"}
    assert (
        server.get(f"/jojokey/images/{PLACE}/0", params=guess).content == data == store.objects()["open.png"]
    )


def test_cookie_authenticates_like_a_token(server: Server) -> None:
    token = server._token("painter")
    for dag_id, status in (("open", 200), ("secret", 403)):
        path = IMAGE.format(dag=dag_id)
        assert server.get(path, user=None, headers={"Cookie": f"_token={token}"}).status_code == status


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_routes_are_read_only(server: Server, method: str) -> None:
    import requests

    for path in (IMAGE, TASK):
        answer = requests.request(
            method,
            server.url + path.format(dag="open"),
            headers={"Authorization": f"Bearer {server._token('admin')}"},
            timeout=PATIENCE,
        )
        assert answer.status_code == 405


def test_unknown_paths_return_404_as_json(server: Server) -> None:
    for path in ("/jojokey/", "/jojokey/docs", "/jojokey/openapi.json", "/jojokey/api"):
        answer = server.get(path)
        assert (answer.status_code, answer.json()) == (404, {"detail": "Not found"})
