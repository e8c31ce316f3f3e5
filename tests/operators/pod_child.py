"""Generates images under the conditions of a Kubernetes pod: another user, a read-only root filesystem.

It starts as root in a separate mount namespace. First it generates one image, which loads all modules, because the
other user might not be able to read the interpreter. Then it enters the pod's conditions and generates the other
images. Its arguments are the spool's volume, the UID, the group of the volume and the permissions of the volume.
"""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
import tempfile
from types import SimpleNamespace
from typing import Any

from airflow_provider_jojokey.operators.jojokey import GenerateImageBatchOperator, GenerateImageOperator


def main() -> None:
    volume, user, group, permissions = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4], 8)
    mount = ["mount", "-t", "tmpfs", "-o", f"mode={permissions:o},gid={group}", "tmpfs", volume]
    subprocess.run(mount, check=True)
    generate("warm-up")
    # Files of the warm-up belong to root.
    subprocess.run(["umount", volume], check=True)
    subprocess.run(mount, check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", "/"], check=True)
    os.setgroups([group])
    os.setgid(user)
    os.setuid(user)
    tempfile.tempdir = None
    facts = {"root_is_writable": is_writable("/tmp"), "has_passwd_entry": has_passwd_entry(user)}
    manifests = generate("pod")
    folders = {entry.name: oct(entry.stat().st_mode & 0o777) for entry in os.scandir(volume)}
    print(json.dumps({**facts, "manifests": manifests, "folders": folders}))


def generate(name: str) -> list[Any]:
    context: Any = {"ti": task_instance(name)}
    single = GenerateImageOperator(
        task_id=name, prompt=f"a fox, {name}", s3_bucket="posters", s3_key=f"{name}.png", size="1024x640"
    )
    batch = GenerateImageBatchOperator(
        task_id=f"{name}-batch",
        requests=[{"prompt": f"an owl, {name}", "s3_key": f"{name}-owl.png"}],
        s3_bucket="posters",
        size="1024x640",
    )
    return [single.execute(context), batch.execute(context)]


def task_instance(name: str) -> SimpleNamespace:
    return SimpleNamespace(
        id=None,
        dag_id="pod",
        run_id=name,
        task_id=name,
        map_index=-1,
        try_number=1,
        xcom_push=lambda *_: None,
    )


def is_writable(folder: str) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def has_passwd_entry(user: int) -> bool:
    try:
        pwd.getpwuid(user)
    except KeyError:
        return False
    return True


if __name__ == "__main__":
    main()
