"""The error if a batch doesn't fit in memory: it names a batch size that does."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator

import torch

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.networks.module import GraphNetwork
from slimdeploy.toolchain.training.step import TrainingStep

LEAST = 2
"""Minimum number of images for BN."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch ran out of memory, on a GPU or on the CPU (which has no error type for it)."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)


def out_of_memory(batch_size: int, attempt: Callable[[int], None], *, force: bool) -> SlimdeployError:
    """The error with a batch size that fits, as found by `batch_that_fits`; `force`: a state file exists."""
    fitting = batch_that_fits(batch_size, attempt)
    if fitting is None:
        return SlimdeployError(
            f"out of memory: not even a batch of {LEAST} fits; use a smaller `size` or `arch`"
        )
    return SlimdeployError(
        f"out of memory with a batch of {batch_size}; {fitting} would fit: restart with "
        f"`batch_size` {fitting}{' and `force`' if force else ''}"
    )


def attempt_step(
    step: TrainingStep, network: GraphNetwork, images: int, *, image_shape: tuple[int, int, int]
) -> None:
    """Allocate the memory of `step` for `images` images (channels, size, size). The network is in eval mode
    afterwards, in which BN does not wait for other processes.
    """
    step.optimizer.zero_grad(set_to_none=True)
    network.eval()
    batch = torch.zeros(images, *image_shape, device=step.device).to(memory_format=torch.channels_last)
    labels = torch.zeros(images, dtype=torch.int64, device=step.device)
    loss, _ = step.forward(network, batch, labels)
    loss.backward()
    step.optimizer.zero_grad(set_to_none=True)


def batch_that_fits(batch_size: int, attempt: Callable[[int], None]) -> int | None:
    """The first of `batch_size`/2, /4, … for which `attempt` doesn't run out of memory; None if none does.

    Call it outside of the `except` block: the caught error keeps the memory allocated.
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
