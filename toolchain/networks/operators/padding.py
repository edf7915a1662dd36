"""`pad`: zeros or the image's own pixels around it, with separate margins for each side."""

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


MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}
"""torch's name of a mode -> ONNX's."""


def margins(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 4 and all(map(index, value))


def _mode(value: Any) -> bool:
    return isinstance(value, str) and value in MODES


class Pad(Operator):
    """Attributes: margins: left, right, top, bottom, in pixels; and mode: `constant` (zeros, the default),
    `reflect` or `replicate`.
    """

    attributes = MappingProxyType({"margins": margins})
    optional = MappingProxyType({"mode": _mode})

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        (channels, height, width), (left, right, top, bottom) = (
            sides(node, inputs[0]),
            node.attributes["margins"],
        )
        if pad_mode(node) == "reflect" and (max(left, right) >= width or max(top, bottom) >= height):
            return channels, 0, 0  # only the pixels next to the border one can be reflected
        return channels, height + top + bottom, width + left + right

    def run(self, node: Node, *, inplace: bool) -> Callable[..., Any]:
        from torch.nn import functional

        return functools.partial(functional.pad, pad=list(node.attributes["margins"]), mode=pad_mode(node))

    def write(self, node: Node, inputs: Sequence[str], to: OnnxNodes, arrays: Arrays, shape: Shape) -> str:
        left, right, top, bottom = node.attributes["margins"]
        pads = to.constant(f"{node.name}.pads", np.array([0, 0, top, left, 0, 0, bottom, right], np.int64))
        mode = MODES[pad_mode(node)]
        return to.node("Pad", [inputs[0], pads], node.name, **({} if mode == "constant" else {"mode": mode}))


def pad_mode(node: Node) -> str:
    """The mode of a `pad`, which files of earlier versions don't have."""
    return str(node.attributes.get("mode", "constant"))


OPERATORS["pad"] = Pad()
