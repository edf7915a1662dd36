"""`--sparsity auto:SHARE`: λ steered so that this share of the prunable γ is exactly zero at the end.

The share itself is a poor thing to steer by: it stays at 0 for most of the way, while all γ fall side by
side. What tells how far there is to go is the largest |γ| of the channels that have to go, chosen as pruning
would choose them now, with its alignment and its fewest channels. At rate lr a step takes a γ towards zero
by lr·λ/(1 − momentum), so with `reach`, the sum of lr/(1 − momentum) over the steps left, λ = |γ|/reach would
just take that one there. Where the loss pushes back it lags, the reach shrinks, and λ rises until it gives
way.

1. While λ is ramped up, every γ is penalised: those that matter least fall most.
2. Then only those of the channels that have to go, chosen anew whenever λ is (the trimmed lasso, Bertsimas et
   al., arXiv 1708.04527): the others aren't held down, and no more than the share arrives at zero.
3. At last γ and β of the channels that went are held at zero, so that these pass on nothing and removing them
   changes nothing, while the others train on without penalty.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.networks.channel_groups import ChannelGroup, channel_groups, unit_channels
from slimdeploy.toolchain.networks.graph import Graph
from slimdeploy.toolchain.networks.module import GraphNetwork
from slimdeploy.toolchain.pruning.costs import ChannelCount
from slimdeploy.toolchain.pruning.options import PruneOptions
from slimdeploy.toolchain.pruning.selection import Kept, Rules, select
from slimdeploy.toolchain.training.sparsity import PenalisedBatchNorms, penalised_batchnorms, threshold_of

STEERED = 0.25
"""Share of a run in which λ is steered; in the rest the zeros stay where they are."""
RAMP = 0.5
"""Share of the steered part in which λ is ramped up."""
DECISIONS = 100
"""How often λ is set anew. Each time waits for the device once."""


class SteeredPenalty:
    """A sparsity.Penalty that aims at `share` of the prunable channels of `network`.

    `rates` holds the learning rate of every step of the run; `removed` counts the prunable channels that have
    been taken out already; `patience` as PenalisedBatchNorms has it. Raises SlimdeployError where `align` and
    the fewest channels of a layer don't allow the share.
    """

    def __init__(
        self,
        network: GraphNetwork,
        share: float,
        rates: Sequence[float],
        *,
        align: int,
        momentum: float,
        patience: int = 1,
        removed: int = 0,
    ) -> None:
        self.penalised = PenalisedBatchNorms(network, "prunable", patience)
        self.scales = self.penalised.scales
        self._groups = steered_groups(network.graph)
        self._places = {name: number for number, name in enumerate(self.penalised.names)}
        channels = removed + sum(group.width for group in self._groups)
        self._limit = channels - int(channels * share)  # as for `prune --ratio SHARE`
        self._rules = Rules(align, PruneOptions.min_channels, unit_channels=unit_channels(self._groups))
        self._check_reachable(share)
        self._momentum = momentum
        self._settled_at = settled_at(len(rates))
        self._settled = False
        self._reach = _reach(rates[: self._settled_at], momentum)
        self._every = max(1, self._settled_at // DECISIONS)
        self.strength = 0.0
        self._going = [torch.zeros_like(scale.detach()) for scale in self.scales]
        """1 for the channels that have to go, 0 for the others."""

    def before_step(self) -> None:
        """Nothing: all of it comes after the step."""

    @torch.no_grad()
    def after_step(self, lr: float, number: int) -> None:
        self._settled = number >= self._settled_at
        if self._settled:
            self.strength = 0.0
            self._hold()
            return
        progress = number / self._settled_at
        if number % self._every == 0:
            self._choose()
            self.strength = steered_strength(self._farthest(), self._reach[number], progress)
        threshold = threshold_of(self.strength, lr, self._momentum)
        self.penalised.shrink(threshold, weights=None if progress < RAMP else self._going)

    def gone(self) -> dict[str, Tensor]:
        """Once they are held, all that have to go; before, those of them that have been zero for a while."""
        going = {name: self._going[place].bool() for name, place in self._places.items()}
        if self._settled:
            return going
        return {name: gone & going[name] for name, gone in self.penalised.gone().items()}

    def state(self) -> dict[str, Tensor]:
        found = {f"going.{name}": self._going[place] for name, place in self._places.items()}
        scalars = {"strength": self.strength, "settled": float(self._settled)}
        values = {name: torch.tensor(value, dtype=torch.float64) for name, value in scalars.items()}
        return {**found, **values, **self.penalised.state()}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.strength, self._settled = float(state["strength"]), bool(state["settled"])
        for name, place in self._places.items():
            self._going[place].copy_(state[f"going.{name}"])
        self.penalised.restore(state)

    def _choose(self) -> None:
        """Find the channels that `prune --ratio SHARE --criterion gamma` would remove now."""
        values = [scale.double().abs().cpu().numpy() for scale in self.scales]
        kept = self._select({group.name: self._score(group, values) for group in self._groups})
        going = [np.ones(len(scale)) for scale in values]
        for group in self._groups:
            for place, positions in self._own(group):
                going[place][positions[kept[group.name]].ravel()] = 0
        for mask, found in zip(self._going, going, strict=True):
            mask.copy_(torch.from_numpy(found))

    def _score(self, group: ChannelGroup, values: list[np.ndarray]) -> np.ndarray:
        """Mean |γ| of each unit, as the criterion `gamma` has it."""
        means = [values[place][positions].mean(1) for place, positions in self._own(group)]
        return np.mean(means, axis=0)

    def _own(self, group: ChannelGroup) -> list[tuple[int, np.ndarray]]:
        """Which of `scales` hold the γ of the group, and where: (width, k)."""
        names = [name for name in group.batchnorms if name in self._places]
        return [(self._places[name], group.positions[name]) for name in names]

    def _farthest(self) -> float:
        """The largest |γ| of the channels that have to go."""
        pairs = zip(self.scales, self._going, strict=True)
        return float(torch.stack([(scale.abs() * mask).max() for scale, mask in pairs]).max())

    def _hold(self) -> None:
        for scale, bias, going in zip(self.scales, self.penalised.biases, self._going, strict=True):
            scale.masked_fill_(going.bool(), 0.0)
            bias.masked_fill_(going.bool(), 0.0)

    def _select(self, scores: dict[str, np.ndarray]) -> Kept:
        return select(scores, ChannelCount(), self._limit, self._rules, unit="prunable channels")

    def _check_reachable(self, share: float) -> None:
        """Better to hear before training than after that some of these channels can't go."""
        try:
            self._select({group.name: np.ones(group.width) for group in self._groups})
        except SlimdeployError as error:
            raise SlimdeployError(
                f"sparsity auto:{share:g}: {error}; a smaller share, or a smaller --sparse-align"
            ) from error


def steered_groups(graph: Graph) -> list[ChannelGroup]:
    """The groups whose channels the share is of: the prunable ones with γ."""
    names = penalised_batchnorms(graph, "prunable")
    return [group for group in channel_groups(graph) if any(bn in names for bn in group.batchnorms)]


def settled_at(steps: int) -> int:
    """The first of so many steps in which the zeros are held."""
    return max(1, int(steps * STEERED))


def steered_strength(farthest: float, reach: float, progress: float) -> float:
    """λ that takes a γ of `farthest` to zero within `reach`, ramped up over the first RAMP of the way.

    `reach` is the sum of lr/(1 − momentum) over the steps left, `progress` (0…1) how much of them is done.
    """
    return min(1.0, progress / RAMP) * farthest / reach


def _reach(rates: Sequence[float], momentum: float) -> list[float]:
    """For each step the sum of lr/(1 − momentum) over it and all that follow."""
    return (np.cumsum(np.asarray(rates)[::-1])[::-1] / (1 - momentum)).tolist()
