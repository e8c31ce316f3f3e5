"""Authorization of the routes: the same permissions as Airflow's own XCom view."""

from __future__ import annotations

from typing import Annotated, Any

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_dag
from airflow.configuration import conf
from airflow.models.dag import DagModel
from fastapi import Depends, Path

readable_xcom = requires_access_dag(method="GET", access_entity=DagAccessEntity.XCOM)
"""Rejects users who may not read the XComs of the path's Dag. A mounted application doesn't inherit checks."""

DagId = Annotated[str, Path()]
MapIndex = Annotated[int, Path(ge=-1, lt=2**31)]


def readable_dags(user: GetUserDep) -> frozenset[str]:
    """Return the Dags whose XComs the user may read."""
    manager = get_auth_manager()
    dag_ids = sorted(manager.get_authorized_dag_ids(user=user, method="GET"))
    teams = _teams(dag_ids)
    # Auth managers can allow a user to read a Dag but not its XComs, so check the XComs as well.
    requests: list[Any] = [
        {
            "method": "GET",
            "access_entity": DagAccessEntity.XCOM,
            "details": DagDetails(id=dag_id, team_name=teams.get(dag_id)),
        }
        for dag_id in dag_ids
    ]
    if manager.batch_is_authorized_dag(requests, user=user):  # the usual case, in a single call
        return frozenset(dag_ids)
    return frozenset(
        request["details"].id for request in requests if manager.is_authorized_dag(**request, user=user)
    )


ReadableDags = Annotated[frozenset[str], Depends(readable_dags)]


def _teams(dag_ids: list[str]) -> dict[str, str | None]:
    if hasattr(DagModel, "get_dag_id_to_team_name_mapping"):
        return DagModel.get_dag_id_to_team_name_mapping(dag_ids) if dag_ids else {}
    if not conf.getboolean("core", "multi_team", fallback=False):
        return {}
    return {dag_id: DagModel.get_team_name(dag_id) for dag_id in dag_ids}  # Airflow 3.1
