"""Print an environment file for docker compose, with a new secret for each thing that needs one.

python3 compose/make_env.py > .env
"""

from __future__ import annotations

import base64
import os
import secrets

RANDOM = (
    "POSTGRES_PASSWORD",
    "REDIS_PASSWORD",
    "S3_ACCESS_KEY",
    "S3_SECRET_KEY",
    "SANDBOX_TOKEN",
    "AIRFLOW_ADMIN_PASSWORD",
    "AIRFLOW_JWT_SECRET",
    "AIRFLOW_SECRET_KEY",
    "GRAFANA_PASSWORD",
)


def main() -> None:
    """Print the file."""
    print("# Made by compose/make_env.py. Keep it to yourself.")
    for name in RANDOM:
        print(f"{name}={secrets.token_hex(24)}")
    print(f"AIRFLOW_FERNET_KEY={base64.urlsafe_b64encode(os.urandom(32)).decode()}")
    print("# For --profile real: the JojoKey token, and its base URL if it is not the vendor's.")
    print("JOJOKEY_API_KEY=\nJOJOKEY_BASE_URL=https://api.jojokey.com")
    print("# True together with --profile monitoring.")
    print("AIRFLOW_STATSD_ON=False")


if __name__ == "__main__":
    main()
