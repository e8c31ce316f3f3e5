"""S3 requests of a batch's retry, and changes that it detects."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_provider_jojokey.operators.jojokey import GenerateImageBatchOperator
from airflow_provider_jojokey.store.s3 import ImageStore
from tests.support.campaigns import posters

ITEMS = 30
DELETED = "deleted"


class Tries:
    """Runs one batch several times, as a cleared task does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.requests: Counter[str] = Counter()
        self.alter: Callable[[dict[str, Any]], object] = lambda response: None
        """Changes what a listing returns."""
        request = ImageStore._request

        def counted(store: ImageStore, operation: str, *arguments: Any, **parameters: Any) -> Any:
            self.requests[operation] += 1
            response = request(store, operation, *arguments, **parameters)
            if operation == "list_objects_v2":
                self.alter(response)
            return response

        monkeypatch.setattr(ImageStore, "_request", counted)
        self.number = 0

    def run(self, items: list[dict[str, Any]], **arguments: Any) -> dict[str, Any]:
        self.number += 1
        self.requests.clear()
        ti = SimpleNamespace(
            dag_id="dag",
            run_id="run",
            task_id="batch",
            map_index=-1,
            try_number=self.number,
            xcom_push=lambda *_, **__: None,
        )
        operator = GenerateImageBatchOperator(
            task_id="batch", requests=items, s3_bucket="posters", **arguments
        )
        result: dict[str, Any] = operator.execute({"ti": ti})  # type: ignore[typeddict-item]
        return result


@pytest.fixture
def tries(store: Any, gateway: Any, monkeypatch: pytest.MonkeyPatch) -> Tries:
    return Tries(monkeypatch)


def test_complete_items_need_no_requests_in_a_retry(tries: Tries, gateway: Any) -> None:
    first = tries.run(posters(ITEMS - 1))

    result = tries.run(posters(ITEMS))

    assert (result["reused"], result["made"]) == (ITEMS - 1, 1)
    assert result["usage"]["total_tokens"] > first["usage"]["total_tokens"]
    assert sum(tries.requests.values()) <= 15
    assert len(gateway.charges) == ITEMS


@pytest.mark.parametrize(
    "alter",
    [
        pytest.param(lambda response: response.update(IsTruncated=True), id="truncated without a token"),
        pytest.param(lambda response: response.pop("Contents", None), id="empty"),
        pytest.param(
            lambda response: [item.pop("ETag") for item in response.get("Contents", ())], id="no ETags"
        ),
    ],
)
def test_odd_listing_neither_fails_a_retry_nor_pays_again(
    tries: Tries, gateway: Any, alter: Callable[[dict[str, Any]], object]
) -> None:
    tries.run(posters(ITEMS - 1))
    tries.alter = alter

    result = tries.run(posters(ITEMS))

    assert (result["reused"], result["made"]) == (ITEMS - 1, 1)
    assert len(gateway.charges) == ITEMS


def test_third_try_knows_images_that_the_second_reused(tries: Tries) -> None:
    tries.run(posters(ITEMS))
    tries.run(posters(ITEMS))

    result = tries.run(posters(ITEMS))

    assert result["reused"] == ITEMS
    assert sum(tries.requests.values()) <= 10


def test_deleted_image_is_noticed_in_a_retry(tries: Tries, store: Any, gateway: Any) -> None:
    tries.run(posters(ITEMS))
    store.client.delete_object(Bucket="posters", Key="posters/003.png")

    with pytest.raises(Exception, match="1 of 30 items has no images"):
        tries.run(posters(ITEMS))
    assert len(gateway.charges) == ITEMS


