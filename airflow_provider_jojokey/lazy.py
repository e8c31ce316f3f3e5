"""Properties that are computed once, when they are first used."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

T = TypeVar("T")


class lazy_property(Generic[T]):
    """A property whose value is computed once for each object, whatever the number of threads.

    Threads wait only while another thread computes the same property of the same object. With
    :func:`functools.cached_property`, they wait for all objects of the class in Python 3.11, so that one slow server
    blocks the tasks of all others in a triggerer. In newer versions, two threads both compute the value.
    """

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self._compute = compute
        self.__doc__ = compute.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type) -> lazy_property[T]: ...
    @overload
    def __get__(self, instance: object, owner: type) -> T: ...
    def __get__(self, instance: object | None, owner: type) -> lazy_property[T] | T:
        if instance is None:
            return self
        values = vars(instance)
        with values.setdefault(f"_{self._name}_lock", threading.RLock()):  # setdefault is atomic
            if self._name not in values:
                values[self._name] = self._compute(instance)
            value: T = values[self._name]
            return value
