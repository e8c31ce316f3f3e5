"""Limit the memory of a process with many threads."""

from __future__ import annotations

import sys

M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8
"""From glibc's ``malloc.h``."""
ARENAS = 2
MAPPED_FROM = 256 * 1024
"""Bytes. Buffers for responses are larger, so their memory returns to the system at once."""


def limit_malloc_arenas() -> None:
    """Let all threads share two of glibc's heaps (arenas), and keep large buffers out of them.

    By default, glibc creates up to eight arenas per processor, and each keeps the most memory that its threads ever
    needed. Measured on two processors with 64 images in flight: without this function, the peak memory of a batch
    is 43 MiB for 100 images and 75 MiB for 3,000. With it, the peak is 19 MiB, and 27 MiB from 1,000 images on. CPU
    time is the same.

    Only the process of the batch task is affected. Nothing changes with another C library, or if the worker's
    environment sets ``MALLOC_…`` variables.
    """
    import ctypes
    import os

    if sys.platform != "linux" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_ARENA_MAX, ARENAS)
        mallopt(M_MMAP_THRESHOLD, MAPPED_FROM)
