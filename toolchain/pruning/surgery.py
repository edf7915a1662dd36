"""Cut a network: build it with only the kept channels."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from slimdeploy.toolchain.networks.channel_groups import ChannelGroup, source_of
from slimdeploy.toolchain.networks.cutting import Masks, cut_graph, emptied, keep_masks
from slimdeploy.toolchain.networks.graph import Graph, Node
from slimdeploy.toolchain.networks.module import GraphNetwork
from slimdeploy.toolchain.networks.operators.base import tensor_name
from slimdeploy.toolchain.networks.residual import batchnorm_behind
from slimdeploy.toolchain.pruning.activations import InputMoments
from slimdeploy.toolchain.pruning.compensation import compensate
from slimdeploy.toolchain.pruning.constants import pads, removed_constants
from slimdeploy.toolchain.pruning.selection import Kept

State = dict[str, Tensor]


@dataclass(frozen=True)
class Folding:
    """What happened to the constants f(β) of removed channels."""

    channels: int
    """Removed channels with a constant other than 0."""
    exact: tuple[str, ...]
    """Layers that absorbed the constants exactly."""
    approximate: tuple[str, ...]
    """Convolutions behind a padding, their own or an earlier one: folding is exact inside the image, but not
    at the border, which zeros have changed.
    """
    lost: tuple[str, ...]
    """Layers that read a removed channel that isn't constant (e.g. a product with a gate), and sums over
    channels or of branches, which can't absorb a constant other than 0. These differ.
    """


NOTHING_FOLDED = Folding(0, (), (), ())


@torch.no_grad()
def prune_network(
    network: GraphNetwork, groups: list[ChannelGroup], kept: Kept, *, fold: bool = True
) -> tuple[GraphNetwork, Folding]:
    """A new network with only the kept channels; `network` is not changed.

    Without `fold`, layers that read removed channels get zeros in their place. With `fold` it equals
    `network` with γ (without BN: the filter) of the removed channels set to zero: the constant of a removed
    channel is folded into the layer that reads it. This is exact unless there is a padding between the two.
    """
    cut = _Cut(network, keep_masks(network.graph, groups, kept))
    folding = _fold_constants(network, cut, groups, kept) if fold else NOTHING_FOLDED
    return cut.network(), folding


@torch.no_grad()
def prune_compensated(
    network: GraphNetwork, groups: list[ChannelGroup], kept: Kept, moments: dict[str, InputMoments]
) -> GraphNetwork:
    """Like `prune_network`, but each layer that read removed channels is refitted to the kept ones by least
    squares.

    `moments` are needed for every layer that reads a group's channels: see compensation.compensate.
    """
    graph = network.graph
    cut = _Cut(network, keep_masks(graph, groups, kept))
    for name in dict.fromkeys(reader for group in groups for reader in group.consumers):
        value, taps = source_of(graph, graph.by_name[name])
        stays = cut.masks[value]
        if stays.all() or not stays.any():  # nothing is removed, or the whole branch is
            continue
        weight = network.weight(name)
        by_channel = weight.unflatten(1, (-1, taps)) if taps > 1 else weight
        found = compensate(by_channel, moments[name], torch.from_numpy(np.flatnonzero(stays)))
        cut.read_with(name, found.weight.flatten(1) if taps > 1 else found.weight)
        cut.add_constant(name, found.shift)
    return cut.network()


class _Cut:
    """The network during the cut: tensors at full size, with constants folded in."""

    def __init__(self, network: GraphNetwork, masks: Masks) -> None:
        self.graph, self.masks, self._training = network.graph, masks, network.training
        self._state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        self._narrowed: set[str] = set()

    def read_with(self, name: str, weight: Tensor) -> None:
        """Set the weight of a layer from which the removed inputs are already cut."""
        self._state[f"{name}.weight"] = weight.to(self._state[f"{name}.weight"].device)
        self._narrowed.add(name)

    def add_constant(self, name: str, shift: Tensor) -> None:
        """Add `shift` (O,) to the outputs of a layer: in the BN after it (by its mean) or else in its bias,
        which is created if missing.
        """
        node = self.graph.by_name[name]
        bn = batchnorm_behind(self.graph, node)
        target, sign = (f"{bn.name}.running_mean", -1) if bn else (f"{name}.bias", 1)
        if target not in self._state:
            changed = node.with_attributes(bias=True)
            self.graph = self.graph.with_nodes(changed if n is node else n for n in self.graph.nodes)
            self._state[target] = torch.zeros(len(shift), device=self._state[f"{name}.weight"].device)
        old = self._state[target]
        self._state[target] = (old.double() + sign * shift.to(old.device)).to(old.dtype)

    def network(self) -> GraphNetwork:
        """The network with the kept channels."""
        made = GraphNetwork(cut_graph(self.graph, self.masks))
        state = narrowed(self._state, self.graph, made.graph, self.masks, done=self._narrowed)
        made.load_state_dict(state)
        return made.to(next(iter(state.values())).device).train(self._training)


def narrowed(tensors: State, graph: Graph, cut: Graph, masks: Masks, *, done: Collection[str] = ()) -> State:
    """The tensors of the nodes in `cut`, named as in the state dict of `graph`, without the channels that are
    False in `masks`. Inputs of the layers in `done` are cut already.
    """
    found = {}
    for node in cut.nodes:
        own = graph.by_name[node.name]
        stays = {"output": masks[own.name], "input": masks[own.inputs[0]]}
        for part, tensor in own.op.tensors(own).items():
            name = tensor_name(node.name, part)
            if name not in tensors:
                continue
            values = tensors[name]
            for dimension, axis in enumerate(tensor.axes):
                if axis and not (axis == "input" and node.name in done):
                    values = _narrow(values, dimension, stays[axis])
            found[name] = values
    return found


def _narrow(tensor: Tensor, dimension: int, stays: np.ndarray) -> Tensor:
    if stays.all():
        return tensor
    indices = torch.from_numpy(np.flatnonzero(stays)).to(tensor.device)
    return tensor.index_select(dimension, indices).contiguous()


def _fold_constants(network: GraphNetwork, cut: _Cut, groups: list[ChannelGroup], kept: Kept) -> Folding:
    graph, masks = network.graph, cut.masks
    found = removed_constants(network, masks)
    at_border = removed_constants(network, masks, at_border=True)
    constants = {value: np.nan_to_num(values) for value, values in found.items()}
    channels = 0
    for group in groups:
        removed = np.setdiff1d(np.arange(group.width), kept[group.name])
        if not len(kept[group.name]) or not group.consumers:
            continue
        passed = [constants[graph.by_name[name].inputs[0]] for name in group.consumers]
        at = [group.positions[graph.by_name[name].inputs[0]][removed] for name in group.consumers]
        channels += int(
            np.any([values[p].any(1) for values, p in zip(passed, at, strict=True)], axis=0).sum()
        )
    gone = emptied(graph, masks)
    readers = dict.fromkeys(name for group in groups for name in group.consumers)
    layers = {name: value for name in readers if (value := graph.by_name[name].inputs[0]) not in gone}
    for name, value in layers.items():
        if constants[value].any():
            weight = network.weight(name).double()
            taps = weight.flatten(2).sum(2) if weight.dim() > 2 else weight
            cut.add_constant(name, taps @ torch.from_numpy(constants[value]).to(weight.device))

    def loses(node: Node) -> bool:
        if node.name in layers:
            return bool(np.isnan(found[layers[node.name]]).any())
        unabsorbed = node.inputs if node.op.sums_channels else gone.intersection(node.inputs)
        return node.name not in gone and any(bool((found[value] != 0).any()) for value in unabsorbed)

    def exact(name: str) -> bool:
        value = layers[name]
        same = np.array_equal(found[value], at_border[value], equal_nan=True)
        return same and not pads(graph, graph.by_name[name])

    lost = tuple(node.name for node in graph.nodes if loses(node))
    folded = [name for name, value in layers.items() if constants[value].any() and name not in lost]
    return Folding(
        channels,
        exact=tuple(name for name in folded if exact(name)),
        approximate=tuple(name for name in folded if not exact(name)),
        lost=lost,
    )
