"""ATen operators that reduce channels or pixels, and the graph operators that they become."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import fx

from slimdeploy.toolchain.networks import aten_attention as attention
from slimdeploy.toolchain.networks import aten_several as several
from slimdeploy.toolchain.networks.aten_arithmetic import larger
from slimdeploy.toolchain.networks.aten_values import (
    Channel,
    ChannelsLast,
    Pixels,
    Squeezed,
    Tokens,
    argument,
    operator_of,
    shape_of,
)

if TYPE_CHECKING:
    from slimdeploy.toolchain.networks.importer import Importer


def mean(at: Importer, node: fx.Node) -> Any:
    if (found := several.reduced(at, node, "add")) is not None:
        return at.add(node, "affine", found[0], factor=1 / found[1], offset=0.0) if found[1] > 1 else found[0]
    return _reduced(at, node, argument(node, 1, []), bool(argument(node, 2, False)), "adaptive_avg_pool")


def maximum(at: Importer, node: fx.Node) -> Any:
    if (found := several.reduced(at, node, "maximum")) is not None:
        return found[0]
    return _reduced(at, node, argument(node, 1, []), bool(argument(node, 2, False)), "global_max_pool")


def maximum_and_position(at: Importer, node: fx.Node) -> Any:
    """`torch.max(x, dim)`, where the position of the maximum can't be used, or `torch.max(x, y)`."""
    axis = argument(node, 1, None)
    if isinstance(axis, fx.Node):
        return larger(at, node)
    if axis is None:
        raise at.refused(node, "max of all values isn't supported")
    if (found := several.reduced(at, node, "maximum")) is not None:
        return [found[0], None]
    return [_reduced(at, node, [axis], bool(argument(node, 2, False)), "global_max_pool"), None]


def variance(*, root: bool) -> Callable[[Importer, fx.Node], Any]:
    """`var`, or with `root` `std`: the mean of the squared differences to the mean."""

    def read(at: Importer, node: fx.Node) -> Any:
        axes, keep = argument(node, 1, []), bool(node.kwargs.get("keepdim", argument(node, 3, False)))
        given = node.kwargs.get("correction", argument(node, 2, 1))
        less = 1 if given is None else int(given)  # as a flag, True is 1
        value, over, count = _reduction(at, node, axes)
        if over not in (CHANNELS, PIXELS, ALL):
            raise at.refused(node, f"{operator_of(node)} over the axes {axes} isn't supported")
        mean = _each(at, node, value, over, "adaptive_avg_pool")
        squares = at.add(node, "power", at.difference(node, value, mean), exponent=2.0)
        if less:
            result = _sum_over(at, node, squares, over)
            result = at.add(node, "affine", result, factor=1 / (count - less), offset=0.0)
        else:
            result = _each(at, node, squares, over, "adaptive_avg_pool")
        if root:
            result = at.add(node, "power", result, exponent=0.5)
        return _result(at, node, result, over, axes, keep)

    return read


def norm(at: Importer, node: fx.Node) -> Any:
    if argument(node, 1, 2) != 2:
        raise at.refused(node, "norms other than the Euclidean one aren't supported")
    return _reduced(at, node, argument(node, 2, []), bool(argument(node, 3, False)), "global_norm")


def total(at: Importer, node: fx.Node) -> Any:
    """`sum` of several images, of weighted pixels, of the pixels, or of the channels: their mean without the
    division.
    """
    if (summed := several.reduced(at, node, "add")) is not None:
        return summed[0]
    if (found := attention.total(at, node)) is not None:
        return found
    axes, keep = argument(node, 1, []), bool(argument(node, 2, False))
    value, over, _ = _reduction(at, node, axes)
    if over not in (CHANNELS, PIXELS):
        raise at.refused(node, "sum is supported over the channels, over the pixels, and of stacked images")
    return _result(at, node, _sum_over(at, node, value, over), over, axes, keep)


def _sum_over(at: Importer, node: fx.Node, value: str, over: list[int]) -> str:
    if over != CHANNELS:
        value = at.add(node, "global_sum", value, size=_sides(at, node))
    return value if over == PIXELS else at.add(node, "channel_mean", value, count=1)


CHANNELS, PIXELS, ALL = [1], [2, 3], [1, 2, 3]
"""Axes of an image (N, C, H, W)."""
OVER_CHANNELS = {
    "adaptive_avg_pool": "channel_mean",
    "global_max_pool": "channel_max",
    "global_norm": "channel_norm",
}
"""Operator that reduces each channel -> the one that reduces each pixel."""
OVER_AXIS = {"adaptive_avg_pool": "axis_mean", "global_max_pool": "axis_max"}
"""Operator that reduces each channel -> the one that reduces each row or column."""


