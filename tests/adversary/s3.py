"""An S3 store in memory, with the faults of real ones."""

from __future__ import annotations

import hashlib
import io
import types
from dataclasses import dataclass, field
from email.utils import formatdate
from random import Random
from typing import Any

from botocore.exceptions import ClientError, ConnectionClosedError, ReadTimeoutError
from botocore.response import StreamingBody
from urllib3.exceptions import ProtocolError

from tests.adversary.virtual import EPOCH, Scheduler

STORES = {
    "aws": "honours conditions",
    "conforming": "honours conditions",
    "ceph": "honours conditions, and refuses a quoted ETag in If-Match",
    "no If-Match": "honours If-None-Match and ignores If-Match",
    "no conditions": "ignores conditions",
    "501": "refuses conditions",
}
CONDITIONAL = ("aws", "conforming", "ceph")
FAULTS = ("lost before", "lost after", "resent", "503", "500", "slow", "bare 404", "409", "reset")
"""``resent``: the response is lost after the write, and boto3 itself sends the request again. ``reset``: the
connection breaks in the body of an error, which boto3 does not translate."""

_STATUS = {"PreconditionFailed": 412, "NoSuchKey": 404, "404": 404, "NotImplemented": 501, "SlowDown": 503}
_STATUS |= {"InternalError": 500, "ConditionalRequestConflict": 409}


@dataclass
class Stored:
    """An object in S3."""

    data: bytes
    etag: str
    sha256: str
    metadata: dict[str, str] = field(default_factory=dict)


@dataclass
class S3:
    """The store itself.

    :param kind: one of :data:`STORES`
    :param offset: seconds that its clock is ahead of true time
    """

    scheduler: Scheduler
    kind: str
    offset: float = 0.0
    objects: dict[tuple[str, str], Stored] = field(default_factory=dict)
    ever: set[tuple[str, str]] = field(default_factory=set)
    """Each key and digest that was ever stored."""

    def put(
        self, bucket: str, key: str, data: bytes, conditions: dict[str, str], metadata: dict[str, str]
    ) -> str:
        old = self.objects.get((bucket, key))
        if conditions and self.kind == "501":
            raise self.error("NotImplemented", "PutObject")
        if self.kind != "no conditions" and conditions.get("IfNoneMatch") and old is not None:
            raise self.error("PreconditionFailed", "PutObject")
        if (etag := conditions.get("IfMatch")) is not None and self.kind in CONDITIONAL:
            if old is None:
                raise self.error("NoSuchKey", "PutObject")
            if etag not in ((old.etag,) if self.kind == "ceph" else (old.etag, f'"{old.etag}"')):
                raise self.error("PreconditionFailed", "PutObject")
        digest = hashlib.sha256(data).hexdigest()
        self.objects[bucket, key] = Stored(data, hashlib.md5(data).hexdigest(), digest, metadata)
        self.ever.add((key, digest))
        return f'"{self.objects[bucket, key].etag}"'

    def metadata(self, status: int = 200) -> dict[str, Any]:
        date = formatdate(EPOCH + self.scheduler.now + self.offset, usegmt=True)
        return {"HTTPStatusCode": status, "HTTPHeaders": {"date": date}, "RetryAttempts": 0}

    def error(self, code: str, operation: str) -> ClientError:
        error = {"Code": code, "Message": f"{code}."}
        response: Any = {"Error": error, "ResponseMetadata": self.metadata(_STATUS[code])}
        return ClientError(response, operation)


class Events:
    """boto3's event system, as far as handlers of responses need it."""

    def __init__(self) -> None:
        self.handlers: list[tuple[str, Any]] = []

    def register(self, name: str, handler: Any, *_: Any, **__: Any) -> None:
        self.handlers.append((name, handler))

    register_first = register_last = register

    def after_call(self, operation: str, parsed: dict[str, Any]) -> None:
        for name, handler in self.handlers:
            if f"after-call.s3.{operation}".startswith(name.replace(".*", "")):
                http = types.SimpleNamespace(
                    status_code=parsed["ResponseMetadata"]["HTTPStatusCode"],
                    headers=parsed["ResponseMetadata"]["HTTPHeaders"],
                )
                handler(http_response=http, parsed=parsed, model=types.SimpleNamespace(name=operation))


