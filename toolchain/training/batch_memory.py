"""What to say where the memory doesn't hold a batch: how large a batch it does hold."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator

import torch

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.networks.module import GraphNetwork
from slimdeploy.toolchain.training.step import TrainingStep

LEAST = 2
"""Images that BN needs."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch found too little memory, on a GPU or on the CPU (which has no error type of its own)."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)


def out_of_memory(batch_size: int, attempt: Callable[[int], None], *, force: bool) -> SlimdeployError:
    """The error that says what would fit, as `batch_that_fits` finds it; with `force` there is a state."""
    fitting = batch_that_fits(batch_size, attempt)
    if fitting is None:
        return SlimdeployError(
            f"out of memory: not even a batch of {LEAST} fits; take a smaller --size or --arch"
        )
    return SlimdeployError(
        f"out of memory with a batch of {batch_size}; {fitting} would fit: start again with "
        f"--batch-size {fitting}{' and --force' if force else ''}"
    )


def attempt_step(step: TrainingStep, network: GraphNetwork, images: int, *, size: int) -> None:
    """Take the memory of `step` on so many images of `size`×`size` pixels, without its effects but one: the
    network is in eval mode afterwards, in which BN waits for no other process.
    """
    step.optimizer.zero_grad(set_to_none=True)
    network.eval()
    batch = torch.zeros(images, 3, size, size, device=step.device).to(memory_format=torch.channels_last)
    labels = torch.zeros(images, dtype=torch.int64, device=step.device)
    loss, _ = step.forward(network, batch, labels)
    loss.backward()
    step.optimizer.zero_grad(set_to_none=True)


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
