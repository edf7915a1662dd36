"""`--sparsity auto:SHARE`: λ steered so that this share of the prunable γ is exactly zero at the end.

The share itself is a poor thing to steer by: it stays at 0 for most of the way, while all γ fall side by
side. What tells how far there is to go is the γ that has to be the last to reach zero, of rank SHARE from
below. At rate lr a step takes each γ towards zero by lr·λ/(1 − momentum), so with `reach`, the sum of
lr/(1 − momentum) over the steps left, λ = γ/reach would just take that one there. Where the loss pushes back
it lags, the reach shrinks, and λ rises until it gives way; once the share is reached λ is 0.

After STEERED of the run the channels to go are settled by the selection that pruning itself makes, with its
alignment and its fewest channels, and γ and β of those are held at zero: then they pass on nothing at all,
and removing them changes nothing. The others train on without penalty.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.networks.resnet import ResNet
from slimdeploy.toolchain.pruning.costs import ChannelCount
from slimdeploy.toolchain.pruning.groups import ChannelGroup, channel_groups
from slimdeploy.toolchain.pruning.options import PruneOptions
from slimdeploy.toolchain.pruning.selection import Kept, Rules, select
from slimdeploy.toolchain.training.sparsity import proximal_step, threshold_of

STEERED = 0.7
"""Share of a run in which λ is steered; in the rest the zeros stay where they are."""
RAMP = 0.5
"""Share of the steered part in which λ is ramped up: which channels matter must show first."""
DECISIONS = 200
"""How often λ is set anew in the steered part. Each waits for the device once."""


class SteeredPenalty:
    """A sparsity.Penalty that aims at `share` of the prunable channels of `network`.

    `rates` holds the learning rate of every step of the run. Raises SlimdeployError where `align` and the
    fewest channels of a layer don't allow the share.
    """

    def __init__(
        self, network: ResNet, share: float, rates: Sequence[float], *, align: int, momentum: float
    ) -> None:
        self._groups = channel_groups(network.spec)
        batchnorms = [network.batchnorm(name) for group in self._groups for name in group.batchnorms]
        self.scales: list[Tensor] = [bn.weight for bn in batchnorms]
        self._biases: list[Tensor] = [bn.bias for bn in batchnorms]
        self._rules = Rules(align, PruneOptions.min_channels)
        self._channels = sum(group.width for group in self._groups)
        self._gone = max(1, int(self._channels * share))
        _check_reachable(self._groups, self._channels - self._gone, self._rules, share)
        self._momentum = momentum
        self._settled_at = max(1, int(len(rates) * STEERED))
        self._reach = _reach(rates[: self._settled_at], momentum)
        self._every = max(1, self._settled_at // DECISIONS)
        self.strength = 0.0
        self._open = [torch.ones_like(scale.detach()) for scale in self.scales]

    def before_step(self) -> None:
        pass  # all of it comes after the step

    @torch.no_grad()
    def after_step(self, lr: float, number: int) -> None:
        if number < self._settled_at:
            if number % self._every == 0:
                self.strength = steered_strength(
                    self._last_to_go(), self._reach[number], number / self._settled_at
                )
            proximal_step(self.scales, threshold_of(self.strength, lr, self._momentum))
        if number == self._settled_at - 1:
            self.strength = 0.0
            self._settle()
        if number >= self._settled_at - 1:
            for scale, bias, is_open in zip(self.scales, self._biases, self._open, strict=True):
                scale.mul_(is_open)
                bias.mul_(is_open)

    def state(self) -> dict[str, Tensor]:
        found = {f"open.{group.name}": mask for group, mask in zip(self._groups, self._open, strict=True)}
        return {**found, "strength": torch.tensor(self.strength, dtype=torch.float64)}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.strength = float(state["strength"])
        for group, mask in zip(self._groups, self._open, strict=True):
            mask.copy_(state[f"open.{group.name}"])

    def _last_to_go(self) -> float:
        """|γ| of the channel that has to be the last to reach zero."""
        return float(torch.cat([scale.abs() for scale in self.scales]).kthvalue(self._gone).values)

    def _settle(self) -> None:
        """Choose the channels to hold at zero, as `prune --ratio SHARE --criterion gamma` would."""
        scores = {
            group.name: scale.double().abs().cpu().numpy()
            for group, scale in zip(self._groups, self.scales, strict=True)
        }
        kept = _select(scores, self._channels - self._gone, self._rules)
        for group, mask in zip(self._groups, self._open, strict=True):
            mask.zero_()
            mask[torch.from_numpy(kept[group.name]).to(mask.device)] = 1


def steered_strength(last_to_go: float, reach: float, progress: float) -> float:
    """λ that takes a γ of `last_to_go` to zero within `reach`, ramped up over the first RAMP of the way.

    `reach` is the sum of lr/(1 − momentum) over the steps left, `progress` (0…1) how much of them is done.
    """
    return min(1.0, progress / RAMP) * last_to_go / reach


def _reach(rates: Sequence[float], momentum: float) -> list[float]:
    """For each step the sum of lr/(1 − momentum) over it and all that follow."""
    return (np.cumsum(np.asarray(rates)[::-1])[::-1] / (1 - momentum)).tolist()


def _select(scores: dict[str, np.ndarray], limit: int, rules: Rules) -> Kept:
    return select(scores, ChannelCount(), limit, rules, unit="prunable channels")


def _check_reachable(groups: list[ChannelGroup], limit: int, rules: Rules, share: float) -> None:
    """Every network has channels that can't go; better to hear of it before training than after."""
    try:
        _select({group.name: np.ones(group.width) for group in groups}, limit, rules)
    except SlimdeployError as error:
        raise SlimdeployError(
            f"sparsity auto:{share:g}: {error}; a smaller share, or a smaller --sparse-align"
        ) from error
