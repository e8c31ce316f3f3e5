"""The values of the arguments that control payment, see ``docs/paying-once.md``."""

from __future__ import annotations

REUSE = ("run", "always", "never")
"""Which earlier payment is reused: of this Dag run, of any run, none."""

ON_UNKNOWN_OUTCOME = ("fail", "regenerate")
"""What to do if an earlier attempt was, or may have been, billed and produced nothing."""

COUNT_LIMITS = ("max_tokens", "max_images", "max_tokens_per_run", "max_images_per_run")
"""Limits that are whole numbers."""

COST_LIMITS = ("max_cost", "max_cost_per_run")
"""Limits that are amounts of money, in the currency of the prices."""

LIMITS = (*COUNT_LIMITS, *COST_LIMITS)
"""What a task, and a Dag run, may spend: each a number, or ``None``."""
