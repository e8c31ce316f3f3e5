"""Airflow's execution API with its own database, for :mod:`benchmarks.task`.

It serves HTTP on loopback and counts requests. Each command is one line on standard input: ``queue DAG`` creates a run
of a Dag and prints its queued task. ``calls`` prints the requests since the last command of this name. ``state ID``
prints the state of a task instance.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

CALLS: list[str] = []


def _counting(app: Any) -> Any:
    async def counted(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            CALLS.append(f"{scope['method']} {scope['path']}")
        await app(scope, receive, send)

    return counted


def _serve() -> int:
    import uvicorn
    from airflow.api_fastapi.execution_api.app import InProcessExecutionAPI

    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(_counting(InProcessExecutionAPI().app), log_level="error", access_log=False)
    server = uvicorn.Server(config)
    threading.Thread(target=server.run, args=([listener],), daemon=True).start()
    while not server.started:
        time.sleep(0.05)
    return int(listener.getsockname()[1])


def _store_dags(folder: Path, connections: dict[str, dict[str, Any]]) -> dict[str, Any]:
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.dag_processing.dagbag import BundleDagBag, sync_bag_to_db
    from airflow.models import Connection
    from airflow.serialization.serialized_objects import DagSerialization
    from airflow.utils.session import create_session

    manager: Any = DagBundlesManager
    manager().sync_bundles_to_db()
    bag = BundleDagBag(dag_folder=folder, bundle_path=folder, bundle_name="dags-folder")
    if bag.import_errors:
        raise SystemExit(str(bag.import_errors))
    sync_bag_to_db(bag, "dags-folder", None)
    with create_session() as session:
        for name, values in connections.items():
            session.add(Connection(conn_id=name, **values))
    return {
        dag_id: DagSerialization.deserialize_dag(DagSerialization.serialize_dag(dag))
        for dag_id, dag in bag.dags.items()
    }


def _queue(dag: Any, number: int) -> dict[str, Any]:
    from airflow.executors.workloads import TaskInstance as Workload
    from airflow.models.dagrun import get_or_create_dagrun
    from airflow.sdk import timezone
    from airflow.utils.session import create_session
    from airflow.utils.state import TaskInstanceState
    from airflow.utils.types import DagRunTriggeredByType

    now = timezone.utcnow()
    with create_session() as session:
        run = get_or_create_dagrun(
            dag=dag,
            run_id=f"run-{number}",
            logical_date=now,
            data_interval=None,
            run_after=now,
            conf=None,
            start_date=now,
            triggered_by=DagRunTriggeredByType.TEST,
            triggering_user_name="benchmark",
            session=session,
        )
        (ti,) = run.get_task_instances(session=session)
        ti.state, ti.try_number = TaskInstanceState.QUEUED, 1
        session.flush()
        return Workload.model_validate(ti, from_attributes=True).model_dump(mode="json")


def _state(ti_id: str) -> str:
    from uuid import UUID

    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        return str(session.scalar(select(TaskInstance.state).filter_by(id=UUID(ti_id))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("connections", help="JSON")
    arguments = parser.parse_args()
    from airflow.utils.db import initdb
    from airflow.utils.session import create_session

    with create_session() as session:
        initdb(session=session)
    dags = _store_dags(Path(os.environ["AIRFLOW__CORE__DAGS_FOLDER"]), json.loads(arguments.connections))
    print(json.dumps({"port": _serve()}), file=ANSWERS, flush=True)
    for number, line in enumerate(sys.stdin):
        command, _, about = line.strip().partition(" ")
        answer: Any
        if command == "queue":
            answer = _queue(dags[about], number)
        elif command == "state":
            answer = _state(about)
        else:
            answer = CALLS.copy()
        CALLS.clear()
        print(json.dumps(answer), file=ANSWERS, flush=True)


if __name__ == "__main__":
    # Airflow logs to standard output, where the answers are expected.
    ANSWERS = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    main()
