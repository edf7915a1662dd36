"""ATen operators that pool, pad or enlarge images, and the graph operator that each becomes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from torch import fx

from slimdeploy.toolchain.networks import aten_attention as attention
from slimdeploy.toolchain.networks.aten_arithmetic import larger
from slimdeploy.toolchain.networks.aten_several import total as total_of_several
from slimdeploy.toolchain.networks.aten_values import (
    Channel,
    ChannelsLast,
    Pixels,
    Several,
    Squeezed,
    argument,
    operator_of,
    pair,
    shape_of,
)
from slimdeploy.toolchain.networks.operators.padding import MODES

if TYPE_CHECKING:
    from slimdeploy.toolchain.networks.importer import Importer


def max_pool(at: Importer, node: fx.Node) -> str:
    if pair(argument(node, 4, 1)) != [1, 1]:
        raise at.refused(node, "a dilated max_pool2d isn't supported")
    return at.add(
        node, "max_pool", at.value(node, 0), kernel=pair(node.args[1]), stride=_stride(node),
        padding=pair(argument(node, 3, 0)), ceil=bool(argument(node, 5, False)),
    )  # fmt: skip


def avg_pool(at: Importer, node: fx.Node) -> str:
    if argument(node, 6, None) is not None:
        raise at.refused(node, "avg_pool2d with a divisor isn't supported")
    return at.add(
        node, "avg_pool", at.value(node, 0), kernel=pair(node.args[1]), stride=_stride(node),
        padding=pair(argument(node, 3, 0)), ceil=bool(argument(node, 4, False)),
        count_padding=bool(argument(node, 5, True)),
    )  # fmt: skip


def _stride(node: fx.Node) -> list[int]:
    return pair(argument(node, 2, None) or node.args[1])


def adaptive_avg_pool(at: Importer, node: fx.Node) -> str:
    return at.add(node, "adaptive_avg_pool", at.value(node, 0), size=[int(n) for n in shape_of(node)[2:]])


def mean(at: Importer, node: fx.Node) -> Any:
    found, axes = at.values.get(node.args[0]), argument(node, 1, [])  # type: ignore[arg-type]
    if isinstance(found, Several) and axes == [found.axis]:
        summed = at.add(node, "add", *found.values)
        return at.add(node, "affine", summed, factor=1 / len(found.values), offset=0.0)
    return _reduced(at, node, axes, bool(argument(node, 2, False)), "adaptive_avg_pool", {"size": [1, 1]})


def maximum(at: Importer, node: fx.Node) -> Any:
    return _reduced(at, node, argument(node, 1, []), bool(argument(node, 2, False)), "global_max_pool")


def maximum_and_position(at: Importer, node: fx.Node) -> Any:
    """`torch.max(x, dim)`, where the position of the maximum can't be used, or `torch.max(x, y)`."""
    axis = argument(node, 1, None)
    if isinstance(axis, fx.Node):
        return larger(at, node)
    if axis is None:
        raise at.refused(node, "max of all values isn't supported")
    return [_reduced(at, node, [axis], bool(argument(node, 2, False)), "global_max_pool"), None]


def norm(at: Importer, node: fx.Node) -> Any:
    if argument(node, 1, 2) != 2:
        raise at.refused(node, "norms other than the Euclidean one aren't supported")
    return _reduced(at, node, argument(node, 2, []), bool(argument(node, 3, False)), "global_norm")


def total(at: Importer, node: fx.Node) -> Any:
    """`sum` of several images, of weighted pixels, or of the channels: their mean without the division."""
    image = node.args[0]
    for kind in (total_of_several, attention.total):
        if (found := kind(at, node)) is not None:
            return found
    axes = [axis % len(shape_of(image)) for axis in argument(node, 1, [])]
    if axes != [at.channel_axis(image)]:
        raise at.refused(node, "sum is supported over the channels or of stacked images only")
    return _reduced(at, node, axes, bool(argument(node, 2, False)), "sum")


OVER_CHANNELS = {
    "adaptive_avg_pool": "channel_mean",
    "sum": "channel_mean",
    "global_max_pool": "channel_max",
    "global_norm": "channel_norm",
}
"""Operator that reduces each channel -> the one that reduces each pixel."""


