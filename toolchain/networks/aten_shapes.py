"""ATen operators that change only the shape of a value, and the graph operator that each becomes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from slimdeploy.toolchain.networks.aten_several import parts
from slimdeploy.toolchain.networks.aten_slices import space_to_depth
from slimdeploy.toolchain.networks.aten_values import (
    BLOCK_ORDERS,
    Blocks,
    Channel,
    ChannelsLast,
    Column,
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


def reshape(at: Importer, node: fx.Node) -> Any:
    before, after = shape_of(node.args[0]), shape_of(node)
    found = at.values.get(node.args[0])  # type: ignore[arg-type]
    if isinstance(found, View):
        if found.transposed and len(after) == 4:
            return at.add(node, "channel_shuffle", found.value, groups=found.groups)
        if not found.transposed and after[1:] == [before[1] * before[2], *before[3:]]:
            return found.value
    elif after[1:] == before[1:]:
        return found
    elif isinstance(found, ChannelsLast):
        if after[1:] == [before[1] * before[2], before[3]]:
            return Tokens(found.value, (int(before[1]), int(before[2])))
    elif isinstance(found, Tokens):
        if after[1:] == [*found.size, before[2]]:
            return ChannelsLast(found.value)
        if found.size == (1, 1) and _one_pixel(after) and after[1] == before[2]:
            return _pixel(at, node, found.value, vector=False, dimensions=len(after))
    elif isinstance(found, Pixels):
        if not found.reduced and after[1:] == [before[1], *found.size]:
            return found.value
    elif isinstance(found, Channel):
        if after[1:] == [1, *before[1:]]:
            return found.value
    elif isinstance(found, Column):
        if _one_pixel(after) and after[1] == before[2]:
            return _pixel(at, node, found.value, vector=False, dimensions=len(after))
    elif isinstance(found, Several):
        if found.axis == 1 and (reshaped := _several(at, node, found)) is not None:
            return reshaped
    elif _one_pixel(before) and _one_pixel(after) and after[1] == before[1]:
        return _as_pixel(at, node, len(after))
    elif _one_pixel(before) and len(after) == 4 and after[1] == 1 and after[2] * after[3] == before[1]:
        return Rows(_as_pixel(at, node, 2), int(after[2]))
    elif _one_pixel(before) and len(after) == 3 and after[1:] == [1, before[1]]:
        return Row(_as_pixel(at, node, 2))
    elif (
        _one_pixel(before)
        and (len(after) in (3, 4) or (len(after) == 5 and len(before) < 4))
        and _is_line(after[2:], before[1] // after[1])
    ):
        value = _as_pixel(at, node, 4 if len(after) == 5 else 2)
        return Several(parts(at, node, value, int(after[1]), int(max(after[2:]))), 1)
    elif isinstance(found, Row) and _one_pixel(after) and after[1] == before[2]:
        return _as_pixel(at, node, len(after))
    elif len(before) == 4 and len(after) == 2:
        return at.add(node, "flatten", at.value(node, 0), positions=int(before[2] * before[3]))
    elif len(before) == 4 and len(after) == 3 and after[1:] == [before[1], before[2] * before[3]]:
        return Pixels(at.value(node, 0), (int(before[2]), int(before[3])))
    elif len(before) == 4 and len(after) == 5 and after[3:] == before[2:]:
        return View(at.value(node, 0), int(after[1]))
    elif len(before) == 4 and len(after) == 6 and after[3] == after[5] and after[1] == before[1]:
        return Blocks(at.value(node, 0), int(after[3]))
    elif (
        isinstance(found, Blocks)
        and found.order in BLOCK_ORDERS
        and len(after) == 4
        and after[2:] == before[-2:]
    ):
        return space_to_depth(at, node, found.value, found.side, channels_first=BLOCK_ORDERS[found.order])
    raise at.refused(node, f"aten.{operator_of(node)} from {_told(before)} to {_told(after)} isn't supported")


def _one_pixel(shape: list[Any]) -> bool:
    """Whether `shape` is (N, C), (N, C, 1) or (N, C, 1, 1)."""
    return 2 <= len(shape) <= 4 and all(n == 1 for n in shape[2:])


def _is_line(shape: list[Any], length: Any) -> bool:
    """Whether all dimensions are 1 except for one of this length."""
    return sorted(shape) == sorted([1] * (len(shape) - 1) + [length])


def _several(at: Importer, node: fx.Node, found: Several) -> Any:
    """Several vectors or images of one pixel, joined to one, or with other dimensions of 1; None for another
    shape. (N, several, C), (N, several, 1, C) and (N, several, C, 1) hold vectors.
    """
    before, after, count = shape_of(node.args[0]), shape_of(node), len(found.values)
    vectors = len(before) < 5
    own = max(before[2:]) if vectors else before[2]
    if _one_pixel(after) and after[1] == count * own:
        joined = at.add(node, "concat", *found.values)
        return _pixel(at, node, joined, vector=vectors, dimensions=len(after))
    if not vectors or after[1] != count or not _is_line(after[2:], own):
        return None
    if len(after) < 5:
        return found
    return Several(tuple(at.add(node, "unflatten", value) for value in found.values), 1)


def _as_pixel(at: Importer, node: fx.Node, dimensions: int) -> Any:
    """The first argument, one value per channel, in 2, 3 or 4 dimensions."""
    found = at.values.get(node.args[0])  # type: ignore[arg-type]
    vector = isinstance(found, Row) or len(shape_of(node.args[0])) == 2
    value = found.value if isinstance(found, Squeezed) else at.value(node, 0)
    return _pixel(at, node, value, vector=vector, dimensions=dimensions)


def _pixel(at: Importer, node: fx.Node, value: str, *, vector: bool, dimensions: int) -> Any:
    """A `value`, which is a vector or an image of one pixel, in 2, 3 or 4 dimensions."""
    if dimensions == 2:
        return value if vector else at.add(node, "flatten", value, positions=1)
    image = at.add(node, "unflatten", value) if vector else value
    return Squeezed(image) if dimensions == 3 else image


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
        raise at.refused(
            node, f"aten.{operator_of(node)} from {_told(before)} to {_told(after)} isn't supported"
        )
    return Expanded(at.value(node, 0), tuple(map(int, before[1:])))


def repeat(at: Importer, node: fx.Node) -> Any:
    """The channels of images repeated, such as a gray one as three equal colours."""
    found, times = at.values.get(node.args[0]), argument(node, 1, [])  # type: ignore[arg-type]
    if isinstance(found, str) and len(times) == 4 and (times[0], *times[2:]) == (1, 1, 1):
        return at.add(node, "concat", *[found] * int(times[1]))
    raise at.refused(node, "aten.repeat isn't supported")


def _told(shape: list[Any]) -> str:
    return "×".join("N" if i == 0 else str(n) for i, n in enumerate(shape))


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
        return Row(_as_pixel(at, node, 2))
    if isinstance(found, Row):
        return _as_pixel(at, node, 3)
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
