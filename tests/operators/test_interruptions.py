"""A task with one image that a timeout or an unexpected error interrupts reports what it may have cost."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowTaskTimeout, TaskDeferred

from airflow_provider_jojokey.exceptions import JojoKeyError, JojoKeyStoreError
from airflow_provider_jojokey.operators.jojokey import GenerateImageBatchOperator, GenerateImageOperator
from airflow_provider_jojokey.results import XCOM_KEY, Result
from tests.support.alarms import alarm_when, wait_until_in, wait_until_reading
from tests.support.fault_proxy import FaultProxy, Forward, Request, Response, on
from tests.support.patience import PATIENCE

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


# --- while a failure or a result is reported -------------------------------------------------------------------------


def operator() -> GenerateImageOperator:
    return GenerateImageOperator(
        task_id="task", s3_bucket="posters", prompt="a fox", s3_key="fox.png", deferrable=True
    )


def context_of(pushed: dict[str, Any], push: Any = None) -> Any:
    return {
        "ti": SimpleNamespace(
            dag_id="dag", run_id="monday", task_id="task", map_index=-1, try_number=1, id="ti-1",
            xcom_push=push or pushed.__setitem__,
        )
    }  # fmt: skip


def trigger_event(pushed: dict[str, Any]) -> dict[str, Any]:
    """Defer the task, and return the event of its trigger."""
    with pytest.raises(TaskDeferred) as deferred:
        operator().execute(context_of(pushed))

    async def run() -> Any:
        return [event async for event in deferred.value.trigger.run()]

    (event,) = asyncio.run(run())
    return dict(event.payload)


@pytest.mark.parametrize("key", ["keys", "usage", XCOM_KEY])
def test_interrupted_report_of_a_trigger_is_completed(gateway: Any, store: Any, key: str) -> None:
    """The timeout comes while the resumed task pushes an XCom."""
    pushed: dict[str, Any] = {}
    event = trigger_event(pushed)
    interruptions = [AirflowTaskTimeout("interrupted")]

    def push(name: str, value: Any) -> None:
        if name == key and interruptions:
            raise interruptions.pop()
        pushed[name] = value

    with pytest.raises(AirflowTaskTimeout):
        operator().execute_complete(context_of(pushed, push), event)

    (charge,) = gateway.charges
    assert pushed["usage"]["total_tokens"] == charge.total_tokens
    assert pushed[XCOM_KEY]["usage"] == pushed["usage"]
    assert pushed[XCOM_KEY]["state"] == "failed"


def single(context: Any, error: JojoKeyError) -> Any:
    return operator().execute(context)


def resumed(context: Any, error: JojoKeyError) -> Any:
    return operator().execute_complete(context, {"error": error.to_json()})


def batch(context: Any, error: JojoKeyError) -> Any:
    requests = [{"prompt": "a fox", "s3_key": "fox.png"}]
    context["ti"].try_number = 2
    return GenerateImageBatchOperator(task_id="task", s3_bucket="posters", requests=requests).execute(context)


@pytest.mark.parametrize("run", [single, resumed, batch])
@pytest.mark.parametrize("billed", ["no", "unknown", "yes"])
def test_interrupted_read_of_the_receipts_leaves_a_report(
    gateway: Any, store: Any, monkeypatch: pytest.MonkeyPatch, run: Any, billed: Any
) -> None:
    """S3 hangs while the task reads what it was billed, until its timeout."""
    error = JojoKeyStoreError("It failed.", billed=billed, sent=True)
    pushed: dict[str, Any] = {}
    hangs, asked = threading.Event(), threading.Event()

    def hang(request: Request, forward: Forward) -> Response:
        asked.set()
        hangs.wait(PATIENCE)
        return forward(request)

    def wait() -> None:
        assert asked.wait(PATIENCE)
        wait_until_in("_add_up")

    def fail(*_: object) -> Any:
        raise error

    def interrupt(*_: object) -> None:
        raise AirflowTaskTimeout("interrupted")

    monkeypatch.setattr(GenerateImageOperator, "_job", fail)
    monkeypatch.setattr(GenerateImageBatchOperator, "_plan", fail)
    before = signal.signal(signal.SIGALRM, interrupt)
    with FaultProxy(store.connection["extra"]["endpoint_url"], on("GET", "_jojokey", hang)) as front:
        extra = {**store.connection["extra"], "endpoint_url": front.url}
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps({**store.connection, "extra": extra}))
        try:
            with pytest.raises(AirflowTaskTimeout), alarm_when(wait):
                run(context_of(pushed), error)
        finally:
            signal.signal(signal.SIGALRM, before)
            hangs.set()

    result = Result.from_xcom(pushed[XCOM_KEY])
    assert result is not None
    assert (result.state, result.error) == ("failed", "JojoKeyStoreError")
    assert result.paid == ("yes" if billed == "yes" and run is not batch else "unknown")
    assert "usage" not in pushed
