"""`upsample`: images enlarged by whole factors, by blocks of equal pixels or bilinear interpolation."""

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
    flag,
    pair,
    sides,
    steps,
)

if TYPE_CHECKING:
    from slimdeploy.toolchain.networks.graph import Node


class Upsample(Operator):
    """Attributes: factor, vertical and horizontal; for bilinear interpolation also align_corners, as in
    torch.
    """

    attributes = MappingProxyType({"factor": steps})
    optional = MappingProxyType({"align_corners": flag})

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        channels, height, width = sides(node, inputs[0])
        down, across = pair(node, "factor")
        return channels, height * down, width * across

    def run(self, node: Node, *, inplace: bool) -> Callable[..., Any]:
        from torch.nn import functional

        mode: dict[str, Any] = {"mode": "nearest"}
        if "align_corners" in node.attributes:
            mode = {"mode": "bilinear", "align_corners": node.attributes["align_corners"]}
        return functools.partial(functional.interpolate, scale_factor=pair(node, "factor"), **mode)

    def write(self, node: Node, inputs: Sequence[str], to: OnnxNodes, arrays: Arrays, shape: Shape) -> str:
        """Resize isn't used: its scales are float32 constants, which a conversion to FP16 must not touch."""
        (channels, height, width), (down, across) = sides(node, shape), pair(node, "factor")
        x, corners = inputs[0], node.attributes.get("align_corners")
        if corners is not None:  # over columns, then over rows, each as a matrix product
            columns = to.constant(f"{node.name}.columns", _bilinear(width, across, corners).T.copy())
            rows = to.constant(f"{node.name}.rows", _bilinear(height, down, corners))
            return to.node(
                "MatMul", [rows, to.node("MatMul", [x, columns], f"{node.name}.across")], node.name
            )
        for operator, name, wanted in (
            ("Reshape", f"{node.name}.pixels", [-1, channels, height, 1, width, 1]),
            ("Expand", f"{node.name}.blocks", [1, 1, 1, down, 1, across]),
            ("Reshape", node.name, [-1, channels, height * down, width * across]),
        ):
            x = to.node(operator, [x, to.constant(f"{name}.shape", np.array(wanted, np.int64))], name)
        return x


def _bilinear(size: int, factor: int, corners: bool) -> np.ndarray:
    """(size·factor, size) float32: row i computes pixel i of the enlarged side."""
    count = size * factor
    places = np.arange(count)
    if corners:
        sources = places * ((size - 1) / max(1, count - 1))
    else:
        sources = np.maximum((places + 0.5) / factor - 0.5, 0)
    first = np.minimum(sources.astype(int), size - 1)
    second, share = np.minimum(first + 1, size - 1), sources - first
    found = np.zeros((count, size))
    found[places, first] += 1 - share
    found[places, second] += share
    return found.astype(np.float32)


OPERATORS["upsample"] = Upsample()
