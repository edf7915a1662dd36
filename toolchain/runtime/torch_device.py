"""The device on which torch computes, according to `--device` and `--threads`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slimdeploy.toolchain.errors import SlimdeployError, shorten

if TYPE_CHECKING:
    import torch


def torch_device(name: str, threads: int | None = None) -> str:
    """Convert `--device` to a torch device name; set torch's number of threads for the whole process.

    Raises SlimdeployError for a device that torch can't use here.
    """
    import torch

    if threads:
        torch.set_num_threads(threads)
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise SlimdeployError("`device` cuda: torch sees no CUDA GPU here")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise SlimdeployError(f"`device` {name}: torch can't use it here ({shorten(error, 60)})") from error
    return name


def device_for(network: torch.nn.Module, device: str | torch.device | None) -> str:
    """The device given to a function of the library; None means that of `network`."""
    return str(next(network.parameters()).device) if device is None else torch_device(str(device))
