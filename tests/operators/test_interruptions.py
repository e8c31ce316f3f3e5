"""A task with one image that a timeout or an unexpected error interrupts reports what it may have cost."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowTaskTimeout

from airflow_provider_jojokey.operators.jojokey import GenerateImageOperator
from airflow_provider_jojokey.results import XCOM_KEY, Result
from tests.support.alarms import alarm_when, wait_until_reading

INTERRUPTIONS = [AirflowTaskTimeout, KeyboardInterrupt, SystemExit, RuntimeError]


@contextmanager
def raised_in_request(error: type[BaseException], gateway: Any) -> Iterator[None]:
    """Raise an error in the main thread while it waits for a response, as Airflow's timeouts do."""

    def interrupt(*_: object) -> None:
        raise error("interrupted")

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with alarm_when(lambda: wait_until_reading(gateway)):
            yield
    finally:
        signal.signal(signal.SIGALRM, before)


def execute(pushed: dict[str, Any], try_number: int = 1) -> None:
    ti = SimpleNamespace(
        dag_id="dag", run_id="monday", task_id="task", map_index=-1, try_number=try_number, id=f"ti-{try_number}",
        xcom_push=pushed.__setitem__,
    )  # fmt: skip
    GenerateImageOperator(task_id="task", s3_bucket="posters", prompt="a fox", s3_key="fox.png").execute(
        {"ti": ti}
    )  # type: ignore[typeddict-item]


@pytest.mark.parametrize("error", INTERRUPTIONS)
def test_interrupted_request_may_have_been_billed(
    gateway: Any, store: Any, error: type[BaseException]
) -> None:
    gateway.behave("hang")
    pushed: dict[str, Any] = {}

    with pytest.raises(error), raised_in_request(error, gateway):
        execute(pushed)

    result = Result.from_xcom(pushed[XCOM_KEY])
    assert result is not None
    assert (result.state, result.paid, result.error) == ("failed", "unknown", error.__name__)
    assert (result.prompt, result.size) == ("a fox", "1024x1024")
    assert result.cost is not None
    assert result.cost.unknown == 1
    assert pushed["usage"]["total_tokens"] == 0  # like all requests whose outcome is unknown


def fail_before_sending(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(self: GenerateImageOperator) -> None:
        raise error

    monkeypatch.setattr(GenerateImageOperator, "_create_clients", fail)


@pytest.mark.parametrize("error", INTERRUPTIONS)
def test_interruption_before_sending_is_not_billed(
    gateway: Any, store: Any, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    fail_before_sending(monkeypatch, error("interrupted"))
    pushed: dict[str, Any] = {}

    with pytest.raises(error):
        execute(pushed)

    assert (pushed[XCOM_KEY]["billed"], pushed["usage"]["total_tokens"]) == ("no", 0)


def test_interruption_after_payment_reports_tokens(
    gateway: Any, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: GenerateImageOperator, context: Any, manifest: Any) -> None:
        raise AirflowTaskTimeout("interrupted")

    monkeypatch.setattr(GenerateImageOperator, "_succeeded", fail)
    pushed: dict[str, Any] = {}

    with pytest.raises(AirflowTaskTimeout):
        execute(pushed)

    (charge,) = gateway.charges
    assert pushed["usage"]["total_tokens"] == charge.total_tokens
    assert pushed[XCOM_KEY]["usage"] == pushed["usage"]


def test_timeout_in_airflow_reports_possible_charge(airflow: Any, gateway: Any, store: Any) -> None:
    gateway.behave("hang")
    with alarm_when(lambda: wait_until_reading(gateway)):
        run = airflow.run(
            "late",
            """
            GenerateImageOperator(task_id="image", prompt="a fox", s3_bucket="posters", s3_key="late.png",
                execution_timeout=timedelta(hours=1))
            """,
        )

    assert run.states["image", -1] == "failed"
    assert run.xcom(XCOM_KEY)["billed"] == "unknown"
    assert run.xcom("usage")["total_tokens"] == 0


def test_text_of_other_errors_is_stored_without_secrets(
    gateway: Any, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "failed: https://s3.example/x?X-Amz-Signature=abcdef sk-0123456789abcdef"
    fail_before_sending(monkeypatch, RuntimeError(text))
    pushed: dict[str, Any] = {}

    with pytest.raises(RuntimeError):
        execute(pushed)

    assert pushed[XCOM_KEY]["message"] == "failed: https://s3.example/x sk-…"
