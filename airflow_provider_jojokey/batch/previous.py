"""Find the items that an earlier try of the same batch has completed, without a request per item.

The manifest of the earlier try names each item's images and the ETag of its receipt. A listing of the bucket shows
which of these objects are unchanged. Only both together prove that an item is complete:

* its receipt has the ETag from the manifest, so nothing has been recorded since then;
* each of its images has the size from the manifest, and is not newer than the receipt, which is written after the
  images.

The item's tokens and cost come from the manifest, too. If another version has written them in another form, or not at
all, the manifest proves nothing.

Without this proof, the task reads the item's receipt and checks its images, as for any other item.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from msgspec import Struct

from airflow_provider_jojokey.exceptions import JojoKeyError
from airflow_provider_jojokey.results import Result
from airflow_provider_jojokey.store import spool
from airflow_provider_jojokey.store.keys import RECEIPTS

if TYPE_CHECKING:
    from airflow_provider_jojokey.payments.job import ImageJob
    from airflow_provider_jojokey.store.s3 import ImageStore

log = logging.getLogger(__name__)

REUSABLE = ("run", "always")
PAGES, KEYS_PER_PAGE = 10, 1000
"""Pages to list beyond those that the keys need, in case the bucket contains many other objects."""


class Listed(Struct, frozen=True):
    """An object in a listing."""

    size: int
    etag: str
    modified: datetime


class Previous:
    """The manifest of an earlier try, and the current objects in S3. Query the items in ascending order.

    :param lines: the manifest
    :param listed: the objects by bucket and key
    :param spool_directory: the spool directory, which may contain images of unfinished attempts
    """

    def __init__(
        self, lines: IO[bytes], listed: dict[tuple[str, str], Listed], spool_directory: Path
    ) -> None:
        self._file = lines
        self._lines = _parsed(lines)
        self._listed = listed
        self._spool_directory = spool_directory
        self._line: dict[str, Any] | None = next(self._lines, None)

    def unchanged(self, index: int, job: ImageJob, host: str) -> dict[str, Any] | None:
        """Return the manifest's line for a complete item, or ``None`` without proof.

        :param index: the item's number, higher than in the previous call
        :param host: the gateway
        """
        while self._line is not None and self._line["index"] < index:
            self._line = next(self._lines, None)
        line = self._line
        if line is None or line["index"] != index or not self._proves(line, job, host):
            return None
        return line

    def from_the_start(self) -> Iterator[dict[str, Any]]:
        """Yield all lines of the manifest. After this, :meth:`unchanged` finds nothing more."""
        self._line = None
        return _parsed(self._file)

    def _proves(self, line: dict[str, Any], job: ImageJob, host: str) -> bool:
        try:
            receipt = self._listed.get((job.destination.bucket, job.destination.receipt_key))
            return bool(
                receipt is not None
                and line["state"] == "complete"
                and line["settled"] is True
                and line["images"]
                and line["reuse"] == job.reuse in REUSABLE
                and line["receipt"] == job.destination.uri(job.destination.receipt_key)
                and line["receipt_etag"].strip('"') == receipt.etag
                and line["fingerprint"] == job.request.fingerprint(host)
                and all(self._is_unchanged(image, receipt) for image in line["images"])
                and type(line["usage"]["total_tokens"]) is int
                and (result := Result.from_xcom(line)) is not None
                and result.cost is not None
                and not spool.attempts_in(self._spool_directory, job.uri)
            )
        except (KeyError, TypeError, AttributeError, OSError):
            return False

    def _is_unchanged(self, image: dict[str, Any], receipt: Listed) -> bool:
        bucket, key = image["bucket"], image["key"]
        found = self._listed.get((bucket, key))
        if found is None or image["uri"] != f"s3://{bucket}/{key}":
            return False
        return bool(found.size == image["bytes"] and found.modified <= receipt.modified)


def load(store: ImageStore, bucket: str, key: str, folder: Path) -> Previous | None:
    """Return the manifest and objects of an earlier try, or ``None`` if there is no manifest.

    :param key: the manifest's key
    :param folder: the spool directory
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    lines: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
    try:
        if not store.download(bucket, key, lines):
            return None
        listed: dict[tuple[str, str], Listed] = {}
        for name, (count, prefix) in _places(lines).items():
            for under in (prefix, f"{RECEIPTS}{prefix}"):
                pages = PAGES + count // KEYS_PER_PAGE
                for found in store.list(name, under, pages):
                    if not {"Key", "Size", "ETag", "LastModified"} <= found.keys():
                        continue  # incompletely listed objects are checked one by one
                    listed[name, found["Key"]] = Listed(
                        found["Size"], found["ETag"].strip('"'), found["LastModified"]
                    )
    except JojoKeyError as error:
        log.info("Checking the items of the earlier try one by one: %s", error.what_happened)
        return None
    return Previous(lines, listed, folder)


def _places(lines: IO[bytes]) -> dict[str, tuple[int, str]]:
    """Return, for each bucket, the number of its images and the common prefix of their keys."""
    places: dict[str, tuple[int, str]] = {}
    for line in _parsed(lines):
        try:
            for image in line["images"] if line["state"] == "complete" else ():
                count, prefix = places.get(image["bucket"], (0, image["key"]))
                places[image["bucket"]] = count + 1, _shared(prefix, image["key"])
        except (KeyError, TypeError):
            continue
    return places


def _shared(first: str, second: str) -> str:
    """Return the common prefix of two texts."""
    pairs = enumerate(zip(first, second, strict=False))
    length = next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))
    return first[:length]


def _parsed(lines: IO[bytes]) -> Iterator[dict[str, Any]]:
    lines.seek(0)
    for data in lines:
        try:
            line = json.loads(data)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict) and type(line.get("index")) is int:
            yield line
