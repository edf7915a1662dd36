"""`pad_channels`: channels of zeros before and after those of the input, as in ResNet's shortcuts without
weights (He et al., arXiv 1512.03385, option A).
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
    Ties,
    index,
    sides,
)

if TYPE_CHECKING:
    from slimdeploy.toolchain.networks.graph import Node


class PadChannels(Operator):
    """Attributes: before, after: numbers of channels of zeros."""

    attributes = MappingProxyType({"before": index, "after": index})

    def channels(self, node: Node, inputs: Sequence[int]) -> int:
        return sum(_margins(node)) + inputs[0]

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        channels, height, width = sides(node, inputs[0])
        return self.channels(node, [channels]), height, width

    def run(self, node: Node, *, inplace: bool) -> Callable[..., Any]:
        from torch.nn import functional

        return functools.partial(functional.pad, pad=[0, 0, 0, 0, *_margins(node)])

    def write(self, node: Node, inputs: Sequence[str], to: OnnxNodes, arrays: Arrays, shape: Shape) -> str:
        before, after = _margins(node)
        pads = to.constant(f"{node.name}.pads", np.array([0, before, 0, 0, 0, after, 0, 0], np.int64))
        return to.node("Pad", [inputs[0], pads], node.name)

    def spread(self, node: Node, inputs: Sequence[np.ndarray], ties: Ties) -> np.ndarray:
        before, after = map(ties.new, _margins(node))
        return np.concatenate([before, inputs[0], after])

    def cut(self, node: Node, inputs: Sequence[np.ndarray], output: np.ndarray) -> dict[str, Any]:
        before, after = _margins(node)
        return {"before": int(output[:before].sum()), "after": int(output[len(output) - after :].sum())}

    def constant(
        self, node: Node, inputs: Sequence[np.ndarray], arrays: Arrays, removed: np.ndarray
    ) -> np.ndarray:
        return np.pad(inputs[0], _margins(node))


def _margins(node: Node) -> tuple[int, int]:
    return int(node.attributes["before"]), int(node.attributes["after"])


OPERATORS["pad_channels"] = PadChannels()
