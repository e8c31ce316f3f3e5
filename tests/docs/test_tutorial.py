"""The commands of the tutorial produce a poster in a new environment: `make test-docs`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from airflow_provider_jojokey.sandbox.charges import read_charges
from tests.docs.blocks import ROOT, blocks

TUTORIAL = list(blocks(ROOT / "docs" / "tutorial.md"))
REMOVED_VARIABLES = ("AIRFLOW", "JOJOKEY_", "AWS_", "PYTHON", "VIRTUAL_ENV")


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A folder with this package's wheel, which pip prefers to the registry."""
    folder = tmp_path / "release"
    subprocess.run(
        [sys.executable, "-m", "uv", "build", "--quiet", "--wheel", "--out-dir", folder, ROOT], check=True
    )
    return folder


def test_tutorial_ends_with_a_poster(tmp_path: Path, release: Path) -> None:
    home = tmp_path / "newcomer"
    home.mkdir()
    typed = ["set -e"]
    for block in TUTORIAL:
        if block.title:  # the reader saves it as a file
            typed += [
                f"mkdir -p {Path(block.title).parent}",
                f"cat > {block.title} <<'END'",
                block.text + "END",
            ]
        elif block.language == "console":
            typed += [
                line for command in block.commands for line in (f"echo '$' {command.split()[0]}", command)
            ]
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(REMOVED_VARIABLES)},
        "PIP_FIND_LINKS": f"{release} {os.environ.get('PIP_FIND_LINKS', '')}".strip(),
        "PIP_CONSTRAINT": str(ROOT / "constraints.txt"),
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        "AIRFLOW__JOJOKEY__SPOOL_DIRECTORY": str(tmp_path / "spool"),
    }

    done = subprocess.run(
        ["bash"], input="\n".join(typed) + "\n", cwd=home, env=environment,
        capture_output=True, text=True, timeout=1200, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    folder = home / "poster-tutorial"
    with Image.open(folder / "world" / "s3" / "posters" / "2026-01-01" / "poster.png") as poster:
        assert (poster.format, poster.size) == ("PNG", (1024, 1536))
    with Image.open(folder / "lighthouse.png") as lighthouse:
        assert lighthouse.format == "PNG"
    assert "Nothing was sent" in done.stdout
    assert "exit code 4" in done.stdout
    billed = [record.prompt.split()[1] for record in read_charges(folder / "world" / "charges.jsonl")]
    assert billed == ["lighthouse", "red", "lighthouse"]
