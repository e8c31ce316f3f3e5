"""Options and results that the benchmarks have in common."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--json`` and ``--check``."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures to this file")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")


def conclude(arguments: argparse.Namespace, checks: Sequence[tuple[bool, str]], figures: Any) -> int:
    """Print whether the targets are met, write the figures if ``--json`` is set, and return the exit code.

    :param checks: for each target, whether it is met, and a sentence
    :param figures: JSON types
    """
    for met, sentence in checks:
        print(f"- {'met' if met else 'MISSED'}: {sentence}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 1 if arguments.check and not all(met for met, _ in checks) else 0
