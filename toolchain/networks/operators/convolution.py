"""`conv`: a 2-D convolution, dense, grouped or depthwise."""

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
    margin,
    pair,
    sides,
    steps,
    window,
)

if TYPE_CHECKING:
    from slimdeploy.toolchain.networks.graph import Node


class Convolution(Operator):
    """Attributes: in, out, kernel, stride, padding, dilation (pairs), groups, bias.

    A grouped convolution can only lose whole groups, inputs with outputs; a depthwise one has one channel per
    group.
    """

    attributes = MappingProxyType(
        {
            "in": count,
            "out": count,
            "groups": count,
            "kernel": steps,
            "stride": steps,
            "padding": margin,
            "dilation": steps,
            "bias": flag,
        }
    )

    def reads_all(self, node: Node) -> bool:
        return bool(node.attributes["groups"] == 1)

    def channels(self, node: Node, inputs: Sequence[int]) -> int:
        a = node.attributes
        if inputs[0] != a["in"]:
            raise SlimdeployError(f"{node.name} reads {a['in']} channels, but gets {inputs[0]}")
        if a["in"] % a["groups"] or a["out"] % a["groups"]:
            raise SlimdeployError(f"{node.name}: {a['in']} → {a['out']} channels in {a['groups']} groups")
        return int(a["out"])

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        _, *image = sides(node, inputs[0])
        parts = (pair(node, name) for name in ("kernel", "stride", "padding", "dilation"))
        return (int(node.attributes["out"]), *(window(*each) for each in zip(image, *parts, strict=True)))

    def tensors(self, node: Node) -> dict[str, Tensor]:
        a = node.attributes
        axes = ("output", "input" if a["groups"] == 1 else "", "", "")
        shape = (a["out"], a["in"] // a["groups"], *pair(node, "kernel"))
        bias = {"bias": Tensor((a["out"],), ("output",))} if a["bias"] else {}
        return {"weight": Tensor(shape, axes), **bias}

    def macs(self, node: Node, output: Shape) -> int:
        a, (height, width) = node.attributes, pair(node, "kernel")
        return int(a["out"] * (a["in"] // a["groups"]) * height * width * output[1] * output[2])

    def run(self, node: Node, *, inplace: bool) -> Callable[..., Any]:
        from slimdeploy.toolchain.networks.operators.convolution_layer import Convolution as Layer

        a = node.attributes
        parts: dict[str, Any] = {name: pair(node, name) for name in ("stride", "padding", "dilation")}
        return Layer(a["in"], a["out"], pair(node, "kernel"), groups=a["groups"], bias=a["bias"], **parts)

    def write(self, node: Node, inputs: Sequence[str], to: OnnxNodes, arrays: Arrays, shape: Shape) -> str:
        names = [to.constant(f"{node.name}.{part}", arrays[part]) for part in ("weight", "bias")]
        optional: dict[str, Any] = {}
        if node.attributes["groups"] > 1:
            optional["group"] = node.attributes["groups"]
        if pair(node, "dilation") != (1, 1):
            optional["dilations"] = list(pair(node, "dilation"))
        return to.node(
            "Conv", [inputs[0], *names], node.name, kernel_shape=list(pair(node, "kernel")),
            strides=list(pair(node, "stride")), pads=[*pair(node, "padding")] * 2, **optional,
        )  # fmt: skip

    def spread(self, node: Node, inputs: Sequence[np.ndarray], ties: Ties) -> np.ndarray:
        a = node.attributes
        if a["groups"] == 1:
            return ties.new(a["out"])
        by_group = inputs[0].reshape(a["groups"], -1)
        for column in by_group.T[1:]:
            ties.tie(by_group[:, 0], column)
        return np.repeat(by_group[:, 0], a["out"] // a["groups"])

    def cut(self, node: Node, inputs: Sequence[np.ndarray], output: np.ndarray) -> dict[str, Any]:
        a = node.attributes
        groups = a["groups"] * int(output.sum()) // a["out"] if a["groups"] > 1 else 1
        return {"in": int(inputs[0].sum()), "out": int(output.sum()), "groups": groups}

    def constant(
        self, node: Node, inputs: Sequence[np.ndarray], arrays: Arrays, removed: np.ndarray
    ) -> np.ndarray:
        bias = arrays.get("bias", np.zeros(len(removed)))
        if node.attributes["groups"] == 1:
            return np.where(removed, bias, np.nan)
        by_group = inputs[0].reshape(node.attributes["groups"], -1)
        taps = arrays["weight"].sum((2, 3)).reshape(len(by_group), -1, by_group.shape[1])
        return (taps * by_group[:, None]).sum(2).ravel() + bias


OPERATORS["conv"] = Convolution()
