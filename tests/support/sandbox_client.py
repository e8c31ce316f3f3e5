"""Requests to the sandbox's gateway, without the package's own client."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import requests

from airflow_provider_jojokey.sandbox import Gateway
from tests.support.patience import PATIENCE

Post = Callable[..., requests.Response]


def post_to(
    gateway: Gateway, prompt: str = "a fox", *, timeout: float = PATIENCE, **body: Any
) -> requests.Response:
    headers = {"Authorization": f"Bearer {gateway.token}", **body.pop("headers", {})}
    return requests.post(
        f"{gateway.url}/v1/images/generations",
        json={"model": "gpt-image-2", "prompt": prompt, **body},
        headers=headers,
        timeout=timeout,
        allow_redirects=False,
    )
