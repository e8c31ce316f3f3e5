"""A manifest as a task returns it."""

from __future__ import annotations

IMAGE = {
    "uri": "s3://posters/a/fox.png",
    "bucket": "posters",
    "key": "a/fox.png",
    "content_type": "image/png",
    "width": 1024,
    "height": 1536,
    "bytes": 12_345,
    "sha256": "0f" * 32,
}
MANIFEST = {
    "version": 1,
    "images": [IMAGE],
    "usage": {"input_tokens": 9, "output_tokens": 196, "total_tokens": 205},
    "model": "gpt-image-2",
    "size": "1024x1536",
    "quality": "low",
    "request_id": "2026",
    "created": 1_700_000_000,
    "seconds": 9.7,
    "reused": False,
    "receipt": "s3://posters/_jojokey/a/fox.png.json",
}
