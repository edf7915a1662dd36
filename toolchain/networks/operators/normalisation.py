"""`layer_norm` and `group_norm`: normalisation by statistics of the image."""

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
    number,
    sides,
)

if TYPE_CHECKING:
    from slimdeploy.toolchain.networks.graph import Node


class Normalisation(Operator):
    """Attributes: channels, eps, affine."""

    attributes = MappingProxyType({"channels": count, "eps": number, "affine": flag})

    def channels(self, node: Node, inputs: Sequence[int]) -> int:
        if inputs[0] != node.attributes["channels"]:
            raise SlimdeployError(
                f"{node.name} has {node.attributes['channels']} channels, but gets {inputs[0]}"
            )
        return inputs[0]

    def tensors(self, node: Node) -> dict[str, Tensor]:
        names = ("weight", "bias") if node.attributes["affine"] else ()
        return {name: Tensor((node.attributes["channels"],), ("output",)) for name in names}

    def cut(self, node: Node, inputs: Sequence[np.ndarray], output: np.ndarray) -> dict[str, Any]:
        return {"channels": int(output.sum())}


class _OfTheImage(Normalisation):
    """Channels that share statistics are kept: removing one would change the others."""

    def spread(self, node: Node, inputs: Sequence[np.ndarray], ties: Ties) -> np.ndarray:
        ties.fix(inputs[0])
        return inputs[0]

    def constant(
        self, node: Node, inputs: Sequence[np.ndarray], arrays: Arrays, removed: np.ndarray
    ) -> np.ndarray:
        return np.full(len(removed), np.nan)


class LayerNorm(_OfTheImage):
    """Normalises over the channels of each pixel, or of a vector."""

    def run(self, node: Node, *, inplace: bool) -> Callable[..., Any]:
        from slimdeploy.toolchain.networks.operators.torch_modules import ChannelNorm

        a = node.attributes
        return ChannelNorm(a["channels"], eps=a["eps"], elementwise_affine=a["affine"])

    def write(self, node: Node, inputs: Sequence[str], to: OnnxNodes, arrays: Arrays, shape: Shape) -> str:
        width = node.attributes["channels"]
        parts = {"weight": arrays.get("weight", np.ones(width, np.float32)), "bias": arrays.get("bias")}
        names = [to.constant(f"{node.name}.{n}", values) for n, values in parts.items() if values is not None]
        options: dict[str, Any] = {"axis": -1, "epsilon": float(node.attributes["eps"])}
        if len(shape) == 1:
            return to.node("LayerNormalization", [inputs[0], *names], node.name, **options)
        x = to.node("Transpose", [inputs[0]], f"{node.name}.last", perm=[0, 2, 3, 1])
        x = to.node("LayerNormalization", [x, *names], f"{node.name}.norm", **options)
        return to.node("Transpose", [x], node.name, perm=[0, 3, 1, 2])


class GroupNorm(_OfTheImage):
    """Normalises over all pixels of the channels in a group. Attribute: groups. One channel per group is
    instance normalisation, whose channels are independent.
    """

    attributes = MappingProxyType({**Normalisation.attributes, "groups": count})

    def channels(self, node: Node, inputs: Sequence[int]) -> int:
        if inputs[0] % node.attributes["groups"]:
            raise SlimdeployError(f"{node.name}: {inputs[0]} channels in {node.attributes['groups']} groups")
        return super().channels(node, inputs)

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        return sides(node, inputs[0])

    def run(self, node: Node, *, inplace: bool) -> Callable[..., Any]:
        from torch import nn

        a = node.attributes
        return nn.GroupNorm(a["groups"], a["channels"], eps=a["eps"], affine=a["affine"])

    def write(self, node: Node, inputs: Sequence[str], to: OnnxNodes, arrays: Arrays, shape: Shape) -> str:
        groups, (channels, height, width) = node.attributes["groups"], sides(node, shape)
        one, zero = (
            to.constant(f"{node.name}.{name}", np.full(groups, value, np.float32))
            for name, value in (("one", 1), ("zero", 0))
        )
        together = to.constant(
            f"{node.name}.together", np.array([-1, groups, channels // groups * height * width])
        )
        apart = to.constant(f"{node.name}.apart", np.array([-1, channels, height, width]))
        last = "" if arrays else node.name
        x = to.node("Reshape", [inputs[0], together], f"{node.name}.groups")
        x = to.node(
            "InstanceNormalization",
            [x, one, zero],
            f"{node.name}.norm",
            epsilon=float(node.attributes["eps"]),
        )
        x = to.node("Reshape", [x, apart], last or f"{node.name}.channels")
        if last:
            return x
        gamma, beta = (
            to.constant(f"{node.name}.{name}", arrays[name].reshape(1, -1, 1, 1))
            for name in ("weight", "bias")
        )
        x = to.node("Mul", [x, gamma], f"{node.name}.scaled")
        return to.node("Add", [x, beta], node.name)

    def spread(self, node: Node, inputs: Sequence[np.ndarray], ties: Ties) -> np.ndarray:
        return inputs[0] if _alone(node) else super().spread(node, inputs, ties)

    def constant(
        self, node: Node, inputs: Sequence[np.ndarray], arrays: Arrays, removed: np.ndarray
    ) -> np.ndarray:
        if not _alone(node):
            return super().constant(node, inputs, arrays, removed)
        return inputs[0] * 0 + arrays.get("bias", np.zeros(len(removed)))  # NaN stays NaN

    def cut(self, node: Node, inputs: Sequence[np.ndarray], output: np.ndarray) -> dict[str, Any]:
        left = int(output.sum())
        return {"channels": left, **({"groups": left} if _alone(node) else {})}


def _alone(node: Node) -> bool:
    """Whether each channel is a group (instance normalisation)."""
    return bool(node.attributes["groups"] == node.attributes["channels"])


OPERATORS["layer_norm"] = LayerNorm()
OPERATORS["group_norm"] = GroupNorm()
