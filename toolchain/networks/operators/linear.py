"""`linear`: a fully connected layer."""

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
    Ties,
    count,
    flag,
)

if TYPE_CHECKING:
    from slimdeploy.toolchain.networks.graph import Node


class Linear(Operator):
    """Attributes: in, out, bias."""

    attributes = MappingProxyType({"in": count, "out": count, "bias": flag})

    def reads_all(self, node: Node) -> bool:
        return True

    def channels(self, node: Node, inputs: Sequence[int]) -> int:
        if inputs[0] != node.attributes["in"]:
            raise SlimdeployError(f"{node.name} reads {node.attributes['in']} values, but gets {inputs[0]}")
        return int(node.attributes["out"])

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        if len(inputs[0]) != 1:
            raise SlimdeployError(f"{node.name}: linear needs a vector, not an image: flatten it first")
        return (int(node.attributes["out"]),)

    def tensors(self, node: Node) -> dict[str, Tensor]:
        a = node.attributes
        bias = {"bias": Tensor((a["out"],), ("output",))} if a["bias"] else {}
        return {"weight": Tensor((a["out"], a["in"]), ("output", "input")), **bias}

    def macs(self, node: Node, output: Shape) -> int:
        return int(node.attributes["in"] * node.attributes["out"])

    def run(self, node: Node, *, inplace: bool) -> Callable[..., Any]:
        from torch import nn

        return nn.Linear(node.attributes["in"], node.attributes["out"], bias=node.attributes["bias"])

    def write(self, node: Node, inputs: Sequence[str], to: OnnxNodes, arrays: Arrays, shape: Shape) -> str:
        names = [to.constant(f"{node.name}.{part}", arrays[part]) for part in ("weight", "bias")]
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