def _reduced(at: Importer, node: fx.Node, axes: list[int], keep: bool, operator: str) -> Any:
    """A reduction over the channels of an image or a vector, or by `operator` over height and width, at once
    or one after the other, or over flattened pixels.
    """
    value, over, _ = _reduction(at, node, axes, operator)
    if over in ([2], [3]) and not at.has_channels_last(node.args[0]):
        if keep and not _is_reduced_again(node):
            return at.add(node, OVER_AXIS[operator], value, axis=over[0])
        height, width = _sides(at, node)
        return Pixels(value, (height, width), left=3 if over == [2] and keep else 2, reduced=operator)
    if over not in (CHANNELS, PIXELS, ALL) or (over == ALL and operator == "global_norm"):
        name, known = operator_of(node), "only over the channels, or height and width"
        raise at.refused(node, f"{name} over the axes {axes} isn't supported, {known}")
    return _result(at, node, _each(at, node, value, over, operator), over, axes, keep)


def _each(at: Importer, node: fx.Node, value: str, over: list[int], operator: str) -> str:
    """`value` reduced by `operator` over height and width, by its counterpart over the channels, or both."""
    mean = operator == "adaptive_avg_pool"
    if over != CHANNELS:
        size: dict[str, Any] = {"size": [1, 1]} if mean else {}
        value = at.add(node, operator, value, **size)
    if over != PIXELS:
        channels = int(shape_of(node.args[0])[at.channel_axis(node.args[0])])
        count: dict[str, Any] = {"count": channels} if mean else {}
        value = at.add(node, OVER_CHANNELS[operator], value, **count)
    return value


def _reduction(
    at: Importer, node: fx.Node, axes: list[int], operator: str = ""
) -> tuple[str, list[int], int]:
    """What `node` reduces over `axes`: the image or vector, the axes as those of (N, C, H, W), and the number
    of values that become one. Pixels that `operator` has reduced along the other axis count as an image.
    """
    found, shape = at.values.get(node.args[0]), shape_of(node.args[0])  # type: ignore[arg-type]
    axes = sorted(axis % len(shape) for axis in axes)
    count = math.prod(int(shape[axis]) for axis in axes if axis)
    if isinstance(found, Pixels):
        whole = found.reduced in ("", operator) and axes == [found.left]
        return found.value, PIXELS if whole else [], count
    if isinstance(found, ChannelsLast):
        return found.value, sorted((0, 2, 3, 1)[axis] for axis in axes), count
    if isinstance(found, Tokens):
        return found.value, {(1,): PIXELS, (2,): CHANNELS, (1, 2): ALL}.get(tuple(axes), []), count
    return at.value(node, 0), axes if len(shape) in (2, 4) else [], count


def _sides(at: Importer, node: fx.Node) -> list[int]:
    """Height and width of the image that `node` reduces."""
    found, shape = at.values.get(node.args[0]), shape_of(node.args[0])  # type: ignore[arg-type]
    if isinstance(found, Pixels | Tokens):
        return list(found.size)
    return [int(n) for n in (shape[1:3] if at.has_channels_last(node.args[0]) else shape[2:])]


def _is_reduced_again(node: fx.Node) -> bool:
    """Whether all that is done with the rows or columns is a reduction of the others."""
    return all(
        operator_of(user) in ("mean", "amax", "max") and not isinstance(argument(user, 1, None), fx.Node)
        for user in node.users
    )


def _result(at: Importer, node: fx.Node, image: str, over: list[int], axes: list[int], keep: bool) -> Any:
    """`image`, an image that was reduced over the axes `over`, in the program's layout."""
    found, shape = at.values.get(node.args[0]), shape_of(node.args[0])  # type: ignore[arg-type]
    dimensions, tokens = len(shape) - (0 if keep else len(axes)), isinstance(found, Tokens)
    if not keep and (over == ALL or (over == CHANNELS and tokens)):
        raise at.refused(node, f"{operator_of(node)} of a whole image is supported with keepdim=True only")
    if over == CHANNELS:
        return at.in_layout_of(node.args[0], image) if keep else Channel(image)
    if dimensions == 2:
        return at.add(node, "flatten", image, positions=1)
    if dimensions == 3:
        return Tokens(image, (1, 1)) if tokens else Squeezed(image)
    return at.in_layout_of(node.args[0], image)
