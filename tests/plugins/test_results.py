"""The gallery's list: who sees what, filters, pages."""

from __future__ import annotations

from typing import Any

from plugins.world import Book, Server


def test_a_run_of_the_operator_shows_as_a_card(
    airflow: Any, gateway: Any, store: Any, server: Server, book: Book
) -> None:
    run = airflow.run(
        "cards",
        'GenerateImageOperator(task_id="image", prompt="a fox in the snow", s3_key="s3://posters/a/fox.png", n=2)',
    )
    (card,) = server.results(dag_id="cards")["results"]
    print(card)
    assert (card["dag_id"], card["run_id"], card["task_id"], card["map_index"]) == (
        "cards",
        run.run_id,
        "image",
        -1,
    )
    answer = server.get(card["images"][0]["src"])
    assert answer.status_code == 200, answer.text
    assert answer.content == store.objects()["a/fox-0.png"]
    answer = server.get(card["images"][0]["thumbnail"] + "&width=320")
    assert answer.status_code == 200, answer.text
    print(server.totals())
    print(server.get(f"/jojokey/api/dags/cards/runs/{run.run_id}/tasks/image/-1").json())
