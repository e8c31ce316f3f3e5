"""The error codes of the gateway and of the APIs behind it, and what they mean."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from airflow_provider_jojokey.img2.errors import Kind
from airflow_provider_jojokey.img2.messages import Failure, find_failure, read_failure

CHANNEL = "The gateway's channel is at fault, not your token or request. Ask JojoKey support to check it."
SETUP = "Only an administrator of the gateway can fix this. Send JojoKey support the code and the request ID."


class Meaning(NamedTuple):
    """The meaning of an error code or status."""

    kind: Kind
    summary: str = ""
    advice: str = ""


_CHANNEL_FAILED = Meaning(Kind.NO_CHANNEL, "The gateway's channel for this model failed", CHANNEL)
_KEY_FAILED = Meaning(Kind.NO_CHANNEL, "The key of the gateway's channel was rejected", CHANNEL)
_SOME_QUOTA = Meaning(
    Kind.QUOTA,
    "An account has no quota left: yours, or that of the gateway's channel",
    "Check your balance in JojoKey's console. If it is not used up, ask JojoKey support to check the channel.",
)
_NOT_SET_UP = Meaning(Kind.ACCESS, "The gateway is not set up to serve this model", SETUP)


def _normal(code: str) -> str:
    """Return a code without case and punctuation: ``content_filter`` and ``contentFilter`` are one code."""
    return re.sub("[^a-z0-9]", "", code.lower())


CODES: Mapping[str, Meaning] = {
    _normal(code): meaning
    for meaning, codes in (
        (Meaning(Kind.ACCESS), "access_denied model_access_denied"),
        (Meaning(Kind.QUOTA), "insufficient_user_quota pre_consume_token_quota_failed insufficient_quota "
                              "billing_hard_limit_reached billing_not_active budget_exceeded quota_exceeded "
                              "insufficient_balance insufficient_credits payment_required Arrearage "
                              "ExceededBudget quota_not_enough"),
        (Meaning(Kind.REQUEST), "invalid_request unknown_parameter invalid_value convert_request_failed "
                                "invalid_parameter unsupported_parameter missing_required_parameter "
                                "invalid_image_size unsupported_value invalid_size InvalidParameter "
                                "string_above_max_length invalid_json read_request_body_failed"),
        (Meaning(Kind.CONTENT), "sensitive_words_detected moderation_blocked content_policy_violation content_filter "
                                "DataInspectionFailed data_inspection_failed prompt_blocked content_blocked "
                                "ResponsibleAIPolicyViolation image_safety prohibited_content safety_violation "
                                "content_moderation policy_violation content_filtered image_generation_blocked "
                                "safety_system_blocked RECITATION SAFETY content_violation content_policy"),
        (Meaning(Kind.RATE_LIMIT), "rate_limit_exceeded rate_limit_error too_many_requests rate_limit_reached "
                                   "RateLimitReached requests_per_minute_exceeded resource_exhausted "
                                   "Throttling throttling_error"),
        (Meaning(Kind.OVERLOADED), "do_request_failed bad_response_status_code read_response_body_failed "
                                   "bad_response_body bad_response empty_response server_error overloaded_error "
                                   "service_unavailable internal_server_error internal_error engine_overloaded "
                                   "slow_down model_overloaded"),
        (Meaning(Kind.NO_CHANNEL), "get_channel_failed no_available_channel channel:no_available_key"),
        (_CHANNEL_FAILED, "DeploymentNotFound channel_error"),
        (_KEY_FAILED, "channel:invalid_key"),
        (_NOT_SET_UP, "model_price_error channel:model_mapped_error model_not_priced"),
    )
    for code in codes.split()
}  # fmt: skip

FEE = "violation_fee"
"""Prefix of the codes of requests that the gateway rejects and bills."""

# Prefixes of codes, compared after the full codes, without case.
PREFIXES: tuple[tuple[str, Meaning], ...] = (
    (FEE, Meaning(Kind.CONTENT)),
    ("entitlement", Meaning(Kind.QUOTA)),
    ("system_", Meaning(Kind.OVERLOADED)),
    ("channel:", _CHANNEL_FAILED),
)

# Authentication errors of the upstream API. If the gateway relays them, its channel's key was rejected.
KEY_CODES = {_normal(code) for code in ("invalid_api_key", "authentication_error", "account_deactivated",
                                        "invalid_authentication", "Unauthorized", "UNAUTHENTICATED")}  # fmt: skip

# Quota errors of the upstream API. If the gateway relays them, they may be about its channel's account.
QUOTA_CODES = {
    _normal(code) for code in ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active")
}


def has_fee(failure: Failure) -> bool:
    """Return whether the gateway billed a fee for a request that it rejected."""
    return any(code.lower().startswith(FEE) for code in failure.codes)


def reports_failure(element: Any) -> bool:
    """Return whether an element of a response without an image reports an error, perhaps only by a known code."""
    return (
        find_failure(element) is not None or meaning_of_codes(read_failure(element), 200, False) is not None
    )


def meaning_of_codes(failure: Failure, status: int, from_gateway: bool) -> Meaning | None:
    """Return the meaning of a failure's first known code, or ``None``.

    A code of an unspecific failure, such as ``bad_response_status_code``, says less than the code of the error that
    it wraps.

    :param from_gateway: whether the gateway itself sent the response
    """
    relayed = from_gateway and failure.type != "new_api_error"
    known = [meaning for code in failure.codes if (meaning := _meaning_of(code, status, relayed)) is not None]
    return next(
        (meaning for meaning in known if meaning.kind is not Kind.OVERLOADED), known[0] if known else None
    )


def _meaning_of(code: str, status: int, relayed: bool) -> Meaning | None:
    """Return the meaning of one code.

    :param relayed: whether the gateway relays the error of a channel
    """
    normal = _normal(code)
    if normal == "modelnotfound":
        return Meaning(Kind.NO_CHANNEL if status == 503 else Kind.ACCESS)
    if relayed and normal in KEY_CODES:
        return _KEY_FAILED
    if relayed and normal in QUOTA_CODES:
        return _SOME_QUOTA
    return CODES.get(normal) or next(
        (meaning for prefix, meaning in PREFIXES if code.lower().startswith(prefix)), None
    )
