"""Torch-Pruning and torch.onnx.export on any CNN, as their documentation shows, for families.py."""

from __future__ import annotations

import torch
from torch import Tensor


def prune_to_half(module: torch.nn.Module, images: Tensor, classes: int) -> torch.nn.Module:
    """`module`, cut to half of its MACs, magnitude importance; it still runs on `images` (N, 3, H, W)."""
    import torch_pruning

    last = [
        m for m in module.modules() if getattr(m, "out_features", getattr(m, "out_channels", 0)) == classes
    ]
    full = torch_pruning.utils.count_ops_and_params(module, images[:1])[0]
    pruner = torch_pruning.pruner.BasePruner(
        module, images[:1], importance=torch_pruning.importance.MagnitudeImportance(p=2), global_pruning=True,
        pruning_ratio=0.9, round_to=8, ignored_layers=last, iterative_steps=30,
    )  # fmt: skip
    for _ in range(30):
        pruner.step()
        if torch_pruning.utils.count_ops_and_params(module, images[:1])[0] <= full / 2:
            break
    else:
        raise ValueError("does not reach half of the MACs")
    with torch.no_grad():
        module(images)
    return module


def exports(module: torch.nn.Module, images: Tensor, *, dynamo: bool) -> bool:
    """True, or whatever the exporter raises."""
    torch.onnx.export(module, (images,), "/dev/null", dynamo=dynamo, verbose=False)
    return True
