"""The rendered arguments of a task, as Airflow stores them."""

from __future__ import annotations

from typing import Any


def shown(dag_id: str, run_id: str, task_id: str) -> dict[str, Any]:
    """Return the rendered fields that Airflow's UI shows."""
    from airflow.models.renderedtifields import RenderedTaskInstanceFields
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        where = {"dag_id": dag_id, "run_id": run_id, "task_id": task_id}
        row = session.scalar(select(RenderedTaskInstanceFields).filter_by(**where))
        assert row is not None
        return row.rendered_fields
