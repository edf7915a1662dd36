"""`channel_conv`: a convolution along the channels of a vector (ECA-Net, Wang et al., arXiv 1910.03151)."""

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


def _odd(value: Any) -> bool:
    return count(value) and value % 2 == 1


class ChannelConv(Operator):
    """Attributes: taps, an odd number, and bias. The ends are padded with zeros. Its channels are kept:
    removing one would move the others closer together.
    """

    attributes = MappingProxyType({"taps": _odd, "bias": flag})

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        if len(inputs[0]) != 1:
            raise SlimdeployError(f"{node.name}: channel_conv needs a vector, not an image")
        return inputs[0]

    def tensors(self, node: Node) -> dict[str, Tensor]:
        weight = Tensor((1, 1, node.attributes["taps"]), ("", "", ""))
        return {"weight": weight, **({"bias": Tensor((1,), ("",))} if node.attributes["bias"] else {})}

    def macs(self, node: Node, output: Shape) -> int:
        return int(node.attributes["taps"] * output[0])

    def run(self, node: Node, *, inplace: bool) -> Callable[..., Any]:
        from slimdeploy.toolchain.networks.operators.torch_modules import ChannelConv1d

        taps = node.attributes["taps"]
        return ChannelConv1d(1, 1, taps, padding=taps // 2, bias=node.attributes["bias"])

    def write(self, node: Node, inputs: Sequence[str], to: OnnxNodes, arrays: Arrays, shape: Shape) -> str:
        """As a convolution of an image (1, C, 1), which every runtime has."""
        taps, name = node.attributes["taps"], node.name
        column = to.constant(f"{name}.column", np.array([-1, 1, *shape, 1], np.int64))
        vector = to.constant(f"{name}.vector", np.array([-1, *shape], np.int64))
        parts = [to.constant(f"{name}.weight", arrays["weight"][..., None])]
        if "bias" in arrays:
            parts.append(to.constant(f"{name}.bias", arrays["bias"]))
        x = to.node("Reshape", [inputs[0], column], f"{name}.image")
        pads, ones = [taps // 2, 0] * 2, [1, 1]
        x = to.node("Conv", [x, *parts], f"{name}.conv", kernel_shape=[taps, 1], strides=ones, pads=pads)
        return to.node("Reshape", [x, vector], name)

    def spread(self, node: Node, inputs: Sequence[np.ndarray], ties: Ties) -> np.ndarray:
        ties.fix(inputs[0])
        return inputs[0]

    def constant(
        self, node: Node, inputs: Sequence[np.ndarray], arrays: Arrays, removed: np.ndarray
    ) -> np.ndarray:
        return np.full(len(removed), np.nan)


OPERATORS["channel_conv"] = ChannelConv()
