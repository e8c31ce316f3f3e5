"""The retry policy, alone and on operators, for Airflow 3.3 and later."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from airflow.sdk import DAG

from airflow_provider_jojokey import exceptions as kinds
from airflow_provider_jojokey.exceptions import JojoKeyError, JojoKeyFailure
from airflow_provider_jojokey.operators.jojokey import GenerateImageOperator
from airflow_provider_jojokey.policies import AVAILABLE, MARGIN, JojoKeyRetryPolicy

needs_policies = pytest.mark.skipif(not AVAILABLE, reason="this Airflow has no retry policies")

CLASSES = [item for item in vars(kinds).values() if isinstance(item, type) and issubclass(item, JojoKeyError)]
FAILURES = [cls for cls in CLASSES if issubclass(cls, JojoKeyFailure)]
TRANSIENT = [
    kinds.JojoKeyError,
    kinds.JojoKeyRateLimitError,
    kinds.JojoKeyNoChannelError,
    kinds.JojoKeyOverloadedError,
    kinds.JojoKeyUnreachableError,
    kinds.JojoKeyUnknownOutcomeError,
    kinds.JojoKeyStoreError,
    kinds.JojoKeyBatchError,
]
# Airflow never asks a policy about an AirflowFailException.
FINAL = [kinds.JojoKeyAlreadyBilledError, kinds.JojoKeyBatchFailure]


def decide(error: BaseException, task: Any = None) -> tuple[str, timedelta | None, str | None]:
    decision = JojoKeyRetryPolicy().evaluate(error, 1, 3, None if task is None else {"task": task})
    return decision.action.value, decision.retry_delay, decision.reason


@needs_policies
@pytest.mark.parametrize("kind", FAILURES)
def test_permanent_failure_ignores_retry_after(kind: type[JojoKeyError]) -> None:
    assert decide(kind("no", retry_after=30)) == ("fail", None, kind.retry)


@needs_policies
@pytest.mark.parametrize("kind", TRANSIENT)
def test_retry_waits_for_retry_after(kind: type[JojoKeyError]) -> None:
    action, delay, reason = decide(kind("later", retry_after=30))
    assert (action, delay) == ("retry", timedelta(seconds=30 + MARGIN))
    assert "35 s" in str(reason)


@needs_policies
@pytest.mark.parametrize("kind", TRANSIENT)
def test_airflows_delay_applies_without_retry_after(kind: type[JojoKeyError]) -> None:
    assert decide(kind("later")) == ("default", None, None)


@needs_policies
def test_zero_retry_after_is_respected() -> None:
    assert decide(kinds.JojoKeyUnknownOutcomeError("lost", retry_after=0.0))[:2] == (
        "retry",
        timedelta(seconds=MARGIN),
    )


WEEK = 7 * 86_400.0


@needs_policies
def test_delay_of_the_gateway_is_limited_by_the_task() -> None:
    error = kinds.JojoKeyRateLimitError("x", retry_after=WEEK)
    for limit in (timedelta(minutes=2), 120.0):
        with dag():
            task = GenerateImageOperator(**IMAGE, max_retry_delay=limit)
        for given in (task, _unmapped(dag(), max_retry_delay=limit)):
            action, delay, reason = decide(error, given)
            assert (action, delay) == ("retry", timedelta(minutes=2))
            assert "waiting 120 s: the gateway requested 604800 s, which is longer than" in str(reason)
            short = decide(kinds.JojoKeyRateLimitError("x", retry_after=30), given)
            assert short[1] == timedelta(seconds=30 + MARGIN)


@needs_policies
def test_delay_of_the_gateway_is_limited_by_airflow(monkeypatch: pytest.MonkeyPatch) -> None:
    with dag():
        task = GenerateImageOperator(**IMAGE)
    error = kinds.JojoKeyRateLimitError("x", retry_after=WEEK)
    assert decide(error)[1] == decide(error, task)[1] == timedelta(days=1)
    monkeypatch.setenv("AIRFLOW__CORE__MAX_TASK_RETRY_DELAY", "600")
    assert decide(error, task)[1] == timedelta(minutes=10)


@needs_policies
def test_wait_for_the_log_ignores_the_longest_delay() -> None:
    with dag():
        task = GenerateImageOperator(**IMAGE, max_retry_delay=timedelta(seconds=1))
    lost = kinds.JojoKeyUnknownOutcomeError("x", retry_after=400, awaits_log=True)
    assert decide(lost, task)[1] == timedelta(seconds=400 + MARGIN)


@needs_policies
def test_reason_says_why_the_retry_waits() -> None:
    assert "requested it" in str(decide(kinds.JojoKeyRateLimitError("x", retry_after=1))[2])
    assert "log" in str(decide(kinds.JojoKeyUnknownOutcomeError("x", retry_after=1, awaits_log=True))[2])
    assert "log" in str(decide(kinds.JojoKeyBatchError("x", retry_after=1, awaits_log=True))[2])


@needs_policies
@pytest.mark.parametrize("error", [ValueError("x"), OSError("x"), KeyboardInterrupt()])
def test_other_errors_are_left_to_airflow(error: BaseException) -> None:
    assert decide(error) == ("default", None, None)


@needs_policies
def test_every_error_class_is_covered() -> None:
    assert {*FAILURES, *TRANSIENT, *FINAL} == set(CLASSES)
    assert all(issubclass(cls, AirflowFailException) for cls in FINAL)


@needs_policies
def test_policy_can_be_serialized() -> None:
    data = json.loads(json.dumps(JojoKeyRetryPolicy().serialize()))
    assert isinstance(JojoKeyRetryPolicy.deserialize(data), JojoKeyRetryPolicy)


# --- on operators --------------------------------------------------------------------------------------------------

IMAGE: dict[str, Any] = {"task_id": "image", "prompt": "a fox", "s3_bucket": "posters", "s3_key": "fox.png"}


def dag(**more: Any) -> DAG:
    return DAG("posters", schedule=None, start_date=datetime(2026, 1, 1), **more)


def _custom_policy() -> Any:
    from airflow.sdk.definitions.retry_policy import RetryDecision, RetryPolicy

    class CustomPolicy(RetryPolicy):
        def evaluate(self, *_: Any, **__: Any) -> RetryDecision:
            return RetryDecision.default()

        def serialize(self) -> dict[str, Any]:
            return {}

    return CustomPolicy()


@needs_policies
def test_operator_has_the_policy_by_default() -> None:
    with dag():
        assert isinstance(GenerateImageOperator(**IMAGE).retry_policy, JojoKeyRetryPolicy)


@needs_policies
def test_operator_keeps_the_policy_of_the_dag_author() -> None:
    policy = _custom_policy()
    with dag():
        assert GenerateImageOperator(**IMAGE, retry_policy=policy).retry_policy is policy


@needs_policies
def test_operator_keeps_the_policy_of_default_args() -> None:
    policy = _custom_policy()
    with dag(default_args={"retry_policy": policy}):
        assert GenerateImageOperator(**IMAGE).retry_policy is policy


def _unmapped(dag: DAG, **partial: Any) -> Any:
    rest = {name: value for name, value in IMAGE.items() if name != "prompt"}
    with dag:
        mapped = GenerateImageOperator.partial(**rest, **partial).expand(prompt=["a fox", "an owl"])
    return mapped.unmap({"prompt": "a fox"})


@needs_policies
def test_mapped_task_has_the_policy_by_default() -> None:
    assert isinstance(_unmapped(dag()).retry_policy, JojoKeyRetryPolicy)


@needs_policies
def test_mapped_task_keeps_the_policy_of_the_dag_author() -> None:
    policy = _custom_policy()
    assert _unmapped(dag(), retry_policy=policy).retry_policy is policy
    assert _unmapped(dag(default_args={"retry_policy": policy})).retry_policy is policy


@needs_policies
def test_dag_with_the_policy_can_be_serialized() -> None:
    from airflow.serialization.serialized_objects import DagSerialization

    with dag() as posters:
        GenerateImageOperator(**IMAGE)
    data = json.loads(json.dumps(DagSerialization.to_dict(posters)))
    restored = DagSerialization.from_dict(data)
    assert restored.get_task("image").has_retry_policy


def test_operator_can_be_created_on_every_airflow() -> None:
    with dag():
        assert GenerateImageOperator(**IMAGE).retries == 0
