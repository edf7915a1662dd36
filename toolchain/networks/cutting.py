"""The graph of a pruned network, from the channels that are kept. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from slimdeploy.toolchain.networks.channel_groups import ChannelGroup
from slimdeploy.toolchain.networks.graph import Graph, Node, needed_for

Masks = dict[str, np.ndarray]
"""Value -> (channels,) bool: True for kept channels."""


def keep_masks(graph: Graph, groups: list[ChannelGroup], kept: Mapping[str, np.ndarray]) -> Masks:
    """Masks of the kept channels if only the units `kept` of each group are kept."""
    masks = {name: np.ones(count, dtype=bool) for name, count in graph.channels.items()}
    for group in groups:
        removed = np.ones(group.width, dtype=bool)
        removed[kept[group.name]] = False
        for value, positions in group.positions.items():
            masks[value][positions[removed].ravel()] = False
    return masks


def pruned_graph(graph: Graph, groups: list[ChannelGroup], kept: Mapping[str, np.ndarray]) -> Graph:
    """`graph` with only the `kept` units of each group; a branch without channels is removed."""
    return cut_graph(graph, keep_masks(graph, groups, kept))


def at_widths(graph: Graph, groups: list[ChannelGroup], widths: Mapping[str, int]) -> Graph:
    """`graph` with the first `widths[name]` units of each group."""
    return pruned_graph(graph, groups, {name: np.arange(width) for name, width in widths.items()})


def widths_of(graph: Graph, full: Graph, groups: list[ChannelGroup]) -> list[int]:
    """How many units of each of `groups`, of the unpruned network `full`, remain in `graph`, at least one
    of each. A value may have channels of several groups, so the numbers of channels of all values are solved
    for them.
    """
    values = [name for name in full.channels if name in graph.channels]
    of_unit = np.zeros((len(values), len(groups)))
    for column, group in enumerate(groups):
        for row, name in enumerate(values):
            of_unit[row, column] = group.positions[name].shape[1] if name in group.positions else 0
    removed = np.array([full.channels[name] - graph.channels[name] for name in values], float)
    units = np.rint(np.linalg.lstsq(of_unit, removed, rcond=None)[0]).astype(int).tolist()
    return [group.width - count for group, count in zip(groups, units, strict=True)]


def emptied(graph: Graph, masks: Masks) -> set[str]:
    """The values that are removed: those without channels, and what is computed from such values only."""
    gone: set[str] = set()
    for node in graph.nodes:
        if gone.issuperset(node.inputs) or not masks[node.name].any():
            gone.add(node.name)
    return gone


def cut_graph(graph: Graph, masks: Masks) -> Graph:
    """`graph` with only the channels that are True in `masks`. A value without channels is removed, with all
    nodes that serve only it; a sum with one input becomes that input.
    """
    made: dict[str, Node] = {}
    instead: dict[str, str] = {}
    gone = emptied(graph, masks)
    for node in graph.nodes:
        if node.name in gone:
            continue
        left = [name for name in node.inputs if name not in gone]
        inputs = tuple(instead.get(name, name) for name in left)
        before = made.get(inputs[0])
        repeated = before and node.op.idempotent and before.operator == node.operator
        if repeated or (node.operator == "add" and len(inputs) == 1):
            instead[node.name] = inputs[0]
            continue
        changes = node.op.cut(node, [masks[name] for name in left], masks[node.name])
        made[node.name] = replace(node.with_attributes(**changes), inputs=inputs)
    return graph.with_nodes(needed_for(instead.get(graph.output, graph.output), made.values()))
