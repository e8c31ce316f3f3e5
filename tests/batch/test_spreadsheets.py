"""CSV files as spreadsheets write them."""

# ruff: noqa: RUF001

from __future__ import annotations

import csv
import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_jojokey.exceptions import JojoKeyRequestError
from airflow_provider_jojokey.spreadsheets import decode, read_requests, safe_cell

POSTERS = [
    {"prompt": "Zürich im März; grün, „weiß“", "s3_key": "zürich.png", "size": "1024x1536"},
    {"prompt": "L'été à la mer,\nune barque", "s3_key": "été.png", "quality": "high"},
    {"prompt": "a tab\there", "s3_key": "tab.png", "n": "2"},
]
CHINESE = [
    {"prompt": "雨夜的成都茶馆，灯笼；水粉画", "s3_key": "成都.png", "size": "1024x1536"},
    {"prompt": "臺灣夜市", "s3_key": "taiwan.png"},
    {"prompt": "新年快乐 🎆", "s3_key": "new-year.png"},
]


def written(
    rows: list[dict[str, str]],
    delimiter: str = ",",
    encoding: str = "utf-8",
    newline: str = "\r\n",
    first_line: str = "",
) -> bytes:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO(newline="")
    table = csv.writer(text, delimiter=delimiter, lineterminator=newline)
    table.writerow(columns)
    table.writerows([row.get(name, "") for name in columns] for row in rows)
    return (first_line + text.getvalue()).encode(encoding)


def refused(content: bytes, **options: Any) -> str:
    with pytest.raises(JojoKeyRequestError) as caught:
        read_requests(content, **options)
    assert caught.value.billed == "no"
    return caught.value.message


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize(
    ("encoding", "rows"),
    [
        *[
            (name, POSTERS + CHINESE)
            for name in ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32")
        ],
        ("gb18030", CHINESE),
        ("gb18030", POSTERS + CHINESE),
        ("cp1252", POSTERS),
    ],
)
def test_encodings_and_delimiters_of_spreadsheets_are_recognized(
    delimiter: str, encoding: str, rows: list[dict[str, str]]
) -> None:
    assert read_requests(written(rows, delimiter, encoding)) == rows


@pytest.mark.parametrize("mark", ["utf-16-le", "utf-16-be"])
def test_utf16_of_both_byte_orders_with_mark_is_read(mark: str) -> None:
    content = "\ufeff".encode(mark) + written(CHINESE, "\t", mark)
    assert read_requests(content) == CHINESE


@pytest.mark.parametrize("newline", ["\r\n", "\n", "\r"])
@pytest.mark.parametrize("first_line", ["sep=;", '"sep=;"', "SEP=;"])
def test_first_line_that_names_the_separator_is_obeyed(newline: str, first_line: str) -> None:
    content = written(POSTERS[::2], ";", "utf-8-sig", newline, first_line + newline)
    assert read_requests(content) == POSTERS[::2]


def test_separator_of_the_first_line_may_be_unusual() -> None:
    assert read_requests(written(POSTERS, "|", first_line="sep=|\n")) == POSTERS


CELLS = (
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=30)
    .map(str.strip)
    .filter(lambda text: text and text != "None")
)


