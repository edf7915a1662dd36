"""`batchnorm`: batch normalisation, of images or of vectors."""

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
    Operator,
    Shape,
    Tensor,
    count,
    flag,
    number,
)

if TYPE_CHECKING:
    from slimdeploy.toolchain.networks.graph import Node


class BatchNorm(Operator):
    """Attributes: channels, eps, momentum, affine, and `vector` where it reads (N, C).

    In ONNX it is folded into the convolution before it; where there is none, it stays a node of its own.
    """

    attributes = MappingProxyType({"channels": count, "eps": number, "momentum": number, "affine": flag})
    optional = MappingProxyType({"vector": flag})

    def channels(self, node: Node, inputs: Sequence[int]) -> int:
        if inputs[0] != node.attributes["channels"]:
            raise SlimdeployError(
                f"{node.name} has {node.attributes['channels']} channels, but gets {inputs[0]}"
            )
        return inputs[0]

    def tensors(self, node: Node) -> dict[str, Tensor]:
        shape, axes = (node.attributes["channels"],), ("output",)
        trained = ("weight", "bias") if node.attributes["affine"] else ()
        buffers = ("running_mean", "running_var")
        return {
            **{name: Tensor(shape, axes) for name in trained},
            **{name: Tensor(shape, axes, trained=False) for name in buffers},
            "num_batches_tracked": Tensor((), (), trained=False),
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

    def cut(self, node: Node, inputs: Sequence[np.ndarray], output: np.ndarray) -> dict[str, Any]:
        return {"channels": int(output.sum())}

    def constant(
        self, node: Node, inputs: Sequence[np.ndarray], arrays: Arrays, removed: np.ndarray
    ) -> np.ndarray:
        scale = 1 / np.sqrt(arrays["running_var"] + node.attributes["eps"])
        if not node.attributes["affine"]:  # its γ is 1 and can't be 0
            return (inputs[0] - arrays["running_mean"]) * scale
        passed = (inputs[0] - arrays["running_mean"]) * scale * arrays["weight"] + arrays["bias"]
        return np.where(removed, arrays["bias"], passed)


OPERATORS["batchnorm"] = BatchNorm()
