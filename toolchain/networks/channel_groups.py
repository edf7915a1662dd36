"""Channels that must be removed together: the classes of a union-find over all channels of a graph.

Each operator defines how it connects channels (Operator.spread): a dense convolution makes new channels, BN
and activations pass theirs on, sums and products tie the channels of their inputs, a grouped convolution
ties the inputs of a group to its outputs. Classes with channels in the same places form a group; any number
of the classes in a group can be removed. Normalisation over channels keeps all channels.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from dataclasses import dataclass, field, replace

import numpy as np

from slimdeploy.toolchain.errors import unknown
from slimdeploy.toolchain.networks.graph import INPUT, Graph, Node

RESIDUAL_MODES = ("keep", "couple")
WEIGHTED = ("conv", "linear")


@dataclass(frozen=True)
class ChannelGroup:
    """`width` units; each is a set of channels that must be removed together. In a `residual` group the
    channels are sums of several branches.

    `producers` make the channels, `batchnorms` scale them, `consumers` read them. `positions` gives for every
    value with these channels the channels of each unit: (width, k).
    """

    name: str
    width: int
    producers: tuple[str, ...]
    batchnorms: tuple[str, ...]
    consumers: tuple[str, ...]
    residual: bool = False
    positions: dict[str, np.ndarray] = field(default_factory=dict, compare=False, repr=False)


def channel_groups(graph: Graph, *, residual: str = "keep") -> list[ChannelGroup]:
    """The prunable groups in order of execution, named after the layer that produces their channels first.

    With `residual="keep"` (the default) channels tied by a sum are kept: in a ResNet only the stem of a
    bottleneck network and the inner widths of blocks are prunable. `"couple"` adds one group for each
    residual stream. Raises SlimdeployError for another mode.
    """
    if residual not in RESIDUAL_MODES:
        raise unknown("residual mode", residual, RESIDUAL_MODES)
    groups = _find_groups(graph)
    return list(groups) if residual == "couple" else [group for group in groups if not group.residual]


def unit_channels(groups: list[ChannelGroup]) -> dict[str, int]:
    """Group -> number of output channels of its first producer in each unit."""
    return {group.name: group.positions[group.producers[0]].shape[1] for group in groups}


class _Ties:
    """Union-find over channel identifiers; implements operators.base.Ties."""

    def __init__(self) -> None:
        self._parents = np.empty(0, dtype=np.int64)
        self._summed: list[np.ndarray] = []
        self.fixed: list[np.ndarray] = []

    def new(self, count: int) -> np.ndarray:
        made = np.arange(len(self._parents), len(self._parents) + count)
        self._parents = np.concatenate([self._parents, made])
        return made

    def tie(self, first: np.ndarray, second: np.ndarray, *, summed: bool = False) -> None:
        apart = False
        for one, other in zip(first.tolist(), second.tolist(), strict=True):
            a, b = self._root(one), self._root(other)
            if a != b:
                apart = True
                self._parents[max(a, b)] = min(a, b)
        if summed and apart:  # x + x·gate is no sum of branches: both are the channels of one layer
            self._summed.append(first)

    def fix(self, channels: np.ndarray) -> None:
        self.fixed.append(channels)

    def _root(self, channel: int) -> int:
        parents = self._parents
        while parents[channel] != channel:
            parents[channel] = parents[parents[channel]]
            channel = int(parents[channel])
        return channel

    def roots(self) -> np.ndarray:
        """The class of each identifier."""
        found = self._parents
        while not np.array_equal(found[found], found):
            found = found[found]
        return found

    def summed(self, roots: np.ndarray) -> np.ndarray:
        """Which classes contain channels that are added."""
        flags = np.zeros(len(roots), dtype=bool)
        for channels in self._summed:
            flags[roots[channels]] = True
        return flags


@functools.lru_cache(maxsize=16)
def _find_groups(graph: Graph) -> tuple[ChannelGroup, ...]:
    ties = _Ties()
    channels = {INPUT: ties.new(graph.channels[INPUT])}
    for node in graph.nodes:
        channels[node.name] = node.op.spread(node, [channels[name] for name in node.inputs], ties)
    roots = ties.roots()
    classes = {value: roots[found] for value, found in channels.items()}
    summed, places = ties.summed(roots), _places(classes, len(roots))
    stay = [channels[INPUT], channels[graph.output], *ties.fixed]
    fixed = {*places[roots[np.concatenate(stay)]].tolist()}
    positions = _positions(classes, places, fixed)
    groups = [
        _group(graph, found, bool(summed[unit]))
        for unit, found in positions.values()
        if any(graph.by_name[value].operator in WEIGHTED for value in found)  # else zeros of pad_channels
    ]
    order = {name: number for number, name in enumerate(graph.by_name)}

    def first_made(group: ChannelGroup) -> tuple[int, int]:
        producer = group.producers[0]
        return order[producer], int(group.positions[producer].min())

    return tuple(_with_unique_names(sorted(groups, key=first_made)))


def _places(classes: dict[str, np.ndarray], count: int) -> np.ndarray:
    """(count,) one number per class, equal for classes with channels in the same places."""
    found = np.zeros(count, dtype=np.uint64)
    for number, of_value in enumerate(classes.values(), start=1):
        own, times = np.unique(of_value, return_counts=True)
        code = np.array([number], np.uint64) * np.uint64(0x9E3779B97F4A7C15) + times.astype(np.uint64)
        found[own] = (found[own] ^ code) * np.uint64(0xBF58476D1CE4E5B9) + np.uint64(1)
    return found


def _positions(
    classes: dict[str, np.ndarray], places: np.ndarray, fixed: set[int]
) -> dict[int, tuple[int, dict[str, np.ndarray]]]:
    """Place number -> one of its classes, and the positions (units, k) in every value with its channels."""
    found: dict[int, tuple[int, dict[str, np.ndarray]]] = {}
    ranks = np.zeros(len(places), dtype=np.int64)
    """For each class its index within the group: units are ordered by their first channels."""
    for value, own in classes.items():
        of_channel = places[own]
        for place in np.unique(of_channel).tolist():
            if place in fixed:
                continue
            at = np.flatnonzero(of_channel == np.uint64(place))
            if place not in found:
                units, first = np.unique(own[at], return_index=True)
                units = units[np.argsort(first)]
                ranks[units] = np.arange(len(units))
                found[place] = int(units[0]), {}
            by_unit = at[np.argsort(ranks[own[at]], kind="stable")]
            count = int(ranks[own[at]].max()) + 1
            found[place][1][value] = by_unit.reshape(count, -1)
    return found


def _group(graph: Graph, positions: dict[str, np.ndarray], residual: bool) -> ChannelGroup:
    def nodes(*operators: str) -> list[str]:
        return [name for name in positions if (node := graph.producer(name)) and node.operator in operators]

    producers = nodes(*WEIGHTED)
    readers = [n.name for n in graph.nodes if n.op.reads_all(n) and n.inputs[0] in positions]
    width = len(next(iter(positions.values())))
    batchnorms = tuple(nodes("batchnorm"))
    return ChannelGroup(
        producers[0], width, tuple(producers), batchnorms, tuple(readers), residual, positions
    )


def _with_unique_names(groups: list[ChannelGroup]) -> list[ChannelGroup]:
    """Number groups that are produced by the same layer."""
    seen: dict[str, int] = defaultdict(int)
    found = []
    for group in groups:
        seen[group.name] += 1
        number = seen[group.name]
        found.append(group if number == 1 else replace(group, name=f"{group.name}#{number}"))
    return found


def source_of(graph: Graph, reader: Node) -> tuple[str, int]:
    """The value that a convolution or linear layer reads, before flattening, and the number of flattened
    positions of each channel: a linear layer after a flatten is a convolution over all pixels.
    """
    value = reader.inputs[0]
    while (node := graph.producer(value)) is not None:
        if node.operator == "flatten":
            return node.inputs[0], int(node.attributes["positions"])
        if not node.op.elementwise or len(node.inputs) > 1:
            break
        value = node.inputs[0]
    return reader.inputs[0], 1
