"""`channel_mean`, `channel_max` and `channel_norm`: one value for all channels of a pixel or a vector, as in
the spatial attention of CBAM (Woo et al., arXiv 1807.06521), in ConvNeXt V2 (arXiv 2301.00808) and in cosine
classifiers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from slimdeploy.toolchain.networks.operators.base import (
    OPERATORS,
    Arrays,
    OnnxNodes,
    Operator,
    Shape,
    Ties,
    count,
)

if TYPE_CHECKING:
    from slimdeploy.toolchain.networks.graph import Node


class ChannelReduction(Operator):
    def __init__(self, onnx: str) -> None:
        self.onnx = onnx

    def channels(self, node: Node, inputs: Sequence[int]) -> int:
        return 1

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        return (1, *inputs[0][1:])

    def write(self, node: Node, inputs: Sequence[str], to: OnnxNodes, arrays: Arrays, shape: Shape) -> str:
        return to.reduce(self.onnx, inputs[0], node.name, [1])

    def spread(self, node: Node, inputs: Sequence[np.ndarray], ties: Ties) -> np.ndarray:
        return ties.new(1)

    def constant(
        self, node: Node, inputs: Sequence[np.ndarray], arrays: Arrays, removed: np.ndarray
    ) -> np.ndarray:
        return np.full(1, np.nan)


class ChannelMax(ChannelReduction):
    """Its channels are kept: the others may all be negative."""

    def run(self, node: Node, *, inplace: bool) -> Callable[..., Any]:
        import torch

        return functools.partial(torch.amax, dim=1, keepdim=True)

    def spread(self, node: Node, inputs: Sequence[np.ndarray], ties: Ties) -> np.ndarray:
        ties.fix(inputs[0])
        return super().spread(node, inputs, ties)


class ChannelMean(ChannelReduction):
    """The sum of the channels divided by the attribute `count`, their number before pruning: a channel of
    zeros can be removed, and nothing changes.
    """

    attributes = MappingProxyType({"count": count})
    sums_channels = True

    def run(self, node: Node, *, inplace: bool) -> Callable[..., Any]:
        return functools.partial(_mean, count=node.attributes["count"])

    def write(self, node: Node, inputs: Sequence[str], to: OnnxNodes, arrays: Arrays, shape: Shape) -> str:
        if shape[0] == node.attributes["count"]:
            return super().write(node, inputs, to, arrays, shape)
        mean = to.reduce(self.onnx, inputs[0], f"{node.name}.kept", [1])
        share = to.constant(f"{node.name}.share", np.float32(shape[0] / node.attributes["count"]))
        return to.node("Mul", [mean, share], node.name)


class ChannelNorm(ChannelReduction):
    """The Euclidean norm over the channels, to which a channel of zeros adds nothing."""

    sums_channels = True

    def run(self, node: Node, *, inplace: bool) -> Callable[..., Any]:
        import torch

        return functools.partial(torch.linalg.vector_norm, dim=1, keepdim=True)


def _mean(x: Any, *, count: int) -> Any:
    return x.sum(1, keepdim=True) / count


OPERATORS["channel_mean"] = ChannelMean("ReduceMean")
OPERATORS["channel_max"] = ChannelMax("ReduceMax")
OPERATORS["channel_norm"] = ChannelNorm("ReduceL2")
