"""ATen operators that take images apart or join them, and the graph operator that each becomes."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import fx

from slimdeploy.toolchain.networks.aten_values import (
    Channel,
    ChannelsLast,
    Several,
    Tokens,
    Zeros,
    argument,
    operator_of,
    shape_of,
)

if TYPE_CHECKING:
    from slimdeploy.toolchain.networks.importer import Importer


def pieces(at: Importer, node: fx.Node) -> list[Any]:
    shape, axis = shape_of(node.args[0]), at.channel_axis(node.args[0])
    along = argument(node, 2, 0) % len(shape)
    if along in (2, 3) and along != axis and not at.has_channels_last(node.args[0]):
        return _strips(at, node, along, [int(piece.shape[along]) for piece in node.meta["val"]])
    if along != axis:
        raise at.refused(node, "chunk and split are supported along channels, rows and columns only")
    found, start = [], 0
    for piece in node.meta["val"]:
        stop = start + int(piece.shape[axis])
        found.append(_channels(at, node, start, stop))
        start = stop
    return found


def _strips(at: Importer, node: fx.Node, axis: int, sizes: list[int]) -> list[str]:
    """Rows or columns of the first argument, in pieces of `sizes`."""
    starts = list(itertools.accumulate(sizes, initial=0))
    size = shape_of(node.args[0])[2:]
    return [
        _window(at, node, at.value(node, 0), axis, (start, starts[-1] - stop), 1, size=size)
        for start, stop in itertools.pairwise(starts)
    ]


def picked(at: Importer, node: fx.Node) -> str:
    """`x[:, [2, 1, 0]]`, `x.flip(1)` and `index_select`: channels in another order."""
    channels, name = int(shape_of(node.args[0])[1]), operator_of(node)
    if name == "flip":
        indices = list(range(channels))[::-1] if argument(node, 1, []) in ([1], [-3]) else None
    elif name == "index_select":
        indices = at.constants.integers(node.args[2]) if argument(node, 1, 0) in (1, -3) else None
    else:
        first, *others = argument(node, 1, [])
        indices = at.constants.integers(others[0]) if first is None and len(others) == 1 else None
    if indices is None:
        raise at.refused(node, f"aten.{name} is supported for channels at constant positions only")
    order = np.asarray(indices) % channels
    runs = np.split(order, np.flatnonzero(np.diff(order) != 1) + 1)
    parts = [_channels(at, node, int(run[0]), int(run[-1]) + 1) for run in runs]
    return at.add(node, "concat", *parts) if len(parts) > 1 else str(parts[0])


def _channels(at: Importer, node: fx.Node, start: int, stop: int) -> Any:
    """A range of the channels of the first argument."""
    part = at.add(node, "slice", at.value(node, 0), start=start, stop=stop)
    return at.in_layout_of(node.args[0], part)


def cut(at: Importer, node: fx.Node) -> Any:
    before, after = shape_of(node.args[0]), shape_of(node)
    if before[1:] == after[1:]:  # x[:, :]: all of it
        return at.values[node.args[0]]  # type: ignore[index]
    axis, first, step = (int(argument(node, i, default)) for i, default in ((1, 0), (2, 0), (4, 1)))
    start = max(0, first + int(before[axis])) if first < 0 else first
    if len(before) == 4 and axis in (2, 3) and not at.has_channels_last(node.args[0]):
        stop = min(argument(node, 3, before[axis]), before[axis])
        after_it = before[axis] - stop if stop >= 0 else -stop
        # A position from the other end of the image is another margin in an image of another size.
        size = before[2:] if first < 0 or 0 <= stop < before[axis] else None
        return _window(at, node, at.value(node, 0), axis, (start, int(after_it)), step, size=size)
    if axis != at.channel_axis(node.args[0]) or step != 1:
        raise at.refused(node, "slices are supported along the channels without a step, and of images")
    return _channels(at, node, start, start + int(after[axis]))


def _window(
    at: Importer,
    node: fx.Node,
    value: str,
    axis: int,
    ends: tuple[int, int],
    step: int,
    *,
    size: list[Any] | None = None,
) -> str:
    """Every `step`-th row or column of `value` without those at the `ends`: a crop, and a pooling of single
    pixels. If `value` is such a window along the other axis, one of both replaces it. `size`: that of the
    image, if the ends are for it alone.
    """
    margins, stride = [0] * 4, [1, 1]
    separate = size is not None
    earlier, before = at.nodes.get(value), value
    if earlier and earlier.operator == "max_pool" and earlier.attributes["kernel"] == [1, 1]:
        stride, before = list(earlier.attributes["stride"]), earlier.inputs[0]
        earlier = at.nodes.get(before)
    if earlier and earlier.operator == "crop":
        margins, before = list(earlier.attributes["margins"]), earlier.inputs[0]
        separate = separate or "size" in earlier.attributes
    own = slice(0, 2) if axis == 3 else slice(2, 4)
    if separate or stride[axis - 2] != 1 or any(margins[own]):
        margins, stride, before = [0] * 4, [1, 1], value
    margins[own], stride[axis - 2] = ends, step
    if any(margins):
        only: dict[str, Any] = {"size": [int(n) for n in size]} if size else {}
        before = at.add(node, "crop", before, margins=margins, **only)
    if stride != [1, 1]:
        before = at.add(node, "max_pool", before, kernel=[1, 1], stride=stride, padding=[0, 0])
    return before


def pixel_unshuffle(at: Importer, node: fx.Node) -> str:
    return space_to_depth(at, node, at.value(node, 0), int(argument(node, 1, 1)), channels_first=True)


def space_to_depth(at: Importer, node: fx.Node, value: str, side: int, *, channels_first: bool) -> str:
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


def stack(at: Importer, node: fx.Node) -> Any:
    parts = [at.values.get(part) for part in argument(node, 0, [])]
    channels = [part.value for part in parts if isinstance(part, Channel)]
    if argument(node, 1, 0) in (1, -3) and len(channels) == len(parts):
        return at.add(node, "concat", *channels)
    names = [part for part in parts if isinstance(part, str)]
    axis = int(argument(node, 1, 0))
    if axis not in (0, 1) or len(names) != len(parts):
        raise at.refused(node, "stack is supported for images or vectors, in a new first or second dimension")
    return Several(tuple(names), axis)


def cat(at: Importer, node: fx.Node) -> Any:
    parts = [
        Zeros(int(shape_of(part)[1])) if at.constants.is_zero(part) else at.values.get(part)
        for part in argument(node, 0, [])
    ]
    last = [part.value for part in parts if isinstance(part, ChannelsLast | Tokens)]
    first, axis = argument(node, 0, [])[0], argument(node, 1, 0) % len(shape_of(node))
    if len(last) == len(parts) and axis == at.channel_axis(first):
        return at.in_layout_of(first, at.add(node, "concat", *last))
    names = [part for part in parts if isinstance(part, str)]
    if axis in (2, 3) and len(shape_of(node)) == 4 and len(names) == len(parts):
        return _joined(at, node, names, axis)
    if axis != 1 or last:
        raise at.refused(node, "cat is supported along channels, rows and columns only")
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


def _joined(at: Importer, node: fx.Node, images: list[str], axis: int) -> str:
    """Images below or beside each other."""
    if axis == 2:
        return at.add(node, "join_rows", *images)
    turned = [at.add(node, "swap_sides", image) for image in images]
    return at.add(node, "swap_sides", at.add(node, "join_rows", *turned))
