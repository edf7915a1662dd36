"""`upsample`: each pixel repeated in a block of pixels: nearest-neighbour interpolation by whole factors."""

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
    pair,
    sides,
    steps,
)

if TYPE_CHECKING:
    from slimdeploy.toolchain.networks.graph import Node


class Upsample(Operator):
    """Attribute: factor, vertical and horizontal."""

    attributes = MappingProxyType({"factor": steps})

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        channels, height, width = sides(node, inputs[0])
        down, across = pair(node, "factor")
        return channels, height * down, width * across

    def run(self, node: Node, *, inplace: bool) -> Callable[..., Any]:
        from torch.nn import functional

        return functools.partial(functional.interpolate, scale_factor=pair(node, "factor"), mode="nearest")

    def write(self, node: Node, inputs: Sequence[str], to: OnnxNodes, arrays: Arrays, shape: Shape) -> str:
        """Resize isn't used: its scales are float32 constants, which a conversion to FP16 must not touch."""
        (channels, height, width), (down, across) = sides(node, shape), pair(node, "factor")
        x = inputs[0]
        for operator, name, wanted in (
            ("Reshape", f"{node.name}.pixels", [-1, channels, height, 1, width, 1]),
            ("Expand", f"{node.name}.blocks", [1, 1, 1, down, 1, across]),
            ("Reshape", node.name, [-1, channels, height * down, width * across]),
        ):
            x = to.node(operator, [x, to.constant(f"{name}.shape", np.array(wanted, np.int64))], name)
        return x


OPERATORS["upsample"] = Upsample()
