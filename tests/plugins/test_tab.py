"""The tab of a task: attempts, mapped tasks, batches."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from airflow_provider_jojokey.results import PROGRESS_KEY
from tests.support.airflow import BUCKET
from tests.support.api_server import Book, Server, png_image, result, stored_image


def tab(
    server: Server, dag_id: str, run_id: str = "manual__1", index: int = -1, page: int = 0, **query: Any
) -> Any:
    path = f"/jojokey/api/dags/{dag_id}/runs/{quote(run_id, safe='')}/tasks/image/{index}"
    path += f"?{urlencode({'page': page, **query})}"
    answer = server.get(path)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_attempts_come_from_the_receipt(
    airflow: Any, gateway: Any, store: Any, server: Server, book: Book, dag_id: str
) -> None:
    run = airflow.run(
        dag_id,
        """
        GenerateImageOperator(
            task_id="image", s3_key=f"s3://posters/{dag.dag_id}.png", retries=1, retry_delay=timedelta(0),
            prompt="a fox [sandbox: new_api_model_not_found_503 times=9]",
        )
        """.replace("{dag.dag_id}", dag_id).replace('f"', '"'),
    )
    answer = tab(server, dag_id, run.run_id)
    receipt = store.receipt(f"{dag_id}.png")
    assert len(answer["attempts"]) == len(receipt["attempts"]) > 0
    assert answer["attempts_error"] is None
    for attempt, written in zip(answer["attempts"], receipt["attempts"], strict=True):
        for name in ("started_at", "ended_at", "outcome", "billed", "request_id", "cf_ray", "error", "note"):
            assert attempt[name] == written[name]
        assert attempt["try_number"] == written["owner"]["try_number"]


def test_task_without_images_has_no_result(server: Server, book: Book) -> None:
    answer = tab(server, "never-heard-of")
    assert (answer["result"], answer["results"], answer["attempts"]) == (None, [], [])
    assert answer["attempts_error"] is None


def write_receipt(store: Any, book: Book, data: bytes, key: str = "_jojokey/x.png.json") -> None:
    store.client.put_object(Bucket=BUCKET, Key=key, Body=data)
    book.write("a", result(receipt=f"s3://{BUCKET}/{key}"))


@pytest.mark.parametrize(
    "data",
    [b"", b"not json", b"{}", b"[" * 10_000, b'{"version": 2}', b'{"version": 1, "attempts": [{}]}', b"\xff"],
)
def test_unreadable_receipt_is_reported(server: Server, book: Book, store: Any, data: bytes) -> None:
    write_receipt(store, book, data)
    answer = tab(server, "a")
    assert answer["result"]["prompt"]
    assert answer["attempts"] == []
    assert answer["attempts_error"]["detail"].startswith("The receipt could not be read")


def test_missing_or_unreachable_receipt_is_reported(server: Server, book: Book) -> None:
    book.write("a", result(receipt=f"s3://{BUCKET}/_jojokey/never.json"))
    assert "no longer in S3" in tab(server, "a")["attempts_error"]["detail"]
    book.write("a", result(receipt=f"s3://{BUCKET}/_jojokey/never.json", aws_conn_id="no_store"))
    error = tab(server, "a")["attempts_error"]["detail"]
    assert error.startswith("The receipt could not be read")
    assert "secret-of-nobody" not in error


@pytest.mark.parametrize("key", ["private/x.json", "_jojokey/x.png", "x.json"])
def test_forged_result_reads_no_other_objects(server: Server, book: Book, store: Any, key: str) -> None:
    write_receipt(store, book, b'{"version": 1, "secret": "xyzzy"}', key)
    answer = tab(server, "a")
    assert (answer["attempts"], "not that of a receipt" in answer["attempts_error"]["detail"]) == ([], True)
    assert "xyzzy" not in json.dumps(answer)


def test_attempts_of_other_tasks_are_hidden(server: Server, book: Book, store: Any) -> None:
    attempts = [
        {
            "id": "0" * 32,
            "fingerprint": "f",
            "owner": {
                "dag_id": dag_id,
                "run_id": run_id,
                "task_id": "image",
                "map_index": -1,
                "try_number": 1,
            },
            "worker": {"host": "h", "pid": 1, "started": 0.0},
            "started_at": "2026-03-14T12:00:00+00:00",
            "lease_until": "2026-03-14T12:00:00+00:00",
            "outcome": "open",
            "note": f"{dag_id} {run_id}",
        }
        for dag_id, run_id in (("a", "manual__1"), ("a", "manual__2"), ("secret", "manual__1"))
    ]
    receipt = {"version": 1, "bucket": BUCKET, "key": "x", "host": "", "request": {}, "attempts": attempts}
    write_receipt(store, book, json.dumps(receipt).encode())
    assert [entry["note"] for entry in tab(server, "a")["attempts"]] == ["a manual__1"]


def test_mapped_tasks_are_listed_in_pages(server: Server, book: Book) -> None:
    for index in range(70):
        book.write("a", result(prompt=f"{index}"), map_index=index)
    first, second = tab(server, "a"), tab(server, "a", page=1)
    assert first["result"] is None
    assert [entry["prompt"] for entry in first["results"]] == [f"{index}" for index in range(60)]
    assert (first["next_page"], second["next_page"]) == (1, None)
    assert [entry["map_index"] for entry in second["results"]] == list(range(60, 70))
    assert tab(server, "a", index=5)["result"]["prompt"] == "5"


def write_batch(store: Any, book: Book, lines: list[Any], key: str = "_jojokey/batches/a/r/t.jsonl") -> None:
    data = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    store.client.put_object(Bucket=BUCKET, Key=key, Body=data)
    book.write("a", result(manifest=f"s3://{BUCKET}/{key}", count=len(lines)))


def test_batch_items_are_listed_in_pages_with_images(server: Server, book: Book, store: Any) -> None:
    data = [png_image(size=(10 + number, 10)) for number in range(70)]
    for number in (0, 65):
        store.client.put_object(Bucket=BUCKET, Key=f"{number}.png", Body=data[number])
    lines = [
        {"index": number, **result(stored_image(data[number], f"{number}.png"), prompt=f"{number}")}
        for number in range(70)
    ]
    write_batch(store, book, lines)

    first, second = tab(server, "a"), tab(server, "a", page=1)

    assert [entry["prompt"] for entry in first["items"] + second["items"]] == [
        f"{entry}" for entry in range(70)
    ]
    assert (first["next_page"], second["next_page"]) == (1, None)
    assert first["result"]["batch"] is True
    for answer, place, number in ((first, 0, 0), (second, 5, 65)):
        (image,) = answer["items"][place]["images"]
        assert server.get(image["src"]).content == data[number]
        assert server.get(image["thumbnail"]).status_code == 200
    image = first["items"][1]["images"][0]
    assert server.get(image["src"]).status_code == 404
    assert server.get("/jojokey/images/a/manual__1/image/-1/0?item=70").status_code == 404
    assert server.get(first["items"][0]["images"][0]["src"], user="blind").status_code == 403


def test_batch_items_are_found_by_state_and_words(server: Server, book: Book, store: Any) -> None:
    lines: list[Any] = [{"index": number, **result(prompt=f"tile {number}")} for number in range(130)]
    for number in (3, 70, 129):
        lines[number] |= {"state": "failed", "error": "JojoKeyContentError", "message": "Refused: MODERATION"}
    lines[70]["request_id"] = "2026112823085401726269"
    lines[90]["images"] = [{**stored_image(png_image(), "2026/Harbour.png"), "bucket": BUCKET}]
    lines[1] = "not a result"
    write_batch(store, book, lines, "_jojokey/batches/a/r/found.jsonl")

    def found(**query: Any) -> list[int]:
        return [entry["index"] for entry in tab(server, "a", **query)["items"]]

    assert found(failed=True) == [3, 70, 129]
    assert found(failed=True, q="2026112823085401726269") == [70]
    assert found(q="harbour") == [90]
    assert found(q="moderation") == [3, 70, 129]
    assert found(q="tile 129") == [129]
    assert found(q="zeppelin") == []
    first, second = tab(server, "a", q="tile"), tab(server, "a", q="tile", page=1)
    assert (len(first["items"]), first["next_page"]) == (60, 1)
    assert first["items"][-1]["index"] < second["items"][0]["index"]


def test_invalid_manifest_lines_are_skipped(server: Server, book: Book, store: Any) -> None:
    lines = [1, None, "x", {"images": 7}, {"index": 4, **result(prompt="real")}, [[]]]
    write_batch(store, book, lines, "_jojokey/batches/a/r/odd.jsonl")
    answer = tab(server, "a")
    assert [(entry["index"], entry["prompt"]) for entry in answer["items"]] == [(4, "real")]


def test_progress_is_shown_until_there_is_a_result(server: Server, book: Book) -> None:
    cost = {"amounts": [{"amount": "0.5", "currency": "USD", "approximate": True}], "unknown": 0}
    progress = {"total": 9, "done": 4, "failed": 1, "images": 3, "tokens": 7, "cost": cost, "at": "<b>"}
    book.write("a", progress, key=PROGRESS_KEY)
    shown = tab(server, "a")["progress"]
    assert datetime.fromisoformat(shown.pop("at"))
    assert shown == {name: value for name, value in progress.items() if name != "at"}

    book.write("b", {"total": "9", "done": -1, "cost": 5}, key=PROGRESS_KEY)
    shown = tab(server, "b")["progress"]
    assert (shown["total"], shown["done"], shown["cost"]) == (0, 0, {"amounts": [], "unknown": 0})

    book.write("a", result())
    assert tab(server, "a")["progress"] is None


def test_budget_leaves_out_invalid_entries(server: Server, book: Book) -> None:
    used = {"scope": "run", "unit": "cost", "used": 5 * 10**8, "limit": 10**9, "currency": "USD"}
    tokens = {"scope": "task", "unit": "tokens", "used": 7, "limit": 9}
    book.write("a", result(budget=[used, "x", {**used, "used": -1}, {**used, "scope": "x"}, tokens]))
    cost, count = tab(server, "a")["result"]["budget"]
    assert cost["used"]["amounts"] == [{"amount": "0.5", "currency": "USD", "approximate": True}]
    assert cost["limit"]["amounts"] == [{"amount": "1", "currency": "USD", "approximate": False}]
    assert count == tokens


def test_unreadable_manifest_is_reported(server: Server, book: Book, store: Any) -> None:
    for key in ("_jojokey/never.jsonl", "elsewhere.jsonl", "_jojokey/x.json"):
        book.write("a", result(manifest=f"s3://{BUCKET}/{key}"))
        answer = tab(server, "a")
        assert answer["items"] == []
        assert answer["items_error"]["detail"].startswith("The list of all images could not be read")
    write_batch(store, book, ["x" * 300_000], "_jojokey/long.jsonl")
    assert "longer than" in tab(server, "a")["items_error"]["detail"]


def test_batch_without_manifest_is_still_a_batch(server: Server, book: Book) -> None:
    book.write("a", result(stored_image(png_image(), "0.png"), batch=True, count=40))
    answer = tab(server, "a")
    assert answer["result"]["batch"] is True
    assert answer["items_error"]["detail"].startswith("The list of all images could not be stored.")


@pytest.mark.parametrize(("state", "problem"), [("complete", False), ("failed", True)])
def test_batch_without_items_has_no_list(server: Server, book: Book, state: str, problem: bool) -> None:
    book.write("a", result(batch=True, count=0, state=state))
    assert bool(tab(server, "a")["items_error"]) is problem


def test_images_on_aws_have_a_console_link(server: Server, book: Book) -> None:
    entry, two = (stored_image(png_image(), f"2026/hero {number}.png") for number in (0, 1))
    book.write("a", result(entry, aws_conn_id="on_aws"))
    assert tab(server, "a")["s3_console"] == (
        f"https://console.aws.amazon.com/s3/object/{BUCKET}?region=eu-central-1&prefix=2026%2Fhero+0.png"
    )
    book.write("a", result(entry, two, aws_conn_id="on_aws"))
    assert tab(server, "a")["s3_console"] == (
        f"https://console.aws.amazon.com/s3/buckets/{BUCKET}?region=eu-central-1&prefix=2026%2F"
    )
    book.write("a", result(entry))
    assert tab(server, "a")["s3_console"] is None
