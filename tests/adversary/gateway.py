"""The gateway in memory: its payments, which the package never sees, and the log that it shows."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from random import Random
from typing import Any

import requests
from urllib3.exceptions import NewConnectionError
from urllib3.response import HTTPResponse

from airflow_provider_jojokey.img2.transport import GatewayAdapter
from tests.adversary.virtual import EPOCH, Process, Scheduler

OUTCOMES = {
    "ok": "whole response",
    "no usage": "whole response without usage",
    "refused": "error of the gateway, refunded",
    "refused slowly": "error of the gateway after a minute, refunded",
    "not connected": "no connection",
    "reset": "connection reset without a response",
    "never arrived": "connection reset before the gateway has the request",
    "524": "the edge gives up",
    "502": "an error page of a server in front",
    "after headers": "connection reset after the headers",
    "mid body": "connection reset in the body",
    "before usage": "connection reset after the images, before usage",
    "error in 200": "an error inside a response of success",
    "proxy": "a retrying proxy in front makes several requests of one",
}
"""What happens to a POST. ``billed`` is drawn in addition where an outcome allows both."""
BILLED = {"ok", "no usage", "mid body", "before usage", "after headers"}
UNBILLED = {"refused", "refused slowly", "not connected", "never arrived"}
LOGS = ("honest", "disabled", "pruned", "late", "refused", "absent", "limited")
LIMIT, PERIOD = 20, 1200.0


@dataclass(frozen=True)
class Post:
    """What happens to a POST.

    :param billed: whether the gateway charges it, where the outcome allows both
    :param seconds: how long the generation takes
    :param failed_channels: error rows that the gateway writes before the request succeeds
    :param cut: how much of the body arrives, 0 to 1
    """

    outcome: str = "ok"
    billed: bool = True
    seconds: float = 12.0
    failed_channels: int = 0
    cut: float = 1.0


@dataclass
class Upstream:
    """A request in the gateway's log."""

    request_id: str
    started: float
    ended: float
    billed: bool
    prompt_tokens: int
    output_tokens: int
    failed_channels: int = 0
    error_row: bool = True
    foreign: bool = False

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.output_tokens if self.billed else 0

    @property
    def quota(self) -> int:
        return self.output_tokens * 15 + self.prompt_tokens * 3


@dataclass
class Sent:
    """A POST of the package, and what happened to it."""

    process: Process
    job: Any
    outcome: str
    started: float
    attempt: str | None
    problems: list[str]
    """Why this payment was not requested, if it is charged."""
    upstream: list[Upstream] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    """Digests of the generated images."""
    arrived: list[str] = field(default_factory=list)
    """Digests of images that arrived completely."""
    id_seen: bool = False
    """Whether the client received the request ID in a header."""

    @property
    def billed(self) -> bool:
        return any(upstream.billed for upstream in self.upstream)

    @property
    def tokens(self) -> int:
        return sum(upstream.tokens for upstream in self.upstream)


