"""Which device torch computes on, as `--device` and `--threads` say."""

from __future__ import annotations

from slimdeploy.toolchain.errors import SlimdeployError


def torch_device(name: str, threads: int | None) -> str:
    """Turn `--device` and `--threads` into a torch device name; set torch's thread count.

    Raises SlimdeployError where cuda is asked for and torch has none.
    """
    import torch

    if threads:
        torch.set_num_threads(threads)
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise SlimdeployError("--device cuda: torch sees no CUDA GPU here")
    return name
