"""`slice` and `channel_shuffle`: select channels, and reorder channels (ShuffleNet, Ma et al., arXiv
1807.11164).
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
    Ties,
    count,
    index,
    sides,
)

if TYPE_CHECKING:
    from slimdeploy.toolchain.networks.graph import Node


class Slice(Operator):
    """Attributes: start, stop: the range of channels."""

    attributes = MappingProxyType({"start": index, "stop": count})

    def channels(self, node: Node, inputs: Sequence[int]) -> int:
        start, stop = node.attributes["start"], node.attributes["stop"]
        if not 0 <= start < stop <= inputs[0]:
            raise SlimdeployError(f"{node.name}: channels {start} to {stop} of {inputs[0]}")
        return int(stop - start)

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        return (self.channels(node, [inputs[0][0]]), *inputs[0][1:])

    def run(self, node: Node, *, inplace: bool) -> Callable[..., Any]:
        start, stop = node.attributes["start"], node.attributes["stop"]
        return functools.partial(_slice, start=start, stop=stop)

    def write(self, node: Node, inputs: Sequence[str], to: OnnxNodes, arrays: Arrays, shape: Shape) -> str:
        ends = [
            to.constant(f"{node.name}.{name}", np.array([value], np.int64))
            for name, value in (("start", node.attributes["start"]), ("stop", node.attributes["stop"]))
        ]
        axis = to.constant("slice.axis", np.array([1], np.int64))
        return to.node("Slice", [inputs[0], *ends, axis], node.name)

    def spread(self, node: Node, inputs: Sequence[np.ndarray], ties: Ties) -> np.ndarray:
        return inputs[0][node.attributes["start"] : node.attributes["stop"]]

    def cut(self, node: Node, inputs: Sequence[np.ndarray], output: np.ndarray) -> dict[str, Any]:
        start = int(inputs[0][: node.attributes["start"]].sum())
        return {"start": start, "stop": start + int(output.sum())}

    def constant(
        self, node: Node, inputs: Sequence[np.ndarray], arrays: Arrays, removed: np.ndarray
    ) -> np.ndarray:
        return inputs[0][node.attributes["start"] : node.attributes["stop"]]


class ChannelShuffle(Operator):
    """Attribute: groups. Channel j of group i becomes channel i of block j. The channels of a block are
    removed together, so that the result is a shuffle again.
    """

    attributes = MappingProxyType({"groups": count})

    def channels(self, node: Node, inputs: Sequence[int]) -> int:
        if inputs[0] % node.attributes["groups"]:
            raise SlimdeployError(f"{node.name}: {inputs[0]} channels in {node.attributes['groups']} groups")
        return inputs[0]

    def run(self, node: Node, *, inplace: bool) -> Callable[..., Any]:
        return functools.partial(_shuffle, groups=int(node.attributes["groups"]))

    def write(self, node: Node, inputs: Sequence[str], to: OnnxNodes, arrays: Arrays, shape: Shape) -> str:
        groups, (channels, height, width) = node.attributes["groups"], sides(node, shape)
        apart = to.constant(
            f"{node.name}.apart", np.array([-1, groups, channels // groups, height, width], np.int64)
        )
        whole = to.constant(f"{node.name}.whole", np.array([-1, channels, height, width], np.int64))
        x = to.node("Reshape", [inputs[0], apart], f"{node.name}.groups")
        x = to.node("Transpose", [x], f"{node.name}.transpose", perm=[0, 2, 1, 3, 4])
        return to.node("Reshape", [x, whole], node.name)

    def spread(self, node: Node, inputs: Sequence[np.ndarray], ties: Ties) -> np.ndarray:
        by_group = inputs[0].reshape(node.attributes["groups"], -1)
        for other in by_group[1:]:
            ties.tie(by_group[0], other)
        return by_group.T.ravel()

    def constant(
        self, node: Node, inputs: Sequence[np.ndarray], arrays: Arrays, removed: np.ndarray
    ) -> np.ndarray:
        return inputs[0].reshape(node.attributes["groups"], -1).T.ravel()


def _slice(x: Any, *, start: int, stop: int) -> Any:
    return x[:, start:stop]


def _shuffle(x: Any, *, groups: int) -> Any:
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


OPERATORS["slice"] = Slice()
OPERATORS["channel_shuffle"] = ChannelShuffle()
