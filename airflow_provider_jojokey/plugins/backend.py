"""Results that the configured XCom backend keeps outside of Airflow's database.

With a custom ``[core] xcom_backend``, such as the object storage backend, the database may hold a reference only.
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

log = logging.getLogger(__name__)

THREADS = 8
"""Values that are read from the backend at a time."""
MAX_KEPT = 5_000
"""Results that are kept in memory: the gallery, its totals and each thumbnail ask for the same ones."""


class Unreadable(Exception):
    """A result that the backend does not return; the message says why, without quoting what may be secret."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A result as Airflow's database has it.

    :param identity: its primary key and the time of writing
    :param value: the JSON value in the database
    """

    identity: Hashable
    key: str
    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    value: Any


def read_all(stored: Sequence[Stored]) -> list[Result | Unreadable | None]:
    """Return what each value is: a result, ``None`` if it is something else, or why it can't be read."""
    found: dict[int, Result | Unreadable | None] = {}
    elsewhere: list[int] = []
    for number, one in enumerate(stored):
        result = Result.from_xcom(one.value)
        if result is None and (isinstance(one.value, str) or is_custom()):
            elsewhere.append(number)
        else:
            found[number] = result
    for number, read in zip(elsewhere, _read([stored[number] for number in elsewhere]), strict=True):
        found[number] = read
    return [found[number] for number in range(len(stored))]


def _read(stored: Sequence[Stored]) -> Iterable[Result | Unreadable | None]:
    if len(stored) < 2:
        return [_read_one(one) for one in stored]
    with ThreadPoolExecutor(THREADS, thread_name_prefix="jojokey-xcom") as threads:
        return list(threads.map(_read_one, stored))


def _read_one(stored: Stored) -> Result | Unreadable | None:
    with _kept_lock:
        if stored.identity in _kept:
            return _kept[stored.identity]
    try:
        backend = _custom_backend()
        if backend is None:
            return Unreadable("It was written with another XCom backend than [core] xcom_backend names here.")
        names = ("key", "dag_id", "run_id", "task_id", "map_index", "value")
        value = backend.deserialize_value(SimpleNamespace(**{name: getattr(stored, name) for name in names}))
    except Exception as error:  # of any kind: the backend is somebody else's
        log.warning("The XCom backend can't return a result of %s.", stored.task_id, exc_info=True)
        return Unreadable(f"{name_of_backend()} can't return it here ({type(error).__name__}).")
    result = Result.from_xcom(value)
    if isinstance(value, str):  # the backend returns what it doesn't know as it is
        return Unreadable(f"{name_of_backend()} does not know where it is.")
    with _kept_lock:
        _kept[stored.identity] = result
    return result


def name_of_backend() -> str:
    """Return the name of the configured XCom backend."""
    from airflow.providers.common.compat.sdk import conf

    return (conf.get("core", "xcom_backend", fallback="") or "").rpartition(".")[2] or "BaseXCom"


@cache
def _custom_backend() -> Any:
    """Return the class of the configured backend; ``None`` if all values are in the database."""
    from airflow.sdk.bases.xcom import BaseXCom
    from airflow.sdk.execution_time.xcom import resolve_xcom_backend

    backend = resolve_xcom_backend()  # type: ignore[no-untyped-call]
    return None if backend.deserialize_value is BaseXCom.deserialize_value else backend


def is_custom() -> bool:
    """Return whether a custom backend is configured; also if it can't be loaded."""
    try:
        return _custom_backend() is not None
    except Exception:
        return True


_kept: LRUCache[Hashable, Result | None] = LRUCache(maxsize=MAX_KEPT)
_kept_lock = threading.Lock()