@dataclass
class Gateway:
    """The gateway of one sequence.

    :param log: how it shows its log, one of :data:`LOGS`
    :param foreign: whether others use the token at the same times
    :param offset: seconds that its clock is ahead
    :param edge_offset: seconds that the clock of the CDN in front of it is ahead
    :param error_rows: whether its log shows failures
    """

    scheduler: Scheduler
    rng: Random
    log: str = "honest"
    foreign: bool = False
    offset: float = 0.0
    edge_offset: float = 0.0
    error_rows: bool = True
    sent: list[Sent] = field(default_factory=list)
    others: list[Upstream] = field(default_factory=list)
    calls: list[float] = field(default_factory=list)

    def upstream(self, started: float, ended: float, billed: bool, n: int, **facts: Any) -> Upstream:
        number = len(self.others) + sum(len(sent.upstream) for sent in self.sent) + 1
        request_id = f"2026{number:012}{self.rng.randrange(10**6):06}"
        prompt = self.rng.randint(10, 40)
        return Upstream(
            request_id, started, ended, billed, prompt, 196 * n, error_row=self.error_rows, **facts
        )

    def receive(self, sent: Sent, post: Post) -> Random:
        """Record a POST."""
        now, rng, n = self.scheduler.now, Random(f"{sent.process.name}/{len(self.sent)}"), sent.job.request.n
        billed = post.outcome in BILLED or (post.billed and post.outcome not in UNBILLED)
        seconds = post.seconds
        if post.outcome == "refused slowly":
            seconds = rng.uniform(50, 90)
        elif post.outcome == "refused":
            seconds = rng.uniform(0.1, 3)
        elif post.outcome == "524":
            seconds = max(seconds, rng.uniform(126, 280))
        self.sent.append(sent)
        if post.outcome == "proxy":
            for _ in range(rng.randint(1, 3)):
                sent.upstream.append(self.upstream(now, now + seconds, rng.random() < 0.6, n))
                now += seconds
        elif post.outcome not in ("not connected", "never arrived"):
            channels = post.failed_channels
            sent.upstream.append(self.upstream(now, now + seconds, billed, n, failed_channels=channels))
        if self.foreign:
            for _ in range(rng.choice((0, 1, 1, 2))):
                begins = max(0.0, self.scheduler.now + rng.uniform(-20, 20))
                lasts, paid = rng.uniform(5, 60), rng.random() < 0.8
                self.others.append(self.upstream(begins, begins + lasts, paid, n, foreign=True))
        return rng

    def books(self) -> list[Upstream]:
        return [*self.others, *(upstream for sent in self.sent for upstream in sent.upstream)]

    def rows(self) -> list[dict[str, Any]]:
        """Return the log as it is now, newest first."""
        now = self.scheduler.now
        rows: list[tuple[float, Upstream, int]] = []
        for upstream in self.books():
            lateness = Random(upstream.request_id)
            written = upstream.ended + lateness.uniform(0.0, 2.0)
            if self.log == "late":
                written += lateness.uniform(60, 500)
            if upstream.billed and self.log != "disabled":
                rows.append((written, upstream, 2))
            failures = upstream.failed_channels + (0 if upstream.billed else 1)
            if upstream.error_row:
                step = (upstream.ended - upstream.started) / (failures + 1)
                times = [upstream.started + step * (number + 1) for number in range(failures)]
                rows += [(at if upstream.billed else upstream.ended, upstream, 5) for at in times]
        visible = [row for row in rows if row[0] <= now]
        if self.log == "pruned":
            visible = [row for row in visible if row[0] > now - 90]
        visible.sort(key=lambda row: -row[0])
        return [self._row(written, upstream, kind) for written, upstream, kind in visible[:1000]]

    def _row(self, written: float, upstream: Upstream, kind: int) -> dict[str, Any]:
        paid = kind == 2
        return {
            "created_at": int(EPOCH + written + self.offset),
            "type": kind,
            "content": "" if paid else "status_code=503, upstream error",
            "model_name": "gpt-image-2",
            "quota": upstream.quota if paid else 0,
            "prompt_tokens": upstream.prompt_tokens if paid else 0,
            "completion_tokens": upstream.output_tokens if paid else 0,
            "use_time": int(min(written, upstream.ended) - upstream.started),
            "is_stream": False,
            "request_id": upstream.request_id,
        }

    def limited(self) -> bool:
        now = self.scheduler.now
        self.calls = [*(call for call in self.calls if call > now - PERIOD), now]
        return len(self.calls) > LIMIT


