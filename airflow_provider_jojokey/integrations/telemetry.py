"""Metrics through Airflow's ``Stats`` and spans through OpenTelemetry, if they are enabled.

If they are disabled, this module imports and calls nothing for them. Names and tags never contain a prompt or a
value that differs for each run.
"""

from __future__ import annotations

import atexit
import logging
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_provider_jojokey.cost import Cost
    from airflow_provider_jojokey.hooks.jojokey import JojoKeyHook
    from airflow_provider_jojokey.img2.client import Generation, OpenFile
    from airflow_provider_jojokey.payments.job import ImageJob

IMAGES = "jojokey.images"
IMAGES_REUSED = "jojokey.images_reused"
INPUT_TOKENS = "jojokey.input_tokens"
OUTPUT_TOKENS = "jojokey.output_tokens"
COST = "jojokey.cost_micros"
"""Millionths of the currency's unit: counters are whole numbers."""
ERRORS = "jojokey.errors"
IN_FLIGHT = "jojokey.in_flight"
REQUEST_DURATION = "jojokey.request_duration"
UPLOAD_BYTES = "jojokey.upload_bytes"
UPLOAD_DURATION = "jojokey.upload_duration"

FLUSH_TIMEOUT = 5_000
"""Milliseconds that a task's process waits at its end for the span collector."""

log = logging.getLogger(__name__)

_SWITCHES = ("statsd_on", "otel_on", "statsd_datadog_enabled")
# Airflow drops metrics with names longer than 250 characters, and InfluxDB's tags are part of the name.
_TAGS = {"dag_id": 100, "model": 50, "quality": 10, "error": 50, "currency": 3}


class Observer:
    """Receives the events of one job. This one ignores them."""

    def generate(self, hook: JojoKeyHook, job: ImageJob, open_file: OpenFile, **options: Any) -> Generation:
        """Send the one paid request.

        :param options: see :meth:`JojoKeyHook.generate`
        """
        return hook.generate(job.request, open_file, **options)

    def upload(self, bucket: str, key: str, size: int) -> AbstractContextManager[Any]:
        """Return a context manager for one upload.

        :param size: size in bytes
        """
        return nullcontext()

    def stored(self) -> None:
        """Record that a paid image was stored."""

    def reused(self, images: int) -> None:
        """Record that paid images were reused."""

    def billed(self, usage: Mapping[str, Any] | None, cost: Cost | None = None) -> None:
        """Record tokens, and what they cost, that are now known to be billed."""


@contextmanager
def observe(job: ImageJob) -> Iterator[Observer]:
    """Observe one job, if metrics or traces are enabled."""
    stats, tracer = _stats(), _tracer()
    if stats is None and tracer is None:
        yield Observer()
        return
    observer = _Observer(job, stats, tracer)
    with observer.span("jojokey", {"jojokey.images.requested": job.request.n}):
        try:
            yield observer
        except Exception as error:
            observer.count(ERRORS, 1, error=type(error).__name__)
            raise


def metrics_of(job: ImageJob) -> Observer:
    """Return an observer that records one job's metrics, but no spans: for a job that has ended."""
    stats = _stats()
    return Observer() if stats is None else _Observer(job, stats, None)


