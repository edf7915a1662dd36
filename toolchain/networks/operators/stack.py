"""`stack`: images of one pixel below each other, so that one layer reads them all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.networks.operators.base import (
    OPERATORS,
    Arrays,
    OnnxNodes,
    Operator,
    Shape,
    Ties,
    equal_channels,
    sides,
)

if TYPE_CHECKING:
    from slimdeploy.toolchain.networks.graph import Node


class Stack(Operator):
    """Ties the channels of its inputs: they must be removed together."""

    arity = (1, None)

    def channels(self, node: Node, inputs: Sequence[int]) -> int:
        return equal_channels(node, inputs)

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        for _, height, width in (sides(node, shape) for shape in inputs):
            if (height, width) != (1, 1):
                raise SlimdeployError(
                    f"{node.name}: the network expects another image size: {height}×{width} pixels arrive "
                    "here, not 1"
                )
        return inputs[0][0], len(inputs), 1

    def run(self, node: Node, *, inplace: bool) -> Callable[..., Any]:
        return _stack

    def write(self, node: Node, inputs: Sequence[str], to: OnnxNodes, arrays: Arrays, shape: Shape) -> str:
        return to.node("Concat", inputs, node.name, axis=2)

    def spread(self, node: Node, inputs: Sequence[np.ndarray], ties: Ties) -> np.ndarray:
        for other in inputs[1:]:
            ties.tie(inputs[0], other)
        return inputs[0]

    def constant(
        self, node: Node, inputs: Sequence[np.ndarray], arrays: Arrays, removed: np.ndarray
    ) -> np.ndarray:
        same = np.all([values == inputs[0] for values in inputs], axis=0)
        return np.where(same, inputs[0], np.nan)


def _stack(*values: Any) -> Any:
    import torch

    return torch.cat(values, 2)


OPERATORS["stack"] = Stack()
