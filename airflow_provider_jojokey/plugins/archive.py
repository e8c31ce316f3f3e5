"""A zip file of several images, created while it is sent.

Only one image at a time is on disk, and none is in memory. Images are already compressed, so the zip
file stores them uncompressed.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import BinaryIO
from urllib.parse import parse_qsl, unquote

from airflow_provider_jojokey.exceptions import JojoKeyStoreError
from airflow_provider_jojokey.plugins.cards import Place
from airflow_provider_jojokey.plugins.objects import NotServed
from airflow_provider_jojokey.results import StoredImage
from airflow_provider_jojokey.translatable import Translatable

MAX_IMAGES = 50
MAX_BYTES = 512 * 1024 * 1024
"""Maximum total size of the images in one zip file."""
MAX_FAILURES = 2
"""Transient failures in a row after which a bucket is not asked again: each can take most of a minute."""
LEFT_OUT = "not included.txt"
NOT_REQUESTED = "It was not requested, because S3 had not returned the images before it. Try again later."
MAX_NAME, MAX_NAME_BYTES = 150, 240
"""Maximum length of a file name: in characters, and in bytes of UTF-8, of which file systems allow 255."""
_UNSAFE = re.compile(r'[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"*/:<>?\\|]')
"""Characters that a file system rejects, control characters, and those that reverse the direction of text."""
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)

Selected = tuple[Place, int, int | None]
"""A task, the number of the image in its result, and for a batch the line in its manifest."""
Source = tuple[StoredImage, str | None]
"""An image, and the AWS connection that reads it."""
_SHA256 = re.compile("[0-9a-f]{1,64}")


class BadSelection(ValueError):
    """A selection that is invalid or too large. The message is displayed to the user."""

    def __init__(self, message: Translatable) -> None:
        super().__init__(message)
        self.message = message


def selected(text: str) -> tuple[Selected, str]:
    """Parse ``dag/run/task/map index/number[?v=version&item=line]``.

    Parts are percent-encoded, except for slashes in the run ID.

    :return: the image's place and its version, the beginning of its hash; empty for any version
    :raises BadSelection: if the text has another format
    """
    path, _, query = text.partition("?")
    values = dict(parse_qsl(query))
    line, version = values.pop("item", ""), values.pop("v", "")
    dag_id, *run_id, task_id, map_index, number = (
        map(unquote, path.split("/")) if path.count("/") > 3 else [""] * 5
    )
    numbers = [map_index.removeprefix("-"), number, *([line] if line else [])]
    if (
        not (dag_id and task_id and all(re.fullmatch(r"[0-9]{1,9}", part) for part in numbers))
        or "\0" in unquote(text)  # PostgreSQL has none
        or values
        or (version and not _SHA256.fullmatch(version))
    ):
        raise BadSelection(Translatable("The selection contains something that is not an image."))
    place = (dag_id, "/".join(run_id), task_id, int(map_index))
    return (place, int(number), int(line) if line else None), version


def check(sources: Sequence[Source]) -> None:
    """Check that the images fit into one zip file.

    :raises BadSelection: if they are too large together
    """
    total = sum(image.bytes for image, _ in sources)
    if total > MAX_BYTES:
        raise BadSelection(
            Translatable(
                "The selected images have {size} MB. One zip file holds at most {limit} MB.",
                size=round(total / 1e6),
                limit=round(MAX_BYTES / 1e6),
            )
        )


def stream(
    sources: Iterable[Source],
    fetch: Callable[[StoredImage, str | None], tuple[BinaryIO, str]],
    chunk: int,
    left_out: Iterable[str] = (),
) -> Iterator[bytes]:
    """Yield the zip file. It contains a list of the images that it leaves out.

    :param fetch: function that downloads, verifies and opens an image
    :param chunk: bytes to read at a time
    :param left_out: lines for that list, to which images that S3 does not return are added
    """
    from zipstream import ZipStream

    archive, names = ZipStream(), Names()
    missing = list(left_out)
    failures: Counter[tuple[str, str | None]] = Counter()
    for image, aws_conn_id in sources:
        store = (image.bucket, aws_conn_id)
        if failures[store] >= MAX_FAILURES:
            missing.append(f"{image.uri}: {NOT_REQUESTED}")
            continue
        try:
            file, _ = fetch(image, aws_conn_id)
        except NotServed as error:
            failures[store] = 0
            missing.append(f"{image.uri}: {error}")
            continue
        except JojoKeyStoreError as error:
            failures[store] = failures[store] + 1 if error.transient else 0
            missing.append(f"{image.uri}: {error.what}")
            continue
        failures[store] = 0
        with file:
            archive.add(iter(lambda file=file: file.read(chunk), b""), names.of(image.name), size=image.bytes)  # type: ignore[misc]
            yield from archive.file()
    if missing:
        archive.add("\n".join(missing) + "\n", names.of(LEFT_OUT))
    yield from archive.finalize()


class Names:
    """Unique file names for one folder, also on file systems that ignore case or the form of accents."""

    def __init__(self) -> None:
        self._used: set[str] = set()

    def of(self, name: str) -> str:
        """Return a safe file name, with a number appended if the name is already used."""
        name = safe_name(name)
        stem, dot, ending = name.rpartition(".")
        stem, ending = (stem, dot + ending) if stem else (name, "")
        unique, number = name, 1
        while _folded(unique) in self._used:
            number += 1
            unique = f"{stem} ({number}){ending}"
        self._used.add(_folded(unique))
        return unique


def safe_name(name: str) -> str:
    """Return a file name that is safe on every system.

    :param name: the last part of an S3 key, which may contain any character
    """
    shortened = _UNSAFE.sub("_", name).strip(". ")[-MAX_NAME:].encode("utf-8", "replace")[-MAX_NAME_BYTES:]
    safe = shortened.decode("utf-8", "ignore").strip(". ") or "image"
    return f"_{safe}" if _RESERVED.match(safe) else safe


def _folded(name: str) -> str:
    """Return what is equal for two names that some file systems don't distinguish."""
    return unicodedata.normalize("NFC", name.casefold())
