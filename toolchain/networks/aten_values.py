"""The values of a traced program that are no plain image or vector, and the arguments of its calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx


@dataclass(frozen=True)
class View:
    """A reshaped value whose purpose is not known yet: channels in groups, transposed or not."""

    value: str
    groups: int
    transposed: bool = False


@dataclass(frozen=True)
class PaddedChannels:
    """An image (N, C, H, W) that the program holds as (N, 1, before + C + after, H, W), with channels of
    zeros around its own.
    """

    value: str
    before: int
    after: int


@dataclass(frozen=True)
class ChannelsLast:
    """An image (N, C, H, W) that the program holds as (N, H, W, C)."""

    value: str


@dataclass(frozen=True)
class Tokens:
    """An image (N, C, H, W) that the program holds as (N, H·W, C). `size`: height and width."""

    value: str
    size: tuple[int, int]


@dataclass(frozen=True)
class Row:
    """A vector (N, C) that the program holds as (N, 1, C)."""

    value: str


@dataclass(frozen=True)
class Squeezed:
    """An image (N, C, 1, 1) that the program holds as (N, C, 1)."""

    value: str


LAYOUTS = (ChannelsLast, Tokens, Row, Squeezed)
"""Other memory layouts of an image or a vector."""


@dataclass(frozen=True)
class Pixels:
    """An image whose pixels are in one dimension, (N, C, H·W), or whose rows or columns were `reduced` by an
    operator. The same over the dimension `left` makes one value per channel. `size`: height and width.
    """

    value: str
    size: tuple[int, int]
    left: int = 2
    reduced: str = ""


@dataclass(frozen=True)
class Shares:
    """What each pixel contributes to a mean, up to a factor: an image of one channel, whose pixels the
    program holds in one dimension.
    """

    value: str


@dataclass(frozen=True)
class WeightedPixels:
    """Pixels, in one dimension, times their shares."""

    value: str
    shares: str


@dataclass(frozen=True)
class Column:
    """An image (N, C, 1, 1) that the program holds as (N, 1, C, 1)."""

    value: str


@dataclass(frozen=True)
class Blocks:
    """An image whose pixels are in blocks of `side`×`side`: (N, C, H/side, side, W/side, side), or with the
    dimensions in another order.
    """

    value: str
    side: int
    order: tuple[int, ...] = (0, 1, 2, 3, 4, 5)


BLOCK_ORDERS = {(0, 1, 3, 5, 2, 4): True, (0, 3, 5, 1, 2, 4): False}
"""Order of the dimensions of Blocks before they become channels -> whether the pixels of one channel stay
together, as in torch's pixel_unshuffle.
"""


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
    """Images or vectors of equal shape in a new dimension `axis`, 0 or 1."""

    values: tuple[str, ...]
    axis: int


@dataclass(frozen=True)
class Rows:
    """A vector (N, rows·C) that the program holds as (N, 1, rows, C)."""

    value: str
    rows: int


@dataclass(frozen=True)
class Zeros:
    """An image of zeros, which the program makes to join it to another one."""

    channels: int


@dataclass(frozen=True)
class Constant:
    """A parameter, buffer or constant of the module by name, possibly reshaped; or the value that takes its
    place, `computed_by` a node of the program.
    """

    name: str
    computed_by: fx.Node | None = None


COPIES = ("contiguous", "clone", "alias", "detach", "lift_fresh_copy")
"""ATen operators whose result is the same value."""
CONVERSIONS = ("to", "type_as")
"""ATen operators that move a tensor to another device, or change its type or memory format."""


def argument(node: fx.Node, index: int, default: Any) -> Any:
    """Argument `index` of the call; `default` if it is omitted or None."""
    found = node.args[index] if len(node.args) > index else default
    return default if found is None else found


def operator_of(node: fx.Node) -> str:
    """The ATen operator of a call, without namespace, overload and surrounding underscores."""
    return str(getattr(node.target, "__name__", node.target)).partition(".")[0].strip("_")


def pair(value: Any) -> list[int]:
    values = [int(v) for v in value] if isinstance(value, list | tuple) else [int(value)]
    return values * 2 if len(values) == 1 else values


def shape_of(node: Any) -> list[Any]:
    return list(node.meta["val"].shape)
