"""The values of the arguments that control payment, see ``docs/paying-once.md``."""

from __future__ import annotations

REUSE = ("run", "always", "never")
"""Which earlier payment is reused: of this Dag run, of any run, none."""

ON_UNKNOWN_OUTCOME = ("fail", "regenerate")
"""What to do if an earlier attempt was, or may have been, billed and produced nothing."""

LIMITS = ("max_tokens", "max_images", "max_tokens_per_run", "max_images_per_run")
"""The spending limits of a task and of a Dag run, each a whole number or ``None``."""
