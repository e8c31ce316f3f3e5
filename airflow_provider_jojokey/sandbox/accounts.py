"""Tokens, and the bodies of the free endpoints that describe them."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from airflow_provider_jojokey.sandbox.charges import QUOTA_PER_USD, ChargeRecord
from airflow_provider_jojokey.sandbox.validation import RejectedError

TokenState = Literal["ok", "disabled", "expired", "exhausted", "no_model", "no_group", "banned", "ip"]

_GRANTED = 100 * QUOTA_PER_USD
_LOG_ROWS = 1000


@dataclass(frozen=True)
class Account:
    """A token's name and state."""

    name: str
    state: TokenState

    def check(self, model: str) -> None:
        """Raise an error unless this token may use ``model``.

        :raises RejectedError: with the status of the gateway.
        """
        problem = {
            # The gateway distinguishes these only at its usage endpoint.
            "disabled": (401, "Invalid token", ""),
            "expired": (401, "Invalid token", ""),
            "exhausted": (401, "Invalid token", ""),
            "no_group": (403, "无权访问 image 分组", ""),
            "no_model": (403, f"This token has no access to model {model}", ""),
            "banned": (403, "用户已被封禁", ""),
            "ip": (403, "您的 IP 不在令牌允许访问的列表中", "access_denied"),
        }.get(self.state)
        if problem is not None and not (self.state == "no_model" and not model):
            status, message, code = problem
            raise RejectedError(status, message, code=code, kind="new_api_error")


class Accounts:
    """The tokens that a gateway knows.

    :param token: the valid token.
    :param others: further tokens and their states.
    :raises ValueError: if a state does not exist.
    """

    def __init__(self, token: str, others: Mapping[str, str]) -> None:
        self._accounts = {_key(token): Account("sandbox", "ok")}
        for name, state in others.items():
            if state not in get_args(TokenState):
                raise ValueError(
                    f"Unknown token state {state!r}. Known states: {', '.join(get_args(TokenState))}."
                )
            self._accounts[_key(name)] = Account(state, state)  # type: ignore[arg-type]

    def find(self, authorization: str) -> Account | None:
        """Return the account for the value of an Authorization header, or ``None`` if the token is unknown."""
        scheme, _, token = authorization.strip().partition(" ")
        return self._accounts.get(_key(token.strip())) if scheme.lower() == "bearer" else None


def _key(token: str) -> str:
    return token.removeprefix("sk-")


def token_usage(account: Account | None, spent: int) -> tuple[int, dict[str, Any]]:
    """Return status and body of ``GET /api/usage/token/``.

    :param spent: the account's charges, in units of quota.
    """
    if account is None:
        return 401, {"success": False, "message": "无效的令牌"}
    if account.state == "disabled":
        return 401, {"success": False, "message": "该令牌状态不可用"}
    if account.state == "banned":
        return 403, {"success": False, "message": "用户已被封禁"}
    exhausted = account.state == "exhausted"
    granted = spent if exhausted else _GRANTED
    limited = account.state == "no_model"
    return 200, {
        "code": True,
        "message": "ok",
        "data": {
            "object": "token_usage",
            "name": account.name,
            "total_granted": granted,
            "total_used": spent,
            "total_available": 0 if exhausted else granted - spent,
            "unlimited_quota": False,
            "model_limits": {"gpt-4o-mini": True} if limited else {},
            "model_limits_enabled": limited,
            "expires_at": int(time.time()) - 86_400 if account.state == "expired" else 0,
        },
    }


def token_log(account: Account | None, records: Sequence[ChargeRecord]) -> tuple[int, dict[str, Any]]:
    """Return status and body of ``GET /api/log/token``: type 2 is a charge, type 5 an error."""
    if account is None or account.state == "disabled":
        return token_usage(account, 0)
    mine = [record for record in records if record.token_name == account.name][-_LOG_ROWS:]
    rows = [_log_row(number, record) for number, record in enumerate(mine, 1)]
    return 200, {"success": True, "message": "", "data": rows[::-1]}


def _log_row(number: int, record: ChargeRecord) -> dict[str, Any]:
    content = (
        f"size {record.size}, quality {record.quality}, n {record.n}"
        if record.billed
        else f"error: {record.case}"
    )
    return {
        "id": number,
        "user_id": 1,
        "created_at": int(record.time),
        "type": 2 if record.billed else 5,
        "content": content,
        "username": "sandbox",
        "token_name": record.token_name,
        "model_name": record.model,
        "quota": record.quota,
        "prompt_tokens": record.input_tokens if record.billed else 0,
        "completion_tokens": record.output_tokens if record.billed else 0,
        "use_time": round(record.time - record.started),
        "is_stream": record.stream,
        "channel": 1,
        "channel_name": "",
        "token_id": 1,
        "group": "default",
        "ip": "",
        "request_id": record.request_id,
        "other": json.dumps({"request_path": "/v1/images/generations"}),
    }


def subscription() -> dict[str, Any]:
    """Return the body of ``GET /v1/dashboard/billing/subscription``, in US dollars."""
    amount = _GRANTED / QUOTA_PER_USD
    return {
        "object": "billing_subscription",
        "has_payment_method": True,
        "soft_limit_usd": amount,
        "hard_limit_usd": amount,
        "system_hard_limit_usd": amount,
        "access_until": 0,
    }


def billing_usage(spent: int) -> dict[str, Any]:
    """Return the body of ``GET /v1/dashboard/billing/usage``, in US cents."""
    return {"object": "list", "total_usage": spent / QUOTA_PER_USD * 100}


def status() -> dict[str, Any]:
    """Return the body of ``GET /api/status``."""
    return {
        "success": True,
        "message": "",
        "data": {
            "system_name": "JojoKey (sandbox)",
            "version": "sandbox",
            "quota_per_unit": QUOTA_PER_USD,
            "quota_display_type": "USD",
            "start_time": 0,
        },
    }
