"""`--sparsity auto:SHARE`: adjust λ so that this share of the prunable γ is exactly zero at the end.

The share itself is not a useful control signal: it stays at 0 for most of the run, while all γ fall together.
The remaining distance is measured by the largest |γ| of the channels that have to become zero, chosen as
pruning would choose them now, with its alignment and minimum width. At learning rate lr a step moves a γ
towards zero by lr·λ/(1 − momentum). With `reach`, the sum of lr/(1 − momentum) over the remaining steps, λ =
|γ|/reach would just bring that γ to zero. If the loss counteracts, γ falls behind, the reach shrinks, and λ
rises until γ reaches zero.

1. While λ is ramped up, every γ is penalised; the least important ones fall most.
2. Then only those of the channels that have to become zero are penalised, chosen again whenever λ is updated
   (the trimmed lasso, Bertsimas et al., arXiv 1708.04527): the other γ are not reduced, and no more than the
   share becomes zero.
3. Finally γ and β of these channels are held at zero, so that their output is zero and removing them changes
   nothing, while the others train without penalty.
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
from slimdeploy.toolchain.pruning.options import PruneOptions
from slimdeploy.toolchain.pruning.plan import channel_budget
from slimdeploy.toolchain.pruning.selection import Kept, Rules, select
from slimdeploy.toolchain.training.sparsity import PenalisedBatchNorms, penalised_batchnorms, threshold_of

STEERED = 0.25
"""Share of a run in which λ is adjusted; afterwards the zeros are fixed."""
RAMP = 0.5
"""Share of the adjusted part in which λ is ramped up."""
DECISIONS = 100
"""Number of updates of λ. Each one synchronises with the device."""


class SteeredPenalty:
    """A sparsity.Penalty that aims at `share` of the prunable channels of `network`.

    `rates` are the learning rates of all steps; `removed` is the number of prunable channels removed before;
    `patience` as in PenalisedBatchNorms. Raises SlimdeployError if `align` and the minimum width don't allow
    the share.
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
        self._budget = channel_budget(self._groups, share, removed)  # like `prune --ratio SHARE`
        self._rules = Rules(align, PruneOptions.min_channels, unit_channels=unit_channels(self._groups))
        self._check_reachable(share)
        self._momentum = momentum
        self._settled_at = settled_at(len(rates))
        self._settled = False
        self._reach = _reach(rates[: self._settled_at], momentum)
        self._every = max(1, self._settled_at // DECISIONS)
        self.strength = 0.0
        self._going = [torch.zeros_like(scale.detach()) for scale in self.scales]
        """1 for the channels that have to become zero, 0 for the others."""

    def before_step(self) -> None:
        """Does nothing: the penalty acts after the step."""

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
        """All channels to be removed once they are held at zero; before, those that were zero for `patience`
        steps.
        """
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
        """Choose the channels that `prune --ratio SHARE --criterion gamma` would remove now."""
        values = [scale.double().abs().cpu().numpy() for scale in self.scales]
        kept = self._select({group.name: self._score(group, values) for group in self._groups})
        going = [np.ones(len(scale)) for scale in values]
        for group in self._groups:
            for place, positions in self._own(group):
                going[place][positions[kept[group.name]].ravel()] = 0
        for mask, found in zip(self._going, going, strict=True):
            mask.copy_(torch.from_numpy(found))

    def _score(self, group: ChannelGroup, values: list[np.ndarray]) -> np.ndarray:
        """Mean |γ| of each unit, like the criterion `gamma`."""
        means = [values[place][positions].mean(1) for place, positions in self._own(group)]
        return np.mean(means, axis=0)

    def _own(self, group: ChannelGroup) -> list[tuple[int, np.ndarray]]:
        """Index of the entry of `scales` with the γ of the group, and the positions in it: (width, k)."""
        names = [name for name in group.batchnorms if name in self._places]
        return [(self._places[name], group.positions[name]) for name in names]

    def _farthest(self) -> float:
        """The largest |γ| of the channels that have to become zero."""
        pairs = zip(self.scales, self._going, strict=True)
        return float(torch.stack([(scale.abs() * mask).max() for scale, mask in pairs]).max())

    def _hold(self) -> None:
        for scale, bias, going in zip(self.scales, self.penalised.biases, self._going, strict=True):
            scale.masked_fill_(going.bool(), 0.0)
            bias.masked_fill_(going.bool(), 0.0)

    def _select(self, scores: dict[str, np.ndarray]) -> Kept:
        budget = self._budget
        return select(scores, budget.costs, budget.limit, self._rules, unit=budget.unit)

    def _check_reachable(self, share: float) -> None:
        """Check before training whether these channels can be removed."""
        try:
            self._select({group.name: np.ones(group.width) for group in self._groups})
        except SlimdeployError as error:
            raise SlimdeployError(
                f"sparsity auto:{share:g}: {error.message}; a smaller share, or a smaller `sparse_align`"
            ) from error


def steered_groups(graph: Graph) -> list[ChannelGroup]:
    """The groups that the share refers to: the prunable ones with γ."""
    names = penalised_batchnorms(graph, "prunable")
    return [group for group in channel_groups(graph) if any(bn in names for bn in group.batchnorms)]


def settled_at(steps: int) -> int:
    """The first step in which the zeros are held, of a run of `steps` steps."""
    return max(1, int(steps * STEERED))


def steered_strength(farthest: float, reach: float, progress: float) -> float:
    """λ that brings a γ of `farthest` to zero within `reach`, ramped up over the first RAMP of the run.

    `reach` is the sum of lr/(1 − momentum) over the remaining steps, `progress` (0…1) the part done.
    """
    return min(1.0, progress / RAMP) * farthest / reach


def _reach(rates: Sequence[float], momentum: float) -> list[float]:
    """For each step the sum of lr/(1 − momentum) over it and all later steps."""
    return (np.cumsum(np.asarray(rates)[::-1])[::-1] / (1 - momentum)).tolist()
