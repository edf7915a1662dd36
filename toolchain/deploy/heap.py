"""Keeps a process that runs for months from growing."""

from __future__ import annotations

import ctypes

_M_MMAP_THRESHOLD = -3
"""mallopt's number for it (malloc.h)."""
THRESHOLD = 128 << 10
"""glibc's own beginning (M_MMAP_THRESHOLD, mallopt(3))."""


def return_large_blocks() -> None:
    """Have every large block taken from the system by itself, and given back as soon as it is free.

    glibc stops doing so for blocks as large as one that was freed before, up to 32 MiB. They come from the
    heap then, as asyncio's do: 256 KiB for whatever a socket holds, shrunk at once to the few hundred bytes
    that were there. Those rests lie scattered, no 256 KiB are free between them, and the heap is extended
    again and again, by some 50 bytes for each request. Does nothing where the C library has no mallopt.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, THRESHOLD)
