"""`join_rows`: images below each other; `stack`: those of one pixel, so that one layer reads them all;
`swap_sides`: an image with rows and columns swapped.
"""

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
    check_size,
    equal_channels,
    sides,
)

if TYPE_CHECKING:
    from slimdeploy.toolchain.networks.graph import Node


class JoinRows(Operator):
    """Ties the channels of its inputs: they must be removed together."""

    arity = (1, None)

    def channels(self, node: Node, inputs: Sequence[int]) -> int:
        return equal_channels(node, inputs)

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        images = [sides(node, shape) for shape in inputs]
        if len({width for _, _, width in images}) > 1:
            raise SlimdeployError(f"{node.name}: join_rows of {' and '.join(map(str, inputs))}")
        return images[0][0], sum(height for _, height, _ in images), images[0][2]

    def run(self, node: Node, *, inplace: bool) -> Callable[..., Any]:
        return _join

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


class Stack(JoinRows):
    """Checks that its images have one pixel at every size."""

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        for _, height, width in (sides(node, shape) for shape in inputs):
            check_size(node, (height, width), (1, 1))
        return super().shape(node, inputs)


class SwapSides(Operator):
    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        channels, height, width = sides(node, inputs[0])
        return channels, width, height

    def run(self, node: Node, *, inplace: bool) -> Callable[..., Any]:
        return _swap

    def write(self, node: Node, inputs: Sequence[str], to: OnnxNodes, arrays: Arrays, shape: Shape) -> str:
        return to.node("Transpose", inputs, node.name, perm=[0, 1, 3, 2])


def _join(*images: Any) -> Any:
    import torch

    return torch.cat(images, 2)


def _swap(x: Any) -> Any:
    return x.transpose(2, 3)


OPERATORS["join_rows"] = JoinRows()
OPERATORS["stack"] = Stack()
OPERATORS["swap_sides"] = SwapSides()
