"""ATen operators that take a mean over the pixels, weighted by the softmax of one channel, as in GCNet (Cao
et al., arXiv 1904.11492), and the graph operators that they become.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import fx

from slimdeploy.toolchain.networks.aten_values import (
    Column,
    Pixels,
    Shares,
    Squeezed,
    WeightedPixels,
    argument,
    shape_of,
)

if TYPE_CHECKING:
    from slimdeploy.toolchain.networks.importer import Importer


def shares(at: Importer, node: fx.Node) -> Shares | None:
    """The softmax over the pixels of one channel; None if `node` is another softmax."""
    found, shape = at.values.get(node.args[0]), shape_of(node)  # type: ignore[arg-type]
    last = argument(node, 1, -1) in (-1, len(shape) - 1)
    if not isinstance(found, Pixels) or found.reduced or not last or shape[1] != 1:
        return None
    largest = at.add(node, "global_max_pool", found.value)
    return Shares(at.add(node, "exp", at.difference(node, found.value, largest)))


def shares_of_channels(at: Importer, node: fx.Node) -> str | None:
    """The softmax over the channels of an image or a vector; None if `node` is another softmax."""
    found, shape = at.values.get(node.args[0]), shape_of(node)  # type: ignore[arg-type]
    if not isinstance(found, str) or argument(node, 1, -1) % len(shape) != 1:
        return None
    largest = at.add(node, "channel_max", found)
    parts = at.add(node, "exp", at.difference(node, found, largest))
    return at.add(node, "divide", parts, at.add(node, "channel_mean", parts, count=1))


def weighted(at: Importer, node: fx.Node) -> WeightedPixels | None:
    """Pixels times their shares; None if the arguments of `node` are others."""
    found = _pixels_and_shares(at, node)
    return WeightedPixels(*found) if found else None


def product(at: Importer, node: fx.Node) -> Any:
    """The matrix product of pixels and their shares, which is a weighted mean; None for other arguments."""
    found = _pixels_and_shares(at, node)
    if not found or not isinstance(at.values.get(node.args[1]), Shares):  # type: ignore[arg-type]
        return None
    image = _mean(at, node, *found)
    return Squeezed(image) if len(shape_of(node)) == 3 else Column(image)


def total(at: Importer, node: fx.Node) -> Any:
    """The `sum` of weighted pixels; None for another argument."""
    found, shape = at.values.get(node.args[0]), shape_of(node.args[0])  # type: ignore[arg-type]
    if not isinstance(found, WeightedPixels) or argument(node, 1, []) not in ([-1], [len(shape) - 1]):
        return None
    image = _mean(at, node, found.value, found.shares)
    return Squeezed(image) if argument(node, 2, False) else at.add(node, "flatten", image, positions=1)


def _pixels_and_shares(at: Importer, node: fx.Node) -> tuple[str, str] | None:
    found = [at.values.get(one) for one in node.args[:2]]  # type: ignore[arg-type]
    pixels = [one.value for one in found if isinstance(one, Pixels) and not one.reduced]
    by_pixel = [one.value for one in found if isinstance(one, Shares)]
    return (pixels[0], by_pixel[0]) if pixels and by_pixel else None


def _mean(at: Importer, node: fx.Node, value: str, by_pixel: str) -> str:
    """Σ x·e / Σ e, as the quotient of two means: it is the same at every size of the image."""
    product = at.add(node, "multiply", value, by_pixel)
    sums = [at.add(node, "adaptive_avg_pool", one, size=[1, 1]) for one in (product, by_pixel)]
    return at.add(node, "divide", *sums)
