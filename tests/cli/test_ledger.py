"""``jojokey ledger`` adds up the costs in receipts."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from msgspec.structs import replace

from airflow_provider_jojokey.cli.ledger import IN_MEMORY, _receipts
from airflow_provider_jojokey.cost import NANOS, PUBLISHED, Cost
from airflow_provider_jojokey.payments.attempt import Attempt, Outcome, Owner, Worker
from airflow_provider_jojokey.payments.receipt import Receipt
from airflow_provider_jojokey.results import StoredImage
from airflow_provider_jojokey.sandbox import Gateway
from airflow_provider_jojokey.store.s3 import ImageStore
from tests.support.buckets import Bucket
from tests.support.commands import CommandOutput, Run

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
IMAGE = StoredImage("posters", "k.png", bytes=5)
COMPLETE = Attempt(
    id="0" * 32,
    fingerprint="f",
    owner=Owner("spring", "monday", "image"),
    worker=Worker("host", 1, 0.0),
    started_at=NOON,
    lease_until=NOON,
    outcome=Outcome.COMPLETE,
    billed="yes",
    usage={"input_tokens": 10, "output_tokens": 200, "total_tokens": 210},
    images=(IMAGE,),
    model="gpt-image-2",
)


def write(bucket: Bucket, key: str, *attempts: Attempt, **request: Any) -> None:
    receipt = Receipt("posters", key, "http://gateway", {"model": "asked-for", **request}, attempts)
    bucket.client().put_object(Bucket="posters", Key=f"_jojokey/{key}.json", Body=receipt.to_json())


def sums(output: CommandOutput, by: str = "dag") -> dict[str, int]:
    return {row[by]: row["total_tokens"] for row in output.rows}


def test_ended_object_lock_does_not_prevent_reading(
    jojokey: Run, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(bucket, "k.png", replace(COMPLETE, outcome=Outcome.UNKNOWN, billed="unknown", images=()))
    lock = '{"ObjectLockMode": "GOVERNANCE", "ObjectLockRetainUntilDate": "2020-01-01T00:00:00Z"}'
    monkeypatch.setenv("AIRFLOW__JOJOKEY__S3_EXTRA_ARGS", lock)

    assert jojokey("ledger", "--bucket", "posters").code == 0
    assert jojokey("attempts", "s3://posters/k.png").code == 0
    assert jojokey("resolve", "s3://posters/k.png", "--not-billed").code == 0
    assert "is in the past" in jojokey("generate", "A fox", "--out", "s3://posters/new.png").err


def test_ledger_total_matches_the_bill(jojokey: Run, gateway: Gateway, bucket: Bucket) -> None:
    for name in ("a", "b", "b"):
        jojokey("generate", f"A fox, {name}", "--out", f"s3://posters/{name}.png")

    output = jojokey("ledger", "--bucket", "posters", "-o", "json")

    (row,) = output.rows
    assert output.code == 0
    assert row["total_tokens"] == sum(record.total_tokens for record in gateway.charges)
    assert (row["requests"], row["images"], row["unknown"]) == (2, 2, 0)
    costs = [
        PUBLISHED.cost_of({"input_tokens": record.input_tokens, "output_tokens": record.output_tokens})
        for record in gateway.charges
    ]
    assert Decimal(row["amount"]) == sum(cost.amount for cost in costs if cost)
    assert (row["currency"], row["approximate"], row["cost_unknown"]) == ("USD", True, 0)
    assert "2 receipts" in output.err


@pytest.mark.parametrize(
    ("by", "names"),
    [
        ("dag", ["autumn", "spring"]),
        ("day", ["2026-03-01", "2026-03-02"]),
        ("model", ["asked-for", "gpt-image-2"]),
        ("run", ["autumn monday", "spring monday"]),
    ],
)
def test_ledger_groups_by(jojokey: Run, bucket: Bucket, by: str, names: list[str]) -> None:
    other = replace(
        COMPLETE, owner=Owner("autumn", "monday", "image"), started_at=NOON + timedelta(days=1), model=None
    )
    write(bucket, "a/one.png", COMPLETE, replace(COMPLETE, id="1" * 32))
    write(bucket, "b/two.png", other)

    output = jojokey("ledger", "--bucket", "posters", "--by", by, "-o", "json")

    assert list(sums(output, by)) == names
    assert sorted(sums(output, by).values()) == [210, 420]


def test_failed_requests_count_for_the_model_they_asked_for(
    jojokey: Run, connect: Callable[..., None], bucket: Bucket, png: bytes
) -> None:
    with Gateway(image=png, models=("gpt-image-2", "gpt-image-9")) as gateway:
        connect(gateway.token, gateway.url)
        for prompt, model in (("[sandbox: not_an_image] a fox", "gpt-image-9"), ("A fox", "gpt-image-2")):
            jojokey("generate", prompt, "--model", model, "--out", "s3://posters/fox.png")
        charged = {record.model: record.total_tokens for record in gateway.charges}

    output = jojokey("ledger", "--bucket", "posters", "--by", "model", "-o", "json")

    assert sums(output, "model") == charged
    assert len(charged) == 2


def test_request_that_a_receipt_no_longer_has_names_no_model(jojokey: Run, bucket: Bucket) -> None:
    earlier = replace(COMPLETE, fingerprint="earlier", model=None)
    write(bucket, "k.png", earlier, replace(COMPLETE, id="1" * 32, model=None))

    output = jojokey("ledger", "--bucket", "posters", "--by", "model", "-o", "json")

    assert sums(output, "model") == {"asked-for": 210, "unknown": 210}


def test_each_currency_has_its_own_row(jojokey: Run, bucket: Bucket) -> None:
    write(
        bucket,
        "one.png",
        replace(COMPLETE, cost=Cost(NANOS // 10, "USD", approximate=False)),
        replace(COMPLETE, id="1" * 32, cost=Cost(NANOS // 5, "USD", approximate=False)),
        replace(COMPLETE, id="2" * 32, cost=Cost(7 * NANOS, "CNY")),
        replace(COMPLETE, id="3" * 32, usage=None),
    )
    output = jojokey("ledger", "--bucket", "posters", "--by", "dag,model,day", "-o", "csv")
    first, second = csv.DictReader(io.StringIO(output.out))
    assert (first["dag"], first["model"], first["day"]) == ("spring", "gpt-image-2", "2026-03-01")
    assert (first["cost"], first["requests"]) == ("≈ CNY 7.00 + USD 0.30 + 1 request of unknown cost", "4")
    assert (first["amount"], first["currency"], first["approximate"], first["cost_unknown"]) == (
        "7", "CNY", "True", "1",
    )  # fmt: skip
    assert (second["amount"], second["currency"], second["approximate"]) == ("0.3", "USD", "False")
    assert (second["requests"], second["total_tokens"], second["cost_unknown"]) == ("0", "0", "0")
    assert "cost ≈ CNY 7.00 + USD 0.30 + 1 request of unknown cost" in output.err
    table = jojokey("ledger", "--bucket", "posters")
    assert table.out.count("spring") == 1


def test_csv_holds_no_formula(jojokey: Run, bucket: Bucket) -> None:
    write(bucket, "one.png", replace(COMPLETE, owner=Owner("=1+1", "monday", "image")))
    output = jojokey("ledger", "--bucket", "posters", "-o", "csv")
    assert "\n=1+1" not in output.out
    assert "=1+1" in output.out


def test_ledger_counts_unknown_but_not_unbilled(jojokey: Run, bucket: Bucket) -> None:
    nothing = {"usage": None, "images": ()}
    write(
        bucket,
        "one.png",
        replace(COMPLETE, id="1" * 32, outcome=Outcome.NOT_BILLED, **nothing),
        replace(COMPLETE, id="2" * 32, outcome=Outcome.UNKNOWN, **nothing),
        replace(COMPLETE, id="3" * 32, outcome=Outcome.OPEN, **nothing),
        replace(COMPLETE, id="4" * 32, outcome=Outcome.BILLED, **nothing),
        COMPLETE,
    )

    output = jojokey("ledger", "--bucket", "posters", "-o", "json")

    (row,) = output.rows
    assert (row["requests"], row["unknown"], row["total_tokens"]) == (2, 3, 210)
    assert "It is unknown whether 3 requests were billed, or for how many tokens." in output.err


def test_ledger_counts_requests_of_the_second_of_the_receipt(jojokey: Run, bucket: Bucket) -> None:
    late = (datetime.now(UTC) + timedelta(seconds=1)).replace(microsecond=999_999)
    key = "_jojokey/a.png.json"
    while bucket.client().list_objects_v2(Bucket="posters").get("KeyCount", 0) == 0 or (
        bucket.client().head_object(Bucket="posters", Key=key)["LastModified"] < late.replace(microsecond=0)
    ):
        write(bucket, "a.png", replace(COMPLETE, started_at=late))

    output = jojokey("ledger", "--bucket", "posters", "--since", late.isoformat(), "-o", "json")

    assert sums(output) == {"spring": 210}


def test_known_fee_without_tokens_has_a_cost_in_the_ledger(jojokey: Run, bucket: Bucket) -> None:
    fee = Cost(5 * NANOS // 100, "USD", approximate=False)
    write(bucket, "one.png", replace(COMPLETE, outcome=Outcome.BILLED, usage=None, images=(), cost=fee))

    output = jojokey("ledger", "--bucket", "posters", "-o", "json")

    (row,) = output.rows
    assert (row["requests"], row["amount"], row["cost_unknown"]) == (1, "0.05", 0)
    assert row["unknown"] == 0
    assert "cost USD 0.05." in output.err
    assert "It is unknown" not in output.err


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        (("--since", "2026-03-02"), 210),
        (("--since", "2026-03-01T12:00"), 420),
        (("--since", "2026-03-01T13:00+01:00"), 420),
        (("--until", "2026-03-02"), 210),
        (("--since", "2026-03-01", "--until", "2026-03-03"), 420),
    ],
)
def test_ledger_filters_by_time(jojokey: Run, bucket: Bucket, window: tuple[str, ...], expected: int) -> None:
    later = replace(COMPLETE, id="1" * 32, started_at=NOON + timedelta(days=1))
    write(bucket, "one.png", COMPLETE, later)

    output = jojokey("ledger", "--bucket", "posters", *window, "-o", "json")

    assert sum(sums(output).values()) == expected


def test_ledger_skips_receipts_before_the_time_span(jojokey: Run, bucket: Bucket) -> None:
    bucket.client().put_object(Bucket="posters", Key="_jojokey/broken.png.json", Body=b"{")
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).date().isoformat()

    output = jojokey("ledger", "--bucket", "posters", "--since", tomorrow, "-o", "json")

    assert output.code == 0
    assert output.rows == []


def test_prefix_applies_to_image_keys(jojokey: Run, bucket: Bucket) -> None:
    write(bucket, "a/one.png", COMPLETE)
    write(bucket, "b/two.png", COMPLETE)

    output = jojokey("ledger", "--bucket", "s3://posters/", "--prefix", "b/", "-o", "json")

    assert sums(output) == {"spring": 210}


def test_unreadable_receipt_fails_the_ledger(jojokey: Run, bucket: Bucket) -> None:
    write(bucket, "one.png", COMPLETE)
    bucket.client().put_object(Bucket="posters", Key="_jojokey/two.png.json", Body=b"{}")
    bucket.client().put_object(Bucket="posters", Key="_jojokey/two.preview.png", Body=b"no receipt")

    output = jojokey("ledger", "--bucket", "posters", "-o", "json")

    assert output.code == 1
    assert sums(output) == {"spring": 210}
    assert "_jojokey/two.png.json is not included" in output.err
    assert "the sum is too small" in output.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("--since", "yesterday"),
        ("--since", "999999d"),
        ("--until", "999999d"),
        ("--until", "7"),
        ("--bucket", "a b"),
        ("--by", "dag,hour"),
    ],
)
def test_invalid_arguments_are_reported(jojokey: Run, bucket: Bucket, arguments: tuple[str, ...]) -> None:
    output = jojokey("ledger", "--bucket", "posters", *arguments)

    assert output.code == 2
    assert output.err.startswith("jojokey: ")


def test_unlistable_bucket_is_reported(jojokey: Run, bucket: Bucket) -> None:
    output = jojokey("ledger", "--bucket", "nonsense-bucket")

    assert output.code == 1
    assert "NoSuchBucket" in output.err


def test_receipts_are_read_in_bounded_memory(bucket: Bucket, connect: None) -> None:
    for number in range(3 * IN_MEMORY):
        write(bucket, f"{number}.png", COMPLETE)
    store = ImageStore("aws_default")
    fetched: list[str] = []
    store.client.meta.events.register("before-call.s3.GetObject", lambda **_: fetched.append("one"))

    for number, _ in enumerate(_receipts(store, "posters", "", None), start=1):
        assert len(fetched) <= number + IN_MEMORY - 1

    assert len(fetched) == number == 3 * IN_MEMORY


def test_commands_use_the_bucket_that_the_connection_names(
    jojokey: Run, gateway: Gateway, bucket: Bucket, name_bucket: Callable[[str], None]
) -> None:
    name_bucket("posters")

    made = jojokey("generate", "A red fox", "--out", "s3:///fox.png", "-o", "json")
    (attempt,) = jojokey("attempts", "s3:///fox.png", "-o", "json").rows
    (total,) = jojokey("ledger", "-o", "json").rows

    assert made.rows[0]["image"] == "s3://posters/fox.png"
    assert attempt["outcome"] == "complete"
    assert total["requests"] == 1


@pytest.mark.parametrize(
    "command",
    [("generate", "A red fox", "--out", "s3:///fox.png"), ("attempts", "s3:///fox.png"), ("ledger",)],
)
def test_commands_without_a_bucket_say_what_is_missing(
    jojokey: Run, gateway: Gateway, bucket: Bucket, command: tuple[str, ...]
) -> None:
    output = jojokey(*command)
    assert output.code in (1, 2)
    assert "bucket is missing" in output.err
    assert "bucket_name in the service_config of the AWS connection" in output.err
    assert gateway.requests == ()
