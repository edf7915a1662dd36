"""`add`, `multiply`, `divide`, `maximum`, `minimum` and `where`: element-wise. An input with one channel, row
or column is repeated for all of the others.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
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
    equal_channels,
)

if TYPE_CHECKING:
    from slimdeploy.toolchain.networks.graph import Node


class Elementwise(Operator):
    """Ties the channels of its inputs: they must be removed together. A single channel, which is repeated for
    those of the others, is kept.
    """

    arity: tuple[int, int | None] = (2, None)
    elementwise = True

    def __init__(self, onnx: str, function: Callable[..., Any], *, summed: bool) -> None:
        self.onnx, self.function, self.summed = onnx, function, summed

    def channels(self, node: Node, inputs: Sequence[int]) -> int:
        return equal_channels(node, [count for count in inputs if count > 1] or [1])

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        if len({len(shape) for shape in inputs}) == 1:
            largest = tuple(map(max, zip(*inputs, strict=True)))
            if all(n in (1, most) for shape in inputs for n, most in zip(shape, largest, strict=True)):
                return largest
        raise SlimdeployError(f"{node.name}: {node.operator} of {' and '.join(map(str, inputs))}")

    def run(self, node: Node, *, inplace: bool) -> Callable[..., Any]:
        return self._fold if len(node.inputs) > 2 else self.function

    def write(self, node: Node, inputs: Sequence[str], to: OnnxNodes, arrays: Arrays, shape: Shape) -> str:
        *first, last = inputs
        left = functools.reduce(
            lambda x, part: to.node(self.onnx, [x, part[1]], f"{node.name}.{part[0]}"),
            enumerate(first[1:], start=1),
            first[0],
        )
        return to.node(self.onnx, [left, last], node.name)

    def spread(self, node: Node, inputs: Sequence[np.ndarray], ties: Ties) -> np.ndarray:
        first, *others = sorted(inputs, key=len, reverse=True)
        for other in others:
            if len(other) == len(first):
                ties.tie(first, other, summed=self.summed)
            else:
                ties.fix(other)
        return first

    def constant(
        self, node: Node, inputs: Sequence[np.ndarray], arrays: Arrays, removed: np.ndarray
    ) -> np.ndarray:
        return np.asarray(self._fold(*inputs))

    def _fold(self, *values: Any) -> Any:
        return functools.reduce(self.function, values)


class Product(Elementwise):
    def constant(
        self, node: Node, inputs: Sequence[np.ndarray], arrays: Arrays, removed: np.ndarray
    ) -> np.ndarray:
        zero = np.any(np.broadcast_arrays(*[values == 0 for values in inputs]), axis=0)
        return np.where(zero, 0.0, super().constant(node, inputs, arrays, removed))  # 0 times any value


class Division(Elementwise):
    arity = (2, 2)

    def constant(
        self, node: Node, inputs: Sequence[np.ndarray], arrays: Arrays, removed: np.ndarray
    ) -> np.ndarray:
        dividend, divisor = np.broadcast_arrays(*inputs)
        quotient = dividend / np.where(divisor == 0, np.nan, divisor)
        return np.where((dividend == 0) & (divisor != 0), 0.0, quotient)


class Where(Elementwise):
    """The second input where the first one is above 0.5, else the third."""

    arity = (3, 3)

    def write(self, node: Node, inputs: Sequence[str], to: OnnxNodes, arrays: Arrays, shape: Shape) -> str:
        half = to.constant(f"{node.name}.half", np.float32(0.5))
        mask = to.node("Greater", [inputs[0], half], f"{node.name}.mask")
        return to.node("Where", [mask, *inputs[1:]], node.name)

    def _fold(self, *values: Any) -> Any:
        return where(*values)


def where(mask: Any, a: Any, b: Any) -> Any:
    if isinstance(mask, np.ndarray):  # NaN marks values that are not constant
        return np.where(np.isnan(mask), np.nan, np.where(mask > 0.5, a, b))
    return a.where(mask > 0.5, b)


def maximum(a: Any, b: Any) -> Any:
    return np.maximum(a, b) if isinstance(a, np.ndarray) else a.maximum(b)


def minimum(a: Any, b: Any) -> Any:
    return np.minimum(a, b) if isinstance(a, np.ndarray) else a.minimum(b)


OPERATORS["add"] = Elementwise("Add", operator.add, summed=True)
OPERATORS["multiply"] = Product("Mul", operator.mul, summed=False)
OPERATORS["divide"] = Division("Div", operator.truediv, summed=False)
OPERATORS["maximum"] = Elementwise("Max", maximum, summed=False)
OPERATORS["minimum"] = Elementwise("Min", minimum, summed=False)
OPERATORS["where"] = Where("Where", where, summed=False)
