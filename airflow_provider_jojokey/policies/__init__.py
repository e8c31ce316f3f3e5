"""Retry policies."""

from __future__ import annotations

from airflow_provider_jojokey.policies.jojokey import AVAILABLE, MARGIN, JojoKeyRetryPolicy

__all__ = ["AVAILABLE", "MARGIN", "JojoKeyRetryPolicy"]
