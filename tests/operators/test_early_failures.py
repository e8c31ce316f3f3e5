"""A try that fails before it sends anything reports what earlier tries were billed."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_provider_jojokey.cost import Costs
from airflow_provider_jojokey.decorators.jojokey import JojoKeyImageDecoratedOperator
from airflow_provider_jojokey.exceptions import JojoKeyError
from airflow_provider_jojokey.operators.jojokey import GenerateImageBatchOperator, GenerateImageOperator
from airflow_provider_jojokey.payments import errors, totals
from airflow_provider_jojokey.results import XCOM_KEY, Result
from tests.support.campaigns import posters
from tests.support.fault_proxy import FaultProxy, answer, error, on

FOX = {"prompt": "a fox", "s3_key": "fox.png"}
NOTHING = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}


def task_instance(pushed: dict[str, Any], try_number: int) -> Any:
    return SimpleNamespace(
        dag_id="dag", run_id="monday", task_id="task", map_index=-1, try_number=try_number, id=f"ti-{try_number}",
        xcom_push=pushed.__setitem__,
    )  # fmt: skip


def run(arguments: dict[str, Any], try_number: int) -> tuple[dict[str, Any], str]:
    """Run a try, and return its XComs and its error."""
    pushed: dict[str, Any] = {}
    kind: Any = GenerateImageBatchOperator if "requests" in arguments else GenerateImageOperator
    failure = ""
    try:
        kind(task_id="task", s3_bucket="posters", **arguments).execute(
            {"ti": task_instance(pushed, try_number)}
        )
    except JojoKeyError as caught:
        failure = str(caught)
    return pushed, failure


def without_token(s3: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    connection = json.loads(os.environ["AIRFLOW_CONN_JOJOKEY_DEFAULT"])
    monkeypatch.setenv("AIRFLOW_CONN_JOJOKEY_DEFAULT", json.dumps({**connection, "password": ""}))
    return {}


def with_wrong_size(s3: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    return {"size": "{{ wrong }}"}


def with_wrong_limit(s3: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    return {"max_tokens": "{{ wrong }}"}


def with_locked_manifest(s3: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    s3.faults = [on("PUT", "/batches/", answer(error(403, "AccessDenied")))]
    return {}


def with_invalid_item(s3: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    return {"requests": [*posters(3), {"prompt": "", "s3_key": "new.png"}]}


def with_repeated_item(s3: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    return {"requests": [*posters(3), *posters(3)]}


Change = Callable[[FaultProxy, pytest.MonkeyPatch], dict[str, Any]]


@pytest.mark.parametrize(
    ("arguments", "change"),
    [
        *[(FOX, change) for change in (without_token, with_wrong_size, with_wrong_limit)],
        *[
            ({"requests": posters(3)}, change)
            for change in (
                without_token, with_wrong_size, with_wrong_limit, with_locked_manifest, with_invalid_item,
                with_repeated_item,
            )
        ],
    ],
)  # fmt: skip
def test_early_failure_reports_earlier_bill(
    gateway: Any, s3: FaultProxy, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], change: Change
) -> None:
    first, failure = run(arguments, 1)
    assert not failure

    pushed, failure = run({**arguments, **change(s3, monkeypatch)}, 2)

    assert failure
    billed = sum(charge.total_tokens for charge in gateway.charges)
    assert pushed["usage"]["total_tokens"] == first["usage"]["total_tokens"] == billed > 0
    result = Result.from_xcom(pushed[XCOM_KEY])
    assert result is not None
    assert (result.state, result.paid, result.usage) == ("failed", "yes", pushed["usage"])
    assert str(result.cost) == str(Costs.from_json(first[XCOM_KEY]["cost"]))


def returns_nothing() -> None:
    return None


def raises() -> None:
    raise KeyError("animal")


@pytest.mark.parametrize("second", [returns_nothing, raises])
@pytest.mark.parametrize("key", ["in the decorator", "returned"])
def test_failing_function_reports_earlier_bill(
    gateway: Any, s3: FaultProxy, key: str, second: Callable[[], None]
) -> None:
    arguments = {} if key == "returned" else {"s3_key": "fox.png"}

    def call(function: Callable[[], Any], try_number: int) -> dict[str, Any]:
        pushed: dict[str, Any] = {}
        task = JojoKeyImageDecoratedOperator(
            task_id="task", s3_bucket="posters", python_callable=function, **arguments
        )
        with contextlib.suppress(JojoKeyError, KeyError):
            task.execute({"ti": task_instance(pushed, try_number)})
        return pushed

    nothing = call(second, 1)
    first = call(lambda: FOX, 1)
    pushed = call(second, 2)

    assert nothing["usage"] == NOTHING
    result = Result.from_xcom(pushed[XCOM_KEY])
    assert result is not None
    assert result.state == "failed"
    if key == "returned":  # no receipt was found, which proves nothing
        assert (result.paid, result.tokens) == ("unknown", None)
        assert "usage" not in pushed
    else:
        assert (result.paid, result.usage) == ("yes", first["usage"])


@pytest.mark.parametrize("arguments", [FOX, {"requests": posters(3)}])
@pytest.mark.parametrize("change", [without_token, with_wrong_size, with_wrong_limit])
def test_first_try_that_fails_early_reports_zero(
    gateway: Any, s3: FaultProxy, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], change: Change
) -> None:
    pushed, failure = run({**arguments, **change(s3, monkeypatch)}, 1)

    assert failure
    assert pushed["usage"] == NOTHING
    result = Result.from_xcom(pushed[XCOM_KEY])
    assert result is not None
    assert (result.state, result.paid) == ("failed", "no")


@pytest.mark.parametrize("arguments", [FOX, {"requests": posters(3)}])
@pytest.mark.parametrize("change", [without_token, with_wrong_size])
def test_bill_that_cannot_be_read_is_not_reported_as_zero(
    gateway: Any, s3: FaultProxy, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], change: Change
) -> None:
    run(arguments, 1)
    changed = change(s3, monkeypatch)
    s3.faults = [answer(error(403, "AccessDenied"))]

    pushed, failure = run({**arguments, **changed}, 2)

    assert failure
    assert "usage" not in pushed
    result = Result.from_xcom(pushed[XCOM_KEY])
    assert result is not None
    assert (result.paid, result.usage, result.cost) == ("unknown", {}, None)


@pytest.mark.parametrize(
    "arguments", [{**FOX, "s3_key": "{{ }}/"}, {"requests": [*posters(2), {"prompt": "x"}]}]
)
def test_bill_of_invalid_destination_is_unknown(
    gateway: Any, s3: FaultProxy, arguments: dict[str, Any]
) -> None:
    pushed, failure = run(arguments, 2)

    assert failure
    assert "usage" not in pushed
    assert pushed[XCOM_KEY]["billed"] == "unknown"


def test_event_without_result_does_not_report_zero(gateway: Any, s3: FaultProxy) -> None:
    s3.faults = [answer(error(403, "AccessDenied"))]
    pushed: dict[str, Any] = {}
    operator = GenerateImageOperator(task_id="task", s3_bucket="posters", **FOX)

    with pytest.raises(JojoKeyError):
        operator.execute_complete({"ti": task_instance(pushed, 1)}, {})

    assert "usage" not in pushed
    assert pushed[XCOM_KEY]["billed"] == "unknown"


def test_trigger_that_ran_twice_reports_the_first_bill(gateway: Any, s3: FaultProxy) -> None:
    """Both runs belong to the first try of the task."""
    first, _ = run(FOX, 1)
    pushed: dict[str, Any] = {}
    operator = GenerateImageOperator(task_id="task", s3_bucket="posters", **FOX)

    with pytest.raises(JojoKeyError):
        operator.execute_complete({"ti": task_instance(pushed, 1)}, {"error": errors.stopped().to_json()})

    assert pushed["usage"] == first["usage"] != NOTHING


FAILED = {"error": "Trigger failure", "traceback": ["ModuleNotFoundError: No module named 'provider'"]}
"""What Airflow passes to a task whose trigger failed, or could not be loaded by the triggerer."""


def resume(operator: Any) -> tuple[dict[str, Any], str]:
    """Resume a deferred task whose trigger failed, and return its XComs and its error."""
    pushed: dict[str, Any] = {}
    with pytest.raises(JojoKeyError) as caught:
        operator.resume_execution("__fail__", FAILED, {"ti": task_instance(pushed, 1)})
    return pushed, str(caught.value)


def test_task_whose_trigger_failed_reports_its_bill(gateway: Any, s3: FaultProxy) -> None:
    first, _ = run(FOX, 1)

    pushed, failure = resume(GenerateImageOperator(task_id="task", s3_bucket="posters", **FOX))

    assert pushed["usage"] == first["usage"] != NOTHING
    assert (pushed[XCOM_KEY]["state"], pushed[XCOM_KEY]["billed"]) == ("failed", "unknown")
    assert "Trigger failure" in failure
    assert "You may have been charged." in failure


@pytest.mark.parametrize("key", ["in the decorator", "returned"])
def test_failed_trigger_of_a_function_is_not_free(gateway: Any, s3: FaultProxy, key: str) -> None:
    """The function is not called again, so the key that it returned is not known."""
    run(FOX, 1)
    arguments = {} if key == "returned" else {"s3_key": "fox.png"}

    pushed, _ = resume(
        JojoKeyImageDecoratedOperator(
            task_id="task", s3_bucket="posters", python_callable=lambda: FOX, **arguments
        )
    )

    assert pushed[XCOM_KEY]["billed"] == "unknown"
    assert pushed[XCOM_KEY]["prompt"] == ""
    assert ("usage" in pushed) == (key != "returned")


def test_error_of_a_resumed_task_is_not_a_failed_trigger(gateway: Any, s3: FaultProxy) -> None:
    pushed: dict[str, Any] = {}
    operator = GenerateImageOperator(task_id="task", s3_bucket="posters", **FOX)
    event = {"error": errors.stopped().to_json()}

    with pytest.raises(JojoKeyError, match="Airflow stopped the task"):
        operator.resume_execution("execute_complete", {"event": event}, {"ti": task_instance(pushed, 1)})


@pytest.mark.parametrize("change", [without_token, with_wrong_size])
@pytest.mark.parametrize(
    "arguments",
    [
        {**FOX, "prompt": "a fox [sandbox: reset times=1]"},
        {"requests": [{**FOX, "prompt": "a fox [sandbox: reset times=1]"}]},
    ],
)
def test_early_failure_after_unknown_outcome_is_not_free(
    gateway: Any, s3: FaultProxy, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], change: Change
) -> None:
    first, failure = run(arguments, 1)
    assert first[XCOM_KEY]["billed"] == "unknown", failure

    pushed, failure = run({**arguments, **change(s3, monkeypatch)}, 2)

    assert failure
    assert pushed["usage"] == NOTHING
    assert pushed[XCOM_KEY]["billed"] == "unknown"


def test_error_before_deferral_is_reported(gateway: Any, s3: FaultProxy) -> None:
    """S3 needs both parameters of a lock, which is known when the task has both its own and the settings'."""
    pushed, failure = run({**FOX, "deferrable": True, "s3_extra_args": {"ObjectLockMode": "GOVERNANCE"}}, 1)

    assert "needs both" in failure
    assert pushed["usage"] == NOTHING
    assert (pushed[XCOM_KEY]["state"], pushed[XCOM_KEY]["billed"]) == ("failed", "no")


