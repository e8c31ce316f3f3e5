"""What a Dag's author chooses about paying, see ``docs/paying-once.md``."""

from __future__ import annotations

REUSE = ("run", "always", "never")
"""Which earlier payment counts: of this Dag run, of any run, none."""

ON_UNKNOWN_OUTCOME = ("fail", "regenerate")
"""What to do where an earlier attempt was, or may have been, billed and gave nothing."""

LIMITS = ("max_tokens", "max_images", "max_tokens_per_run", "max_images_per_run")
"""What a task, and a Dag run, may spend: each a whole number, or ``None``."""
