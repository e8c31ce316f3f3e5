"""The AWS connection names the bucket of tasks that name none."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

import pytest

from airflow_provider_jojokey.exceptions import JojoKeyConnectionError
from airflow_provider_jojokey.img2.request import ImageRequest
from airflow_provider_jojokey.payments.attempt import Owner
from airflow_provider_jojokey.payments.job import ImageJob
from airflow_provider_jojokey.store.default_bucket import default_bucket
from airflow_provider_jojokey.store.keys import Destination
from airflow_provider_jojokey.triggers.jojokey import GenerateImageTrigger

ALL_KINDS = """
@task.jojokey_image(size="1024x640")
def decorated():
    return {"prompt": "an owl", "s3_key": "owl.png"}

decorated()
GenerateImageOperator(task_id="plain", prompt="a fox", s3_key="{{ dag.dag_id }}/fox.png", size="1024x640")
GenerateImageOperator(task_id="rendered", prompt="a cat", s3_bucket="{{ none }}", s3_key="cat.png", size="1024x640")
GenerateImageOperator(task_id="deferred", prompt="a bear", s3_key="bear.png", size="1024x640", deferrable=True)
from airflow_provider_jojokey.operators.jojokey import GenerateImageBatchOperator
GenerateImageBatchOperator(
    task_id="batch", size="1024x640",
    requests=[{"prompt": "a cow", "s3_key": "cow.png"}, {"prompt": "an ox", "s3_key": "s3://others/ox.png"}],
)
"""


@pytest.fixture
def name_bucket(store: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Set the service_config of the AWS connection."""

    def name(service_config: Any) -> None:
        connection = json.loads(json.dumps(store.connection))
        connection["extra"]["service_config"] = service_config
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(connection))

    return name


def test_each_kind_of_task_uses_the_bucket_of_the_connection(
    airflow: Any, gateway: Any, store: Any, name_bucket: Any
) -> None:
    name_bucket({"s3": {"bucket_name": "posters"}})
    store.client.create_bucket(Bucket="others")

    run = airflow.run("default_bucket", ALL_KINDS)

    assert set(run.states.values()) == {"success"}
    images = {key for key in store.objects() if not key.startswith("_jojokey/")}
    assert images == {"default_bucket/fox.png", "cat.png", "owl.png", "bear.png", "cow.png"}
    assert run.xcom(task="plain")["images"][0]["uri"] == "s3://posters/default_bucket/fox.png"
    assert run.xcom(task="batch")["manifest"].startswith("s3://posters/_jojokey/")
    assert store.client.head_object(Bucket="others", Key="ox.png")


def test_bucket_of_the_task_takes_precedence(
    airflow: Any, gateway: Any, store: Any, name_bucket: Any
) -> None:
    name_bucket({"s3": {"bucket_name": "missing-bucket"}})
    body = """
    GenerateImageOperator(task_id="named", prompt="a fox", s3_bucket="posters", s3_key="fox.png", size="1024x640")
    GenerateImageOperator(task_id="url", prompt="an owl", s3_key="s3://posters/owl.png", size="1024x640")
    """
    run = airflow.run("own_bucket", body)
    assert set(run.states.values()) == {"success"}


def test_task_without_any_bucket_fails_before_it_sends(
    airflow: Any, gateway: Any, name_bucket: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    name_bucket({"s3": {}})
    image = 'GenerateImageOperator(task_id="image", prompt="a fox", s3_key="fox.png", retries=2)'
    run = airflow.run("no_bucket", image)
    assert run.state == "failed"
    assert run.tries["image", -1] == 1
    assert gateway.requests == ()
    printed = "".join(capfd.readouterr())
    assert "s3_bucket is missing" in printed
    assert "bucket_name in the service_config of the AWS connection" in printed
    assert "Nothing was sent or billed" in printed


def test_batch_without_any_bucket_names_its_items(
    airflow: Any, gateway: Any, name_bucket: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    name_bucket({})
    body = """
    from airflow_provider_jojokey.operators.jojokey import GenerateImageBatchOperator
    GenerateImageBatchOperator(task_id="batch", requests=[{"prompt": "a fox", "s3_key": "fox.png"}])
    """
    run = airflow.run("no_bucket_batch", body)
    assert run.state == "failed"
    assert gateway.requests == ()
    assert "requests[0]: s3_bucket is missing" in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    "service_config", [{"s3": {"bucket_name": 5}}, {"s3": {"bucket_name": "a/b"}}, {"s3": "x"}, ["s3"]]
)
def test_invalid_bucket_name_of_a_connection_is_rejected(
    store: Any, name_bucket: Any, service_config: Any
) -> None:
    name_bucket(service_config)
    with pytest.raises(JojoKeyConnectionError, match="bucket_name"):
        default_bucket("aws_default")


@pytest.mark.parametrize("service_config", [None, {}, {"s3": None}, {"s3": {}}, {"s3": {"bucket_name": ""}}])
def test_connection_may_name_no_bucket(store: Any, name_bucket: Any, service_config: Any) -> None:
    name_bucket(service_config)
    assert default_bucket("aws_default") is None


def test_missing_connection_has_no_default_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AIRFLOW_CONN_AWS_DEFAULT", raising=False)
    assert default_bucket("aws_default") is None
    assert default_bucket(None) is None


@pytest.mark.parametrize("named", [True, False])
def test_trigger_uses_the_bucket_of_the_connection(
    gateway: Any, store: Any, name_bucket: Any, named: bool
) -> None:
    name_bucket({"s3": {"bucket_name": "posters"}} if named else {})
    owner = Owner("dag", uuid.uuid4().hex, "image")
    job = ImageJob(ImageRequest("a fox"), Destination("posters", "fox.png"), owner).to_json()
    job["destination"]["bucket"] = None
    trigger = GenerateImageTrigger(job, "jojokey_default", "aws_default")

    async def first_event() -> Any:
        async for event in trigger.run():
            return event.payload

    event = asyncio.run(first_event())

    if named:
        assert event["manifest"]["images"][0]["uri"] == "s3://posters/fox.png"
        assert event["job"]["destination"]["bucket"] == "posters"
    else:
        assert "s3_bucket is missing" in event["error"]["what"]
        assert gateway.requests == ()
