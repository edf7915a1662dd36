"""ATen operators that pool, pad or enlarge images, and the graph operator that each becomes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from torch import fx

from slimdeploy.toolchain.networks.aten_values import (
    PaddedChannels,
    View,
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


def max_pool_and_positions(at: Importer, node: fx.Node) -> list[str | None]:
    """With `return_indices`: the positions can't be used."""
    return [max_pool(at, node), None]


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
    before, after = shape_of(node.args[0])[2:], shape_of(node)[2:]
    for axis in (0, 1):  # (None, 1): one value for each row, at every size of the image
        if after[axis] == 1 and after[1 - axis] == before[1 - axis] > 1:
            return at.add(node, "axis_mean", at.value(node, 0), axis=2 + axis)
    return at.add(node, "adaptive_avg_pool", at.value(node, 0), size=[int(n) for n in shape_of(node)[2:]])


def channel_avg_pool(at: Importer, node: fx.Node) -> View:
    """`avg_pool3d` of images (N, 1, C, H, W), over windows of adjacent channels, as in local response
    normalisation.
    """
    found = at.values.get(node.args[0])  # type: ignore[arg-type]
    kernel, padding = _triple(node.args[1]), _triple(argument(node, 3, 0))
    before, after = padding[0], padding[0]
    if isinstance(found, PaddedChannels) and padding == [0, 0, 0]:
        before, after = found.before, found.after
    elif not _is_one_group(found) or padding[1:] != [0, 0] or not argument(node, 5, True):
        kernel = []
    window = kernel[0] if kernel[1:] == [1, 1] else 0
    stride, divisor = _triple(argument(node, 2, None) or kernel), argument(node, 6, None)
    if not window or stride != [1, 1, 1] or divisor or (before, after) != (window // 2, (window - 1) // 2):
        raise at.refused(node, "avg_pool3d is supported over adjacent channels only, with zeros around them")
    return View(at.add(node, "channel_avg_pool", found.value, window=window), 1)  # type: ignore[union-attr]


def _triple(value: Any) -> list[int]:
    values = [int(v) for v in value] if isinstance(value, list | tuple) else [int(value)]
    return values * 3 if len(values) == 1 else values


def _is_one_group(value: object) -> bool:
    """Whether it is an image that the program holds as (N, 1, C, H, W)."""
    return isinstance(value, View) and value.groups == 1 and not value.transposed


def adaptive_max_pool(at: Importer, node: fx.Node) -> list[str | None]:
    """Of its two results, the positions can't be used."""
    wanted = [int(n) for n in node.meta["val"][0].shape[2:]]
    if wanted == [1, 1]:
        return [at.add(node, "global_max_pool", at.value(node, 0)), None]
    return [at.add(node, "adaptive_max_pool", at.value(node, 0), size=wanted), None]


def pad(at: Importer, node: fx.Node) -> str | PaddedChannels:
    found, margins = at.values.get(node.args[0]), [int(n) for n in argument(node, 1, [])]  # type: ignore[arg-type]
    mode = argument(node, 2, "constant") if operator_of(node) == "pad" else "constant"
    filling = argument(node, 3 if operator_of(node) == "pad" else 2, 0)
    if (
        len(margins) == 6
        and margins[:4] == [0] * 4
        and min(margins) >= 0
        and (mode, filling) == ("constant", 0)
    ):
        if isinstance(found, View) and _is_one_group(found):
            return PaddedChannels(found.value, *margins[4:])
        return at.add(node, "pad_channels", at.value(node, 0), before=margins[4], after=margins[5])
    if filling == -math.inf and all(operator_of(user) == "max_pool2d" for user in node.users):
        mode, filling = "replicate", 0  # pixels that each window has already don't change its maximum
    if len(margins) != 4 or mode not in MODES or not math.isfinite(filling):
        raise at.refused(
            node,
            "padding is supported on the four sides of an image with a number, reflected or replicated "
            "pixels, and along the channels with zeros",
        )
    image, outer = at.value(node, 0), [max(0, n) for n in margins]
    if filling:  # as zeros around the difference
        image = at.add(node, "affine", image, factor=1.0, offset=-float(filling))
    if min(margins) < 0:
        image = at.add(node, "crop", image, margins=[max(0, -n) for n in margins])
    if any(outer):
        other = {} if mode == "constant" else {"mode": mode}
        image = at.add(node, "pad", image, margins=outer, **other)
    return at.add(node, "affine", image, factor=1.0, offset=float(filling)) if filling else image


def upsample(at: Importer, node: fx.Node) -> str:
    before, after = shape_of(node.args[0])[2:], shape_of(node)[2:]
    smooth: dict[str, Any] = {}
    if operator_of(node) == "upsample_bilinear2d":
        smooth["align_corners"] = bool(argument(node, 2, False))
    if any(large % small for large, small in zip(after, before, strict=True)):
        scales = argument(node, 3 if smooth else 2, None)
        if scales and [n * scale for n, scale in zip(before, scales, strict=True)] != after:
            factors, given = "×".join(map(str, scales)), "×".join(map(str, before))
            raise at.refused(node, f"resizing by {factors} from {given} pixels isn't supported")
        smooth |= {"size": [int(n) for n in before], "to": [int(n) for n in after]}
        return at.add(node, "resize", at.value(node, 0), **smooth)
    factor = [int(large // small) for large, small in zip(after, before, strict=True)]
    return at.add(node, "upsample", at.value(node, 0), factor=factor, **smooth)
