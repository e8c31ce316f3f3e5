"""Properties that are computed once for each object."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from airflow_provider_jojokey.lazy import lazy_property

PATIENCE = 60


class Lookup:
    """Looks a value up, when it is allowed to."""

    def __init__(self) -> None:
        self.started, self.allowed = threading.Event(), threading.Event()
        self.lookups = 0

    @lazy_property
    def value(self) -> object:
        """What was looked up."""
        self.lookups += 1
        self.started.set()
        if not self.allowed.wait(PATIENCE):
            raise TimeoutError
        return object()

    @lazy_property
    def pair(self) -> tuple[object, object]:
        return self.value, self.value


def test_threads_get_the_same_value() -> None:
    lookup = Lookup()
    with ThreadPoolExecutor(4) as threads:
        waiting = [threads.submit(lambda: lookup.value) for _ in range(4)]
        assert lookup.started.wait(PATIENCE)
        lookup.allowed.set()
        assert len({id(each.result(PATIENCE)) for each in waiting}) == 1
    assert lookup.lookups == 1


def test_slow_lookup_does_not_block_other_objects() -> None:
    slow, fast = Lookup(), Lookup()
    fast.allowed.set()
    with ThreadPoolExecutor(2) as threads:
        waiting = threads.submit(lambda: slow.value)
        assert slow.started.wait(PATIENCE)
        other = threads.submit(lambda: fast.value)
        try:
            assert other.result(PATIENCE / 2) is fast.value
        finally:
            slow.allowed.set()
        waiting.result(PATIENCE)


def test_property_may_use_another_of_the_same_object() -> None:
    lookup = Lookup()
    lookup.allowed.set()
    assert lookup.pair == (lookup.value, lookup.value)


def test_failed_computation_is_repeated() -> None:
    failures = [ValueError("first")]

    class Flaky:
        @lazy_property
        def value(self) -> int:
            if failures:
                raise failures.pop()
            return 1

    flaky = Flaky()
    with pytest.raises(ValueError, match="first"):
        _ = flaky.value
    assert flaky.value == 1


def test_class_shows_the_documentation() -> None:
    assert Lookup.value.__doc__ == "What was looked up."
