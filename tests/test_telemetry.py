"""A metrics or tracing backend that fails must not fail a task that has paid."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry import trace  # noqa: F401  (the observer takes it from sys.modules)

from airflow_provider_jojokey.cost import Cost
from airflow_provider_jojokey.img2.request import ImageRequest
from airflow_provider_jojokey.integrations.telemetry import _Observer
from airflow_provider_jojokey.payments.attempt import Owner
from airflow_provider_jojokey.payments.job import ImageJob
from airflow_provider_jojokey.store.keys import Destination


class Broken:
    """Raises an error on every call."""

    def __getattr__(self, name: str) -> Any:
        raise ConnectionError(name)


class BrokenAtEnd:
    """A tracer whose spans can't be ended."""

    def start_as_current_span(self, *_: Any, **__: Any) -> Any:
        return self

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: Any) -> None:
        raise ConnectionError("exit")

    def __getattr__(self, name: str) -> Any:
        raise ConnectionError(name)


@pytest.mark.parametrize("tracer", [None, Broken(), BrokenAtEnd()], ids=["none", "broken", "broken at end"])
def test_failing_backends_are_only_logged(tracer: Any) -> None:
    job = ImageJob(ImageRequest("a fox"), Destination("posters", "fox.png"), Owner("dag", "run", "image"))
    observer = _Observer(job, Broken(), tracer)

    class Hook:
        def generate(self, *_: Any, **__: Any) -> Any:
            return type("Generation", (), {"usage": None, "model": "m", "request_id": "r"})()

    assert observer.generate(Hook(), job, lambda _: None) is not None  # type: ignore[arg-type, return-value]
    with observer.upload("posters", "fox.png", 7):
        pass
    observer.stored()
    observer.reused(1)
    observer.billed({"input_tokens": 1, "output_tokens": 2}, Cost(5_930_000, "USD"))


def test_error_inside_a_broken_span_is_kept() -> None:
    job = ImageJob(ImageRequest("a fox"), Destination("posters", "fox.png"), Owner("dag", "run", "image"))
    observer = _Observer(job, None, BrokenAtEnd())

    with pytest.raises(ValueError, match="the cause"), observer.span("upload", {}):
        raise ValueError("the cause")
