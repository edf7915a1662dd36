"""`flatten` and `unflatten`: an image to a vector, with one value per channel and pixel; and a vector to an
image of one pixel.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import MappingProxyType
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
    count,
    sides,
)

if TYPE_CHECKING:
    from slimdeploy.toolchain.networks.graph import Node


class Flatten(Operator):
    """Attribute: positions, the number of pixels that it was built for."""

    attributes = MappingProxyType({"positions": count})

    def channels(self, node: Node, inputs: Sequence[int]) -> int:
        return int(inputs[0] * node.attributes["positions"])

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        channels, height, width = sides(node, inputs[0])
        positions = node.attributes["positions"]
        if height * width != positions:
            raise SlimdeployError(
                f"{node.name}: the network expects another image size: {height}×{width} pixels arrive here, "
                f"not {positions}"
            )
        return (channels * positions,)

    def run(self, node: Node, *, inplace: bool) -> Callable[..., Any]:
        import torch

        return functools.partial(torch.flatten, start_dim=1)

    def write(self, node: Node, inputs: Sequence[str], to: OnnxNodes, arrays: Arrays, shape: Shape) -> str:
        return to.node("Flatten", inputs, node.name, axis=1)

    def spread(self, node: Node, inputs: Sequence[np.ndarray], ties: Ties) -> np.ndarray:
        return np.repeat(inputs[0], node.attributes["positions"])

    def constant(
        self, node: Node, inputs: Sequence[np.ndarray], arrays: Arrays, removed: np.ndarray
    ) -> np.ndarray:
        return np.repeat(inputs[0], node.attributes["positions"])


class Unflatten(Operator):
    """As in squeeze-and-excitation with linear layers, whose gates become an image of one pixel."""

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        if len(inputs[0]) != 1:
            raise SlimdeployError(f"{node.name}: unflatten needs a vector, not an image")
        return (*inputs[0], 1, 1)

    def run(self, node: Node, *, inplace: bool) -> Callable[..., Any]:
        return _unflatten

    def write(self, node: Node, inputs: Sequence[str], to: OnnxNodes, arrays: Arrays, shape: Shape) -> str:
        target = to.constant(f"{node.name}.shape", np.array([-1, *shape, 1, 1], np.int64))
        return to.node("Reshape", [inputs[0], target], node.name)


def _unflatten(x: Any) -> Any:
    return x[:, :, None, None]


OPERATORS["flatten"] = Flatten()
OPERATORS["unflatten"] = Unflatten()
