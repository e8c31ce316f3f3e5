"""What many threads do to a process's memory, looked at in processes of their own."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")

CODE = """
import ctypes, os, tempfile, threading
from airflow_provider_jojokey.batch.heap import limit_malloc_arenas

limit_malloc_arenas()
all_are_there = threading.Barrier(33)
done = threading.Event()

def work():
    kept = [bytearray(1000 * n) for n in range(20)]
    all_are_there.wait()
    done.wait()

for _ in range(32):
    threading.Thread(target=work, daemon=True).start()
all_are_there.wait()
with tempfile.NamedTemporaryFile() as file:
    libc = ctypes.CDLL(None)
    libc.fopen.restype = ctypes.c_void_p
    out = ctypes.c_void_p(libc.fopen(file.name.encode(), b"w"))
    libc.malloc_info(0, out)
    libc.fclose(out)
    print(file.read().decode().count("<heap "))
"""


def heaps(**environment: str) -> int:
    """Return how many heaps 32 threads have made."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", CODE], env={**clean, **environment}, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def test_many_threads_share_two_heaps() -> None:
    assert heaps() == 2


def test_what_the_workers_operator_has_chosen_stands() -> None:
    assert heaps(MALLOC_ARENA_MAX="5") == 5
