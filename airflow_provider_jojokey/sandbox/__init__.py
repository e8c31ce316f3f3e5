"""A JojoKey and an S3 of your own, on loopback: try the provider without a token and without spending a cent.

    with Sandbox("/tmp/world") as sandbox:
        os.environ.update(sandbox.environment())

:class:`Gateway` stands in for JojoKey: it draws real images from the prompt, answers with the gateway's shapes,
errors and delays on request, and keeps a ledger of what it billed. :class:`S3Server` keeps objects as plain files.
:class:`Sandbox` is both together. Names are imported on first use, so that importing this package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airflow_provider_jojokey.sandbox.cases import CASES, Case
    from airflow_provider_jojokey.sandbox.gateway import Gateway
    from airflow_provider_jojokey.sandbox.ledger import LedgerRecord, read_ledger
    from airflow_provider_jojokey.sandbox.poster import draw_poster
    from airflow_provider_jojokey.sandbox.s3 import S3Server
    from airflow_provider_jojokey.sandbox.server import RequestRecord
    from airflow_provider_jojokey.sandbox.world import Sandbox

__all__ = [
    "CASES",
    "Case",
    "Gateway",
    "LedgerRecord",
    "RequestRecord",
    "S3Server",
    "Sandbox",
    "draw_poster",
    "read_ledger",
]

_HOMES = {
    "CASES": "cases",
    "Case": "cases",
    "Gateway": "gateway",
    "LedgerRecord": "ledger",
    "RequestRecord": "server",
    "S3Server": "s3",
    "Sandbox": "world",
    "draw_poster": "poster",
    "read_ledger": "ledger",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first asked for.

    :raises AttributeError: if this package has no such name.
    """
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
