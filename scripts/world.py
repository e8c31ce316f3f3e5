"""What `make demo` and `make ui` have in common: an Airflow of their own, and the sandbox."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path

from airflow_provider_jojokey.sandbox import Sandbox

ROOT = Path(__file__).resolve().parent.parent
HOME = Path(os.environ.get("DEMO_HOME") or ROOT / ".demo")
GATEWAY_PORT, S3_PORT = 4870, 4871


def open_sandbox(home: Path = HOME) -> Sandbox:
    """Return the sandbox of this checkout, not started: what it keeps is in ``.demo``.

    It takes the same ports each time, if they are free: a gateway at another address is another gateway,
    and what the first has been paid for says nothing of the second.
    """
    return Sandbox(
        home / "world",
        gateway_port=_free(GATEWAY_PORT),
        s3_port=_free(S3_PORT),
        environ=os.environ,
    )


def airflow_environment(sandbox: Sandbox, home: Path = HOME) -> dict[str, str]:
    """Return the environment of an Airflow that knows this checkout's Dags and the sandbox, and nothing else."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW__", "AIRFLOW_"))
    }
    environment |= sandbox.environment()
    environment |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "AIRFLOW_HOME": str(home / "airflow"),
        "AIRFLOW_VAR_POSTERS_BUCKET": sandbox.buckets[0],
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "AIRFLOW__CORE__TEST_CONNECTION": "Enabled",
        "AIRFLOW__JOJOKEY__SPOOL_DIRECTORY": str(home / "spool"),
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        "PYTHONWARNINGS": "ignore",
    }
    if not sandbox.uses_real_api:
        # A stand-in is quick: nobody has to wait for minutes until its log must know a lost request.
        connection = json.loads(environment["AIRFLOW_CONN_JOJOKEY_DEFAULT"])
        connection["extra"] = {"connect_timeout": 2, "max_resend_wait": 2}
        environment["AIRFLOW_CONN_JOJOKEY_DEFAULT"] = json.dumps(connection)
        environment["AIRFLOW__JOJOKEY__LONGEST_GENERATION"] = "10"
    return environment


def _free(port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return 0
    return port
