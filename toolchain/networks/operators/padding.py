"""`pad`: zeros around an image, with separate margins for each side."""

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
    index,
    sides,
)

if TYPE_CHECKING:
    from slimdeploy.toolchain.networks.graph import Node


def _margins(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 4 and all(map(index, value))


class Pad(Operator):
    """Attribute: margins: left, right, top, bottom, in pixels."""

    attributes = MappingProxyType({"margins": _margins})

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        (channels, height, width), (left, right, top, bottom) = (
            sides(node, inputs[0]),
            node.attributes["margins"],
        )
        return channels, height + top + bottom, width + left + right

    def run(self, node: Node, *, inplace: bool) -> Callable[..., Any]:
        from torch.nn import functional

        return functools.partial(functional.pad, pad=list(node.attributes["margins"]))

    def write(self, node: Node, inputs: Sequence[str], to: OnnxNodes, arrays: Arrays, shape: Shape) -> str:
        left, right, top, bottom = node.attributes["margins"]
        pads = to.constant(f"{node.name}.pads", np.array([0, 0, top, left, 0, 0, bottom, right], np.int64))
        return to.node("Pad", [inputs[0], pads], node.name)


OPERATORS["pad"] = Pad()
