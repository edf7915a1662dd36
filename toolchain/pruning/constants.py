"""Constant outputs of removed channels: with γ = 0 a channel equals f(β) everywhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from slimdeploy.toolchain.networks.cutting import emptied
from slimdeploy.toolchain.networks.graph import INPUT, Graph, Node
from slimdeploy.toolchain.networks.module import GraphNetwork
from slimdeploy.toolchain.networks.operators.padding import pad_mode
from slimdeploy.toolchain.networks.residual import batchnorm_behind

CHANGING = ("dropout", "stochastic_depth")
"""Operators after which a constant is no longer constant in training mode, unless it is 0."""


class _NodeArrays(Mapping[str, np.ndarray]):
    """A node's tensors in float64, converted on access."""

    def __init__(self, network: GraphNetwork, name: str) -> None:
        self._tensors = network.tensors(name)

    def __getitem__(self, part: str) -> np.ndarray:
        return self._tensors[part].detach().double().cpu().numpy()

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def removed_constants(
    network: GraphNetwork, masks: dict[str, np.ndarray], *, at_border: bool = False
) -> dict[str, np.ndarray]:
    """Value -> (channels,) float64: the constant of each channel that is False in `masks`, and of removed
    branches. NaN if it isn't constant (e.g. a product with a gate that depends on the image); 0 for kept
    channels.

    A padding with zeros on the way makes the border of the image differ: the constant is that of the inside
    then; with `at_border`, NaN.
    """
    graph = network.graph
    gone = emptied(graph, masks)
    found = {INPUT: np.full(graph.channels[INPUT], np.nan)}
    for node in graph.nodes:
        inputs = [found[name] for name in node.inputs]
        removed = ~masks[node.name]
        constants = node.op.constant(node, inputs, _NodeArrays(network, node.name), removed)
        if at_border and _changes_border(graph, node):
            constants = np.where(constants == 0, 0.0, np.nan)
        found[node.name] = constants
    return {
        value: constants if value in gone else np.where(masks[value], 0.0, constants)
        for value, constants in found.items()
    }


def strict_constants(network: GraphNetwork, zeros: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Value -> (channels,) float64: the value of each channel in every pixel of every image, in training and
    eval mode; NaN if it is not constant. `zeros`: BN -> (channels,) bool, True where γ is 0.
    """
    graph = network.graph
    found = {INPUT: np.full(graph.channels[INPUT], np.nan)}
    for node in graph.nodes:
        inputs = [found[name] for name in node.inputs]
        nothing = np.zeros(graph.channels[node.name], dtype=bool)
        zero = zeros.get(node.name, nothing)
        values = np.asarray(node.op.constant(node, inputs, _NodeArrays(network, node.name), zero))
        if node.operator == "batchnorm":  # in training mode it subtracts the mean of its input
            values = np.where(zero, values, np.nan)
        if node.operator in CHANGING or _changes_border(graph, node):
            values = np.where(values == 0, 0.0, np.nan)
        found[node.name] = values
    return found


def takes_constants(graph: Graph, reader: Node) -> bool:
    """Whether a constant input of `reader` can be folded exactly into its existing tensors."""
    has_shift = reader.attributes["bias"] or batchnorm_behind(graph, reader) is not None
    return bool(has_shift and not pads(graph, reader))


def _changes_border(graph: Graph, node: Node) -> bool:
    """Whether a constant of its input becomes another at the border. A dense convolution has constants only
    where its filters are zero.
    """
    reads_border = node.operator in ("conv", "fixed_filter", "avg_pool") and not node.op.reads_all(node)
    return _surrounds_with_zeros(node) or (reads_border and pads(graph, node))


def pads(graph: Graph, node: Node) -> bool:
    """Whether the windows of `node` extend over the border, where they read zeros."""
    before = graph.producer(node.inputs[0])
    padded = before is not None and _surrounds_with_zeros(before)
    return padded or bool(node.attributes.get("padding", [0, 0]) != [0, 0])


def _surrounds_with_zeros(node: Node) -> bool:
    return node.operator == "pad" and pad_mode(node) == "constant"
