"""ATen operators that compare values and choose between them, and the graph operators that they become: the
result of a comparison is an image of ones and zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import fx

from slimdeploy.toolchain.networks.aten_values import argument, operator_of

if TYPE_CHECKING:
    from slimdeploy.toolchain.networks.importer import Importer


def comparison(*, greater: bool, equal: bool) -> Callable[[Importer, fx.Node], str]:
    """`gt`, `ge`, `lt` or `le` of an image and a number or of two images."""

    def read(at: Importer, node: fx.Node) -> str:
        # a >= b is not (a < b): exact, since only equal values have a difference of 0.
        found = _exceeds(at, node, at.value(node, 0), _operand(at, node, 1), above=greater != equal)
        return at.add(node, "affine", found, factor=-1.0, offset=1.0) if equal else found

    return read


def _exceeds(at: Importer, node: fx.Node, value: str, other: str | float, *, above: bool) -> str:
    """1 where `value` > `other`, or with `above=False` where it is smaller; else 0."""
    if isinstance(other, str):
        difference = at.difference(node, *((value, other) if above else (other, value)))
    else:
        sign = 1.0 if above else -1.0
        difference = at.add(node, "affine", value, factor=sign, offset=-sign * other)
    return at.add(node, "relu", at.add(node, "sign", difference))


def _operand(at: Importer, node: fx.Node, index: int) -> str | float:
    given = node.args[index]
    return float(given) if isinstance(given, int | float) else at.value(node, index)


def choice(at: Importer, node: fx.Node) -> str:
    """`where` of a comparison and two images or numbers."""
    mask = at.value(node, 0)
    return _chosen(at, node, mask, _operand(at, node, 1), _operand(at, node, 2))


def threshold(at: Importer, node: fx.Node) -> str:
    value, (limit, otherwise) = at.value(node, 0), map(float, node.args[1:3])  # type: ignore[arg-type]
    return _chosen(at, node, _exceeds(at, node, value, limit, above=True), value, otherwise)


def _chosen(at: Importer, node: fx.Node, mask: str, first: str | float, second: str | float) -> str:
    images = [
        one if isinstance(one, str) else at.add(node, "affine", mask, factor=0.0, offset=one)
        for one in (first, second)
    ]
    return at.add(node, "where", mask, *images)


def shrink(at: Importer, node: fx.Node) -> str:
    """`hardshrink`: 0 from −λ to λ, else x; `softshrink`: x without its part from −λ to λ."""
    value, limit = at.value(node, 0), float(argument(node, 1, 0.5))
    if operator_of(node) == "softshrink":
        return at.difference(node, value, at.add(node, "clip", value, low=-limit, high=limit))
    outside = _exceeds(at, node, at.add(node, "abs", value), limit, above=True)
    return at.add(node, "multiply", value, outside)
