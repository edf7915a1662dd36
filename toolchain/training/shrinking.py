"""Shrinking during training (PruneTrain, Lym et al., arXiv 1901.09290): channels whose γ stays at zero are
removed when that saves enough, and the training continues without them.

A channel is removed only if the function of the network stays the same: its output is zero, or a constant
that the next layers can absorb exactly. With `--sparse-layers all`, which penalises residual sums too,
channels of a sum are removed if all its branches are zero, and blocks if their branch adds nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from slimdeploy.toolchain.formatting import short
from slimdeploy.toolchain.networks.channel_groups import ChannelGroup, channel_groups, unit_channels
from slimdeploy.toolchain.networks.cost import Cost, network_cost
from slimdeploy.toolchain.networks.cutting import pruned_graph
from slimdeploy.toolchain.networks.module import GraphNetwork
from slimdeploy.toolchain.progress import log
from slimdeploy.toolchain.pruning.exact import groups_of_zero_branches, kept_without, removable_units
from slimdeploy.toolchain.pruning.options import PruneOptions
from slimdeploy.toolchain.pruning.selection import Kept, Rules
from slimdeploy.toolchain.pruning.surgery import prune_network
from slimdeploy.toolchain.training.distributed import Ranks
from slimdeploy.toolchain.training.learner import Learner
from slimdeploy.toolchain.training.options import TrainOptions
from slimdeploy.toolchain.training.sparsity import penalised_batchnorms
from slimdeploy.toolchain.training.steering import settled_at

CHECKS = 50
"""Number of checks per run for channels to remove. Each one synchronises with the device."""
LEAST_SAVING, LEAST_SAVING_COMPILED = 0.1, 0.3
"""Minimum share of the MACs that a cut must save: a cut rebuilds the network, and compiling takes a
minute.
"""

Zeros = Mapping[str, torch.Tensor]
"""BN -> (channels,) bool."""


class Shrinking:
    """Decides when the network is cut in a run of `steps` steps, and cuts it."""

    def __init__(self, options: TrainOptions, steps: int, size: int) -> None:
        self._options, self._size = options, size
        self._every = max(1, steps // CHECKS)
        self._settled_at = settled_at(steps) if isinstance(options.sparsity, str) else None
        self._least = LEAST_SAVING_COMPILED if options.compile else LEAST_SAVING

    def after_step(self, number: int, learner: Learner) -> Learner:
        """The learner after step `number`: the same one if a cut would save too little."""
        if not (self._options.is_sparse and self._options.shrink):
            return learner
        settled = number == self._settled_at
        if not settled and (number + 1) % self._every:
            return learner
        networks = [learner.network, *([learner.average.network] if learner.average else [])]
        found = cut_of(networks, learner.penalty.gone(), self._options, learner.course.ranks)
        if found is None:
            return learner
        graph = learner.network.graph
        before = network_cost(graph, self._size)
        after = network_cost(pruned_graph(graph, *found), self._size)
        if after.macs > before.macs * (1 - (0 if settled else self._least)):
            return learner
        log(f"step {number + 1:,}: {described(*found, before, after)}")
        return learner.without(*found)


def cut_of(
    networks: Sequence[GraphNetwork], zeros: Zeros, options: TrainOptions, ranks: Ranks
) -> tuple[list[ChannelGroup], Kept] | None:
    """The groups, and the units of each that must be kept in all `networks`, which have the same graph and
    whose γ are zero where `zeros` is True; None if all are kept. All `ranks` get the same result.
    """
    graph = networks[0].graph
    groups = channel_groups(graph, residual=options.sparse_residual)
    masks = {name: mask.cpu().numpy() for name, mask in zeros.items()}
    if ranks.size == 1 and not any(mask.any() for mask in masks.values()):
        return None
    found = [_flags(network, groups, masks) for network in networks]
    device = next(networks[0].parameters()).device
    agreed = ranks.sum(torch.from_numpy(np.all(found, axis=0).astype(np.int32)).to(device))
    flags = (agreed == ranks.size).cpu().numpy()
    units, branches = np.split(flags, [len(flags) - len(groups)])
    ends = np.cumsum([group.width for group in groups])
    removable = {g.name: own for g, own in zip(groups, np.split(units, ends[:-1]), strict=True)}
    inside = tuple(group.name for group, gone in zip(groups, branches, strict=True) if gone)
    rules = Rules(options.sparse_align, PruneOptions.min_channels, unit_channels=unit_channels(groups))
    kept = kept_without(groups, removable, rules, inside)
    return None if all(len(kept[g.name]) == g.width for g in groups) else (groups, kept)


def _flags(network: GraphNetwork, groups: list[ChannelGroup], zeros: Mapping[str, np.ndarray]) -> np.ndarray:
    """The removable units of each group, followed by one flag per group: whether it is removed with its
    branch.
    """
    units = removable_units(network, groups, zeros)
    inside = groups_of_zero_branches(network, groups, zeros)
    return np.concatenate([*(units[g.name] for g in groups), [g.name in inside for g in groups]]).astype(bool)


def without_zeros(network: GraphNetwork, options: TrainOptions, ranks: Ranks) -> GraphNetwork:
    """`network` without the channels that can be removed exactly; itself if there are none."""
    if not (options.is_sparse and options.shrink):
        return network
    names = penalised_batchnorms(network.graph, options.sparse_layers)
    found = cut_of([network], {name: network.weight(name) == 0 for name in names}, options, ranks)
    return prune_network(network, *found)[0] if found else network


def described(groups: list[ChannelGroup], kept: Kept, before: Cost, after: Cost) -> str:
    """The removed channels of a cut, as text."""
    removed = sum(group.width - len(kept[group.name]) for group in groups)
    return (
        f"{removed:,} channels that stay at zero are removed: {short(before.params)} → {short(after.params)} "
        f"parameters, {short(before.macs)} → {short(after.macs)} MACs"
    )
