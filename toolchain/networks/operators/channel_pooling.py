"""`channel_avg_pool`: means of adjacent channels, as in local response normalisation (Krizhevsky et al.,
ImageNet Classification with Deep Convolutional Neural Networks, section 3.3).
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
    count,
    index,
    sides,
)

if TYPE_CHECKING:
    from slimdeploy.toolchain.networks.graph import Node


def _positions(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(map(index, value))


class ChannelAveragePool(Operator):
    """Channel c becomes the sum of the channels from c − ⌊window/2⌋ to c + ⌊(window − 1)/2⌋, divided by
    `window`.

    `positions` are those of the channels before pruning (default: 0, 1, …): the others don't move closer
    together, so a channel of zeros can be removed and nothing changes.
    """

    attributes = MappingProxyType({"window": count})
    optional = MappingProxyType({"positions": _positions})
    sums_channels = True

    def channels(self, node: Node, inputs: Sequence[int]) -> int:
        given = node.attributes.get("positions")
        if given is not None and len(given) != inputs[0]:
            raise SlimdeployError(f"{node.name}: {len(given)} positions for {inputs[0]} channels")
        return inputs[0]

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        return sides(node, inputs[0])

    def run(self, node: Node, *, inplace: bool) -> Callable[..., Any]:
        return functools.partial(_pooled, node=node)

    def write(self, node: Node, inputs: Sequence[str], to: OnnxNodes, arrays: Arrays, shape: Shape) -> str:
        """As a matrix product, which stays in float if the convolutions are quantised."""
        channels, height, width = sides(node, shape)
        weights = to.constant(f"{node.name}.weights", _weights(node, channels))
        flat = to.constant(f"{node.name}.flat", np.array([-1, channels, height * width], np.int64))
        image = to.constant(f"{node.name}.image", np.array([-1, channels, height, width], np.int64))
        pixels = to.node("Reshape", [inputs[0], flat], f"{node.name}.pixels")
        means = to.node("MatMul", [weights, pixels], f"{node.name}.means")
        return to.node("Reshape", [means, image], node.name)

    def cut(self, node: Node, inputs: Sequence[np.ndarray], output: np.ndarray) -> dict[str, Any]:
        positions = np.asarray(node.attributes.get("positions", range(len(output))))
        return {} if output.all() else {"positions": positions[output].tolist()}

    def constant(
        self, node: Node, inputs: Sequence[np.ndarray], arrays: Arrays, removed: np.ndarray
    ) -> np.ndarray:
        weights = _weights(node, len(removed)).astype(np.float64)
        return np.asarray(np.where(weights > 0, weights * inputs[0], 0.0).sum(1))


def _weights(node: Node, channels: int) -> np.ndarray:
    """(channels, channels) float32: row c computes channel c of the output."""
    window = node.attributes["window"]
    positions = np.asarray(node.attributes.get("positions", range(channels)))
    distance = positions - positions[:, None]  # of each input channel to each output channel
    inside = (distance >= -(window // 2)) & (distance <= (window - 1) // 2)
    return (inside / window).astype(np.float32)


def _pooled(x: Any, *, node: Node) -> Any:
    import torch

    channels = x.shape[1]
    weights = torch.from_numpy(_weights(node, channels)).to(x)
    return torch.nn.functional.conv2d(x, weights[:, :, None, None])


OPERATORS["channel_avg_pool"] = ChannelAveragePool()
