"""Find phrases that make text hard to read. The list below is the only place for them.

Run as ``python scripts/words.py [FILE …]``; without files, all tracked text files are checked.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]

PHRASES = {
    r"\btold\b": 'use "log", "return", "report", "raise" or "record"',
    r"\buntold\b": 'use "unknown"',
    r"\bwhoever\b|\bsomebody\b": "name the actor",
    r"\bsurely\b": 'use "definitely", or omit it',
    r"\ball the same\b": 'use "anyway"',
    r"\bcomes? to nothing\b|\bcame to nothing\b": "say what happened",
    r"\bfor one in\b": "name the variable after the element",
    r"(?<!there )\bis no (?!longer\b|more\b|such\b|other\b|\w+er\b)[a-z]+": 'use "is not a …"',
    r"\bholds for\b": 'use "applies to"',
    r"\bwaited out\b": "say what waits, and how long",
    r"\bpaid in vain\b|\bin vain\b": "say what is lost",
}
"""Pattern → what to write instead."""

CHECKED = (
    "airflow_provider_jojokey",
    "scripts",
    "dags",
    "docs",
    "tests",
    "benchmarks",
    "README.md",
    "CONTRIBUTING.md",
)
"""Git's path specifications of the files."""

SUFFIXES = {".md", ".py", ".js", ".yaml", ".yml"}


def findings(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield the line number, the phrase and the advice for each finding in a file."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        for pattern, advice in PHRASES.items():
            if found := re.search(pattern, line, re.IGNORECASE):
                yield number, found[0], advice


def tracked_files() -> list[Path]:
    """Return the tracked text files in :data:`CHECKED`, except this one."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--", *CHECKED], cwd=ROOT, check=True, capture_output=True, text=True
    )
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    return [path for path in paths if path.suffix in SUFFIXES and path != Path(__file__).resolve()]


def main(names: Sequence[str]) -> int:
    """Print all findings, and return 1 if there are any."""
    count = 0
    for path in [Path(name).resolve() for name in names] or tracked_files():
        for number, phrase, advice in findings(path):
            print(f'{path.relative_to(ROOT)}:{number}: "{phrase}": {advice}')
            count += 1
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
