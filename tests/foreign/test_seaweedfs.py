"""SeaweedFS as S3: images and receipts of a whole task, and its conditional writes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.programs import free_port, program, running

KEYS = ("seaweed", "seaweed-secret-key")


@pytest.fixture(scope="module")
def s3_url(log_folder: Path) -> Iterator[str]:
    folder = log_folder / "seaweedfs"
    folder.mkdir()
    config = log_folder / "s3.json"
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": KEYS[0], "secretKey": KEYS[1]}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    config.write_text(json.dumps({"identities": [identity]}))
    # SeaweedFS adds 10,000 to each port for gRPC.
    ports = {name: free_port() % 40_000 + 1024 for name in ("master", "volume", "filer", "s3")}
    url = f"http://127.0.0.1:{ports['s3']}"
    command = [
        program("seaweedfs/bin/weed"), "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3",
        f"-s3.config={config}", "-volume.max=5", "-master.volumeSizeLimitMB=64",
        *(f"-{name}.port={port}" for name, port in ports.items()),
    ]  # fmt: skip
    with running(command, url, log_folder / "seaweedfs.log"):
        yield url


@pytest.fixture(scope="module")
def s3(s3_url: str) -> Any:
    import time

    import boto3
    from botocore.config import Config
    from botocore.exceptions import ClientError

    client = boto3.client(
        "s3", endpoint_url=s3_url, aws_access_key_id=KEYS[0], aws_secret_access_key=KEYS[1], region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 1}),
    )  # fmt: skip
    for _ in range(60):  # its filer starts a little later than its port
        try:
            client.create_bucket(Bucket="posters")
            break
        except ClientError:
            time.sleep(0.5)
    return client


def test_seaweedfs_keeps_objects(s3: Any) -> None:
    s3.put_object(
        Bucket="posters",
        Key="fox.png",
        Body=b"fox",
        ContentType="image/png",
        Metadata={"model": "gpt-image-2"},
    )
    found = s3.get_object(Bucket="posters", Key="fox.png")
    assert (found["Body"].read(), found["ContentType"], found["Metadata"]) == (
        b"fox",
        "image/png",
        {"model": "gpt-image-2"},
    )


def test_seaweedfs_supports_conditional_writes(s3: Any) -> None:
    from botocore.exceptions import ClientError

    first = s3.put_object(Bucket="posters", Key="_jojokey/fox.json", Body=b"1", IfNoneMatch="*")
    with pytest.raises(ClientError) as taken:
        s3.put_object(Bucket="posters", Key="_jojokey/fox.json", Body=b"2", IfNoneMatch="*")
    assert taken.value.response["ResponseMetadata"]["HTTPStatusCode"] == 412
    second = s3.put_object(Bucket="posters", Key="_jojokey/fox.json", Body=b"3", IfMatch=first["ETag"])
    with pytest.raises(ClientError) as stale:
        s3.put_object(Bucket="posters", Key="_jojokey/fox.json", Body=b"4", IfMatch=first["ETag"])
    assert stale.value.response["ResponseMetadata"]["HTTPStatusCode"] == 412
    assert second["ETag"] != first["ETag"]
    assert s3.get_object(Bucket="posters", Key="_jojokey/fox.json")["Body"].read() == b"3"


def test_store_works_on_seaweedfs(s3: Any, s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow_provider_jojokey.store.s3 import ImageStore

    extra = {
        "endpoint_url": s3_url,
        "region_name": "us-east-1",
        "config_kwargs": {"s3": {"addressing_style": "path"}},
    }
    connection = {"conn_type": "aws", "login": KEYS[0], "password": KEYS[1], "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_SEAWEEDFS", json.dumps(connection))
    store = ImageStore("seaweedfs")
    assert store.read("posters", "_jojokey/owl.json") is None
    tag = store.write("posters", "_jojokey/owl.json", b"1", None)
    assert tag is not None
    assert store.write("posters", "_jojokey/owl.json", b"2", None) is None, "it was there already"
    assert store.write("posters", "_jojokey/owl.json", b"3", tag) is not None
    found = store.read("posters", "_jojokey/owl.json")
    assert found is not None
    assert found[0] == b"3"
    assert store.size_of("posters", "_jojokey/owl.json") == 1
    assert store.size_of("posters", "no.png") is None