class _Observer(Observer):
    def __init__(self, job: ImageJob, stats: Any, tracer: Any) -> None:
        self._stats = stats
        self._tracer = tracer
        request = job.request
        self._tags = {
            name: _tag(name, value)
            for name, value in (
                ("dag_id", job.owner.dag_id),
                ("model", request.model),
                ("quality", request.quality),
            )
        }

    def generate(self, hook: JojoKeyHook, job: ImageJob, open_file: OpenFile, **options: Any) -> Generation:
        request = job.request
        attributes = {
            "gen_ai.operation.name": "generate_content",
            "gen_ai.output.type": "image",
            "gen_ai.provider.name": "jojokey",
            "gen_ai.request.model": request.model,
            "gen_ai.request.choice.count": request.n,
            "gen_ai.request.stream": bool(request.stream),
            "jojokey.request.size": request.size,
            "jojokey.request.quality": request.quality,
        }
        began = time.perf_counter()
        self._in_flight(+1)
        try:
            with (
                self.span(f"generate_content {request.model}", attributes, client=True) as span,
                ExitStack() as decoding,
            ):
                generation = hook.generate(request, self._with_decode_span(open_file, decoding), **options)
                if span is not None:
                    with _log_errors():
                        _set_response(span, generation)
                return generation
        finally:
            self._in_flight(-1)
            self._record_duration(REQUEST_DURATION, began)

    @contextmanager
    def upload(self, bucket: str, key: str, size: int) -> Iterator[None]:
        began = time.perf_counter()
        attributes = {"aws.s3.bucket": bucket, "aws.s3.key": key, "jojokey.upload.bytes": size}
        with self.span("upload", attributes, client=True):
            yield
        self.count(UPLOAD_BYTES, size)
        self._record_duration(UPLOAD_DURATION, began)

    def stored(self) -> None:
        self.count(IMAGES, 1)

    def reused(self, images: int) -> None:
        self.count(IMAGES_REUSED, images)
        if self._tracer is not None:
            with _log_errors():
                sys.modules["opentelemetry.trace"].get_current_span().set_attribute(
                    "jojokey.images.reused", images
                )

    def billed(self, usage: Mapping[str, Any] | None, cost: Cost | None = None) -> None:
        if cost is not None:
            self.count(COST, round(cost.nanos / 1000), currency=cost.currency)
        for name, key in ((INPUT_TOKENS, "input_tokens"), (OUTPUT_TOKENS, "output_tokens")):
            if tokens := (usage or {}).get(key):
                self.count(name, tokens)

    def count(self, name: str, number: int, **tags: str) -> None:
        """Add to a counter."""
        if self._stats is not None:
            more = {tag: _tag(tag, value) for tag, value in tags.items()}
            with _log_errors():
                self._stats.incr(name, number, tags=self._tags | more)

    @contextmanager
    def span(self, name: str, attributes: Mapping[str, Any], client: bool = False) -> Iterator[Any]:
        """Run the block in a span, which records the class of an error but not its message."""
        if self._tracer is None:
            yield None
            return
        trace = sys.modules["opentelemetry.trace"]
        kind = trace.SpanKind.CLIENT if client else trace.SpanKind.INTERNAL
        span, stack = None, ExitStack()
        with _log_errors():
            span = stack.enter_context(
                self._tracer.start_as_current_span(
                    name,
                    kind=kind,
                    attributes=dict(attributes),
                    record_exception=False,
                    set_status_on_exception=False,
                )
            )
        try:
            yield span
        except BaseException as error:
            if span is not None:
                with _log_errors():
                    _set_error(trace, span, error)
            raise
        finally:
            with _log_errors():
                stack.close()

    def _with_decode_span(self, open_file: OpenFile, decoding: ExitStack) -> OpenFile:
        """Return an ``open_file`` that starts a span when the first image begins to arrive."""
        if self._tracer is None:
            return open_file
        begun = False

        def opened(index: int) -> Any:
            nonlocal begun
            if not begun:
                begun = True
                decoding.enter_context(self.span("decode", {}))
            return open_file(index)

        return opened

    def _in_flight(self, change: int) -> None:
        if self._stats is not None:
            with _log_errors():
                self._stats.gauge(IN_FLIGHT, change, delta=True, tags=self._tags)

    def _record_duration(self, name: str, began: float) -> None:
        if self._stats is not None:
            with _log_errors():
                self._stats.timing(name, 1000 * (time.perf_counter() - began), tags=self._tags)


@contextmanager
def _log_errors() -> Iterator[None]:
    """Log errors of a metrics or tracing backend, which must not fail a task that has paid."""
    global _warned
    try:
        yield
    except Exception:
        level = logging.DEBUG if _warned else logging.WARNING
        log.log(level, "Could not record a metric or span.", exc_info=True)
        _warned = True


_warned = False


def _set_error(trace: Any, span: Any, error: BaseException) -> None:
    span.set_attribute("error.type", type(error).__name__)
    span.set_status(trace.Status(trace.StatusCode.ERROR))
    for attribute, value in (
        ("http.response.status_code", getattr(error, "status_code", None)),
        ("jojokey.billed", getattr(error, "billed", None)),
    ):
        if value is not None:
            span.set_attribute(attribute, value)


def _set_response(span: Any, generation: Generation) -> None:
    usage = generation.usage or {}
    for name, value in (
        ("gen_ai.response.model", generation.model),
        ("gen_ai.response.id", generation.request_id),
        ("gen_ai.usage.input_tokens", usage.get("input_tokens")),
        ("gen_ai.usage.output_tokens", usage.get("output_tokens")),
    ):
        if value is not None:
            span.set_attribute(name, value)


def _stats() -> Any:
    """Return Airflow's ``Stats`` if ``[metrics]`` enables a backend."""
    from airflow.providers.common.compat.sdk import conf

    if not any(conf.getboolean("metrics", switch, fallback=False) for switch in _SWITCHES):
        return None
    from airflow.providers.common.compat.sdk import Stats

    return Stats


def _tracer() -> Any:
    """Return a tracer if OpenTelemetry is set up, by Airflow's ``[traces]`` or by the worker's environment."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return None
    provider = trace.get_tracer_provider()
    if isinstance(provider, (trace.ProxyTracerProvider, trace.NoOpTracerProvider)):
        return None
    _flush_at_exit(provider)
    from airflow_provider_jojokey import __version__

    return trace.get_tracer("airflow_provider_jojokey", __version__)


def _flush_at_exit(provider: Any) -> None:
    """Flush spans when the process ends. Airflow 3.1 does not do that; for newer versions it has no effect."""
    flush = getattr(provider, "force_flush", None)
    if flush is not None:
        atexit.unregister(flush)  # register once, even if there are many jobs
        atexit.register(flush, FLUSH_TIMEOUT)


def _tag(name: str, value: Any) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "_", str(value))[: _TAGS[name]]
