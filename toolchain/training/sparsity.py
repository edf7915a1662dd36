"""The L1 penalty on the BN scales γ (network slimming, Liu et al., arXiv 1708.06519), in two forms.

`proximal` soft-thresholds γ after the optimiser step: exact zeros appear, and the penalty is independent of
loss scaling and weight decay. `subgradient` adds λ·sign(γ) to the gradient before the step, like the
reference implementation: γ then oscillates around zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from slimdeploy.toolchain.checks import MAX_RATE, check_range
from slimdeploy.toolchain.networks.channel_groups import channel_groups
from slimdeploy.toolchain.networks.graph import Graph
from slimdeploy.toolchain.networks.module import GraphNetwork
from slimdeploy.toolchain.networks.residual import main_branches


def penalised_scales(network: GraphNetwork, layers: str) -> list[Tensor]:
    """The penalised γ, in the order of `penalised_batchnorms`."""
    return [network.weight(name) for name in penalised_batchnorms(network.graph, layers)]


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups for an optimiser: weight decay only on the weights of convolutions and linear layers,
    not on γ, β and biases.

    Args:
        network: Any module.
        weight_decay: Weight decay of the weights, e.g. 5e-4.

    Returns:
        Two groups, for `torch.optim.SGD(parameter_groups(network, 5e-4), lr=…)`.

    Raises:
        SlimdeployError: An invalid weight decay.
    """
    check_range("weight_decay", weight_decay, 0, MAX_RATE)
    decayed = [p for p in network.parameters() if p.dim() > 1]
    others = [p for p in network.parameters() if p.dim() <= 1]
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]


def penalised_batchnorms(graph: Graph, layers: str) -> list[str]:
    """The BNs with γ whose channels are all prunable, in the order of their groups; with `layers="all"` every
    BN with γ.
    """
    if layers == "all":
        return [n.name for n in graph.nodes if n.operator == "batchnorm" and n.attributes["affine"]]
    prunable = dict.fromkeys(graph.channels, 0)
    groups = channel_groups(graph)
    for group in groups:
        for name in group.batchnorms:
            prunable[name] += group.positions[name].size
    names = dict.fromkeys(name for group in groups for name in group.batchnorms)
    return [
        name
        for name in names
        if graph.by_name[name].attributes["affine"] and prunable[name] == graph.channels[name]
    ]


def penalised_count(graph: Graph, layers: str) -> int:
    """Number of penalised γ."""
    return sum(graph.channels[name] for name in penalised_batchnorms(graph, layers))


UNMOVED = -1e9
"""Initial count of steps at zero for a γ that starts at zero: it must not count as gone before it has
moved.
"""


class Penalty(Protocol):
    """The penalty on `scales`, applied around each optimiser step."""

    scales: list[Tensor]
    strength: float
    """λ now."""

    def before_step(self) -> None:
        """Called after the backward pass."""

    def after_step(self, lr: float, number: int) -> None:
        """Called after optimiser step `number`, counted from 0 over all epochs, at the learning rate `lr`."""

    def gone(self) -> dict[str, Tensor]:
        """BN -> (channels,) bool: the γ that are zero and stay zero."""

    def state(self) -> dict[str, Tensor]:
        """The state for resuming, always with the same names and shapes. `KIND.BN` has one value per channel
        of that BN.
        """

    def restore(self, state: dict[str, Tensor]) -> None:
        """Restore `state`."""


class FixedPenalty:
    """A fixed λ, in either form; `patience` as in PenalisedBatchNorms."""

    def __init__(
        self,
        network: GraphNetwork,
        strength: float,
        *,
        layers: str = "prunable",
        form: str = "proximal",
        momentum: float,
        patience: int = 1,
    ) -> None:
        self.strength = strength
        self.penalised = PenalisedBatchNorms(network, layers, patience)
        self.scales = self.penalised.scales
        self._form, self._momentum = form, momentum

    def before_step(self) -> None:
        if self._form == "subgradient":
            add_subgradient(self.scales, self.strength)

    def after_step(self, lr: float, number: int) -> None:
        if self._form == "proximal" and self.strength > 0:
            self.penalised.shrink(threshold_of(self.strength, lr, self._momentum))

    def gone(self) -> dict[str, Tensor]:
        return self.penalised.gone()

    def state(self) -> dict[str, Tensor]:
        return self.penalised.state()

    def restore(self, state: dict[str, Tensor]) -> None:
        self.penalised.restore(state)