@given(
    prompts=st.lists(CELLS, min_size=1, max_size=6),
    delimiter=st.sampled_from([",", ";", "\t"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"]),
    newline=st.sampled_from(["\r\n", "\n"]),
    separator=st.booleans(),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_any_cell_survives_a_round_trip(
    prompts: list[str], delimiter: str, encoding: str, newline: str, separator: bool, quoting: Any
) -> None:
    text = io.StringIO(newline="")
    if any("\r" in prompt for prompt in prompts):
        quoting = csv.QUOTE_ALL  # Python before 3.13 does not quote it, and then it ends a row
    table = csv.writer(text, delimiter=delimiter, lineterminator=newline, quoting=quoting)
    if separator:
        text.write(f"sep={delimiter}{newline}")
    table.writerow(["s3_key", "prompt"])
    table.writerows([f"{number}.png", prompt] for number, prompt in enumerate(prompts))

    found = read_requests(text.getvalue().encode(encoding))

    assert [request["prompt"] for request in found] == prompts


COMMON = bytes(
    byte for row in range(0xB0, 0xD7) for column in range(0xA1, 0xFF) for byte in (row, column)
).decode("gb2312")
"""The most common characters of simplified Chinese."""


@given(
    st.lists(
        st.tuples(
            st.text(COMMON + "，。！？《》", min_size=1, max_size=20),
            # A few characters with a kana may be Japanese.
            st.characters(codec="gb2312", exclude_categories=["Cc"]).filter(
                lambda c: not "\u3041" <= c <= "\u30fa"
            ),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_simplified_chinese_survives_gb18030(words: list[tuple[str, str]]) -> None:
    text = "prompt;s3_key\r\n中文海报;" + ";".join(map("".join, words))
    assert decode(text.encode("gb18030")) == text


@given(
    st.lists(
        st.sampled_from(
            [
                "été",
                "à",
                "Zürich",
                "Ångström",
                "naïve",
                "coração",
                "señor",
                "ÉCOLE",
                "où",
                "Größe",
                "œuvre",
                "ça",
            ]
        ),
        min_size=1,
    )
)
def test_western_words_survive_windows_1252(words: list[str]) -> None:
    text = "prompt;s3_key\r\n" + " ".join(words) + ";a.png\r\n"
    assert decode(text.encode("cp1252")) == text


def test_named_encoding_is_used() -> None:
    text = "prompt,s3_key\nПлакат,a.png\n"
    assert read_requests(text.encode("cp1251"), encoding="cp1251")[0]["prompt"] == "Плакат"
    assert "is not an encoding" in refused(text.encode("cp1251"), encoding="klingon")
    assert "not valid utf-8" in refused(text.encode("cp1251"), encoding="utf-8")


@pytest.mark.parametrize(
    "content", [b"\xff\xfea", b"prompt,s3_key\n\x81\xff\x00,a", b"\x00\x01\x02", b"prompt,s3_key\na\x00,b"]
)
def test_file_in_unknown_encoding_is_rejected(content: bytes) -> None:
    assert "The CSV file" in refused(content)


@pytest.mark.parametrize(
    ("encoding", "prompt"),
    [
        ("cp1250", "Żółty kot na dachu"),
        ("cp1250", "Kůň ve sněhu"),
        ("cp1250", "Árvíztűrő tükörfúrógép"),
        ("cp1251", "Плакат осени в парке"),
        ("cp1251", "Кот"),
        ("cp1253", "Ένα κόκκινο"),
        ("cp1254", "Güneş ışığı"),
        ("cp1255", "שועל אדום"),
        ("cp1257", "Raudonas lapė ąžuolas"),
        ("big5", "一隻紅色的狐狸在雪中"),
        ("cp932", "赤いキツネが雪の中に"),
        ("cp949", "눈 속의 붉은 여우"),
        ("cp949", "한강의 밤, 불꽃놀이 포스터"),
        ("cp949", "커피 한 잔과 책"),
        ("euc_jp", "赤い狐が雪の中に"),
        ("euc_jp", "桜の木"),
        ("mac_roman", "Déjà vu"),
    ],
)
def test_prompt_is_never_read_in_a_wrong_encoding(encoding: str, prompt: str) -> None:
    content = f"prompt;s3_key\n{prompt};a.png\n".encode(encoding)
    assert "name its encoding" in refused(content)
    assert read_requests(content, encoding=encoding)[0]["prompt"] == prompt


@pytest.mark.parametrize(
    "prompt", ["½ litre de lait, 1ère qualité", "Rødgrød med fløde på", "“Café” – 5 €", "2º año"]
)
def test_words_and_symbols_survive_windows_1252(prompt: str) -> None:
    assert read_requests(f"prompt;s3_key\n{prompt};a.png\n".encode("cp1252"))[0]["prompt"] == prompt


@pytest.mark.parametrize(
    "prompt", ["國際會議海報，紅色的狐狸在雪中", "春节快乐 😀", "“A fox”", "优の良品的海报，干净的白色背景"]
)
def test_traditional_characters_and_symbols_survive_gb18030(prompt: str) -> None:
    assert read_requests(f"prompt;s3_key\n{prompt};a.png\n".encode("gb18030"))[0]["prompt"] == prompt


@pytest.mark.parametrize("damage", [b"\xe9", b"\xff", "红".encode()[:2], "红".encode("gb18030")])
@pytest.mark.parametrize("rows", [CHINESE, POSTERS])
def test_utf8_with_invalid_bytes_is_not_another_encoding(damage: bytes, rows: list[dict[str, str]]) -> None:
    assert "UTF-8 with some invalid bytes" in refused(written(rows * 3) + b"a " + damage + b" fox,fox.png")


@pytest.mark.parametrize("header", ["Prompt;S3 Key;SIZE", " prompt ;s3-key; size ", "prompt;s3_key;size;;"])
def test_case_and_spaces_of_columns_do_not_matter(header: str) -> None:
    content = f"{header}\r\na fox;fox.png;1024x1024;;\r\n".encode()
    assert read_requests(content) == [{"prompt": "a fox", "s3_key": "fox.png", "size": "1024x1024"}]


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("prompr,s3_key", ["'prompr' is unknown: did you mean 'prompt'?", "'prompt' is missing"]),
        ("prompt,s3key", ["'s3key' is unknown: did you mean 's3_key'?", "'s3_key' is missing"]),
        ("prompt,s3_key,colour", ["'colour' is unknown: known columns are prompt, model, size"]),
        ("prompt,s3_key,qualitiy", ["did you mean 'quality'?"]),
        ("prompt,s3_key,prompts", ["'prompts' is unknown: did you mean 'prompt'?"]),
        ("prompt,s3_key,size,Size", ["two columns 'size'"]),
        ("提示词,文件", ["'提示词' is unknown", "'prompt' is missing", "'s3_key' is missing"]),
        ("a fox", ["'prompt' is missing"]),
    ],
)
def test_wrong_columns_are_named_with_the_nearest(header: str, words: list[str]) -> None:
    message = refused(f"{header}\na,b,c,d\n".encode(), name="s3://posters/rows.csv")
    assert message.startswith("s3://posters/rows.csv: ")
    for word in words:
        assert word in message


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b"\n\n", b";;;\r\n", b"sep=;\r\n"])
def test_empty_file_is_rejected(content: bytes) -> None:
    assert "it is empty" in refused(content)


def test_file_without_rows_is_rejected() -> None:
    assert "no rows below the header" in refused(b"prompt,s3_key\n,\n\n")


def test_empty_rows_are_left_out_and_counted() -> None:
    content = b'prompt,s3_key,size\r\n\r\n,,\r\n"two\nlines",a.png,\r\n,b.png,12\r\n'
    message = refused(content)
    assert "row 5: prompt is empty" in message
    assert "row 5: size='12'" in message
    assert "row 4" not in message
    assert read_requests(content.replace(b",b.png,12", b"")) == [{"prompt": "two\nlines", "s3_key": "a.png"}]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("a fox,,", "s3_key is empty"),
        ("a fox,/fox.png,", "has an empty"),
        ("a fox,fox.png,1000x1000", "the nearest valid size"),
        ("a fox,first.png,", "s3_key='first.png' is also in row 2"),
        ("a fox,fox.png,,more", "a value in a column without a name"),
    ],
)
def test_problem_of_a_row_is_named_with_its_number(row: str, words: str) -> None:
    message = refused(f"prompt,s3_key,size\na cat,first.png,\n{row}\n".encode())
    assert "row 3: " in message
    assert words in message


def test_many_problems_are_counted() -> None:
    message = refused(b"prompt,s3_key\n" + b"a fox,\n" * 50)
    assert message.count("s3_key is empty") == 20
    assert "and 30 more problems" in message


@pytest.mark.parametrize(
    ("text", "row"), [('prompt,s3_key\na,a.png\n"open,b.png\n', 3), ('prompt,s3_key\n"a"b,a.png\n', 2)]
)
def test_unbalanced_quotation_mark_is_named_with_its_row(text: str, row: int) -> None:
    assert f"row {row} can't be read" in refused(text.encode())


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", " =", "\t=", "＝", "＋", "－", "＠"])
def test_formula_text_gets_an_apostrophe(start: str) -> None:
    assert safe_cell(f"{start}cmd|' /C calc'!A0") == f"'{start}cmd|' /C calc'!A0"


@pytest.mark.parametrize("cell", ["a fox", "", "a=b", "1-2", 5, -5, 0.1, None])
def test_other_cells_stay_as_they_are(cell: Any) -> None:
    assert safe_cell(cell) == cell
