"""S3 for many threads: one client, and no more connections than it takes."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from functools import cached_property
from typing import IO, TYPE_CHECKING, Any

from airflow_provider_jojokey.store.keys import Destination
from airflow_provider_jojokey.store.s3 import ImageStore, store_errors

if TYPE_CHECKING:
    from airflow_provider_jojokey.img2.images import Image

CONNECTIONS = 32
"""At most so many at once: uploads take milliseconds where images take seconds, and each has its memory."""


class PooledStore(ImageStore):
    """An :class:`ImageStore` whose pool has room for all its threads.

    :param aws_conn_id: the Airflow connection to AWS or to an S3-compatible store
    :param connections: how many threads may talk to S3 at once
    """

    def __init__(self, aws_conn_id: str | None, connections: int) -> None:
        super().__init__(aws_conn_id)
        self.connections = min(connections, CONNECTIONS)
        self._turns = threading.BoundedSemaphore(self.connections)

    @cached_property
    def client(self) -> Any:
        """The boto3 client.

        :raises JojoKeyStoreError: if the connection does not exist or cannot be used
        """
        from airflow.providers.amazon.aws.hooks.s3 import S3Hook
        from botocore.config import Config

        from airflow_provider_jojokey.store.signing import use_known_digest

        with store_errors("use the AWS connection"):
            hook = S3Hook(aws_conn_id=self.aws_conn_id)
            config = hook.config.merge(Config(max_pool_connections=self.connections))
            client = hook.get_client_type(region_name=hook.region_name, config=config)
            use_known_digest(client)
            return client

    def put_image(self, destination: Destination, key: str, image: Image, labels: Mapping[str, str]) -> None:
        """Store one image, see :meth:`ImageStore.put_image`."""
        with self._turns:
            super().put_image(destination, key, image, labels)

    def size_of(self, bucket: str, key: str) -> int | None:
        """Return an object's size, see :meth:`ImageStore.size_of`."""
        with self._turns:
            return super().size_of(bucket, key)

    def read(self, bucket: str, key: str) -> tuple[bytes, str] | None:
        """Return a small object, see :meth:`ImageStore.read`."""
        with self._turns:
            return super().read(bucket, key)

    def write(self, bucket: str, key: str, data: bytes, replacing: str | None) -> str | None:
        """Write a small object, see :meth:`ImageStore.write`."""
        if not self._knows_conditions:  # it calls itself once where it finds that out
            return super().write(bucket, key, data, replacing)
        with self._turns:
            return super().write(bucket, key, data, replacing)

    def put(self, bucket: str, key: str, body: bytes | IO[bytes], content_type: str) -> None:
        """Write an object, whatever was there.

        :raises JojoKeyStoreError: if S3 does not take it
        """
        with store_errors(f"write s3://{bucket}/{key}"):
            self.client.put_object(Bucket=bucket, Key=key, Body=body, ContentType=content_type)
