"""`flatten`: an image to a vector; each channel becomes one value per pixel."""

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


OPERATORS["flatten"] = Flatten()
