"""A worker for :mod:`benchmarks.task`: it holds what LocalExecutor's processes hold, and runs tasks as they do.

Each line on standard input is a task as JSON. The worker forks a process that supervises it; that process forks the
task's own. The answer has the CPU time and the peak memory of the latter.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import sys
from typing import Any

# Modules that a scheduler has loaded when LocalExecutor forks its workers.
import airflow.jobs.scheduler_job_runner  # noqa: F401
from airflow.executors.base_executor import BaseExecutor  # noqa: F401
from airflow.executors.local_executor import LocalExecutor  # noqa: F401
from airflow.executors.workloads import BundleInfo, TaskInstance
from airflow.sdk.execution_time import supervisor

_supervise = getattr(supervisor, "supervise_task", None) or supervisor.supervise


def _run(task: dict[str, Any], server: str) -> dict[str, Any]:
    reading, writing = os.pipe()
    gc.freeze()
    if not (child := os.fork()):
        os.close(reading)
        code = _supervise(
            ti=TaskInstance.model_validate(task["ti"]),
            bundle_info=BundleInfo(name="dags-folder", version=None),
            dag_rel_path=task["file"],
            token="",
            server=server,
            log_path=task["log"],
        )
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        found = {"code": code, "cpu": used.ru_utime + used.ru_stime, "peak": used.ru_maxrss * 1024}
        os.write(writing, json.dumps(found).encode())
        os._exit(0)
    gc.unfreeze()
    os.close(writing)
    with os.fdopen(reading) as answers:
        answer: dict[str, Any] = json.loads(answers.read() or "{}")
    os.waitpid(child, 0)
    return answer


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Airflow logs to standard output, where the answers are expected
    print("{}", file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(_run(json.loads(line), sys.argv[1])), file=answers, flush=True)


if __name__ == "__main__":
    main()
