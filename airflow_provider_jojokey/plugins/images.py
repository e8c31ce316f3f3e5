"""The plugin that Airflow loads: a tab, a page, and the routes behind them.

Every Airflow process reads this module, most of them for nothing. So it imports nothing but Airflow's own base
class; the web app is imported by the API server, with the first request to it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from airflow.providers.common.compat.sdk import AirflowPlugin

from airflow_provider_jojokey import __version__
from airflow_provider_jojokey.links.paths import TAB_ROUTE, URL_PREFIX, base_path

PAGE_ROUTE = "jojokey-gallery"
"""A route of its own: Airflow drops a second app with the first one's."""


async def web_app(
    scope: MutableMapping[str, Any],
    receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
    send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
) -> None:
    """Answer a request: the ASGI application, imported when it is needed."""
    from airflow_provider_jojokey.plugins.app import app

    await app(scope, receive, send)


def _react_app(destination: str, url_route: str) -> dict[str, str]:
    static = f"{base_path()}{URL_PREFIX}/static"
    return {
        # One name for both: Airflow keeps what a script has defined under it, and runs a script once.
        "name": "Images",
        "destination": destination,
        "url_route": url_route,
        "bundle_url": f"{static}/images.js?v={__version__}",
        "icon": f"{static}/icon.svg",
        "icon_dark_mode": f"{static}/icon-dark.svg",
    }


class JojoKeyPlugin(AirflowPlugin):
    """Images in Airflow's UI."""

    name = "jojokey"
    fastapi_apps: list[Any] = [  # noqa: RUF012  (as Airflow declares it)
        {"app": web_app, "url_prefix": URL_PREFIX, "name": "JojoKey images"},
    ]
    react_apps: list[Any] = [  # noqa: RUF012  (as Airflow declares it)
        _react_app("task_instance", TAB_ROUTE),
        _react_app("nav", PAGE_ROUTE),
    ]
