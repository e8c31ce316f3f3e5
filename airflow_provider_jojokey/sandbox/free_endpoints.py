"""The endpoints that cost nothing: models, balance, usage and the gateway log."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from typing import Any

from airflow_provider_jojokey.sandbox import accounts
from airflow_provider_jojokey.sandbox.bodies import HTML, WEB_APP, error_reply, gateway_headers
from airflow_provider_jojokey.sandbox.charges import Charges
from airflow_provider_jojokey.sandbox.limits import SlidingWindow
from airflow_provider_jojokey.sandbox.validation import RejectedError
from airflow_provider_jojokey.sandbox.wire import Reply

_LOG_WINDOW = 20 * 60.0


class FreeEndpoints:
    """Responds to ``GET`` requests.

    :param all_accounts: the accounts of all tokens
    :param charges: the requests and their charges
    :param models: the models that have a channel
    :param shows_log: whether ``GET /api/log/token`` exists
    :param log_limit: how many times a client address may read the log in 20 minutes; ``None`` means no limit
    """

    def __init__(
        self,
        all_accounts: accounts.Accounts,
        charges: Charges,
        *,
        models: tuple[str, ...],
        shows_log: bool,
        log_limit: int | None,
    ) -> None:
        self._accounts = all_accounts
        self._charges = charges
        self._models = models
        self.shows_log = shows_log
        self._log_limit = log_limit
        self._lock = threading.Lock()
        self._log_reads: dict[str, SlidingWindow] = {}

    def respond(self, path: str, request_id: str, authorization: str, client: str) -> Reply:
        """Return the response to a request.

        :param authorization: the value of the Authorization header
        :param client: the address of the client
        """
        account = self._accounts.find(authorization)
        name = account.name if account else ""
        spent = sum(record.quota for record in self._charges.billed() if record.token_name == name)
        path = path.rstrip("/")
        match path:
            case "/v1/models" | "/v1/dashboard/billing/subscription" | "/v1/dashboard/billing/usage":
                try:
                    if account is None:
                        raise RejectedError(401, "Invalid token", kind="new_api_error")
                    account.check("")
                except RejectedError as rejection:
                    return rejection_reply(request_id, rejection)
                bodies = {
                    "/v1/models": self._list_models(account),
                    "/v1/dashboard/billing/subscription": accounts.subscription(),
                    "/v1/dashboard/billing/usage": accounts.billing_usage(spent),
                }
                return json_reply(request_id, 200, bodies[path])
            case "/api/usage/token":
                return json_reply(request_id, *accounts.token_usage(account, spent))
            case "/api/log/token" if self.shows_log:
                if not self._may_read_log(client):
                    return Reply(429, {"X-Oneapi-Request-Id": request_id})
                return json_reply(request_id, *accounts.token_log(account, self._charges.everything()))
            case "/api/status":
                return json_reply(request_id, 200, accounts.status())
        if path.startswith("/v1/"):
            return invalid_url_reply(request_id, "GET", path)
        return Reply(200, gateway_headers(request_id, HTML), [WEB_APP])

    def reset(self) -> None:
        """Reset the counts of log reads."""
        with self._lock:
            self._log_reads.clear()

    def _list_models(self, account: accounts.Account) -> dict[str, Any]:
        names = ("gpt-4o-mini",) if account.state == "no_model" else self._models
        models = [
            {
                "id": name,
                "object": "model",
                "created": 1_626_777_600,
                "owned_by": "openai",
                "supported_endpoint_types": ["image-generation"],
            }
            for name in names
        ]
        return {"success": True, "object": "list", "data": models}

    def _may_read_log(self, client: str) -> bool:
        if self._log_limit is None:
            return True
        with self._lock:
            reads = self._log_reads.setdefault(client, SlidingWindow())
        return reads.accept(self._log_limit, _LOG_WINDOW)


def json_reply(request_id: str, status: int, body: Mapping[str, Any]) -> Reply:
    """Return a JSON response of the gateway."""
    return Reply(status, gateway_headers(request_id), [json.dumps(body, ensure_ascii=False).encode()])


def invalid_url_reply(request_id: str, method: str, path: str) -> Reply:
    """Return the response to a path that the API doesn't have."""
    text = f"Invalid URL ({method} {path})"
    return error_reply(request_id, 404, text, kind="invalid_request_error", param="")


def rejection_reply(request_id: str, rejection: RejectedError) -> Reply:
    """Return the response for a rejected request."""
    param = None if rejection.kind == "new_api_error" and not rejection.code else rejection.param
    return error_reply(
        request_id, rejection.status, rejection.message, code=rejection.code, kind=rejection.kind, param=param
    )
