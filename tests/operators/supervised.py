"""Runs a Dag as a worker does: each task in a separate process, under Airflow's supervisor.

`dag.test()` runs tasks in its own process, without the metrics and the span that Airflow adds to each task in a worker,
and without sending them at the end. The arguments of this script are the Dag's ID, its file, the file for the outcome
of the run, and optionally the word `instrumented`, which sets OpenTelemetry up before the worker starts.
"""

from __future__ import annotations

import json
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
    """Replace Airflow's function of the same name: run the task in a separate process."""
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session
    from sqlalchemy import select

    _supervise(
        ti=ti,
        bundle_info=BundleInfo(name="dags-folder", version=None),
        dag_rel_path=Path(task.dag.fileloc).name,
        token="",
        client=supervisor.InProcessTestSupervisor._api_client(task.dag),
        subprocess_logs_to_stdout=True,
    )
    with create_session() as session:
        state = session.scalar(select(TaskInstance.state).filter_by(**_key(ti)))
    return SimpleNamespace(ti=SimpleNamespace(state=state, task=task), state=state, msg=None, error=None)


def _key(ti: Any) -> dict[str, Any]:
    return {name: getattr(ti, name) for name in ("dag_id", "run_id", "task_id", "map_index")}


def set_up_opentelemetry() -> None:
    """Do what `opentelemetry-instrument` does: one provider for all, which sends spans in batches."""
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


def run(dag_id: str, path: str) -> dict[str, Any]:
    bag = DagBag(path)
    assert not bag.import_errors, bag.import_errors
    dag_run = bag.dags[dag_id].test()
    states = {ti.task_id: str(ti.state) for ti in dag_run.get_task_instances()}
    return {"run_id": dag_run.run_id, "states": states}


if __name__ == "__main__":
    if "instrumented" in sys.argv[4:]:
        set_up_opentelemetry()
    supervisor.run_task_in_process = run_task_in_process
    Path(sys.argv[3]).write_text(json.dumps(run(*sys.argv[1:3])))
