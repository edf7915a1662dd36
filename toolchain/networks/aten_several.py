"""ATen operators on several images in a new dimension, and the graph operators that they become: branches of
which the network takes a weighted mean, as in SKNet (Li et al., arXiv 1903.06586) and ResNeSt (Zhang et al.,
arXiv 2004.08955).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import fx

from slimdeploy.toolchain.networks import aten_attention as attention
from slimdeploy.toolchain.networks.aten_values import (
    Several,
    View,
    argument,
    operator_of,
    shape_of,
)

if TYPE_CHECKING:
    from slimdeploy.toolchain.networks.importer import Importer


def several(at: Importer, node: fx.Node, given: Any, *, axis: int = 1) -> Several | None:
    """The images in the argument `given` of `node`, if there are several: stacked ones, or parts of one image
    (N, several·C, H, W) that is viewed as (N, several, C, H, W) or, with `axis` 2, as (N, C, several, H, W).
    """
    found = at.values.get(given)
    if isinstance(found, View) and not found.transposed and axis == 2:
        together = at.add(node, "channel_shuffle", found.value, groups=found.groups)
        return Several(parts(at, node, together, int(shape_of(given)[2]), found.groups), 2)
    if isinstance(found, View) and not found.transposed:
        found = Several(parts(at, node, found.value, found.groups, int(shape_of(given)[2])), 1)
        at.values[given] = found
    return found if isinstance(found, Several) else None


def parts(at: Importer, node: fx.Node, value: str, count: int, channels: int) -> tuple[str, ...]:
    """The `count` parts of `value`, of `channels` each."""
    return tuple(
        at.add(node, "slice", value, start=start, stop=start + channels)
        for start in range(0, count * channels, channels)
    )


def reduced(at: Importer, node: fx.Node, operator: str) -> tuple[str, int] | None:
    """Several values reduced to one by `operator`, and their number; None if `node` reduces another kind."""
    given = argument(node, 1, [])
    axes = [axis % len(shape_of(node.args[0])) for axis in (given if isinstance(given, list) else [given])]
    if axes not in ([0], [1], [2]) or argument(node, 2, False):
        return None
    found = several(at, node, node.args[0], axis=axes[0])
    if not found or axes != [found.axis]:
        return None
    count = len(found.values)
    return (at.add(node, operator, *found.values) if count > 1 else found.values[0]), count


def softmax(at: Importer, node: fx.Node) -> Any:
    """The softmax of several, over pixels, or over channels."""
    for kind in (attention.shares, attention.shares_of_channels):
        if (shares := kind(at, node)) is not None:
            return shares
    found = several(at, node, node.args[0])
    if not found or argument(node, 1, -1) != found.axis:
        raise at.refused(
            node,
            "softmax is supported over channels, over the pixels of one channel, and between branches",
        )
    return Several(tuple(_shares(at, node, found.values)), found.axis)


def _shares(at: Importer, node: fx.Node, values: tuple[str, ...]) -> list[str]:
    if len(values) == 2:  # the sigmoid of their difference
        return [at.add(node, "sigmoid", at.difference(node, *pair)) for pair in (values, values[::-1])]
    largest = at.add(node, "maximum", *values)
    parts = [at.add(node, "exp", at.difference(node, value, largest)) for value in values]
    total = at.add(node, "add", *parts)
    return [at.add(node, "divide", part, total) for part in parts]


def products(at: Importer, node: fx.Node) -> Several | None:
    """The products of two times several images; None if the arguments of `node` are others."""
    pairs = [several(at, node, given) for given in node.args[:2]]
    first, second = pairs
    if first is None or second is None:
        return None
    if (first.axis, len(first.values)) != (second.axis, len(second.values)):
        raise at.refused(node, f"{operator_of(node)} of different numbers of branches isn't supported")
    made = [at.add(node, "multiply", a, b) for a, b in zip(first.values, second.values, strict=True)]
    return Several(tuple(made), first.axis)
