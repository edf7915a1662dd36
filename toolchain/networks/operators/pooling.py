"""Pooling of channels: `max_pool`, `avg_pool`, `adaptive_avg_pool`, `adaptive_max_pool`, `global_max_pool`,
`global_norm`, `global_sum`, `axis_mean` and `axis_max`.
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
    check_size,
    flag,
    margin,
    pair,
    resampled,
    sides,
    steps,
    window,
)

if TYPE_CHECKING:
    from slimdeploy.toolchain.networks.graph import Node


class Pool(Operator):
    """Attributes: kernel, stride, padding (pairs), ceil; for `avg_pool` also count_padding."""

    attributes = MappingProxyType({"kernel": steps, "stride": steps, "padding": margin})
    optional = MappingProxyType({"ceil": flag, "count_padding": flag})

    def __init__(self, function: str, onnx: str) -> None:
        self.function, self.onnx = function, onnx

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        channels, *image = sides(node, inputs[0])
        for kernel, padding in zip(pair(node, "kernel"), pair(node, "padding"), strict=True):
            if 2 * padding > kernel:
                raise SlimdeployError(
                    f"{node.name}: padding {padding} is more than half of the kernel {kernel}"
                )
        parts = (pair(node, name) for name in ("kernel", "stride", "padding"))
        ceil = bool(node.attributes.get("ceil"))
        return (channels, *(window(*each, ceil=ceil) for each in zip(image, *parts, strict=True)))

    def run(self, node: Node, *, inplace: bool) -> Callable[..., Any]:
        from torch.nn import functional

        parts: dict[str, Any] = {name: pair(node, name) for name in ("stride", "padding")}
        if self.onnx == "AveragePool":
            parts["count_include_pad"] = bool(node.attributes.get("count_padding", True))
        return functools.partial(
            getattr(functional, self.function), kernel_size=pair(node, "kernel"),
            ceil_mode=bool(node.attributes.get("ceil")), **parts,
        )  # fmt: skip

    def write(self, node: Node, inputs: Sequence[str], to: OnnxNodes, arrays: Arrays, shape: Shape) -> str:
        # Windows beyond the border become padding at the end, not ceil_mode: onnx and onnxruntime disagree on
        # its output size, and onnxruntime divides the last means of an INT8 pooling by too much.
        kernel, stride, padding = (pair(node, name) for name in ("kernel", "stride", "padding"))
        output, image = self.shape(node, [shape])[1:], inputs[0]
        beyond = [
            max(0, (output[i] - 1) * stride[i] + kernel[i] - shape[i + 1] - 2 * padding[i]) for i in (0, 1)
        ]
        optional: dict[str, Any] = {}
        if self.onnx == "AveragePool":
            counted = bool(node.attributes.get("count_padding", True))
            if counted and any(beyond):  # the mean counts the padding, but nothing beyond it
                margins = np.array([0, 0, *padding, 0, 0, *padding], np.int64)
                image = to.node(
                    "Pad", [image, to.constant(f"{node.name}.pads", margins)], f"{node.name}.padded"
                )
                padding, counted = (0, 0), False
            optional["count_include_pad"] = int(counted)
        ends = [padding[i] + beyond[i] for i in (0, 1)]
        return to.node(
            self.onnx, [image], node.name, kernel_shape=list(kernel), strides=list(stride),
            pads=[*padding, *ends], **optional,
        )  # fmt: skip


class AdaptivePool(Operator):
    """Attribute: size, the sides of the output (a pair). Window i of n over a side s extends from ⌊i·s/n⌋ to
    ⌈(i+1)·s/n⌉, as in torch.
    """

    attributes = MappingProxyType({"size": steps})

    def __init__(self, function: str, onnx: str) -> None:
        self.function, self.onnx = function, onnx

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        return (sides(node, inputs[0])[0], *pair(node, "size"))

    def run(self, node: Node, *, inplace: bool) -> Callable[..., Any]:
        from torch.nn import functional

        return functools.partial(getattr(functional, self.function), output_size=pair(node, "size"))

    def write(self, node: Node, inputs: Sequence[str], to: OnnxNodes, arrays: Arrays, shape: Shape) -> str:
        wanted, image = pair(node, "size"), (shape[1], shape[2])
        if wanted == (1, 1):
            return to.node(f"Global{self.onnx}", inputs, node.name)
        if wanted == image:
            return inputs[0]
        if image[0] % wanted[0] or image[1] % wanted[1]:
            return self._unequal(node, inputs[0], to, image)
        kernel = [image[0] // wanted[0], image[1] // wanted[1]]
        return to.node(self.onnx, inputs, node.name, kernel_shape=kernel, strides=kernel, pads=[0, 0, 0, 0])

    def _unequal(self, node: Node, image: str, to: OnnxNodes, size: tuple[int, int]) -> str:
        """The ONNX nodes for windows of different sizes, over rows, then over columns."""
        raise NotImplementedError


class AdaptiveAveragePool(AdaptivePool):
    """Means of windows; those of different sizes are matrix products."""

    def _unequal(self, node: Node, image: str, to: OnnxNodes, size: tuple[int, int]) -> str:
        rows, columns = map(_means, size, pair(node, "size"))
        return resampled(node, image, to, rows, columns)


class AdaptiveMaxPool(AdaptivePool):
    """The largest values of windows."""

    def _unequal(self, node: Node, image: str, to: OnnxNodes, size: tuple[int, int]) -> str:
        for axis, side, count, last in zip(
            (2, 3), size, pair(node, "size"), (f"{node.name}.rows", node.name), strict=True
        ):
            along, parts = to.constant(f"{last}.axis", np.array([axis], np.int64)), []
            for i, ends in enumerate(_windows(side, count)):
                names = [to.constant(f"{last}.{i}.{end}", np.array([end], np.int64)) for end in ends]
                part = to.node("Slice", [image, *names, along], f"{last}.{i}")
                parts.append(to.reduce("ReduceMax", part, f"{last}.{i}.largest", [axis]))
            image = to.node("Concat", parts, last, axis=axis)
        return image


class GlobalMaxPool(Operator):
    """The largest value of each channel, (C, 1, 1)."""

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        return (sides(node, inputs[0])[0], 1, 1)

    def run(self, node: Node, *, inplace: bool) -> Callable[..., Any]:
        import torch

        return functools.partial(torch.amax, dim=(2, 3), keepdim=True)

    def write(self, node: Node, inputs: Sequence[str], to: OnnxNodes, arrays: Arrays, shape: Shape) -> str:
        return to.node("GlobalMaxPool", inputs, node.name)


class GlobalNorm(Operator):
    """The Euclidean norm of each channel, (C, 1, 1), as in ConvNeXt V2 (Woo et al., arXiv 2301.00808)."""

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        return (sides(node, inputs[0])[0], 1, 1)

    def run(self, node: Node, *, inplace: bool) -> Callable[..., Any]:
        import torch

        return functools.partial(torch.linalg.vector_norm, dim=(2, 3), keepdim=True)

    def write(self, node: Node, inputs: Sequence[str], to: OnnxNodes, arrays: Arrays, shape: Shape) -> str:
        return to.reduce("ReduceL2", inputs[0], node.name, [2, 3])

    def constant(
        self, node: Node, inputs: Sequence[np.ndarray], arrays: Arrays, removed: np.ndarray
    ) -> np.ndarray:
        return np.where(inputs[0] == 0, 0.0, np.nan)  # others depend on the size of the image


class GlobalSum(Operator):
    """The sum of each channel, (C, 1, 1). Attribute: size, the only one of the images that it takes: what the
    module computes of the sum may depend on it.
    """

    attributes = MappingProxyType({"size": steps})

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        channels, height, width = sides(node, inputs[0])
        check_size(node, (height, width), pair(node, "size"))
        return channels, 1, 1

    def run(self, node: Node, *, inplace: bool) -> Callable[..., Any]:
        import torch

        return functools.partial(torch.sum, dim=(2, 3), keepdim=True)

    def write(self, node: Node, inputs: Sequence[str], to: OnnxNodes, arrays: Arrays, shape: Shape) -> str:
        mean = to.node("GlobalAveragePool", inputs, f"{node.name}.mean")
        return to.node(
            "Mul", [mean, to.constant(f"{node.name}.pixels", np.float32(self._pixels(node)))], node.name
        )

    def constant(
        self, node: Node, inputs: Sequence[np.ndarray], arrays: Arrays, removed: np.ndarray
    ) -> np.ndarray:
        return inputs[0] * self._pixels(node)

    def _pixels(self, node: Node) -> int:
        height, width = pair(node, "size")
        return height * width


class AxisReduction(Operator):
    """One value for each row, (C, H, 1), or column, (C, 1, W): strip pooling (Hou et al., arXiv 2003.13328).
    Attribute: axis, the dimension that becomes 1.
    """

    attributes = MappingProxyType({"axis": lambda value: value in (2, 3)})

    def __init__(self, function: str, onnx: str) -> None:
        self.function, self.onnx = function, onnx

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        channels, height, width = sides(node, inputs[0])
        return (channels, 1, width) if node.attributes["axis"] == 2 else (channels, height, 1)

    def run(self, node: Node, *, inplace: bool) -> Callable[..., Any]:
        import torch

        return functools.partial(getattr(torch, self.function), dim=node.attributes["axis"], keepdim=True)

    def write(self, node: Node, inputs: Sequence[str], to: OnnxNodes, arrays: Arrays, shape: Shape) -> str:
        return to.reduce(self.onnx, inputs[0], node.name, [node.attributes["axis"]])


def _means(size: int, count: int) -> np.ndarray:
    """(count, size) float32: row i computes the mean of window i."""
    found = np.zeros((count, size), np.float32)
    for i, (start, end) in enumerate(_windows(size, count)):
        found[i, start:end] = 1 / (end - start)
    return found


def _windows(size: int, count: int) -> list[tuple[int, int]]:
    """Start and end of each of `count` windows over a side."""
    return [(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]


OPERATORS["max_pool"] = Pool("max_pool2d", "MaxPool")
OPERATORS["avg_pool"] = Pool("avg_pool2d", "AveragePool")
OPERATORS["adaptive_avg_pool"] = AdaptiveAveragePool("adaptive_avg_pool2d", "AveragePool")
OPERATORS["adaptive_max_pool"] = AdaptiveMaxPool("adaptive_max_pool2d", "MaxPool")
OPERATORS["global_max_pool"] = GlobalMaxPool()
OPERATORS["global_norm"] = GlobalNorm()
OPERATORS["global_sum"] = GlobalSum()
OPERATORS["axis_mean"] = AxisReduction("mean", "ReduceMean")
OPERATORS["axis_max"] = AxisReduction("amax", "ReduceMax")
