"""`slimdeploy.sparsity`: the L1 penalty on BN scales γ for the user's training loop."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from slimdeploy.toolchain.checks import MAX_RATE, check_range
from slimdeploy.toolchain.errors import SlimdeployError, unknown
from slimdeploy.toolchain.library.argument_types import checked
from slimdeploy.toolchain.networks.importing import from_module, unwrapped
from slimdeploy.toolchain.networks.module import GraphNetwork
from slimdeploy.toolchain.training import sparsity
from slimdeploy.toolchain.training.options import SPARSE_LAYERS
from slimdeploy.toolchain.training.sparsity import (
    penalised_batchnorms,
    proximal_step,
    threshold_of,
    zero_share,
)

__all__ = ["Proximal", "gammas", "parameter_groups"]

parameter_groups = checked(sparsity.parameter_groups)

_PENALISED: WeakKeyDictionary[torch.optim.Optimizer, set[int]] = WeakKeyDictionary()
"""Optimiser -> the ids of the γ that a Proximal shrinks after its steps."""


class Proximal:
    """Soft-thresholds γ by lr·strength/(1 − momentum) after every step of `optimizer`. This form of the
    penalty gives exact zeros and is independent of loss scaling. The training loop doesn't change:

        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
        sparse = slimdeploy.sparsity.Proximal(optimizer, network, strength=1e-4, size=224)

    Learning rate and momentum are read at each step from the parameter group with the γ. Exclude γ from
    weight decay, e.g. by `parameter_groups`.

    Args:
        optimizer: Optimiser whose parameters include the γ of `network`.
        network: A network of slimdeploy, or a module that takes images (N, C, size, size).
        strength: λ of the penalty λ·‖γ‖₁.
        layers: `prunable` acts on the γ of channels that can be removed, `all` on every γ.
        size: Side of the images in pixels. Required unless the network is slimdeploy's.

    Raises:
        SlimdeployError: The network has no γ, `optimizer` doesn't contain it or penalises it already, or the
            module can't be traced.
    """

    @checked
    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        network: nn.Module,
        *,
        strength: float,
        layers: str = "prunable",
        size: int | None = None,
    ) -> None:
        check_range("strength", strength, 0, MAX_RATE)
        self._scales = gammas(network, layers=layers, size=size)
        if not self._scales:
            raise SlimdeployError("`network` has no BN scales γ that the penalty could act on")
        self._group, self._strength = _group_of(optimizer, self._scales), strength
        self._ids, self._penalised = {id(s) for s in self._scales}, _PENALISED.setdefault(optimizer, set())
        if self._penalised & self._ids:
            raise SlimdeployError(
                "`optimizer` has a penalty on these γ already: call remove() of the earlier Proximal first"
            )
        self._penalised |= self._ids
        self._hook = optimizer.register_step_post_hook(self._after_step)

    @property
    def zero_share(self) -> float:
        """Share of the penalised γ that are exactly zero, 0…1."""
        return zero_share(self._scales)

    def remove(self) -> None:
        """Remove the penalty from the optimiser."""
        self._hook.remove()
        self._penalised -= self._ids

    def _after_step(self, *_: Any) -> None:
        lr, momentum = float(self._group["lr"]), float(self._group.get("momentum", 0.0))
        trained = [scale for scale in self._scales if scale.requires_grad]  # not those you froze
        proximal_step(trained, threshold_of(self._strength, lr, momentum))


@checked
def gammas(network: nn.Module, *, layers: str = "prunable", size: int | None = None) -> list[Tensor]:
    """The γ (C,) of `network` to penalise, for a penalty of your own. They are its parameters, not copies.

    Args:
        network: A network of slimdeploy, or a module that takes images (N, C, size, size).
        layers: `prunable` returns the γ of channels that can be removed, `all` every γ.
        size: Side of the images in pixels. Required unless the network is slimdeploy's.

    Raises:
        SlimdeployError: The module can't be traced, or `layers` is unknown.
    """
    if layers not in SPARSE_LAYERS:
        raise unknown("layers", layers, SPARSE_LAYERS)
    network = unwrapped(network)
    if isinstance(network, GraphNetwork):
        graph = network.graph
    elif size is None:
        raise SlimdeployError("`size` is needed: the side in pixels of the images that the module takes")
    else:
        graph = from_module(network, size=size).network.graph
    return [_weight(network, name) for name in penalised_batchnorms(graph, layers)]


def _weight(network: nn.Module, name: str) -> Tensor:
    weight = network.get_submodule(name).weight
    assert isinstance(weight, Tensor), name
    return weight


def _group_of(optimizer: torch.optim.Optimizer, scales: list[Tensor]) -> dict[str, Any]:
    wanted = {id(scale) for scale in scales}
    holding = [g for g in optimizer.param_groups if wanted & {id(p) for p in g["params"]}]
    if len(holding) != 1 or wanted - {id(p) for p in holding[0]["params"]}:
        raise SlimdeployError("`optimizer` must hold all γ of `network`, in one parameter group")
    return holding[0]
