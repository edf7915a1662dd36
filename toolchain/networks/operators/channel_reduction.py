"""`channel_mean` and `channel_max`: one value for all channels of a pixel, as in the spatial attention of
CBAM (Woo et al., arXiv 1807.06521).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from slimdeploy.toolchain.networks.operators.base import (
    OPERATORS,
    Arrays,
    OnnxNodes,
    Operator,
    Shape,
    Ties,
    sides,
)

if TYPE_CHECKING:
    from slimdeploy.toolchain.networks.graph import Node

AXES_AS_INPUT = 18
"""From this opset on, the axes of ONNX's reductions are an input and no attribute."""


class ChannelReduction(Operator):
    """Its channels are kept: removing one would change the result."""

    def __init__(self, function: str, onnx: str) -> None:
        self.function, self.onnx = function, onnx

    def channels(self, node: Node, inputs: Sequence[int]) -> int:
        return 1

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        return (1, *sides(node, inputs[0])[1:])

    def run(self, node: Node, *, inplace: bool) -> Callable[..., Any]:
        import torch

        return functools.partial(getattr(torch, self.function), dim=1, keepdim=True)

    def write(self, node: Node, inputs: Sequence[str], to: OnnxNodes, arrays: Arrays, shape: Shape) -> str:
        if to.opset < AXES_AS_INPUT:
            return to.node(self.onnx, inputs, node.name, axes=[1])
        return to.node(
            self.onnx, [inputs[0], to.constant("channel.axis", np.array([1], np.int64))], node.name
        )

    def spread(self, node: Node, inputs: Sequence[np.ndarray], ties: Ties) -> np.ndarray:
        ties.fix(inputs[0])
        return ties.new(1)

    def constant(
        self, node: Node, inputs: Sequence[np.ndarray], arrays: Arrays, removed: np.ndarray
    ) -> np.ndarray:
        return np.full(1, np.nan)


OPERATORS["channel_mean"] = ChannelReduction("mean", "ReduceMean")
OPERATORS["channel_max"] = ChannelReduction("amax", "ReduceMax")
