"""The error codes of the gateway and of the APIs behind it, and what they mean."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from airflow_provider_jojokey.img2.errors import Kind
from airflow_provider_jojokey.img2.messages import Failure

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

# Compared without case and punctuation: content_filter and contentFilter are one code.
CODES: Mapping[str, Meaning] = {
    re.sub("[^a-z0-9]", "", code.lower()): meaning
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

# Prefixes of codes, compared after the full codes.
PREFIXES: tuple[tuple[str, Meaning], ...] = (
    ("violation_fee", Meaning(Kind.CONTENT)),
    ("entitlement", Meaning(Kind.QUOTA)),
    ("system_", Meaning(Kind.OVERLOADED)),
    ("channel:", _CHANNEL_FAILED),
)

# Authentication errors of the upstream API. If the gateway relays them, its channel's key was rejected.
KEY_CODES = {"invalid_api_key", "authentication_error", "account_deactivated", "invalid_authentication",
             "AuthenticationError", "InvalidApiKey", "Unauthorized", "UNAUTHENTICATED"}  # fmt: skip

# Quota errors of the upstream API. If the gateway relays them, they may be about its channel's account.
QUOTA_CODES = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"}


def meaning_of_codes(failure: Failure, status: int, from_gateway: bool) -> Meaning | None:
    """Return the meaning of a failure's first known code, or ``None``.

    :param from_gateway: whether the gateway itself sent the response
    """
    for code in failure.codes:
        if code == "model_not_found":
            return Meaning(Kind.NO_CHANNEL if status == 503 else Kind.ACCESS)
        if from_gateway and failure.type != "new_api_error":
            if code in KEY_CODES:
                return _KEY_FAILED
            if code in QUOTA_CODES:
                return _SOME_QUOTA
        if (meaning := CODES.get(re.sub("[^a-z0-9]", "", code.lower()))) is not None:
            return meaning
        for prefix, meaning in PREFIXES:
            if code.startswith(prefix):
                return meaning
    return None
