"""Where a task's images are in Airflow's UI, as paths."""

from __future__ import annotations

from urllib.parse import quote, urlsplit

URL_PREFIX = "/jojokey"
"""Where the plugin's routes are, behind the base path."""
TAB_ROUTE = "jojokey-images"


def base_path() -> str:
    """Return what stands before all paths, without a slash at its end: most often nothing.

    It is the path in ``[api] base_url``, where Airflow's UI is not at the root of its host.
    """
    from airflow.providers.common.compat.sdk import conf

    return urlsplit(conf.get("api", "base_url", fallback="") or "").path.rstrip("/")


def tab_path(dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> str:
    """Return the path of the task's Images tab in Airflow's UI, without the base URL."""
    mapped = f"/mapped/{map_index}" if map_index >= 0 else ""
    # Written as Airflow writes it: only then does its UI underline the open tab.
    parts = (quote(one, safe=":+") for one in (dag_id, run_id, task_id))
    return "/dags/{}/runs/{}/tasks/{}".format(*parts) + f"{mapped}/plugin/{TAB_ROUTE}"


def image_path(dag_id: str, run_id: str, task_id: str, map_index: int = -1, number: int = 0) -> str:
    """Return the path of one of the task's images in Airflow's UI, without the base URL."""
    parts = (quote(one, safe="") for one in (dag_id, run_id, task_id))
    return f"{URL_PREFIX}/images/" + "/".join(parts) + f"/{map_index}/{number}"


def thumbnail_path(dag_id: str, run_id: str, task_id: str, map_index: int = -1, number: int = 0) -> str:
    """Return the path of a small copy of that image, without the base URL."""
    return image_path(dag_id, run_id, task_id, map_index, number).replace("/images/", "/thumbnails/", 1)
