"""The operators of a graph, one file per kind. Each class defines everything about its operator."""

from slimdeploy.toolchain.networks.operators import (
    activation,
    batchnorm,
    channel_conv,
    coefficients,
    concat,
    convolution,
    dropout,
    elementwise,
    fixed_filter,
    flatten,
    linear,
    normalisation,
    padding,
    pooling,
    shuffle,
    upsample,
)
from slimdeploy.toolchain.networks.operators.base import OPERATORS, Operator, Shape, Tensor

__all__ = [
    "OPERATORS",
    "Operator",
    "Shape",
    "Tensor",
    "activation",
    "batchnorm",
    "channel_conv",
    "coefficients",
    "concat",
    "convolution",
    "dropout",
    "elementwise",
    "fixed_filter",
    "flatten",
    "linear",
    "normalisation",
    "padding",
    "pooling",
    "shuffle",
    "upsample",
]
