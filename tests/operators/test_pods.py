"""Tasks in a pod: another user without a passwd entry or a home, a read-only root filesystem, a shared volume."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.patience import PATIENCE

USER, GROUP = 54321, 2000


def can_mount() -> bool:
    try:
        return (
            os.getuid() == 0
            and subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode == 0
        )
    except OSError:
        return False


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder that all users can enter, unlike those of pytest."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.skipif(not can_mount(), reason="only root can change the user and mount filesystems")
@pytest.mark.parametrize(
    ("permissions", "group"),
    [
        pytest.param("2775", GROUP, id="volume with fsGroup"),
        pytest.param("2770", GROUP, id="volume with fsGroup that others can't read"),
        pytest.param("1777", 0, id="emptyDir or hostPath that all users share"),
    ],
)
def test_pod_with_only_the_spool_writable_generates_images(
    gateway: Any, store: Any, public_folder: Path, permissions: str, group: int
) -> None:
    volume = public_folder / "spool"
    volume.mkdir()
    environment = {
        **{
            name: value
            for name, value in os.environ.items()
            if name not in ("HOME", "USER", "LOGNAME", "TMPDIR")
        },
        "AIRFLOW__JOJOKEY__SPOOL_DIRECTORY": str(volume),
    }

    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", sys.executable,
         Path(__file__).parent / "pod_child.py", volume, str(USER), str(group), permissions],
        env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert not found["root_is_writable"]
    assert not found["has_passwd_entry"]
    assert found["folders"] == {f"uid-{USER}": "0o700"}
    single, batch = found["manifests"]
    assert single["images"][0]["uri"] == "s3://posters/pod.png"
    assert (batch["made"], batch["failed"]) == (1, 0)
    assert {"pod.png", "pod-owl.png"} <= set(store.objects())
    assert len(gateway.charges) == 4  # including two of the warm-up
