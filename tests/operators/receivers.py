"""Receivers of metrics and traces: a StatsD server and an OpenTelemetry collector on loopback."""

from __future__ import annotations

import gzip
import socket
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

END = b"end"


@dataclass(frozen=True)
class Sample:
    """One line of StatsD, with InfluxDB's tags."""

    name: str
    value: str
    kind: str
    tags: dict[str, str]


class StatsD:
    """Records UDP packets until :meth:`samples` is called."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._lines: list[str] = []
        self._thread = threading.Thread(target=self._receive, daemon=True)
        self._thread.start()

    def samples(self) -> list[Sample]:
        """Return all samples received so far, and stop."""
        self._socket.sendto(
            END, ("127.0.0.1", self.port)
        )  # after all other packets: loopback keeps the order
        self._thread.join(30)
        self._socket.close()
        return [_sample(line) for line in self._lines]

    def _receive(self) -> None:
        while (data := self._socket.recv(65536)) != END:
            self._lines += data.decode().splitlines()


def _sample(line: str) -> Sample:
    name, _, rest = line.rpartition(":")
    value, kind = rest.split("|")[:2]
    name, *tags = name.split(",")
    return Sample(name, value, kind, dict(tag.split("=", 1) for tag in tags))


@dataclass
class Span:
    name: str
    id: bytes
    parent: bytes
    trace: bytes
    attributes: dict[str, Any]
    error: bool


@dataclass
class Collector:
    """Receives OTLP over HTTP."""

    spans: list[Span] = field(default_factory=list)
    metrics: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))

    def __enter__(self) -> Collector:
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                if self.path == "/v1/traces":
                    collector._add_traces(body)
                elif self.path == "/v1/metrics":
                    collector._add_metrics(body)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _add_traces(self, body: bytes) -> None:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            for scope in resource.scope_spans:
                self.spans += [
                    Span(
                        span.name,
                        span.span_id,
                        span.parent_span_id,
                        span.trace_id,
                        _attributes(span),
                        span.status.code == 2,
                    )
                    for span in scope.spans
                ]

    def _add_metrics(self, body: bytes) -> None:
        from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

        for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    data = getattr(metric, metric.WhichOneof("data"))
                    for point in data.data_points:
                        value = point.sum if hasattr(point, "count") else (point.as_int or point.as_double)
                        self.metrics[metric.name].append({"value": value, "tags": _attributes(point)})


def _attributes(source: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in source.attributes}
