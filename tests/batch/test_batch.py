"""GenerateImageBatchOperator in a real Airflow, against real servers."""

from __future__ import annotations

import hashlib
import json
import os
import re
import uuid
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_provider_jojokey.batch.manifest import Manifest
from airflow_provider_jojokey.exceptions import JojoKeyStoreError
from airflow_provider_jojokey.operators.jojokey import GenerateImageBatchOperator
from airflow_provider_jojokey.results import Result
from tests.support.campaigns import posters


def test_batch_generates_each_image_once(any_campaign: Any, gateway: Any) -> None:
    run = any_campaign.run("campaign", posters(12), max_in_flight=4)

    assert run.state == "success"
    assert len(gateway.requests) == len(gateway.charges) == 12
    assert gateway.peak_in_flight <= 4
    summary = run.xcom("return_value", "batch")
    billed = sum(record.total_tokens for record in gateway.charges)
    assert {name: summary[name] for name in ("version", "total", "made", "reused", "failed", "images")} == {
        "version": 1,
        "total": 12,
        "made": 12,
        "reused": 0,
        "failed": 0,
        "images": 12,
    }
    assert summary["usage"]["total_tokens"] == run.xcom("usage", "batch")["total_tokens"] == billed
    assert run.xcom("keys", "batch") == [f"posters/{number:03}.png" for number in range(12)]
    objects = any_campaign.store.objects("posters/")
    lines = any_campaign.manifest(run)
    assert [line["index"] for line in lines] == list(range(12))
    for line in lines:
        (image,) = line["images"]
        assert image["sha256"] == hashlib.sha256(objects[image["key"]]).hexdigest()
        assert line["prompt"] == f"a poster, number {line['index']}"
        assert line["receipt"] == f"s3://posters/_jojokey/{image['key']}.json"


def test_empty_batch_succeeds(campaign: Any, gateway: Any) -> None:
    run = campaign.run("nothing", [])

    assert run.state == "success"
    assert run.xcom("return_value", "batch")["total"] == 0
    result = Result.from_xcom(run.xcom("jojokey_images", "batch"))
    assert result is not None
    assert (result.batch, result.reused, result.paid) == (True, False, "no")
    assert gateway.requests == ()


@pytest.mark.parametrize("item", [{}, {"size": "1536x1024"}, {"model": "gpt-image-3"}, {"quality": "high"}])
def test_result_shows_options_that_all_items_have(campaign: Any, gateway: Any, item: dict[str, str]) -> None:
    other = {"prompt": "an owl", "s3_key": "posters/owl.png", **item}
    run = campaign.run("options", [*posters(2), other])

    result = Result.from_xcom(run.xcom("jojokey_images", "batch"))
    assert result is not None
    assert result.prompt == "a poster, number 0"
    same = {"model": "gpt-image-2", "size": "1024x1024", "quality": "low"}
    assert {name: getattr(result, name) for name in same} == same | dict.fromkeys(item)


def test_items_are_not_read_again_once_all_are_paid(store: Any, gateway: Any) -> None:
    """Items from a mapped task are read from Airflow's API server, one by one."""

    class Items(Sequence[Any]):
        def __getitem__(self, index: Any) -> Any:
            found = posters(3)[index]
            charges.append(len(gateway.charges))
            return found

        def __len__(self) -> int:
            return 3

    charges: list[int] = []
    pushed: dict[str, Any] = {}
    ti = SimpleNamespace(
        dag_id="dag", run_id=uuid.uuid4().hex, task_id="batch", map_index=-1, try_number=1,
        xcom_push=pushed.__setitem__,
    )  # fmt: skip
    operator = GenerateImageBatchOperator(task_id="batch", s3_bucket="posters", requests=Items())
    operator.execute({"ti": ti})  # type: ignore[typeddict-item]

    assert len(gateway.charges) == 3
    assert charges
    assert 3 not in charges
    assert pushed["jojokey_images"]["prompt"] == "a poster, number 0"


