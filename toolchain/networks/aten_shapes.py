"""ATen operators that change only the shape of a value, and the graph operator that each becomes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from slimdeploy.toolchain.networks.aten_reshape import as_pixel, not_supported, reshape
from slimdeploy.toolchain.networks.aten_several import parts
from slimdeploy.toolchain.networks.aten_values import (
    Blocks,
    Channel,
    ChannelsLast,
    Expanded,
    Pixels,
    Row,
    Rows,
    Several,
    Shares,
    Squeezed,
    Tokens,
    View,
    Zeros,
    argument,
    operator_of,
    shape_of,
)

if TYPE_CHECKING:
    from slimdeploy.toolchain.networks.importer import Importer


def same(at: Importer, node: fx.Node) -> Any:
    return at.values[node.args[0]]  # type: ignore[index]


def converted(at: Importer, node: fx.Node) -> Any:
    """`x.float()`, `x.to(y)`, another memory format."""
    kind = node.meta["val"].dtype
    if kind != torch.float32:
        raise at.refused(node, f"{str(kind).removeprefix('torch.')} values aren't supported")
    return same(at, node)


def expand(at: Importer, node: fx.Node) -> Any:
    """`gate.expand_as(image)`, with one value per channel or per pixel, which arithmetic with the image does
    anyway; or a gray image as equal colours, `x.expand(-1, 3, -1, -1)`.
    """
    before, after = shape_of(node.args[0]), shape_of(node)
    if after[1:] == before[1:]:
        return at.value(node, 0)
    if len(before) == 4 and (before[1], after[1]) == (1, 3) and after[2:] == before[2:]:
        return at.add(node, "concat", *[at.value(node, 0)] * 3)
    alike = len(before) == len(after) and len(before) in (2, 4)
    if not alike or any(a != b for a, b in zip(before[1:], after[1:], strict=True) if a != 1):
        raise not_supported(at, node)
    return Expanded(at.value(node, 0), tuple(map(int, before[1:])))


def repeat(at: Importer, node: fx.Node) -> Any:
    """The channels of images repeated, such as a gray one as three equal colours."""
    found, times = at.values.get(node.args[0]), argument(node, 1, [])  # type: ignore[arg-type]
    if isinstance(found, str) and len(times) == 4 and (times[0], *times[2:]) == (1, 1, 1):
        return at.add(node, "concat", *[found] * int(times[1]))
    raise at.refused(node, "aten.repeat isn't supported")


def select(at: Importer, node: fx.Node) -> Any:
    """`x[:, 0]` is a channel; `x[:, :, 0]` of an image of one pixel drops a dimension, like squeeze."""
    before, axis, index = shape_of(node.args[0]), argument(node, 1, 0), int(argument(node, 2, 0))
    if len(before) == 4 and axis == 1:
        start = index % int(before[1])
        return Channel(at.add(node, "slice", at.value(node, 0), start=start, stop=start + 1))
    if axis % len(before) < 2 or before[axis] != 1:
        raise at.refused(node, "select is supported for one channel, and on images of one pixel")
    return reshape(at, node)


def unsqueeze(at: Importer, node: fx.Node) -> Any:
    found = at.values.get(node.args[0])  # type: ignore[arg-type]
    if isinstance(found, Channel) and argument(node, 1, 0) in (1, -3):
        return found.value
    flat = isinstance(found, Pixels) and not found.reduced
    if (flat or isinstance(found, Shares)) and len(shape_of(node)) == 4:  # (N, 1, C, H·W), (N, 1, H·W, 1)
        return found
    return reshape(at, node)


def transpose(at: Importer, node: fx.Node) -> Any:
    dimensions = len(shape_of(node))
    axes = {int(axis) % dimensions for axis in node.args[1:]}  # type: ignore[arg-type]
    if axes == {2, 3} and dimensions == 4 and isinstance(at.values.get(node.args[0]), str):  # type: ignore[arg-type]
        return at.add(node, "swap_sides", at.value(node, 0))
    if axes != {1, 2}:
        raise at.refused(node, "aten.transpose isn't supported")
    return _swapped(at, node)


def _swapped(at: Importer, node: fx.Node) -> Any:
    """The first argument with its dimensions 1 and 2 swapped."""
    found = at.values.get(node.args[0])  # type: ignore[arg-type]
    if isinstance(found, View):
        return View(found.value, found.groups, transposed=True)
    if isinstance(found, Rows):
        return Several(parts(at, node, found.value, found.rows, int(shape_of(node)[3])), 1)
    if isinstance(found, Squeezed):
        return Row(as_pixel(at, node, 2))
    if isinstance(found, Row):
        return as_pixel(at, node, 3)
    if isinstance(found, Shares):
        return found
    if isinstance(found, Pixels) and not found.reduced:
        return Tokens(found.value, found.size)
    if isinstance(found, Tokens):
        return Pixels(found.value, found.size)
    raise at.refused(node, f"aten.{operator_of(node)} isn't supported")


def permute(at: Importer, node: fx.Node) -> Any:
    found, dimensions = at.values.get(node.args[0]), len(shape_of(node))  # type: ignore[arg-type]
    order = [axis % dimensions for axis in argument(node, 1, [])]
    if order == [0, 2, 1]:
        return _swapped(at, node)
    if isinstance(found, View) and order == [0, 2, 1, 3, 4]:
        return _swapped(at, node)
    if isinstance(found, Blocks):
        return replace(found, order=tuple(found.order[i] for i in order))
    if isinstance(found, str) and order == [0, 1, 3, 2]:
        return at.add(node, "swap_sides", found)
    if isinstance(found, str) and order == [0, 2, 3, 1]:
        return ChannelsLast(found)
    if isinstance(found, ChannelsLast) and order == [0, 3, 1, 2]:
        return found.value
    raise at.refused(node, "aten.permute is supported from (N, C, H, W) to (N, H, W, C) and back only")


def zeros(at: Importer, node: fx.Node) -> Zeros:
    shape = shape_of(node)
    if len(shape) != 4:
        raise at.refused(node, f"aten.{operator_of(node)} is supported for images only")
    return Zeros(int(shape[1]))


def channel_shuffle(at: Importer, node: fx.Node) -> str:
    return at.add(node, "channel_shuffle", at.value(node, 0), groups=int(argument(node, 1, 1)))
