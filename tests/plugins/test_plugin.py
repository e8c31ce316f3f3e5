"""What Airflow loads, and where it is served."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from tests.support.airflow import Airflow, Store
from tests.support.api_server import Book, Server, api_server, aws, png_image, result, stored_image
from tests.support.modules import AIRFLOW_ITSELF, HEAVY, modules_after, within
from tests.support.patience import PATIENCE


def test_plugin_imports_no_web_modules() -> None:
    airflow = f"{AIRFLOW_ITSELF}\nfrom airflow.providers.common.compat.sdk import AirflowPlugin, conf"
    added = modules_after(f"{airflow}\nimport airflow_provider_jojokey.plugins.images") - modules_after(
        airflow
    )
    web = ("fastapi", "starlette", "sqlalchemy", "airflow.models", "airflow.api_fastapi")
    assert within(added, (*HEAVY, *web)) == []
    own = {entry for entry in added if entry.startswith("airflow_provider_jojokey.")}
    assert own == {
        f"airflow_provider_jojokey.{entry}" for entry in ("plugins", "plugins.images", "links", "links.paths")
    }


def test_airflow_lists_the_tab_and_the_gallery(server: Server) -> None:
    (plugin,) = [
        entry for entry in server.get("/api/v2/plugins").json()["plugins"] if entry["name"] == "jojokey"
    ]
    apps = {entry["destination"]: entry for entry in plugin["react_apps"]}
    assert set(apps) == {"task_instance", "nav"}
    assert apps["task_instance"]["url_route"] == "jojokey-images"
    assert apps["nav"]["url_route"] != "jojokey-images"  # Airflow drops the second of two
    assert server.get("/api/v2/plugins/importErrors").json()["import_errors"] == []


def test_app_is_public_and_never_cached(server: Server) -> None:
    (plugin,) = [
        entry for entry in server.get("/api/v2/plugins").json()["plugins"] if entry["name"] == "jojokey"
    ]
    for entry in plugin["react_apps"]:
        answer = server.get(entry["bundle_url"], user=None)
        assert answer.status_code == 200
        assert "javascript" in answer.headers["Content-Type"]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cache-Control"] == "no-cache"
        for icon in (entry["icon"], entry["icon_dark_mode"]):
            assert server.get(icon, user=None).headers["Content-Type"].startswith("image/svg+xml")
    for path in ("../app.py", "..%2fapp.py", "%2e%2e/app.py", "never.js"):
        assert server.get(f"/jojokey/static/{path}", user=None).status_code == 404


@pytest.fixture(scope="module")
def prefixed(airflow: Airflow, _stores: dict[str, Store], tmp_path_factory: pytest.TempPathFactory) -> Any:
    environment = {"AIRFLOW_CONN_AWS_DEFAULT": aws(_stores["moto"])}
    with api_server(tmp_path_factory.mktemp("prefixed"), environment, "/team-a/airflow") as running:
        yield running


def test_routes_work_below_a_path_prefix(prefixed: Server, book: Book, store: Any) -> None:
    data = png_image()
    store.client.put_object(Bucket="posters", Key="x.png", Body=data)
    book.write("a", result(stored_image(data, "x.png")), map_index=1)

    (card,) = prefixed.results()["results"]

    assert card["href"] == "/team-a/airflow/dags/a/runs/manual__1/tasks/image/mapped/1/plugin/jojokey-images"
    (image,) = card["images"]
    for name in ("src", "thumbnail", "download"):
        assert image[name].startswith("/team-a/airflow/jojokey/")
        assert prefixed.get(image[name]).status_code == 200
        assert prefixed.get(image[name], user=None).status_code == 401
        assert prefixed.get(image[name], user="blind").status_code == 403
    answer = prefixed.get("/team-a/airflow/jojokey/api/dags/a/runs/manual__1/tasks/image/1").json()
    assert answer["result"] == card
    plugins = prefixed.get("/team-a/airflow/api/v2/plugins").json()["plugins"]
    (plugin,) = [entry for entry in plugins if entry["name"] == "jojokey"]
    for entry in plugin["react_apps"]:
        assert entry["bundle_url"].startswith("/team-a/airflow/jojokey/static/")
        assert prefixed.get(entry["bundle_url"], user=None).status_code == 200


def test_pillow_without_webp_is_reported() -> None:
    code = (
        "import io\nfrom PIL import features\nfeatures.check = lambda name: False\n"
        "from airflow_provider_jojokey.plugins import thumbnails\n"
        "try: thumbnails.make_thumbnail(io.BytesIO(), 320)\n"
        "except thumbnails.ThumbnailUnavailable as error: print('SAID', error)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ,
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    )
    assert "SAID Thumbnails need a Pillow with WebP" in run.stdout
