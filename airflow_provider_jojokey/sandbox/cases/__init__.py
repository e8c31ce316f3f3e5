"""All responses of the stand-in, as one table.

==========================  =========================================================================================
column                      meaning
==========================  =========================================================================================
name                        the name to use in a prompt or in :meth:`Gateway.behave`
status                      the HTTP status that the client receives; ``None`` if it receives none
billed                      whether the request is charged; ``billed=yes|no`` in a directive overrides it
origin                      who sends the response: the gateway (a header has its request ID), Cloudflare or the network
==========================  =========================================================================================

Charges follow the real gateway: each request that has reached the model is charged, even if the client never receives
the response. Requests to which the gateway responds with an error are refunded or not charged, except for the fee for a
violation of the rules.
"""

from __future__ import annotations

from collections.abc import Mapping

from airflow_provider_jojokey.sandbox.cases.case import Case, Origin
from airflow_provider_jojokey.sandbox.cases.gateway_errors import GATEWAY_ERRORS
from airflow_provider_jojokey.sandbox.cases.network_errors import NETWORK_ERRORS
from airflow_provider_jojokey.sandbox.cases.odd import ODD_ERRORS, ODD_REPLIES
from airflow_provider_jojokey.sandbox.cases.replies import BAD_REPLIES, GOOD_REPLIES, STREAMS

__all__ = ["CASES", "Case", "Origin", "find_case"]

CASES: Mapping[str, Case] = {
    case.name: case
    for case in [
        *GOOD_REPLIES,
        *GATEWAY_ERRORS,
        *NETWORK_ERRORS,
        *BAD_REPLIES,
        *STREAMS,
        *ODD_REPLIES,
        *ODD_ERRORS,
    ]
}
"""All cases by name."""


def find_case(name: str) -> Case:
    """Return the case of this name; an empty name means a good response.

    :raises ValueError: if no such case exists
    """
    case = CASES.get(name or "ok")
    if case is None:
        raise ValueError(
            f"Unknown sandbox case {name!r}. `python -m airflow_provider_jojokey.sandbox cases` lists all cases."
        )
    return case
