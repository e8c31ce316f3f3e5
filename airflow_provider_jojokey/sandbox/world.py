"""The sandbox: a gateway and an S3 server, on loopback or real."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from airflow_provider_jojokey.sandbox.gateway import Gateway
from airflow_provider_jojokey.sandbox.s3 import REGION, S3Server
from airflow_provider_jojokey.sandbox.server import Service

REAL_API = "https://api.jojokey.com"


class Sandbox(Service):
    """A gateway and an S3 server together; a context manager.

    ``environ`` can select real services. With ``JOJOKEY_API_KEY``, the sandbox uses the API at ``JOJOKEY_BASE_URL``
    (default ``https://api.jojokey.com``) instead of the stand-in. With AWS credentials and ``JOJOKEY_S3_BUCKET``, it
    uses that bucket instead of the S3 server.

    :param directory: the folder for objects (``s3/``) and the charges (``charges.jsonl``).
    :param gateway_port: the port of the stand-in on 127.0.0.1; 0 selects a free one.
    :param s3_port: the port of the S3 server on 127.0.0.1; 0 selects a free one.
    :param buckets: the buckets to create.
    :param environ: the environment variables, such as ``os.environ``.
    :param gateway_options: further arguments of :class:`Gateway`.
    """

    def __init__(
        self,
        directory: Path | str,
        *,
        gateway_port: int = 0,
        s3_port: int = 0,
        buckets: Sequence[str] = ("posters",),
        environ: Mapping[str, str] | None = None,
        **gateway_options: Any,
    ) -> None:
        self.directory = Path(directory).absolute()
        self.buckets = tuple(buckets)
        environ = environ or {}
        self._api_key = environ.get("JOJOKEY_API_KEY") or None
        self._api_url = environ.get("JOJOKEY_BASE_URL") or REAL_API
        has_credentials = bool(environ.get("AWS_ACCESS_KEY_ID") or environ.get("AWS_PROFILE"))
        self.uses_real_api = self._api_key is not None
        self.uses_real_s3 = has_credentials and bool(environ.get("JOJOKEY_S3_BUCKET"))
        if self.uses_real_s3:
            self.buckets = (environ["JOJOKEY_S3_BUCKET"],)
        self._gateway = None
        if not self.uses_real_api:
            gateway_options.setdefault("charges", self.directory / "charges.jsonl")
            self._gateway = Gateway(gateway_port, **gateway_options)
        self._s3 = None if self.uses_real_s3 else S3Server(self.directory / "s3", port=s3_port)

    @property
    def gateway(self) -> Gateway:
        """The stand-in.

        :raises RuntimeError: if the real API is used instead.
        """
        if self._gateway is None:
            raise RuntimeError("The sandbox uses the real API, so it has no stand-in.")
        return self._gateway

    @property
    def s3(self) -> S3Server:
        """The S3 server.

        :raises RuntimeError: if the real S3 is used instead.
        """
        if self._s3 is None:
            raise RuntimeError("The sandbox uses the real S3, so it has no S3 server.")
        return self._s3

    def start(self) -> Self:
        """Start the servers, and return self.

        :raises FileNotFoundError: if rclone is needed and not installed.
        :raises OSError: if a port is taken.
        :raises RuntimeError: if the S3 server doesn't start.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        try:
            if self._s3 is not None:
                self._s3.start()
                for bucket in self.buckets:
                    self._s3.create_bucket(bucket)
            if self._gateway is not None:
                self._gateway.start()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop the servers. The directory stays."""
        try:
            if self._gateway is not None:
                self._gateway.stop()
        finally:
            if self._s3 is not None:
                self._s3.stop()

    def environment(self) -> dict[str, str]:
        """Return the environment variables that define the two Airflow connections.

        ``AIRFLOW_CONN_JOJOKEY_DEFAULT`` and ``AIRFLOW_CONN_AWS_DEFAULT`` are in Airflow's JSON form. On loopback,
        ``NO_PROXY`` excludes loopback from proxies, and ``JOJOKEY_SANDBOX_URL`` is the address of the stand-in.
        """
        variables = {
            "AIRFLOW_CONN_JOJOKEY_DEFAULT": json.dumps(self._jojokey_connection()),
            "AIRFLOW_CONN_AWS_DEFAULT": json.dumps(self._aws_connection()),
        }
        if self._gateway is not None:
            variables["JOJOKEY_SANDBOX_URL"] = self._gateway.url
        if self._gateway is not None or self._s3 is not None:
            variables.update(_without_proxy())
        return variables

    def _jojokey_connection(self) -> dict[str, Any]:
        if self._gateway is not None:
            return {"conn_type": "jojokey", "host": self._gateway.url, "password": self._gateway.token}
        return {"conn_type": "jojokey", "host": self._api_url, "password": self._api_key}

    def _aws_connection(self) -> dict[str, Any]:
        if self._s3 is None:
            return {"conn_type": "aws"}
        return {
            "conn_type": "aws",
            "login": self._s3.access_key,
            "password": self._s3.secret_key,
            "extra": {
                "endpoint_url": self._s3.endpoint_url,
                "region_name": REGION,
                "config_kwargs": self._s3.client_settings,
            },
        }


def _without_proxy() -> dict[str, str]:
    """Return the proxy exceptions of this process, with loopback added."""
    variables = {}
    for name in ("NO_PROXY", "no_proxy"):
        hosts = [host for host in os.environ.get(name, "").split(",") if host]
        variables[name] = ",".join(dict.fromkeys([*hosts, "127.0.0.1", "localhost"]))
    return variables