def test_replaced_image_of_equal_size_is_noticed_in_a_retry(tries: Tries, store: Any) -> None:
    tries.run(posters(ITEMS))
    receipt = store.client.head_object(Bucket="posters", Key="_jojokey/posters/003.png.json")
    image = store.client.get_object(Bucket="posters", Key="posters/003.png")
    body = image["Body"].read()[::-1]
    modified = receipt["LastModified"]
    while modified <= receipt["LastModified"]:
        store.client.put_object(
            Bucket="posters", Key="posters/003.png", Body=body, Metadata={"sha256": "0" * 64}
        )
        modified = store.client.head_object(Bucket="posters", Key="posters/003.png")["LastModified"]
        time.sleep(0.1)

    with pytest.raises(Exception, match="1 of 30 items has no images"):
        tries.run(posters(ITEMS))


def test_changed_receipt_is_read_in_a_retry(tries: Tries, store: Any) -> None:
    tries.run(posters(ITEMS))
    key = "_jojokey/posters/003.png.json"
    body = store.client.get_object(Bucket="posters", Key=key)["Body"].read()
    store.client.put_object(Bucket="posters", Key=key, Body=body + b"\n")

    result = tries.run(posters(ITEMS))

    assert result["reused"] == ITEMS
    assert (tries.requests["get_object"], tries.requests["head_object"]) == (2, 1)


def test_changed_prompt_is_paid_for_in_a_retry(tries: Tries, gateway: Any) -> None:
    tries.run(posters(ITEMS))
    items = posters(ITEMS)
    items[3]["prompt"] = "another image"

    result = tries.run(items)

    assert (result["reused"], result["made"]) == (ITEMS - 1, 1)
    assert len(gateway.charges) == ITEMS + 1


def test_moved_items_are_checked_individually(tries: Tries, gateway: Any) -> None:
    tries.run(posters(ITEMS))

    result = tries.run(posters(ITEMS)[5:])

    assert result["reused"] == ITEMS - 5
    assert len(gateway.charges) == ITEMS


def test_manifest_of_a_killed_try_is_not_relied_on(tries: Tries, store: Any, gateway: Any) -> None:
    tries.run(posters(ITEMS))
    keys = store.client.list_objects_v2(Bucket="posters", Prefix="_jojokey/batches/")["Contents"]
    store.client.put_object(Bucket="posters", Key=keys[0]["Key"], Body=b'{"version": 1, "manifest": "x"}\n')

    result = tries.run(posters(ITEMS))

    assert result["reused"] == ITEMS
    assert len(gateway.charges) == ITEMS


def test_reuse_never_pays_again_in_a_retry(tries: Tries, gateway: Any) -> None:
    tries.run(posters(5))

    result = tries.run(posters(5), reuse="never")

    assert result["made"] == 5
    assert len(gateway.charges) == 10


@pytest.mark.parametrize(
    "change",
    [
        {"usage": DELETED},
        {"usage": None},
        {"usage": "many"},
        {"cost": DELETED},
        {"cost": None},
        {"cost": 7},
        {"cost": {"amounts": [{"amount": 1}], "unknown": 0}},
        {"version": 99},
        {"images": [{}]},
        {"reused": DELETED, "state": "unknown"},
        {"receipt": None},
        {"settled": None},
        {"uri": DELETED},
    ],
    ids=str,
)
def test_line_of_another_version_is_checked_in_a_retry(
    tries: Tries, store: Any, gateway: Any, change: dict[str, Any]
) -> None:
    items = posters(3)
    first = tries.run(items)
    (key,) = (key for key in store.objects("_jojokey/batches/") if key.endswith(".jsonl"))
    lines = [json.loads(line) for line in store.objects(key)[key].splitlines()]
    for name, value in change.items():
        changed = lines[1]["images"][0] if name == "uri" else lines[1]
        if value == DELETED:
            del changed[name]
        else:
            changed[name] = value
    store.client.put_object(Bucket="posters", Key=key, Body="\n".join(map(json.dumps, lines)).encode())

    again = tries.run(items)

    assert (again["reused"], again["failed"]) == (3, 0)
    assert (again["usage"], again["cost"]) == (first["usage"], first["cost"])
    assert len(gateway.charges) == 3
