"""Requests to S3 through the user's AWS connection: the client, its connection slots and its clock."""

from __future__ import annotations

import base64
import hashlib
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from datetime import datetime
from typing import IO, Any
from urllib.parse import urlsplit

from airflow_provider_jojokey.exceptions import JojoKeyStoreError
from airflow_provider_jojokey.lazy import lazy_property
from airflow_provider_jojokey.payments import clock
from airflow_provider_jojokey.store.extra_args import for_documents, for_reads
from airflow_provider_jojokey.store.s3_errors import headers_of, redacted, translate_errors
from airflow_provider_jojokey.store.server_clock import ServerClock
from airflow_provider_jojokey.translatable import Translatable

MAX_CONNECTIONS = 32
"""More would take memory without need: an upload takes milliseconds, a generation takes seconds."""

MAX_BODY_WITHOUT_EXPECT = 4 * 1024 * 1024
"""Bytes. For smaller bodies, ``Expect: 100-continue`` only adds a round trip.

Once a connection has broken, requests have the header: a server that rejects a request early may close the connection
before the client reads the response, which names the error.
"""

_SMALL = "jojokey_small_body"


class S3Client:
    """The S3 client of an AWS connection. Threads may share it.

    :param aws_conn_id: the Airflow connection to AWS or to an S3-compatible store
    :param connections: how many threads may use S3 at once; by default there is no limit, and the AWS connection
        limits the number of open sockets
    :param extra_args: additional S3 parameters, see :mod:`store.extra_args`
    """

    def __init__(
        self,
        aws_conn_id: str | None,
        connections: int | None = None,
        extra_args: Mapping[str, Any] | None = None,
    ) -> None:
        self.aws_conn_id = aws_conn_id
        self.extra_args: dict[str, Any] = dict(extra_args or {})
        self.connections = None if connections is None else max(1, min(connections, MAX_CONNECTIONS))
        self._slots: AbstractContextManager[Any] = (
            nullcontext() if self.connections is None else threading.BoundedSemaphore(self.connections)
        )
        self.connection_extra: Mapping[str, Any] | None = None
        """The extra of the AWS connection, once :attr:`client` has read it."""
        self._clock = ServerClock()
        self._asks_first = False
        """Whether S3 is asked before each body is sent, because a connection has broken."""

    @lazy_property
    def client(self) -> Any:
        """The boto3 client.

        :raises JojoKeyStoreError: if the connection does not exist or cannot be used
        """
        # Not S3Hook: its module also imports everything that transfers need.
        from airflow.providers.amazon.aws.hooks.base_aws import AwsBaseHook
        from airflow.providers.common.compat.sdk import AirflowException
        from botocore.config import Config

        from airflow_provider_jojokey import __version__
        from airflow_provider_jojokey.store.signing import use_known_digest

        options: dict[str, Any] = {}
        if self.connections is not None:
            options["max_pool_connections"] = self.connections
        with translate_errors(Translatable("use the AWS connection")):
            try:
                hook: AwsBaseHook = AwsBaseHook(self.aws_conn_id, client_type="s3")
                self.connection_extra = hook.conn_config.extra_config
                _check_credentials(hook.conn_config)
                agent = f"{hook.config.user_agent_extra or ''} airflow-provider-jojokey/{__version__}".strip()
                # hook.get_conn() walks through all modules for its user agent, which takes 300 ms of CPU.
                client = hook.get_session(region_name=hook.region_name).client(
                    "s3",
                    endpoint_url=hook.conn_config.get_service_endpoint_url("s3"),
                    config=hook.config.merge(Config(user_agent_extra=agent, **options)),
                    verify=hook.verify,
                )
            except (
                AirflowException,
                AttributeError,
                KeyError,
                NotImplementedError,
                TypeError,
                ValueError,
            ) as error:
                raise JojoKeyStoreError(
                    f"The AWS connection {self.aws_conn_id!r} is not usable.",
                    "Correct the connection's fields and extra.",
                    detail=redacted(str(error)),
                ) from None
        use_known_digest(client)
        client.meta.events.register("provide-client-params.s3.PutObject", self._mark_small_body)
        client.meta.events.register("before-sign.s3.PutObject", _drop_expect_header)
        return client

    def _request(
        self, operation: str, consume: Callable[[dict[str, Any]], Any] | None = None, /, **parameters: Any
    ) -> dict[str, Any]:
        """Send one request, after waiting for a free connection slot.

        :param consume: reads the response's body in the same slot; its return value becomes ``Consumed``
        """
        from botocore.exceptions import ClientError

        method = getattr(self.client, operation)
        if operation != "put_object":
            parameters |= for_reads(self.extra_args)
        else:
            if "Metadata" not in parameters:
                parameters |= for_documents(self.extra_args)
            if not self._sends_checksums:
                parameters["ContentMD5"] = _md5_of(parameters["Body"])
        with self._slots:
            began = clock.monotonic()
            try:
                response: dict[str, Any] = method(**parameters)
            except ClientError as error:
                self._clock.observe(headers_of(error.response), began)
                raise
            except Exception:
                self._asks_first = True  # perhaps S3 rejected the request before it had read the body
                raise
            self._clock.observe(headers_of(response), began)
            if consume is not None:
                with closing(response["Body"]):  # "with body" would skip botocore's own checks
                    response["Consumed"] = consume(response)
            return response

    def _mark_small_body(self, params: Mapping[str, Any], context: dict[str, Any], **_: Any) -> None:
        body = params.get("Body")
        size = len(body) if isinstance(body, bytes) else params.get("ContentLength")
        context[_SMALL] = not self._asks_first and size is not None and size <= MAX_BODY_WITHOUT_EXPECT

    def now(self) -> datetime:
        """Return the time of S3's clock, which all hosts share.

        Until S3 has sent a response with a usable ``Date``, this is the host's time, see :attr:`clock`.
        """
        return self._clock.now()

    @property
    def clock(self) -> str:
        """The clock that :meth:`now` uses: ``"s3"`` or ``"host"``."""
        return "s3" if self._clock.known else "host"

    def _etag(self, response: Mapping[str, Any], doing: str) -> str:
        """Return a response's ETag.

        :raises JojoKeyStoreError: if there is none, which means that the server is not S3
        """
        if etag := response.get("ETag"):
            return str(etag)
        raise self._not_s3(response, doing)

    def _not_s3(self, response: Mapping[str, Any], doing: str) -> JojoKeyStoreError:
        content_type = headers_of(response).get("content-type", "")
        sent = f"sent {content_type.partition(';')[0]} in response" if content_type else "responded"
        return JojoKeyStoreError(
            f"This is not S3: the server at {self.client.meta.endpoint_url} {sent} to a request to {doing}.",
            "Set endpoint_url in the AWS connection to the URL of the S3 API. The URL of the store's web "
            "console is often similar.",
        )

    @property
    def _sends_checksums(self) -> bool:
        # Stores that reject the checksum headers need "when_required" in the connection. They get Content-MD5 instead:
        # a bucket with object lock rejects an object that has neither, and an image would be paid by then.
        return bool(self.client.meta.config.request_checksum_calculation != "when_required")