class S3Client:
    """A boto3 client of one process.

    :param faults: for the number of a call, from 1, what goes wrong with it
    """

    exceptions = types.SimpleNamespace(ClientError=ClientError)

    def __init__(self, s3: S3, rng: Random, faults: dict[int, str]) -> None:
        self._s3 = s3
        self._rng = rng
        self._faults = faults
        self.calls = 0
        amazon = "https://s3.eu-west-1.amazonaws.com"
        self.meta = types.SimpleNamespace(
            endpoint_url=amazon if s3.kind == "aws" else "https://s3.example.org",
            config=types.SimpleNamespace(
                request_checksum_calculation="when_supported", region_name="eu-west-1"
            ),
            events=Events(),
            region_name="eu-west-1",
        )

    def close(self) -> None:
        """Do nothing."""

    def put_object(self, *, Bucket: str, Key: str, Body: Any, **options: Any) -> dict[str, Any]:
        data = Body if isinstance(Body, bytes) else Body.read()
        conditions = {name: options[name] for name in ("IfMatch", "IfNoneMatch") if name in options}
        words = f"PUT {Key} {conditions or ''}"
        metadata = options.get("Metadata", {})
        return self._call(
            "PutObject", words, lambda: {"ETag": self._s3.put(Bucket, Key, data, conditions, metadata)}
        )

    def get_object(self, *, Bucket: str, Key: str, **_: Any) -> dict[str, Any]:
        def get() -> dict[str, Any]:
            found = self._s3.objects.get((Bucket, Key))
            if found is None:
                raise self._s3.error("NoSuchKey", "GetObject")
            body = StreamingBody(io.BytesIO(found.data), len(found.data))
            return {
                "Body": body,
                "ETag": f'"{found.etag}"',
                "ContentLength": len(found.data),
                "Metadata": found.metadata,
            }

        return self._call("GetObject", f"GET {Key}", get)

    def head_object(self, *, Bucket: str, Key: str, **_: Any) -> dict[str, Any]:
        def head() -> dict[str, Any]:
            found = self._s3.objects.get((Bucket, Key))
            if found is None:
                raise self._s3.error("404", "HeadObject")
            return {"ETag": f'"{found.etag}"', "ContentLength": len(found.data), "Metadata": found.metadata}

        return self._call("HeadObject", f"HEAD {Key}", head)

    def _call(self, operation: str, words: str, act: Any) -> dict[str, Any]:
        self.calls += 1
        fault = self._faults.get(self.calls, "")
        s3, sleep = self._s3, self._s3.scheduler.sleep
        sleep(
            self._rng.uniform(0.01, 0.06) + (self._rng.uniform(5, 120) if fault == "slow" else 0),
            f"{words} (out)",
        )
        url = self.meta.endpoint_url
        reads = operation != "PutObject"
        try:
            if fault == "lost before" or (reads and fault in ("lost after", "resent")):
                raise ReadTimeoutError(endpoint_url=url)
            if fault in ("503", "500"):
                raise s3.error("SlowDown" if fault == "503" else "InternalError", operation)
            if fault == "bare 404" and reads:
                raise s3.error("404", operation)
            if fault == "reset":
                raise ProtocolError(
                    "Connection broken", ConnectionResetError(104, "Connection reset by peer")
                )
            if fault == "409" and "If" in words:
                raise s3.error("ConditionalRequestConflict", operation)
            answer: dict[str, Any] = act()
            if fault == "resent":
                sleep(self._rng.uniform(1, 20), f"{words} (resent)")
                answer = act()
        except ClientError as error:
            s3.scheduler.say(f"S3 {words}: {error.response['Error']['Code']}")
            self.meta.events.after_call(operation, error.response)
            sleep(self._rng.uniform(0.01, 0.06), f"{words} (back)")
            raise
        except ReadTimeoutError:
            s3.scheduler.say(f"S3 {words}: {fault}")
            sleep(self._rng.uniform(1, 60), f"{words} (timeout)")
            raise
        s3.scheduler.say(f"S3 {words}: done {fault}")
        sleep(self._rng.uniform(0.01, 0.06), f"{words} (back)")
        if fault == "lost after":
            raise ConnectionClosedError(endpoint_url=url)
        answer["ResponseMetadata"] = s3.metadata()
        self.meta.events.after_call(operation, answer)
        return answer
