"""Cost of a network at given widths in the unit of a budget, and the saving when one group is narrowed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np

from slimdeploy.toolchain.networks.channel_groups import ChannelGroup
from slimdeploy.toolchain.networks.cutting import pruned_graph
from slimdeploy.toolchain.networks.graph import Graph
from slimdeploy.toolchain.networks.layers import Layer, parameter_layers

Widths = dict[str, int]
"""Group name -> units. 0 means a removed branch."""

Price = Callable[[Layer], float]


class _Channels:
    """The channels of one value as a function of the group widths."""

    def __init__(self, value: str, count: int, groups: list[ChannelGroup]) -> None:
        self.parts = {g.name: g.positions[value].shape[1] for g in groups if value in g.positions}
        self._fixed = count - sum(g.width * self.parts[g.name] for g in groups if g.name in self.parts)

    def at(self, widths: Widths) -> int:
        return self._fixed + sum(widths[name] * times for name, times in self.parts.items())


class _Part:
    """One layer at any width, with a cache of its costs."""

    def __init__(self, layer: Layer, inputs: _Channels, outputs: _Channels, price: Price) -> None:
        self.name = layer.name
        self._layer, self._inputs, self._outputs, self._price = layer, inputs, outputs, price
        self._known: dict[tuple[int, int], float] = {}
        self.groups = {*inputs.parts, *outputs.parts}

    def cost(self, widths: Widths) -> float:
        key = self._inputs.at(widths), self._outputs.at(widths)
        if key not in self._known:
            self._known[key] = self._cost(*key)
        return self._known[key]

    def _cost(self, inputs: int, outputs: int) -> float:
        groups = self._layer.groups * inputs // self._layer.in_channels if self._layer.groups > 1 else 1
        return self._price(
            replace(self._layer, in_channels=inputs, out_channels=outputs, groups=max(1, groups))
        )


class CostModel:
    """Adds the prices of the layers at given group widths, for images with a side of `size` pixels; `fixed`
    is the price of everything else.
    """

    def __init__(
        self, graph: Graph, groups: list[ChannelGroup], *, size: int, price: Price, fixed: float = 0.0
    ) -> None:
        def channels(value: str) -> _Channels:
            return _Channels(value, graph.channels[value], groups)

        self._fixed = fixed
        self._parts = [
            _Part(layer, channels(graph.by_name[layer.name].inputs[0]), channels(layer.name), price)
            for layer in parameter_layers(graph, size)
        ]
        self._touched = {
            group.name: [part for part in self._parts if group.name in part.groups] for group in groups
        }
        self._graph, self._groups = graph, {group.name: group for group in groups}
        self._left: dict[frozenset[str], set[str]] = {}

    def total(self, widths: Widths) -> float:
        """Cost of the whole network at `widths`."""
        return self._fixed + self._of(self._parts, widths)

    def saving(self, widths: Widths, changes: Widths) -> float:
        """Saving if `widths` change to the given values."""
        changed = {**widths, **changes}
        parts = {part.name: part for name in changes for part in self._touched[name]}.values()
        if not all(widths[name] and changes[name] for name in changes):  # a branch may have other layers too
            return self._of(self._parts, widths) - self._of(self._parts, changed)
        return self._of(parts, widths) - self._of(parts, changed)

    def _of(self, parts: Iterable[_Part], widths: Widths) -> float:
        removed = frozenset(name for name, width in widths.items() if not width)
        if not removed:
            return sum(part.cost(widths) for part in parts)
        left = self._layers_without(removed)
        return sum(part.cost(widths) for part in parts if part.name in left)

    def _layers_without(self, removed: frozenset[str]) -> set[str]:
        """The nodes that are left without the branches that contain the groups `removed`."""
        if removed not in self._left:
            groups = [self._groups[name] for name in removed]
            cut = pruned_graph(self._graph, groups, dict.fromkeys(removed, np.arange(0)))
            self._left[removed] = set(cut.by_name)
        return self._left[removed]


class ChannelCount:
    """Counts the prunable channels: the unit of `--ratio`."""

    def total(self, widths: Widths) -> float:
        return float(sum(widths.values()))

    def saving(self, widths: Widths, changes: Widths) -> float:
        return float(sum(widths[name] - new for name, new in changes.items()))


def parameter_model(
    graph: Graph, groups: list[ChannelGroup], size: int, *, folded: bool = False
) -> CostModel:
    """Counts parameters. `folded`: with the bias that a layer without bias and BN may get when constants of
    removed inputs are folded into it.
    """
    whole = {layer.name: layer for layer in parameter_layers(graph, size)}

    def price(layer: Layer) -> float:
        before = whole[layer.name]
        reads_fewer = layer.in_channels < before.in_channels and before.groups == 1
        dense = layer.operator in ("conv", "linear") and layer.batchnorm is None
        return replace(layer, bias=layer.bias or (folded and dense and reads_fewer)).params

    return CostModel(graph, groups, size=size, price=price)


def mac_model(graph: Graph, groups: list[ChannelGroup], size: int) -> CostModel:
    """Counts multiply-accumulates of one image."""
    return CostModel(graph, groups, size=size, price=lambda layer: layer.macs)
