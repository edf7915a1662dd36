"""ATen operators that pool, pad or enlarge images, and the graph operator that each becomes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor, fx

from slimdeploy.toolchain.networks.aten_shapes import (
    Channel,
    Pixels,
    Several,
    Squeezed,
    argument,
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


def reduction(over_pixels: str, over_channels: str, **attributes: Any) -> Callable[[Importer, fx.Node], Any]:
    """A reduction over the channels, or over height and width, at once or one after the other, or over
    flattened pixels. `attributes` are those of `over_pixels`.
    """

    def read(at: Importer, node: fx.Node) -> Any:
        shape, found = shape_of(node.args[0]), at.values.get(node.args[0])  # type: ignore[arg-type]
        axes = sorted(axis % len(shape) for axis in _axes(node))
        if isinstance(found, Several) and (at.operator(node), axes) == ("mean", [0]):
            summed = at.add(node, "add", *found.values)
            return at.add(node, "affine", summed, factor=1 / len(found.values), offset=0.0)
        if len(shape) == 4 and axes == [1]:
            pixels = at.add(node, over_channels, at.value(node, 0))
            return pixels if argument(node, 2, False) else Channel(pixels)
        if isinstance(found, Pixels) and found.reduced in ("", over_pixels) and axes == [found.left]:
            value = found.value
        elif len(shape) == 4 and axes == [2, 3]:
            value = at.value(node, 0)
        elif len(shape) == 4 and axes in ([2], [3]):
            kept_width = axes == [2] and argument(node, 2, False)
            return Pixels(at.value(node, 0), left=3 if kept_width else 2, reduced=over_pixels)
        else:
            name = at.operator(node)
            raise at.refused(
                node,
                f"{name} over the axes {axes} isn't supported, only over the channels, or height and width",
            )
        image, dimensions = at.add(node, over_pixels, value, **attributes), _dimensions(node)
        if dimensions == 2:
            return at.add(node, "flatten", image, positions=1)
        return Squeezed(image) if dimensions == 3 else image

    return read


def _axes(node: fx.Node) -> list[int]:
    axes = argument(node, 1, [])
    return axes if isinstance(axes, list) else [axes]


def _dimensions(node: fx.Node) -> int:
    """Of the result, the first one if there are several."""
    result = node.meta["val"]
    return len(result.shape if isinstance(result, Tensor) else result[0].shape)


maximum = reduction("global_max_pool", "channel_max")


def maximum_and_position(at: Importer, node: fx.Node) -> list[Any]:
    """`torch.max(x, dim)`; where the maximum is can't be used."""
    if not isinstance(argument(node, 1, None), int):
        raise at.refused(node, "max of two images, or of all values, isn't supported")
    return [maximum(at, node), None]


def adaptive_max_pool(at: Importer, node: fx.Node) -> str:
    if pair(argument(node, 1, 1)) != [1, 1]:
        raise at.refused(node, "adaptive_max_pool2d is supported to 1×1 only")
    return at.add(node, "global_max_pool", at.value(node, 0))


def pad(at: Importer, node: fx.Node) -> str:
    margins = [int(n) for n in argument(node, 1, [])]
    mode = argument(node, 2, "constant") if at.operator(node) == "pad" else "constant"
    value = argument(node, 3 if at.operator(node) == "pad" else 2, 0)
    if (
        len(margins) == 6
        and margins[:4] == [0] * 4
        and min(margins) >= 0
        and (mode, value) == ("constant", 0)
    ):
        return at.add(node, "pad_channels", at.value(node, 0), before=margins[4], after=margins[5])
    if len(margins) != 4 or min(margins) < 0 or mode not in MODES or value != 0:
        raise at.refused(
            node,
            "padding is supported on the four sides of an image with zeros, reflected or replicated pixels, "
            "and along the channels with zeros",
        )
    other = {} if mode == "constant" else {"mode": mode}
    return at.add(node, "pad", at.value(node, 0), margins=margins, **other)


def upsample(at: Importer, node: fx.Node) -> str:
    before, after = shape_of(node.args[0])[2:], shape_of(node)[2:]
    if any(large % small for large, small in zip(after, before, strict=True)):
        raise at.refused(
            node, "upsampling from {}×{} to {}×{} isn't a whole multiple".format(*before, *after)
        )
    factor = [int(large // small) for large, small in zip(after, before, strict=True)]
    return at.add(node, "upsample", at.value(node, 0), factor=factor)
