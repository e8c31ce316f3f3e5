"""How long tests wait for an event that must happen."""

from __future__ import annotations

PATIENCE = 300.0
"""Seconds that a process, a server or Airflow may take on a busy machine. Only a failing test waits that long."""
