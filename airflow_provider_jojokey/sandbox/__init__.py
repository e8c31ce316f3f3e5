"""A sandbox on loopback: try the provider without a token and at no cost.

    with Sandbox("/tmp/world") as sandbox:
        os.environ.update(sandbox.environment())

:class:`Gateway` is a stand-in for JojoKey. It draws an image from each prompt, simulates errors and delays on request,
and records its charges. :class:`S3Server` stores objects as plain files. :class:`Sandbox` combines both.
Names are imported on first use, so importing this package is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airflow_provider_jojokey.sandbox.cases import CASES, Case
    from airflow_provider_jojokey.sandbox.charges import ChargeRecord, read_charges
    from airflow_provider_jojokey.sandbox.gateway import Gateway
    from airflow_provider_jojokey.sandbox.poster import draw_poster
    from airflow_provider_jojokey.sandbox.s3 import S3Server
    from airflow_provider_jojokey.sandbox.server import RequestRecord
    from airflow_provider_jojokey.sandbox.world import Sandbox

__all__ = [
    "CASES",
    "Case",
    "ChargeRecord",
    "Gateway",
    "RequestRecord",
    "S3Server",
    "Sandbox",
    "draw_poster",
    "read_charges",
]

_MODULES = {
    "CASES": "cases",
    "Case": "cases",
    "Gateway": "gateway",
    "ChargeRecord": "charges",
    "RequestRecord": "server",
    "S3Server": "s3",
    "Sandbox": "world",
    "draw_poster": "poster",
    "read_charges": "charges",
}


def __getattr__(name: str) -> object:
    """Import a public name on first use.

    :raises AttributeError: if the package has no such name.
    """
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{module}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