class Adapter(GatewayAdapter):
    """A process's connection to the gateway."""

    def __init__(
        self, gateway: Gateway, process: Process, posts: list[Post], on_post: Callable[[str], Sent]
    ) -> None:
        super().__init__()
        self.gateway = gateway
        self.process = process
        self.posts = posts
        self.on_post = on_post

    def send(self, request: Any, *_: Any, **__: Any) -> Any:
        if request.method == "POST":
            return self._post(request)
        scheduler, gateway = self.gateway.scheduler, self.gateway
        path = request.url.partition("/api/")[2]
        self._wait(gateway.rng.uniform(0.05, 0.4), f"GET {path}")
        mode = gateway.log if path.startswith("log") else "absent"
        scheduler.say(f"gateway GET {path}: {mode}")
        if mode == "absent":
            return self._respond(
                request, 404, {"error": {"message": "Invalid URL", "type": "invalid_request_error"}}
            )
        if gateway.limited() or (mode == "limited" and len(gateway.calls) > 2):
            return self._respond(request, 429, {"error": {"message": "too many", "type": "new_api_error"}})
        if mode == "refused":
            return self._respond(request, 500, b"upstream connect error", "text/plain")
        return self._respond(request, 200, {"success": True, "message": "", "data": gateway.rows()})

    def abort(self) -> None:
        """Do nothing: :meth:`_wait` sees SIGTERM itself."""

    def _post(self, request: Any) -> Any:
        gateway, scheduler = self.gateway, self.gateway.scheduler
        post = self.posts.pop(0) if self.posts else Post()
        if post.outcome == "not connected":
            self._wait(2.0, "connecting")
            scheduler.say("gateway POST: not connected")
            raise requests.ConnectionError(NewConnectionError(None, "refused"))  # type: ignore[arg-type]
        # A suspension between the last check and the first byte cannot be noticed by any client.
        self._wait(0.05, "connecting", freezable=False)
        sent = self.on_post(post.outcome)
        rng = gateway.receive(sent, post)
        first = sent.upstream[0] if sent.upstream else None
        lasts = sent.upstream[-1].ended - scheduler.now if sent.upstream else rng.uniform(0, 30)
        billed = "billed" if sent.billed else "not billed"
        scheduler.say(f"gateway POST: {post.outcome}, {billed}, {lasts:.0f} s, {first and first.request_id}")
        mark = {"X-Oneapi-Request-Id": first.request_id} if first else {}
        if post.outcome in ("reset", "never arrived"):
            self._wait(lasts * rng.choice((0.3, 1.0, 1.0)), "POST")
            raise requests.ConnectionError(ConnectionResetError(104, "Connection reset by peer"))
        if post.outcome == "524":
            self._wait(rng.uniform(100, 125), "POST")
            return self._respond(request, 524, b"error code: 524", "text/plain", {"cf-ray": "8f-FRA"})
        if post.outcome == "502":
            self._wait(lasts, "POST")
            return self._respond(request, 502, b"<html>502 Bad Gateway</html>", "text/html")
        self._wait(lasts, "POST")
        if post.outcome.startswith("refused"):
            sent.id_seen = True
            error = {"message": "busy", "type": "new_api_error", "code": "do_request_failed"}
            return self._respond(request, 500, {"error": error}, headers=mark)
        if post.outcome == "error in 200":
            sent.id_seen = True
            error = {"message": "upstream error", "type": "server_error", "code": "server_error"}
            return self._respond(request, 200, {"error": error}, headers=mark)
        if post.outcome == "proxy" and not sent.upstream[-1].billed:
            words = f"litellm.APIError: upstream failed (request id: {sent.upstream[-1].request_id})"
            error = {"message": words, "type": None, "param": None, "code": "500"}
            return self._respond(request, 500, {"error": error}, headers={"x-litellm-call-id": "c-1"})
        if post.outcome == "proxy":
            mark = {"x-litellm-call-id": "c-1"}
        else:
            sent.id_seen = True
        files = [png(f"{sent.upstream[-1].request_id}/{index}") for index in range(sent.job.request.n)]
        sent.images = [hashlib.sha256(file).hexdigest() for file in files]
        body = response_body(files, sent.upstream[-1], usage=post.outcome not in ("no usage",))
        end = len(body)
        if post.outcome == "after headers":
            end = 0
        elif post.outcome == "mid body":
            end = int(len(body) * min(post.cut, 0.99))
        elif post.outcome == "before usage":
            end = body.index(b'"usage"')
        return self._respond(request, 200, Body(self, sent, body, end, rng), headers=mark)

    def _wait(self, seconds: float, what: str, freezable: bool = True) -> None:
        """Let time pass, and stop if SIGTERM arrives."""
        ends = self.gateway.scheduler.now + seconds
        while True:
            left = ends - self.gateway.scheduler.now
            self.gateway.scheduler.sleep(max(0.0, min(left, 30.0)), what, freezable)
            if self.process.terminated is not None:
                raise requests.ConnectionError(ConnectionResetError(104, "cut"))
            if self.gateway.scheduler.now >= ends:
                return

    def _respond(
        self, request: Any, status: int, body: Any, kind: str = "application/json", headers: Any = None
    ) -> requests.Response:
        date = formatdate(EPOCH + self.gateway.scheduler.now + self.gateway.edge_offset, usegmt=True)
        if isinstance(body, dict):
            body = json.dumps(body).encode()
        raw = HTTPResponse(
            body=io.BytesIO(body) if isinstance(body, bytes) else body,
            headers={"Content-Type": kind, "Date": date, **(headers or {})},
            status=status,
            preload_content=False,
        )
        return self.build_response(request, raw)


class Body(io.BytesIO):
    """A response body that arrives in pieces, up to ``end``, where the connection breaks if more was to come."""

    def __init__(self, adapter: Adapter, sent: Sent, body: bytes, end: int, rng: Random) -> None:
        super().__init__(body)
        self._adapter = adapter
        self._sent = sent
        self._end = end
        starts = [match.end() for match in re.finditer(rb'"b64_json": "', body)]
        self._quotes = [body.index(b'"', start) for start in starts]
        self._whole = end >= len(body)
        self._piece = max(40, len(body) // rng.randint(1, 6))

    def read(self, size: int | None = -1, /) -> bytes:
        self._adapter._wait(0.2, "the body")
        left = self._end - self.tell()
        if left <= 0 and not self._whole:
            raise ConnectionResetError(104, "Connection reset by peer")
        length = left if size is None or size < 0 else min(size, left)
        piece = super().read(max(0, min(length, self._piece)))
        count = sum(quote < self.tell() for quote in self._quotes)
        self._sent.arrived = self._sent.images[:count]
        return piece

    read1 = read


def response_body(files: list[bytes], upstream: Upstream, usage: bool) -> bytes:
    document: dict[str, Any] = {
        "created": int(EPOCH + upstream.ended),
        "data": [{"b64_json": base64.b64encode(file).decode()} for file in files],
    }
    if usage:
        document["usage"] = {
            "input_tokens": upstream.prompt_tokens,
            "output_tokens": upstream.output_tokens,
            "total_tokens": upstream.prompt_tokens + upstream.output_tokens,
        }
    return json.dumps(document).encode()


def png(text: str) -> bytes:
    """Return a small PNG image that differs for each ``text``."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 72)
    comment = chunk(b"tEXt", b"Comment\0" + text.encode() + b"." * (zlib.crc32(text.encode()) % 500))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + comment + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )
