"""`linear`: a fully connected layer, for vectors or for each pixel."""

from __future__ import annotations

import math
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
    Ties,
    count,
    flag,
)

if TYPE_CHECKING:
    from slimdeploy.toolchain.networks.graph import Node


class Linear(Operator):
    """Attributes: in, out, bias, and `pixels` if its input is (N, C, H, W)."""

    attributes = MappingProxyType({"in": count, "out": count, "bias": flag})
    optional = MappingProxyType({"pixels": flag})

    def reads_all(self, node: Node) -> bool:
        return True

    def channels(self, node: Node, inputs: Sequence[int]) -> int:
        if inputs[0] != node.attributes["in"]:
            raise SlimdeployError(f"{node.name} reads {node.attributes['in']} values, but gets {inputs[0]}")
        return int(node.attributes["out"])

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        if len(inputs[0]) != (3 if node.attributes.get("pixels") else 1):
            raise SlimdeployError(f"{node.name}: linear needs a vector, not an image: flatten it first")
        return (int(node.attributes["out"]), *inputs[0][1:])

    def tensors(self, node: Node) -> dict[str, Tensor]:
        a = node.attributes
        bias = {"bias": Tensor((a["out"],), ("output",))} if a["bias"] else {}
        return {"weight": Tensor((a["out"], a["in"]), ("output", "input")), **bias}

    def macs(self, node: Node, output: Shape) -> int:
        return int(node.attributes["in"] * node.attributes["out"] * math.prod(output[1:]))

    def run(self, node: Node, *, inplace: bool) -> Callable[..., Any]:
        from torch import nn

        from slimdeploy.toolchain.networks.operators.torch_modules import PixelLinear

        kind = PixelLinear if node.attributes.get("pixels") else nn.Linear
        return kind(node.attributes["in"], node.attributes["out"], bias=node.attributes["bias"])

    def write(self, node: Node, inputs: Sequence[str], to: OnnxNodes, arrays: Arrays, shape: Shape) -> str:
        if node.attributes.get("pixels"):
            arrays = {**arrays, "weight": arrays["weight"][:, :, None, None]}
        names = [to.constant(f"{node.name}.{part}", arrays[part]) for part in ("weight", "bias")]
        if node.attributes.get("pixels"):
            return to.node(
                "Conv", [inputs[0], *names], node.name, kernel_shape=[1, 1], strides=[1, 1], pads=[0, 0, 0, 0]
            )
        return to.node("Gemm", [inputs[0], *names], node.name, transB=1)

    def spread(self, node: Node, inputs: Sequence[np.ndarray], ties: Ties) -> np.ndarray:
        return ties.new(node.attributes["out"])

    def cut(self, node: Node, inputs: Sequence[np.ndarray], output: np.ndarray) -> dict[str, Any]:
        return {"in": int(inputs[0].sum()), "out": int(output.sum())}

    def constant(
        self, node: Node, inputs: Sequence[np.ndarray], arrays: Arrays, removed: np.ndarray
    ) -> np.ndarray:
        return np.where(removed, arrays.get("bias", np.zeros(len(removed))), np.nan)


OPERATORS["linear"] = Linear()
