"""`batchnorm`: batch normalisation of images or vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.networks.operators.base import (
    OPERATORS,
    Arrays,
    OnnxNodes,
    Shape,
    Tensor,
    flag,
    number,
)
from slimdeploy.toolchain.networks.operators.normalisation import Normalisation

if TYPE_CHECKING:
    from slimdeploy.toolchain.networks.graph import Node


COUNTER = "num_batches_tracked"
"""The number of batches that the statistics have seen; state dicts of others may lack it."""


class BatchNorm(Normalisation):
    """Attributes: channels, eps, affine, momentum, and `vector` if its input is (N, C).

    In ONNX it is folded into the preceding convolution; without one, it remains a node.
    """

    attributes = MappingProxyType({**Normalisation.attributes, "momentum": number})
    optional = MappingProxyType({"vector": flag})

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        if len(inputs[0]) != (1 if node.attributes.get("vector") else 3):
            expected, found = (
                ("a vector", "an image") if node.attributes.get("vector") else ("an image", "a vector")
            )
            raise SlimdeployError(f"{node.name}: batchnorm needs {expected}, not {found}")
        return super().shape(node, inputs)

    def tensors(self, node: Node) -> dict[str, Tensor]:
        shape, axes = (node.attributes["channels"],), ("output",)
        return {
            **super().tensors(node),
            "running_mean": Tensor(shape, axes, trained=False),
            "running_var": Tensor(shape, axes, trained=False),
            COUNTER: Tensor((), (), trained=False),
        }

    def run(self, node: Node, *, inplace: bool) -> Callable[..., Any]:
        from torch import nn

        a = node.attributes
        kind = nn.BatchNorm1d if a.get("vector") else nn.BatchNorm2d
        return kind(a["channels"], eps=a["eps"], momentum=a["momentum"], affine=a["affine"])

    def write(self, node: Node, inputs: Sequence[str], to: OnnxNodes, arrays: Arrays, shape: Shape) -> str:
        mean, variance = arrays["running_mean"], arrays["running_var"]
        gamma, beta = arrays.get("weight", np.ones_like(mean)), arrays.get("bias", np.zeros_like(mean))
        parts = {"weight": gamma, "bias": beta, "running_mean": mean, "running_var": variance}
        names = [to.constant(f"{node.name}.{part}", values) for part, values in parts.items()]
        return to.node(
            "BatchNormalization", [inputs[0], *names], node.name, epsilon=float(node.attributes["eps"])
        )

    def constant(
        self, node: Node, inputs: Sequence[np.ndarray], arrays: Arrays, removed: np.ndarray
    ) -> np.ndarray:
        scale = 1 / np.sqrt(arrays["running_var"] + node.attributes["eps"])
        if not node.attributes["affine"]:  # γ is fixed at 1
            return (inputs[0] - arrays["running_mean"]) * scale
        passed = (inputs[0] - arrays["running_mean"]) * scale * arrays["weight"] + arrays["bias"]
        return np.where(removed | (arrays["weight"] == 0), arrays["bias"], passed)


OPERATORS["batchnorm"] = BatchNorm()
