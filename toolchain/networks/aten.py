"""ATen operators of programs traced by torch.export, and the graph operator that each becomes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import fx

from slimdeploy.toolchain.networks.aten_arithmetic import (
    activation,
    add,
    clamp,
    divide,
    elu,
    gelu,
    hardtanh,
    leaky_relu,
    multiply,
    negate,
    prelu,
    subtract,
    subtract_from,
)
from slimdeploy.toolchain.networks.aten_shapes import (
    Constant,
    Pixels,
    Row,
    Squeezed,
    Zeros,
    argument,
    channel_shuffle,
    cut,
    expand,
    item,
    permute,
    pieces,
    repeat,
    reshape,
    same,
    select,
    shape_of,
    transpose,
    unsqueeze,
    zeros,
)
from slimdeploy.toolchain.networks.operators.padding import MODES
from slimdeploy.toolchain.networks.operators.torch_modules import StochasticDepth
from slimdeploy.toolchain.registry import Registry

if TYPE_CHECKING:
    from slimdeploy.toolchain.networks.importer import Importer


def _pair(value: Any) -> list[int]:
    values = [int(v) for v in value] if isinstance(value, list | tuple) else [int(value)]
    return values * 2 if len(values) == 1 else values


def _conv(at: Importer, node: fx.Node) -> str:
    weight = node.args[1]
    if isinstance(filters := at.values.get(weight), Constant) and not at.is_trained(filters.name):  # type: ignore[arg-type]
        return _fixed_filter(at, node, filters.name)
    out, per_group, *kernel = shape_of(weight)
    stride, groups = _pair(argument(node, 3, 1)), int(argument(node, 6, 1))
    images, padding, dilation = _padded(at, node, kernel)
    bias = argument(node, 2, None) is not None
    channels = {"in": per_group * groups, "out": out}
    return at.add(
        node, "conv", images, name=at.module_of(node, weight=1, bias=2), **channels, kernel=list(kernel),
        stride=stride, padding=padding, dilation=dilation, groups=groups, bias=bias,
    )  # fmt: skip


def _padded(at: Importer, node: fx.Node, kernel: list[int]) -> tuple[str, list[int], list[int]]:
    """The images of a convolution, its padding and its dilation. "same" adds a `pad` if the sides differ."""
    images, padding, dilation = at.value(node, 0), argument(node, 4, 0), _pair(argument(node, 5, 1))
    if padding == "valid":
        padding = 0
    elif padding == "same":
        missing = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        padding = [m // 2 for m in missing]
        below, right = (m % 2 for m in missing)
        if below or right:
            images = at.add(node, "pad", images, margins=[0, right, 0, below])
    return images, _pair(padding), dilation


def _fixed_filter(at: Importer, node: fx.Node, name: str) -> str:
    """A depthwise convolution with a buffer, possibly expanded or repeated for all channels."""
    out, per_group, *kernel = shape_of(node.args[1])
    channels, shape = int(shape_of(node.args[0])[1]), list(at.tensor(name).shape)
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
        stride=_pair(argument(node, 3, 1)), padding=padding,
    )  # fmt: skip


def _conv_along_channels(at: Importer, node: fx.Node) -> Row:
    """A convolution (N, 1, C) → (N, 1, C) of one filter."""
    out, inputs, taps = shape_of(node.args[1])
    stride, padding, dilation = (argument(node, i, default) for i, default in ((3, 1), (4, 0), (5, 1)))
    row = isinstance(at.values.get(node.args[0]), Row)  # type: ignore[arg-type]
    kept = (out, inputs, taps % 2) == (1, 1, 1) and padding in ("same", taps // 2, [taps // 2])
    if not row or not kept or stride not in (1, [1]) or dilation not in (1, [1]):
        raise at.refused(node, "conv1d is supported with one filter along the channels only")
    bias = argument(node, 2, None) is not None
    name = at.module_of(node, weight=1, bias=2)
    return Row(at.add(node, "channel_conv", at.value(node, 0), name=name, taps=int(taps), bias=bias))


def _batch_norm(at: Importer, node: fx.Node) -> str:
    if argument(node, 3, None) is None:
        raise at.refused(node, "batch_norm with track_running_stats=False isn't supported")
    if (argument(node, 1, None) is None) != (argument(node, 2, None) is None):
        raise at.refused(node, "batch_norm with a weight and no bias isn't supported")
    name = at.module_of(node, weight=1, bias=2, running_mean=3, running_var=4)
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


def _linear(at: Importer, node: fx.Node) -> str:
    pixels = at.has_channels_last(node.args[0])
    if len(shape_of(node)) != 2 and not pixels:
        raise at.refused(node, "linear on an image isn't supported: flatten it first")
    out, count = shape_of(node.args[1])
    parts = {"in": count, "out": out, "bias": argument(node, 2, None) is not None}
    if pixels:
        parts["pixels"] = True
    return at.add(node, "linear", at.value(node, 0), name=at.module_of(node, weight=1, bias=2), **parts)


def _layer_norm(at: Importer, node: fx.Node) -> str:
    last = at.has_channels_last(node.args[0])
    if (len(shape_of(node)) != 2 and not last) or len(argument(node, 1, [])) != 1:
        raise at.refused(node, "layer_norm is supported over the channels only")
    return _norm(at, node, "layer_norm", 2, eps=argument(node, 4, 1e-5))


def _group_norm(at: Importer, node: fx.Node) -> str:
    groups = int(argument(node, 1, 1))
    return _norm(at, node, "group_norm", 2, eps=argument(node, 4, 1e-5), groups=groups)


def _instance_norm(at: Importer, node: fx.Node) -> str:
    if not argument(node, 5, True):
        raise at.refused(node, "instance_norm with running statistics isn't supported")
    groups = int(shape_of(node)[1])
    return _norm(at, node, "group_norm", 1, eps=argument(node, 7, 1e-5), groups=groups)


def _norm(at: Importer, node: fx.Node, operator: str, weight: int, *, eps: float, **parts: int) -> str:
    affine = argument(node, weight, None) is not None
    if affine != (argument(node, weight + 1, None) is not None):
        raise at.refused(node, f"{operator} with a weight and no bias isn't supported")
    channels = at.channels(node)
    name = at.module_of(node, weight=weight, bias=weight + 1) if affine else ""
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


def _cat(at: Importer, node: fx.Node) -> str:
    if argument(node, 1, 0) % len(shape_of(node)) != 1:
        raise at.refused(node, "cat is supported along the channels only")
    parts = [at.values.get(part) for part in argument(node, 0, [])]
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


def _max_pool(at: Importer, node: fx.Node) -> str:
    if _pair(argument(node, 4, 1)) != [1, 1]:
        raise at.refused(node, "a dilated max_pool2d isn't supported")
    return at.add(
        node, "max_pool", at.value(node, 0), kernel=_pair(node.args[1]), stride=_stride(node),
        padding=_pair(argument(node, 3, 0)), ceil=bool(argument(node, 5, False)),
    )  # fmt: skip


def _avg_pool(at: Importer, node: fx.Node) -> str:
    if argument(node, 6, None) is not None:
        raise at.refused(node, "avg_pool2d with a divisor isn't supported")
    return at.add(
        node, "avg_pool", at.value(node, 0), kernel=_pair(node.args[1]), stride=_stride(node),
        padding=_pair(argument(node, 3, 0)), ceil=bool(argument(node, 4, False)),
        count_padding=bool(argument(node, 5, True)),
    )  # fmt: skip


def _stride(node: fx.Node) -> list[int]:
    return _pair(argument(node, 2, None) or node.args[1])


def _adaptive_avg_pool(at: Importer, node: fx.Node) -> str:
    return at.add(node, "adaptive_avg_pool", at.value(node, 0), size=[int(n) for n in shape_of(node)[2:]])


def _over_image(operator: str, **attributes: Any) -> Reader:
    """A reduction over height and width, at once or one after the other, or over flattened pixels."""

    def read(at: Importer, node: fx.Node) -> Any:
        shape, found = shape_of(node.args[0]), at.values.get(node.args[0])  # type: ignore[arg-type]
        axes = sorted(axis % len(shape) for axis in argument(node, 1, []))
        if isinstance(found, Pixels) and found.reduced in ("", operator) and axes == [found.left]:
            value = found.value
        elif len(shape) == 4 and axes == [2, 3]:
            value = at.value(node, 0)
        elif len(shape) == 4 and axes in ([2], [3]):
            kept_width = axes == [2] and argument(node, 2, False)
            return Pixels(at.value(node, 0), left=3 if kept_width else 2, reduced=operator)
        else:
            name = at.operator(node)
            raise at.refused(node, f"{name} over the axes {axes} isn't supported, only over height and width")
        image, dimensions = at.add(node, operator, value, **attributes), len(shape_of(node))
        if dimensions == 2:
            return at.add(node, "flatten", image, positions=1)
        return Squeezed(image) if dimensions == 3 else image

    return read


def _adaptive_max_pool(at: Importer, node: fx.Node) -> str:
    if _pair(argument(node, 1, 1)) != [1, 1]:
        raise at.refused(node, "adaptive_max_pool2d is supported to 1×1 only")
    return at.add(node, "global_max_pool", at.value(node, 0))


def _pad(at: Importer, node: fx.Node) -> str:
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


def _upsample(at: Importer, node: fx.Node) -> str:
    before, after = shape_of(node.args[0])[2:], shape_of(node)[2:]
    if any(large % small for large, small in zip(after, before, strict=True)):
        raise at.refused(
            node, "upsampling from {}×{} to {}×{} isn't a whole multiple".format(*before, *after)
        )
    factor = [int(large // small) for large, small in zip(after, before, strict=True)]
    return at.add(node, "upsample", at.value(node, 0), factor=factor)


def _gated_linear_unit(at: Importer, node: fx.Node) -> str:
    """`glu`: the first half of the channels times the sigmoid of the second one."""
    channels, half = int(shape_of(node.args[0])[1]), int(shape_of(node)[1])
    if 2 * half != channels:
        raise at.refused(node, "glu is supported along the channels only")
    first = at.add(node, "slice", at.value(node, 0), start=0, stop=half)
    gate = at.add(node, "slice", at.value(node, 0), start=half, stop=channels)
    return at.add(node, "multiply", first, at.add(node, "sigmoid", gate))


def _dropout(at: Importer, node: fx.Node) -> str:
    share = float(argument(node, 1, 0.5))
    if at.class_of_module(node) == StochasticDepth.__name__:
        return at.add(node, "stochastic_depth", at.value(node, 0), share=share)
    channels: dict[str, Any] = {"channels": True} if at.operator(node) == "feature_dropout" else {}
    return at.add(node, "dropout", at.value(node, 0), share=share, **channels)


LEAVES = (
    "relu", "relu6", "silu", "hardswish", "hardsigmoid", "sigmoid", "tanh", "gelu", "leakyrelu", "dropout",
    "stochasticdepth",
    "maxpool", "avgpool", "adaptiveavgpool", "flatten", "identity", "prelu", "elu", "mish", "hardtanh",
)  # fmt: skip
"""Module classes that become one operator: its node is named after the module."""

POINTWISE = (
    "linear", "layer_norm", "relu", "relu6", "silu", "hardswish", "hardsigmoid", "sigmoid", "tanh", "gelu",
    "elu", "mish", "leaky_relu", "clamp", "clamp_min", "hardtanh", "dropout", "add", "sub", "neg", "mul",
    "div",
)  # fmt: skip
"""Operators that work per channel and pixel, in any memory layout."""

ANY_LAYOUT = (permute, reshape, select, transpose, unsqueeze, same, _conv_along_channels)
"""Readers that also take values in the LAYOUTS of aten_shapes."""

Reader = Callable[["Importer", fx.Node], Any]
"""Converts a call of an ATen operator to nodes; returns the value of the call."""
READERS: Registry[Reader] = Registry("aten", Callable)
"""ATen operator without namespace and underscores (`softplus`) -> its conversion."""
READERS.update(
    {
        "conv2d": _conv,
        "conv1d": _conv_along_channels,
        "batch_norm": _batch_norm,
        "linear": _linear,
        **{
            name: activation(name) for name in ("relu", "silu", "hardswish", "hardsigmoid", "sigmoid", "tanh")
        },
        "relu6": activation("relu6"),
        "hardtanh": hardtanh,
        "clamp": clamp,
        "clamp_min": clamp,
        "leaky_relu": leaky_relu,
        "gelu": gelu,
        "prelu": prelu,
        "elu": elu,
        "mish": activation("mish"),
        "layer_norm": _layer_norm,
        "group_norm": _group_norm,
        "instance_norm": _instance_norm,
        "add": add,
        "sub": subtract,
        "neg": negate,
        "rsub": subtract_from,
        "mul": multiply,
        "div": divide,
        "cat": _cat,
        "max_pool2d": _max_pool,
        "avg_pool2d": _avg_pool,
        "adaptive_avg_pool2d": _adaptive_avg_pool,
        "adaptive_max_pool2d": _adaptive_max_pool,
        "amax": _over_image("global_max_pool"),
        "mean": _over_image("adaptive_avg_pool", size=[1, 1]),
        "pad": _pad,
        "constant_pad_nd": _pad,
        "upsample_nearest2d": _upsample,
        "glu": _gated_linear_unit,
        "dropout": _dropout,
        "feature_dropout": _dropout,
        "flatten": reshape,
        "view": reshape,
        "reshape": reshape,
        "squeeze": reshape,
        "expand": expand,
        "expand_as": expand,
        "repeat": repeat,
        "select": select,
        "unsqueeze": unsqueeze,
        "transpose": transpose,
        "permute": permute,
        "channel_shuffle": channel_shuffle,
        "chunk": pieces,
        "split": pieces,
        "split_with_sizes": pieces,
        "zeros": zeros,
        "zeros_like": zeros,
        "new_zeros": zeros,
        "slice": cut,
        "getitem": item,
        "contiguous": same,
        "clone": same,
        "alias": same,
        "detach": same,
        "lift_fresh_copy": same,
    }
)
