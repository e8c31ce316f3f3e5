"""An auth manager with permissions for each Dag: Airflow's simple one has roles only."""

from __future__ import annotations

from typing import Any

from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager

USERS = {
    "admin": "admin",  # all
    "painter": "viewer",  # the Dags whose names do not start with "secret"
    "blind": "viewer",  # all Dags, and of none the XComs
    "halfblind": "viewer",  # all Dags, and the XComs of those whose names do not start with "secret"
    "nobody": "viewer",  # no Dag
}


class AuthManagerOfTests(SimpleAuthManager):
    """Denies some users some Dags."""

    def is_authorized_dag(
        self, *, method: Any, user: Any, access_entity: Any = None, details: Any = None
    ) -> bool:
        secret = bool(details and details.id and details.id.startswith("secret"))
        xcom = access_entity is DagAccessEntity.XCOM
        name = user.username
        if name == "nobody" or (name == "painter" and secret) or (name == "blind" and xcom):
            return False
        if name == "halfblind" and secret and xcom:
            return False
        return super().is_authorized_dag(
            method=method, user=user, access_entity=access_entity, details=details
        )
