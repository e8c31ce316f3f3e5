"""The Airflow plugin: a tab of task instances, a page, and their routes.

Every Airflow process imports this module, and most of them never use it. It therefore imports only Airflow's base
class. The API server imports the web application when it receives the first request.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from airflow.providers.common.compat.sdk import AirflowPlugin

from airflow_provider_jojokey import __version__
from airflow_provider_jojokey.links.paths import TAB_ROUTE, URL_PREFIX, base_path

PAGE_ROUTE = "jojokey-gallery"
"""The page's route. It differs from the tab's, because Airflow ignores a second app with the same route."""


async def web_app(
    scope: MutableMapping[str, Any],
    receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
    send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
) -> None:
    """Handle a request (ASGI). Import the application on first use."""
    from airflow_provider_jojokey.plugins.app import app

    await app(scope, receive, send)


def _react_app(destination: str, url_route: str) -> dict[str, str]:
    static = f"{base_path()}{URL_PREFIX}/static"
    return {
        # Both apps need the same name: Airflow runs the script once and stores its component under this name.
        "name": "Images",
        "destination": destination,
        "url_route": url_route,
        "bundle_url": f"{static}/images.js?v={__version__}",
        "icon": f"{static}/icon.svg",
        "icon_dark_mode": f"{static}/icon-dark.svg",
    }


class JojoKeyPlugin(AirflowPlugin):
    """Shows generated images in Airflow's UI."""

    name = "jojokey"
    fastapi_apps: list[Any] = [  # noqa: RUF012  (as Airflow declares it)
        {"app": web_app, "url_prefix": URL_PREFIX, "name": "JojoKey images"},
    ]
    react_apps: list[Any] = [  # noqa: RUF012  (as Airflow declares it)
        _react_app("task_instance", TAB_ROUTE),
        _react_app("nav", PAGE_ROUTE),
    ]
