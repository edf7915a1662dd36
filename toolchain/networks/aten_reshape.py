"""`view`, `reshape`, `flatten` and `squeeze`: values in another shape, by their kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import fx

from slimdeploy.toolchain.networks.aten_several import parts
from slimdeploy.toolchain.networks.aten_slices import space_to_depth
from slimdeploy.toolchain.networks.aten_values import (
    BLOCK_ORDERS,
    Blocks,
    Channel,
    ChannelsLast,
    Column,
    Pixels,
    Row,
    Rows,
    Several,
    Squeezed,
    Tokens,
    View,
    operator_of,
    shape_of,
)

if TYPE_CHECKING:
    from slimdeploy.toolchain.networks.importer import Importer

Dimensions = list[Any]
"""A shape with the batch, which is a symbol."""


def reshape(at: Importer, node: fx.Node) -> Any:
    before, after = shape_of(node.args[0]), shape_of(node)
    found = at.values.get(node.args[0])  # type: ignore[arg-type]
    if after[1:] == before[1:]:
        return found
    made = BY_KIND[type(found)](at, node, found, before, after) if type(found) in BY_KIND else None
    if made is None:
        raise not_supported(at, node)
    return made


def not_supported(at: Importer, node: fx.Node) -> Exception:
    """The error for the shapes of `node`."""
    before, after = (
        "×".join("N" if i == 0 else str(n) for i, n in enumerate(shape_of(one)))
        for one in (node.args[0], node)
    )
    return at.refused(node, f"aten.{operator_of(node)} from {before} to {after} isn't supported")


def _plain(at: Importer, node: fx.Node, value: str, before: Dimensions, after: Dimensions) -> Any:
    """A vector, or an image (N, C, H, W)."""
    if _is_pixel(before) and (made := _of_pixel(at, node, value, before, after)) is not None:
        return made
    if len(before) != 4:
        return None
    _, channels, height, width = before
    if len(after) == 2:
        return at.add(node, "flatten", value, positions=int(height * width))
    if after[1:] == [channels, height * width]:
        return Pixels(value, (int(height), int(width)))
    if len(after) == 5 and after[3:] == [height, width]:
        return View(value, int(after[1]))
    if len(after) == 6 and after[1] == channels and after[3] == after[5]:
        return Blocks(value, int(after[3]))
    return None


def _of_pixel(at: Importer, node: fx.Node, found: Any, before: Dimensions, after: Dimensions) -> Any:
    """A vector, or an image of one pixel: (N, C), (N, C, 1) or (N, C, 1, 1)."""
    channels = before[1]
    if _is_pixel(after) and after[1] == channels:
        return as_pixel(at, node, len(after))
    if len(after) == 4 and after[1] == 1 and after[2] * after[3] == channels:
        return Rows(as_pixel(at, node, 2), int(after[2]))
    if after[1:] == [1, channels]:
        return Row(as_pixel(at, node, 2))
    as_view = len(before) == 4 and len(after) == 5  # whose purpose is not known yet
    if 3 <= len(after) <= 5 and not as_view and _is_line(after[2:], channels // after[1]):
        value = as_pixel(at, node, 4 if len(after) == 5 else 2)
        return Several(parts(at, node, value, int(after[1]), int(channels // after[1])), 1)
    return None


def _of_row(at: Importer, node: fx.Node, found: Row, before: Dimensions, after: Dimensions) -> Any:
    return as_pixel(at, node, len(after)) if _is_pixel(after) and after[1] == before[2] else None


def _of_view(at: Importer, node: fx.Node, found: View, before: Dimensions, after: Dimensions) -> str | None:
    if found.transposed and len(after) == 4:
        return at.add(node, "channel_shuffle", found.value, groups=found.groups)
    joined = not found.transposed and after[1:] == [before[1] * before[2], *before[3:]]
    return found.value if joined else None


def _of_channels_last(
    at: Importer, node: fx.Node, found: ChannelsLast, before: Dimensions, after: Dimensions
) -> Tokens | None:
    _, height, width, channels = before
    joined = after[1:] == [height * width, channels]
    return Tokens(found.value, (int(height), int(width))) if joined else None


def _of_tokens(at: Importer, node: fx.Node, found: Tokens, before: Dimensions, after: Dimensions) -> Any:
    if after[1:] == [*found.size, before[2]]:
        return ChannelsLast(found.value)
    if found.size == (1, 1) and _is_pixel(after) and after[1] == before[2]:
        return _pixel(at, node, found.value, vector=False, dimensions=len(after))
    return None


def _of_pixels(
    at: Importer, node: fx.Node, found: Pixels, before: Dimensions, after: Dimensions
) -> str | None:
    return found.value if not found.reduced and after[1:] == [before[1], *found.size] else None


def _of_channel(
    at: Importer, node: fx.Node, found: Channel, before: Dimensions, after: Dimensions
) -> str | None:
    return found.value if after[1:] == [1, *before[1:]] else None


def _of_column(at: Importer, node: fx.Node, found: Column, before: Dimensions, after: Dimensions) -> Any:
    if not _is_pixel(after) or after[1] != before[2]:
        return None
    return _pixel(at, node, found.value, vector=False, dimensions=len(after))


def _of_several(at: Importer, node: fx.Node, found: Several, before: Dimensions, after: Dimensions) -> Any:
    """Several vectors or images of one pixel, joined to one, or with other dimensions of 1. (N, several, C),
    (N, several, 1, C) and (N, several, C, 1) hold vectors.
    """
    count, vectors = len(found.values), len(before) < 5
    own = max(before[2:]) if vectors else before[2]
    if found.axis != 1:
        return None
    if _is_pixel(after) and after[1] == count * own:
        joined = at.add(node, "concat", *found.values)
        return _pixel(at, node, joined, vector=vectors, dimensions=len(after))
    if not vectors or after[1] != count or not _is_line(after[2:], own):
        return None
    if len(after) < 5:
        return found
    return Several(tuple(at.add(node, "unflatten", value) for value in found.values), 1)


def _of_blocks(
    at: Importer, node: fx.Node, found: Blocks, before: Dimensions, after: Dimensions
) -> str | None:
    if found.order not in BLOCK_ORDERS or len(after) != 4 or after[2:] != before[-2:]:
        return None
    return space_to_depth(at, node, found.value, found.side, channels_first=BLOCK_ORDERS[found.order])


BY_KIND: dict[type, Callable[..., Any]] = {
    str: _plain,
    Squeezed: _of_pixel,
    Row: _of_row,
    View: _of_view,
    ChannelsLast: _of_channels_last,
    Tokens: _of_tokens,
    Pixels: _of_pixels,
    Channel: _of_channel,
    Column: _of_column,
    Several: _of_several,
    Blocks: _of_blocks,
}
"""Kind of a value -> its conversion, from the shape before to that after; None if there is none."""


def _is_pixel(shape: Dimensions) -> bool:
    """Whether `shape` is (N, C), (N, C, 1) or (N, C, 1, 1)."""
    return 2 <= len(shape) <= 4 and all(n == 1 for n in shape[2:])


def _is_line(shape: Dimensions, length: Any) -> bool:
    """Whether all dimensions are 1 except for one of this length."""
    return sorted(shape) == sorted([1] * (len(shape) - 1) + [length])


def as_pixel(at: Importer, node: fx.Node, dimensions: int) -> Any:
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
