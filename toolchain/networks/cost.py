"""Costs of a network from its graph: parameters, multiply-accumulates and memory. No torch here."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from slimdeploy.toolchain.networks.graph import INPUT, Graph
from slimdeploy.toolchain.networks.layers import Layer, parameter_layers

MB = 2**20
NO_CALL = ("flatten", "unflatten", "slice", "crop", "stack")
"""Operators that are no module call: they only change the view of a value."""


@dataclass(frozen=True)
class Memory:
    """Megabytes (2^20 bytes) for one float32 image, by torchsummary's convention.

    `activations` counts the output of every module call (convolution, BN, activation, pool, block, linear
    layer) twice, once for the backward pass; `params` counts weights, biases, γ and β.
    """

    input: float
    activations: float
    params: float

    @property
    def total(self) -> float:
        return self.input + self.activations + self.params


@dataclass(frozen=True)
class Cost:
    """Costs of one network for one image. `padded_macs` counts every width rounded up to `alignment`."""

    params: int
    macs: int
    padded_macs: int
    alignment: int
    module_calls: int
    memory: Memory


def network_cost(graph: Graph, size: int, *, alignment: int = 8) -> Cost:
    """Cost of `graph` for square images with a side of `size` pixels."""
    shapes, params = graph.shapes(size), parameter_count(graph)
    calls = [math.prod(shapes[node.name]) for node in graph.nodes if node.operator not in NO_CALL]
    macs = sum(node.op.macs(node, shapes[node.name]) for node in graph.nodes)
    memory = Memory(graph.image_channels * size * size * 4 / MB, sum(calls) * 4 * 2 / MB, params * 4 / MB)
    return Cost(params, macs, _padded_macs(graph, size, alignment), alignment, len(calls), memory)


def parameter_count(graph: Graph) -> int:
    """Trainable parameters: weights, biases, γ and β."""
    return sum(
        math.prod(tensor.shape)
        for node in graph.nodes
        for tensor in node.op.tensors(node).values()
        if tensor.trained
    )


def _padded_macs(graph: Graph, size: int, alignment: int) -> int:
    """MACs on hardware that computes `alignment` channels at a time. The channels of the image and of linear
    layers are not padded.
    """
    first = {node.name for node in graph.consumers[INPUT]}

    def padded(layer: Layer) -> Layer:
        if layer.operator != "conv":
            return layer
        out = round_up(layer.out_channels, alignment)
        if layer.groups > 1 or layer.name in first:
            return replace(layer, out_channels=out)
        return replace(layer, in_channels=round_up(layer.in_channels, alignment), out_channels=out)

    return sum(padded(layer).macs for layer in parameter_layers(graph, size))


def round_up(width: int, alignment: int) -> int:
    """The smallest multiple of `alignment` that is at least `width`."""
    return -(-width // alignment) * alignment
