"""The device on which torch computes, according to `--device` and `--threads`."""

from __future__ import annotations

from slimdeploy.toolchain.errors import SlimdeployError


def torch_device(name: str, threads: int | None = None) -> str:
    """Convert `--device` to a torch device name; set torch's number of threads for the whole process.

    Raises SlimdeployError if cuda is requested and torch has none.
    """
    import torch

    if threads:
        torch.set_num_threads(threads)
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise SlimdeployError("`device` cuda: torch sees no CUDA GPU here")
    return name
