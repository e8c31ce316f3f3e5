"""Every text of the UI and every message of its routes is translated, and no translation is unused."""

from __future__ import annotations

import ast
import json
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_jojokey.translatable import Translatable
from tests.support.airflow import BUCKET, Store
from tests.support.api_server import Book, Server, png_image, result, stored_image

STATIC = Path(__file__).parents[2] / "airflow_provider_jojokey" / "plugins" / "static"
STRING = r'"((?:[^"\\]|\\.)*)"'
SHAPES = re.compile(r"^const SHAPES = \{.*?^\};", re.MULTILINE | re.DOTALL)
PACKAGE = STATIC.parents[1]
UNTRANSLATED = {"{n}", "{what}"}
"""Texts without words."""


def sources() -> str:
    found = (path.read_text() for path in sorted(STATIC.glob("*.js")) if path.name != "zh.js")
    return SHAPES.sub("", "\n".join(found))


def texts(source: str) -> set[str]:
    """Return the texts that go through ``t`` or ``count``, or stand in a table of texts."""
    found = set(re.findall(rf"\bt\(\s*{STRING}", source))
    for pattern in (
        rf'\bcount\(\s*[^"]*?,\s*{STRING},\s*{STRING}',
        rf"\bt\([^()\"]*\?\s*{STRING}\s*:\s*{STRING}",
    ):
        found |= {text for pair in re.findall(pattern, source) for text in pair}
    # Constants, also those of one line, and the headings of tables.
    tables = re.findall(r"^const [A-Z_]+ = [{\[](.*?)[}\]];$", source, re.MULTILINE | re.DOTALL)
    for table in [*tables, *re.findall(r"\[([^\[\]]*)\]\.map\(", source)]:
        found |= {text for text in re.findall(STRING, table) if re.match("[A-Z]", text)}
    return found - UNTRANSLATED


def messages() -> set[str]:
    """Return the templates of the server's messages, which must be literals."""
    calls = [
        node
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Translatable"
    ]
    return {ast.literal_eval(call.args[0]) for call in calls} - UNTRANSLATED


def translations() -> dict[str, str]:
    pairs = re.findall(rf"^\s*(?:{STRING}|(\w+)):\s*{STRING},", (STATIC / "zh.js").read_text(), re.MULTILINE)
    return {json.loads(f'"{quoted or bare}"'): chinese for quoted, bare, chinese in pairs}


def test_all_ui_texts_are_translated() -> None:
    assert sorted(texts(sources()) - set(translations())) == []


def test_all_messages_of_the_server_are_translated() -> None:
    assert sorted(messages() - set(translations())) == []


def test_no_translation_is_unused() -> None:
    source, of_the_server = sources(), messages()
    unused = [text for text in translations() if f'"{text}"' not in source and text not in of_the_server]
    assert unused == []


@pytest.mark.parametrize("text", sorted(translations()))
def test_translation_keeps_the_placeholders(text: str) -> None:
    placeholders = re.compile(r"\{\w+\}")
    assert sorted(placeholders.findall(text)) == sorted(placeholders.findall(translations()[text]))


def texts_of(message: dict[str, Any]) -> Iterator[str]:
    """Yield the parts of a message that the browser translates, and the prose that it can't translate."""
    yield message["text"]
    for value in message["values"].values():
        if isinstance(value, dict):
            yield from texts_of(value)
        elif isinstance(value, str) and " " in value:
            yield value


def untranslated(message: dict[str, Any]) -> list[str]:
    assert message["detail"]
    return [text for text in texts_of(message) if text not in translations() and text not in UNTRANSLATED]


FORGED = {
    "no_receipt": {"receipt": f"s3://{BUCKET}/_jojokey/never.json"},
    "no_bucket": {"receipt": "s3://no-such-bucket/_jojokey/never.json"},
    "invalid_bucket": {"receipt": "s3://No_Bucket/_jojokey/never.json"},
    "elsewhere": {"receipt": f"s3://{BUCKET}/x.json"},
    "no_receipt_in_it": {"receipt": f"s3://{BUCKET}/_jojokey/list.json"},
    "old_receipt": {"receipt": f"s3://{BUCKET}/_jojokey/old.json"},
    "no_connection": {"receipt": f"s3://{BUCKET}/_jojokey/never.json", "aws_conn_id": "no_store"},
    "a_database": {"receipt": f"s3://{BUCKET}/_jojokey/never.json", "aws_conn_id": "a_database"},
    "no_manifest": {"manifest": f"s3://{BUCKET}/_jojokey/never.jsonl"},
    "long_line": {"manifest": f"s3://{BUCKET}/_jojokey/long.jsonl"},
}


@pytest.mark.parametrize("forged", FORGED)
def test_message_of_a_tab_can_be_translated(server: Server, book: Book, store: Store, forged: str) -> None:
    for key, data in {"list": b"[]", "old": b'{"version": 9}'}.items():
        store.client.put_object(Bucket=BUCKET, Key=f"_jojokey/{key}.json", Body=data)
    store.client.put_object(Bucket=BUCKET, Key="_jojokey/long.jsonl", Body=b"x" * 300_000)
    book.write("a", result(**FORGED[forged]), run_id=forged)
    answer = server.get(f"/jojokey/api/dags/a/runs/{forged}/tasks/image/-1").json()
    (message,) = filter(None, (answer["attempts_error"], answer["items_error"]))
    assert untranslated(message) == []


BROKEN = {
    "missing": stored_image(png_image(), "never.png"),
    "too_large": stored_image(png_image(), "x.png", bytes=2**40),
    "replaced": stored_image(png_image("red"), "x.png"),
    "no_image": stored_image(b"no image", "text.txt"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_message_about_an_image_can_be_translated(
    server: Server, book: Book, store: Store, broken: str
) -> None:
    store.client.put_object(Bucket=BUCKET, Key="x.png", Body=png_image("blue"))
    store.client.put_object(Bucket=BUCKET, Key="text.txt", Body=b"no image")
    book.write("a", result(BROKEN[broken]), run_id=broken)
    for kind in ("images", "thumbnails"):
        answer = server.get(f"/jojokey/{kind}/a/{broken}/image/-1/0")
        assert answer.status_code == 404
        assert untranslated(answer.json()) == []


@pytest.mark.parametrize("path", ["api/results?cursor=x", "api/results?q=%00", "zip?image=x"])
def test_message_about_a_request_can_be_translated(server: Server, path: str) -> None:
    answer = server.get(f"/jojokey/{path}")
    assert answer.status_code == 400
    assert untranslated(answer.json()) == []


def test_message_is_english_text_with_its_values() -> None:
    inner = Translatable("read {uri}", uri="s3://{limit}/x")
    message = Translatable("{limit} bytes: {doing} {else}", limit=1234, doing=inner)
    assert message == "1,234 bytes: read s3://{limit}/x {else}"
    assert message.to_json()["values"]["doing"]["text"] == "read {uri}"
    assert pickle.loads(pickle.dumps(message)).to_json() == message.to_json()
