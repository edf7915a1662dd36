"""`dropout`: active only during training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from slimdeploy.toolchain.networks.operators.base import (
    OPERATORS,
    Arrays,
    OnnxNodes,
    Operator,
    Shape,
    flag,
    number,
)

if TYPE_CHECKING:
    from slimdeploy.toolchain.networks.graph import Node


def _share(value: Any) -> bool:
    return number(value) and value <= 1


class Dropout(Operator):
    """Attributes: share, of the values set to 0 during training; `channels`: of whole channels instead."""

    attributes = MappingProxyType({"share": _share})
    optional = MappingProxyType({"channels": flag})

    elementwise = True

    def run(self, node: Node, *, inplace: bool) -> Callable[..., Any]:
        from torch import nn

        kind = nn.Dropout2d if node.attributes.get("channels") else nn.Dropout
        return kind(float(node.attributes["share"]))

    def write(self, node: Node, inputs: Sequence[str], to: OnnxNodes, arrays: Arrays, shape: Shape) -> str:
        return inputs[0]


class StochasticDepth(Dropout):
    """Attribute: share, of the images whose values are all set to 0 during training."""

    optional = MappingProxyType({})

    def run(self, node: Node, *, inplace: bool) -> Callable[..., Any]:
        from slimdeploy.toolchain.networks.operators.torch_modules import StochasticDepth as Module

        return Module(float(node.attributes["share"]))


OPERATORS["dropout"] = Dropout()
OPERATORS["stochastic_depth"] = StochasticDepth()
