"""Errors that the gateway itself reports, and errors of the model that it passes on."""

# ruff: noqa: RUF001 - the gateway's messages are Chinese, with Chinese punctuation
from __future__ import annotations

from functools import partial

from airflow_provider_jojokey.sandbox.bodies import Call, error_reply
from airflow_provider_jojokey.sandbox.cases.case import Case, Origin
from airflow_provider_jojokey.sandbox.wire import Reply


def _gateway_error(
    call: Call,
    *,
    status: int,
    en: str,
    zh: str = "",
    code: str = "",
    kind: str = "new_api_error",
    relayed: bool = False,
) -> Reply:
    message = zh if call.chinese and zh else en
    model = call.request.model
    return error_reply(
        call.request_id,
        status,
        message.format(model=model, group="default"),
        code=code,
        kind=kind,
        param="" if relayed else None,
        headers=_retry_after(call),
    )


def _retry_after(call: Call, default: str = "") -> dict[str, str]:
    seconds = call.directive.text("retry_after", default)
    return {"Retry-After": seconds} if seconds else {}


def _rate_limited(call: Call, *, retry_after: str = "", empty: bool = False) -> Reply:
    headers = _retry_after(call, retry_after)
    if empty:
        return Reply(429, {"X-Oneapi-Request-Id": call.request_id, **headers})
    text = "请求过于频繁，请稍后再试" if call.chinese else "Too many requests, please try again later"
    return error_reply(call.request_id, 429, text, headers=headers)


def _any_error(call: Call) -> Reply:
    return error_reply(
        call.request_id,
        int(call.directive.number("status", 500)),
        call.directive.text("message", "A requested error"),
        code=call.directive.text("code"),
        kind=call.directive.text("type", "new_api_error"),
        headers=_retry_after(call),
    )


def _error(
    name: str, status: int, summary: str, en: str, zh: str = "", *, code: str = "", relayed: bool = False,
    origin: Origin = "gateway", kind: str = "new_api_error", billed: bool = False, fee_usd: float | None = None,
) -> Case:  # fmt: skip
    respond = partial(_gateway_error, status=status, en=en, zh=zh, code=code, kind=kind, relayed=relayed)
    return Case(name, status, billed, origin, summary, respond, fee_usd=fee_usd)


GATEWAY_ERRORS = [
    _error("invalid_token", 401, "the token is invalid", "Invalid token", "无效的令牌"),
    _error("token_missing", 401, "older gateways: no token was sent", "No token was provided", "未提供令牌"),
    _error("token_disabled", 401, "older gateways: the token was disabled", "This token is disabled",
           "该令牌状态不可用"),
    _error("token_expired", 401, "older gateways: the token has expired", "This token has expired", "该令牌已过期"),
    _error("token_exhausted", 401, "older gateways: the token's quota is exhausted", "This token's quota is used up",
           "该令牌额度已用尽"),
    _error("group_denied", 403, "the token may not use its group", "No access to group {group}",
           "无权访问 {group} 分组"),
    _error("model_denied", 403, "the token may not use the model", "This token has no access to model {model}",
           "该令牌无权访问模型 {model}"),
    _error("ip_denied", 403, "the address is not on the token's list", "Your IP is not allowed for this token",
           "您的 IP 不在令牌允许访问的列表中", code="access_denied"),
    _error("user_banned", 403, "the account is banned", "This user is banned", "用户已被封禁"),
    _error("wallet_empty", 403, "the account has no money left", "The user's quota is not sufficient",
           "用户额度不足", code="insufficient_user_quota", relayed=True),
    _error("token_quota_short", 403, "the token's quota does not cover this request",
           "The token's quota is not enough for this request", "令牌额度不足", code="pre_consume_token_quota_failed",
           relayed=True),
    _error("no_channel", 503, "no channel serves the model at the moment",
           "No available channel for model {model} under group {group} (distributor)",
           "分组 {group} 下模型 {model} 无可用渠道（distributor）", code="model_not_found"),
    _error("overloaded_cpu", 503, "the gateway is out of CPU", "The system is overloaded: CPU", "系统 CPU 过载",
           code="system_cpu_overloaded"),
    _error("overloaded_memory", 503, "the gateway is out of memory", "The system is overloaded: memory",
           "系统内存过载", code="system_memory_overloaded"),
    _error("overloaded_disk", 503, "the gateway is out of disk space", "The system is overloaded: disk",
           "系统磁盘过载", code="system_disk_overloaded"),
    Case("rate_limited", 429, False, "gateway", "too many requests, without Retry-After", _rate_limited),
    Case("rate_limited_retry_after", 429, False, "gateway", "too many requests, Retry-After: 1",
         partial(_rate_limited, retry_after="1")),
    Case("rate_limited_empty", 429, False, "gateway", "too many requests, no body, no Retry-After",
         partial(_rate_limited, empty=True)),
    _error("bad_json", 400, "the gateway could not read the body", "The request body is not valid JSON",
           "无效的请求体"),
    _error("invalid_request", 500, "the gateway rejects a parameter", "A parameter is not valid", "请求参数无效",
           code="invalid_request", relayed=True),
    _error("sensitive_words", 500, "the gateway's word filter", "The prompt has sensitive words",
           "用户敏感词检测不通过", code="sensitive_words_detected", relayed=True),
    _error("upstream_unreachable", 500, "the gateway could not reach its upstream",
           "The upstream could not be reached", "请求上游地址失败", code="do_request_failed", relayed=True),
    _error("upstream_garbled", 500, "the gateway could not read the response of its upstream",
           "The upstream's reply could not be read", code="bad_response_body", relayed=True),
    _error("upstream_500", 500, "a 500 of the upstream, relayed", "The server had an error", code="server_error",
           kind="server_error", relayed=True, origin="upstream"),
    _error("upstream_429", 429, "a rate limit of the upstream, relayed", "Rate limit reached for {model}",
           code="rate_limit_exceeded", kind="requests", relayed=True, origin="upstream"),
    _error("moderation_blocked", 400, "the model's safety system rejected the prompt",
           "The request was rejected by the safety system",
           code="moderation_blocked", kind="image_generation_user_error", relayed=True, origin="upstream"),
    _error("response_format_rejected", 400, "the upstream does not know response_format",
           "Unknown parameter: 'response_format'.", code="unknown_parameter", kind="invalid_request_error",
           relayed=True, origin="upstream"),
    _error("violation_fee", 403, "a fee for a violation of the rules, not refunded",
           "Content violates the usage guidelines",
           code="violation_fee.sandbox", relayed=True, billed=True, fee_usd=0.05),
    Case("error", None, False, "gateway", "any error: status=, code=, message=, type=, retry_after=", _any_error),
]  # fmt: skip
