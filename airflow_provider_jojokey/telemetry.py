"""Metrics through Airflow's own ``Stats``, and spans through OpenTelemetry, where somebody has switched them on.

Where nobody has, nothing is imported for them and nothing is called. Neither a prompt nor anything that is
different for each run is ever in a name or a tag.
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

LAST_WAIT = 5_000
"""Milliseconds for which the end of a task's process waits for the collector of spans."""

log = logging.getLogger(__name__)

_SWITCHES = ("statsd_on", "otel_on", "statsd_datadog_enabled")
# Airflow drops a metric whose name is longer than 250 characters, and InfluxDB's tags are part of the name.
_TAGS = {"dag_id": 100, "model": 50, "quality": 10, "error": 50, "currency": 3}


class Observer:
    """Receives the events of one job. This one ignores them."""

    def generate(self, hook: JojoKeyHook, job: ImageJob, open_file: OpenFile, **options: Any) -> Generation:
        """Send the one paid request.

        :param options: see :meth:`JojoKeyHook.generate`
        """
        return hook.generate(job.request, open_file, **options)

    def upload(self, bucket: str, key: str, size: int) -> AbstractContextManager[Any]:
        """Return what an upload is wrapped in.

        :param size: in bytes
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
                generation = hook.generate(request, self._announced(open_file, decoding), **options)
                if span is not None:
                    with _harmless():
                        _answered(span, generation)
                return generation
        finally:
            self._in_flight(-1)
            self._took(REQUEST_DURATION, began)

    @contextmanager
    def upload(self, bucket: str, key: str, size: int) -> Iterator[None]:
        began = time.perf_counter()
        attributes = {"aws.s3.bucket": bucket, "aws.s3.key": key, "jojokey.upload.bytes": size}
        with self.span("upload", attributes, client=True):
            yield
        self.count(UPLOAD_BYTES, size)
        self._took(UPLOAD_DURATION, began)

    def stored(self) -> None:
        self.count(IMAGES, 1)

    def reused(self, images: int) -> None:
        self.count(IMAGES_REUSED, images)
        if self._tracer is not None:
            with _harmless():
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
            with _harmless():
                self._stats.incr(name, number, tags=self._tags | more)

    @contextmanager
    def span(self, name: str, attributes: Mapping[str, Any], client: bool = False) -> Iterator[Any]:
        """Wrap something in a span; an error is told by its class, not by its message."""
        if self._tracer is None:
            yield None
            return
        trace = sys.modules["opentelemetry.trace"]
        kind = trace.SpanKind.CLIENT if client else trace.SpanKind.INTERNAL
        span, stack = None, ExitStack()
        with _harmless():
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
                with _harmless():
                    _failed(trace, span, error)
            raise
        finally:
            with _harmless():
                stack.close()

    def _announced(self, open_file: OpenFile, decoding: ExitStack) -> OpenFile:
        """Return ``open_file``, with a span that begins when the first image does."""
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
            with _harmless():
                self._stats.gauge(IN_FLIGHT, change, delta=True, tags=self._tags)

    def _took(self, name: str, began: float) -> None:
        if self._stats is not None:
            with _harmless():
                self._stats.timing(name, 1000 * (time.perf_counter() - began), tags=self._tags)


@contextmanager
def _harmless() -> Iterator[None]:
    """Log an error of a metrics or tracing backend: it must not fail a task that has paid."""
    global _warned
    try:
        yield
    except Exception:
        log.log(logging.DEBUG if _warned else logging.WARNING, "A metric or span is missing.", exc_info=True)
        _warned = True


_warned = False


def _failed(trace: Any, span: Any, error: BaseException) -> None:
    span.set_attribute("error.type", type(error).__name__)
    span.set_status(trace.Status(trace.StatusCode.ERROR))
    for attribute, value in (
        ("http.response.status_code", getattr(error, "status_code", None)),
        ("jojokey.billed", getattr(error, "billed", None)),
    ):
        if value is not None:
            span.set_attribute(attribute, value)


def _answered(span: Any, generation: Generation) -> None:
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
    """Return Airflow's ``Stats`` where ``[metrics]`` sends them anywhere."""
    from airflow.providers.common.compat.sdk import conf

    if not any(conf.getboolean("metrics", switch, fallback=False) for switch in _SWITCHES):
        return None
    from airflow.providers.common.compat.sdk import Stats

    return Stats


def _tracer() -> Any:
    """Return a tracer where OpenTelemetry was set up: by Airflow's ``[traces]``, or by whoever starts the worker."""
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
    """Airflow 3.1 ends a task's process with spans still waiting to be sent; newer ones leave none to this."""
    flush = getattr(provider, "force_flush", None)
    if flush is not None:
        atexit.unregister(flush)  # once is enough, however many orders there are
        atexit.register(flush, LAST_WAIT)


def _tag(name: str, value: Any) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "_", str(value))[: _TAGS[name]]
