"""An API server for all of these tests, and an empty database for each."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator

import pytest

from tests.support.airflow import Airflow, Store, _gateway, gateway
from tests.support.api_server import Book, Server, api_server, aws

__all__ = ["_gateway", "gateway"]


@pytest.fixture(scope="session")
def server(
    airflow: Airflow, _stores: dict[str, Store], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """The API server of these tests; its connection to S3 is that of the store."""
    environment = {
        "AIRFLOW_CONN_AWS_DEFAULT": aws(_stores["moto"]),
        "AIRFLOW_CONN_NO_STORE": json.dumps(
            {
                "conn_type": "aws",
                "login": "AKIA-of-nobody",
                "password": "secret-of-nobody",
                "extra": {"endpoint_url": "http://127.0.0.1:9"},
            }
        ),
        "AIRFLOW_CONN_ON_AWS": json.dumps(
            {"conn_type": "aws", "login": "AKIA", "password": "x", "extra": {"region_name": "eu-central-1"}}
        ),
        "AIRFLOW_CONN_A_DATABASE": json.dumps({"conn_type": "postgres", "login": "me", "password": "mine"}),
    }
    with api_server(tmp_path_factory.mktemp("server"), environment) as running:
        yield running


@pytest.fixture
def book(airflow: Airflow) -> Iterator[Book]:
    """Airflow's database without the results of earlier tests. Later tests don't find the Dags of this one."""
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session
    from sqlalchemy import delete

    with create_session() as session:
        session.execute(delete(XComModel))
    book = Book()
    yield book
    book.remove_dags()


@pytest.fixture
def dag_id() -> str:
    """The ID of a Dag that only this test uses."""
    return f"dag_{uuid.uuid4().hex[:8]}"
