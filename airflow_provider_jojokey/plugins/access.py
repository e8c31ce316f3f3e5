"""Who may see what: the permissions of Airflow's own XCom view."""

from __future__ import annotations

from typing import Annotated, Any

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_dag
from airflow.configuration import conf
from airflow.models.dag import DagModel
from fastapi import Depends

readable_xcom = requires_access_dag(method="GET", access_entity=DagAccessEntity.XCOM)
"""Refuses who may not read the XComs of the path's Dag. A sub-application inherits no permissions."""


def readable_dags(user: GetUserDep) -> frozenset[str]:
    """Return the Dags whose XComs the user may read."""
    manager = get_auth_manager()
    dag_ids = sorted(manager.get_authorized_dag_ids(user=user, method="GET"))
    teams = _teams(dag_ids)
    # Who may see a Dag may not always see its XComs: auth managers tell the two apart.
    requests: list[Any] = [
        {
            "method": "GET",
            "access_entity": DagAccessEntity.XCOM,
            "details": DagDetails(id=one, team_name=teams.get(one)),
        }
        for one in dag_ids
    ]
    if manager.batch_is_authorized_dag(requests, user=user):  # the usual case, and one question for all
        return frozenset(dag_ids)
    return frozenset(one["details"].id for one in requests if manager.is_authorized_dag(**one, user=user))


ReadableDags = Annotated[frozenset[str], Depends(readable_dags)]


def _teams(dag_ids: list[str]) -> dict[str, str | None]:
    if hasattr(DagModel, "get_dag_id_to_team_name_mapping"):
        return DagModel.get_dag_id_to_team_name_mapping(dag_ids) if dag_ids else {}
    if not conf.getboolean("core", "multi_team", fallback=False):
        return {}
    return {one: DagModel.get_team_name(one) for one in dag_ids}  # Airflow 3.1
