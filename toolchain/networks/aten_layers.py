"""ATen operators with weights or statistics, and the graph operator that each becomes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from slimdeploy.toolchain.networks import aten_arithmetic as arithmetic
from slimdeploy.toolchain.networks import aten_attention as attention
from slimdeploy.toolchain.networks.aten_values import Constant, Row, argument, operator_of, pair, shape_of

if TYPE_CHECKING:
    from slimdeploy.toolchain.networks.importer import Importer


def conv(at: Importer, node: fx.Node) -> str:
    weight = node.args[1]
    if isinstance(filters := at.values.get(weight), Constant) and not at.is_trained(filters.name):  # type: ignore[arg-type]
        return fixed_filter(at, node)
    out, per_group, *kernel = shape_of(weight)
    stride, groups = pair(argument(node, 3, 1)), int(argument(node, 6, 1))
    images, padding, dilation = _padded(at, node, kernel)
    parts = {
        "in": per_group * groups, "out": out, "kernel": list(kernel), "stride": stride, "padding": padding,
        "dilation": dilation, "groups": groups, "bias": argument(node, 2, None) is not None,
    }  # fmt: skip
    stacked = at.is_called_again(node)
    name = at.layer(node, weight=1, bias=2, stacked=stacked)
    if stacked:
        return at.call_stacked(node, "conv", images, name, **parts | {"stride": [1, 1]})
    return at.add(node, "conv", images, name=name, **parts)


def _padded(at: Importer, node: fx.Node, kernel: list[int]) -> tuple[str, list[int], list[int]]:
    """The images of a convolution, its padding and its dilation. "same" adds a `pad` if the sides differ."""
    images, padding, dilation = at.value(node, 0), argument(node, 4, 0), pair(argument(node, 5, 1))
    if padding == "valid":
        padding = 0
    elif padding == "same":
        missing = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        padding = [m // 2 for m in missing]
        below, right = (m % 2 for m in missing)
        if below or right:
            images = at.add(node, "pad", images, margins=[0, right, 0, below])
    return images, pair(padding), dilation


def fixed_filter(at: Importer, node: fx.Node) -> str:
    """A depthwise convolution with a buffer, possibly expanded or repeated for all channels."""
    name = at.constant(node.args[1])
    out, per_group, *kernel = shape_of(node.args[1])
    channels, shape = int(shape_of(node.args[0])[1]), at.constants.shape(name)
    each, values = math.prod(kernel), math.prod(shape)
    alike = values == each or (values == each * channels and shape[0] == channels)
    bias = argument(node, 2, None) is not None
    if (out, per_group, argument(node, 6, 1)) != (channels, 1, channels) or bias or not alike:
        raise at.refused(node, "a buffer as the weight is supported as one filter per channel, without bias")
    images, padding, dilation = _padded(at, node, kernel)
    if dilation != [1, 1]:
        raise at.refused(node, "a dilated convolution with a buffer isn't supported")
    return at.add(
        node, "fixed_filter", images, name=name, shape=shape, kernel=list(kernel),
        stride=pair(argument(node, 3, 1)), padding=padding,
    )  # fmt: skip


def conv_along_channels(at: Importer, node: fx.Node) -> Row:
    """A convolution (N, 1, C) → (N, 1, C) of one filter."""
    out, inputs, taps = shape_of(node.args[1])
    stride, padding, dilation = (argument(node, i, default) for i, default in ((3, 1), (4, 0), (5, 1)))
    row = isinstance(at.values.get(node.args[0]), Row)  # type: ignore[arg-type]
    kept = (out, inputs, taps % 2) == (1, 1, 1) and padding in ("same", taps // 2, [taps // 2])
    if not row or not kept or stride not in (1, [1]) or dilation not in (1, [1]):
        raise at.refused(node, "conv1d is supported with one filter along the channels only")
    bias = argument(node, 2, None) is not None
    name = at.layer(node, weight=1, bias=2)
    return Row(at.add(node, "channel_conv", at.value(node, 0), name=name, taps=int(taps), bias=bias))


def batch_norm(at: Importer, node: fx.Node) -> str:
    if argument(node, 5, False):
        raise at.refused(
            node, "batch_norm with training=True, by the statistics of the batch, isn't supported"
        )
    if argument(node, 3, None) is None:
        raise at.refused(node, "batch_norm with track_running_stats=False isn't supported")
    if (argument(node, 1, None) is None) != (argument(node, 2, None) is None):
        raise at.refused(node, "batch_norm with a weight and no bias isn't supported")
    name = at.layer(node, weight=1, bias=2, running_mean=3, running_var=4)
    vector = {"vector": True} if len(shape_of(node)) == 2 else {}
    return at.add(
        node, "batchnorm", at.value(node, 0), name=name,
        channels=shape_of(node.args[3])[0], eps=float(argument(node, 7, 1e-5)),
        momentum=_momentum(node), affine=argument(node, 1, None) is not None, **vector,
    )  # fmt: skip


def _momentum(node: fx.Node) -> float:
    """torch.export gives the None of a cumulative average as 0, with which the statistics would never change:
    torch's default then.
    """
    return float(argument(node, 6, 0.1)) or 0.1


def linear(at: Importer, node: fx.Node) -> str:
    pixels = at.has_channels_last(node.args[0])
    if len(shape_of(node)) != 2 and not pixels:
        raise at.refused(node, "linear on an image isn't supported: flatten it first")
    out, count = shape_of(node.args[1])
    parts = {"in": count, "out": out, "bias": argument(node, 2, None) is not None}
    stacked = at.is_called_again(node)
    name, value = at.layer(node, weight=1, bias=2, stacked=stacked), at.value(node, 0)
    if not stacked:
        return at.add(node, "linear", value, name=name, **parts, **({"pixels": True} if pixels else {}))
    image = at.call_stacked(node, "linear", at.add(node, "unflatten", value), name, **parts, pixels=True)
    return at.add(node, "flatten", image, positions=1)


def product(at: Importer, node: fx.Node) -> Any:
    """`x @ weight`, which is a linear layer with the transposed weight, or pixels times their shares."""
    if (found := attention.product(at, node)) is not None:
        return found
    return _linear_of(at, node, node.args[0], node.args[1])


def product_and_bias(at: Importer, node: fx.Node) -> str:
    """`addmm`: x @ weight + bias."""
    if node.kwargs.get("alpha", 1) != 1 or node.kwargs.get("beta", 1) != 1:
        raise at.refused(node, "addmm with alpha or beta isn't supported")
    bias, value, weight = node.args[:3]
    return _linear_of(at, node, value, weight, bias)


def _linear_of(at: Importer, node: fx.Node, value: Any, weight: Any, *bias: Any) -> str:
    if at.constants.of.get(weight) is None or len(shape_of(weight)) != 2:
        raise at.refused(node, f"aten.{operator_of(node)} of two images isn't supported")
    transposed = at.constants.transposed(weight)
    with node.graph.inserting_before(node):
        call = node.graph.call_function(torch.ops.aten.linear.default, (value, transposed, *bias))
    call.meta = node.meta
    return linear(at, call)


def layer_norm(at: Importer, node: fx.Node) -> str:
    last, shape, over = at.has_channels_last(node.args[0]), shape_of(node), argument(node, 1, [])
    of_pixel = len(shape) == 4 and over == shape[1:] and over[1:] == [1, 1]
    if len(shape) == 4 and over in (shape[1:], shape[2:]) and not of_pixel and not last:
        return _image_norm(at, node, groups=1 if over == shape[1:] else int(shape[1]))
    if not of_pixel and ((len(shape) != 2 and not last) or len(over) != 1):
        raise at.refused(node, "layer_norm is supported over the channels only")
    for index in (2, 3):  # weight and bias, (C, 1, 1) for a pixel
        if of_pixel and argument(node, index, None) is not None:
            node.update_arg(index, at.constants.flattened(node.args[index]))  # type: ignore[arg-type]
    return _norm(at, node, "layer_norm", 2, eps=argument(node, 4, 1e-5))


def _image_norm(at: Importer, node: fx.Node, *, groups: int) -> str:
    """`layer_norm` over all pixels, of all channels together or of each, with values for each pixel."""
    parts: dict[str, Any] = {"channels": int(shape_of(node)[1]), "eps": float(argument(node, 4, 1e-5))}
    value = at.add(node, "group_norm", at.value(node, 0), affine=False, groups=groups, **parts)
    for operator, index in (("multiply_by", 2), ("plus", 3)):
        if (values := argument(node, index, None)) is not None:
            value = arithmetic.combined(at, node, operator, values, node, value)
    return value


def group_norm(at: Importer, node: fx.Node) -> str:
    groups = int(argument(node, 1, 1))
    return _norm(at, node, "group_norm", 2, eps=argument(node, 4, 1e-5), groups=groups)


def instance_norm(at: Importer, node: fx.Node) -> str:
    if not argument(node, 5, True):
        raise at.refused(node, "instance_norm with running statistics isn't supported")
    groups = int(shape_of(node)[1])
    return _norm(at, node, "group_norm", 1, eps=argument(node, 7, 1e-5), groups=groups)


def _norm(at: Importer, node: fx.Node, operator: str, weight: int, *, eps: float, **parts: int) -> str:
    affine = argument(node, weight, None) is not None
    if affine != (argument(node, weight + 1, None) is not None):
        raise at.refused(node, f"{operator} with a weight and no bias isn't supported")
    channels = int(shape_of(node)[at.channel_axis(node.args[0])])
    name = at.layer(node, weight=weight, bias=weight + 1) if affine else ""
    return at.add(
        node,
        operator,
        at.value(node, 0),
        name=name,
        channels=channels,
        eps=float(eps),
        affine=affine,
        **parts,
    )
