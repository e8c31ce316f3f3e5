"""Prepare a new deployment: write the administrator's password, and create the bucket."""

from __future__ import annotations

import json
import os
from pathlib import Path


def main() -> None:
    """Write the administrator's password, and create the bucket."""
    path = Path(os.environ["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE"])
    path.touch(mode=0o600)
    path.write_text(json.dumps({"admin": os.environ["AIRFLOW_ADMIN_PASSWORD"]}), encoding="utf-8")
    create_bucket(os.environ["AIRFLOW_VAR_POSTERS_BUCKET"])


def create_bucket(name: str) -> None:
    """Create the bucket of the Dags if it doesn't exist."""
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook

    hook = S3Hook()
    if hook.check_for_bucket(name):
        print(f"The bucket {name} exists.")
    else:
        hook.create_bucket(name)
        print(f"The bucket {name} was created.")


if __name__ == "__main__":
    main()
