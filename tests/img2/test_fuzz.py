"""A short run of the fuzzer; ``make fuzz`` runs a million cases."""

from __future__ import annotations

from tests.img2.fuzz import run


def test_mutated_responses_break_no_invariant() -> None:
    outcomes = run(first=20_261_128, count=4_000)
    assert outcomes["images"] > 500
    assert outcomes["errors"] > 500
