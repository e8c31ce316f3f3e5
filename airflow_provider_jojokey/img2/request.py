"""A request for images, checked before it is sent."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any

from airflow_provider_jojokey.img2.estimate import EDGE_TIMEOUT, expected_seconds
from airflow_provider_jojokey.img2.rules import (
    DEFAULT_MODEL,
    DEFAULT_PARTIAL_IMAGES,
    FIELDS,
    QUALITIES,
    is_known_model,
    nearest_size,
    parse_size,
    problems,
)

__all__ = ["DEFAULT_MODEL", "ImageRequest", "nearest_size", "parse_size", "problems"]


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """A request for images. Every instance satisfies the API's rules.

    :param prompt: the description of the image, 1 to 32,000 characters
    :param model: the model's name at the gateway
    :param size: ``"auto"`` or ``"WIDTHxHEIGHT"`` in pixels
    :param quality: ``"low"``, ``"medium"``, ``"high"`` or ``"auto"``; other values are passed through
    :param n: number of images, 1 to 10
    :param background: ``"auto"``, ``"opaque"`` or ``"transparent"`` (PNG and WebP only)
    :param output_format: ``"png"`` (the API's default), ``"jpeg"`` or ``"webp"``
    :param output_compression: 0 to 100, JPEG and WebP only
    :param moderation: ``"auto"`` or ``"low"``
    :param stream: request an event stream, which keeps the connection alive during a long generation
    :param partial_images: number of previews in an event stream, 0 to 3 (by default 2); each costs about 100
        output tokens, and sends data that keeps the connection alive
    :param extra_body: additional fields of the request body; ``{"response_format": None}`` omits that field
    :raises ValueError: if a field breaks a rule; the message lists every problem with its fix
    """

    prompt: str
    _: KW_ONLY
    model: str = DEFAULT_MODEL
    size: str = "1024x1024"
    quality: str = "low"
    n: int = 1
    background: str | None = None
    output_format: str | None = None
    output_compression: int | None = None
    moderation: str | None = None
    stream: bool = False
    partial_images: int | None = None
    extra_body: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        found = list(problems({name: getattr(self, name) for name in FIELDS}))
        if found:
            raise ValueError("; ".join(found))

    @property
    def pixels(self) -> tuple[int, int] | None:
        """Width and height in pixels, or ``None`` for ``"auto"``."""
        return parse_size(self.size)

    def body(self) -> dict[str, Any]:
        """Return the JSON body, without ``response_format``, which the client negotiates."""
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": self.prompt,
            "size": self.size,
            "quality": self.quality,
            "n": self.n,
        }
        for name in ("background", "output_format", "output_compression", "moderation"):
            if (value := getattr(self, name)) is not None:
                body[name] = value
        if self.stream:
            body["stream"] = True
            body["partial_images"] = (
                DEFAULT_PARTIAL_IMAGES if self.partial_images is None else self.partial_images
            )
        return {**body, **(self.extra_body or {})}

    def fingerprint(self, host: str) -> str:
        """Return 64 hex digits that identify the requested image at ``host``.

        Every field that changes the image counts. The form of the response (``stream``, ``partial_images``,
        ``response_format``) and the token that pays do not count.
        """
        body = self.body()
        for name in ("stream", "partial_images", "response_format"):
            body.pop(name, None)
        canonical = json.dumps([host, body], sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()

    def warnings(self) -> list[str]:
        """Return a sentence for each value that this package cannot check or that may time out."""
        unusual = []
        if not is_known_model(self.model):
            unusual.append(
                f"model={self.model!r} is not a known model ({DEFAULT_MODEL}): the gateway checks its limits"
            )
        if self.quality not in QUALITIES:
            unusual.append(
                f"quality={self.quality!r} is not a known quality ({', '.join(QUALITIES)}): the gateway checks it"
            )
        seconds = expected_seconds(self)
        if seconds > EDGE_TIMEOUT and not self.stream:
            unusual.append(
                f"{self.size} at quality {self.quality} takes about {seconds:.0f} s, but Cloudflare times out after "
                "100 to 125 s with status 524, and you are still billed. stream=True keeps the connection alive if "
                "the gateway supports it; lower quality or a smaller size is faster"
            )
        return unusual
