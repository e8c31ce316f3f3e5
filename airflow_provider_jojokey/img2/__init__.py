"""A client for the IMG2 image API. It needs no Airflow and works in notebooks and plain scripts.

    from airflow_provider_jojokey.img2 import Client, ImageRequest

    with Client("sk-…") as client:
        generation = client.generate(ImageRequest("a fox in the snow, poster"))
        generation.images[0].save("fox.png")

All names are imported on first use, because Airflow imports the operator, and with it this package, at
every parse of a Dag file.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_provider_jojokey.img2.client import Client, Generation
    from airflow_provider_jojokey.img2.errors import Img2Error, Kind
    from airflow_provider_jojokey.img2.images import Image
    from airflow_provider_jojokey.img2.reply import Reply, ReplyDecoder
    from airflow_provider_jojokey.img2.request import ImageRequest
    from airflow_provider_jojokey.img2.splitter import ReplyError

__all__ = [
    "Client",
    "Generation",
    "Image",
    "ImageRequest",
    "Img2Error",
    "Kind",
    "Reply",
    "ReplyDecoder",
    "ReplyError",
]

_MODULES = {
    "Client": "client",
    "Generation": "client",
    "Image": "images",
    "ImageRequest": "request",
    "Img2Error": "errors",
    "Kind": "errors",
    "Reply": "reply",
    "ReplyDecoder": "reply",
    "ReplyError": "splitter",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