def _check_credentials(settings: Any) -> None:
    """Check that the credentials are text. botocore would fail at the first request, with a bare ``TypeError``.

    :raises TypeError: if a connection that is written as JSON has a number, for example
    """
    for name in ("aws_access_key_id", "aws_secret_access_key", "aws_session_token"):
        if not isinstance(value := getattr(settings, name, None), str | None):
            raise TypeError(f"{name} must be text, not {type(value).__name__}: write it in quotes")


def _md5_of(body: bytes | IO[bytes]) -> str:
    """Return the value of ``Content-MD5``, and leave a file at its position."""
    if isinstance(body, bytes):
        digest = hashlib.md5(body, usedforsecurity=False)
    else:
        position = body.tell()
        digest = hashlib.md5(usedforsecurity=False)
        while chunk := body.read(1024 * 1024):
            digest.update(chunk)
        body.seek(position)
    return base64.b64encode(digest.digest()).decode()


def is_aws(endpoint_url: str) -> bool:
    """Return whether this is AWS's own S3."""
    host = urlsplit(endpoint_url).hostname or ""
    return host.endswith((".amazonaws.com", ".amazonaws.com.cn"))


def _drop_expect_header(request: Any, **_: Any) -> None:
    if request.context.get(_SMALL) and request.context.get("retries", {}).get("attempt", 1) == 1:
        with suppress(KeyError):
            del request.headers["Expect"]