def _reduced(
    at: Importer,
    node: fx.Node,
    axes: list[int],
    keep: bool,
    operator: str,
    attributes: Mapping[str, Any] = MappingProxyType({}),
) -> Any:
    """A reduction over the channels of an image or a vector, or by `operator` over height and width, at once
    or one after the other, or over flattened pixels.
    """
    found, shape = at.values.get(node.args[0]), shape_of(node.args[0])  # type: ignore[arg-type]
    last = isinstance(found, ChannelsLast)
    axes = sorted(axis % len(shape) for axis in axes)
    of_image = sorted((0, 2, 3, 1)[axis] for axis in axes) if last else axes if len(shape) in (2, 4) else []
    if of_image == [1] and operator in OVER_CHANNELS:
        count: dict[str, Any] = {}
        if OVER_CHANNELS[operator] == "channel_mean":
            count["count"] = 1 if operator == "sum" else int(shape[at.channel_axis(node.args[0])])
        pixels = at.add(node, OVER_CHANNELS[operator], at.value(node, 0), **count)
        return (ChannelsLast(pixels) if last else pixels) if keep else Channel(pixels)
    if isinstance(found, Pixels) and found.reduced in ("", operator) and axes == [found.left]:
        value = found.value
    elif of_image == [2, 3]:
        value = at.value(node, 0)
    elif of_image in ([2], [3]) and not last:
        return Pixels(at.value(node, 0), left=3 if axes == [2] and keep else 2, reduced=operator)
    else:
        name = operator_of(node)
        raise at.refused(
            node, f"{name} over the axes {axes} isn't supported, only over the channels, or height and width"
        )
    image, dimensions = at.add(node, operator, value, **attributes), len(shape) - (0 if keep else len(axes))
    if dimensions == 2:
        return at.add(node, "flatten", image, positions=1)
    if dimensions == 3:
        return Squeezed(image)
    return ChannelsLast(image) if last else image


def adaptive_max_pool(at: Importer, node: fx.Node) -> str:
    if pair(argument(node, 1, 1)) != [1, 1]:
        raise at.refused(node, "adaptive_max_pool2d is supported to 1×1 only")
    return at.add(node, "global_max_pool", at.value(node, 0))


def pad(at: Importer, node: fx.Node) -> str:
    margins = [int(n) for n in argument(node, 1, [])]
    mode = argument(node, 2, "constant") if operator_of(node) == "pad" else "constant"
    filling = argument(node, 3 if operator_of(node) == "pad" else 2, 0)
    if (
        len(margins) == 6
        and margins[:4] == [0] * 4
        and min(margins) >= 0
        and (mode, filling) == ("constant", 0)
    ):
        return at.add(node, "pad_channels", at.value(node, 0), before=margins[4], after=margins[5])
    if filling == -math.inf and all(operator_of(user) == "max_pool2d" for user in node.users):
        mode, filling = "replicate", 0  # pixels that each window has already don't change its maximum
    if len(margins) != 4 or mode not in MODES or filling != 0:
        raise at.refused(
            node,
            "padding is supported on the four sides of an image with zeros, reflected or replicated pixels, "
            "and along the channels with zeros",
        )
    image, outer = at.value(node, 0), [max(0, n) for n in margins]
    if min(margins) < 0:
        image = at.add(node, "crop", image, margins=[max(0, -n) for n in margins])
    if not any(outer):
        return image
    other = {} if mode == "constant" else {"mode": mode}
    return at.add(node, "pad", image, margins=outer, **other)


def upsample(at: Importer, node: fx.Node) -> str:
    before, after = shape_of(node.args[0])[2:], shape_of(node)[2:]
    if any(large % small for large, small in zip(after, before, strict=True)):
        raise at.refused(
            node, "upsampling from {}×{} to {}×{} isn't a whole multiple".format(*before, *after)
        )
    factor = [int(large // small) for large, small in zip(after, before, strict=True)]
    return at.add(node, "upsample", at.value(node, 0), factor=factor)
