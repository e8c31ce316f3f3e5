"""``jojokey generate``: into S3 like the operator, or into new files."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_jojokey.payments.receipt import Receipt
from airflow_provider_jojokey.sandbox import Gateway
from tests.support.buckets import Bucket
from tests.support.commands import Run
from tests.support.patience import PATIENCE


def receipt(bucket: Bucket, key: str) -> Receipt:
    body = bucket.client().get_object(Bucket="posters", Key=f"_jojokey/{key}.json")["Body"]
    return Receipt.from_json(body.read())


def read(bucket: Bucket, key: str) -> bytes:
    return bytes(bucket.client().get_object(Bucket="posters", Key=key)["Body"].read())


# To S3


def test_image_is_stored_in_s3_with_a_receipt(
    jojokey: Run, gateway: Gateway, bucket: Bucket, png: bytes
) -> None:
    output = jojokey("generate", "A red fox", "--out", "s3://posters/a/fox.{ext}", "-o", "json")

    assert output.code == 0
    (row,) = output.rows
    assert row["image"] == "s3://posters/a/fox.png"
    assert row["total_tokens"] == gateway.charges[0].total_tokens
    assert row["reused"] is False
    assert read(bucket, "a/fox.png") == png
    (attempt,) = receipt(bucket, "a/fox.{ext}").attempts
    assert attempt.outcome == "complete"
    assert attempt.owner.dag_id == "jojokey-cli"


def test_repeated_command_pays_nothing(jojokey: Run, gateway: Gateway, bucket: Bucket) -> None:
    command = ("generate", "A red fox", "--out", "s3://posters/fox.png", "-o", "json")
    jojokey(*command)

    output = jojokey(*command)

    assert output.code == 0
    assert len(gateway.charges) == 1
    assert output.rows[0]["reused"] is True
    assert output.rows[0]["total_tokens"] == 0
    assert "Nothing was sent" in output.err


@pytest.mark.parametrize("more", [("A blue fox",), ("A red fox", "--reuse", "never")])
def test_object_is_replaced_only_with_overwrite(
    jojokey: Run, gateway: Gateway, bucket: Bucket, more: tuple[str, ...]
) -> None:
    jojokey("generate", "A red fox", "--out", "s3://posters/fox.png")

    output = jojokey("generate", *more, "--out", "s3://posters/fox.png")
    overwritten = jojokey("generate", *more, "--out", "s3://posters/fox.png", "--overwrite")

    assert output.code == 1
    assert "already exists. Nothing was sent or billed" in output.err
    assert overwritten.code == 0
    assert len(gateway.charges) == 2


def test_lost_response_is_not_paid_twice(jojokey: Run, gateway: Gateway, bucket: Bucket) -> None:
    gateway.behave("cloudflare_524", times=1)
    command = ("generate", "A red fox", "--out", "s3://posters/fox.png")

    first, second = jojokey(*command), jojokey(*command)

    assert (first.code, second.code) == (4, 4)
    assert "You may have been charged" in first.err
    assert len(gateway.charges) == 1
    again = jojokey(*command, "--on-unknown-outcome", "regenerate")
    assert again.code == 0
    assert len(gateway.charges) == 2


@pytest.mark.parametrize(
    ("case", "code"),
    [("no_channel", 3), ("moderation_blocked", 1), ("cloudflare_524", 4)],
)
@pytest.mark.parametrize("place", ["s3://posters/fox.png", "fox.png"])
def test_exit_code_shows_retry_and_cost(
    jojokey: Run, gateway: Gateway, bucket: Bucket, case: str, code: int, place: str
) -> None:
    gateway.behave(case)

    output = jojokey("generate", "A red fox", "--out", place)

    assert output.code == code
    assert output.out == ""
    assert output.err.startswith("jojokey: ")
    assert "Traceback" not in output.err


# To disk


def test_image_is_saved_as_a_file(jojokey: Run, gateway: Gateway, tmp_path: Path, png: bytes) -> None:
    output = jojokey("generate", "A red fox", "--out", "fox.png", "-o", "json")

    assert output.code == 0
    assert (tmp_path / "fox.png").read_bytes() == png
    assert [path.name for path in tmp_path.iterdir()] == ["fox.png"]
    assert output.rows[0]["total_tokens"] == gateway.charges[0].total_tokens


def test_file_is_replaced_only_with_overwrite(
    jojokey: Run, gateway: Gateway, tmp_path: Path, png: bytes
) -> None:
    (tmp_path / "fox.png").write_bytes(b"dear to me")

    output = jojokey("generate", "A red fox", "--out", "fox.png")

    assert output.code == 1
    assert (tmp_path / "fox.png").read_bytes() == b"dear to me"
    assert gateway.requests == ()
    assert jojokey("generate", "A red fox", "--out", "fox.png", "--overwrite").code == 0
    assert (tmp_path / "fox.png").read_bytes() == png


def test_file_that_appears_meanwhile_is_kept(
    jojokey: Run, gateway: Gateway, tmp_path: Path, png: bytes
) -> None:
    from threading import Thread

    def meanwhile() -> None:
        gateway.wait_for_request(timeout=PATIENCE)
        (tmp_path / "fox.png").write_bytes(b"dear to me")

    gateway.behave(delay=1.0)
    thread = Thread(target=meanwhile)
    thread.start()
    output = jojokey("generate", "A red fox", "--out", "fox.png", "-o", "json")
    thread.join()

    assert output.code == 0
    assert (tmp_path / "fox.png").read_bytes() == b"dear to me"
    assert (tmp_path / "fox_2.png").read_bytes() == png
    assert output.rows[0]["image"].endswith("fox_2.png")


def test_files_in_a_directory_are_named_after_the_prompt(jojokey: Run, tmp_path: Path) -> None:
    for _ in range(2):
        assert jojokey("generate", "A red fox, in the snow!", "-n", "2").code == 0

    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a-red-fox-in-the-snow-0.png",
        "a-red-fox-in-the-snow-1.png",
        "a-red-fox-in-the-snow_2-0.png",
        "a-red-fox-in-the-snow_2-1.png",
    ]


def test_prompt_cannot_escape_the_directory(jojokey: Run, tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()

    assert jojokey("generate", "../../etc/passwd", "--out", "inner").code == 0

    assert [path.name for path in inner.iterdir()] == ["etc-passwd.png"]


def test_images_of_a_broken_response_are_kept(
    jojokey: Run, gateway: Gateway, tmp_path: Path, png: bytes
) -> None:
    gateway.behave("truncated", truncate_after=1)

    output = jojokey("generate", "A red fox", "-n", "2", "--out", "fox.png")

    assert output.code == 4
    assert "Also kept: " in output.err
    (kept,) = tmp_path.glob(".jojokey-*/*.image")
    assert kept.read_bytes() == png


def test_unusable_data_is_kept_where_the_message_says(jojokey: Run, gateway: Gateway, tmp_path: Path) -> None:
    gateway.behave("avif")

    output = jojokey("generate", "A red fox", "--out", "fox.png")

    assert output.code != 0
    (kept,) = tmp_path.glob(".jojokey-*/*.bin")
    assert f"kept as {kept.relative_to(tmp_path)}" in output.err
    assert kept.stat().st_size > 0


@pytest.mark.parametrize(
    "place",
    [
        "nowhere/fox.png",
        "nowhere/",
        "/proc/fox.png",
        "~nosuchuser/fox.png",
        f"{'fox' * 100}.png",
        f"{'f' * 253}.{{ext}}",
    ],
)
def test_unwritable_place_costs_nothing(jojokey: Run, gateway: Gateway, place: str) -> None:
    output = jojokey("generate", "A red fox", "--out", place)

    assert output.code == 1
    assert "Nothing was sent or billed" in output.err
    assert gateway.requests == ()


def test_folder_with_the_name_of_an_image_costs_nothing(
    jojokey: Run, gateway: Gateway, tmp_path: Path
) -> None:
    (tmp_path / "fox-1.png").mkdir()

    output = jojokey("generate", "A red fox", "-n", "2", "--out", "fox.png", "--overwrite")

    assert output.code == 1
    assert "fox-1.png is a folder. Nothing was sent or billed" in output.err
    assert gateway.requests == ()


def test_image_that_cannot_be_moved_is_kept_and_named(
    jojokey: Run, gateway: Gateway, tmp_path: Path, png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow_provider_jojokey.hooks.jojokey import JojoKeyHook

    generate = JojoKeyHook.generate

    def make_folder_meanwhile(*arguments: Any) -> Any:
        (tmp_path / "fox.png").mkdir()
        return generate(*arguments)

    monkeypatch.setattr(JojoKeyHook, "generate", make_folder_meanwhile)

    output = jojokey("generate", "A red fox", "--out", "fox.png", "--overwrite")

    assert output.code == 4
    assert "fox.png can't be written: Is a directory" in output.err
    (kept,) = tmp_path.glob(".jojokey-*/*.image")
    assert kept.read_bytes() == png
    assert str(kept.relative_to(tmp_path)) in output.err


@pytest.mark.parametrize(
    ("stream", "words"),
    [
        (None, "standard input is closed"),
        (io.TextIOWrapper(io.BytesIO(b"A red fox\xff"), "utf-8"), "standard input is not valid utf-8"),
    ],
)
def test_unreadable_standard_input_costs_nothing(
    jojokey: Run, gateway: Gateway, monkeypatch: pytest.MonkeyPatch, stream: Any, words: str
) -> None:
    monkeypatch.setattr(sys, "stdin", stream)

    output = jojokey("generate", "-", "--out", "fox.png")

    assert output.code == 1
    assert words in output.err
    assert gateway.requests == ()


def test_prompt_is_read_from_standard_input(
    jojokey: Run, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("A red fox\nin the snow\n"))

    assert jojokey("generate", "-", "--out", "fox.png").code == 0

    assert gateway.requests[0].prompt == "A red fox\nin the snow"


def test_invalid_request_costs_nothing(jojokey: Run, gateway: Gateway) -> None:
    output = jojokey("generate", "A red fox", "--size", "1000x1000")

    assert output.code == 1
    assert "nearest valid size" in output.err
    assert gateway.requests == ()


def test_markup_in_a_name_is_printed_literally(jojokey: Run, tmp_path: Path) -> None:
    (tmp_path / "[red]").mkdir()

    output = jojokey("generate", "A red fox", "--out", "[red]/[/b]\x1b[31mfox.png")

    assert "[red]/[/b]" in output.out or "[red]" in output.err
    assert "\x1b[31m" not in output.out + output.err


def test_token_is_never_printed(jojokey: Run, gateway: Gateway, connect: Callable[..., None]) -> None:
    secret = "sk-a-secret-that-must-not-be-shown"
    connect(secret)

    output = jojokey("generate", "A red fox", "--verbose")

    assert output.code == 1
    assert secret not in output.out + output.err
