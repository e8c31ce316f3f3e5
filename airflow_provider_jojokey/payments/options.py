"""The values of the arguments that control payment, see ``docs/paying-once.md``."""

from __future__ import annotations

REUSE = ("run", "always", "never")
"""Which earlier payment is reused: of this Dag run, of any run, none."""

ON_UNKNOWN_OUTCOME = ("fail", "regenerate")
"""What to do if an earlier attempt was, or may have been, billed and produced nothing."""

PAYS_AGAIN = ("", "regenerate", "never")
"""The settings with which a retry may pay although an earlier request was billed: none, and the others in order of
precedence."""

COUNT_LIMITS = ("max_tokens", "max_images", "max_tokens_per_run", "max_images_per_run")
"""Limits that are whole numbers."""

COST_LIMITS = ("max_cost", "max_cost_per_run")
"""Limits that are amounts of money, in the currency of the prices."""

LIMITS = (*COUNT_LIMITS, *COST_LIMITS)
"""What a task, and a Dag run, may spend: each a number, or ``None``."""


def pays_again(reuse: str, on_unknown_outcome: str) -> str:
    """Return the setting with which a retry may pay although an earlier request was billed: see :data:`PAYS_AGAIN`."""
    if reuse == "never":
        return reuse
    return on_unknown_outcome if on_unknown_outcome == "regenerate" else ""