class PenalisedBatchNorms:
    """γ and β of the penalised BNs. A γ counts as gone if it was zero for `patience` steps in a row."""

    def __init__(self, network: GraphNetwork, layers: str, patience: int) -> None:
        self.names = penalised_batchnorms(network.graph, layers)
        self.scales: list[Tensor] = [network.weight(name) for name in self.names]
        self.biases: list[Tensor] = [network.tensors(name)["bias"] for name in self.names]
        self._patience = patience
        # The last BN of a block starts with γ = 0, which means nothing before it has moved.
        ends = {node.name for node in main_branches(network.graph).values()}
        self._idle = [
            torch.where(scale.detach() == 0, UNMOVED if name in ends else 0.0, 0.0)
            for name, scale in zip(self.names, self.scales, strict=True)
        ]

    @torch.no_grad()
    def shrink(self, threshold: float, *, weights: Sequence[Tensor] | None = None) -> None:
        """The proximal step on γ, and on β where γ is gone: a channel with a constant output β can be removed
        exactly only if the next layers don't pad their input.
        """
        proximal_step(self.scales, threshold, weights=weights)
        if self.scales:
            moving = torch._foreach_abs(torch._foreach_sign(self.scales))
            torch._foreach_add_(self._idle, 1)
            torch._foreach_addcmul_(self._idle, self._idle, moving, -1)
            over = torch._foreach_sub(self._idle, self._patience - 1)
            proximal_step(self.biases, threshold, weights=[steps.clamp_(0, 1) for steps in over])

    def gone(self) -> dict[str, Tensor]:
        """BN -> (channels,) bool: the γ that have been zero for `patience` steps."""
        return {name: idle >= self._patience for name, idle in zip(self.names, self._idle, strict=True)}

    def state(self) -> dict[str, Tensor]:
        """The state for resuming."""
        return {f"idle.{name}": idle for name, idle in zip(self.names, self._idle, strict=True)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Restore `state`."""
        for name, idle in zip(self.names, self._idle, strict=True):
            idle.copy_(state[f"idle.{name}"])


def threshold_of(strength: float, lr: float, momentum: float) -> float:
    """Decrease of every |γ| in one step: lr·λ/(1 − momentum).

    With momentum, a constant gradient λ causes such a step; the same factor here keeps the meaning of λ in
    the reference implementation.
    """
    return strength * lr / (1 - momentum)


@torch.no_grad()
def proximal_step(
    scales: Sequence[Tensor], threshold: float, *, weights: Sequence[Tensor] | None = None
) -> None:
    """γ ← sign(γ)·max(|γ| − threshold, 0), the proximal operator of threshold·‖γ‖₁, in place.

    With `weights`, of the shapes of `scales`, each γ has its own threshold, weight·threshold.
    """
    if scales and threshold > 0:
        shrunk = torch._foreach_abs(list(scales))
        if weights is None:
            torch._foreach_sub_(shrunk, threshold)
        else:
            torch._foreach_sub_(shrunk, torch._foreach_mul(list(weights), threshold))
        torch._foreach_clamp_min_(shrunk, 0.0)
        signs = torch._foreach_sign(list(scales))
        torch._foreach_copy_(list(scales), torch._foreach_mul(shrunk, signs))


@torch.no_grad()
def add_subgradient(scales: Sequence[Tensor], strength: float) -> None:
    """Add strength·sign(γ) to the gradient of every γ, in place."""
    if scales and strength > 0:
        gradients = {s: s.grad for s in scales if s.grad is not None}  # those of frozen layers are None
        torch._foreach_add_(list(gradients.values()), torch._foreach_sign(list(gradients)), alpha=strength)


def zero_share(scales: Sequence[Tensor], *, removed: int = 0) -> float:
    """Share of all γ that are exactly zero, including those of `removed` channels."""
    count = sum(len(scale) for scale in scales) + removed
    zeros = sum(int((scale == 0).sum()) for scale in scales) + removed
    return zeros / count if count else 0.0
