"""A task that is terminated during its request closes the connection and updates the receipt."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from typing import Any

from tests.support.patience import PATIENCE

DAG = """
    from datetime import datetime
    from airflow.sdk import DAG
    from airflow_provider_jojokey.operators.jojokey import GenerateImageOperator
    with DAG("ended", schedule=None, start_date=datetime(2026, 1, 1)):
        GenerateImageOperator(
            task_id="image", prompt="a fox [sandbox: delay=60]", s3_bucket="posters", s3_key="fox.png"
        )
"""


def test_terminated_task_records_unknown_outcome(airflow: Any, gateway: Any, store: Any) -> None:
    airflow.write("ended.py", textwrap.dedent(DAG))
    task = subprocess.Popen(
        [sys.executable, "-m", "airflow", "dags", "test", "ended"],
        env={**os.environ, "AIRFLOW__CORE__DAGS_FOLDER": str(airflow.folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        gateway.wait_for_request(timeout=PATIENCE)
        task.send_signal(signal.SIGTERM)
        log, _ = task.communicate(timeout=PATIENCE)  # without the signal, it would wait for a minute
    finally:
        task.kill()

    assert "JojoKeyUnknownOutcomeError" in log
    (attempt,) = store.receipt("fox.png")["attempts"]
    assert (attempt["outcome"], attempt["billed"]) == ("unknown", "unknown")
    assert len(gateway.requests) == 1
