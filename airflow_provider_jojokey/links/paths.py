"""The paths of a task's images in Airflow's UI."""

from __future__ import annotations

from urllib.parse import quote, urlsplit

URL_PREFIX = "/jojokey"
"""The prefix of the plugin's routes, after the base path."""
TAB_ROUTE = "jojokey-images"


def base_path() -> str:
    """Return the path in ``[api] base_url``, without a trailing slash.

    It is empty unless Airflow's UI is below the root of its host.
    """
    from airflow.providers.common.compat.sdk import conf

    return urlsplit(conf.get("api", "base_url", fallback="") or "").path.rstrip("/")


def tab_path(dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> str:
    """Return the path of the task's Images tab in Airflow's UI, without the base URL."""
    mapped = f"/mapped/{map_index}" if map_index >= 0 else ""
    # Encode like Airflow, because only then does its UI underline the open tab.
    parts = (quote(part, safe=":+") for part in (dag_id, run_id, task_id))
    return "/dags/{}/runs/{}/tasks/{}".format(*parts) + f"{mapped}/plugin/{TAB_ROUTE}"


def image_path(dag_id: str, run_id: str, task_id: str, map_index: int = -1, number: int = 0) -> str:
    """Return the path of one of the task's images in Airflow's UI, without the base URL."""
    parts = (quote(part, safe="") for part in (dag_id, run_id, task_id))
    return f"{URL_PREFIX}/images/" + "/".join(parts) + f"/{map_index}/{number}"


def thumbnail_path(dag_id: str, run_id: str, task_id: str, map_index: int = -1, number: int = 0) -> str:
    """Return the path of a small copy of that image, without the base URL."""
    return image_path(dag_id, run_id, task_id, map_index, number).replace("/images/", "/thumbnails/", 1)