def test_time_limit_of_reading_is_for_all_readers() -> None:
    """Each reader would otherwise have the whole time after the one before it."""
    end = threading.Event()

    def read(number: int) -> int:
        end.wait(0.3 * number)
        return number

    with pytest.raises(queue.Empty):
        totals._add_up(iter(range(1, 9)), read, 0, 8, lambda: False, within=0.5)
    end.set()


CASE = "[sandbox: not_an_image]"
FAILS = "[9000][ti.try_number - 1]"
"""A part of a template that can be rendered in the first try only."""
ITEM = f"dict(prompt='a fox {CASE}', s3_key='fox.png')"
PROMPT = f"""'{{{{ "a fox {CASE}" if {FAILS} }}}}'"""


@pytest.mark.parametrize(
    ("kind", "arguments", "known"),
    [
        ("GenerateImageOperator", f"prompt={PROMPT}, s3_key='{{{{ ds or 7 }}}}/fox.png'", True),
        (
            "GenerateImageOperator",
            f"prompt='a fox {CASE}', s3_key='fox.png', n='{{{{ {FAILS} and 1 }}}}'",
            True,
        ),
        ("GenerateImageOperator", f"prompt='a fox {CASE}', s3_key='{{{{ {FAILS} }}}}.png'", False),
        ("GenerateImageBatchOperator", f"requests=[dict(prompt={PROMPT}, s3_key='fox.png')]", False),
        ("GenerateImageBatchOperator", f"requests=[{ITEM}], max_tokens='{{{{ {FAILS} }}}}'", True),
    ],
    ids=["prompt", "other argument", "key", "item", "argument of a batch"],
)
def test_template_that_fails_in_a_retry_reports_earlier_bill(
    airflow: Any, gateway: Any, store: Any, kind: str, arguments: str, known: bool
) -> None:
    """The first try is billed. Airflow deletes its XComs, and then a template can't be rendered any more."""
    run = airflow.run(
        "unrendered",
        f"""
        from airflow_provider_jojokey.operators.jojokey import {kind}
        {kind}(task_id="image", {arguments}, s3_bucket="posters", retries=1, retry_delay=timedelta(0),
            on_unknown_outcome="regenerate")
        """,
    )

    (charge,) = gateway.charges
    assert (run.states["image", -1], run.tries["image", -1]) == ("failed", 2)
    result = Result.from_xcom(run.xcom(XCOM_KEY))
    assert result is not None
    assert (result.state, result.error) == ("failed", "UndefinedError")
    assert result.paid == ("yes" if known else "unknown")
    usage = run.xcom("usage")
    assert (usage or {}).get("total_tokens") == (charge.total_tokens if known else None)
    assert result.tokens == (charge.total_tokens if known else None)


def test_template_that_fails_in_the_first_try_costs_nothing(airflow: Any, gateway: Any, store: Any) -> None:
    run = airflow.run(
        "unrendered",
        """
        GenerateImageOperator(task_id="image", prompt="{{ [][0].x }}", s3_key="fox.png", s3_bucket="posters")
        """,
    )

    assert run.states["image", -1] == "failed"
    assert (run.xcom(XCOM_KEY)["billed"], run.xcom("usage")["total_tokens"]) == ("no", 0)
    assert gateway.requests == ()
