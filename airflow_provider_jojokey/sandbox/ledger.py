"""What the stand-in charged: the truth that a test of "paid once" is measured against.

A record is made when the upstream has finished its work, *before* the client can have seen the end of the reply; so
whoever has read a reply will find its record. Whether the reply arrived whole is known a moment later and written as
a second line with the same ``request_id``: readers of the file keep the last line of each request.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

QUOTA_PER_USD = 500_000
"""The gateway's own unit of account: so many make one US dollar."""


@dataclass(frozen=True)
class LedgerRecord:
    """One request that got past the token check, and what became of its money."""

    time: float
    """When the gateway settled it, in Unix seconds."""
    started: float
    """When the request arrived, in Unix seconds."""
    request_id: str
    token_name: str
    """The token's name, never the token."""
    model: str
    prompt: str
    """As received, with any ``[sandbox: …]`` directive."""
    size: str
    """In pixels, ``WIDTHxHEIGHT``: ``auto`` is already resolved."""
    quality: str
    n: int
    case: str
    """Which case of the sandbox answered; ``ok`` is a plain good reply."""
    status: int | None
    """The HTTP status sent, or ``None`` if the connection ended without one."""
    stream: bool
    input_tokens: int
    output_tokens: int
    billed: bool
    refunded: bool
    """Whether money was set aside and given back, as the gateway does for its own errors."""
    quota: int
    """What was charged, in the gateway's unit; 0 unless billed."""
    delivered: bool
    """Whether the whole reply went out while the client was still there, as far as a server can tell."""

    @property
    def total_tokens(self) -> int:
        """Input and output tokens together."""
        return self.input_tokens + self.output_tokens

    @property
    def cost_usd(self) -> float:
        """What was charged, in US dollars."""
        return self.quota / QUOTA_PER_USD

    def to_json(self) -> dict[str, Any]:
        """Return the record as a dict of JSON types, with ``total_tokens`` and ``cost_usd``."""
        return {**asdict(self), "total_tokens": self.total_tokens, "cost_usd": self.cost_usd}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> LedgerRecord:
        """Build a record from what :meth:`to_json` returned.

        :raises KeyError: if a field is missing.
        """
        return cls(**{field.name: row[field.name] for field in fields(cls)})


class Ledger:
    """The records of one gateway, in memory and, if a path is given, in a file of JSON lines.

    :param path: where each change is appended and flushed at once, so that the file can be read by other processes
        at any time and survives the death of this one. An existing file is read and carried on.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._records: dict[str, LedgerRecord] = {}
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                self._records = {record.request_id: record for record in read_ledger(path, everything=True)}

    def put(self, record: LedgerRecord) -> None:
        """Add ``record``, or put it in the place of the one with the same ``request_id``."""
        line = json.dumps(record.to_json(), ensure_ascii=False) + "\n"
        with self._lock:
            self._records[record.request_id] = record
            if self._path is not None:
                # One write to a file opened for appending: readers and other writers never see half a line.
                handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
                try:
                    os.write(handle, line.encode())
                finally:
                    os.close(handle)

    def delivered(self, request_id: str, whole: bool) -> None:
        """Note whether the reply to ``request_id`` went out whole."""
        with self._lock:
            record = self._records.get(request_id)
        if record is not None and record.delivered != whole:
            self.put(replace(record, delivered=whole))

    def everything(self) -> tuple[LedgerRecord, ...]:
        """Return all records, billed or not, oldest first."""
        with self._lock:
            return tuple(self._records.values())

    def billed(self) -> tuple[LedgerRecord, ...]:
        """Return what was charged and kept, oldest first."""
        return tuple(record for record in self.everything() if record.billed)

    def clear(self) -> None:
        """Forget all records and empty the file."""
        with self._lock:
            self._records.clear()
            if self._path is not None:
                self._path.write_bytes(b"")


def read_ledger(path: Path | str, *, everything: bool = False) -> tuple[LedgerRecord, ...]:
    """Read a ledger file that a gateway wrote, or is still writing.

    :param path: the file of JSON lines.
    :param everything: also return what was refunded or never charged.
    :returns: the records, oldest first, each in its last state.
    :raises FileNotFoundError: if there is no such file.
    """
    records: dict[str, LedgerRecord] = {}
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            if line.endswith("\n"):  # a last line without its end is still being written
                record = LedgerRecord.from_json(json.loads(line))
                records[record.request_id] = record
    return tuple(record for record in records.values() if everything or record.billed)
