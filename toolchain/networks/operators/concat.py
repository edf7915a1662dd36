"""`concat`: concatenation along the channels."""

from __future__ import annotations

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


class Concat(Operator):
    arity = (1, None)

    def channels(self, node: Node, inputs: Sequence[int]) -> int:
        return sum(inputs)

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        if len({shape[1:] for shape in inputs}) > 1:
            raise SlimdeployError(f"{node.name}: concat of {' and '.join(map(str, inputs))}")
        return (sum(shape[0] for shape in inputs), *inputs[0][1:])

    def run(self, node: Node, *, inplace: bool) -> Callable[..., Any]:
        return _concat

    def write(self, node: Node, inputs: Sequence[str], to: OnnxNodes, arrays: Arrays, shape: Shape) -> str:
        return to.node("Concat", inputs, node.name, axis=1)

    def spread(self, node: Node, inputs: Sequence[np.ndarray], ties: Ties) -> np.ndarray:
        return np.concatenate(inputs)

    def constant(
        self, node: Node, inputs: Sequence[np.ndarray], arrays: Arrays, removed: np.ndarray
    ) -> np.ndarray:
        return np.concatenate(inputs)


def _concat(*values: Any) -> Any:
    import torch

    return torch.cat(values, 1)


OPERATORS["concat"] = Concat()
