"""What removed channels still pass on: with γ = 0 a channel is f(β) everywhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from slimdeploy.toolchain.networks.graph import INPUT
from slimdeploy.toolchain.networks.module import GraphNetwork


class _NodeArrays(Mapping[str, np.ndarray]):
    """A node's tensors in float64, converted when they are asked for."""

    def __init__(self, network: GraphNetwork, name: str) -> None:
        self._tensors = network.tensors(name)

    def __getitem__(self, part: str) -> np.ndarray:
        return self._tensors[part].detach().double().cpu().numpy()

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def removed_constants(network: GraphNetwork, masks: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Value -> (channels,) float64: the constant of each channel at False of `masks`; 0 for the others, and
    where a removed channel isn't constant (a product with a gate that depends on the image).
    """
    graph = network.graph
    found = {INPUT: np.full(graph.channels[INPUT], np.nan)}
    for node in graph.nodes:
        inputs = [found[name] for name in node.inputs]
        removed = ~masks[node.name]
        found[node.name] = node.op.constant(node, inputs, _NodeArrays(network, node.name), removed)
    return {
        value: np.where(masks[value] | np.isnan(constants), 0.0, constants)
        for value, constants in found.items()
    }
