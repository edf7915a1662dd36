"""`crop`: an image without pixels at its sides."""

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
    check_size,
    pair,
    sides,
    steps,
)
from slimdeploy.toolchain.networks.operators.padding import margins

if TYPE_CHECKING:
    from slimdeploy.toolchain.networks.graph import Node


class Crop(Operator):
    """Attributes: margins: left, right, top, bottom, in pixels; size, if they are for one size only."""

    attributes = MappingProxyType({"margins": margins})
    optional = MappingProxyType({"size": steps})

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        channels, height, width = sides(node, inputs[0])
        if "size" in node.attributes:
            check_size(node, (height, width), pair(node, "size"))
        left, right, top, bottom = node.attributes["margins"]
        return channels, height - top - bottom, width - left - right

    def run(self, node: Node, *, inplace: bool) -> Callable[..., Any]:
        return functools.partial(_crop, margins=tuple(node.attributes["margins"]))

    def write(self, node: Node, inputs: Sequence[str], to: OnnxNodes, arrays: Arrays, shape: Shape) -> str:
        left, right, top, bottom = node.attributes["margins"]
        ends = [top, left], [shape[1] - bottom, shape[2] - right], [2, 3]
        names = [
            to.constant(f"{node.name}.{name}", np.array(values, np.int64))
            for name, values in zip(("start", "stop", "axes"), ends, strict=True)
        ]
        return to.node("Slice", [inputs[0], *names], node.name)


def _crop(x: Any, *, margins: tuple[int, int, int, int]) -> Any:
    left, right, top, bottom = margins
    return x[:, :, top : x.shape[2] - bottom, left : x.shape[3] - right]


OPERATORS["crop"] = Crop()
