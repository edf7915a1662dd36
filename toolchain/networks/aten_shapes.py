"""ATen operators that change only the shape of a value, and the graph operator that each becomes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import fx

if TYPE_CHECKING:
    from slimdeploy.toolchain.networks.importer import Importer


@dataclass(frozen=True)
class View:
    """A reshaped value whose purpose is not known yet: channels in groups, transposed or not."""

    value: str
    groups: int
    transposed: bool = False


@dataclass(frozen=True)
class ChannelsLast:
    """An image (N, C, H, W) that the program holds as (N, H, W, C)."""

    value: str


@dataclass(frozen=True)
class Row:
    """A vector (N, C) that the program holds as (N, 1, C)."""

    value: str


@dataclass(frozen=True)
class Squeezed:
    """An image (N, C, 1, 1) that the program holds as (N, C, 1)."""

    value: str


BLOCK_ORDERS = {(0, 1, 3, 5, 2, 4): True, (0, 3, 5, 1, 2, 4): False}
"""Order of the dimensions of Blocks before they become channels -> whether the pixels of one channel stay
together, as in torch's pixel_unshuffle.
"""

LAYOUTS = (ChannelsLast, Row, Squeezed)
"""Other memory layouts of an image or a vector."""


@dataclass(frozen=True)
class Pixels:
    """An image whose pixels are in one dimension, (N, C, H·W), or whose rows or columns were `reduced` by an
    operator. The same over the dimensions `left` makes one value per channel.
    """

    value: str
    left: int
    reduced: str = ""


@dataclass(frozen=True)
class Blocks:
    """An image whose pixels are in blocks of `side`×`side`: (N, C, H/side, side, W/side, side), or with the
    dimensions in another order.
    """

    value: str
    side: int
    order: tuple[int, ...] = (0, 1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Expanded:
    """An image (N, C, 1, 1) or (N, 1, H, W) that the program repeats for all pixels or channels of another
    one.
    """

    value: str
    shape: tuple[int, ...]
    """Without the batch."""


@dataclass(frozen=True)
class Channel:
    """One channel (N, 1, H, W) of an image, which the program holds as (N, H, W)."""

    value: str


@dataclass(frozen=True)
class Several:
    """Values of equal shape in a new first dimension, of which the program takes the mean."""

    values: tuple[str, ...]


@dataclass(frozen=True)
class Zeros:
    """An image of zeros, which the program makes to join it to another one."""

    channels: int


@dataclass(frozen=True)
class Constant:
    """A parameter, buffer or constant of the module by name, possibly reshaped."""

    name: str


def argument(node: fx.Node, index: int, default: Any) -> Any:
    """Argument `index` of the call; `default` if it is omitted or None."""
    found = node.args[index] if len(node.args) > index else default
    return default if found is None else found


def pair(value: Any) -> list[int]:
    values = [int(v) for v in value] if isinstance(value, list | tuple) else [int(value)]
    return values * 2 if len(values) == 1 else values


def shape_of(node: Any) -> list[Any]:
    return list(node.meta["val"].shape)


def same(at: Importer, node: fx.Node) -> Any:
    return at.values[node.args[0]]  # type: ignore[index]


def reshape(at: Importer, node: fx.Node) -> Any:
    before, after = shape_of(node.args[0]), shape_of(node)
    found = at.values.get(node.args[0])  # type: ignore[arg-type]
    if isinstance(found, Constant):
        return found
    if isinstance(found, View):
        if found.transposed and len(after) == 4:
            return at.add(node, "channel_shuffle", found.value, groups=found.groups)
    elif after[1:] == before[1:]:
        return found
    elif isinstance(found, ChannelsLast):
        pass
    elif _one_pixel(before) and _one_pixel(after) and after[1] == before[1]:
        return _as_pixel(at, node, len(after))
    elif len(before) == 2 and len(after) == 3 and after[1:] == [1, before[1]]:
        return Row(at.value(node, 0))
    elif isinstance(found, Row) and _one_pixel(after) and after[1] == before[2]:
        return _as_pixel(at, node, len(after))
    elif len(before) == 4 and len(after) == 2:
        return at.add(node, "flatten", at.value(node, 0), positions=int(before[2] * before[3]))
    elif len(before) == 4 and len(after) == 3 and after[1:] == [before[1], before[2] * before[3]]:
        return Pixels(at.value(node, 0), left=2)
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
        return _space_to_depth(at, node, found.value, found.side, channels_first=BLOCK_ORDERS[found.order])
    raise at.refused(node, f"aten.{at.operator(node)} from {_told(before)} to {_told(after)} isn't supported")


def _one_pixel(shape: list[Any]) -> bool:
    """Whether `shape` is (N, C), (N, C, 1) or (N, C, 1, 1)."""
    return 2 <= len(shape) <= 4 and all(n == 1 for n in shape[2:])


def _as_pixel(at: Importer, node: fx.Node, dimensions: int) -> Any:
    """The first argument, one value per channel, in 2, 3 or 4 dimensions."""
    found = at.values.get(node.args[0])  # type: ignore[arg-type]
    vector = isinstance(found, Row) or len(shape_of(node.args[0])) == 2
    value = found.value if isinstance(found, Squeezed) else at.value(node, 0)
    if dimensions == 2:
        return value if vector else at.add(node, "flatten", value, positions=1)
    image = at.add(node, "unflatten", value) if vector else value
    return Squeezed(image) if dimensions == 3 else image


def expand(at: Importer, node: fx.Node) -> Any:
    """`gate.expand_as(image)`, with one value per channel or per pixel, which arithmetic with the image does
    anyway; or a gray image as equal colours, `x.expand(-1, 3, -1, -1)`.
    """
    before, after = shape_of(node.args[0]), shape_of(node)
    found = at.values.get(node.args[0])  # type: ignore[arg-type]
    if isinstance(found, Constant):
        return found
    if after[1:] == before[1:]:
        return at.value(node, 0)
    if len(before) == 4 and (before[1], after[1]) == (1, 3) and after[2:] == before[2:]:
        return at.add(node, "concat", *[at.value(node, 0)] * 3)
    if len(before) != 4 or any(a != b for a, b in zip(before[1:], after[1:], strict=True) if a != 1):
        raise at.refused(
            node, f"aten.{at.operator(node)} from {_told(before)} to {_told(after)} isn't supported"
        )
    return Expanded(at.value(node, 0), tuple(map(int, before[1:])))


def repeat(at: Importer, node: fx.Node) -> Any:
    """A buffer repeated, as the filter of every channel, or the channels of images, such as a gray one as
    three equal colours.
    """
    found, times = at.values.get(node.args[0]), argument(node, 1, [])  # type: ignore[arg-type]
    if isinstance(found, Constant):
        return found
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
    return reshape(at, node)


def transpose(at: Importer, node: fx.Node) -> Any:
    dimensions = len(shape_of(node))
    if {int(axis) % dimensions for axis in node.args[1:]} != {1, 2}:  # type: ignore[arg-type]
        raise at.refused(node, "aten.transpose isn't supported")
    return _swapped(at, node)


def _swapped(at: Importer, node: fx.Node) -> Any:
    """The first argument with its dimensions 1 and 2 swapped."""
    found = at.values.get(node.args[0])  # type: ignore[arg-type]
    if isinstance(found, View):
        return View(found.value, found.groups, transposed=True)
    if isinstance(found, Squeezed):
        return Row(_as_pixel(at, node, 2))
    if isinstance(found, Row):
        return _as_pixel(at, node, 3)
    raise at.refused(node, f"aten.{at.operator(node)} isn't supported")


def permute(at: Importer, node: fx.Node) -> Any:
    found, dimensions = at.values.get(node.args[0]), len(shape_of(node))  # type: ignore[arg-type]
    order = [axis % dimensions for axis in argument(node, 1, [])]
    if order == [0, 2, 1]:
        return _swapped(at, node)
    if isinstance(found, View) and order == [0, 2, 1, 3, 4]:
        return _swapped(at, node)
    if isinstance(found, Blocks):
        return replace(found, order=tuple(found.order[i] for i in order))
    if isinstance(found, str) and order == [0, 2, 3, 1]:
        return ChannelsLast(found)
    if isinstance(found, ChannelsLast) and order == [0, 3, 1, 2]:
        return found.value
    raise at.refused(node, "aten.permute is supported from (N, C, H, W) to (N, H, W, C) and back only")


def zeros(at: Importer, node: fx.Node) -> Zeros:
    shape = shape_of(node)
    if len(shape) != 4:
        raise at.refused(node, f"aten.{at.operator(node)} is supported for images only")
    return Zeros(int(shape[1]))


def channel_shuffle(at: Importer, node: fx.Node) -> str:
    return at.add(node, "channel_shuffle", at.value(node, 0), groups=int(argument(node, 1, 1)))


def pieces(at: Importer, node: fx.Node) -> list[Any]:
    if argument(node, 2, 0) % len(shape_of(node.args[0])) != _channel_axis(at, node.args[0]):
        raise at.refused(node, "chunk and split are supported along the channels only")
    found, start = [], 0
    for piece in node.meta["val"]:
        stop = start + int(piece.shape[_channel_axis(at, node.args[0])])
        found.append(_channels(at, node, start, stop))
        start = stop
    return found


def _channel_axis(at: Importer, image: Any) -> int:
    return 3 if at.has_channels_last(image) else 1


def _channels(at: Importer, node: fx.Node, start: int, stop: int) -> Any:
    """A range of the channels of the first argument."""
    part = at.add(node, "slice", at.value(node, 0), start=start, stop=stop)
    return ChannelsLast(part) if at.has_channels_last(node.args[0]) else part


def cut(at: Importer, node: fx.Node) -> Any:
    before, after = shape_of(node.args[0]), shape_of(node)
    if before[1:] == after[1:]:  # x[:, :]: all of it
        return at.values[node.args[0]]  # type: ignore[index]
    axis, start, step = (int(argument(node, i, default)) for i, default in ((1, 0), (2, 0), (4, 1)))
    start = max(0, start + int(before[axis])) if start < 0 else start
    if len(before) == 4 and axis in (2, 3) and not at.has_channels_last(node.args[0]):
        stop = min(argument(node, 3, before[axis]), before[axis])
        after_it = before[axis] - stop if stop >= 0 else -stop
        return _window(at, node, at.value(node, 0), axis, (start, int(after_it)), step)
    if axis != _channel_axis(at, node.args[0]) or step != 1:
        raise at.refused(node, "slices are supported along the channels without a step, and of images")
    return _channels(at, node, start, start + int(after[axis]))


def _window(at: Importer, node: fx.Node, value: str, axis: int, ends: tuple[int, int], step: int) -> str:
    """Every `step`-th row or column of `value` without those at the `ends`: a crop, and a pooling of single
    pixels. If `value` is such a window along the other axis, one of both replaces it.
    """
    margins, stride, made = [0] * 4, [1, 1], {one.name: one for one in at.nodes}
    earlier, before = made.get(value), value
    if earlier and earlier.operator == "max_pool" and earlier.attributes["kernel"] == [1, 1]:
        stride, before = list(earlier.attributes["stride"]), earlier.inputs[0]
        earlier = made.get(before)
    if earlier and earlier.operator == "crop":
        margins, before = list(earlier.attributes["margins"]), earlier.inputs[0]
    own = slice(0, 2) if axis == 3 else slice(2, 4)
    if stride[axis - 2] != 1 or any(margins[own]):
        margins, stride, before = [0] * 4, [1, 1], value
    margins[own], stride[axis - 2] = ends, step
    if any(margins):
        before = at.add(node, "crop", before, margins=margins)
    if stride != [1, 1]:
        before = at.add(node, "max_pool", before, kernel=[1, 1], stride=stride, padding=[0, 0])
    return before


def pixel_unshuffle(at: Importer, node: fx.Node) -> str:
    return _space_to_depth(at, node, at.value(node, 0), int(argument(node, 1, 1)), channels_first=True)


def _space_to_depth(at: Importer, node: fx.Node, value: str, side: int, *, channels_first: bool) -> str:
    """The pixels of each block of `side`×`side` as channels; with `channels_first` those of one channel stay
    together.
    """
    windows = [
        _window(at, node, _window(at, node, value, 2, (top, 0), side), 3, (left, 0), side)
        for top in range(side)
        for left in range(side)
    ]
    joined = at.add(node, "concat", *windows)
    return at.add(node, "channel_shuffle", joined, groups=side * side) if channels_first else joined


def item(at: Importer, node: fx.Node) -> Any:
    found = at.values[node.args[0]]  # type: ignore[index]
    return found[node.args[1]] if isinstance(found, list) else found  # type: ignore[index]


def stack(at: Importer, node: fx.Node) -> Several:
    parts = [at.values.get(part) for part in argument(node, 0, [])]
    names = [part for part in parts if isinstance(part, str)]
    if argument(node, 1, 0) != 0 or len(names) != len(parts):
        raise at.refused(node, "stack is supported for a mean of images or vectors only")
    return Several(tuple(names))


def cat(at: Importer, node: fx.Node) -> Any:
    parts = [at.values.get(part) for part in argument(node, 0, [])]
    last = [part.value for part in parts if isinstance(part, ChannelsLast)]
    axis = argument(node, 1, 0) % len(shape_of(node))
    if len(last) == len(parts) and axis == 3:
        return ChannelsLast(at.add(node, "concat", *last))
    if axis != 1 or last:
        raise at.refused(node, "cat is supported along the channels only")
    names = [part for part in parts if isinstance(part, str)]
    zeros_beside = [part for part in parts if isinstance(part, Zeros)]
    if len(names) == 1 and zeros_beside and len(parts) == 1 + len(zeros_beside):
        position = parts.index(names[0])
        before, after = (
            sum(part.channels for part in some) for some in (zeros_beside[:position], zeros_beside[position:])
        )
        return at.add(node, "pad_channels", names[0], before=before, after=after)
    if len(names) != len(parts):
        raise at.refused(node, "cat of something that isn't an image or a vector")
    return at.add(node, "concat", *names)
