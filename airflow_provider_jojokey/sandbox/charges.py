"""The stand-in's record of its charges. Tests compare payments with it.

The gateway writes a record when the upstream has finished, *before* it sends the end of the response. So a client
that has read a response finds its record. A moment later, the gateway knows whether it could send the whole response.
It then writes a second line with the same ``request_id``, and readers of the file keep the last line of each request.
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
"""Units of the gateway's quota per US dollar."""


@dataclass(frozen=True)
class ChargeRecord:
    """A request with a valid token, and its charge."""

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
    """``WIDTHxHEIGHT`` in pixels, with ``auto`` resolved."""
    quality: str
    n: int
    case: str
    """The case of the sandbox; ``ok`` is a good response."""
    status: int | None
    """The HTTP status sent, or ``None`` if the connection ended without one."""
    stream: bool
    input_tokens: int
    output_tokens: int
    billed: bool
    refunded: bool
    """Whether the gateway reserved the price and refunded it, as it does for its own errors."""
    quota: int
    """The charge in units of quota; 0 unless billed."""
    delivered: bool
    """Whether the whole response was sent while the client was connected."""

    @property
    def total_tokens(self) -> int:
        """Input and output tokens together."""
        return self.input_tokens + self.output_tokens

    @property
    def cost_usd(self) -> float:
        """The charge in US dollars."""
        return self.quota / QUOTA_PER_USD

    def to_json(self) -> dict[str, Any]:
        """Return the record as a dict of JSON types, with ``total_tokens`` and ``cost_usd``."""
        return {**asdict(self), "total_tokens": self.total_tokens, "cost_usd": self.cost_usd}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> ChargeRecord:
        """Return the record from the result of :meth:`to_json`.

        :raises KeyError: if a field is missing.
        """
        return cls(**{field.name: row[field.name] for field in fields(cls)})


class Charges:
    """The records of one gateway, in memory and, if a path is given, in a file of JSON lines.

    :param path: the file to which each change is appended at once, so that other processes can read it at any time,
        and a killed process loses nothing. An existing file is read and continued.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._records: dict[str, ChargeRecord] = {}
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                self._records = {record.request_id: record for record in read_charges(path, everything=True)}

    def put(self, record: ChargeRecord) -> None:
        """Add ``record``, or replace the record with the same ``request_id``."""
        line = json.dumps(record.to_json(), ensure_ascii=False) + "\n"
        with self._lock:
            self._records[record.request_id] = record
            if self._path is not None:
                # One write to a file opened for appending: no reader sees half a line.
                handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
                try:
                    os.write(handle, line.encode())
                finally:
                    os.close(handle)

    def delivered(self, request_id: str, complete: bool) -> None:
        """Record whether the whole response to ``request_id`` was sent."""
        with self._lock:
            record = self._records.get(request_id)
        if record is not None and record.delivered != complete:
            self.put(replace(record, delivered=complete))

    def everything(self) -> tuple[ChargeRecord, ...]:
        """Return all records, billed or not, oldest first."""
        with self._lock:
            return tuple(self._records.values())

    def billed(self) -> tuple[ChargeRecord, ...]:
        """Return the records of charged requests, oldest first."""
        return tuple(record for record in self.everything() if record.billed)

    def clear(self) -> None:
        """Delete all records, and empty the file."""
        with self._lock:
            self._records.clear()
            if self._path is not None:
                self._path.write_bytes(b"")


def read_charges(path: Path | str, *, everything: bool = False) -> tuple[ChargeRecord, ...]:
    """Return the records in a file, which a gateway may still be writing.

    :param path: the file of JSON lines.
    :param everything: also return requests that were refunded or never charged.
    :returns: the latest record of each request, oldest first.
    :raises FileNotFoundError: if there is no such file.
    """
    records: dict[str, ChargeRecord] = {}
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            if line.endswith("\n"):  # the gateway is still writing a line without a line break
                record = ChargeRecord.from_json(json.loads(line))
                records[record.request_id] = record
    return tuple(record for record in records.values() if everything or record.billed)
