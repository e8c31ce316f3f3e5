"""Runs a Dag as a worker does: each task in a process of its own, under Airflow's supervisor.

`dag.test()` runs tasks in its own process and leaves out what a worker's process begins and ends with:
Airflow's metrics, its span around the task, the flush of both. Its arguments are a JSON list, for each run the
Dag's id, its file, and what to add to the environment; and the file for what came of them.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

try:
    from airflow.dag_processing.dagbag import DagBag
except ImportError:  # Airflow 3.1
    from airflow.models.dagbag import DagBag
from airflow.executors.workloads import BundleInfo
from airflow.sdk.execution_time import supervisor

_supervise = getattr(supervisor, "supervise_task", None) or supervisor.supervise


def run_task_in_process(ti: Any, task: Any) -> Any:
    """Take the place of the function of the same name, with a process of the task's own."""
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session

    _supervise(
        ti=ti,
        bundle_info=BundleInfo(name="dags-folder", version=None),
        dag_rel_path=Path(task.dag.fileloc).name,
        token="",
        client=supervisor.InProcessTestSupervisor._api_client(task.dag),
        subprocess_logs_to_stdout=True,
    )
    with create_session() as session:
        state = session.get(TaskInstance, ti.id).state
    return SimpleNamespace(ti=SimpleNamespace(state=state, task=task), state=state, msg=None, error=None)


def run(dag_id: str, path: str, environment: dict[str, str]) -> dict[str, Any]:
    os.environ.update(environment)
    bag = DagBag(path)
    assert not bag.import_errors, bag.import_errors
    dag_run = bag.dags[dag_id].test()
    states = {ti.task_id: str(ti.state) for ti in dag_run.get_task_instances()}
    return {"run_id": dag_run.run_id, "states": states}


if __name__ == "__main__":
    supervisor.run_task_in_process = run_task_in_process
    Path(sys.argv[2]).write_text(json.dumps([run(*one) for one in json.loads(sys.argv[1])]))
