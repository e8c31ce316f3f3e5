"""What has to be there before Airflow starts: its administrator's password, and the bucket."""

from __future__ import annotations

import json
import os
from pathlib import Path


def main() -> None:
    """Write the administrator's password and make the bucket."""
    path = Path(os.environ["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE"])
    path.touch(mode=0o600)
    path.write_text(json.dumps({"admin": os.environ["AIRFLOW_ADMIN_PASSWORD"]}), encoding="utf-8")
    make_bucket(os.environ["AIRFLOW_VAR_POSTERS_BUCKET"])


def make_bucket(name: str) -> None:
    """Make the bucket that the Dags write to, if it is not there yet."""
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook

    hook = S3Hook()
    if hook.check_for_bucket(name):
        print(f"The bucket {name} is there.")
    else:
        hook.create_bucket(name)
        print(f"The bucket {name} has been made.")


if __name__ == "__main__":
    main()
