"""Prevent memory growth in a process that runs for months."""

from __future__ import annotations

import ctypes

_M_MMAP_THRESHOLD = -3
"""Parameter number in mallopt (malloc.h)."""
THRESHOLD = 128 << 10
"""Initial value in glibc (M_MMAP_THRESHOLD, mallopt(3))."""


def return_large_blocks() -> None:
    """Allocate every large block directly from the system, so that it is returned as soon as it is freed.

    glibc stops doing so for blocks as large as one that was freed before, up to 32 MiB; they then come from
    the heap. asyncio reads each socket into 256 KiB, which are shrunk at once to the few hundred received
    bytes. The remaining blocks are scattered, so no 256 KiB are free between them, and the heap grows by
    about 50 bytes per request. Does nothing if the C library has no mallopt.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, THRESHOLD)
