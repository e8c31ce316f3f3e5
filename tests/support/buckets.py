"""Buckets on two real S3 servers: moto supports conditional writes, rclone ignores the conditions."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import boto3
from botocore.config import Config
from moto.s3.responses import S3Response
from moto.server import ThreadedMotoServer

from airflow_provider_jojokey.sandbox import S3Server

BUCKET = "posters"
IMPATIENT = {"retries": {"total_max_attempts": 1}, "connect_timeout": 2, "read_timeout": 10}
"""Without it, botocore would retry for minutes when a test has stopped the server."""


@dataclass(frozen=True)
class Bucket:
    """A bucket on a server of its own kind.

    :param honours: whether the server lets only one of two conditional writers win
    """

    endpoint_url: str
    access_key: str
    secret_key: str
    config: dict[str, Any]
    honours: bool
    name: str = BUCKET

    @property
    def connection(self) -> dict[str, Any]:
        """The Airflow connection."""
        return {
            "conn_type": "aws",
            "login": self.access_key,
            "password": self.secret_key,
            "extra": {
                "endpoint_url": self.endpoint_url,
                "region_name": "us-east-1",
                "config_kwargs": {**self.config, **IMPATIENT},
            },
        }

    def client(self) -> Any:
        """A boto3 client, created once because that takes longer than most tests."""
        key = (self.endpoint_url, self.access_key, self.secret_key)
        if key not in _clients:
            _clients[key] = boto3.client(
                "s3",
                endpoint_url=self.endpoint_url,
                aws_access_key_id=self.access_key,
                aws_secret_access_key=self.secret_key,
                region_name="us-east-1",
                config=Config(**{**self.config, **IMPATIENT}),
            )
        return _clients[key]


_clients: dict[tuple[str, str, str], Any] = {}


def _one_at_a_time(handle: Callable[..., Any]) -> Callable[..., Any]:
    def locked(*arguments: Any) -> Any:
        with _moto_lock:
            return handle(*arguments)

    return locked


# moto handles requests in threads without a lock. In 2 of 600 races, both of two conditional writers won, and 2 of 2,000
# reads of an object that was replaced meanwhile returned 500 ("I/O operation on closed file"). S3 prevents both.
_moto_lock = threading.Lock()
for _name in ("_key_response", "_bucket_response"):
    setattr(S3Response, _name, _one_at_a_time(getattr(S3Response, _name)))


@contextmanager
def moto_server() -> Iterator[str]:
    """Run moto, and yield its URL."""
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


@contextmanager
def moto_bucket() -> Iterator[Bucket]:
    with moto_server() as url:
        bucket = Bucket(url, "moto", "moto-secret", {"s3": {"addressing_style": "path"}}, honours=True)
        bucket.client().create_bucket(Bucket=BUCKET)
        yield bucket


def bucket_of(server: S3Server) -> Bucket:
    """Return a bucket of rclone; create it if it is missing."""
    server.create_bucket(BUCKET)
    return Bucket(
        server.endpoint_url, server.access_key, server.secret_key, dict(server.client_settings), honours=False
    )
