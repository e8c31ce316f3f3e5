"""Links on the *Details* tab of a task."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import pytest

from airflow_provider_jojokey.links.jojokey import s3_console_url
from airflow_provider_jojokey.links.paths import tab_path
from tests.support.api_server import Book, Server

ONE = 'GenerateImageOperator(task_id="image", prompt="a fox", s3_key="s3://posters/{dag}.png"{more})'
MAPPED = """
GenerateImageOperator.partial(task_id="image", prompt="a fox").expand(
    s3_key=["s3://posters/{dag}-a.png", "s3://posters/{dag}-b.png"]
)
"""


def links(server: Server, dag_id: str, run_id: str, map_index: int = -1) -> Any:
    path = f"/api/v2/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}/taskInstances/image/links"
    answer = server.get(path, params={"map_index": map_index})
    assert answer.status_code == 200, answer.text
    return answer.json()["extra_links"]


def test_task_links_to_its_images(
    airflow: Any, gateway: Any, store: Any, server: Server, book: Book, dag_id: str
) -> None:
    run = airflow.run(dag_id, ONE.format(dag=dag_id, more=""))
    assert links(server, dag_id, run.run_id) == {
        "Images": tab_path(dag_id, run.run_id, "image"),
        "S3 console": None,  # the sandbox's store has none
    }


def test_mapped_task_links_to_its_own_images(
    airflow: Any, gateway: Any, store: Any, server: Server, book: Book, dag_id: str
) -> None:
    run = airflow.run(dag_id, MAPPED.format(dag=dag_id))
    for index in (0, 1):
        found = links(server, dag_id, run.run_id, index)
        assert found["Images"] == tab_path(dag_id, run.run_id, "image", index)
        assert f"/mapped/{index}/" in found["Images"]


def test_failed_task_links_to_its_images(
    airflow: Any, gateway: Any, store: Any, server: Server, book: Book, dag_id: str
) -> None:
    run = airflow.run(
        dag_id, ONE.format(dag=dag_id, more="").replace("a fox", "[sandbox: moderation_blocked]")
    )
    assert run.state == "failed"
    assert links(server, dag_id, run.run_id)["Images"] == tab_path(dag_id, run.run_id, "image")


def test_bucket_on_aws_has_a_console_link(
    airflow: Any, gateway: Any, store: Any, server: Server, book: Book, dag_id: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    # The endpoint is only in boto3's own configuration, so the connection doesn't name it, as on AWS.
    connection = json.loads(json.dumps(store.connection))
    endpoint = connection["extra"].pop("endpoint_url")
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(connection))
    body = (
        "import os\n"
        "class Elsewhere(GenerateImageOperator):\n"
        "    def execute(self, context):\n"
        f"        os.environ['AWS_ENDPOINT_URL_S3'] = {endpoint!r}\n"
        "        try: return super().execute(context)\n"
        "        finally: del os.environ['AWS_ENDPOINT_URL_S3']\n"
        f"Elsewhere(task_id='image', prompt='a fox', s3_key='s3://posters/{dag_id}.png')"
    )
    run = airflow.run(dag_id, body)
    assert run.state == "success"
    assert links(server, dag_id, run.run_id)["S3 console"] == (
        f"https://console.aws.amazon.com/s3/object/posters?region=us-east-1&prefix={dag_id}.png"
    )


@pytest.mark.parametrize(
    ("partition", "region", "start"),
    [
        ("aws", "eu-central-1", "https://console.aws.amazon.com/s3/object/b?region=eu-central-1&"),
        ("aws-cn", "cn-north-1", "https://console.amazonaws.cn/s3/object/b?region=cn-north-1&"),
        ("aws-us-gov", "us-gov-west-1", "https://console.amazonaws-us-gov.com/s3/object/b?region=us-gov-"),
        ("aws", None, "https://console.aws.amazon.com/s3/object/b?prefix="),
    ],
)
def test_console_link_follows_the_aws_partition(partition: str, region: str | None, start: str) -> None:
    url = s3_console_url(["s3://b/ä/&?.png"], region, partition)
    assert url is not None
    assert url.startswith(start)
    assert url.endswith("prefix=%C3%A4%2F%26%3F.png")
    assert s3_console_url(["s3://b/k"], region, "aws-iso") is None


@pytest.mark.parametrize(
    ("bucket", "expected"),
    [
        (
            "arn:aws:s3:eu-central-1:123456789012:accesspoint/posters",
            "https://console.aws.amazon.com/s3/ap/123456789012/posters?region=eu-central-1",
        ),
        (
            "arn:aws:s3:eu-central-1:123456789012:accesspoint:posters",
            "https://console.aws.amazon.com/s3/ap/123456789012/posters?region=eu-central-1",
        ),
        (
            "arn:aws-cn:s3:cn-north-1:123456789012:accesspoint/posters",
            "https://console.amazonaws.cn/s3/ap/123456789012/posters?region=cn-north-1",
        ),
        (
            "arn:aws:s3-object-lambda:eu-central-1:123456789012:accesspoint/posters",
            "https://console.aws.amazon.com/s3/olap/123456789012/posters?region=eu-central-1",
        ),
        ("arn:aws:s3::123456789012:accesspoint/mfzwi23gnjvgw.mrap", None),
        ("arn:aws:s3-outposts:us-east-1:123456789012:outpost/op-1/accesspoint/posters", None),
        ("arn:aws-iso:s3:us-iso-east-1:123456789012:accesspoint/posters", None),
        ("posters-hrzrlukc5m36ft7okagglf3gmwluquse1b-s3alias", None),
        ("posters--use1-az4--x-s3", None),
        ("posters-hrzrlukc5m36ft7okagglf3gmwluqus--ol-s3", None),
        ("mfzwi23gnjvgw.mrap", None),
    ],
)
def test_console_link_of_an_access_point_is_right_or_none(bucket: str, expected: str | None) -> None:
    # The connection's region can differ from that of the access point.
    assert s3_console_url([f"s3://{bucket}/hero.png"], "us-west-2", "aws") == expected
    folder = None if expected is None else f"{expected}&prefix=spring%2F"
    uris = [f"s3://{bucket}/spring/hero-{index}.png" for index in range(2)]
    assert s3_console_url(uris, "us-west-2", "aws") == folder
