"""Arithmetic with an image: `plus_image`, `minus_image`, `multiply_by_image` and `divide_by_image` with a
parameter or buffer that has one value per pixel, such as a position embedding.
"""

from __future__ import annotations

import operator
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
    check_size,
    count,
    flag,
    sides,
)

if TYPE_CHECKING:
    from slimdeploy.toolchain.networks.graph import Node


def _shape(value: Any) -> bool:
    known = isinstance(value, list | tuple) and 1 <= len(value) <= 4 and all(map(count, value))
    return known and (len(value) < 4 or value[0] == 1)


class WithImage(Operator):
    """Attributes: shape, as in the original: (W,), (H, W), (C, H, W) or (1, C, H, W), where 1 stands for all;
    and trained. The node is named after the parameter or buffer.
    """

    attributes = MappingProxyType({"shape": _shape, "trained": flag})
    elementwise = True

    def __init__(self, onnx: str, function: Callable[[Any, Any], Any]) -> None:
        self.onnx, self.function = onnx, function

    def channels(self, node: Node, inputs: Sequence[int]) -> int:
        own = _of_image(node)[0]
        if own not in (1, inputs[0]):
            raise SlimdeployError(f"{node.name}: {own} channels of values for {inputs[0]} channels")
        return inputs[0]

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        channels, height, width = sides(node, inputs[0])
        _, rows, columns = _of_image(node)
        check_size(node, (height, width), (rows if rows > 1 else height, columns if columns > 1 else width))
        return channels, height, width

    def tensors(self, node: Node) -> dict[str, Tensor]:
        shape = tuple(node.attributes["shape"])
        axes = tuple("output" if i == len(shape) - 3 and n > 1 else "" for i, n in enumerate(shape))
        return {"": Tensor(shape, axes, trained=node.attributes["trained"])}

    def run(self, node: Node, *, inplace: bool) -> Callable[..., Any]:
        return self.function

    def write(self, node: Node, inputs: Sequence[str], to: OnnxNodes, arrays: Arrays, shape: Shape) -> str:
        values = to.constant(f"{node.name}.values", arrays[""].reshape(1, *_of_image(node)))
        return to.node(self.onnx, [inputs[0], values], node.name)

    def cut(self, node: Node, inputs: Sequence[np.ndarray], output: np.ndarray) -> dict[str, Any]:
        shape = list(node.attributes["shape"])
        if _of_image(node)[0] > 1:
            shape[-3] = int(output.sum())
        return {"shape": shape}

    def constant(
        self, node: Node, inputs: Sequence[np.ndarray], arrays: Arrays, removed: np.ndarray
    ) -> np.ndarray:
        values = arrays[""].reshape(_of_image(node)[0], -1)
        alike = np.where((values == values[:, :1]).all(1), values[:, 0], np.nan)
        zero = (inputs[0] == 0) & (self.onnx in ("Mul", "Div"))  # times any value
        return np.where(zero, 0.0, self.function(inputs[0], alike))


def _of_image(node: Node) -> tuple[int, int, int]:
    """(channels, height, width) of the values."""
    channels, height, width = (1, 1, *node.attributes["shape"])[-3:]
    return channels, height, width


OPERATORS["plus_image"] = WithImage("Add", operator.add)
OPERATORS["minus_image"] = WithImage("Sub", operator.sub)
OPERATORS["multiply_by_image"] = WithImage("Mul", operator.mul)
OPERATORS["divide_by_image"] = WithImage("Div", operator.truediv)
