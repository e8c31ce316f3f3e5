"""The manifest: the result of each item as JSON lines, on disk while the batch runs, in S3 when it ends."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import tempfile
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from airflow_provider_jojokey.payments.errors import unusable_spool
from airflow_provider_jojokey.store.keys import RECEIPTS, part
from airflow_provider_jojokey.store.spool_directory import prepare, private_root

if TYPE_CHECKING:
    from airflow_provider_jojokey.payments.attempt import Owner

log = logging.getLogger(__name__)

CONTENT_TYPE = "application/x-ndjson; charset=utf-8"
NO_LINE = -1


class Manifest:
    """The results of a batch's items. They are kept on disk, because there may be many.

    :param directory: the spool directory, where it stays until the upload to S3
    :param total: number of items
    :raises JojoKeyStoreError: if the directory can't be used
    """

    def __init__(self, directory: Path, total: int) -> None:
        try:
            prepare(directory)
            self._open(private_root(directory))
        except OSError as error:
            raise unusable_spool(directory, error) from None
        self._begins, self._lengths = array("q", [NO_LINE]) * total, array("q", [0]) * total
        self._unwritten: dict[int, bytes] = {}
        """Lines that the disk has rejected. A batch goes on: it must record the images in flight, which are paid."""

    def _open(self, folder: Path) -> None:
        # Unnamed files disappear with the process. The receipts contain the same facts.
        self._lines: IO[bytes] = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
        self._folder = folder

    def add(self, index: int, line: Mapping[str, Any]) -> None:
        """Write the result of one item, which replaces an earlier one."""
        text = json.dumps({"index": index, **line}, ensure_ascii=False, separators=(",", ":"))
        data = text.encode("utf-8", "backslashreplace") + b"\n"
        self._unwritten.pop(index, None)
        begin = self._lines.seek(0, os.SEEK_END)
        try:
            if self._lines.write(data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            if not self._unwritten:
                log.warning("The results of a batch are kept in memory: %s.", error.strerror)
            self._unwritten[index] = data
        self._begins[index], self._lengths[index] = begin, len(data)

    def has(self, index: int) -> bool:
        """Return whether an item has a result."""
        return self._begins[index] != NO_LINE

    def line(self, index: int) -> dict[str, Any]:
        """Return the result of an item that has one."""
        line: dict[str, Any] = json.loads(self._data(index))
        return line

    def _data(self, index: int) -> bytes:
        if index in self._unwritten:
            return self._unwritten[index]
        return os.pread(self._lines.fileno(), self._lengths[index], self._begins[index])

    def in_order(self) -> IO[bytes]:
        """Return a new file with the lines in the items' order.

        :raises OSError: if the disk rejects it
        """
        out: IO[bytes] = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115
        for index, begin in enumerate(self._begins):
            if begin != NO_LINE:
                out.write(self._data(index))
        out.seek(0)
        return out

    def close(self) -> None:
        """Delete the file."""
        self._lines.close()


def manifest_key(owner: Owner) -> str:
    """Return the key of a task's manifest, the same for all its tries."""
    task = part(owner.task_id)
    if owner.map_index >= 0:
        task = f"{task}-{owner.map_index}"
    elif re.search(r"-\d+$", task):
        task = f"{task}-"  # distinguish the task "poster-1" from the mapped task "poster" with index 1
    return f"{RECEIPTS}batches/{part(owner.dag_id)}/{part(owner.run_id)}/{task}.jsonl"
