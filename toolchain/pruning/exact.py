"""Channels that can be removed without changing the function of the network, in training or eval mode."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from slimdeploy.toolchain.networks.branches import removable_branches
from slimdeploy.toolchain.networks.channel_groups import ChannelGroup
from slimdeploy.toolchain.networks.module import GraphNetwork
from slimdeploy.toolchain.pruning.constants import strict_constants, takes_constants
from slimdeploy.toolchain.pruning.selection import Kept, Rules

Zeros = Mapping[str, np.ndarray]
"""BN -> (channels,) bool: where γ is 0."""
Units = dict[str, np.ndarray]
"""Group -> (width,) bool."""


def removable_units(network: GraphNetwork, groups: list[ChannelGroup], zeros: Zeros) -> Units:
    """The units whose output is zero, or a constant that the next layers can absorb exactly.

    This depends on the readers of the channel: a sum is constant if all its branches are; a convolution can
    absorb a constant if it doesn't pad its input; a sum over the channels can't.
    """
    graph, constants = network.graph, strict_constants(network, zeros)
    sums = [node for node in graph.nodes if node.op.sums_channels]
    found = {}
    for group in groups:
        removable = np.full(group.width, bool(group.consumers))
        layers = [graph.by_name[name] for name in group.consumers]
        for reader in layers + [one for one in sums if one.inputs[0] in group.positions]:
            values = constants[reader.inputs[0]][group.positions[reader.inputs[0]]]
            absorbs = reader in layers and takes_constants(graph, reader)
            exact = np.isfinite(values) if absorbs else values == 0
            removable &= exact.all(1)
        found[group.name] = removable
    return found


def groups_of_zero_branches(
    network: GraphNetwork, groups: list[ChannelGroup], zeros: Zeros
) -> tuple[str, ...]:
    """Names of the groups in branches that add nothing to their sum; one input of each sum is kept."""
    constants = strict_constants(network, zeros)
    found = removable_branches(network.graph, groups, allowed=lambda end: bool((constants[end] == 0).all()))
    return tuple(name for branch in found for name in branch.groups)


def kept_without(
    groups: list[ChannelGroup], removable: Units, rules: Rules, branches: tuple[str, ...]
) -> Kept:
    """The kept units if the maximum number of `removable` units is removed under `rules`, with all
    `branches`.
    """
    kept = {}
    for group in groups:
        if group.name in branches:
            kept[group.name] = np.empty(0, dtype=np.int64)
            continue
        candidates = np.flatnonzero(removable[group.name])
        least = group.width - len(candidates)
        width = min(w for w in rules.widths_below(group.name, group.width) if w >= least)
        kept[group.name] = np.setdiff1d(np.arange(group.width), candidates[: group.width - width])
    return kept
