"""`fixed_filter`: each channel convolved with a filter that isn't trained, e.g. the blur of anti-aliased
networks (Zhang, arXiv 1904.11486).
"""

from __future__ import annotations

import functools
import math
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
    Tensor,
    count,
    margin,
    pair,
    sides,
    steps,
    window,
)

if TYPE_CHECKING:
    from slimdeploy.toolchain.networks.graph import Node


def _shape(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and all(map(count, value))


class FixedFilter(Operator):
    """Attributes: shape, as in the original, with one kernel for all channels or one for each along the first
    dimension; kernel, stride, padding. The node is named after the buffer.
    """

    attributes = MappingProxyType({"shape": _shape, "kernel": steps, "stride": steps, "padding": margin})

    def channels(self, node: Node, inputs: Sequence[int]) -> int:
        values, each = math.prod(node.attributes["shape"]), math.prod(pair(node, "kernel"))
        if values not in (each, each * inputs[0]):
            raise SlimdeployError(f"{node.name}: {values} values for {inputs[0]} channels")
        return inputs[0]

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        channels, *image = sides(node, inputs[0])
        parts = (pair(node, name) for name in ("kernel", "stride", "padding"))
        return (channels, *(window(*each) for each in zip(image, *parts, strict=True)))

    def tensors(self, node: Node) -> dict[str, Tensor]:
        shape = tuple(node.attributes["shape"])
        axes = ("output" if self._by_channel(node) else "",) + ("",) * (len(shape) - 1)
        return {"": Tensor(shape, axes, trained=False)}

    def macs(self, node: Node, output: Shape) -> int:
        return math.prod(pair(node, "kernel")) * math.prod(output)

    def run(self, node: Node, *, inplace: bool) -> Callable[..., Any]:
        return functools.partial(
            _filtered, kernel=pair(node, "kernel"), stride=pair(node, "stride"), padding=pair(node, "padding")
        )

    def write(self, node: Node, inputs: Sequence[str], to: OnnxNodes, arrays: Arrays, shape: Shape) -> str:
        channels, kernel = shape[0], pair(node, "kernel")
        weight = np.broadcast_to(arrays[""].reshape(-1, 1, *kernel), (channels, 1, *kernel)).copy()
        return to.node(
            "Conv", [inputs[0], to.constant(f"{node.name}.filters", weight)], node.name, group=channels,
            kernel_shape=list(kernel), strides=list(pair(node, "stride")), pads=[*pair(node, "padding")] * 2,
        )  # fmt: skip

    def cut(self, node: Node, inputs: Sequence[np.ndarray], output: np.ndarray) -> dict[str, Any]:
        shape = list(node.attributes["shape"])
        return {"shape": [int(output.sum()), *shape[1:]]} if self._by_channel(node) else {}

    def constant(
        self, node: Node, inputs: Sequence[np.ndarray], arrays: Arrays, removed: np.ndarray
    ) -> np.ndarray:
        each = math.prod(pair(node, "kernel"))
        return np.asarray(inputs[0] * arrays[""].astype(np.float64).reshape(-1, each).sum(1))

    def _by_channel(self, node: Node) -> bool:
        return math.prod(node.attributes["shape"]) > math.prod(pair(node, "kernel"))


def _filtered(x: Any, filters: Any, *, kernel: Any, stride: Any, padding: Any) -> Any:
    from torch.nn import functional

    channels = x.shape[1]
    weight = filters.reshape(-1, 1, *kernel).expand(channels, 1, *kernel)
    return functional.conv2d(x, weight, None, stride, padding, groups=channels)


OPERATORS["fixed_filter"] = FixedFilter()
