"""Memory arenas of a process with many threads."""

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
all_started = threading.Barrier(33)
done = threading.Event()

def work():
    blocks = [bytearray(1000 * n) for n in range(20)]
    all_started.wait()
    done.wait()

for _ in range(32):
    threading.Thread(target=work, daemon=True).start()
all_started.wait()
with tempfile.NamedTemporaryFile() as file:
    libc = ctypes.CDLL(None)
    libc.fopen.restype = ctypes.c_void_p
    out = ctypes.c_void_p(libc.fopen(file.name.encode(), b"w"))
    libc.malloc_info(0, out)
    libc.fclose(out)
    print(file.read().decode().count("<heap "))
"""


def heaps(**environment: str) -> int:
    """Return the number of heaps that 32 threads create."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", CODE], env={**clean, **environment}, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def test_many_threads_share_two_heaps() -> None:
    assert heaps() == 2


def test_malloc_setting_of_the_worker_is_kept() -> None:
    assert heaps(MALLOC_ARENA_MAX="5") == 5
