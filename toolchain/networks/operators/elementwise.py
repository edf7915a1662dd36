"""`add` and `multiply`: element-wise, for inputs with equal channels; one of them may be 1×1."""

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
)

if TYPE_CHECKING:
    from slimdeploy.toolchain.networks.graph import Node


class Elementwise(Operator):
    """Ties the channels of its inputs: they must be removed together."""

    arity = (2, None)
    elementwise = True

    def __init__(self, onnx: str, function: Callable[[Any, Any], Any], *, summed: bool) -> None:
        self.onnx, self.function, self.summed = onnx, function, summed

    def channels(self, node: Node, inputs: Sequence[int]) -> int:
        if len(set(inputs)) > 1:
            counts = " and ".join(map(str, inputs))
            raise SlimdeployError(f"{node.name}: {node.operator} needs equal channels, not {counts}")
        return inputs[0]

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        largest = max(inputs)
        for shape in inputs:
            if shape != largest and (len(shape) != len(largest) or shape[1:] != (1, 1)):
                raise SlimdeployError(f"{node.name}: {node.operator} of {largest} and {shape}")
        return largest

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
        for other in inputs[1:]:
            ties.tie(inputs[0], other, summed=self.summed)
        return inputs[0]

    def constant(
        self, node: Node, inputs: Sequence[np.ndarray], arrays: Arrays, removed: np.ndarray
    ) -> np.ndarray:
        found = np.asarray(self._fold(*inputs))
        if not self.summed:  # 0 times any value
            found = np.where(np.any([value == 0 for value in inputs], axis=0), 0.0, found)
        return found

    def _fold(self, *values: Any) -> Any:
        return functools.reduce(self.function, values)


OPERATORS["add"] = Elementwise("Add", operator.add, summed=True)
OPERATORS["multiply"] = Elementwise("Mul", operator.mul, summed=False)
