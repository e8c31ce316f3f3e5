"""Entry point of ``python -m airflow_provider_jojokey.sandbox``."""

from __future__ import annotations

import sys

from airflow_provider_jojokey.sandbox.cli import main

if __name__ == "__main__":
    sys.exit(main())
