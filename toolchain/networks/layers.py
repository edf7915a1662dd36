"""The layers with parameters in a graph. No torch here.

Costs, summaries, latency tables and reports list these layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from slimdeploy.toolchain.networks.graph import Graph, Node
from slimdeploy.toolchain.networks.operators import Shape
from slimdeploy.toolchain.networks.residual import batchnorm_behind, main_branches


@dataclass(frozen=True)
class Layer:
    """A convolution with its BN, a linear layer (as a 1×1 convolution), or another node with parameters, e.g.
    a separate BN.
    """

    name: str
    operator: str
    in_channels: int
    out_channels: int
    groups: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    in_size: tuple[int, int]
    """(height, width) in pixels."""
    out_size: tuple[int, int]
    bias: bool
    batchnorm: str | None
    affine: bool
    """Whether the BN has γ and β."""
    activation: bool
    """Whether an activation follows, directly or after the BN."""
    summed: bool
    """Whether it ends the main branch of a residual sum, which runtimes fuse into the layer."""
    shared: int = 0
    """Trained values that all channels share."""
    dilation: tuple[int, int] = (1, 1)
    params_each: int = 0
    """Trained values of each channel that aren't weights, bias, γ or β."""
    macs_each: int = 0
    """Multiply-accumulates for each output value, apart from those of the weights."""

    @property
    def weights(self) -> int:
        if self.operator not in ("conv", "linear"):
            return 0
        return self.out_channels * (self.in_channels // self.groups) * self.kernel[0] * self.kernel[1]

    @property
    def params(self) -> int:
        """All trained values, with the γ and β of the BN if it has them."""
        by_channel = self.bias + 2 * self.affine + self.params_each
        return self.weights + self.out_channels * by_channel + self.shared

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image."""
        return (self.weights + self.out_channels * self.macs_each) * self.out_size[0] * self.out_size[1]


def parameter_layers(graph: Graph, size: int) -> list[Layer]:
    """The layers of `graph` with parameters, in order, for square images with a side of `size` pixels.

    Raises SlimdeployError for images too small to pass through.
    """
    shapes, summed = graph.shapes(size), {node.name for node in main_branches(graph).values()}
    found: list[Layer] = []
    for node in graph.nodes:
        if node.operator in ("conv", "linear"):
            found.append(_layer(graph, node, shapes[node.inputs[0]], shapes[node.name], summed))
        elif node.op.tensors(node) and node.name not in {layer.batchnorm for layer in found}:
            found.append(_without_weights(node, shapes[node.name]))
    return found


def convolutions(graph: Graph, size: int) -> list[Layer]:
    """The convolutions of `graph` in order; arguments and errors as parameter_layers."""
    return [layer for layer in parameter_layers(graph, size) if layer.operator == "conv"]


def priced_layers(graph: Graph, size: int) -> list[Layer]:
    """The layers that a latency table contains one by one: convolutions, and all linear layers except the
    last.
    """
    layers = [layer for layer in parameter_layers(graph, size) if layer.operator in ("conv", "linear")]
    return [layer for layer in layers if layer.operator == "conv" or layer is not layers[-1]]


def layer_of_nodes(graph: Graph) -> dict[str, str]:
    """Name of each node that runtimes fuse into a layer -> that layer: BN, activations and arithmetic with
    constants behind it, and the residual sum that it ends.
    """
    ends = main_branches(graph)
    found = {}
    for node in graph.nodes:
        if node.operator not in ("conv", "linear"):
            continue
        chain = [node.name]
        while after := graph.only_consumer(chain[-1]):
            ends_here = after.name in ends and ends[after.name].name in chain
            if not (after.operator == "batchnorm" or _is_activation(after) or ends_here):
                break
            chain.append(after.name)
        found.update(dict.fromkeys(chain, node.name))
    return found


def _layer(graph: Graph, node: Node, before: Shape, after: Shape, summed: set[str]) -> Layer:
    a, bn = node.attributes, batchnorm_behind(graph, node)
    follows = graph.only_consumer((bn or node).name)
    is_conv = node.operator == "conv"
    return Layer(
        name=node.name,
        operator=node.operator,
        in_channels=a["in"],
        out_channels=a["out"],
        groups=a["groups"] if is_conv else 1,
        kernel=_pair(a["kernel"]) if is_conv else (1, 1),
        stride=_pair(a["stride"]) if is_conv else (1, 1),
        dilation=_pair(a["dilation"]) if is_conv else (1, 1),
        in_size=_pair(before[1:]) if len(before) == 3 else (1, 1),
        out_size=_pair(after[1:]) if len(after) == 3 else (1, 1),
        bias=bool(a["bias"]),
        batchnorm=bn.name if bn else None,
        affine=bool(bn and bn.attributes["affine"]),
        activation=follows is not None and _is_activation(follows),
        summed=(bn or node).name in summed,
    )


def _without_weights(node: Node, shape: Shape) -> Layer:
    """A normalisation layer, or a parameter with values per channel."""
    width, size = shape[0], _pair(shape[1:]) if len(shape) == 3 else (1, 1)
    trained = [tensor for tensor in node.op.tensors(node).values() if tensor.trained]
    return Layer(
        node.name, node.operator, width, width, width, (1, 1), (1, 1), size, size, batchnorm=None,
        bias=False, affine=False, activation=False, summed=False,
        params_each=sum(math.prod(tensor.shape) // width for tensor in trained if "output" in tensor.axes),
        shared=sum(math.prod(tensor.shape) for tensor in trained if "output" not in tensor.axes),
        macs_each=node.op.macs(node, shape) // math.prod(shape),
    )  # fmt: skip


def _is_activation(node: Node) -> bool:
    return node.op.elementwise and len(node.inputs) == 1


def _pair(values: Sequence[int]) -> tuple[int, int]:
    first, second = values
    return int(first), int(second)
