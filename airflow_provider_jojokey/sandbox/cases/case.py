"""One case: a response of the stand-in, and what it costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from airflow_provider_jojokey.sandbox.bodies import Call, StreamFault
from airflow_provider_jojokey.sandbox.validation import Usage
from airflow_provider_jojokey.sandbox.wire import Reply

Origin = Literal["gateway", "upstream", "cloudflare", "network"]


@dataclass(frozen=True)
class Case:
    """One case: its response, its charge and its origin."""

    name: str
    status: int | None
    billed: bool
    origin: Origin
    summary: str
    respond: Callable[[Call], Reply]
    stream_fault: StreamFault | None = None
    """Set if the response is an event stream, even if the request did not ask for one."""
    good: bool = False
    """Whether a client that follows the documentation receives all images."""
    odd: bool = False
    """Whether the response is undocumented, so that only a lenient client receives the images."""
    fee_usd: float | None = None
    """The charge in US dollars if it is not the price of the images."""

    def charge(self, usage: Usage) -> Usage:
        """Return the tokens that are charged."""
        return usage if self.fee_usd is None else Usage(0, 0)
