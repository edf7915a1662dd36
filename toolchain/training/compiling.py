"""`--compile`: compile the forward and backward pass into one program, launched as a CUDA graph."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from slimdeploy.toolchain.errors import SlimdeployError


def compiled(network: nn.Module, *, device: str, processes: int) -> nn.Module:
    """`network` with the same parameters, to be compiled at its first call, for batches of one shape.

    Compile errors appear only at that call: see `compile_errors_explained`. Raises SlimdeployError on the
    CPU, where compiling takes minutes and the result is slower, and for several processes, whose BN
    synchronises statistics.
    """
    if device == "cpu":
        raise SlimdeployError("`compile` needs CUDA; on the CPU a compiled step is slower: leave it out")
    if processes > 1:
        raise SlimdeployError(
            "`compile` cannot be used with several processes: leave it out, or run without torchrun"
        )
    torch.compiler.reset()  # earlier compilations of a wider network count towards the recompilation limit
    network_call: Any = torch.compile(network, mode="reduce-overhead", dynamic=False)
    assert isinstance(network_call, nn.Module)
    return network_call


@contextlib.contextmanager
def compile_errors_explained() -> Iterator[None]:
    """Turn an error of the compiler, e.g. a missing C++ compiler, into one line."""
    try:
        yield
    except RuntimeError as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        cause = getattr(error, "inner_exception", error)
        reason = next((line for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
        raise SlimdeployError(
            f"`compile`: torch.compile fails on this machine ({reason}): leave it out"
        ) from error
