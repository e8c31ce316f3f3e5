"""Several images as one zip file, made while it is sent: one image at a time is on disk, none in memory.

Images are compressed already, so the zip file stores them as they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import BinaryIO
from urllib.parse import unquote

from airflow_provider_jojokey.exceptions import JojoKeyStoreError
from airflow_provider_jojokey.plugins.cards import Place
from airflow_provider_jojokey.plugins.objects import NotServed
from airflow_provider_jojokey.results import StoredImage

MAX_IMAGES = 50
MAX_BYTES = 512 * 1024 * 1024
LEFT_OUT = "not included.txt"
MAX_NAME = 150
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)

Selected = tuple[Place, int, int | None]
"""A task, the number of its image, and of a batch the line of its manifest."""
Source = tuple[StoredImage, str | None]
"""An image, and the AWS connection that reads it."""


class BadSelection(ValueError):
    """A selection that does not name images; the message says why, to people."""


def selected(text: str) -> Selected:
    """Read ``dag/run/task/map index/number[/line]``, each part percent-encoded but the run's slashes.

    :raises BadSelection: if it is something else
    """
    path, _, line = text.partition("?item=")
    dag_id, *run_id, task_id, map_index, number = (
        map(unquote, path.split("/")) if path.count("/") > 3 else [""] * 5
    )
    numbers = [map_index.removeprefix("-"), number, *([line] if line else [])]
    if not (dag_id and task_id and all(re.fullmatch(r"[0-9]{1,9}", one) for one in numbers)) or "\0" in text:
        raise BadSelection("The selection names something that is not an image.")
    place = (dag_id, "/".join(run_id), task_id, int(map_index))
    return place, int(number), int(line) if line else None


def check(sources: Sequence[Source]) -> None:
    """Refuse what is too much for one zip file.

    :raises BadSelection: if it is
    """
    total = sum(image.bytes for image, _ in sources)
    if total > MAX_BYTES:
        raise BadSelection(
            f"The selected images have {total / 1e6:,.0f} MB. One zip file holds at most {MAX_BYTES / 1e6:,.0f} MB."
        )


def stream(
    sources: Iterable[Source], fetch: Callable[[StoredImage, str | None], tuple[BinaryIO, str]], piece: int
) -> Iterator[bytes]:
    """Yield the zip file. A text file inside lists images that S3 no longer has or does not return.

    :param fetch: opens an image after it was checked
    :param piece: bytes that are read at a time
    """
    from zipstream import ZipStream

    archive, names, left_out = ZipStream(), Names(), []
    for image, aws_conn_id in sources:
        try:
            file, _ = fetch(image, aws_conn_id)
        except (NotServed, JojoKeyStoreError) as error:
            left_out.append(f"{image.uri}: {error.what if isinstance(error, JojoKeyStoreError) else error}")
            continue
        with file:
            archive.add(iter(lambda file=file: file.read(piece), b""), names.of(image.name), size=image.bytes)  # type: ignore[misc]
            yield from archive.file()
    if left_out:
        archive.add("\n".join(left_out) + "\n", names.of(LEFT_OUT))
    yield from archive.finalize()


class Names:
    """File names within one folder, also on systems that ignore upper and lower case."""

    def __init__(self) -> None:
        self._given: set[str] = set()

    def of(self, name: str) -> str:
        """Return a safe name for a file, with a number where the name is taken."""
        name = safe_name(name)
        stem, dot, ending = name.rpartition(".")
        stem, ending = (stem, dot + ending) if stem else (name, "")
        given, number = name, 1
        while given.casefold() in self._given:
            number += 1
            given = f"{stem} ({number}){ending}"
        self._given.add(given.casefold())
        return given


def safe_name(name: str) -> str:
    """Return a file name that is safe on every system.

    :param name: the last part of an S3 key, which may hold anything
    """
    safe = re.sub(r'[\x00-\x1f\x7f"*/:<>?\\|]', "_", name).strip(". ")[-MAX_NAME:] or "image"
    safe = f"_{safe}" if _RESERVED.match(safe) else safe
    return safe.encode("utf-8", "replace").decode()
