"""ATen operators of programs traced by torch.export: the table of their conversions to graph operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import fx

from slimdeploy.toolchain.networks import aten_arithmetic as arithmetic
from slimdeploy.toolchain.networks import aten_comparisons as comparisons
from slimdeploy.toolchain.networks import aten_layers as layers
from slimdeploy.toolchain.networks import aten_pooling as pooling
from slimdeploy.toolchain.networks import aten_reductions as reductions
from slimdeploy.toolchain.networks import aten_several as several
from slimdeploy.toolchain.networks import aten_shapes as shapes
from slimdeploy.toolchain.networks import aten_slices as slices
from slimdeploy.toolchain.networks.aten_reshape import reshape
from slimdeploy.toolchain.networks.aten_values import CONVERSIONS, COPIES
from slimdeploy.toolchain.registry import Registry

if TYPE_CHECKING:
    from slimdeploy.toolchain.networks.importer import Importer


LEAVES = (
    "relu", "relu6", "silu", "hardswish", "hardsigmoid", "sigmoid", "tanh", "gelu", "leakyrelu", "dropout",
    "stochasticdepth",
    "maxpool", "avgpool", "adaptiveavgpool", "flatten", "identity", "prelu", "elu", "mish", "hardtanh",
)  # fmt: skip
"""Module classes that become one operator: its node is named after the module."""

POINTWISE = (
    "linear", "layer_norm", "relu", "relu6", "silu", "hardswish", "hardsigmoid", "sigmoid", "tanh", "gelu",
    "elu", "mish", "selu", "celu", "softplus", "log_sigmoid", "abs", "exp", "log", "pow", "square", "sqrt",
    "rsqrt", "reciprocal", "leaky_relu", "clamp", "clamp_min", "clamp_max", "hardtanh", "dropout", "add",
    "sub", "neg", "mul", "div", "addcmul", "maximum", "minimum", "matmul",
)  # fmt: skip
"""Operators that work per channel and pixel, in any memory layout."""

ACTIVATIONS = (
    "relu", "relu6", "silu", "hardswish", "hardsigmoid", "sigmoid", "tanh", "mish", "selu", "log_sigmoid",
    "abs", "exp", "log", "sign", "sin", "cos",
)  # fmt: skip
"""Operators of one argument that have the same name in a graph."""

ANY_LAYOUT = (
    shapes.permute, reshape, shapes.select, shapes.transpose, shapes.unsqueeze, shapes.same,
    shapes.converted,
    slices.pieces, slices.cut, slices.item, slices.cat,
    layers.conv_along_channels, reductions.mean, reductions.maximum, reductions.maximum_and_position,
    reductions.norm, reductions.total,
)  # fmt: skip
"""Readers that also take values in the LAYOUTS of aten_values."""

Reader = Callable[["Importer", fx.Node], Any]
"""Converts a call of an ATen operator to nodes; returns the value of the call."""
READERS: Registry[Reader] = Registry("aten", Callable)
"""ATen operator without namespace and underscores (`softplus`) -> its conversion."""
READERS.update(
    {
        "conv2d": layers.conv,
        "conv1d": layers.conv_along_channels,
        "batch_norm": layers.batch_norm,
        "linear": layers.linear,
        "matmul": layers.product,
        "mm": layers.product,
        "bmm": layers.product,
        "addmm": layers.product_and_bias,
        **{name: arithmetic.activation(name) for name in ACTIVATIONS},
        "hardtanh": arithmetic.hardtanh,
        "clamp": arithmetic.clamp,
        "clamp_min": arithmetic.clamp,
        "clamp_max": arithmetic.clamp_max,
        "leaky_relu": arithmetic.leaky_relu,
        "gelu": arithmetic.gelu,
        "prelu": arithmetic.prelu,
        "elu": arithmetic.elu,
        "celu": arithmetic.celu,
        "softplus": arithmetic.softplus,
        "pow": arithmetic.power,
        "square": arithmetic.power_of(2),
        "sqrt": arithmetic.power_of(0.5),
        "rsqrt": arithmetic.power_of(-0.5),
        "reciprocal": arithmetic.power_of(-1),
        "rrelu": arithmetic.random_leaky_relu,
        "gt": comparisons.comparison(greater=True, equal=False),
        "ge": comparisons.comparison(greater=True, equal=True),
        "lt": comparisons.comparison(greater=False, equal=False),
        "le": comparisons.comparison(greater=False, equal=True),
        "where": comparisons.choice,
        "threshold": comparisons.threshold,
        "hardshrink": comparisons.shrink,
        "softshrink": comparisons.shrink,
        "maximum": arithmetic.larger,
        "minimum": arithmetic.smaller,
        "layer_norm": layers.layer_norm,
        "group_norm": layers.group_norm,
        "instance_norm": layers.instance_norm,
        "add": arithmetic.add,
        "sub": arithmetic.subtract,
        "neg": arithmetic.negate,
        "rsub": arithmetic.subtract_from,
        "mul": arithmetic.multiply,
        "div": arithmetic.divide,
        "addcmul": arithmetic.add_product,
        "sum": reductions.total,
        "softmax": several.softmax,
        "cat": slices.cat,
        "stack": slices.stack,
        "max_pool2d": pooling.max_pool,
        "max_pool2d_with_indices": pooling.max_pool_and_positions,
        "avg_pool2d": pooling.avg_pool,
        "avg_pool3d": pooling.channel_avg_pool,
        "adaptive_avg_pool2d": pooling.adaptive_avg_pool,
        "adaptive_max_pool2d": pooling.adaptive_max_pool,
        "amax": reductions.maximum,
        "max": reductions.maximum_and_position,
        "mean": reductions.mean,
        "std": reductions.variance(root=True),
        "var": reductions.variance(root=False),
        "linalg_vector_norm": reductions.norm,
        "pad": pooling.pad,
        "constant_pad_nd": pooling.pad,
        "upsample_nearest2d": pooling.upsample,
        "upsample_bilinear2d": pooling.upsample,
        "glu": arithmetic.gated_linear_unit,
        "dropout": arithmetic.dropout,
        "feature_dropout": arithmetic.dropout,
        "flatten": reshape,
        "view": reshape,
        "reshape": reshape,
        "squeeze": reshape,
        "expand": shapes.expand,
        "expand_as": shapes.expand,
        "repeat": shapes.repeat,
        "select": shapes.select,
        "unsqueeze": shapes.unsqueeze,
        "transpose": shapes.transpose,
        "permute": shapes.permute,
        "channel_shuffle": shapes.channel_shuffle,
        "pixel_unshuffle": slices.pixel_unshuffle,
        "chunk": slices.pieces,
        "split": slices.pieces,
        "split_with_sizes": slices.pieces,
        "zeros": shapes.zeros,
        "zeros_like": shapes.zeros,
        "new_zeros": shapes.zeros,
        "slice": slices.cut,
        "index": slices.picked,
        "index_select": slices.picked,
        "flip": slices.picked,
        "getitem": slices.item,
        **dict.fromkeys(COPIES, shapes.same),
        **dict.fromkeys(CONVERSIONS, shapes.converted),
    }
)
