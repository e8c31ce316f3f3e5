"""The gallery's list: filters, words, pages, and values that are not results. On SQLite, and by `make test-long` on PostgreSQL."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.support.api_server import Book, Server, png_image, result, stored_image

NOON = datetime(2026, 3, 14, 12, tzinfo=UTC)
API = "/jojokey/api"


def prompts(answer: Any) -> list[str]:
    return [card["prompt"] for card in answer["results"]]


def test_operator_run_is_listed_as_a_card(
    airflow: Any, gateway: Any, store: Any, server: Server, book: Book, dag_id: str
) -> None:
    run = airflow.run(
        dag_id,
        'GenerateImageOperator(task_id="image", prompt="a fox in the snow", s3_key="s3://posters/a/fox.png", n=2)',
    )
    manifest = run.xcom()

    (card,) = server.results(dag_id=dag_id)["results"]

    place = (card["dag_id"], card["run_id"], card["task_id"], card["map_index"])
    assert place == (dag_id, run.run_id, "image", -1)
    assert (card["state"], card["count"], card["prompt"]) == ("complete", 2, "a fox in the snow")
    for name in ("model", "size", "quality", "usage", "request_id", "reused", "seconds", "receipt"):
        assert card[name] == manifest[name]
    assert datetime.fromisoformat(card["made_at"]).utcoffset() == timedelta(0)
    assert [entry["name"] for entry in card["images"]] == ["fox-0.png", "fox-1.png"]
    for entry, image in zip(card["images"], manifest["images"], strict=True):
        assert {name: entry[name] for name in ("uri", "width", "height", "bytes", "content_type")} == {
            name: image[name] for name in ("uri", "width", "height", "bytes", "content_type")
        }
        assert server.get(entry["src"]).content == store.objects()[image["key"]]
    assert not {"bucket", "manifest", "aws_conn_id"} & set(card)


def test_failed_task_is_listed_with_cost_and_error(
    airflow: Any, gateway: Any, store: Any, server: Server, book: Book, dag_id: str
) -> None:
    airflow.run(
        dag_id,
        'GenerateImageOperator(task_id="image", s3_key="s3://posters/f.png",'
        ' prompt="a fox [sandbox: moderation_blocked]")',
    )
    (card,) = server.results(dag_id=dag_id)["results"]
    assert (card["state"], card["images"], card["error"]) == ("failed", [], "JojoKeyContentError")
    assert card["message"]
    assert server.totals(dag_id=dag_id)["failed"] == 1


def test_newest_results_come_first(server: Server, book: Book) -> None:
    for hour in (3, 1, 2):
        book.write(f"dag_{hour}", result(prompt=f"{hour}"), at=NOON + timedelta(hours=hour))
    assert prompts(server.results()) == ["3", "2", "1"]


def test_filters_by_dag_run_and_task(server: Server, book: Book) -> None:
    book.write("a", result(prompt="1"), run_id="r1", task_id="t1", at=NOON)
    book.write("a", result(prompt="2"), run_id="r1", task_id="t2", at=NOON + timedelta(1))
    book.write("a", result(prompt="3"), run_id="r2", task_id="t1", at=NOON + timedelta(2))
    book.write("b", result(prompt="4"), run_id="r1", task_id="t1", at=NOON + timedelta(3))

    assert prompts(server.results(dag_id="a")) == ["3", "2", "1"]
    assert prompts(server.results(dag_id="a", run_id="r1")) == ["2", "1"]
    assert prompts(server.results(run_id="r1", task_id="t1")) == ["4", "1"]
    assert prompts(server.results(run_id="r' OR 1=1 --")) == []


def test_filters_by_utc_days_inclusively(server: Server, book: Book) -> None:
    midnight = datetime(2026, 3, 14, tzinfo=UTC)
    for prompt, at in {
        "before": midnight - timedelta(microseconds=1),
        "first": midnight,
        "last": midnight + timedelta(days=1, microseconds=-1),
        "after": midnight + timedelta(days=1),
    }.items():
        book.write(prompt, result(prompt=prompt), at=at)

    assert prompts(server.results(day_from="2026-03-14", day_to="2026-03-14")) == ["last", "first"]
    assert prompts(server.results(day_from="2026-03-15")) == ["after"]
    assert prompts(server.results(day_to="2026-03-13")) == ["before"]
    assert prompts(server.results(day_from="0001-01-01", day_to="9999-12-31"))
    assert prompts(server.results(day_from="0002-01-01", day_to="9999-12-31", tz="America/Santiago"))
    for zone in ("Asia/Shanghai", "America/Santiago"):
        assert prompts(server.results(day_from="0001-01-01", day_to="9999-12-30", tz=zone))
        assert server.totals(day_from="0001-01-01", tz=zone)["results"] == 4
        assert server.results(day_to="0001-01-01", tz=zone)["results"] == []
    assert server.get(f"{API}/results?day_from=yesterday").status_code == 422


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("fox", ["a Red FOX in the snow"]),
        ("FOX red", ["a Red FOX in the snow"]),
        ("snow heron", []),
        ("狐狸", ["雪中的狐狸、木版画"]),
        ("木版 雪中", ["雪中的狐狸、木版画"]),
        ("狸狐", []),
        ("100%", ["100% wool_socks"]),
        ("%", ["100% wool_socks"]),
        ("l_s", ["100% wool_socks"]),
        ("w_ol", []),
        ("!", []),
        ('"hello"', ['she said "hello" \\ and it\'s fine']),
        ("\\", ['she said "hello" \\ and it\'s fine']),
        ("it's", ['she said "hello" \\ and it\'s fine']),
        ("École", ["ÉCOLE du soir"]),
        ("gpt-image-2", []),
        ("posters", []),
        ("  ", None),
    ],
)
def test_search_requires_every_word(server: Server, book: Book, words: str, found: list[str] | None) -> None:
    image = stored_image(png_image(), "posters/x.png")
    all_prompts = [
        "a Red FOX in the snow",
        "雪中的狐狸、木版画",
        "100% wool_socks",
        'she said "hello" \\ and it\'s fine',
        "ÉCOLE du soir",
    ]
    for number, prompt in enumerate(all_prompts):
        book.write(f"dag_{number}", result(image, prompt=prompt), at=NOON - timedelta(number))
    assert prompts(server.results(q=words)) == (all_prompts if found is None else found)


def test_pages_are_stable_while_rows_arrive(server: Server, book: Book) -> None:
    for number in range(25):  # seven have the same time
        book.write("old", result(prompt=f"{number}"), run_id=f"r{number}", at=NOON + timedelta(number // 7))
    seen: list[str] = []
    cursor = None
    while True:
        answer = server.results(limit=4, **({"cursor": cursor} if cursor else {}))
        seen += prompts(answer)
        book.write("new", result(prompt="new"), run_id=f"new{len(seen)}", at=NOON + timedelta(99))
        if (cursor := answer["next"]) is None:
            break
    assert len(seen) == 25
    assert set(seen) == {str(number) for number in range(25)}
    assert prompts(server.results(limit=1)) == ["new"]


def test_last_page_has_no_cursor(server: Server, book: Book) -> None:
    for number in range(4):
        book.write("a", result(), run_id=f"r{number}")
    assert server.results(limit=4)["next"] is None
    assert len(server.results(limit=3)["results"]) == 3


@pytest.mark.parametrize(
    "cursor",
    [
        "nonsense",
        "é",
        "bnVsbA",  # null
        "W10",  # []
        "WyIyMDI2LTAxLTAxIiwiMSIsMiwzLDRd",
        "WyIwMDAxLTAxLTAxVDAwOjAwOjAwKzE0OjAwIiwxLCJ0IiwtMSwiayJd",  # a moment before all moments
        "WyIyMDI2LTAxLTAxVDAwOjAwOjAwKzAwOjAwIiw5OTk5OTk5OTk5OTk5OTk5OTk5OTk5LCJ0IiwtMSwiayJd",  # too large
    ],
)
def test_invalid_cursor_is_rejected(server: Server, book: Book, cursor: str) -> None:
    answer = server.get(f"{API}/results", params={"cursor": cursor})
    assert answer.status_code == 400
    assert "cursor" in answer.json()["detail"]


NO_RESULTS = [
    None,
    1,
    "text",
    "{broken",
    [],
    {},
    {"version": 2},
    {**result(), "state": "odd"},
    {**result(), "images": [{"key": "x"}]},
    {**result(), "images": [None]},
    {**result(), "images": 7},
    {**result(), "seconds": "long"},
    "[" * 100_000,
]


def test_invalid_results_are_skipped(server: Server, book: Book) -> None:
    for number, value in enumerate(NO_RESULTS):
        book.write("forged", value, run_id=f"r{number}", at=NOON + timedelta(number))
    book.write("real", result(prompt="real"), at=NOON)

    assert prompts(server.results()) == ["real"]
    assert prompts(server.results(q="real")) == ["real"]
    assert prompts(server.results(limit=1)) == ["real"]  # a page without results is skipped
    answer = server.get(f"{API}/dags/forged/runs/r7/tasks/image/-1")
    assert (answer.status_code, answer.json()["result"]) == (200, None)


def test_odd_values_in_a_result_are_handled(server: Server, book: Book) -> None:
    usage = {"total_tokens": "many", "input_tokens": -5, "output_tokens": 10**400, "x_details": {"a": []}}
    odd: dict[str, Any] = {"prompt": "half \ud83d a character", "usage": usage, "created": -1}
    try:
        book.write("odd", {**result(), **odd, "seconds": float("nan")}, at=NOON)
    except Exception:  # PostgreSQL rejects it
        book.write("odd", {**result(), "usage": {"total_tokens": "many", "x_details": 1}}, at=NOON)
    (card,) = server.results()["results"]
    assert card["seconds"] in (None, 9.7)
    assert card["usage"]["total_tokens"] == 0
    assert server.results(q="half") is not None
    assert server.totals()["usage"]["total_tokens"] == 0


def test_result_stored_as_text_is_listed(server: Server, book: Book) -> None:
    book.write("text", result(prompt="as text"), serialize=True)
    assert prompts(server.results()) == ["as text"]


def test_other_xcoms_are_not_listed(server: Server, book: Book) -> None:
    book.write("a", result(), key="return_value")
    assert prompts(server.results()) == []


def test_prompt_with_a_script_stays_text(server: Server, book: Book) -> None:
    script = '<script>alert(1)</script><img src=x onerror="alert(2)">'
    book.write("a", result(prompt=script))
    answer = server.get(f"{API}/results")
    assert answer.json()["results"][0]["prompt"] == script
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert answer.headers["Cache-Control"] == "no-store"


def test_mapped_task_has_its_airflow_name(server: Server, book: Book) -> None:
    book.write("a", result(), map_index=3, label="hero.png")
    (card,) = server.results()["results"]
    assert (card["map_index"], card["label"]) == (3, "hero.png")
    assert card["href"] == "/dags/a/runs/manual__1/tasks/image/mapped/3/plugin/jojokey-images"


def test_results_are_found_by_state(server: Server, book: Book) -> None:
    facts: dict[str, dict[str, Any]] = {
        "good": {},
        "refused": {"state": "failed", "billed": "no", "usage": UNPAID},
        "lost": {"state": "failed", "billed": "yes", "usage": UNPAID},
        "again": {"state": "failed", "billed": "no"},
        "silent": {"state": "failed", "billed": "unknown", "usage": UNPAID},
        "old": {"state": "failed", "usage": None},
        "reused": {"reused": True},
        "fee": {"state": "failed", "billed": "no", "usage": UNPAID, "cost": FEE},
        "yuan": {"state": "failed", "billed": "no", "usage": UNPAID, "cost": FEE_IN_YUAN},
        "free": {"state": "failed", "billed": "no", "usage": UNPAID, "cost": NOTHING},
        "earlier": {
            "state": "failed",
            "billed": "no",
            "usage": UNPAID,
            "cost": {"amounts": [], "unknown": 1},
        },
    }
    for name, more in facts.items():
        book.write("a", result(prompt=name, **more), run_id=name)

    def found(**query: Any) -> set[str]:
        return set(prompts(server.results(**query)))

    assert found(state="failed") == {
        "refused", "lost", "again", "silent", "old", "fee", "yuan", "free", "earlier",
    }  # fmt: skip
    assert found(state="failed_paid") == {"lost", "again", "fee", "yuan"}
    assert found(state="failed_perhaps_paid") == {"silent", "old", "earlier"}
    assert found(state="reused") == {"reused"}
    assert found(state="failed", q="silent") == {"silent"}
    assert server.totals(state="failed_paid")["results"] == 4
    assert server.get(f"{API}/results?state=anything").status_code == 422


def test_search_covers_errors_request_ids_and_task_ids(server: Server, book: Book) -> None:
    book.write("a", result(prompt="one", error="JojoKeyContentError", message="It was refused"), run_id="1")
    book.write("a", result(prompt="two", request_id="2026112823085401726269"), run_id="2")

    assert prompts(server.results(q="ContentError refused")) == ["one"]
    assert prompts(server.results(q="2026112823085401726269")) == ["two"]
    assert sorted(prompts(server.results(q="image"))) == ["one", "two"]  # the task's ID
    assert prompts(server.results(q="one 2026112823085401726269")) == []


UNPAID = {"total_tokens": 0}
FEE = {"amounts": [{"amount": "0.05", "currency": "USD", "approximate": False}], "unknown": 0}
NOTHING = {"amounts": [{"amount": "0.00", "currency": "USD", "approximate": False}], "unknown": 0}
FEE_IN_YUAN = {
    "amounts": [*NOTHING["amounts"], {"amount": "0.05", "currency": "CNY", "approximate": False}],
    "unknown": 0,
}


@pytest.mark.parametrize(
    ("facts", "paid"),
    [
        ({}, "yes"),
        ({"reused": True, "usage": UNPAID}, "no"),
        ({"state": "failed", "billed": "yes", "usage": UNPAID}, "yes"),  # the response without usage was lost
        ({"state": "failed", "billed": "unknown", "usage": UNPAID}, "unknown"),
        ({"state": "failed", "billed": "no", "usage": UNPAID}, "no"),
        ({"state": "failed", "billed": "no"}, "yes"),  # an earlier attempt was charged
        ({"state": "failed", "usage": UNPAID}, "unknown"),  # written before "billed" was recorded
        ({"state": "failed", "billed": "no", "usage": UNPAID, "cost": FEE}, "yes"),  # of an earlier attempt
        ({"state": "failed", "billed": "unknown", "usage": UNPAID, "cost": FEE}, "yes"),
        ({"state": "failed", "billed": "no", "usage": UNPAID, "cost": NOTHING}, "no"),
        ({"usage": UNPAID, "cost": NOTHING}, "no"),  # a batch without items
    ],
)
def test_result_says_whether_it_was_paid_for(
    server: Server, book: Book, facts: dict[str, Any], paid: str
) -> None:
    run_id = f"r{sorted(facts.items())}"  # sums are kept for some seconds
    book.write("a", result(**facts), run_id=run_id)

    (card,) = server.results(run_id=run_id)["results"]
    sums = server.totals(run_id=run_id)

    failed = facts.get("state") == "failed"
    assert card["paid"] == paid
    assert (sums["failed"], sums["failed_paid"], sums["failed_perhaps_paid"]) == (
        failed,
        failed and paid == "yes",
        failed and paid == "unknown",
    )


def test_sums_by_day_and_by_dag_follow_the_filter(server: Server, book: Book) -> None:
    def write(dag_id: str, run_id: str, day: int, tokens: int, **more: Any) -> None:
        usage = {"input_tokens": tokens - 1, "output_tokens": 1, "total_tokens": tokens}
        book.write(dag_id, result(**{"usage": usage, **more}), run_id=run_id, at=NOON + timedelta(day))

    write("a", "r1", 0, 10, count=2)
    write("a", "r2", 1, 20, count=1)
    write("b", "r1", 1, 300, count=40, prompt="a heron")
    write("b", "r2", 1, 4, state="failed")

    sums = server.totals()
    assert (sums["results"], sums["images"], sums["failed"]) == (4, 43, 1)
    assert sums["usage"] == {"input_tokens": 330, "output_tokens": 4, "total_tokens": 334}
    assert [(entry["day"], entry["tokens"], entry["images"]) for entry in sums["by_day"]] == [
        ("2026-03-14", 10, 2),
        ("2026-03-15", 324, 41),
    ]
    assert [(entry["dag_id"], entry["tokens"], entry["images"]) for entry in sums["by_dag"]] == [
        ("b", 304, 40),
        ("a", 30, 3),
    ]
    assert server.totals(dag_id="a")["usage"]["total_tokens"] == 30
    assert server.totals(q="heron")["images"] == 40
    assert server.totals(day_to="2026-03-14")["results"] == 1
    assert server.totals(run_id="r9") == {
        "images": 0, "results": 0, "failed": 0, "failed_paid": 0, "failed_perhaps_paid": 0, "by_day": [], "by_dag": [],
        "usage": {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}, "unread": 0,
        "cost": {"amounts": [], "unknown": 0}, "unknown_tokens": 0,
    }  # fmt: skip


def cost(*amounts: tuple[str, str, bool], unknown: int = 0) -> Any:
    names = ("amount", "currency", "approximate")
    return {"amounts": [dict(zip(names, entry, strict=True)) for entry in amounts], "unknown": unknown}


def test_costs_are_exact_sums_by_day_dag_and_model(server: Server, book: Book) -> None:
    def write(run: str, dag_id: str, value: Any, day: int = 0, **more: Any) -> None:
        book.write(dag_id, result(cost=value, **more), run_id=run, at=NOON + timedelta(day))

    write("1", "a", cost(("0.1", "USD", True)))
    write("2", "a", cost(("0.2", "USD", False), unknown=1))
    write("3", "a", cost(("0.7", "CNY", False), ("0.000000001", "USD", False)))
    write("4", "=b", cost(("0.000000001", "USD", False)), day=1, model="-model")
    write("5", "a", "nonsense")
    write("6", "a", None, reused=True, usage={})
    write("7", "a", cost(), reused=True, usage={})

    everything = cost(("0.7", "CNY", False), ("0.300000002", "USD", True), unknown=2)
    assert server.totals()["cost"] == everything
    answer = server.get(f"{API}/costs").json()
    assert answer["count"] == 2
    assert [(row["day"], row["dag_id"], row["model"], row["results"]) for row in answer["rows"]] == [
        ("2026-03-15", "=b", "-model", 1),
        ("2026-03-14", "a", "gpt-image-2", 6),
    ]
    assert answer["rows"][1]["cost"] == cost(("0.7", "CNY", False), ("0.300000001", "USD", True), unknown=2)
    download = server.get(f"{API}/costs.csv")
    assert download.headers["Content-Type"] == "text/csv; charset=utf-8"
    header, first, second = download.content.decode("utf-8-sig").splitlines()
    assert header.endswith("cost_CNY,cost_USD,approximate,requests_of_unknown_cost")
    assert first.startswith("2026-03-15,'=b,'-model,1,0,0,")
    assert first.endswith(",,0.000000001,no,0")
    assert second.endswith(",0.7,0.300000001,yes,2")


def test_days_are_those_of_the_users_time_zone(server: Server, book: Book) -> None:
    book.write("a", result(prompt="1"), run_id="1", at=datetime(2026, 3, 14, 17, 30, tzinfo=UTC))
    book.write("a", result(prompt="2"), run_id="2", at=datetime(2026, 3, 14, 15, 30, tzinfo=UTC))
    in_shanghai = server.totals(tz="Asia/Shanghai")["by_day"]
    assert [(entry["day"], entry["tokens"]) for entry in in_shanghai] == [
        ("2026-03-14", 210),
        ("2026-03-15", 210),
    ]
    # With a filter of its own, because the server may have cached the unfiltered sums for an earlier test.
    assert len(server.totals(tz="Nowhere/At-all", day_from="2026-03-14")["by_day"]) == 1
    assert prompts(server.results(day_from="2026-03-15", tz="Asia/Shanghai")) == ["1"]
    assert prompts(server.results(day_to="2026-03-14", tz="Asia/Shanghai")) == ["2"]


@pytest.mark.parametrize("query", ["limit=0", "limit=201", "limit=x", "q=" + "x" * 600])
def test_out_of_range_parameters_are_rejected(server: Server, query: str) -> None:
    assert server.get(f"{API}/results?{query}").status_code == 422


@pytest.mark.parametrize("query", ["run_id=%00", "q=a%00b", "task_id=%00"])
def test_nul_byte_is_rejected_before_the_query(server: Server, query: str) -> None:
    assert server.get(f"{API}/results?{query}").status_code == 400


def test_results_are_filtered_by_model_size_and_part_of_run(server: Server, book: Book) -> None:
    book.write(
        "a", result(prompt="1", model="gpt-image-2", size="1024x1024"), run_id="manual__May_1", at=NOON
    )
    book.write(
        "a",
        result(prompt="2", model="other", size="1024x1536"),
        run_id="manual__June",
        at=NOON + timedelta(1),
    )
    assert prompts(server.results(model="other")) == ["2"]
    assert prompts(server.results(size="1024x1024")) == ["1"]
    assert prompts(server.results(model="other", size="1024x1024")) == []
    assert prompts(server.results(run="may_")) == ["1"]
    assert prompts(server.results(run="June")) == ["2"]
    assert prompts(server.results(run="%")) == []
    assert server.totals(model="other")["results"] == 1


def test_results_are_sorted_by_cost_within_a_currency(server: Server, book: Book) -> None:
    def cost(amount: Any, currency: Any = "USD") -> Any:
        return {
            "amounts": [{"amount": amount, "currency": currency, "approximate": True}],
            "unknown": 0,
        }

    costs: dict[str, Any] = {
        "two cents": cost("0.02"),
        "unknown": {"amounts": [], "unknown": 1},
        "ten dollars": cost("10"),
        "invalid": cost("1e9"),
        "a number": cost(5),
        "no digits": cost("."),
        "no fraction": cost("1."),
        "nothing": cost("0"),
        "nine dollars": cost("9.000000001"),
        "yuan": cost("700.5", "CNY"),
        "not a cost": "high",
        "missing": None,
    }
    for number, (prompt, value) in enumerate(costs.items()):
        book.write("a", result(prompt=prompt, cost=value), run_id=f"r{number}", at=NOON + timedelta(number))
    first = server.results(sort="cost", limit=3)
    assert prompts(first) == ["yuan", "ten dollars", "nine dollars"]
    rest = server.results(sort="cost", cursor=first["next"])
    assert prompts(rest)[:2] == ["two cents", "nothing"]
    assert len(prompts(rest)[2:]) == len(costs) - 5
    assert rest["next"] is None
    assert server.get(f"{API}/results", params={"sort": "cost", "cursor": "none"}).status_code == 400


def test_results_are_sorted_by_tokens(server: Server, book: Book) -> None:
    usages: list[Any] = [
        {"total_tokens": 5},
        {"total_tokens": 900},
        {"total_tokens": "x"},
        None,
        {"total_tokens": 40},
    ]
    for number, usage in enumerate(usages):
        book.write(
            "a", result(prompt=f"{number}", usage=usage), run_id=f"r{number}", at=NOON + timedelta(number)
        )
    first = server.results(sort="tokens", limit=3)
    assert prompts(first) == ["1", "4", "0"]
    rest = server.results(sort="tokens", limit=3, cursor=first["next"])
    assert (prompts(rest), rest["next"]) == (["3", "2"], None)
    assert server.get(f"{API}/results", params={"sort": "tokens", "cursor": "none"}).status_code == 400
