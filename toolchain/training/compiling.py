"""`--compile`: the network's forward and backward pass as one compiled program, started as one CUDA graph."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from slimdeploy.toolchain.errors import SlimdeployError


def compiled(network: nn.Module, *, device: str, processes: int) -> nn.Module:
    """`network`, sharing its parameters, to be compiled at its first call, for batches of one shape.

    What can't be compiled is told by that call only: see `compile_errors_explained`. Raises SlimdeployError
    on the CPU, where what is compiled takes minutes to make and then twice the time of what isn't, and for
    several processes, between which BN waits for statistics.
    """
    if device == "cpu":
        raise SlimdeployError("--compile is for CUDA: on the CPU a compiled step takes longer; leave it out")
    if processes > 1:
        raise SlimdeployError("--compile goes with one process: leave it out, or torchrun")
    torch.compiler.reset()  # what was compiled of a wider network counts against the limit of recompilations
    network_call: Any = torch.compile(network, mode="reduce-overhead", dynamic=False)
    assert isinstance(network_call, nn.Module)
    return network_call


@contextlib.contextmanager
def compile_errors_explained() -> Iterator[None]:
    """Turn what the compiler raises, such as that it finds no C++ compiler, into one line."""
    try:
        yield
    except RuntimeError as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        cause = getattr(error, "inner_exception", error)
        reason = next((line for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
        raise SlimdeployError(
            f"--compile: torch.compile can't do it here ({reason}): leave it out"
        ) from error
