"""L1 on the BN scales γ (network slimming, Liu et al., arXiv 1708.06519), in two forms.

`proximal` soft-thresholds γ after the optimiser's step: exact zeros appear, and neither loss scaling nor
weight decay touches the penalty. `subgradient` adds λ·sign(γ) to the gradient before the step, as the
reference reports do: γ then swings around zero without staying there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from slimdeploy.toolchain.networks.resnet import ResNet
from slimdeploy.toolchain.pruning.groups import channel_groups


def penalised_scales(network: ResNet, layers: str) -> list[Tensor]:
    """The γ that the penalty acts on: those of prunable channels, or with `layers="all"` every one."""
    if layers == "all":
        return [m.weight for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d) and m.affine]
    batchnorms = [bn for group in channel_groups(network.spec) for bn in group.batchnorms]
    return [network.batchnorm(name).weight for name in batchnorms]


@torch.no_grad()
def proximal_step(scales: Sequence[Tensor], threshold: float) -> None:
    """γ ← sign(γ)·max(|γ| − threshold, 0), the proximal operator of threshold·‖γ‖₁, in place."""
    if scales and threshold > 0:
        shrunk = torch._foreach_abs(list(scales))
        torch._foreach_sub_(shrunk, threshold)
        torch._foreach_clamp_min_(shrunk, 0.0)
        signs = torch._foreach_sign(list(scales))
        torch._foreach_copy_(list(scales), torch._foreach_mul(shrunk, signs))


@torch.no_grad()
def add_subgradient(scales: Sequence[Tensor], strength: float) -> None:
    """Add strength·sign(γ) to the gradient of every γ, in place."""
    if scales and strength > 0:
        gradients = [s.grad for s in scales if s.grad is not None]
        torch._foreach_add_(gradients, torch._foreach_sign(list(scales)), alpha=strength)


def zero_share(scales: Sequence[Tensor]) -> float:
    """Share of all γ that are exactly zero."""
    if not scales:
        return 0.0
    values = torch.cat([s.detach() for s in scales])
    return float((values == 0).float().mean())
