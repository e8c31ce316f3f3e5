"""A retry policy that follows the gateway's ``Retry-After`` (Airflow 3.3 and newer)."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow.sdk import Context
    from airflow.sdk.definitions.retry_policy import RetryDecision, RetryPolicy
else:
    try:
        from airflow.sdk.definitions.retry_policy import RetryDecision, RetryPolicy
    except ImportError:  # before 3.3, Airflow uses retry_delay
        RetryDecision, RetryPolicy = None, object

AVAILABLE = RetryPolicy is not object
"""Whether this Airflow supports retry policies."""

MARGIN = 5.0
"""Seconds to add to the gateway's delay, so that a retry is not slightly too early."""


class JojoKeyRetryPolicy(RetryPolicy):
    """Wait as long as the gateway requests, and don't retry errors that a retry can't fix.

    The operators use it by default if Airflow supports retry policies. The task's ``retries`` limits the number of
    retries, and its ``max_retry_delay``, or else Airflow's ``[core] max_task_retry_delay``, limits the delay that the
    gateway requests. If the gateway requests none, ``retry_delay`` applies. After a lost response, a retry waits
    until the gateway log should show the request. The policy doesn't decide about payments: the receipt does.
    """

    def evaluate(
        self, exception: BaseException, try_number: int, max_tries: int, context: Context | None = None
    ) -> RetryDecision:
        """Return whether and when to retry after ``exception``."""
        from airflow_provider_jojokey.exceptions import JojoKeyError, JojoKeyFailure

        if not isinstance(exception, JojoKeyError):
            return RetryDecision.default()
        if isinstance(exception, JojoKeyFailure):
            return RetryDecision.fail(reason=exception.retry_sentence)
        if exception.retry_after is None:
            return RetryDecision.default()
        delay = timedelta(seconds=exception.retry_after + MARGIN)
        if exception.awaits_log:
            cause = "by then the gateway log should show whether the request was billed"
        elif (longest := _longest_delay(context)) < delay:
            delay = longest
            cause = (
                f"the gateway requested {exception.retry_after:.0f} s, which is longer than max_retry_delay"
            )
        else:
            cause = "the gateway requested it"
        return RetryDecision.retry(delay=delay, reason=f"waiting {delay.total_seconds():.0f} s: {cause}")

    def serialize(self) -> dict[str, Any]:
        """Return nothing: the policy has no settings."""
        return {}

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> JojoKeyRetryPolicy:
        """Return a policy."""
        return cls()


def _longest_delay(context: Context | None) -> timedelta:
    """Return Airflow's limit for the delay of a retry. The delay until a rate limit resets may be weeks."""
    from airflow.providers.common.compat.sdk import conf

    own = getattr((context or {}).get("task"), "max_retry_delay", None)
    return own or timedelta(seconds=conf.getint("core", "max_task_retry_delay", fallback=24 * 60 * 60))
