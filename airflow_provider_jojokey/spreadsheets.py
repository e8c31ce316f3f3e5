"""Read a batch's requests from a CSV file, and write cells that are safe in a spreadsheet.

Spreadsheets write CSV files in several encodings and with several delimiters: Excel in Europe uses semicolons, and
its "Unicode text" is UTF-16 with tabs; Excel in China writes GB18030. This module detects the encoding by the file's
bytes, and the delimiter by the names of the columns.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import io
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from typing import Any

from airflow_provider_jojokey.batch.plan import OPTIONS
from airflow_provider_jojokey.img2.rules import FIELDS, problems
from airflow_provider_jojokey.operators.arguments import converted
from airflow_provider_jojokey.store.keys import bucket_problems, key_problems, split

REQUIRED = ("prompt", "s3_key")
DELIMITERS: tuple[str, ...] = (",", ";", "\t")
MAX_PROBLEMS = 20
"""Maximum number of problems that an error lists."""

_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose byte order mark is the beginning of this one
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SEPARATOR = re.compile(r'"?sep=(.)"?(?:\r\n|\r|\n|$)', re.IGNORECASE)
_FORMULA = ("=", "+", "-", "@", "\N{FULLWIDTH EQUALS SIGN}", "\N{FULLWIDTH PLUS SIGN}",
            "\N{FULLWIDTH HYPHEN-MINUS}", "\N{FULLWIDTH COMMERCIAL AT}")  # fmt: skip
_WORD = re.compile(r"\w+")
_WESTERN = frozenset("ŠšŽžŒœŸ€‚„…‘’“”–—•™\xa0¡£§©«®°»¿½¼ªº·") | {  # noqa: RUF001
    chr(code) for code in range(0xC0, 0x100) if code not in (0xD7, 0xF7)
}
"""Characters of Windows-1252 beyond ASCII that are usual in Western European text."""
_ALPHABETS = (
    "àâæçèéêëîïñôœùûüÿ",
    "äéöüß",
    "áçéíïñóúüªº",
    "àáâãçéêíóôõúüªº",
    "àèéìíîòóùú",
    "åäæèéóôöøü",
    "áèéêëíïóöúü",
)
"""Letters beyond ASCII: French, German, Spanish and Catalan, Portuguese, Italian, the Nordic languages, Dutch."""
_SYLLABLES = frozenset(
    "이다는의에을가고하지도한로를은기사리어시서아자대나정만일인스그부수상보게안원해전주라들제여과구요성장조우비유동소세오진연신마공면"
    "내있것없모경화문선무국관치생방식업미분할였했습니까위물야저때든음술거말중통더되된적계점용당발심실개외작명회차재약크트드르프레노"
    "바색빛꽃별달밤낮강산하늘눈봄름울양길새집숲래밝두빨간파란초록흰검림진포터배너광각와으며면서설행운축복추석크리마스품표디자인웃"
    "커피잔책카케익딸북동쪽왕궁탑절벽홍초콜릿맛햇살창문앉따뜻즐거랑족친휴변섬등항골목통현로봇천"
)
"""The most common syllables of Korean."""
MAX_SAMPLE = 10_000
"""Maximum number of characters that decide whether a file is Chinese."""


def read_requests(
    content: bytes, *, encoding: str | None = None, name: str = "The CSV file"
) -> list[dict[str, str]]:
    """Return a request for each row of a CSV file. Empty rows and cells are skipped.

    The columns are the options of a batch's items. ``prompt`` and ``s3_key`` are required. The delimiter is a comma,
    a semicolon or a tab, or what a first line such as ``sep=;`` says. All rows are checked, so that one error names
    everything to correct. Row 1 is the header, as in a spreadsheet.

    :param content: the file's bytes
    :param encoding: the encoding; by default UTF-8, UTF-16, GB18030 or Windows-1252 is detected
    :param name: the file's name in errors
    :raises JojoKeyRequestError: if the file or a row can't be used
    """
    from airflow_provider_jojokey.exceptions import JojoKeyRequestError

    try:
        rows = list(_rows(decode(content, encoding)))
        header_row, columns = _columns(rows)
        requests, found = _requests(rows[header_row:], columns, header_row + 1)
    except ValueError as error:
        raise JojoKeyRequestError(f"{name}: {error}.", "Correct the file.") from None
    if found:
        listed = found[:MAX_PROBLEMS]
        if len(found) > MAX_PROBLEMS:
            listed.append(f"and {len(found) - MAX_PROBLEMS} more problems")
        raise JojoKeyRequestError(f"{name}: {'; '.join(listed)}.", "Correct these rows.")
    return requests


def safe_cell(value: Any) -> Any:
    """Return a cell that no spreadsheet evaluates as a formula: formulas get a leading apostrophe."""
    if not isinstance(value, str):
        return value
    is_formula = value.startswith(("\t", "\r", "\n")) or value.lstrip().startswith(_FORMULA)
    return f"'{value}" if is_formula else value


def decode(content: bytes, encoding: str | None = None) -> str:
    """Return the text of a file that a spreadsheet has written.

    Most encodings have no invalid bytes. So a file is Windows-1252 only if all its words look Western European,
    and GB18030 only if its characters are common in Chinese. Other files are rejected, because prompts with wrong
    characters would be paid for.

    :param encoding: the encoding; by default it is detected
    :raises ValueError: if the encoding is unknown or doesn't fit
    """
    for bom, bom_encoding in _BOMS:
        if content.startswith(bom):
            encoding = bom_encoding
            break
    if encoding is None and b"\0" in content[:2]:  # the columns are ASCII
        encoding = "utf-16-be" if content[:1] == b"\0" else "utf-16-le"
    if encoding is not None:
        return _decoded(content, encoding)
    if _is_damaged_utf8(content):  # as GB18030 it would be valid, and garbled
        raise ValueError("it is UTF-8 with some invalid bytes: save it as CSV UTF-8")
    with suppress(ValueError):
        return _decoded(content, "utf-8")
    western = _western(content)
    if western is not None and _has_western_words(western):
        return western
    with suppress(ValueError):
        if _is_chinese(text := _decoded(content, "gb18030")) and not _is_korean(content):
            return text
    raise ValueError(
        "its encoding is neither UTF-8, UTF-16, GB18030 nor Windows-1252: save it as CSV UTF-8, or name its encoding"
    )


def _decoded(content: bytes, encoding: str) -> str:
    try:
        return content.decode(encoding).removeprefix("\N{BOM}")
    except (LookupError, UnicodeError) as error:
        known = not isinstance(error, LookupError)
        raise ValueError(
            f"it is not valid {encoding}: save it as CSV UTF-8"
            if known
            else f"{encoding!r} is not an encoding"
        ) from None


def _is_damaged_utf8(content: bytes) -> bool:
    """Return whether most characters beyond ASCII are valid UTF-8, and a few are not."""
    text = content.decode("utf-8", "replace")
    invalid = text.count("\N{REPLACEMENT CHARACTER}")
    beyond_ascii = sum(not character.isascii() for character in text)
    return 0 < 5 * invalid <= beyond_ascii and "\N{REPLACEMENT CHARACTER}".encode() not in content


def _western(content: bytes) -> str | None:
    """Return the content as Windows-1252 if it has only characters that are usual in Western Europe."""
    try:
        text = content.decode("cp1252")
    except UnicodeError:
        return None
    return text if all(character.isascii() or character in _WESTERN for character in text) else None


def _has_western_words(text: str) -> bool:
    """Return whether all words look Western European: few accents, of one language, and no capitals inside."""
    for word in _WORD.findall(text):
        accents = [letter for letter in word.lower() if letter.isalpha() and not letter.isascii()]
        regular = len(word) == 1 or word[1:].islower() or word.isupper()
        few = 2 * len(accents) <= len(word) + (len(set(accents)) == 1)  # "été" has more than half
        if accents and not (regular and few and any(set(accents) <= set(letters) for letters in _ALPHABETS)):
            return False
    return True


def _is_chinese(text: str) -> bool:
    """Return whether a third of the characters beyond ASCII are common in simplified Chinese, and none are private.

    Text in Big5, Shift-JIS or a code page of Eastern Europe is often valid GB18030, with rare characters. Kana have the
    same bytes in GB18030 and in EUC-JP, whose kanji would become other characters.
    """
    found = list(islice((character for character in text if "\x7f" < character < "\U00010000"), MAX_SAMPLE))
    private = any("\ue000" <= character <= "\uf8ff" for character in found)
    kana = sum("\u3041" <= character <= "\u30fa" for character in found)
    common = sum(map(_is_common_in_chinese, found))
    return not private and 10 * kana < max(len(found), 10) and 3 * common >= len(found)


def _is_korean(content: bytes) -> bool:
    """Return whether the content is Korean in code page 949: its letters are syllables, and most of them are common.

    The same bytes are common characters in GB18030. But other common characters are no syllables in code page 949, and
    Chinese text contains both.
    """
    try:
        text = content.decode("cp949")
    except UnicodeError:
        return False
    letters = [letter for letter in text if letter.isalpha() and not letter.isascii()][:MAX_SAMPLE]
    syllables = all("\uac00" <= letter <= "\ud7a3" for letter in letters)
    return syllables and 5 * sum(letter in _SYLLABLES for letter in letters) >= max(3 * len(letters), 1)


def _is_common_in_chinese(character: str) -> bool:
    """Return whether GB 2312 has the character as punctuation, or among the 3,755 most common ones (level 1)."""
    code = character.encode("gb2312", "ignore")
    return bool(code) and (code[0] in (0xA1, 0xA3) or 0xB0 <= code[0] <= 0xD7)


def _rows(text: str) -> list[list[str]]:
    """Return the rows, with stripped cells.

    :raises ValueError: if the text is not a CSV file
    """
    if "\0" in text:
        raise ValueError("it contains NUL characters, so it is not a CSV file in this encoding")
    delimiters = DELIMITERS
    if separator := _SEPARATOR.match(text):
        text, delimiters = text[separator.end() :], (separator[1],)
    delimiter = max(delimiters, key=lambda candidate: _known_columns(text, candidate))
    rows: list[list[str]] = []
    try:
        for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True):
            rows.append([cell.strip() for cell in row])
    except csv.Error as error:
        raise ValueError(
            f"row {len(rows) + 1} can't be read ({error}): is a quotation mark missing, or one too many?"
        ) from None
    return rows


def _known_columns(text: str, delimiter: str) -> tuple[int, int]:
    """Return how many cells of the first row are names of columns, and how many cells there are."""
    try:
        for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter):
            if not _is_empty(row):
                return sum(_normalized(cell) in OPTIONS for cell in row), len(row)
    except csv.Error:
        pass
    return 0, 0


def _is_empty(row: Iterable[str]) -> bool:
    """Return whether there is nothing in a row above the header, whatever the delimiter is."""
    return not any(cell.strip(" ,;\t") for cell in row)


def _normalized(column: str) -> str:
    return re.sub(r"[\s-]+", "_", column.strip().lower())


def _columns(rows: list[list[str]]) -> tuple[int, list[str]]:
    """Return the number of the header row, counted from 1, and the names of the columns.

    :raises ValueError: if a column is missing, unknown or duplicate
    """
    header_row = next((number for number, row in enumerate(rows, 1) if not _is_empty(row)), 0)
    if not header_row:
        raise ValueError("it is empty")
    columns = [_normalized(cell) for cell in rows[header_row - 1]]
    found = []
    for written, column in zip(rows[header_row - 1], columns, strict=True):
        if column and column not in OPTIONS:
            free = [option for option in OPTIONS if option not in columns]
            nearest = difflib.get_close_matches(column, free, n=1) or difflib.get_close_matches(
                column, OPTIONS, n=1
            )
            advice = f"did you mean {nearest[0]!r}?" if nearest else f"known columns are {', '.join(OPTIONS)}"
            found.append(f"the column {written[:50]!r} is unknown: {advice}")
    found += [f"the column {name!r} is missing" for name in REQUIRED if name not in columns]
    twice = {column for column in columns if column and columns.count(column) > 1}
    found += [f"there are two columns {name!r}" for name in sorted(twice)]
    if found:
        raise ValueError("; ".join(found))
    return header_row, columns


def _requests(
    rows: Iterable[list[str]], columns: list[str], first: int
) -> tuple[list[dict[str, str]], list[str]]:
    """Return the requests, and the problems of the rows.

    :param first: the number of the first row
    :raises ValueError: if there are no requests
    """
    requests: list[dict[str, str]] = []
    found: list[str] = []
    keys: dict[tuple[str | None, str], int] = {}
    for number, row in enumerate(rows, first):
        if not any(row):
            continue
        cells = list(zip(columns, row, strict=False))
        request = {column: cell for column, cell in cells if column and cell}
        issues = list(_problems(request))
        if any(cell for column, cell in cells if not column) or any(row[len(columns) :]):
            issues.append("there is a value in a column without a name")
        key = request.get("s3_key", "")
        if key and (other := keys.setdefault((request.get("s3_bucket"), key), number)) != number:
            issues.append(f"s3_key={key[:80]!r} is also in row {other}")
        found += [f"row {number}: {issue}" for issue in issues]
        requests.append(request)
    if not requests:
        raise ValueError("it has no rows below the header")
    return requests, found


def _problems(request: Mapping[str, str]) -> Iterator[str]:
    for name in REQUIRED:
        if not request.get(name):
            yield f"{name} is empty"
    values: dict[str, Any] = {}
    for name, cell in request.items():
        try:
            values[name] = converted(name, cell)
        except ValueError as error:
            yield str(error)
    yield from problems({name: value for name, value in values.items() if name in FIELDS})
    if "s3_key" in values:
        try:
            bucket, key = split(values.get("s3_bucket"), values["s3_key"])
        except ValueError as error:
            yield str(error)
            return
        yield from bucket_problems(bucket) if bucket else ()
        yield from key_problems(key)
