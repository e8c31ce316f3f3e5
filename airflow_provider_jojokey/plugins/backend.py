"""Read results that an XCom backend stores outside of Airflow's database.

With a custom ``[core] xcom_backend``, such as the object storage backend, the database may contain only a reference.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

from cachetools import LRUCache

from airflow_provider_jojokey.results import Result
from airflow_provider_jojokey.translatable import Translatable

log = logging.getLogger(__name__)

THREADS = 8
"""Maximum number of values that are read from the backend at the same time."""
MAX_CACHED = 5_000
"""Maximum results cached in memory: the gallery, its totals and each thumbnail need the same results."""


class Unreadable(Exception):
    """A result that can't be read. The message gives the reason, without secrets."""

    def __init__(self, message: Translatable) -> None:
        super().__init__(message)
        self.message = message


@dataclass(frozen=True, slots=True)
class Stored:
    """A result as stored in Airflow's database.

    :param identity: primary key and time of writing
    :param value: JSON value in the database
    """

    identity: Hashable
    key: str
    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    value: Any


def read_all(stored: Sequence[Stored]) -> list[Result | Unreadable | None]:
    """Return the result in each value; ``None`` if the value is not a result.

    For a value that can't be read, return an :class:`Unreadable` with the reason.
    """
    results: dict[int, Result | Unreadable | None] = {}
    elsewhere: list[int] = []
    for number, entry in enumerate(stored):
        result = Result.from_xcom(entry.value)
        if result is None and (isinstance(entry.value, str) or is_custom()):
            elsewhere.append(number)
        else:
            results[number] = result
    for number, read in zip(elsewhere, _read([stored[number] for number in elsewhere]), strict=True):
        results[number] = read
    return [results[number] for number in range(len(stored))]


def _read(stored: Sequence[Stored]) -> Iterable[Result | Unreadable | None]:
    if len(stored) < 2:
        return [_read_one(entry) for entry in stored]
    with ThreadPoolExecutor(THREADS, thread_name_prefix="jojokey-xcom") as threads:
        return list(threads.map(_read_one, stored))


def _read_one(entry: Stored) -> Result | Unreadable | None:
    with _cache_lock:
        if entry.identity in _cache:
            return _cache[entry.identity]
    try:
        backend = _custom_backend()
        if backend is None:
            return Unreadable(
                Translatable("It was written with another XCom backend than the one in [core] xcom_backend.")
            )
        names = ("key", "dag_id", "run_id", "task_id", "map_index", "value")
        value = backend.deserialize_value(SimpleNamespace(**{name: getattr(entry, name) for name in names}))
    except Exception as error:  # third-party backends can raise any exception
        log.warning("The XCom backend can't return a result of %s.", entry.task_id, exc_info=True)
        return Unreadable(
            Translatable(
                "{backend} can't return it here ({error}).",
                backend=name_of_backend(),
                error=type(error).__name__,
            )
        )
    result = Result.from_xcom(value)
    if isinstance(value, str):  # backends return unknown references unchanged
        return Unreadable(
            Translatable("{backend} does not know the reference to it.", backend=name_of_backend())
        )
    with _cache_lock:
        _cache[entry.identity] = result
    return result


def name_of_backend() -> str:
    """Return the name of the configured XCom backend."""
    from airflow.providers.common.compat.sdk import conf

    return (conf.get("core", "xcom_backend", fallback="") or "").rpartition(".")[2] or "BaseXCom"


@cache
def _custom_backend() -> Any:
    """Return the configured backend; ``None`` if all values are in the database."""
    from airflow.sdk.bases.xcom import BaseXCom
    from airflow.sdk.execution_time.xcom import resolve_xcom_backend

    backend = resolve_xcom_backend()  # type: ignore[no-untyped-call]
    return None if backend.deserialize_value is BaseXCom.deserialize_value else backend


def is_custom() -> bool:
    """Return whether a custom backend is configured, even if it can't be loaded."""
    try:
        return _custom_backend() is not None
    except Exception:
        return True


_cache: LRUCache[Hashable, Result | None] = LRUCache(maxsize=MAX_CACHED)
_cache_lock = threading.Lock()
