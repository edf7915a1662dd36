"""`upsample`: images enlarged by whole factors; `resize`: images of one size brought to another one. Both by
the nearest pixels or bilinear interpolation.
"""

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
    flag,
    pair,
    resampled,
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

        return functools.partial(functional.interpolate, scale_factor=pair(node, "factor"), **_mode(node))

    def write(self, node: Node, inputs: Sequence[str], to: OnnxNodes, arrays: Arrays, shape: Shape) -> str:
        """Resize isn't used: its scales are float32 constants, which a conversion to FP16 must not touch."""
        (channels, height, width), (down, across) = sides(node, shape), pair(node, "factor")
        x = inputs[0]
        if "align_corners" in node.attributes:
            return _interpolated(node, x, to, (height, width), (height * down, width * across))
        for operator, name, wanted in (
            ("Reshape", f"{node.name}.pixels", [-1, channels, height, 1, width, 1]),
            ("Expand", f"{node.name}.blocks", [1, 1, 1, down, 1, across]),
            ("Reshape", node.name, [-1, channels, height * down, width * across]),
        ):
            x = to.node(operator, [x, to.constant(f"{name}.shape", np.array(wanted, np.int64))], name)
        return x


class Resize(Operator):
    """Attributes: size, the only one of the images that it takes, and to, their new size, both as (height,
    width); for bilinear interpolation also align_corners, as in torch.
    """

    attributes = MappingProxyType({"size": steps, "to": steps})
    optional = MappingProxyType({"align_corners": flag})

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        channels, height, width = sides(node, inputs[0])
        check_size(node, (height, width), pair(node, "size"))
        return channels, *pair(node, "to")

    def run(self, node: Node, *, inplace: bool) -> Callable[..., Any]:
        from torch.nn import functional

        return functools.partial(functional.interpolate, size=pair(node, "to"), **_mode(node))

    def write(self, node: Node, inputs: Sequence[str], to: OnnxNodes, arrays: Arrays, shape: Shape) -> str:
        return _interpolated(node, inputs[0], to, pair(node, "size"), pair(node, "to"))


def _mode(node: Node) -> dict[str, Any]:
    """The mode as keywords of torch's interpolate."""
    if "align_corners" in node.attributes:
        return {"mode": "bilinear", "align_corners": node.attributes["align_corners"]}
    return {"mode": "nearest"}


def _interpolated(
    node: Node, image: str, to: OnnxNodes, before: tuple[int, int], after: tuple[int, int]
) -> str:
    """The ONNX nodes that resize an image."""
    rows, columns = (_weights(node, *sizes) for sizes in zip(before, after, strict=True))
    return resampled(node, image, to, rows, columns)


def _weights(node: Node, size: int, count: int) -> np.ndarray:
    """(count, size) float32: row i computes pixel i of a side of `count` pixels from one of `size`."""
    corners, places, found = node.attributes.get("align_corners"), np.arange(count), np.zeros((count, size))
    if corners is None:  # in float32, as torch
        sources = places.astype(np.float32) * (np.float32(size) / np.float32(count))
        found[places, np.minimum(sources.astype(int), size - 1)] = 1
        return found.astype(np.float32)
    if corners:
        exact = places * ((size - 1) / max(1, count - 1))
    else:
        exact = np.maximum((places + 0.5) * size / count - 0.5, 0)
    first = np.minimum(exact.astype(int), size - 1)
    second, share = np.minimum(first + 1, size - 1), exact - first
    found[places, first] += 1 - share
    found[places, second] += share
    return found.astype(np.float32)


OPERATORS["upsample"] = Upsample()
OPERATORS["resize"] = Resize()
