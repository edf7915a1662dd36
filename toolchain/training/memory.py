"""What to say where the memory doesn't hold a batch: how large a batch it does hold."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator

import torch

LEAST = 2
"""Images that BN needs."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch found too little memory, on a GPU or on the CPU (which has no error type of its own)."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)


def batch_that_fits(batch_size: int, attempt: Callable[[int], None]) -> int | None:
    """The first of `batch_size`/2, /4, … with which `attempt` doesn't run out of memory; None where none.

    Call it outside of the `except` that noticed: the error there holds on to the memory that was in use.
    """
    for smaller in _halves(batch_size):
        if _fits(smaller, attempt):
            return smaller
    return None


def _halves(batch_size: int) -> Iterator[int]:
    while (batch_size := batch_size // 2) >= LEAST:
        yield batch_size


def _fits(batch_size: int, attempt: Callable[[int], None]) -> bool:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    try:
        attempt(batch_size)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True
