"""Images on the gateway's host, for responses that link to them."""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict

from airflow_provider_jojokey.sandbox.wire import Reply

PREFIX = "/sandbox/images/"
_MAX_IMAGES = 256


class HostedImages:
    """The latest images. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._images: OrderedDict[str, tuple[bytes, str]] = OrderedDict()
        self._misses: dict[str, int] = {}

    def publish(self, image: bytes, content_type: str, misses: int = 0) -> str:
        """Store an image, and return its path.

        :param misses: number of requests that get a 404 first
        """
        path = f"{PREFIX}{secrets.token_hex(12)}.{content_type.rpartition('/')[2]}"
        with self._lock:
            self._images[path] = (image, content_type)
            self._misses[path] = misses
            while len(self._images) > _MAX_IMAGES:
                removed, _ = self._images.popitem(last=False)
                del self._misses[removed]
        return path

    def get(self, path: str) -> Reply:
        """Return the response to a request for an image."""
        with self._lock:
            image = self._images.get(path)
            if self._misses.get(path, 0) > 0:
                self._misses[path] -= 1
                image = None
        if image is None:
            return Reply(404, {"Content-Type": "text/plain"}, [b"no such image"])
        return Reply(200, {"Content-Type": image[1]}, [image[0]])

    def clear(self) -> None:
        """Delete all images."""
        with self._lock:
            self._images.clear()
            self._misses.clear()
