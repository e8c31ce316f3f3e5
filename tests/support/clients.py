"""Stores and clients for tests of what is sent to S3."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.handlers import add_expect_header

from airflow_provider_jojokey.exceptions import JojoKeyStoreError
from airflow_provider_jojokey.img2.images import Image, ImageFile
from airflow_provider_jojokey.store.s3 import ImageStore
from tests.support.buckets import IMPATIENT, Bucket


def store_of(client: Any) -> ImageStore:
    store = ImageStore("aws_default")
    vars(store)["client"] = client
    return store


def store_in(bucket: Bucket) -> ImageStore:
    return store_of(bucket.client())


def client_to(endpoint_url: str, **config: Any) -> Any:
    path_style = {"s3": {"addressing_style": "path"}}
    client = boto3.client(
        "s3",
        endpoint_url=endpoint_url,
        aws_access_key_id="someone",
        aws_secret_access_key="secret",
        region_name="us-east-1",
        config=Config(**{**path_style, **IMPATIENT, **config}),
    )
    # boto3 waits a second for a "100 Continue" that some of the servers here never send.
    client.meta.events.unregister("before-call.s3", add_expect_header)
    return client


class Sent:
    """The headers of the PUT requests that a client sends, as boto3 reports them."""

    def __init__(self, client: Any) -> None:
        self.headers: list[dict[str, str]] = []
        self._events = client.meta.events
        self._events.register("before-send.s3.PutObject", self._note)

    def _note(self, request: Any, **_: Any) -> None:
        self.headers.append(
            {
                name.lower(): value.decode() if isinstance(value, bytes) else str(value)
                for name, value in request.headers.items()
            }
        )

    def __enter__(self) -> Sent:
        return self

    def __exit__(self, *_: object) -> None:
        self._events.unregister("before-send.s3.PutObject", self._note)


def image_of(data: bytes, content_type: str = "image/png", path: Path | None = None) -> Image:
    file = ImageFile(path)
    file.write(data)
    return Image(0, file, content_type, 96, 64)


def error_of(call: Any) -> JojoKeyStoreError:
    with pytest.raises(JojoKeyStoreError) as caught:
        call()
    return caught.value