def test_log_shows_cost_before_and_after(
    campaign: Any, gateway: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    campaign.run("cost_in_log", posters(3))

    log = "".join(capfd.readouterr())
    before = re.search(
        r"3 items, about (\d+) tokens and 3 images \(≈ USD (0\.\d+)\), at most 8 in flight", log
    )
    assert before
    billed = sum(record.total_tokens for record in gateway.charges)
    assert abs(int(before[1]) - billed) < 0.1 * billed
    after = re.search(
        rf"3 of 3 done: 3 made, 0 reused, 0 failed; 0 in flight, {billed:,} tokens, cost ≈ USD (0\.\d+)", log
    )
    assert after
    assert float(before[2]) == pytest.approx(float(after[1]), rel=0.1)


def test_items_can_have_their_own_options(campaign: Any, gateway: Any) -> None:
    campaign.store.client.create_bucket(Bucket="elsewhere")
    requests = [
        {"prompt": "a fox", "s3_key": "fox.{ext}", "output_format": "webp", "n": "2"},
        {"prompt": "a cat", "s3_key": "s3://elsewhere/cat.png", "quality": "medium"},
        {"prompt": "a dog", "s3_key": "dog.png", "s3_bucket": "elsewhere", "size": "", "background": None},
    ]

    run = campaign.run("options", requests, size="1536x1024")

    assert run.state == "success", run.states
    assert run.xcom("keys", "batch") == ["fox-0.png", "fox-1.png", "cat.png", "dog.png"]
    bodies = {request.prompt: request.body for request in gateway.requests}
    assert bodies["a fox"]["output_format"] == "webp"
    assert bodies["a cat"]["quality"] == "medium"
    assert {body["size"] for body in bodies.values()} == {"1536x1024"}
    images = [image["uri"] for line in campaign.manifest(run) for image in line["images"]]
    assert images == [
        "s3://posters/fox-0.png",
        "s3://posters/fox-1.png",
        "s3://elsewhere/cat.png",
        "s3://elsewhere/dog.png",
    ]


def test_literal_list_is_templated(airflow: Any, gateway: Any, store: Any) -> None:
    run = airflow.run(
        "templated_batch",
        """
        from airflow_provider_jojokey.operators.jojokey import GenerateImageBatchOperator
        GenerateImageBatchOperator(
            task_id="image", s3_bucket="posters", max_in_flight="{{ params.many }}",
            requests=[{"prompt": "a {{ params.what }}", "s3_key": "{{ params.what }}.png"}],
        )
        """,
        params={"what": "fox", "many": 2},
    )

    assert run.xcom("keys") == ["fox.png"]
    assert gateway.requests[0].prompt == "a fox"


def test_xcoms_of_300_items_are_small(campaign: Any, gateway: Any) -> None:
    run = campaign.run("hundreds", posters(300, "p " * 900 + "{}"), max_in_flight=16)

    assert run.state == "success"
    assert len(gateway.charges) == 300
    own = {key: value for (task, _, key), value in run.xcoms.items() if task == "batch"}
    assert "keys" not in own
    assert len(json.dumps(own)) < 8_000
    shown = own["jojokey_images"]
    assert [image["key"] for image in shown["images"]] == [f"posters/{number:03}.png" for number in range(12)]
    assert shown["count"] == own["return_value"]["images"] == 300
    assert len(campaign.manifest(run)) == 300


def test_all_invalid_items_are_reported_before_sending(
    campaign: Any, gateway: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    requests: list[Any] = [
        {"prompt": "good", "s3_key": "good.png"},
        {"prompt": "", "s3_key": "empty.png"},
        {"prompt": "x"},
        "a fox",
        {"prompt": "x", "s3_key": "size.png", "size": "1000x1000"},
        {"prompt": "x", "s3_key": "n.png", "n": 11},
        {"prompt": "x", "s3_key": "../../etc/passwd"},
        {"prompt": "x", "s3_key": "_jojokey/batches/x.png"},
        {"prompt": "x", "s3_key": "good.png"},
        {"prompt": "x", "s3_key": "typo.png", "qualty": "high"},
        {"prompt": "x", "s3_key": "line\nbreak.png"},
        {"prompt": ["x"], "s3_key": "list.png"},
        {"prompt": "x", "s3_key": {"a": 1}},
        {"prompt": "x", "s3_key": "body.png", "extra_body": {"n": 10}},
        {"prompt": "x", "s3_key": "reuse.png", "reuse": "perhaps"},
        {"prompt": "x", "s3_key": "token.png", "jojokey_conn_id": "other"},
        {"prompt": "x" * 32_001, "s3_key": "long.png"},
        None,
    ]

    run = campaign.run("hostile", requests, retries=3)

    out = capfd.readouterr().out
    assert run.state == "failed"
    assert run.tries["batch", -1] == 1
    assert gateway.requests == ()
    assert campaign.store.objects() == {}
    assert "17 of 18 requests are not valid" in out
    for index in range(1, 18):
        assert f"requests[{index}]: " in out, index
    assert "like item 0" in out
    assert "'1008x1008'" in out


def test_keys_that_collide_once_rendered_are_rejected(campaign: Any, gateway: Any) -> None:
    requests = [
        {"prompt": "x", "s3_key": "hero.{ext}", "n": 2},
        {"prompt": "x", "s3_key": "hero-1.png"},
    ]

    run = campaign.run("meeting", requests)

    assert run.state == "failed"
    assert gateway.requests == ()


@pytest.mark.parametrize("requests", ["a fox", {"prompt": "x", "s3_key": "x.png"}, 7])
def test_requests_that_are_not_a_list_are_rejected(campaign: Any, gateway: Any, requests: Any) -> None:
    run = campaign.run("no_list", requests)

    assert run.state == "failed"
    assert gateway.requests == ()


def test_unusable_spool_directory_fails_batch_unpaid(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(JojoKeyStoreError, match="spool directory") as caught:
        Manifest(tmp_path / "file" / "spool", 1)
    assert caught.value.billed == "no"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder to another user")
def test_manifest_is_in_private_part_of_shared_spool(tmp_path: Path) -> None:
    os.chown(tmp_path, 12345, 12345)
    manifest = Manifest(tmp_path, 1)
    manifest.add(0, {"state": "complete"})
    assert [path.name for path in tmp_path.iterdir()] == [f"uid-{os.getuid()}"]
    manifest.close()
