"""Arithmetic with constants: `multiply_by`, `divide_by`, `plus`, `minus`, `power_by`, `at_least` and
`at_most` with a parameter or buffer that has one value per channel, and `affine` with two numbers.
"""

from __future__ import annotations

import functools
import math
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
    count,
    flag,
    signed,
)
from slimdeploy.toolchain.networks.operators.elementwise import maximum, minimum

if TYPE_CHECKING:
    from slimdeploy.toolchain.networks.graph import Node


def _shape(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(map(count, value)) and sum(n > 1 for n in value) <= 1


class WithTensor(Operator):
    """Attributes: shape, as in the original, with one value per channel or one for all; trained. The node is
    named after the parameter or buffer.
    """

    attributes = MappingProxyType({"shape": _shape, "trained": flag})
    elementwise = True

    def __init__(self, onnx: str, function: Callable[[Any, Any], Any]) -> None:
        self.onnx, self.function = onnx, function

    def channels(self, node: Node, inputs: Sequence[int]) -> int:
        values = math.prod(node.attributes["shape"])
        if values not in (1, inputs[0]):
            raise SlimdeployError(f"{node.name}: {values} values for {inputs[0]} channels")
        return inputs[0]

    def tensors(self, node: Node) -> dict[str, Tensor]:
        a = node.attributes
        axes = tuple("output" if n > 1 else "" for n in a["shape"])
        return {"": Tensor(tuple(a["shape"]), axes, trained=a["trained"])}

    def run(self, node: Node, *, inplace: bool) -> Callable[..., Any]:
        return functools.partial(_by_channel, function=self.function)

    def write(self, node: Node, inputs: Sequence[str], to: OnnxNodes, arrays: Arrays, shape: Shape) -> str:
        values = arrays[""].reshape(1, -1, *[1] * (len(shape) - 1))
        return to.node(self.onnx, [inputs[0], to.constant(f"{node.name}.values", values)], node.name)

    def cut(self, node: Node, inputs: Sequence[np.ndarray], output: np.ndarray) -> dict[str, Any]:
        return {"shape": [int(output.sum()) if n > 1 else 1 for n in node.attributes["shape"]]}

    def constant(
        self, node: Node, inputs: Sequence[np.ndarray], arrays: Arrays, removed: np.ndarray
    ) -> np.ndarray:
        with np.errstate(invalid="ignore"):  # a power of a negative number
            return np.asarray(self.function(inputs[0], arrays[""].reshape(-1)))


class Affine(Operator):
    """Attributes: factor, offset. x·factor + offset."""

    attributes = MappingProxyType({"factor": signed, "offset": signed})
    elementwise = True

    def run(self, node: Node, *, inplace: bool) -> Callable[..., Any]:
        return functools.partial(_affine, **node.attributes)

    def write(self, node: Node, inputs: Sequence[str], to: OnnxNodes, arrays: Arrays, shape: Shape) -> str:
        factor, offset = (
            to.constant(f"{node.name}.{n}", np.float32(node.attributes[n])) for n in ("factor", "offset")
        )
        x = to.node("Mul", [inputs[0], factor], f"{node.name}.scaled")
        return to.node("Add", [x, offset], node.name)

    def constant(
        self, node: Node, inputs: Sequence[np.ndarray], arrays: Arrays, removed: np.ndarray
    ) -> np.ndarray:
        return np.asarray(_affine(inputs[0], **node.attributes))


def _by_channel(x: Any, values: Any, *, function: Callable[[Any, Any], Any]) -> Any:
    return function(x, values.reshape(-1, *[1] * (x.dim() - 2)))


def _affine(x: Any, *, factor: float, offset: float) -> Any:
    return x * factor + offset


OPERATORS["multiply_by"] = WithTensor("Mul", operator.mul)
OPERATORS["divide_by"] = WithTensor("Div", operator.truediv)
OPERATORS["plus"] = WithTensor("Add", operator.add)
OPERATORS["minus"] = WithTensor("Sub", operator.sub)
OPERATORS["power_by"] = WithTensor("Pow", operator.pow)
OPERATORS["at_least"] = WithTensor("Max", maximum)
OPERATORS["at_most"] = WithTensor("Min", minimum)
OPERATORS["affine"] = Affine()
