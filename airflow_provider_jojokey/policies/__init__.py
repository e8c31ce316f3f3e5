"""How long to wait before a retry, from what the gateway said (Airflow 3.3 and newer)."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow.sdk import Context
    from airflow.sdk.definitions.retry_policy import RetryDecision, RetryPolicy
else:
    try:
        from airflow.sdk.definitions.retry_policy import RetryDecision, RetryPolicy
    except ImportError:  # before 3.3 there are none, and Airflow's own retry_delay holds
        RetryDecision, RetryPolicy = None, object

AVAILABLE = RetryPolicy is not object
"""Whether this Airflow knows retry policies."""

MARGIN = 5.0
"""Seconds on top of what the gateway asked for, so that a retry does not come a moment too early."""


class JojoKeyRetryPolicy(RetryPolicy):
    """Wait as long as the gateway asks, and never retry what would be paid a second time.

    The operators use it by default where Airflow knows retry policies. How often there is a retry
    stays with the task's ``retries``; where the gateway asked for nothing, ``retry_delay`` holds.
    """

    def evaluate(
        self, exception: BaseException, try_number: int, max_tries: int, context: Context | None = None
    ) -> RetryDecision:
        """Return what to do after ``exception``."""
        from airflow_provider_jojokey.exceptions import (
            JojoKeyError,
            JojoKeyFailure,
            JojoKeyUnknownOutcomeError,
        )

        if not isinstance(exception, JojoKeyError):
            return RetryDecision.default()
        if isinstance(exception, JojoKeyFailure):
            return RetryDecision.fail(reason=exception.retry)
        if exception.retry_after is None:
            return RetryDecision.default()
        delay = timedelta(seconds=exception.retry_after + MARGIN)
        why = (
            "by then the gateway's log knows whether it was billed"
            if isinstance(exception, JojoKeyUnknownOutcomeError)
            else "the gateway asked for it"
        )
        return RetryDecision.retry(delay=delay, reason=f"waiting {delay.total_seconds():.0f} s: {why}")

    def serialize(self) -> dict[str, Any]:
        """Return nothing: the policy has no settings."""
        return {}

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> JojoKeyRetryPolicy:
        """Return a policy."""
        return cls()
